"""Monthly partitions of the decision log: made ahead, found by id, never in the way of a turn."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from gateway.clock import time_ordered_ids
from gateway.database.database import transaction
from gateway.database.partitions import OTHER, Month, make_partition, missing_months, partitions
from gateway.database.tables import decisions


def at_ms(year: int, month: int, day: int = 1) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp() * 1000)


def write(connection: Connection, decision_id: str, created_ms: int) -> None:
    row: dict[str, Any] = {
        "tenant_id": "t", "session_id": "s", "turn": 0, "requested_model": "auto", "feature_version": 1,
        "features": b"", "candidate_features": b"", "candidates": "[]", "lambda_per_usd": 1.0,
        "session_budget_nanousd": 1, "remaining_before_nanousd": 1, "model": "small", "action": 0, "propensity": 1.0,
        "uniform": 0.5, "policy_id": "rule", "reason": "policy", "reserved_nanousd": 1,
    }  # fmt: skip
    connection.execute(insert(decisions).values(decision_id=decision_id, created_at_ms=created_ms, **row))


def an_id(when_ms: int) -> str:
    return time_ordered_ids(lambda: when_ms / 1000)("dec")


def place(connection: Connection, decision_id: str) -> str:
    query = text("SELECT tableoid::regclass::text FROM decisions WHERE decision_id = :it")
    return str(connection.execute(query, {"it": decision_id}).scalar_one())


def make_all(connection: Connection, now_ms: int) -> list[str]:
    missing = missing_months(connection, now_ms)
    for month in missing:
        make_partition(connection, month)
    return [str(month) for month in missing]


@given(st.integers(0, 4_000_000_000_000))
def test_every_id_is_in_the_month_of_its_time(now_ms: int) -> None:
    month = Month.of(now_ms)
    made = time_ordered_ids(lambda: now_ms / 1000 + 0.0001)("dec")
    assert month.first_id <= made < month.following.first_id


def test_partitions_are_made_ahead_and_rows_that_came_before_their_month_move_in(postgres_url: str) -> None:
    later = at_ms(2040, 12, 30)
    early, late = (an_id(when) for when in (later, at_ms(2041, 2, 3)))
    with transaction(postgres_url) as connection:
        for name in (early, late):
            write(connection, name, later)
            assert place(connection, name) == OTHER
        # The coming months first: nothing has to move into them, so a new month always finds its partition.
        assert make_all(connection, later) == ["2041_02", "2041_01", "2040_12"]
        assert missing_months(connection, later) == []
        assert (place(connection, early), place(connection, late)) == ("decisions_2040_12", "decisions_2041_02")
        assert Month(2040, 12) in {found.month for found in partitions(connection)}
        with pytest.raises(IntegrityError), connection.begin_nested():
            write(connection, early, later)


def test_a_query_by_id_reads_one_partition(postgres_url: str) -> None:
    with transaction(postgres_url) as connection:
        make_all(connection, at_ms(2040, 1))
        plan = connection.execute(
            text("EXPLAIN SELECT * FROM decisions WHERE decision_id = :it"), {"it": Month(2040, 2).first_id + "x"}
        ).scalars()
        scanned = [line for line in plan if " on decisions" in line]
        assert len(scanned) == 1, scanned
        assert "decisions_2040_02" in scanned[0]


def test_sqlite_has_one_table(sqlite_url: str) -> None:
    with transaction(sqlite_url) as connection:
        assert missing_months(connection, at_ms(2040, 1)) == []
        assert partitions(connection) == []
