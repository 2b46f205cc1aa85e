"""A SQLite database: one writer thread and, where the library allows, reader threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from gateway.database.sqlite_connection import DatabaseStartError, FileLock, driver, open_connection, wal_reset_safe
from gateway.database.sqlite_thread import SqliteThread

T = TypeVar("T")

REPORT_THREADS = 2


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
