"""Sources of the log: the serving database, or Parquet of `seqroute export`; equal rows.

    Log.decisions(since_ms, until_ms, max_sessions)   rows of the newest sessions in sequence, turns in order
    Log.feedback(since_ms, until_ms)                  every score, in the order of the ids

Both are streamed in batches of rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow.parquet as pq
import sqlalchemy as sa

from gateway.database import tables
from train.errors import InputError, reason_of
from train.log.archive import Archive, archive_at
from train.log.reward import Signal

Row = Mapping[str, Any]

ROWS_AT_ONCE = 1_000
DECISION_COLUMNS: tuple[str, ...] = (
    "decision_id", "tenant_id", "session_id", "turn", "feature_version", "features", "candidate_features", "candidates",
    "lambda_per_usd", "session_budget_nanousd", "remaining_before_nanousd", "expected_turns", "model", "action",
    "propensity", "policy_id", "reason", "status", "cost_nanousd", "signals", "previous_decision_id", "origin",
    "exploration_floor", "latency_ms", "output_tokens", "cached_tokens", "usage_source", "created_at_ms",
)  # fmt: skip
"""Columns of a decision that training uses."""
ORDER: tuple[str, ...] = ("tenant_id", "session_id", "turn", "decision_id")
"""Sort order of a file of decisions, by code points in every database."""


class Score(NamedTuple):
    """A row of feedback; `decision_id` is "" for the whole session."""

    tenant_id: str
    session_id: str
    decision_id: str
    signal: Signal


class Log(Protocol):
    """The log from `since_ms` to `until_ms`, both included."""

    def decisions(self, since_ms: int, until_ms: int, max_sessions: int) -> Iterator[Row]:
        """Yield rows of the newest sessions, in ORDER within each."""

    def feedback(self, since_ms: int, until_ms: int) -> Iterator[Score]:
        """Yield every score, ordered by id."""


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
            .where(d.c.created_at_ms.between(since_ms, until_ms))
            .group_by(d.c.tenant_id, d.c.session_id)
            .order_by(sa.desc("at"), d.c.tenant_id, d.c.session_id)
            .limit(max_sessions)
            .subquery()
        )
        query = (
            sa.select(*(d.c[name] for name in DECISION_COLUMNS))
            .join(newest, sa.and_(d.c.tenant_id == newest.c.tenant_id, d.c.session_id == newest.c.session_id))
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
        files = self._archive.files("decisions")
        newest = self._newest(files, since_ms, until_ms, max_sessions)
        streams = [rows(self._archive, file, DECISION_COLUMNS) for file in files]
        for row in heapq.merge(*streams, key=lambda row: tuple(row[name] for name in ORDER)):
            if since_ms <= row["created_at_ms"] <= until_ms and (row["tenant_id"], row["session_id"]) in newest:
                yield row

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

    def _newest(self, files: list[str], since_ms: int, until_ms: int, max_sessions: int) -> set[tuple[str, str]]:
        """The sessions with the newest turns, as the database would choose them."""
        last: dict[tuple[str, str], int] = {}
        for file in files:
            for row in rows(self._archive, file, ("tenant_id", "session_id", "created_at_ms")):
                if since_ms <= row["created_at_ms"] <= until_ms:
                    key = (row["tenant_id"], row["session_id"])
                    last[key] = max(last.get(key, 0), row["created_at_ms"])
        if len(last) <= max_sessions:
            return set(last)
        return set(sorted(last, key=lambda key: (-last[key], key))[:max_sessions])


def rows(archive: Archive, name: str, names: tuple[str, ...]) -> Iterator[Row]:
    """The rows of one file, a batch in memory at a time. Raises LogError."""
    file = archive.address(name)
    try:
        with archive.open(name) as stored, pq.ParquetFile(stored) as opened:
            missing = sorted(set(names) - set(opened.schema_arrow.names))
            if missing:
                raise LogError(f"{file}: expected the column {missing[0]}, found none: export it again")
            for batch in opened.iter_batches(ROWS_AT_ONCE, columns=list(names)):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"{file}: expected a Parquet file: {reason_of(error)}") from error
