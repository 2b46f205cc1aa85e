"""Ledger on SQLite: operations in groups on the writer thread, reads on the reader thread.

One process serves a SQLite file, so its steady clock is the ledger's; it is read in the writer thread when an operation
runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from msgspec import structs

from gateway.clock import Clock, now_ms
from gateway.database.sqlite_connection import Cursor
from gateway.errors import LedgerUnavailable
from gateway.ledger import statements as sql
from gateway.ledger.backend import LedgerBackend
from gateway.ledger.lease_watch import OpenLease
from gateway.ledger.records import SESSION_FACTS, AccountSnapshot, SessionRow
from gateway.ledger.sqlite_beginnings import find_beginnings
from gateway.ledger.sqlite_reserve import claim_from_row, reserve, reserve_again, reset_window
from gateway.ledger.sqlite_resolve import (
    checkpoint,
    release,
    release_again,
    settle,
    settle_again,
    sweep_hold,
)
from gateway.ledger.sqlite_trees import chain_of
from gateway.ledger.types import (
    Balance,
    BodyMismatch,
    Checkpoint,
    InFlight,
    KnownBeginning,
    Release,
    Replay,
    Reserve,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    Settle,
    SoughtBeginning,
)

T = TypeVar("T")


class Writes(Protocol):
    """The writer thread, as the ledger uses it."""

    def submit(
        self,
        run: Callable[[Cursor], T],
        *,
        careful: Callable[[Cursor], T] | None = None,
        soft: bool = False,
        must: bool = False,
    ) -> asyncio.Future[T]:
        """Run in the next group commit; see `SqliteThread.submit`."""


class Reads(Protocol):
    """The reader thread, as the ledger uses it."""

    def submit(self, run: Callable[[Cursor], T]) -> asyncio.Future[T]:
        """Run in the next read transaction."""


class Threads(Protocol):
    """The part of `SqliteDatabase` that the ledger uses."""

    @property
    def writer(self) -> Writes:
        """The thread for operations."""

    @property
    def reader(self) -> Reads:
        """The thread for reads of turns."""

    @property
    def exclusive(self) -> bool:
        """True when this process alone may use the file."""


class SqliteLedger(LedgerBackend):
    """The backend on SQLite; futures complete after the group's fsync."""

    clock_may_be_set = False  # the only process that serves counts elapsed time

    def __init__(self, database: Threads, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def _now_ms(self) -> int:
        return now_ms(self._clock)

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        run = reserve_again if op.repeatable else reserve
        return self._database.writer.submit(
            lambda c: run(c, op, self._now_ms()), careful=lambda c: reserve_again(c, op, self._now_ms())
        )

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = settle_again if again else settle
        return self._database.writer.submit(lambda c: run(c, op, self._now_ms()), must=True)

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = release_again if again else release
        return self._database.writer.submit(lambda c: run(c, op, self._now_ms()), must=True)

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        return self._database.writer.submit(lambda c: checkpoint(c, points, self._now_ms()), soft=True)

    def sweep_hold(self, hold_id: str, lease_ms: int) -> asyncio.Future[str | None]:
        return self._database.writer.submit(lambda c: sweep_hold(c, hold_id, lease_ms, self._now_ms()))

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        return self._database.writer.submit(lambda c: reset_window(c, op, self._now_ms()))

    def snapshot(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]:
        return self._database.reader.submit(lambda c: snapshot(c, tenant_id, session_id, self._now_ms()))

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        return self._database.reader.submit(lambda c: claim_state(c, tenant_id, key, body_sha256, self._now_ms()))

    def beginnings(
        self, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]
    ) -> asyncio.Future[list[KnownBeginning]]:
        return self._database.reader.submit(lambda c: find_beginnings(c, tenant_id, key_id, sought))

    async def open_leases(self, limit: int, *, ahead_ms: int, beyond_ms: int) -> list[OpenLease]:
        return await asyncio.shield(
            self._database.reader.submit(lambda c: find_leases(c, self._now_ms(), limit, ahead_ms, beyond_ms))
        )

    async def due_windows(self, limit: int) -> list[ResetWindow]:
        return await asyncio.shield(self._database.reader.submit(lambda c: find_windows(c, self._now_ms(), limit)))

    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]:
        return await asyncio.shield(self._database.writer.submit(lambda c: tidy(c, self._now_ms(), abandoned_after_ms)))

    async def start(self) -> None:
        """End the leases of an earlier process, which is gone: one process serves the file.

        Their holds are due at the next sweep, however the wall clock moved in between.
        """
        if self._database.exclusive:
            await asyncio.shield(self._database.writer.submit(lambda c: end_leases(c, self._now_ms())))

    async def close(self) -> None:
        """Wait until all earlier operations are committed."""
        with contextlib.suppress(LedgerUnavailable):
            await self._database.writer.submit(lambda _: None, must=True)


def snapshot(cursor: Cursor, tenant_id: str, session_id: str, now_ms: int) -> AccountSnapshot | None:
    """Tenant and session in one read; None for an unknown tenant."""
    row = cursor.execute(sql.SNAPSHOT, {"tenant": tenant_id, "session": session_id, "now": now_ms}).fetchone()
    if row is None:
        return None
    found = snapshot_from_row(tenant_id, row, now_ms)
    if found.session is None or found.session.parent_session_id is None:
        return found
    return structs.replace(found, session=structs.replace(found.session, chain=chain_of(cursor, tenant_id, session_id)))


def claim_state(
    cursor: Cursor, tenant_id: str, key: str, body_sha256: bytes, now_ms: int
) -> Replay | InFlight | BodyMismatch | None:
    """State of an idempotency key; None when it is free."""
    row = cursor.execute(sql.CLAIM, {"tenant": tenant_id, "claim": key}).fetchone()
    if row is None or row[5] <= now_ms:
        return None
    return claim_from_row(row, body_sha256)


def find_leases(cursor: Cursor, now_ms: int, limit: int, ahead_ms: int, beyond_ms: int) -> list[OpenLease]:
    """Leases with at most `ahead_ms` or more than `beyond_ms` left."""
    bounds = {"soon": now_ms + ahead_ms, "far": now_ms + beyond_ms, "most": limit}
    return [OpenLease(row[0], row[1], row[1] - now_ms) for row in cursor.execute(sql.OPEN_LEASES, bounds).fetchall()]


def find_windows(cursor: Cursor, now_ms: int, limit: int) -> list[ResetWindow]:
    """Budget windows that ended."""
    bounds = {"now": now_ms, "most": limit}
    resets = [ResetWindow(row[0], None) for row in cursor.execute(sql.DUE_TENANTS, bounds).fetchall()]
    resets += [ResetWindow(row[0], row[1]) for row in cursor.execute(sql.DUE_KEYS, bounds).fetchall()]
    return resets


def end_leases(cursor: Cursor, now_ms: int) -> None:
    """End the lease of every open hold of a turn now; what a charge holds is spent elsewhere."""
    cursor.execute(sql.END_LEASES, {"now": now_ms})


def tidy(cursor: Cursor, now_ms: int, abandoned_after_ms: int) -> tuple[int, int]:
    """Close abandoned decisions and delete expired idempotency rows; the number of each."""
    bounds = {"now": now_ms, "before": now_ms - abandoned_after_ms}
    cursor.execute(sql.ABANDON, bounds)
    abandoned = cursor.rowcount
    cursor.execute(sql.FORGET, bounds)
    return abandoned, cursor.rowcount


def snapshot_from_row(tenant_id: str, row: Any, now_ms: int) -> AccountSnapshot:
    """Read a row of sql.SNAPSHOT."""
    tenant = Balance(*row[:4])
    if row[4] is None:
        return AccountSnapshot(tenant, None, now_ms)
    facts = dict(zip(SESSION_FACTS, row[9:], strict=True))
    session = SessionRow(tenant_id, row[4], Balance(*row[5:9]), **facts, tenant=tenant)
    return AccountSnapshot(tenant, session, now_ms)
