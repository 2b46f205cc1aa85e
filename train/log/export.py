"""`seqroute export`: the decision log as Parquet files by day and table, to train elsewhere.

    DIR/decisions/date=2026-11-24/part-0.parquet      sorted by train.log.ORDER
    DIR/feedback/date=2026-11-24/part-0.parquet

DIR is a folder or `s3://bucket/prefix` (train/log/archive.py). A file is written aside first, so a reader never sees
half a day, and an export that was killed continues with the missing days. A day is final once it was exported a day
after its end, when all its bills are settled; until then each run writes it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from gateway.database import tables
from gateway.database.database import transaction
from train.errors import InputError, reason_of
from train.log.archive import Archive, archive_at
from train.log.source import ORDER

ROWS_AT_ONCE = 2_000
"""A row group: some 10 MB of decisions, which an export holds in memory beside the ids of a day."""
MS_PER_DAY = 86_400_000
SETTLED_MS = MS_PER_DAY
TEXT_COLUMNS = frozenset({"request_text", "response_text", "comment"})
"""Texts of users and models: exported only on request."""
_NOTE = b"seqroute"
_TABLES: dict[str, tuple[sa.Table, tuple[str, ...]]] = {
    "decisions": (tables.decisions, ORDER),
    "feedback": (tables.feedback, ("feedback_id",)),
}


class ExportError(InputError):
    """The folder holds something other than this export."""


@dataclass(frozen=True)
class Export:
    """An export's job. `tenant_id` None: all tenants; `since` None: from the log's first day."""

    database_url: str
    folder: Path | str
    now_ms: int
    since: date | None = None
    tenant_id: str | None = None
    with_text: bool = False


def export(job: Export, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Write every missing or non-final day; returns the rows written by table and day."""
    archive = archive_at(job.folder)
    written: dict[str, dict[str, int]] = {name: {} for name in _TABLES}
    skipped = 0
    for name in _TABLES:
        days = list(_days(job, name))
        for done, day in enumerate(days):
            if progress is not None:
                progress(f"export {name}", done, len(days))
            target = file_of(name, day)
            if is_final(archive, target, job, day):
                skipped += 1
                continue
            rows = _write_day(archive, job, name, day, target)
            if rows:
                written[name][day.isoformat()] = rows
    return {"folder": str(job.folder), "written": written, "final_already": skipped}


def file_of(table: str, day: date) -> str:
    """The name of a day's file."""
    return f"{table}/date={day.isoformat()}/part-0.parquet"


def _days(job: Export, name: str) -> Iterator[date]:
    """The days with rows from `since` to today, in order."""
    table, _ = _TABLES[name]
    created, today = table.c.created_at_ms, day_of(job.now_ms)
    from_ms = 0 if job.since is None else start_ms_of(job.since)
    while True:
        first = _of_tenant(sa.select(sa.func.min(created)), table, job).where(created >= from_ms)
        with transaction(job.database_url, read_only=True) as connection:
            first_ms = connection.execute(first).scalar()
        if first_ms is None or (day := day_of(first_ms)) > today:
            return
        yield day
        from_ms = start_ms_of(day) + MS_PER_DAY


def _write_day(archive: Archive, job: Export, name: str, day: date, target: str) -> int:
    """Write a day and return its rows; a day without any leaves no file."""
    table, order = _TABLES[name]
    columns = [c for c in table.columns if job.with_text or c.name not in TEXT_COLUMNS]
    note = {"exported_at_ms": job.now_ms, "tenant_id": job.tenant_id, "with_text": job.with_text}
    schema = pa.schema([pa.field(c.name, _arrow_type(c)) for c in columns], {_NOTE: json.dumps(note).encode()})
    start_ms = start_ms_of(day)
    [key] = table.primary_key.columns
    place, count = columns.index(key), 0
    inside = _of_tenant(sa.select(key), table, job).where(
        table.c.created_at_ms >= start_ms, table.c.created_at_ms < start_ms + MS_PER_DAY
    )
    with archive.scratch(target) as beside, transaction(job.database_url, read_only=True) as connection:
        # Ids are sorted without their rows, which SQLite would sort in memory: a day of a long log is a gigabyte.
        in_order = inside.order_by(*(_by_code_points(table.c[name], connection) for name in order))
        ids = connection.execute(in_order).scalars().all()
        with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
            for start in range(0, len(ids), ROWS_AT_ONCE):
                wanted = ids[start : start + ROWS_AT_ONCE]
                found = {row[place]: row for row in connection.execute(sa.select(*columns).where(key.in_(wanted)))}
                if not found:
                    continue
                rows = [found[each] for each in wanted if each in found]
                by_column = zip(zip(*rows, strict=True), schema.types, strict=True)
                writer.write_batch(pa.RecordBatch.from_arrays([pa.array(*each) for each in by_column], schema=schema))
                count += len(rows)
        if count:
            archive.keep(beside, target)
    return count


def is_final(archive: Archive, target: str, job: Export, day: date) -> bool:
    """Tell whether the file is complete and final. Raises ExportError for a foreign file."""
    try:
        with archive.open(target) as file:
            note = json.loads((pq.read_schema(file).metadata or {}).get(_NOTE, b"null"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise ExportError(f"{archive.address(target)}: expected a file of an export: {reason_of(error)}") from error
    if not isinstance(note, dict):
        raise ExportError(f"{archive.address(target)}: expected a file of an export, found another")
    for name, wanted in (("tenant_id", job.tenant_id), ("with_text", job.with_text)):
        if note.get(name) != wanted:
            raise ExportError(
                f"{archive.address(target)}: expected an export with {name} {json.dumps(wanted)}, found "
                f"{json.dumps(note.get(name))}: name another folder"
            )
    return bool(note["exported_at_ms"] >= start_ms_of(day) + MS_PER_DAY + SETTLED_MS)


def lacks(archive: Archive, job: Export, name: str, day: date) -> str | None:
    """Say which rows or texts of a day the archive lacks; None: it has all of the database's.

    Rows are compared by id, so an archive of another database never counts as this one's. Raises ExportError.
    """
    table, _ = _TABLES[name]
    start_ms, target = start_ms_of(day), file_of(name, day)
    inside = sa.and_(table.c.created_at_ms >= start_ms, table.c.created_at_ms < start_ms + MS_PER_DAY)
    texts = sa.or_(*(column != "" for column in table.columns if column.name in TEXT_COLUMNS))
    [key] = table.primary_key.columns
    with transaction(job.database_url, read_only=True) as connection:
        if not connection.execute(sa.select(sa.exists().where(inside))).scalar_one():
            return None
        if not is_final(archive, target, job, day):
            return f"{archive.address(target)}: not archived for good"
        if not job.with_text and connection.execute(sa.select(sa.exists().where(inside, texts))).scalar_one():
            return f"{name} of {day}: rows have texts, which the archive leaves out: set retention.archive_texts"
        stored = _ids(archive, target, key.name)
        found = connection.execute(
            sa.select(key).where(inside), execution_options={"yield_per": ROWS_AT_ONCE}
        ).scalars()
        lacking = 0
        for ids in found.partitions(ROWS_AT_ONCE):
            lacking += pc.is_in(pa.array(ids, pa.string()), value_set=stored).false_count
    if lacking:
        return f"{archive.address(target)}: lacks {lacking:,} rows that this database has: is it another database's?"
    return None


def _ids(archive: Archive, target: str, key: str) -> pa.ChunkedArray[pa.StringScalar]:
    with archive.open(target) as file:
        return pq.read_table(file, columns=[key]).column(key)


def _of_tenant(query: sa.Select[Any], table: sa.Table, job: Export) -> sa.Select[Any]:
    return query if job.tenant_id is None else query.where(table.c.tenant_id == job.tenant_id)


def _by_code_points(column: sa.ColumnElement[Any], connection: sa.Connection) -> sa.ColumnElement[Any]:
    """Sort by code points: Postgres uses its locale, but merging files needs Python's order."""
    if connection.dialect.name == "postgresql" and isinstance(column.type, sa.String):
        return sa.collate(column, "C")
    return column


def _arrow_type(column: sa.Column[Any]) -> pa.DataType:
    if isinstance(column.type, sa.LargeBinary):
        return pa.binary()
    if isinstance(column.type, sa.Float):
        return pa.float64()
    if isinstance(column.type, sa.Integer):
        return pa.int64()
    return pa.string()


def day_of(at_ms: int) -> date:
    """The day of a time, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()


def start_ms_of(day: date) -> int:
    """Start of the day."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
