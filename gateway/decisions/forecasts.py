"""Forecasts of running sessions, for the routes that tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from gateway.catalog.live import Configuration
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.decisions import session_forecast
from gateway.decisions.session_forecast import PastTurn

LONG_TURNS = 1_000
"""A longer history is kept for KEPT_MS: reading it takes long, and an agent may ask before every turn."""
KEPT_MS = 60_000
MAX_KEPT = 32


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
        self._kept: dict[str, tuple[int, Mapping[str, list[PastTurn]]]] = {}

    async def of(self, tenant_id: str, session_id: str, remaining_nanousd: int) -> dict[str, Any]:
        """The forecast of one session, whether its first turn was served or not."""
        return await self._database.read(lambda c: self.read(c, tenant_id, session_id, remaining_nanousd))

    def read(self, connection: Connection, tenant_id: str, session_id: str, remaining_nanousd: int) -> dict[str, Any]:
        """The same on an open connection, with the session's billed turns."""
        idle_s = self._configuration().settings.session.idle_timeout_s
        turns, spent = session_forecast.spent_turns(connection, tenant_id, session_id)
        now = now_ms(self._clock)
        past = [
            turns_of
            for name, turns_of in self._past(connection, tenant_id, now, now - int(idle_s * 1000)).items()
            if name != session_id
        ]
        future = session_forecast.futures(past, turns, spent, self._lambda_presets())
        return {"turns": turns, **session_forecast.summarise(future, remaining_nanousd, len(past))}

    def _past(
        self, connection: Connection, tenant_id: str, at_ms: int, idle_before_ms: int
    ) -> Mapping[str, list[PastTurn]]:
        until_ms, past = self._kept.get(tenant_id, (0, {}))
        if at_ms < until_ms:
            return past
        past = session_forecast.past_sessions(connection, tenant_id, idle_before_ms=idle_before_ms)
        self._kept.pop(tenant_id, None)
        if sum(map(len, past.values())) > LONG_TURNS:
            while len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept), ""), None)  # several threads read
            self._kept[tenant_id] = (at_ms + KEPT_MS, past)
        return past
