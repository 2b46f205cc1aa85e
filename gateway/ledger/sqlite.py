"""The ledger on SQLite: its operations, run in groups by the database's writer thread, and its reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gateway.database.sqlite import Cursor
from gateway.errors import LedgerUnavailable
from gateway.ledger import statements as sql
from gateway.ledger.records import SESSION_FACTS, AccountSnapshot, SessionRow
from gateway.ledger.sqlite_reserve import claim_from_row, reserve, reserve_again, reset_window
from gateway.ledger.sqlite_resolve import (
    checkpoint,
    release,
    release_again,
    settle,
    settle_again,
    sweep_hold,
)
from gateway.ledger.types import (
    Balance,
    BodyMismatch,
    Checkpoint,
    InFlight,
    Release,
    Replay,
    Reserve,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    Settle,
    SweepHold,
)

T = TypeVar("T")


class Writes(Protocol):
    def submit(
        self,
        run: Callable[[Cursor], T],
        *,
        careful: Callable[[Cursor], T] | None = None,
        soft: bool = False,
        must: bool = False,
    ) -> asyncio.Future[T]: ...


class Reads(Protocol):
    def submit(self, run: Callable[[Cursor], T]) -> asyncio.Future[T]: ...


class Threads(Protocol):
    """What the ledger needs of `db_sqlite.SqliteDatabase`."""

    @property
    def writer(self) -> Writes: ...
    @property
    def reader(self) -> Reads: ...


class SqliteLedger:
    """Submits operations to the database's writer thread; the futures complete after the group's fsync."""

    def __init__(self, database: Threads) -> None:
        self._database = database

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        return self._database.writer.submit(lambda c: reserve(c, op), careful=lambda c: reserve_again(c, op))

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = settle_again if again else settle
        return self._database.writer.submit(lambda c: run(c, op), must=True)

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = release_again if again else release
        return self._database.writer.submit(lambda c: run(c, op), must=True)

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        return self._database.writer.submit(lambda c: checkpoint(c, points), soft=True)

    def sweep_hold(self, op: SweepHold) -> asyncio.Future[str | None]:
        return self._database.writer.submit(lambda c: sweep_hold(c, op))

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        return self._database.writer.submit(lambda c: reset_window(c, op))

    def standing(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]:
        return self._database.reader.submit(lambda c: standing(c, tenant_id, session_id))

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes, now_ms: int
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        return self._database.reader.submit(lambda c: claim_state(c, tenant_id, key, body_sha256, now_ms))

    async def due(self, now_ms: int, limit: int) -> tuple[list[str], list[ResetWindow]]:
        return await asyncio.shield(self._database.reader.submit(lambda c: find_due(c, now_ms, limit)))

    async def tidy(self, now_ms: int, before_ms: int) -> tuple[int, int]:
        return await asyncio.shield(self._database.writer.submit(lambda c: tidy(c, now_ms, before_ms)))

    async def start(self) -> None:
        """Nothing of its own: the database's threads serve it."""

    async def close(self) -> None:
        """Wait until everything submitted before is committed."""
        with contextlib.suppress(LedgerUnavailable):
            await self._database.writer.submit(lambda _: None, must=True)


def standing(cursor: Cursor, tenant_id: str, session_id: str) -> AccountSnapshot | None:
    row = cursor.execute(sql.STANDING, {"tenant": tenant_id, "session": session_id}).fetchone()
    return None if row is None else standing_from_row(tenant_id, row)


def claim_state(
    cursor: Cursor, tenant_id: str, key: str, body_sha256: bytes, now_ms: int
) -> Replay | InFlight | BodyMismatch | None:
    """What is known about an idempotency key; None when it is free."""
    row = cursor.execute(sql.CLAIM, {"tenant": tenant_id, "claim": key}).fetchone()
    if row is None or row[5] <= now_ms:
        return None
    return claim_from_row(row, body_sha256)


def find_due(cursor: Cursor, now_ms: int, limit: int) -> tuple[list[str], list[ResetWindow]]:
    """Holds whose lease ran out, and windows that ended."""
    bounds = {"now": now_ms, "most": limit}
    late = [row[0] for row in cursor.execute(sql.DUE_HOLDS, bounds).fetchall()]
    resets = [ResetWindow(row[0], None, now_ms) for row in cursor.execute(sql.DUE_TENANTS, bounds).fetchall()]
    resets += [ResetWindow(row[0], row[1], now_ms) for row in cursor.execute(sql.DUE_KEYS, bounds).fetchall()]
    return late, resets


def tidy(cursor: Cursor, now_ms: int, before_ms: int) -> tuple[int, int]:
    """Close decisions that were abandoned between two attempts, and forget idempotency rows past their day."""
    cursor.execute(sql.ABANDON, {"now": now_ms, "before": before_ms})
    abandoned = cursor.rowcount
    cursor.execute(sql.FORGET, {"now": now_ms, "before": before_ms})
    return abandoned, cursor.rowcount


def standing_from_row(tenant_id: str, row: Any) -> AccountSnapshot:
    """`row` in the order of sql.STANDING."""
    tenant = Balance(*row[:4])
    if row[4] is None:
        return AccountSnapshot(tenant, None)
    told = dict(zip(SESSION_FACTS, row[9:], strict=True))
    return AccountSnapshot(tenant, SessionRow(tenant_id, row[4], Balance(*row[5:9]), **told, tenant=tenant))
