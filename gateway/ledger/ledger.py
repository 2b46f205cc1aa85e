"""The ledger: the only way to hold, spend and give back money.

A submitted operation runs to its end even when the caller is cancelled; several are committed as one group. A
reservation whose caller does not learn of it in time (it was cancelled, or the connection died during the commit) is
released: no call goes out under it. A settle or release that fails in an outage is kept and repeated until the database
is back, so that the exact bill is posted rather than the sweeper's estimate.

Errors: LedgerUnavailable (with Retry-After) when the database cannot answer; UnknownHold and ValueError for bugs of the
caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from contextvars import Context
from functools import partial
from math import inf
from typing import Any, TypeVar

from gateway.clock import Clock
from gateway.database.database import Database
from gateway.errors import LedgerUnavailable, LedgerUnsure
from gateway.ledger.backend import LedgerBackend
from gateway.ledger.lease_watch import LeaseWatch, OpenLease
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.records import (
    AccountSnapshot,
    UnknownHold,
    checked_reserve,
    checked_settle,
    outcome_columns,
)
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.types import (
    BodyMismatch,
    Checkpoint,
    InFlight,
    KnownBeginning,
    Release,
    Replay,
    Reserve,
    Reserved,
    ReserveOutcome,
    Resolved,
    Settle,
    SoughtBeginning,
    Swept,
)
from gateway.tasks import Deadline

_log = logging.getLogger("seqroute.ledger")
T = TypeVar("T")

ANSWER_TIMEOUT_S = 8.0
"""Longer than any statement may take, shorter than a client's timeout."""
REPEAT_S = 0.5
MAX_UNRESOLVED = 10_000
UNSURE_S = 5.0
"""Longer than the database's statement_timeout."""
NO_LEASE_MS = 2**50
"""Longer than any lease."""
MAX_WATCHED = 10_000
"""Leases near their end that are looked at in one sweep; more wait for the next."""
ABANDONED_AFTER_MS = 15 * 60 * 1000
"""A decision without an open hold for this long has lost its process: a turn takes ten minutes at most."""


class Ledger:
    """The ledger of a started Database; `start` before the first turn, `close` after the last."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        backend: LedgerBackend | None = None,
    ) -> None:
        """`clock` must be monotonic; `backend` replaces the database's own."""
        self._database = database
        self._backend = backend_of(database, clock) if backend is None else backend
        self._clock = clock
        self._deadline = Deadline(answer_timeout_s)
        self._unresolved: dict[str, Settle | Release] = {}
        self._unsure_until_s: dict[str, float] = {}
        self.doubted = False
        """An operation failed in an outage since the heartbeat last saw the database take a write."""
        self._repeater: asyncio.Task[None] | None = None
        self._repeating = asyncio.Lock()
        self._undoing: set[asyncio.Task[None]] = set()

    @property
    def unresolved(self) -> int:
        """Number of settles and releases that wait for the database."""
        return len(self._unresolved)

    async def start(self) -> None:
        """Start the backend; call once, before the first operation."""
        await self._backend.start()

    async def close(self) -> None:
        """Finish running operations, retry those that failed in an outage once more, and stop."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=ANSWER_TIMEOUT_S)
        if self._repeater is not None:
            self._repeater.cancel()
            await asyncio.wait([self._repeater])
        await self._repeat_all()
        if self._unresolved:
            _log.error("ledger closed with %d bills not posted; the sweeper will post estimates", len(self._unresolved))
        await self._backend.close()

    async def reserve(self, op: Reserve) -> ReserveOutcome:
        """Hold money for one attempt; dispatch only after a Reserved outcome.

        A hold that this process learns of too late or never is released: no call goes out under it.
        """
        asked_s = self._clock()
        future = self._backend.reserve(checked_reserve(op))
        try:
            outcome = await self._answer(future)
        except asyncio.CancelledError:
            self._undo_later(op, future)
            raise
        except LedgerUnavailable as error:
            self.doubted = True
            if not future.done() or isinstance(error, LedgerUnsure):
                self._undo_later(op, future)
            raise
        leaving = isinstance(outcome, Reserved) and op.checkpoint_nanousd is not None
        if leaving and (self._clock() - asked_s) * 1000 >= op.ttl_ms:
            self._undo_later(op, future)
            raise LedgerUnavailable(
                "the reservation expired before the call was sent; try again", headers={"Retry-After": "1"}
            )
        return outcome

    async def settle(self, op: Settle) -> Resolved:
        """Turn a hold into its bill. LedgerUnavailable: not confirmed yet, being retried."""
        outcome_columns(op.decision)
        future = self._backend.settle(checked_settle(op))
        future.add_done_callback(partial(self._keep_if_unavailable, op))
        return await self._answer(future)

    async def release(self, op: Release) -> Resolved:
        """Give a hold back. LedgerUnavailable: not confirmed yet, being retried."""
        outcome_columns(op.decision)
        future = self._backend.release(op)
        future.add_done_callback(partial(self._keep_if_unavailable, op))
        return await self._answer(future)

    async def checkpoint(self, points: Sequence[Checkpoint]) -> None:
        """Raise the amounts the sweeper would post, and extend the leases of live calls."""
        if points:
            await self._answer(self._backend.checkpoint(tuple(points)))

    async def snapshot(self, tenant_id: str, session_id: str) -> AccountSnapshot | None:
        """Tenant and session in one read; None for an unknown tenant."""
        return await self._answer(self._backend.snapshot(tenant_id, session_id))

    async def idempotent(self, tenant_id: str, key: str, body_sha256: bytes) -> Replay | InFlight | BodyMismatch | None:
        """State of an idempotency key; None when it is free (the reservation claims it)."""
        return await self._answer(self._backend.idempotent(tenant_id, key, body_sha256))

    async def beginnings(self, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]) -> list[KnownBeginning]:
        """Find the turns of a key that left the first or the longest known of these beginnings."""
        return await self._answer(self._backend.beginnings(tenant_id, key_id, sought))

    async def sweep(self, limit: int = 500, *, carried: Collection[str] = (), watch: LeaseWatch | None = None) -> Swept:
        """Resolve holds whose lease ran out, start due windows, clean up after crashes.

        Skips holds for which this process knows the cost: `carried`, those of its live calls that an outage or a pause
        kept from renewal, and those whose bills wait for the database. `watch` holds back leases that it has not seen
        unchanged for long enough, where a clock that may be set ends them.
        """
        try:
            return await self._sweep(limit, carried, watch)
        except LedgerUnavailable:
            self.doubted = True
            raise

    async def _sweep(self, limit: int, carried: Collection[str], watch: LeaseWatch | None) -> Swept:
        await self._repeat_all()
        over = await self._leases_over(limit + len(carried) + len(self._unresolved), watch)
        late = [lease for lease in over if lease.hold_id not in carried and lease.hold_id not in self._unresolved]
        kinds = await asyncio.gather(
            *(self._answer(self._backend.sweep_hold(lease.hold_id, lease.expires_at_ms)) for lease in late[:limit])
        )
        resets = await self._backend.due_windows(limit)
        started = await asyncio.gather(*(self._answer(self._backend.reset_window(reset)) for reset in resets))
        abandoned, forgotten = await self._backend.tidy(ABANDONED_AFTER_MS)
        return Swept(kinds.count("expire"), kinds.count("orphan_post"), sum(started), abandoned, forgotten)

    async def _leases_over(self, limit: int, watch: LeaseWatch | None) -> list[OpenLease]:
        if watch is None or not self._backend.clock_may_be_set:
            return await self._backend.open_leases(limit, ahead_ms=0, beyond_ms=NO_LEASE_MS)
        return watch.abandoned(
            await self._backend.open_leases(MAX_WATCHED, ahead_ms=watch.ahead_ms, beyond_ms=watch.beyond_ms)
        )

    async def _answer(self, future: asyncio.Future[T]) -> T:
        """Wait for an operation without cancelling it."""
        try:
            return await self._deadline.wait(future)
        except TimeoutError as error:
            raise LedgerUnavailable(
                f"the ledger did not answer within {self._deadline.timeout_s:g} s; try again",
                headers={"Retry-After": "2"},
            ) from error

    def _undo_later(self, op: Reserve, future: asyncio.Future[ReserveOutcome]) -> None:
        task = asyncio.get_running_loop().create_task(self._undo(op, future))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, op: Reserve, future: asyncio.Future[ReserveOutcome]) -> None:
        """Release the hold of a caller that left before it received it."""
        release = Release(op.hold_id, decision={"status": "cancelled"})
        await asyncio.wait([future])
        error = future.exception()
        if isinstance(error, LedgerUnsure):
            self._unsure_until_s[op.hold_id] = inf
            self._keep(release)
        elif error is None and isinstance(future.result(), Reserved):
            undone = self._backend.release(release)
            undone.add_done_callback(partial(self._keep_if_unavailable, release))
            await asyncio.wait([undone])

    def _keep_if_unavailable(self, op: Settle | Release, future: asyncio.Future[Any]) -> None:
        """Queue an operation that failed in an outage for retries."""
        if not future.cancelled() and isinstance(future.exception(), LedgerUnavailable):
            self._keep(op)

    def _keep(self, op: Settle | Release) -> None:
        self.doubted = True
        if len(self._unresolved) >= MAX_UNRESOLVED:
            _log.error(
                "too many bills are waiting for the database; the sweeper will post an estimate for %s", op.hold_id
            )
            return
        self._unresolved[op.hold_id] = op
        if self._repeater is None or self._repeater.done():
            # An empty context: its lines are not of the turn that happens to start it.
            self._repeater = asyncio.get_running_loop().create_task(self._repeat_until_done(), context=Context())

    async def _repeat_until_done(self) -> None:
        while self._unresolved:
            await asyncio.sleep(REPEAT_S)
            await self._repeat_all()

    async def _repeat_all(self) -> None:
        """Retry every waiting operation, in batches that a recovering database can take."""
        async with self._repeating:
            waiting = list(self._unresolved.values())
            for start in range(0, len(waiting), 100):
                await asyncio.gather(*(self._repeat(op) for op in waiting[start : start + 100]))

    async def _repeat(self, op: Settle | Release) -> None:
        try:
            if isinstance(op, Settle):
                await self._answer(self._backend.settle(op, again=True))
            else:
                await self._answer(self._backend.release(op, again=True))
        except LedgerUnavailable:
            return
        except UnknownHold:
            if self._may_still_commit(op.hold_id):
                return
        self._unresolved.pop(op.hold_id, None)
        self._unsure_until_s.pop(op.hold_id, None)

    def _may_still_commit(self, hold_id: str) -> bool:
        """True while a missing hold may still be committed by a statement whose connection died.

        That lasts for one statement timeout after the server's first answer.
        """
        if hold_id not in self._unsure_until_s:
            _log.error("hold %s no longer exists; its bill cannot be posted", hold_id)
            return False
        now_s = asyncio.get_running_loop().time()
        until_s = min(self._unsure_until_s[hold_id], now_s + UNSURE_S)
        self._unsure_until_s[hold_id] = until_s
        return now_s < until_s


def backend_of(database: Database, clock: Clock) -> LedgerBackend:
    """The backend for a database; `clock` is used on SQLite only."""
    if database.sqlite is not None:
        return SqliteLedger(database.sqlite, clock)
    assert database.postgres is not None
    return PostgresLedger(database.postgres, max_waiting=database.max_waiting)
