"""Savings, front and calibration over the newest turns of a period.

Sums over a whole period come from the hourly rollups; these estimates need every turn's candidates, so they are taken
from a bounded number of turns, at most once a minute. One read runs at a time, the others wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.decisions.calibration import Calibration, calibrate
from gateway.decisions.report import newest_turns, savings_rows
from gateway.decisions.savings import SavingsTally
from gateway.ui.queries import last_days

NEWEST_TURNS = 4_000
KEPT_MS = 60_000
MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class Insight:
    """Estimates for one period and tenant. `whole`: all routed turns of the period are in them."""

    savings: Mapping[str, Any]
    calibration: Calibration
    whole: bool


class Insights:
    """Reads and keeps insights by period and tenant."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: dict[tuple[int, str | None], tuple[int, Insight]] = {}

    async def of(self, days: int, tenant_id: str | None) -> Insight:
        """The insight for the last days, of one tenant or of all (None). Raises LedgerUnavailable."""
        async with self._lock:
            until_ms, kept = self._kept.get((days, tenant_id), (0, None))
            at_ms = now_ms(self._clock)
            if kept is not None and at_ms < until_ms:
                return kept
            found = await self._database.read(lambda c: read_insight(c, days, at_ms, tenant_id))
            self._kept.pop((days, tenant_id), None)
            while len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[days, tenant_id] = (at_ms + KEPT_MS, found)
            return found


def read_insight(connection: Connection, days: int, at_ms: int, tenant_id: str | None) -> Insight:
    """Estimate from the newest turns of the last days."""
    since_ms = last_days(days, at_ms, tenant_id).since_ms
    turns, own_nanousd, whole = newest_turns(connection, tenant_id=tenant_id, since_ms=since_ms, limit=NEWEST_TURNS)
    tally = SavingsTally()
    tally.add(turns)
    return Insight(savings_rows(tally.result(), own_nanousd), calibrate(turns), whole)
