"""Claims on nightly runs: one effective run per date over all replicas.

A unique row, and on Postgres an advisory lock around it. Every claim carries a fence, incremented whenever the run
changes hands. Publishing first checks the fence in its transaction: a run that was presumed dead and resumes changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from gateway.database import tables

JOB = "nightly"
ADVISORY_LOCK_KEY = 0x5E9_0_0717
"""Any constant that no other lock in the database uses."""


class ClaimLost(RuntimeError):
    """Another process took this run over: publishing now would make it run twice."""


@dataclass(frozen=True)
class Claim:
    """A claimed run; its fence grows with each takeover."""

    run_date: str
    run_id: str
    fence: int


@dataclass(frozen=True)
class Taken:
    """Another process runs, or ran, this date."""

    run_id: str
    state: Literal["running", "done", "failed"]


def claim(
    connection: sa.Connection, run_date: str, run_id: str, *, now_ms: int, stale_after_ms: int, force: bool
) -> Claim | Taken:
    """Claim a date inside the caller's transaction.

    A run that failed, or died `stale_after_ms` ago, is taken over with its id, so that its finished steps are reused;
    `force` takes over any, and restarts a finished one.
    """
    if connection.dialect.name == "postgresql":
        # The second of two replicas that start at once waits for this short transaction, then finds the row.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY})
    row = _row(connection, run_date)
    t = tables.nightly_runs
    if row is None:
        connection.execute(
            sa.insert(t).values(
                job=JOB, run_date=run_date, run_id=run_id, fence=1, state="running", started_at_ms=now_ms
            )
        )
        return Claim(run_date, run_id, 1)
    stale = row.state == "running" and now_ms - row.started_at_ms >= stale_after_ms
    if not (force or stale or row.state == "failed"):
        return Taken(row.run_id, row.state)
    kept_id = run_id if row.state == "done" else row.run_id
    connection.execute(
        sa.update(t)
        .where(*_key(run_date))
        .values(run_id=kept_id, fence=row.fence + 1, state="running", started_at_ms=now_ms, finished_at_ms=None)
    )
    return Claim(run_date, kept_id, row.fence + 1)


def finish(connection: sa.Connection, held: Claim, state: Literal["done", "failed"], now_ms: int) -> None:
    """Close the run. Raises ClaimLost when another process took it over."""
    t = tables.nightly_runs
    closed = connection.execute(
        sa.update(t)
        .where(*_key(held.run_date), t.c.fence == held.fence, t.c.state == "running")
        .values(state=state, finished_at_ms=now_ms)
    )
    if closed.rowcount != 1:
        raise ClaimLost(f"nightly {held.run_date}: fence {held.fence} is no longer the newest, nothing was published")


def _row(connection: sa.Connection, run_date: str) -> Any:
    t = tables.nightly_runs
    query = sa.select(t.c.run_id, t.c.fence, t.c.state, t.c.started_at_ms).where(*_key(run_date))
    return connection.execute(query).first()


def _key(run_date: str) -> tuple[sa.ColumnElement[bool], ...]:
    t = tables.nightly_runs
    return (t.c.job == JOB, t.c.run_date == run_date)
