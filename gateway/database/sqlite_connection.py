"""Connections to SQLite: driver, verified durability, the file's lock, and outages.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL when two connections write and checkpoint at once. The wheel we depend on
includes a later one; on an older library one connection only is opened and the file is not shared.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sqlite3
from types import ModuleType
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from gateway.errors import LedgerUnavailable

SAFE_VERSION = (3, 51, 3)
BUSY_TIMEOUT_MS = 5_000


class DatabaseStartError(RuntimeError):
    """The database cannot be used; the message says what was found and what to do."""


class Cursor(Protocol):
    """The part of a DBAPI cursor that the ledger's statements use."""

    rowcount: int

    def execute(self, sql: str, parameters: Any = ..., /) -> Any:
        """Run one statement; `parameters` is a sequence or a mapping."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All remaining rows."""


def _load_driver() -> ModuleType:
    try:
        found = importlib.import_module("pysqlite3.dbapi2")
    except ImportError:  # no wheel for this platform: the interpreter's own, under the single-connection rule
        found = sqlite3
    # The driver searches for an adapter of every None, which takes longer than binding it: a turn has forty.
    found.register_adapter(type(None), lambda nothing: nothing)
    return found


driver: ModuleType = _load_driver()
wal_reset_safe: bool = tuple(driver.sqlite_version_info) >= SAFE_VERSION


def unavailable(reason: str) -> LedgerUnavailable:
    """The error of an outage, without the driver's text: it may carry paths and addresses."""
    return LedgerUnavailable(
        f"the ledger cannot answer now ({reason}); nothing was spent, try again",
        headers={"Retry-After": "1"},
    )


_OUTAGES = frozenset({5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 26})
"""SQLITE_BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB."""


_BUSY = frozenset({5, 6})
"""SQLITE_BUSY, LOCKED: of the outages those that pass by themselves."""


def is_outage(error: BaseException) -> bool:
    """True for an outage (cannot answer now), False for an error in the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, driver.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _OUTAGES


def open_connection(path: str, *, query_only: bool = False, create: bool = True) -> Any:
    """Open a connection with verified durability PRAGMAs. Raises DatabaseStartError."""
    try:
        return _opened(path, query_only=query_only, create=create)
    except driver.DatabaseError as error:
        if is_outage(error) and error.sqlite_errorcode & 0xFF in _BUSY:
            raise
        raise DatabaseStartError(
            f"{path}: expected an SQLite database that this user may write, got: {error}; "
            "name another file in general_settings.database_url, or restore this one from a backup"
        ) from error


def _opened(path: str, *, query_only: bool, create: bool) -> Any:
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
        "sqlite+pysqlite://",
        module=driver,
        creator=lambda: connection,
        poolclass=StaticPool,
        pool_reset_on_return=None,
        hide_parameters=True,
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
