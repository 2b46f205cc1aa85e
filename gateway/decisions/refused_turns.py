"""Turns that were refused because the money was spent (402).

A refused turn has no decision, and a session whose first turn is refused has no row. Each gateway counts them and adds
them to one row per session about once a second, so that a client that asks again and again costs no writes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, case
from sqlalchemy.dialects import postgresql, sqlite

from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.database.tables import refused_turns
from gateway.errors import SessionBudgetExceeded, TenantBudgetExceeded

BUDGET_CODES: tuple[str, ...] = (SessionBudgetExceeded.code, TenantBudgetExceeded.code)
"""Codes of the refusals after which a session counts as one that ran out of money."""
MAX_WAITING = 20_000
"""Sessions whose refusals wait to be written; those of further sessions are counted in the metrics alone."""


@dataclass(slots=True)
class _Count:
    turns: int
    first_at_ms: int
    last_at_ms: int


class RefusedTurns:
    """Counts refused turns by session, and writes the counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[tuple[str, str, str], _Count] = {}

    def add(self, tenant_id: str, session_id: str, code: str) -> None:
        """Count one refused turn of a session."""
        at_ms, key = now_ms(self._clock), (tenant_id, session_id, code)
        if key in self._waiting or len(self._waiting) < MAX_WAITING:
            self._merge(key, _Count(1, at_ms, at_ms))

    async def share(self, database: Database) -> None:
        """Write what was counted. Raises LedgerUnavailable, and keeps it then."""
        taken, self._waiting = self._waiting, {}
        if not taken:
            return
        try:
            await database.write(lambda connection: _write(connection, taken))
        except BaseException:
            for key, count in taken.items():
                self._merge(key, count)
            raise

    def _merge(self, key: tuple[str, str, str], added: _Count) -> None:
        known = self._waiting.setdefault(key, _Count(0, added.first_at_ms, added.last_at_ms))
        known.turns += added.turns
        known.first_at_ms = min(known.first_at_ms, added.first_at_ms)
        known.last_at_ms = max(known.last_at_ms, added.last_at_ms)


def _write(connection: Connection, counted: dict[tuple[str, str, str], _Count]) -> None:
    dialect, row = sqlite if connection.dialect.name == "sqlite" else postgresql, refused_turns.c
    for (tenant_id, session_id, code), count in sorted(counted.items()):
        insert = dialect.insert(refused_turns).values(
            tenant_id=tenant_id,
            session_id=session_id,
            code=code,
            turns=count.turns,
            first_at_ms=count.first_at_ms,
            last_at_ms=count.last_at_ms,
        )
        new = insert.excluded
        update = {
            "turns": row.turns + new.turns,
            "first_at_ms": case((new.first_at_ms < row.first_at_ms, new.first_at_ms), else_=row.first_at_ms),
            "last_at_ms": case((new.last_at_ms > row.last_at_ms, new.last_at_ms), else_=row.last_at_ms),
        }
        connection.execute(
            insert.on_conflict_do_update(index_elements=["tenant_id", "session_id", "code"], set_=update)
        )
