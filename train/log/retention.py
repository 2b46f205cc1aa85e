"""Retention of the decision log: archive it, then remove what is older than it is kept.

Removed are decisions, their scores and the counts of refused turns. Money is not: tenants, sessions, holds and ledger
entries stay, so every balance can still be followed to its entries. With an archive, only days go whose files there are
final. On Postgres a month's partition is dropped when all of it may go; elsewhere rows are deleted in small
transactions, so that turns need not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from gateway.config.settings import RetentionSettings
from gateway.database import tables
from gateway.database.database import transaction
from gateway.database.partitions import is_partitioned, partitions
from train.log.archive import archive_at
from train.log.export import Export, day_of, export, file_of, is_final, start_ms_of

DELETE_ROWS = 500
"""Rows of one transaction: a few milliseconds in which a turn waits on SQLite."""
NAME = "decisions"


@dataclass(frozen=True)
class Retention:
    """A job of retention, with the age to which the log is kept and its archive."""

    database_url: str
    settings: RetentionSettings
    now_ms: int


def retain(job: Retention, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Archive and remove; returns what was done.

    Raises ArchiveError, ExportError with nothing removed.
    """
    archive, report = job.settings.archive, dict[str, Any]()
    if archive is not None:
        done = export(Export(job.database_url, archive, job.now_ms), progress)
        report["archived_rows"] = {table: sum(days.values()) for table, days in done["written"].items()}
    if job.settings.decisions_s is None:
        return report | {"removed": "nothing: no age is set"}
    cutoff_ms = _cutoff_ms(job)
    report |= {"kept_since_ms": cutoff_ms, "dropped_partitions": _drop_partitions(job.database_url, cutoff_ms)}
    removed = {
        "decisions": _delete(job.database_url, _old_decisions(cutoff_ms), progress),
        "feedback": _delete(job.database_url, _old_rows(tables.feedback, "created_at_ms", cutoff_ms), progress),
        "refused_turns": _delete(job.database_url, _old_rows(tables.refused_turns, "last_at_ms", cutoff_ms), progress),
    }
    return report | {"deleted_rows": removed}


def _cutoff_ms(job: Retention) -> int:
    """The start of the oldest day that stays: by age, and by what the archive has for good."""
    assert job.settings.decisions_s is not None
    oldest = day_of(job.now_ms - int(job.settings.decisions_s * 1000))
    if job.settings.archive is None:
        return start_ms_of(oldest)
    stored, whole = archive_at(job.settings.archive), Export(job.database_url, job.settings.archive, job.now_ms)
    with transaction(job.database_url, read_only=True) as connection:
        firsts = [
            connection.execute(sa.select(sa.func.min(table.c.created_at_ms))).scalar()
            for table in (tables.decisions, tables.feedback)
        ]
    known = [first for first in firsts if first is not None]
    day = min([oldest, *(day_of(first) for first in known)])
    while day < oldest and all(
        is_final(stored, file_of(table.name, day), whole, day) or not _has_rows(job.database_url, table, day)
        for table in (tables.decisions, tables.feedback)
    ):
        day += timedelta(days=1)
    return start_ms_of(day)


def _has_rows(url: str, table: sa.Table, day: Any) -> bool:
    start_ms, end_ms = start_ms_of(day), start_ms_of(day + timedelta(days=1))
    inside = sa.and_(table.c.created_at_ms >= start_ms, table.c.created_at_ms < end_ms)
    with transaction(url, read_only=True) as connection:
        return bool(connection.execute(sa.select(sa.exists().where(inside))).scalar_one())


def _drop_partitions(url: str, cutoff_ms: int) -> list[str]:
    """Drop the partitions of months that are over, old and without a call that is under way."""
    with transaction(url, read_only=True) as connection:
        found = [each for each in partitions(connection) if each.month.following.start_ms <= cutoff_ms]
    dropped = []
    for partition in found:
        with transaction(url) as connection:
            connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            unfit = sa.text(
                f"SELECT EXISTS (SELECT FROM {partition.name} WHERE created_at_ms >= :cutoff OR status = 'pending')"
            )
            if connection.execute(unfit, {"cutoff": cutoff_ms}).scalar_one():
                continue
            _note(connection, cutoff_ms)
            connection.execute(sa.text(f"DROP TABLE {partition.name}"))
            dropped.append(partition.name)
    return dropped


def _old_decisions(cutoff_ms: int) -> Callable[[sa.Connection], sa.Delete]:
    """Statement that deletes some old decisions: on Postgres only outside the monthly partitions, which are dropped."""

    def statement(connection: sa.Connection) -> sa.Delete:
        d = tables.decisions.c
        old = sa.and_(d.created_at_ms < cutoff_ms, d.status != "pending")
        if is_partitioned(connection):
            months = [each.name for each in partitions(connection) if "through" not in each.name]
            place: sa.ColumnElement[str] = sa.literal_column("decisions.tableoid::regclass::text")
            old = sa.and_(old, place.not_in(months)) if months else old
        _note(connection, cutoff_ms)
        some = sa.select(d.decision_id).where(old).limit(DELETE_ROWS)
        return sa.delete(tables.decisions).where(d.decision_id.in_(some))

    return statement


def _old_rows(table: sa.Table, at: str, cutoff_ms: int) -> Callable[[sa.Connection], sa.Delete]:
    keys = list(table.primary_key.columns)
    some = sa.select(*keys).where(table.c[at] < cutoff_ms).limit(DELETE_ROWS)
    return lambda _: sa.delete(table).where(sa.tuple_(*keys).in_(some))


def _delete(
    url: str, statement: Callable[[sa.Connection], sa.Delete], progress: Callable[[str, int, int], None] | None
) -> int:
    """Delete batch by batch, each in a transaction of its own; returns the rows deleted."""
    total = 0
    while True:
        with transaction(url) as connection:
            gone = connection.execute(statement(connection)).rowcount
        total += gone
        if gone < DELETE_ROWS:
            return total
        if progress is not None:
            progress("delete", total, 0)


def _note(connection: sa.Connection, cutoff_ms: int) -> None:
    """Note for the audit that decisions before this time may be gone, in the transaction that removes them."""
    row = tables.log_retention
    changed = connection.execute(
        sa.update(row).where(row.c.name == NAME).values(through_ms=sa.case(
            (row.c.through_ms < cutoff_ms, cutoff_ms), else_=row.c.through_ms
        ))
    )  # fmt: skip
    if changed.rowcount == 0:
        connection.execute(sa.insert(row).values(name=NAME, through_ms=cutoff_ms))
