"""SQLite with group commit: one thread owns a connection and commits waiting work at once.

One fsync then serves every turn submitted while the previous group was being written. `soft` work (a checkpoint) may
commit without an fsync: it survives a kill of this process, and the next hard commit makes it durable.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL when two connections write and checkpoint at once. The wheel we depend on
includes a later one; on an older library this module opens one connection only and refuses to share the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from gateway.errors import LedgerUnavailable

T = TypeVar("T")

SAFE_VERSION = (3, 51, 3)
BUSY_TIMEOUT_MS = 5_000
REPORT_THREADS = 2
MAX_GROUP = 256
"""Operations per commit: enough to amortise the fsync, few enough to keep the first caller's wait short."""


class DatabaseStartError(RuntimeError):
    """The database cannot be used; the message says what was found and what to do."""


class Cursor(Protocol):
    """The part of a DBAPI cursor that the ledger's statements use."""

    rowcount: int
    lastrowid: int | None

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement; `parameters` is a sequence or a mapping."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All remaining rows."""


def _load_driver() -> ModuleType:
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:  # no wheel for this platform: the interpreter's own, under the single-connection rule
        return sqlite3


driver: ModuleType = _load_driver()
wal_reset_safe: bool = tuple(driver.sqlite_version_info) >= SAFE_VERSION


def unavailable(reason: str, retry_after_s: int = 1) -> LedgerUnavailable:
    """The error of an outage, without the driver's text: it may carry paths and addresses."""
    return LedgerUnavailable(
        f"the ledger cannot answer now ({reason}); nothing was spent, try again",
        headers={"Retry-After": str(retry_after_s)},
    )


_OUTAGES = frozenset({5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 26})
"""SQLITE_BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB."""


def is_outage(error: BaseException) -> bool:
    """True for an outage (cannot answer now), False for an error in the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, driver.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _OUTAGES


def open_connection(path: str, *, query_only: bool = False, create: bool = True) -> Any:
    """Open a connection with verified durability PRAGMAs. Raises DatabaseStartError."""
    uri = "file::memory:" if path == "" else f"file:{_uri_path(path)}?mode={'rwc' if create else 'rw'}"
    connection = driver.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000,
        cached_statements=512,
    )
    wanted: dict[str, Any] = {
        "busy_timeout": BUSY_TIMEOUT_MS,
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
    }
    if query_only:
        wanted["query_only"] = 1
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name} = {value}")
    if path == "":
        wanted["journal_mode"] = "memory"
    for name, value in wanted.items():
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != value:
            connection.close()
            raise DatabaseStartError(
                f"SQLite: PRAGMA {name} is {found!r}, expected {value!r} (is the file system able to do it?)"
            )
    return connection


def _uri_path(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def core_engine(connection: Any, *, begin: str) -> Engine:
    """A SQLAlchemy engine over one DBAPI connection; transactions start with `begin`."""
    engine = create_engine(
        "sqlite+pysqlite://", module=driver, creator=lambda: connection, poolclass=StaticPool, pool_reset_on_return=None
    )

    @event.listens_for(engine, "begin")
    def start_transaction(core: Connection) -> None:
        core.exec_driver_sql(begin)

    return engine


class FileLock:
    """An advisory lock on `<database>.lock`; the kernel releases it when the process dies."""

    def __init__(self, path: str) -> None:
        self.path = f"{path}.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises DatabaseStartError when another process holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise DatabaseStartError(
                f"{self.path}: another process serves from this SQLite database; SQLite supports one. "
                "Stop the other one, or use Postgres (general_settings.database_url) for several workers or replicas"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up; does nothing when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
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


class SqliteDatabase:
    """A database file with its writer thread and, where the library allows, reader threads.

    The ledger reads in its own thread: a report that reads for seconds must not delay a turn.
    """

    def __init__(self, path: str, *, serving: bool, max_waiting: int) -> None:
        self.path = path
        self._exclusive = serving or not wal_reset_safe
        self._max_waiting = max_waiting
        self._lock = FileLock(path)
        self._threads: list[SqliteThread] = []
        self.writer: SqliteThread
        self.reader: SqliteThread
        self.reports: list[SqliteThread]

    @property
    def exclusive(self) -> bool:
        """True when this process alone may use the file."""
        return self._exclusive

    async def start(self) -> None:
        """Lock the file and start the threads. Raises DatabaseStartError."""
        if self.path:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            if self._exclusive:
                self._lock.acquire()
        try:
            self.writer = self._open("sqlite-writer", read_only=False)
            if self.path and wal_reset_safe:
                self.reader = self._open("sqlite-reader", read_only=True)
                self.reports = [self._open(f"sqlite-report-{n}", read_only=True) for n in range(REPORT_THREADS)]
            else:
                self.reader = self.writer
                self.reports = [self.writer]
        except (driver.Error, DatabaseStartError) as error:
            await self.close()
            if isinstance(error, DatabaseStartError):
                raise
            raise DatabaseStartError(
                f"{self.path}: cannot be opened as a SQLite database ({type(error).__name__})"
            ) from error

    def _open(self, name: str, *, read_only: bool) -> SqliteThread:
        connection = open_connection(self.path, query_only=read_only)
        thread = SqliteThread(connection, read_only=read_only, max_waiting=self._max_waiting, name=name)
        self._threads.append(thread)
        return thread

    async def close(self) -> None:
        """Finish submitted work, the writer's last, and release the file."""
        for thread in reversed(self._threads):
            await thread.close()
        self._threads.clear()
        self._lock.release()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run on the least busy report thread."""
        least_busy = min(self.reports, key=lambda thread: thread.waiting)
        return await asyncio.shield(least_busy.transact(run))

    async def write(self, run: Callable[[Connection], T]) -> T:
        """Run on the writer thread, in its own transaction."""
        return await asyncio.shield(self.writer.transact(run))
