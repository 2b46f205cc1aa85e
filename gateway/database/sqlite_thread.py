"""Group commit on SQLite: one thread owns a connection and commits waiting work at once.

One fsync then serves every turn submitted while the previous group was being written. `soft` work (a checkpoint) may
commit without an fsync: it survives a kill of this process, and the next hard commit makes it durable.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import Struct
from sqlalchemy import Connection

from gateway.database.sqlite_connection import Cursor, core_engine, driver, is_outage, unavailable

T = TypeVar("T")

MAX_GROUP = 256
"""Operations per commit: enough to amortise the fsync, few enough to keep the first caller's wait short."""


class _Job(Struct, frozen=True, eq=False):
    """`grouped` work gets a cursor in a shared transaction, other work its own transaction and a Core connection."""

    run: Callable[[Any], Any]
    future: asyncio.Future[Any]
    grouped: bool
    soft: bool
    careful: Callable[[Any], Any] | None


class SqliteThread:
    """A thread that owns a connection; submitting never blocks, and submitted work always runs."""

    def __init__(self, connection: Any, *, read_only: bool, max_waiting: int, name: str) -> None:
        self.connection = connection
        self._read_only = read_only
        self._max_waiting = max_waiting
        self._engine = core_engine(connection, begin="BEGIN" if read_only else "BEGIN IMMEDIATE")
        self._queue: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._submitted: list[_Job] = []
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._closed = False
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs submitted and not yet answered."""
        return self._waiting

    def submit(
        self,
        run: Callable[[Cursor], T],
        *,
        careful: Callable[[Cursor], T] | None = None,
        soft: bool = False,
        must: bool = False,
    ) -> asyncio.Future[T]:
        """Run `run(cursor)` in the next group commit.

        If the group fails, `careful(cursor)` runs under its own savepoint. `must` marks work that ends a hold: it is
        accepted beyond the queue's cap, since refusing it frees nothing.
        """
        return self._put(run, grouped=True, soft=soft, careful=careful, must=must)

    def transact(self, run: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Run `run(connection)` in its own transaction, with SQLAlchemy Core."""
        return self._put(run, grouped=False, soft=False, careful=None, must=False)

    def _put(
        self, run: Callable[[Any], Any], *, grouped: bool, soft: bool, careful: Callable[[Any], Any] | None, must: bool
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._closed:
            future.set_exception(unavailable("it is closed"))
        elif self._waiting >= self._max_waiting * (4 if must else 1):
            future.set_exception(unavailable("too many operations are waiting"))
        else:
            self._waiting += 1
            if not self._submitted:
                self._loop.call_soon(self._hand_over)
            self._submitted.append(_Job(run, future, grouped, soft, careful))
        return future

    def _hand_over(self) -> None:
        """Pass on everything that this turn of the event loop submitted: waking the thread is costly, and jobs that
        arrive together commit together."""
        jobs, self._submitted = self._submitted, []
        if jobs:
            self._queue.put(jobs)

    async def close(self) -> None:
        """Finish submitted work, then close the connection."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)
        # The thread is gone; its last deliveries were scheduled before this resumed.
        await asyncio.sleep(0)

    def _serve(self) -> None:
        core = self._engine.connect()
        cursor = self.connection.cursor()
        try:
            backlog: deque[_Job] = deque()
            while self._fill(backlog):
                if backlog[0].grouped:
                    self._deliver(self._run_group(cursor, _group(backlog)))
                else:
                    self._deliver([self._run_alone(core, backlog.popleft())])
        finally:
            core.close()
            self._engine.dispose()
            self.connection.close()

    def _fill(self, backlog: deque[_Job]) -> bool:
        """Add all queued jobs, waiting when there is nothing to do; False after the last job."""
        while not (self._ended or (backlog and self._queue.empty())):
            jobs = self._queue.get()
            self._ended = jobs is None
            backlog.extend(jobs or ())
        return bool(backlog)

    def _run_alone(self, core: Connection, job: _Job) -> tuple[_Job, Any, BaseException | None]:
        try:
            with core.begin():
                result = job.run(core)
        except Exception as error:  # noqa: BLE001 - any exception of the caller's function goes back to that caller
            self._ensure_idle()
            return job, None, _translated(error)
        return job, result, None

    def _run_group(self, cursor: Cursor, group: Sequence[_Job]) -> list[tuple[_Job, Any, BaseException | None]]:
        soft = not self._read_only and all(job.soft for job in group)
        try:
            if soft:
                cursor.execute("PRAGMA synchronous = NORMAL")
            try:
                return self._commit_group(cursor, group, soft=soft)
            finally:
                if soft:
                    cursor.execute("PRAGMA synchronous = FULL")
        except driver.Error as error:
            self._ensure_idle()
            return [(job, None, _translated(error)) for job in group]

    def _commit_group(
        self, cursor: Cursor, group: Sequence[_Job], *, soft: bool
    ) -> list[tuple[_Job, Any, BaseException | None]]:
        begin = "BEGIN" if self._read_only else "BEGIN IMMEDIATE"
        cursor.execute(begin)
        try:
            results: list[tuple[_Job, Any, BaseException | None]] = [(job, job.run(cursor), None) for job in group]
        except Exception as error:
            cursor.execute("ROLLBACK") if self.connection.in_transaction else None
            if isinstance(error, driver.Error) and is_outage(error):
                raise
            # The database refused one operation, or it has an error: find it, and commit the others.
            cursor.execute(begin)
            results = [self._guarded(cursor, job) for job in group]
        cursor.execute("COMMIT")
        return results

    def _guarded(self, cursor: Cursor, job: _Job) -> tuple[_Job, Any, BaseException | None]:
        cursor.execute("SAVEPOINT one")
        try:
            result = (job.careful or job.run)(cursor)
        except Exception as error:
            if isinstance(error, driver.Error) and is_outage(error):
                raise
            cursor.execute("ROLLBACK TO one")
            cursor.execute("RELEASE one")
            return job, None, error
        cursor.execute("RELEASE one")
        return job, result, None

    def _ensure_idle(self) -> None:
        """After a failed commit the transaction may still be open; the next group must not join it."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _deliver(self, outcomes: list[tuple[_Job, Any, BaseException | None]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._answer, outcomes)
        except RuntimeError:  # the loop is closed: no one waits for the results
            return

    def _answer(self, outcomes: list[tuple[_Job, Any, BaseException | None]]) -> None:
        self._waiting -= len(outcomes)
        for job, result, error in outcomes:
            if job.future.cancelled():
                continue
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)


def _group(backlog: deque[_Job]) -> list[_Job]:
    """Take the grouped jobs at the head, up to the first that needs its own transaction."""
    group = [backlog.popleft()]
    while backlog and backlog[0].grouped and len(group) < MAX_GROUP:
        group.append(backlog.popleft())
    return group


def _translated(error: Exception) -> Exception:
    if not is_outage(error):
        return error
    outage = unavailable("the database file is busy, full or unreadable")
    outage.__cause__ = error
    return outage
