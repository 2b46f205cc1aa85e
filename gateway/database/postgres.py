"""Postgres for everything but the ledger's hot path: a few threads, short transactions, bounded waits.

Every transaction sets its own limits with SET LOCAL, so that pgbouncer in transaction mode may hand the server
connection to somebody else right after it; nothing lives in the session, and no statement is prepared by name.
A caller's cancellation cannot reach a running transaction: it is carried by a thread, and ends by itself or by its
deadline, at which the socket is shut down under it.
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
    """libpq settings that bound every wait for a network that went silent."""
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
    """The database's own time, which decides over money for all gateways alike."""
    return int(connection.execute(select(func.seqroute_now_ms())).scalar_one())


def unavailable(reason: str, retry_after_s: int = 1, *, unsure: bool = False) -> LedgerUnavailable:
    """The one error of an outage, in our own words: a driver's text may carry addresses and passwords."""
    return (LedgerUnsure if unsure else LedgerUnavailable)(
        f"the ledger cannot answer now ({reason}); try again", headers={"Retry-After": str(retry_after_s)}
    )


def is_outage(error: BaseException) -> bool:
    """Whether a failure means "cannot answer now" rather than "this statement is wrong"."""
    if isinstance(error, (PoolTimeout, TimeoutError, OSError)):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    # OperationalError: connection lost, server starting or stopping, disk full, too many clients, deadlock, timeouts.
    # ReadOnlySqlTransaction: a failover left us on a replica.
    return isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction))


def cut(connection: psycopg.Connection[Any] | None) -> None:
    """Shut a connection's socket down under the thread that waits on it; that thread sees the connection break."""
    if connection is None:
        return
    with contextlib.suppress(OSError, psycopg.Error):
        duplicate = socket.socket(fileno=os.dup(connection.pgconn.socket))
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        finally:
            duplicate.close()


class _Run:
    """One transaction on its way: which connection it has got, so that its deadline can cut it."""

    def __init__(self) -> None:
        self.driver_connection: psycopg.Connection[Any] | None = None


class PostgresDatabase:
    """SQLAlchemy's engine on a few threads of our own."""

    def __init__(self, url: URL, *, pool_size: int, max_waiting: int = 256) -> None:
        self.url = url
        self._pool_size = pool_size
        self._max_waiting = max_waiting
        self._waiting = 0
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        self._engine = create_engine(
            self.url,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            pool_recycle=1800,
            connect_args=connect_arguments(),
        )
        self._threads = ThreadPoolExecutor(self._pool_size, thread_name_prefix="postgres")

    async def close(self) -> None:
        if self._threads is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        if self._engine is not None:
            self._engine.dispose()

    async def read(self, run: Callable[[Connection], T]) -> T:
        return await self._bounded(run, READ_LIMITS, READ_TIMEOUT_MS / 1000 + CONNECT_TIMEOUT_S)

    async def write(self, run: Callable[[Connection], T]) -> T:
        return await self._bounded(run, WRITE_LIMITS, STATEMENT_TIMEOUT_MS / 1000 + CONNECT_TIMEOUT_S)

    async def _bounded(self, run: Callable[[Connection], T], limits: str, timeout_s: float) -> T:
        if self._threads is None or self._waiting >= self._max_waiting:
            raise unavailable("it is not started" if self._threads is None else "too many operations are waiting")
        loop = asyncio.get_running_loop()
        ticket = _Run()
        self._waiting += 1
        future = loop.run_in_executor(self._threads, self._transact, run, limits, ticket)
        deadline = loop.call_later(timeout_s, lambda: cut(ticket.driver_connection))
        future.add_done_callback(lambda _: self._finished(deadline))
        try:
            async with asyncio.timeout(timeout_s + 1):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise unavailable("the database does not answer") from error

    def _finished(self, deadline: asyncio.TimerHandle) -> None:
        self._waiting -= 1
        deadline.cancel()

    def _transact(self, run: Callable[[Connection], T], limits: str, ticket: _Run) -> T:
        assert self._engine is not None
        try:
            with self._engine.begin() as connection:
                ticket.driver_connection = connection.connection.driver_connection
                for statement in limits.split(";"):
                    connection.execute(text(statement))
                return run(connection)
        except (SQLAlchemyError, psycopg.Error, OSError, TimeoutError) as error:
            if is_outage(error):
                raise unavailable("the database does not answer") from error
            raise
        finally:
            ticket.driver_connection = None
