"""A few threads, each with its own connection, that carry groups of ledger operations to Postgres.

Operations wait in one line per tenant. A group takes what is waiting in several lines, as one round trip and one
transaction: many tenants share an fsync, as many turns of one tenant do. A line is on its way at most once at a time.
A tenant whose row somebody else has locked is left out ("busy"), and tried again in a group of its own that waits; so
a locked tenant holds up its own line and nobody else's. After a lock timeout its groups have a carrier to themselves.

A group is a single simple-protocol message, so nothing depends on the server connection staying ours: pgbouncer's
transaction mode is enough. Nothing here is ever cancelled by a caller; a server that hangs is cut off by the watch.

A connection that dies during COMMIT leaves it open whether the group was committed. Every operation can be told apart
by its ids, so the group is sent once more, marked `again`, and each operation finds out by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import orjson
import psycopg
from psycopg import errors
from sqlalchemy.engine import URL

from gateway.database.postgres import (
    LOCK_TIMEOUT_MS,
    STATEMENT_TIMEOUT_MS,
    connect_arguments,
    cut,
    is_outage,
    unavailable,
)

logger = logging.getLogger(__name__)

MAX_GROUP = 64
MAX_PER_LINE = 512
HANG_S = STATEMENT_TIMEOUT_MS / 1000 + 1.5
STALE_S = 8.0
"""An operation that waited longer than any caller waits is answered, not executed (unless it ends a hold)."""
SLOW_S = 10.0
"""After a lock timeout a tenant's groups go through the slow carrier for this long."""
RETRY_CONNECT_S = 0.25

GROUP = (
    f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true),"
    f" set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true),"
    f" set_config('idle_in_transaction_session_timeout', '{STATEMENT_TIMEOUT_MS}', true);"
    " SELECT seqroute_apply(%s, %s, %s, %s::jsonb)::text"
)
BUSY = ["busy"]
_TRY_AGAIN = (errors.DeadlockDetected, errors.SerializationFailure)
_NOT_MIGRATED = (errors.UndefinedFunction, errors.UndefinedTable, errors.UndefinedColumn)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One operation: the JSON the function is sent, and what its answer becomes. `must`: it ends a hold."""

    op: str
    read: Callable[[Any], Any]
    future: asyncio.Future[Any]
    since_s: float
    must: bool


class TenantQueue:
    """The operations of one tenant (or all that lock no tenant) that wait, in order."""

    __slots__ = ("alone", "jobs", "key", "locking", "moving", "slow_until_s")

    def __init__(self, key: str, locking: bool) -> None:
        self.key = key
        self.locking = locking
        self.jobs: deque[Job] = deque()
        self.moving = False
        self.alone = False
        self.slow_until_s = 0.0


Outcome = tuple[Job, Any, BaseException | None]


class BatchCommitter:
    """Started inside the event loop that submits."""

    def __init__(self, url: URL, *, carriers: int = 4, max_waiting: int = 2_048) -> None:
        # As SQLAlchemy connects: a name that a URL must encode reaches libpq decoded, and not inside another URL.
        _, arguments = url.get_dialect()().create_connect_args(url)
        self._connect_arguments: dict[str, Any] = {**arguments, **connect_arguments()}
        self._carrier_count = carriers
        self._max_waiting = max_waiting
        self._waiting = 0
        self._idle = asyncio.Event()
        self._lines: dict[str, TenantQueue] = {}
        self._starting: list[TenantQueue] = []
        self._guard = threading.Lock()
        self._ready: queue.SimpleQueue[TenantQueue | None] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[TenantQueue | None] = queue.SimpleQueue()
        self._carriers: list[_Worker] = []
        self._watch: asyncio.Task[None] | None = None
        self._closed = True

    @property
    def waiting(self) -> int:
        return self._waiting

    async def start(self) -> None:
        if not self._closed:
            return  # its threads are there, whether or not the database is
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._idle.set()
        started = [
            _Worker(self, self._connect_arguments, self._ready, f"ledger-{n}") for n in range(self._carrier_count)
        ]
        self._carriers = [*started, _Worker(self, self._connect_arguments, self._slow, "ledger-slow")]
        self._watch = asyncio.create_task(self._cut_hanging())

    async def close(self) -> None:
        """Let the lines run empty, bounded by what one group may take, then stop the threads."""
        if self._closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_S):
                await self._idle.wait()
        self._closed = True
        for carrier in self._carriers:
            carrier.ready.put(None)
        await asyncio.gather(*(self._loop.run_in_executor(None, carrier.thread.join) for carrier in self._carriers))
        assert self._watch is not None
        self._watch.cancel()
        await asyncio.wait([self._watch])

    def submit(
        self, key: str, op: dict[str, Any], read: Callable[[Any], Any], *, locking: bool, must: bool = False
    ) -> asyncio.Future[Any]:
        """Put an operation into the line `key`. `must`: taken beyond the caps, since refusing it frees nothing."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(unavailable("it is closed"))
            return future
        sent = orjson.dumps(op).decode()
        with self._guard:
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = TenantQueue(key, locking)
            grace = 8 if must else 1
            if self._waiting >= self._max_waiting * grace or len(line.jobs) >= MAX_PER_LINE * grace:
                future.set_exception(unavailable("too many operations are waiting"))
                return future
            self._waiting += 1
            self._idle.clear()
            line.jobs.append(Job(sent, read, future, time.monotonic(), must))
            if not line.moving:
                line.moving = True
                if not self._starting:
                    self._loop.call_soon(self._start_lines)
                self._starting.append(line)
        return future

    def _start_lines(self) -> None:
        """Send off the lines that this turn of the event loop began: waking a thread costs the loop its core and the
        interpreter, and what a line has by then travels as one group."""
        lines, self._starting = self._starting, []
        for line in lines:
            self._queue_of(line).put(line)

    def take(
        self, ready: queue.SimpleQueue[TenantQueue | None], first: TenantQueue
    ) -> list[tuple[TenantQueue, list[Job]]]:
        """The next group: the jobs of `first`, and of the other lines that are ready."""
        with self._guard:
            taken = [(first, self._next_jobs(first, MAX_GROUP))]
            room = MAX_GROUP - len(taken[0][1])
            if not first.locking or first.alone:
                return taken
            for _ in range(ready.qsize()):
                if room <= 0:
                    break
                try:
                    line = ready.get_nowait()
                except queue.Empty:
                    break
                if line is None or line.alone or not line.locking:
                    ready.put(line)
                    continue
                taken.append((line, self._next_jobs(line, room)))
                room -= len(taken[-1][1])
            return taken

    def _next_jobs(self, line: TenantQueue, most: int) -> list[Job]:
        return [line.jobs.popleft() for _ in range(min(len(line.jobs), most))]

    def give_back(self, line: TenantQueue, busy: Sequence[Job] = ()) -> None:
        """A line's group is through. Jobs whose tenant was busy go to the line's head, and next time alone."""
        with self._guard:
            line.jobs.extendleft(reversed(busy))
            line.alone = bool(busy)
            if line.jobs:
                self._queue_of(line).put(line)
                return
            line.moving = False
            if line.slow_until_s < time.monotonic():
                self._lines.pop(line.key, None)

    def deliver(self, outcomes: list[Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._answer, outcomes)
        except RuntimeError:  # the loop was closed under us; nobody is waiting any more
            return

    def _queue_of(self, line: TenantQueue) -> queue.SimpleQueue[TenantQueue | None]:
        return self._slow if line.slow_until_s > time.monotonic() else self._ready

    def _answer(self, outcomes: list[Outcome]) -> None:
        self._waiting -= len(outcomes)
        if self._waiting == 0:
            self._idle.set()
        for job, result, error in outcomes:
            if job.future.cancelled():
                continue
            if error is not None:
                job.future.set_exception(error)
                continue
            try:
                job.future.set_result(job.read(result))
            except Exception as unread:  # noqa: BLE001 - an answer nobody can read belongs to the one who asked
                job.future.set_exception(unread)

    async def _cut_hanging(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            for carrier in self._carriers:
                carrier.cut_if_hanging(time.monotonic())


class _Worker:
    """One thread and its connection."""

    def __init__(
        self,
        groups: BatchCommitter,
        arguments: dict[str, Any],
        ready: queue.SimpleQueue[TenantQueue | None],
        name: str,
    ) -> None:
        self.ready = ready
        self._groups = groups
        self._connect_arguments = arguments
        self._connection: psycopg.Connection[Any] | None = None
        self._busy_since_s: float | None = None
        self._down_until_s = 0.0
        self._unsure = False
        """Whether a connection died under the group that is being carried."""
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def cut_if_hanging(self, now_s: float) -> None:
        since_s = self._busy_since_s
        if since_s is not None and now_s - since_s > HANG_S:
            cut(self._connection)

    def _serve(self) -> None:
        while (first := self.ready.get()) is not None:
            group = self._groups.take(self.ready, first)
            try:
                outcomes, busy = self._carry(group)
            except Exception as error:
                logger.exception("ledger: a group failed in an unforeseen way")
                outcomes, busy = [(job, None, error) for _, jobs in group for job in jobs], {}
            self._groups.deliver(outcomes)
            for line, _ in group:
                self._groups.give_back(line, busy.get(line.key, ()))
        self._disconnect()

    def _carry(self, group: Sequence[tuple[TenantQueue, list[Job]]]) -> tuple[list[Outcome], dict[str, list[Job]]]:
        """Outcomes of all that was answered, and the jobs whose tenant was busy, by line."""
        stale_before_s = time.monotonic() - STALE_S
        outcomes: list[Outcome] = []
        fresh: list[tuple[TenantQueue, Job]] = []
        for line, jobs in group:
            for job in jobs:
                if job.since_s < stale_before_s and not job.must:
                    outcomes.append((job, None, unavailable("it waited too long")))
                else:
                    fresh.append((line, job))
        if not fresh:
            return outcomes, {}
        self._unsure = False
        answered = self._answers(fresh, wait=len(group) == 1 and group[0][0].alone, again=False)
        busy: dict[str, list[Job]] = {}
        for (line, job), (answer, error) in zip(fresh, answered, strict=True):
            if answer == BUSY:
                busy.setdefault(line.key, []).append(job)
            else:
                outcomes.append((job, answer, error))
        return outcomes, busy

    def _answers(
        self, fresh: Sequence[tuple[TenantQueue, Job]], *, wait: bool, again: bool
    ) -> list[tuple[Any, Exception | None]]:
        """An answer or an error for each job. A group that the database refuses is taken apart."""
        try:
            answers = self._apply_surely([job for _, job in fresh], locking=fresh[0][0].locking, wait=wait, again=again)
        except _NOT_MIGRATED as error:
            logger.error("the database has not this version's schema: run `seqroute migrate`")
            return [(None, _outage(error)) for _ in fresh]
        except psycopg.Error as error:
            if is_outage(error):
                if isinstance(error, errors.LockNotAvailable):
                    lines = [list(jobs) for _, jobs in groupby(fresh, key=lambda pair: pair[0].key)]
                    if len(lines) > 1:
                        # Somebody holds a row of one of these tenants: the others must not wait for it.
                        return [answer for jobs in lines for answer in self._answers(jobs, wait=wait, again=True)]
                    fresh[0][0].slow_until_s = time.monotonic() + SLOW_S
                return [(None, _outage(error, unsure=self._unsure)) for _ in fresh]
            if len(fresh) == 1:
                return [(None, error)]
            # One operation is wrong in itself: find it, and commit the others.
            return [answer for pair in fresh for answer in self._answers([pair], wait=wait, again=True)]
        return [(answer, None) for answer in answers]

    def _apply_surely(self, jobs: Sequence[Job], *, locking: bool, wait: bool, again: bool) -> list[Any]:
        """Apply the group; once more on a new connection when the first one died under it."""
        ops = f"[{','.join(job.op for job in jobs)}]"
        for attempts_left in (2, 1, 0):
            try:
                return self._apply(ops, locking=locking, wait=wait, again=again)
            except _TRY_AGAIN:
                if attempts_left == 0:
                    raise
            except (psycopg.OperationalError, psycopg.InterfaceError):
                lost = self._connection is None or self._connection.closed
                self._unsure |= lost and self._connection is not None
                if not lost or attempts_left < 2:
                    raise
                self._disconnect()
            again = True
        raise AssertionError("the last attempt either returns or raises")

    def _apply(self, ops: str, *, locking: bool, wait: bool, again: bool) -> list[Any]:
        self._busy_since_s = time.monotonic()
        try:
            connection = self._connected()
            with psycopg.ClientCursor(connection) as cursor:
                cursor.execute(GROUP, (locking, wait, again, ops))
                cursor.nextset()
                row = cursor.fetchone()
            assert row is not None
            answers = orjson.loads(row[0])
            assert isinstance(answers, list)
            return answers
        except errors.ReadOnlySqlTransaction:
            self._disconnect()  # a failover left us on a replica: the next connection finds the new primary
            raise
        finally:
            self._busy_since_s = None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if time.monotonic() < self._down_until_s:
            raise psycopg.OperationalError("down a moment ago")
        self._connection = None
        try:
            self._connection = psycopg.connect(autocommit=True, **self._connect_arguments)
        except psycopg.Error:
            self._down_until_s = time.monotonic() + RETRY_CONNECT_S
            raise
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _outage(error: BaseException, *, unsure: bool = False) -> Exception:
    outage = unavailable("the database does not answer", unsure=unsure)
    outage.__cause__ = error
    return outage
