"""Turns that were refused because the money was spent (402).

A refused turn has no decision. Each gateway counts them and adds them to one row per session about once a second, so
that a client that asks again and again costs no writes of its own. A session without a row has the empty id here: each
request of a client that names no session would otherwise leave a row of its own. A tenant or key whose budget refused
has a row with the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Table, case
from sqlalchemy.dialects import postgresql, sqlite

from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.database.tables import refused_turns, refusing_accounts

MAX_WAITING = 20_000
"""Sessions whose refusals wait to be written; those of further sessions are counted in the metrics alone."""
WRITE_ROWS = 500
"""Rows of one transaction, so that a turn on SQLite waits for milliseconds."""
NO_SESSION = ""
"""Session id under which turns without a session's row are counted."""
_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Count:
    turns: int
    first_at_ms: int
    last_at_ms: int


class RefusedTurns:
    """Counts refused turns by session, and writes the counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[_Key, _Count] = {}
        self._refusing: dict[tuple[str, str], int] = {}

    def add(self, tenant_id: str, session_id: str, code: str, refusing: tuple[str, str] | None = None) -> None:
        """Count one refused turn of a session, or of NO_SESSION.

        `refusing`: kind ("tenant" or "key") and id of the account above the session whose budget refused it.
        """
        at_ms, key = now_ms(self._clock), (tenant_id, session_id, code)
        if key in self._waiting or len(self._waiting) < MAX_WAITING:
            self._merge(key, _Count(1, at_ms, at_ms))
        if refusing is not None:
            self._refusing[refusing] = at_ms

    async def share(self, database: Database) -> None:
        """Write what was counted. Raises LedgerUnavailable, and keeps what was not written then."""
        taken, self._waiting = self._waiting, {}
        refusing, self._refusing = self._refusing, {}
        waiting = sorted(taken)
        try:
            for start in range(0, len(waiting), WRITE_ROWS):
                keys = waiting[start : start + WRITE_ROWS]
                await database.write(partial(_write, rows=[_row(key, taken[key]) for key in keys]))
                for key in keys:
                    del taken[key]
            if refusing:
                await database.write(partial(_write_accounts, refusing=sorted(refusing.items())))
        except BaseException:
            for key, count in taken.items():
                self._merge(key, count)
            self._refusing = refusing | self._refusing
            raise

    def _merge(self, key: _Key, added: _Count) -> None:
        known = self._waiting.setdefault(key, _Count(0, added.first_at_ms, added.last_at_ms))
        known.turns += added.turns
        known.first_at_ms = min(known.first_at_ms, added.first_at_ms)
        known.last_at_ms = max(known.last_at_ms, added.last_at_ms)


def _row(key: _Key, count: _Count) -> dict[str, Any]:
    tenant_id, session_id, code = key
    counted = {"turns": count.turns, "first_at_ms": count.first_at_ms, "last_at_ms": count.last_at_ms}
    return {"tenant_id": tenant_id, "session_id": session_id, "code": code, **counted}


def _write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    row = refused_turns.c
    insert = _insert(connection, refused_turns)
    new = insert.excluded
    update = {
        "turns": row.turns + new.turns,
        "first_at_ms": case((new.first_at_ms < row.first_at_ms, new.first_at_ms), else_=row.first_at_ms),
        "last_at_ms": case((new.last_at_ms > row.last_at_ms, new.last_at_ms), else_=row.last_at_ms),
    }
    adding = insert.on_conflict_do_update(index_elements=["tenant_id", "session_id", "code"], set_=update)
    connection.execute(adding, rows)


def _write_accounts(connection: Connection, refusing: list[tuple[tuple[str, str], int]]) -> None:
    rows = [{"account": kind, "account_id": name, "last_at_ms": at_ms} for (kind, name), at_ms in refusing]
    insert = _insert(connection, refusing_accounts)
    new, row = insert.excluded, refusing_accounts.c
    newest = {"last_at_ms": case((new.last_at_ms > row.last_at_ms, new.last_at_ms), else_=row.last_at_ms)}
    connection.execute(insert.on_conflict_do_update(index_elements=["account", "account_id"], set_=newest), rows)


def _insert(connection: Connection, table: Table) -> Any:
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
