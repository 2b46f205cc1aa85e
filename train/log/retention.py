"""Retention of the decision log: archive it, then remove rows beyond their retention time.

Decisions and their scores are removed. Tenants, sessions, holds and ledger entries stay, so every balance can still be
traced to its entries. With an archive, a day is removed only when its files there are final and have every row (by id)
and every text of the database. On Postgres a month's partition is dropped when all of it may go; elsewhere rows
are deleted in small transactions, so that turns need not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError

from gateway.config.settings import RetentionSettings
from gateway.database import tables
from gateway.database.database import dialect_of, parse_url, transaction, transactions
from gateway.database.partitions import is_partitioned, partitions
from train.errors import InputError
from train.log.archive import archive_at
from train.log.export import Export, day_of, export, lacks, start_ms_of

DELETE_ROWS = 500
"""Rows of one transaction: a few milliseconds in which a turn waits on SQLite."""
SQLITE_DELETES = ("PRAGMA synchronous = NORMAL", "PRAGMA cache_size = -65536")
"""For a connection that only deletes: see `_delete`; 64 MB hold the pages of the indexes that every batch changes."""
NAME = "decisions"
Progress = Callable[[str, int, int], None]
DROP_TRIES = 5
DROP_WAIT_MS = 200
"""The longest wait for the log's lock: turns queue behind it."""
PAUSE_S = 1.0
LOCK_KEY = 5_747_030
"""Advisory lock of the one retention that may run on a Postgres database."""


class RetentionError(InputError):
    """Retention cannot run now; nothing was removed."""


@dataclass(frozen=True)
class Retention:
    """A job of retention, with the age to which the log is kept and its archive."""

    database_url: str
    settings: RetentionSettings
    now_ms: int
    pause: Callable[[float], None] = time.sleep


def retain(job: Retention, progress: Progress | None = None) -> dict[str, Any]:
    """Archive and remove; returns what was done.

    Raises ArchiveError, ExportError, RetentionError with nothing removed, or the driver's error.
    """
    with _alone(job.database_url):
        archive, report = job.settings.archive, dict[str, Any]()
        if archive is not None:
            done = export(_whole(job, archive), progress)
            report["archived_rows"] = {table: sum(days.values()) for table, days in done["written"].items()}
        if job.settings.decisions_s is None:
            return report | {"removed": "nothing: no age is set"}
        cutoff_ms, kept = _cutoff_ms(job)
        report |= {"kept_since_ms": cutoff_ms} | ({} if kept is None else {"kept_because": kept})
        report["dropped_partitions"], report["left_partitions"] = _drop_partitions(job, cutoff_ms)
        gone = _delete(job, lambda connection: _old_decisions(connection, cutoff_ms), progress)
        # Months go as a whole: their scores stay as long as they do.
        scores_ms = min(cutoff_ms, _first_ms(job.database_url, tables.decisions) or cutoff_ms)
        scores = _delete(job, lambda _: _old_rows(tables.feedback, scores_ms), progress)
        return report | {"deleted_rows": {"decisions": gone, "feedback": scores}}


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Keep other runs out on Postgres; on SQLite every transaction excludes the others. Raises RetentionError."""
    if dialect_of(parse_url(url)) == "sqlite":
        yield
        return
    with transaction(url) as connection:
        connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        if not connection.execute(sa.text(f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})")).scalar_one():
            raise RetentionError(
                "retention: expected to run alone, found another run on this database: try again later"
            )
        yield


def _whole(job: Retention, archive: str) -> Export:
    return Export(job.database_url, archive, job.now_ms, with_text=job.settings.archive_texts)


def _cutoff_ms(job: Retention) -> tuple[int, str | None]:
    """Start of the oldest day that stays, and the reason if its age alone would have it removed."""
    assert job.settings.decisions_s is not None
    oldest = day_of(job.now_ms - int(job.settings.decisions_s * 1000))
    if job.settings.archive is None:
        return start_ms_of(oldest), None
    stored, whole = archive_at(job.settings.archive), _whole(job, job.settings.archive)
    logged = (tables.decisions, tables.feedback)
    known = [first for first in (_first_ms(job.database_url, table) for table in logged) if first is not None]
    day = min([oldest, *(day_of(first) for first in known)])
    while day < oldest:
        for table in logged:
            if (reason := lacks(stored, whole, table.name, day)) is not None:
                return start_ms_of(day), reason
        day += timedelta(days=1)
    return start_ms_of(day), None


def _first_ms(url: str, table: sa.Table) -> int | None:
    with transaction(url, read_only=True) as connection:
        return connection.execute(sa.select(sa.func.min(table.c.created_at_ms))).scalar()


def _drop_partitions(job: Retention, cutoff_ms: int) -> tuple[list[str], list[str]]:
    """Drop the partitions of months that are over, old and without a call that is under way.

    Returns those dropped, and those left for the next run because the log was in use.
    """
    with transaction(job.database_url, read_only=True) as connection:
        found = [each.name for each in partitions(connection) if each.month.following.start_ms <= cutoff_ms]
        unfit = "SELECT EXISTS (SELECT FROM {} WHERE created_at_ms >= :cutoff OR status = 'pending')"
        old = [
            name
            for name in found
            if not connection.execute(sa.text(unfit.format(name)), {"cutoff": cutoff_ms}).scalar_one()
        ]
    dropped = [name for name in old if _drop(job, name, cutoff_ms)]
    return dropped, [name for name in old if name not in dropped]


def _drop(job: Retention, name: str, cutoff_ms: int) -> bool:
    """Drop one partition; False if turns used the log at every attempt."""
    for tried in range(DROP_TRIES):
        if tried:
            job.pause(PAUSE_S)
        try:
            with transaction(job.database_url) as connection:
                _note(connection, cutoff_ms)
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{DROP_WAIT_MS}ms'"))
                connection.execute(sa.text(f"DROP TABLE IF EXISTS {name}"))
            return True
        except OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                raise
    return False


def _old_decisions(connection: sa.Connection, cutoff_ms: int) -> sa.Delete:
    """Delete some old decisions: on Postgres only outside the monthly partitions, which are dropped."""
    d = tables.decisions.c
    old = sa.and_(d.created_at_ms < cutoff_ms, d.status != "pending")
    if is_partitioned(connection):
        months = [each.name for each in partitions(connection) if "through" not in each.name]
        place: sa.ColumnElement[str] = sa.literal_column("decisions.tableoid::regclass::text")
        old = sa.and_(old, place.not_in(months)) if months else old
    _note(connection, cutoff_ms)
    some = sa.select(d.decision_id).where(old).limit(DELETE_ROWS)
    return sa.delete(tables.decisions).where(d.decision_id.in_(some))


def _old_rows(table: sa.Table, cutoff_ms: int) -> sa.Delete:
    keys = list(table.primary_key.columns)
    some = sa.select(*keys).where(table.c.created_at_ms < cutoff_ms).limit(DELETE_ROWS)
    return sa.delete(table).where(sa.tuple_(*keys).in_(some))


def _delete(job: Retention, prepare: Callable[[sa.Connection], sa.Delete], progress: Progress | None) -> int:
    """Delete batch by batch, each in a transaction of its own; returns the rows deleted.

    Between two batches turns have the database for as long as a batch took. The connection stays: SQLite writes its
    whole log of changes into the file when the last one closes. On SQLite a commit need not reach the disk: the next
    turn's commit takes it there, and a deletion that a crash undoes is made again by the next run.
    """
    total = 0
    with transactions(job.database_url) as begin:
        with begin() as connection:
            statement = prepare(connection)
        if dialect_of(parse_url(job.database_url)) == "sqlite":
            with begin() as connection:
                raw = connection.connection.driver_connection
            assert raw is not None
            for setting in SQLITE_DELETES:
                raw.execute(setting)
        while True:
            began_s = time.perf_counter()
            with begin() as connection:
                gone = connection.execute(statement).rowcount
            total += gone
            if gone < DELETE_ROWS:
                return total
            if progress is not None:
                progress("delete", total, 0)
            job.pause(time.perf_counter() - began_s)


def _note(connection: sa.Connection, cutoff_ms: int) -> None:
    """Note for the audit that decisions before this time may be gone, before any is removed."""
    row = tables.log_retention
    insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(row)
    later = sa.case((row.c.through_ms < cutoff_ms, cutoff_ms), else_=row.c.through_ms)
    noted = insert.values(name=NAME, through_ms=cutoff_ms)
    connection.execute(noted.on_conflict_do_update(index_elements=["name"], set_={"through_ms": later}))
