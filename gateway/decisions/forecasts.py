"""Forecasts of running sessions, for the routes that tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from gateway.catalog.live import Configuration
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.decisions import session_forecast


class SessionForecasts:
    """The remaining turns and cost of a session, from its tenant's finished ones."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        clock: Clock,
        lambda_presets: Callable[[], Mapping[str, float]],
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._clock = clock
        self._lambda_presets = lambda_presets

    async def of(self, tenant_id: str, session_id: str, remaining_nanousd: int) -> dict[str, Any]:
        """The forecast of one session, whether its first turn was served or not."""
        return await self._database.read(lambda c: self.read(c, tenant_id, session_id, remaining_nanousd))

    def read(self, connection: Connection, tenant_id: str, session_id: str, remaining_nanousd: int) -> dict[str, Any]:
        """The same on an open connection, with the session's billed turns."""
        idle_s = self._configuration().settings.session.idle_timeout_s
        turns, spent = session_forecast.spent_turns(connection, tenant_id, session_id)
        past = session_forecast.past_sessions(
            connection, tenant_id, but=session_id, idle_before_ms=now_ms(self._clock) - int(idle_s * 1000)
        )
        future = session_forecast.futures(past, turns, spent, self._lambda_presets())
        return {"turns": turns, **session_forecast.summarise(future, remaining_nanousd, len(past))}
