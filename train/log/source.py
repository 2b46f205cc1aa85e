"""Sources of the log: the serving database, or Parquet of `seqroute export`; equal rows.

    Log.decisions(since_ms, until_ms, max_sessions)   rows of the newest sessions in sequence, turns in order
    Log.feedback(since_ms, until_ms)                  every score, in the order of the ids
    Log.second_answers(since_ms, until_ms)            every whole answer of a second model to a client's turn

All are streamed in batches of rows. The sessions are clients': the gateway's own take no place among the newest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from gateway.accounts.tenants import OWN_TENANTS, SECOND, SECOND_TENANT
from gateway.database import tables
from train.errors import InputError, reason_of
from train.log.archive import Archive, archive_at
from train.log.reward import Signal

Row = Mapping[str, Any]

ROWS_AT_ONCE = 1_000
KEYS_AT_ONCE = 100_000
SESSIONS_AT_ONCE = 500
SESSION = ("tenant_id", "session_id")
DECISION_COLUMNS: tuple[str, ...] = (
    "decision_id", "tenant_id", "session_id", "turn", "feature_version", "features", "candidate_features", "candidates",
    "lambda_per_usd", "session_budget_nanousd", "remaining_before_nanousd", "expected_turns", "model", "action",
    "propensity", "policy_id", "reason", "status", "cost_nanousd", "signals", "previous_decision_id", "origin",
    "exploration_floor", "latency_ms", "output_tokens", "cached_tokens", "usage_source", "created_at_ms",
    "root_session_id",
)  # fmt: skip
"""Columns of a decision that training uses."""
LATER_COLUMNS = frozenset({"root_session_id"})
"""Those that files of earlier versions lack: null there."""
ORDER: tuple[str, ...] = ("tenant_id", "session_id", "turn", "decision_id")
"""Sort order of a file of decisions, by code points in every database."""


class Score(NamedTuple):
    """A row of feedback; `decision_id` is "" for the whole session."""

    tenant_id: str
    session_id: str
    decision_id: str
    signal: Signal


class SecondAnswer(NamedTuple):
    """Another model's answer, under a decision of its own, to the turn of the decision `of`."""

    of: str
    decision_id: str
    model: str


class Log(Protocol):
    """The log from `since_ms` to `until_ms`, both included."""

    def decisions(self, since_ms: int, until_ms: int, max_sessions: int) -> Iterator[Row]:
        """Yield rows of the newest sessions, in ORDER within each."""

    def feedback(self, since_ms: int, until_ms: int) -> Iterator[Score]:
        """Yield every score, ordered by id."""

    def second_answers(self, since_ms: int, until_ms: int) -> Iterator[SecondAnswer]:
        """Yield the whole answers of second models."""


class LogError(InputError):
    """The exported log cannot be read; the message names the file and the reason."""


class DatabaseLog(Log):
    """The log in the database, as one snapshot: the connection's transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def decisions(self, since_ms: int, until_ms: int, max_sessions: int) -> Iterator[Row]:
        d = tables.decisions
        newest = (
            sa.select(d.c.tenant_id, d.c.session_id, sa.func.max(d.c.created_at_ms).label("at"))
            .where(d.c.created_at_ms.between(since_ms, until_ms), d.c.tenant_id.not_in(OWN_TENANTS))
            .group_by(d.c.tenant_id, d.c.session_id)
            .order_by(sa.desc("at"), d.c.tenant_id, d.c.session_id)
            .limit(max_sessions)
        )
        # Some sessions at a time: a database sorts the rows of all of them in memory, as SQLite must, or on disk.
        found = sorted((row.tenant_id, row.session_id) for row in self._connection.execute(newest))
        for tenant_id, sessions in groupby(found, key=itemgetter(0)):
            names = [session_id for _, session_id in sessions]
            for start in range(0, len(names), SESSIONS_AT_ONCE):
                query = (
                    sa.select(*(d.c[name] for name in DECISION_COLUMNS))
                    .where(d.c.tenant_id == tenant_id, d.c.session_id.in_(names[start : start + SESSIONS_AT_ONCE]))
                    .where(d.c.created_at_ms.between(since_ms, until_ms))
                    .order_by(*(d.c[name] for name in ORDER))
                )
                for row in self._connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings():
                    yield dict(row)

    def feedback(self, since_ms: int, until_ms: int) -> Iterator[Score]:
        f = tables.feedback
        query = (
            sa.select(f.c.tenant_id, f.c.session_id, f.c.decision_id, f.c.source, f.c.name, f.c.score)
            .where(f.c.created_at_ms.between(since_ms, until_ms))
            .order_by(f.c.feedback_id)
        )
        for tenant_id, session_id, decision_id, source, name, score in self._connection.execute(
            query, execution_options={"yield_per": ROWS_AT_ONCE}
        ):
            yield Score(tenant_id, session_id, decision_id, Signal(source, name, score))

    def second_answers(self, since_ms: int, until_ms: int) -> Iterator[SecondAnswer]:
        d = tables.decisions
        query = sa.select(*(d.c[name] for name in _OF_SECONDS)).where(
            d.c.created_at_ms.between(since_ms, until_ms), d.c.tenant_id == SECOND_TENANT
        )
        found = self._connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings()
        yield from _second_answers(map(dict, found))


class ParquetLog(Log):
    """The log in a folder or storage written by `seqroute export`.

    A session's turns may be in the files of several days. Each file is sorted by ORDER, so the files are merged. Raises
    LogError when the folder is not an export.
    """

    def __init__(self, where: Path | str) -> None:
        self._archive = archive_at(where)
        if not self._archive.holds("decisions"):
            raise LogError(f'{self._archive}: expected the folder of an export, with "decisions" in it')

    def decisions(self, since_ms: int, until_ms: int, max_sessions: int) -> Iterator[Row]:
        newest, first_ms = self._newest(since_ms, until_ms, max_sessions)

        def wanted(batch: pa.RecordBatch) -> pa.RecordBatch:
            # Most rows of a long log are of older sessions: leave them out before they become Python objects.
            columns = (batch.column(name).to_pylist() for name in ("tenant_id", "session_id", "created_at_ms"))
            mask = [(a, b) in newest and since_ms <= at_ms <= until_ms for a, b, at_ms in zip(*columns, strict=True)]
            return batch if all(mask) else batch.filter(pa.array(mask, pa.bool_()))

        oldest = f"decisions/date={datetime.fromtimestamp(first_ms / 1000, UTC).date().isoformat()}"
        files = [file for file in self._archive.files("decisions") if file >= oldest]
        streams = [rows(self._archive, file, DECISION_COLUMNS, wanted) for file in files]
        yield from heapq.merge(*streams, key=lambda row: tuple(row[name] for name in ORDER))

    def feedback(self, since_ms: int, until_ms: int) -> Iterator[Score]:
        names = (
            "feedback_id", "tenant_id", "session_id", "decision_id", "source", "name", "score", "created_at_ms",
        )  # fmt: skip
        found = [
            (row["feedback_id"], Score(row["tenant_id"], row["session_id"], row["decision_id"],
                                       Signal(row["source"], row["name"], row["score"])))
            for file in self._archive.files("feedback")
            for row in rows(self._archive, file, names)
            if since_ms <= row["created_at_ms"] <= until_ms
        ]  # fmt: skip
        yield from (score for _, score in sorted(found, key=lambda item: item[0]))

    def second_answers(self, since_ms: int, until_ms: int) -> Iterator[SecondAnswer]:
        def wanted(batch: pa.RecordBatch) -> pa.RecordBatch:
            return batch.filter(pa.array([name == SECOND_TENANT for name in batch.column("tenant_id").to_pylist()]))

        for file in self._archive.files("decisions"):
            found = rows(self._archive, file, _OF_SECONDS, wanted)
            yield from _second_answers(row for row in found if since_ms <= row["created_at_ms"] <= until_ms)

    def _newest(self, since_ms: int, until_ms: int, max_sessions: int) -> tuple[Set[tuple[str, str]], int]:
        """The sessions with the newest turns, as the database would choose them, and the time of their first turn.

        Summed in Arrow, day by day: a dictionary of a million sessions takes some hundred megabytes.
        """
        inside = (pc.field("created_at_ms") >= since_ms) & (pc.field("created_at_ms") <= until_ms)
        inside = inside & ~pc.field("tenant_id").isin(list(OWN_TENANTS))
        found = []
        for file in self._archive.files("decisions"):
            parts = [
                _first_and_last(pa.Table.from_batches([batch]).filter(inside), "created_at_ms", "created_at_ms")
                for batch in batches(self._archive, file, (*SESSION, "created_at_ms"), KEYS_AT_ONCE)
            ]
            if parts:
                found.append(_first_and_last(pa.concat_tables(parts), "first_ms", "last_ms"))
        if not found:
            return set(), since_ms
        every = _first_and_last(pa.concat_tables(found), "first_ms", "last_ms")
        order: list[tuple[str, Literal["ascending", "descending"]]] = [("last_ms", "descending")]
        order += [(name, "ascending") for name in SESSION]
        newest: list[dict[str, Any]] = every.sort_by(order).slice(0, max_sessions).to_pylist()
        return (
            {(row["tenant_id"], row["session_id"]) for row in newest},
            min((int(row["first_ms"]) for row in newest), default=since_ms),
        )


def _first_and_last(table: pa.Table, first: str, last: str) -> pa.Table:
    """The first and last time of each session, as columns first_ms and last_ms."""
    summed = table.group_by(list(SESSION)).aggregate([(first, "min"), (last, "max")])
    return summed.select([*SESSION, f"{first}_min", f"{last}_max"]).rename_columns([*SESSION, "first_ms", "last_ms"])


_OF_SECONDS = ("decision_id", "tenant_id", "session_id", "model", "status", "created_at_ms")


def _second_answers(found: Iterable[Row]) -> Iterator[SecondAnswer]:
    for row in found:
        if row["status"] == "completed":
            yield SecondAnswer(row["session_id"].removeprefix(f"{SECOND}:"), row["decision_id"], row["model"])


def rows(
    archive: Archive,
    name: str,
    names: tuple[str, ...],
    wanted: Callable[[pa.RecordBatch], pa.RecordBatch] = lambda batch: batch,
) -> Iterator[Row]:
    """Yield the rows of one file that `wanted` leaves, batch by batch. Raises LogError."""
    for batch in batches(archive, name, names, ROWS_AT_ONCE):
        yield from wanted(batch).to_pylist()


def batches(archive: Archive, name: str, names: tuple[str, ...], at_once: int) -> Iterator[pa.RecordBatch]:
    """One file's columns in batches. Raises LogError."""
    file = archive.address(name)
    try:
        with archive.open(name) as stored, pq.ParquetFile(stored) as opened:
            missing = set(names) - set(opened.schema_arrow.names)
            if lacking := sorted(missing - LATER_COLUMNS):
                raise LogError(f"{file}: expected the column {lacking[0]}, found none: export it again")
            for batch in opened.iter_batches(at_once, columns=[name for name in names if name not in missing]):
                for name in missing:
                    batch = batch.append_column(name, pa.nulls(batch.num_rows, pa.string()))
                yield batch
    except (OSError, ValueError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"{file}: expected a Parquet file: {reason_of(error)}") from error
