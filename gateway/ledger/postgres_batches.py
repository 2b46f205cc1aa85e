"""Group commit on Postgres: worker threads, each with a connection, apply batches.

Operations wait in one queue per tenant. A group takes the waiting jobs of several queues in one round trip and one
transaction, so that tenants share an fsync. A queue is in at most one group at a time. A tenant whose row is locked by
another transaction is left out ("busy") and retried in its own group that waits, so it delays only its own queue. After
a lock timeout its groups go through a separate worker.

A group is a single simple-protocol message and needs no session state: pgbouncer's transaction mode is enough. Callers
cannot cancel a group; a hanging server is cut off by a watchdog.

When a connection dies during COMMIT, the outcome of the group is unknown. Operations are identified by their ids, so
the group is sent once more, marked `again`, and each operation checks whether it was applied.
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

_log = logging.getLogger("seqroute.ledger")

WORKERS = 4
MIN_GROUP = 8
MAX_GROUP = 64
MAX_PER_QUEUE = 512
HANG_S = STATEMENT_TIMEOUT_MS / 1000 + 1.5
STALE_S = 8.0
"""An operation that waited longer than any caller fails unexecuted (unless it ends a hold)."""
SLOW_S = 10.0
"""Time after a lock timeout during which a tenant's groups use the slow worker."""
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
    """One operation: its JSON and the reader of its answer; `must` when it ends a hold."""

    op: str
    read: Callable[[Any], Any]
    future: asyncio.Future[Any]
    since_s: float
    must: bool


class TenantQueue:
    """Waiting operations of one tenant, or of all that lock no tenant, in order."""

    __slots__ = ("alone", "jobs", "key", "locking", "moving", "slow_until_s")

    def __init__(self, key: str, locking: bool) -> None:
        self.key = key
        self.locking = locking
        self.jobs: deque[Job] = deque()
        self.moving = False
        self.alone = False
        self.slow_until_s = 0.0


Outcome = tuple[Job, Any, BaseException | None]


def most_of_group(waiting: int) -> int:
    """The most operations of a group while so many wait for their answers.

    Turns that start together would otherwise stay together: all in the database while the gateway's core is idle, then
    the reverse. With half of them in a group the one works while the other does. Smaller groups pay for more commits.
    """
    return min(MAX_GROUP, max(MIN_GROUP, -(-waiting // 2)))


class BatchCommitter:
    """Queues and workers, started inside the event loop that submits."""

    def __init__(self, url: URL, *, max_waiting: int = 2_048) -> None:
        # Connect as SQLAlchemy does: URL-encoded names reach libpq decoded.
        _, arguments = url.get_dialect()().create_connect_args(url)
        self._connect_arguments: dict[str, Any] = {**arguments, **connect_arguments()}
        self._max_waiting = max_waiting
        self._waiting = 0
        self._idle = asyncio.Event()
        self._queues: dict[str, TenantQueue] = {}
        self._starting: list[TenantQueue] = []
        self._guard = threading.Lock()
        self._ready: queue.SimpleQueue[TenantQueue | None] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[TenantQueue | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._watch: asyncio.Task[None] | None = None
        self._closed = True

    @property
    def waiting(self) -> int:
        """Number of operations submitted and not yet answered."""
        return self._waiting

    async def start(self) -> None:
        """Start the workers; they connect on first use."""
        if not self._closed:
            return  # the threads run, connected or not
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._idle.set()
        started = [_Worker(self, self._connect_arguments, self._ready, f"ledger-{n}") for n in range(WORKERS)]
        self._workers = [*started, _Worker(self, self._connect_arguments, self._slow, "ledger-slow")]
        self._watch = asyncio.create_task(self._cut_hanging())

    async def close(self) -> None:
        """Wait for the queues to empty, for at most HANG_S, then stop the threads."""
        if self._closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANG_S):
                await self._idle.wait()
        self._closed = True
        for worker in self._workers:
            worker.ready.put(None)
        await asyncio.gather(*(self._loop.run_in_executor(None, worker.thread.join) for worker in self._workers))
        assert self._watch is not None
        self._watch.cancel()
        await asyncio.wait([self._watch])

    def submit(
        self, key: str, op: dict[str, Any], read: Callable[[Any], Any], *, locking: bool, must: bool = False
    ) -> asyncio.Future[Any]:
        """Queue an operation under `key`; `must` exceeds the caps, since refusing it frees nothing."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(unavailable("it is closed"))
            return future
        sent = orjson.dumps(op).decode()
        with self._guard:
            queued = self._queues.get(key)
            if queued is None:
                queued = self._queues[key] = TenantQueue(key, locking)
            grace = 8 if must else 1
            if self._waiting >= self._max_waiting * grace or len(queued.jobs) >= MAX_PER_QUEUE * grace:
                future.set_exception(unavailable("too many operations are waiting"))
                return future
            self._waiting += 1
            self._idle.clear()
            queued.jobs.append(Job(sent, read, future, time.monotonic(), must))
            if not queued.moving:
                queued.moving = True
                if not self._starting:
                    self._loop.call_soon(self._start_queues)
                self._starting.append(queued)
        return future

    def _start_queues(self) -> None:
        """Hand over the queues that this turn of the event loop filled: waking a thread is costly, and the jobs of a
        queue then form one group."""
        queues, self._starting = self._starting, []
        for queued in queues:
            self._queue_of(queued).put(queued)

    def take(
        self, ready: queue.SimpleQueue[TenantQueue | None], first: TenantQueue
    ) -> list[tuple[TenantQueue, list[Job]]]:
        """The next group: the jobs of `first` and of other ready queues."""
        with self._guard:
            most = most_of_group(self._waiting)
            taken = [(first, self._next_jobs(first, most))]
            room = most - len(taken[0][1])
            if not first.locking or first.alone:
                return taken
            for _ in range(ready.qsize()):
                if room <= 0:
                    break
                try:
                    queued = ready.get_nowait()
                except queue.Empty:
                    break
                if queued is None or queued.alone or not queued.locking:
                    ready.put(queued)
                    continue
                taken.append((queued, self._next_jobs(queued, room)))
                room -= len(taken[-1][1])
            return taken

    def _next_jobs(self, queued: TenantQueue, most: int) -> list[Job]:
        return [queued.jobs.popleft() for _ in range(min(len(queued.jobs), most))]

    def finish(self, queued: TenantQueue, busy: Sequence[Job] = ()) -> None:
        """End a queue's group; jobs of a busy tenant return to its head, to be retried alone."""
        with self._guard:
            queued.jobs.extendleft(reversed(busy))
            queued.alone = bool(busy)
            if queued.jobs:
                self._queue_of(queued).put(queued)
                return
            queued.moving = False
            if queued.slow_until_s < time.monotonic():
                self._queues.pop(queued.key, None)

    def deliver(self, outcomes: list[Outcome]) -> None:
        """Complete the jobs' futures in the event loop; called by worker threads."""
        try:
            self._loop.call_soon_threadsafe(self._answer, outcomes)
        except RuntimeError:  # the loop is closed: no one waits for the results
            return

    def _queue_of(self, queued: TenantQueue) -> queue.SimpleQueue[TenantQueue | None]:
        return self._slow if queued.slow_until_s > time.monotonic() else self._ready

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
            except Exception as unread:  # noqa: BLE001 - the caller gets the error of an unreadable answer
                job.future.set_exception(unread)

    async def _cut_hanging(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            for worker in self._workers:
                worker.cut_if_hanging(time.monotonic())


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
        """True when a connection died under the current group."""
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
                outcomes, busy = self._run_group(group)
            except Exception as error:  # noqa: BLE001 - every job of the group gets it
                _log.exception("ledger: unexpected failure of a group")
                outcomes, busy = [(job, None, error) for _, jobs in group for job in jobs], {}
            self._groups.deliver(outcomes)
            for queued, _ in group:
                self._groups.finish(queued, busy.get(queued.key, ()))
        self._disconnect()

    def _run_group(self, group: Sequence[tuple[TenantQueue, list[Job]]]) -> tuple[list[Outcome], dict[str, list[Job]]]:
        """Outcomes of the answered jobs, and by queue the jobs whose tenant was busy."""
        stale_before_s = time.monotonic() - STALE_S
        outcomes: list[Outcome] = []
        fresh: list[tuple[TenantQueue, Job]] = []
        for queued, jobs in group:
            for job in jobs:
                if job.since_s < stale_before_s and not job.must:
                    outcomes.append((job, None, unavailable("it waited too long")))
                else:
                    fresh.append((queued, job))
        if not fresh:
            return outcomes, {}
        self._unsure = False
        answered = self._answers(fresh, wait=len(group) == 1 and group[0][0].alone, again=False)
        busy: dict[str, list[Job]] = {}
        for (queued, job), (answer, error) in zip(fresh, answered, strict=True):
            if answer == BUSY:
                busy.setdefault(queued.key, []).append(job)
            else:
                outcomes.append((job, answer, error))
        return outcomes, busy

    def _answers(
        self, fresh: Sequence[tuple[TenantQueue, Job]], *, wait: bool, again: bool
    ) -> list[tuple[Any, Exception | None]]:
        """An answer or an error for each job; a group that the database refuses is split."""
        try:
            answers = self._apply_with_retry(
                [job for _, job in fresh], locking=fresh[0][0].locking, wait=wait, again=again
            )
        except _NOT_MIGRATED as error:
            _log.error("the database lacks this version's schema: run `seqroute migrate`")
            return [(None, _outage(error)) for _ in fresh]
        except psycopg.Error as error:
            if is_outage(error):
                if isinstance(error, errors.LockNotAvailable):
                    queues = [list(jobs) for _, jobs in groupby(fresh, key=lambda pair: pair[0].key)]
                    if len(queues) > 1:
                        # Another transaction holds a row of one of these tenants: the others must not wait for it.
                        return [answer for jobs in queues for answer in self._answers(jobs, wait=wait, again=True)]
                    fresh[0][0].slow_until_s = time.monotonic() + SLOW_S
                return [(None, _outage(error, unsure=self._unsure)) for _ in fresh]
            if len(fresh) == 1:
                return [(None, error)]
            # One operation is invalid: find it, and commit the others.
            return [answer for pair in fresh for answer in self._answers([pair], wait=wait, again=True)]
        return [(answer, None) for answer in answers]

    def _apply_with_retry(self, jobs: Sequence[Job], *, locking: bool, wait: bool, again: bool) -> list[Any]:
        """Apply the group, again on a new connection when the first one died."""
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
            raise psycopg.OperationalError("the last connection attempt failed")
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
