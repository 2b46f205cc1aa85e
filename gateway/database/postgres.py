"""Postgres outside the ledger's hot path: few threads, short transactions, bounded waits.

Every transaction sets its own limits with SET LOCAL, so that pgbouncer in transaction mode may reassign the server
connection right after it; no session state and no named prepared statements are used. Cancelling the caller does not
stop a running transaction: it runs in a thread until it ends or reaches its deadline, when its socket is shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.errors import LedgerUnavailable, LedgerUnsure

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3
STATEMENT_TIMEOUT_MS = 4_000
LOCK_TIMEOUT_MS = 2_000
READ_TIMEOUT_MS = 30_000
POOL_TIMEOUT_S = 1.0

WRITE_LIMITS = (
    f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT_MS}', true),"
    f" set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true),"
    f" set_config('idle_in_transaction_session_timeout', '{STATEMENT_TIMEOUT_MS}', true)"
)
READ_LIMITS = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;"
    f"SET LOCAL statement_timeout = {READ_TIMEOUT_MS};"
    f"SET LOCAL idle_in_transaction_session_timeout = {READ_TIMEOUT_MS}"
)


def connect_arguments() -> dict[str, Any]:
    """libpq settings that bound every wait on an unresponsive network."""
    return {
        "prepare_threshold": None,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 8_000,
        "application_name": "seqroute",
    }


def database_now_ms(connection: Connection) -> int:
    """The database's clock in milliseconds since the epoch, shared by all gateways."""
    return int(connection.execute(select(func.seqroute_now_ms())).scalar_one())


def unavailable(reason: str, *, unsure: bool = False) -> LedgerUnavailable:
    """The error of an outage, without the driver's text: it may carry addresses and passwords."""
    return (LedgerUnsure if unsure else LedgerUnavailable)(
        f"the ledger cannot answer now ({reason}); try again", headers={"Retry-After": "1"}
    )


def is_outage(error: BaseException) -> bool:
    """True for an outage (cannot answer now), False for an error in the statement."""
    if isinstance(error, (PoolTimeout, TimeoutError, OSError)):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    # OperationalError: connection lost, server starting or stopping, disk full, too many clients, deadlock, timeouts.
    # ReadOnlySqlTransaction: a failover left us on a replica.
    return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction))


def cut(connection: psycopg.Connection[Any] | None) -> None:
    """Shut a connection's socket down; a thread waiting on it sees the connection break."""
    if connection is None:
        return
    with contextlib.suppress(OSError, psycopg.Error):
        duplicate = socket.socket(fileno=os.dup(connection.pgconn.socket))
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        finally:
            duplicate.close()


class _Transaction:
    """A running transaction's connection, for its deadline to cut."""

    def __init__(self) -> None:
        self.driver_connection: psycopg.Connection[Any] | None = None


class PostgresDatabase:
    """A SQLAlchemy engine on a small thread pool."""

    def __init__(self, url: URL, *, pool_size: int, max_waiting: int = 256) -> None:
        self.url = url
        self._pool_size = pool_size
        self._max_waiting = max_waiting
        self._waiting = 0
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Create the engine and its threads; connects on first use."""
        self._engine = create_engine(
            self.url,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args=connect_arguments(),
        )
        self._threads = ThreadPoolExecutor(self._pool_size, thread_name_prefix="postgres")

    async def close(self) -> None:
        """Finish running transactions and close the pool."""
        if self._threads is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        if self._engine is not None:
            self._engine.dispose()

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Run in a repeatable-read snapshot, for at most READ_TIMEOUT_MS."""
        return await self._bounded(run, READ_LIMITS, READ_TIMEOUT_MS / 1000 + CONNECT_TIMEOUT_S)

    async def write(self, run: Callable[[Connection], T]) -> T:
        """Run in a transaction of at most STATEMENT_TIMEOUT_MS."""
        return await self._bounded(run, WRITE_LIMITS, STATEMENT_TIMEOUT_MS / 1000 + CONNECT_TIMEOUT_S)

    async def _bounded(self, run: Callable[[Connection], T], limits: str, timeout_s: float) -> T:
        if self._threads is None or self._waiting >= self._max_waiting:
            raise unavailable("it is not started" if self._threads is None else "too many operations are waiting")
        loop = asyncio.get_running_loop()
        transaction = _Transaction()
        self._waiting += 1
        future = loop.run_in_executor(self._threads, self._transact, run, limits, transaction)
        deadline = loop.call_later(timeout_s, lambda: cut(transaction.driver_connection))
        future.add_done_callback(lambda _: self._finished(deadline))
        try:
            async with asyncio.timeout(timeout_s + 1):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise unavailable("the database does not answer") from error

    def _finished(self, deadline: asyncio.TimerHandle) -> None:
        self._waiting -= 1
        deadline.cancel()

    def _transact(self, run: Callable[[Connection], T], limits: str, transaction: _Transaction) -> T:
        assert self._engine is not None
        try:
            with self._engine.begin() as connection:
                transaction.driver_connection = connection.connection.driver_connection
                for statement in limits.split(";"):
                    connection.execute(text(statement))
                return run(connection)
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError) as error:
            if is_outage(error):
                raise unavailable("the database does not answer") from error
            raise
        finally:
            transaction.driver_connection = None
