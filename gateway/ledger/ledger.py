"""The ledger: the only way to hold, spend and give back money.

Every operation is submitted whole and runs to its end, whatever becomes of the caller; several are committed as one
group. A reservation whose caller is not told of it in time (it was cancelled, the connection died during the commit)
leaves a hold behind under which no call goes out: the ledger releases it. A settle or release that meets an outage is
kept here and repeated until the database is back, so that the exact bill is posted and not the sweeper's estimate.

Errors: LedgerUnavailable (with Retry-After) when the database cannot answer; UnknownHold and ValueError for defects of
the caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from functools import partial
from math import inf
from typing import Any, Protocol, TypeVar

from gateway.clock import Clock
from gateway.database.database import Database
from gateway.errors import LedgerUnavailable, LedgerUnsure
from gateway.ledger import records
from gateway.ledger.postgres import PostgresLedger
from gateway.ledger.records import (
    AccountSnapshot,
    SessionRow,
    UnknownHold,
    checked_reserve,
    checked_settle,
    outcome_columns,
)
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.types import (
    Balance,
    BodyMismatch,
    Checkpoint,
    InFlight,
    Release,
    Replay,
    Reserve,
    Reserved,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    Settle,
    Swept,
)
from gateway.tasks import Deadline

logger = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_TIMEOUT_S = 8.0
"""Longer than any single statement may take, shorter than a client's patience."""
REPEAT_S = 0.5
MAX_UNRESOLVED = 10_000
DOUBT_S = 5.0
"""Longer than a database works on a statement (its statement_timeout)."""
ABANDONED_AFTER_MS = 15 * 60 * 1000
"""A decision without an open hold for this long has no process left: a turn lasts ten minutes at most."""


class LedgerBackend(Protocol):
    """What one database offers: futures that complete after the commit, whoever still listens."""

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]: ...
    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]: ...
    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]: ...
    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]: ...
    def sweep_hold(self, hold_id: str) -> asyncio.Future[str | None]: ...
    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]: ...
    def standing(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]: ...
    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]: ...
    async def due(self, limit: int) -> tuple[list[str], list[ResetWindow]]: ...
    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class Ledger:
    """Made once for a started Database; `start` before the first turn, `close` after the last."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        backend: LedgerBackend | None = None,
    ) -> None:
        """`clock` never steps. `backend`: what carries the operations instead of the database's own."""
        self._database = database
        self._backend = backend_of(database, clock) if backend is None else backend
        self._clock = clock
        self._deadline = Deadline(answer_timeout_s)
        self._unresolved: dict[str, Settle | Release] = {}
        self._doubted_until_s: dict[str, float] = {}
        self._repeater: asyncio.Task[None] | None = None
        self._repeating = asyncio.Lock()
        self._undoing: set[asyncio.Task[None]] = set()

    @property
    def unresolved(self) -> int:
        """Settles and releases that wait for the database to come back."""
        return len(self._unresolved)

    @property
    def undoing(self) -> int:
        """Reservations whose caller left, on their way to being released."""
        return len(self._undoing)

    async def start(self) -> None:
        await self._backend.start()

    async def close(self) -> None:
        """Carry what is under way to its end, try once more what an outage held up, and stop."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=ANSWER_TIMEOUT_S)
        if self._repeater is not None:
            self._repeater.cancel()
            await asyncio.wait([self._repeater])
        await self._repeat_all()
        if self._unresolved:
            logger.error(
                "ledger closed with %d bills not posted; the sweeper will post estimates", len(self._unresolved)
            )
        await self._backend.close()

    async def reserve(self, op: Reserve) -> ReserveOutcome:
        """Hold money for one attempt, or say why not. Nothing may be dispatched unless this answers Reserved.

        A hold that this process was not told of in time, or not at all, is released: no call goes out under it.
        """
        asked_s = self._clock()
        future = self._backend.reserve(checked_reserve(op))
        try:
            outcome = await self._answer(future)
        except asyncio.CancelledError:
            self._undo_later(op, future)
            raise
        except LedgerUnavailable as error:
            if not future.done() or isinstance(error, LedgerUnsure):
                self._undo_later(op, future)
            raise
        leaving = isinstance(outcome, Reserved) and op.checkpoint_nanousd is not None
        if leaving and (self._clock() - asked_s) * 1000 >= op.ttl_ms:
            self._undo_later(op, future)
            raise LedgerUnavailable(
                "the reservation ran out before the call could leave; try again", headers={"Retry-After": "1"}
            )
        return outcome

    async def settle(self, op: Settle) -> Resolved:
        """Turn a hold into its bill. LedgerUnavailable here means: not confirmed yet, and being repeated."""
        outcome_columns(op.decision)
        future = self._backend.settle(checked_settle(op))
        future.add_done_callback(partial(self._keep_if_unavailable, op))
        return await self._answer(future)

    async def release(self, op: Release) -> Resolved:
        """Give a hold back. LedgerUnavailable here means: not confirmed yet, and being repeated."""
        outcome_columns(op.decision)
        future = self._backend.release(op)
        future.add_done_callback(partial(self._keep_if_unavailable, op))
        return await self._answer(future)

    async def checkpoint(self, points: Sequence[Checkpoint]) -> None:
        """Raise what the sweeper would post, and extend the leases of streams that are alive."""
        if points:
            await self._answer(self._backend.checkpoint(tuple(points)))

    async def standing(self, tenant_id: str, session_id: str) -> AccountSnapshot | None:
        """Tenant and session in one read; None when there is no such tenant, `.session` None before its first turn."""
        return await self._answer(self._backend.standing(tenant_id, session_id))

    async def session(self, tenant_id: str, session_id: str) -> SessionRow | None:
        found = await self.standing(tenant_id, session_id)
        return None if found is None else found.session

    async def newest_after(self, tenant_id: str, fingerprint: str) -> str | None:
        """The newest session that started again under a fingerprint, if any did."""
        return await self._database.read(lambda c: records.newest_after(c, tenant_id, fingerprint))

    async def tenant(self, tenant_id: str) -> Balance | None:
        found = await self.standing(tenant_id, "")
        return None if found is None else found.tenant

    async def idempotent(self, tenant_id: str, key: str, body_sha256: bytes) -> Replay | InFlight | BodyMismatch | None:
        """What became of an earlier request with this key; None: it is free (the reservation makes the claim)."""
        return await self._answer(self._backend.idempotent(tenant_id, key, body_sha256))

    async def sweep(self, limit: int = 500, *, carried: Collection[str] = ()) -> Swept:
        """Resolve holds whose lease ran out, start due windows, tidy what crashes left behind.

        What this process knows comes before what would be estimated: `carried` are the holds of its live calls, which
        an outage or a pause kept from being renewed; bills that wait for the database are as good as posted.
        """
        await self._repeat_all()
        due, resets = await self._backend.due(limit + len(carried) + len(self._unresolved))
        late = [hold for hold in due if hold not in carried and hold not in self._unresolved]
        kinds = await asyncio.gather(*(self._answer(self._backend.sweep_hold(hold)) for hold in late))
        started = await asyncio.gather(*(self._answer(self._backend.reset_window(reset)) for reset in resets))
        abandoned, forgotten = await self._backend.tidy(ABANDONED_AFTER_MS)
        return Swept(kinds.count("expire"), kinds.count("orphan_post"), sum(started), abandoned, forgotten)

    async def _answer(self, future: asyncio.Future[T]) -> T:
        """Wait for an operation without ever cancelling it."""
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
        """The caller left before it had its hold: nobody else can release it."""
        release = Release(op.hold_id, decision={"status": "cancelled"})
        await asyncio.wait([future])
        error = future.exception()
        if isinstance(error, LedgerUnsure):
            self._doubted_until_s[op.hold_id] = inf
            self._keep(release)
        elif error is None and isinstance(future.result(), Reserved):
            undone = self._backend.release(release)
            undone.add_done_callback(partial(self._keep_if_unavailable, release))
            await asyncio.wait([undone])

    def _keep_if_unavailable(self, op: Settle | Release, future: asyncio.Future[Any]) -> None:
        """A bill that met an outage is not forgotten: repeat it until the database answers."""
        if not future.cancelled() and isinstance(future.exception(), LedgerUnavailable):
            self._keep(op)

    def _keep(self, op: Settle | Release) -> None:
        if len(self._unresolved) >= MAX_UNRESOLVED:
            logger.error("too many bills wait for the database; the sweeper will post an estimate for %s", op.hold_id)
            return
        self._unresolved[op.hold_id] = op
        if self._repeater is None or self._repeater.done():
            self._repeater = asyncio.get_running_loop().create_task(self._repeat_until_done())

    async def _repeat_until_done(self) -> None:
        while self._unresolved:
            await asyncio.sleep(REPEAT_S)
            await self._repeat_all()

    async def _repeat_all(self) -> None:
        """One more try for every bill that waits, some at a time: the database has just come back."""
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
            if self._may_still_come(op.hold_id):
                return
        self._unresolved.pop(op.hold_id, None)
        self._doubted_until_s.pop(op.hold_id, None)

    def _may_still_come(self, hold_id: str) -> bool:
        """Whether a hold that is not there may yet be committed by a statement whose connection died.

        The server ends its statements by itself, so from its first answer on this lasts as long as one may take.
        """
        if hold_id not in self._doubted_until_s:
            logger.error("hold %s does not exist any more; its bill cannot be posted", hold_id)
            return False
        now_s = asyncio.get_running_loop().time()
        until_s = min(self._doubted_until_s[hold_id], now_s + DOUBT_S)
        self._doubted_until_s[hold_id] = until_s
        return now_s < until_s


def backend_of(database: Database, clock: Clock) -> LedgerBackend:
    """What carries operations to this database; `clock` is SQLite's, Postgres has its own."""
    if database.sqlite is not None:
        return SqliteLedger(database.sqlite, clock)
    assert database.postgres is not None
    return PostgresLedger(database.postgres, max_waiting=database.max_waiting)


__all__ = ["AccountSnapshot", "Ledger", "LedgerBackend", "SessionRow", "UnknownHold"]
