"""One interface to both databases: SQLite by default, Postgres for several replicas.

`Database.read(fn)` and `Database.write(fn)` run a synchronous function of a SQLAlchemy Connection inside one
transaction; the same Core statements serve both databases. Reads see one snapshot. Submitted
work runs to its end even when the caller is cancelled; only its result is dropped. An outage raises LedgerUnavailable
and nothing else.

Programs beside the gateway (the CLI, the trainer) use `transaction(url)` or `transactions(url)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gateway.database.postgres import PostgresDatabase, connect_arguments, database_now_ms
from gateway.database.sqlite import SqliteDatabase
from gateway.database.sqlite_connection import (
    DatabaseStartError,
    FileLock,
    core_engine,
    open_connection,
    wal_reset_safe,
)

T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]

DEFAULT_URL = "sqlite:///seqroute.db"


def parse_url(text_url: str) -> URL:
    """Parse `sqlite:///path.db` or `postgresql://user:pw@host/db`. Raises ValueError."""
    try:
        url = make_url(text_url)
    except ArgumentError:
        raise ValueError('database_url: expected "sqlite:///path.db" or "postgresql://user@host/db"') from None
    backend = url.get_backend_name()
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return url.set(drivername="sqlite+pysqlite")
    raise ValueError(f'database_url: expected the scheme sqlite or postgresql, got "{backend}"')


def dialect_of(url: URL) -> Dialect:
    """The database that a parsed URL names."""
    return "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"


def sqlite_path(url: URL) -> str:
    """The file of a SQLite URL; "" for an in-memory database."""
    return "" if url.database in (None, "", ":memory:") else str(url.database)


class Database:
    """The database, started inside the event loop that uses it.

    `serving` locks a SQLite file for this process alone.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, serving: bool = False, max_waiting: int = 2_048, pool_size: int = 4
    ) -> None:
        self.url = parse_url(url)
        self.dialect: Dialect = dialect_of(self.url)
        self.max_waiting = max_waiting
        self.sqlite: SqliteDatabase | None = None
        self.postgres: PostgresDatabase | None = None
        if self.dialect == "sqlite":
            self.sqlite = SqliteDatabase(sqlite_path(self.url), serving=serving, max_waiting=max_waiting)
        else:
            self.postgres = PostgresDatabase(self.url, pool_size=pool_size)

    @property
    def _backend(self) -> SqliteDatabase | PostgresDatabase:
        backend = self.sqlite or self.postgres
        assert backend is not None
        return backend

    async def start(self) -> None:
        """Open the database. Raises DatabaseStartError when a SQLite file cannot be used.

        An unreachable Postgres does not stop the start: the gateway answers 503 until it is up.
        """
        await self._backend.start()

    async def close(self) -> None:
        """Finish submitted work and close every connection."""
        await self._backend.close()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run `run(connection)` in a read-only transaction with one snapshot."""
        return await self._backend.read(run)

    async def write(self, run: Callable[[Connection], T]) -> T:
        """Run `run(connection)` in a transaction; an exception rolls back and is passed on."""
        return await self._backend.write(run)


@contextmanager
def transaction(url: str, *, read_only: bool = False) -> Iterator[Connection]:
    """A synchronous transaction for the CLI and the trainer, also while a gateway serves.

    Raises DatabaseStartError when the SQLite file cannot be opened or shared, and the driver's own errors.
    """
    with transactions(url, read_only=read_only) as begin, begin() as connection:
        if read_only and connection.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        yield connection


@contextmanager
def transactions(url: str, *, read_only: bool = False) -> Iterator[Callable[[], AbstractContextManager[Connection]]]:
    """One connection for many transactions, one after the other.

    Each call of what this yields begins one. Raises as `transaction`.
    """
    parsed = parse_url(url)
    if dialect_of(parsed) == "postgresql":
        engine = create_engine(
            parsed, pool_size=1, max_overflow=0, hide_parameters=True, connect_args=connect_arguments()
        )
        try:
            yield engine.begin
        finally:
            engine.dispose()
        return
    path = sqlite_path(parsed)
    lock = FileLock(path)
    if path and not wal_reset_safe:
        lock.acquire()
    try:
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        raw = open_connection(path)
        engine = core_engine(raw, begin="BEGIN" if read_only else "BEGIN IMMEDIATE")
        try:
            yield engine.begin
        finally:
            engine.dispose()
            raw.close()
    finally:
        lock.release()


def ledger_now_ms(connection: Connection, process_ms: int) -> int:
    """The time used for money: the database's clock on Postgres, `process_ms` on SQLite."""
    return process_ms if connection.dialect.name == "sqlite" else database_now_ms(connection)


__all__ = [
    "DEFAULT_URL",
    "Database",
    "DatabaseStartError",
    "Dialect",
    "ledger_now_ms",
    "parse_url",
    "transaction",
    "transactions",
]
