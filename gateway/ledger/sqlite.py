"""The ledger on SQLite: its operations, run in groups by the database's writer thread, and its reads.

One process serves a SQLite file, so its steady clock is the ledger's: it is read in the writer's thread when an
operation's turn has come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gateway.clock import Clock, now_ms
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
    @property
    def exclusive(self) -> bool: ...


class SqliteLedger:
    """Submits operations to the database's writer thread; the futures complete after the group's fsync."""

    def __init__(self, database: Threads, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def _now_ms(self) -> int:
        return now_ms(self._clock)

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        return self._database.writer.submit(
            lambda c: reserve(c, op, self._now_ms()), careful=lambda c: reserve_again(c, op, self._now_ms())
        )

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = settle_again if again else settle
        return self._database.writer.submit(lambda c: run(c, op, self._now_ms()), must=True)

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = release_again if again else release
        return self._database.writer.submit(lambda c: run(c, op, self._now_ms()), must=True)

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        return self._database.writer.submit(lambda c: checkpoint(c, points, self._now_ms()), soft=True)

    def sweep_hold(self, hold_id: str) -> asyncio.Future[str | None]:
        return self._database.writer.submit(lambda c: sweep_hold(c, hold_id, self._now_ms()))

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        return self._database.writer.submit(lambda c: reset_window(c, op, self._now_ms()))

    def standing(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]:
        return self._database.reader.submit(lambda c: standing(c, tenant_id, session_id, self._now_ms()))

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        return self._database.reader.submit(lambda c: claim_state(c, tenant_id, key, body_sha256, self._now_ms()))

    async def due(self, limit: int) -> tuple[list[str], list[ResetWindow]]:
        return await asyncio.shield(self._database.reader.submit(lambda c: find_due(c, self._now_ms(), limit)))

    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]:
        return await asyncio.shield(self._database.writer.submit(lambda c: tidy(c, self._now_ms(), abandoned_after_ms)))

    async def start(self) -> None:
        """End the leases that an earlier process left: whoever serves the file serves it alone, so that one is gone.

        However the wall clock moved between the two, their holds are due at the next sweep.
        """
        if self._database.exclusive:
            await asyncio.shield(self._database.writer.submit(lambda c: end_leases(c, self._now_ms())))

    async def close(self) -> None:
        """Wait until everything submitted before is committed."""
        with contextlib.suppress(LedgerUnavailable):
            await self._database.writer.submit(lambda _: None, must=True)


def standing(cursor: Cursor, tenant_id: str, session_id: str, now_ms: int) -> AccountSnapshot | None:
    row = cursor.execute(sql.STANDING, {"tenant": tenant_id, "session": session_id}).fetchone()
    return None if row is None else standing_from_row(tenant_id, row, now_ms)


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
    resets = [ResetWindow(row[0], None) for row in cursor.execute(sql.DUE_TENANTS, bounds).fetchall()]
    resets += [ResetWindow(row[0], row[1]) for row in cursor.execute(sql.DUE_KEYS, bounds).fetchall()]
    return late, resets


def end_leases(cursor: Cursor, now_ms: int) -> None:
    """Every open hold's lease has run out by now."""
    cursor.execute(sql.END_LEASES, {"now": now_ms})


def tidy(cursor: Cursor, now_ms: int, abandoned_after_ms: int) -> tuple[int, int]:
    """Close decisions that were abandoned between two attempts, and forget idempotency rows past their day."""
    bounds = {"now": now_ms, "before": now_ms - abandoned_after_ms}
    cursor.execute(sql.ABANDON, bounds)
    abandoned = cursor.rowcount
    cursor.execute(sql.FORGET, bounds)
    return abandoned, cursor.rowcount


def standing_from_row(tenant_id: str, row: Any, now_ms: int) -> AccountSnapshot:
    """`row` in the order of sql.STANDING."""
    tenant = Balance(*row[:4])
    if row[4] is None:
        return AccountSnapshot(tenant, None, now_ms)
    told = dict(zip(SESSION_FACTS, row[9:], strict=True))
    session = SessionRow(tenant_id, row[4], Balance(*row[5:9]), **told, tenant=tenant)
    return AccountSnapshot(tenant, session, now_ms)
