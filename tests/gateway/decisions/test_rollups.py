"""Hourly sums: every bill once, in its hour, whatever the number of replicas that add them up."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, column, func, insert, select, table

from gateway.accounts.tenants import JUDGE_TENANT
from gateway.database.database import transaction
from gateway.database.tables import baseline_hours, decisions, ledger_entries, tenants, usage_hours
from gateway.decisions import rollups
from gateway.decisions.rollups import CHOSEN, DAY_MS, HOUR_MS, LAG_MS, advance, join_hours
from gateway.ui import queries

NOW_MS = 100 * HOUR_MS


def turn(connection: Connection, number: int, model: str, cost: int, at_ms: int, **changes: Any) -> None:
    candidates = [
        {"model": "small", "cost_nano_usd": 100, "quality": 0.6},
        {"model": "large", "cost_nano_usd": 1_000, "quality": 0.9},
    ]
    row = {
        "decision_id": f"dec_{number}", "tenant_id": "t", "session_id": "s", "turn": number, "requested_model": "auto",
        "feature_version": 1, "features": b"", "candidate_features": b"", "candidates": json.dumps(candidates),
        "lambda_per_usd": 1.0, "session_budget_nanousd": 100, "remaining_before_nanousd": 9, "model": model,
        "action": 0, "propensity": 1.0, "uniform": 0.5, "policy_id": "rule", "reason": "policy", "status": "completed",
        "reserved_nanousd": cost, "cost_nanousd": cost, "usage_source": "reported", "created_at_ms": at_ms,
        "input_tokens": 40, "cached_tokens": 30, "output_tokens": 5, "finish_reason": "stop",
    } | changes  # fmt: skip
    connection.execute(insert(decisions).values(**row))
    entry(connection, number, "settle", cost, at_ms)


def entry(connection: Connection, number: int, kind: str, amount: int, at_ms: int) -> None:
    connection.execute(
        insert(ledger_entries).values(
            kind=kind, scope="turn", amount_nanousd=amount, spent_delta_nanousd=amount, tenant_id="t", session_id="s",
            decision_id=f"dec_{number}", model="small", hold_id=f"hold_{number}", usage_source="reported",
            created_at_ms=at_ms,
        )
    )  # fmt: skip


def test_bills_are_counted_once_in_their_hour_and_the_newest_seconds_wait(database_url: str) -> None:
    with transaction(database_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        turn(connection, 0, "small", 50, NOW_MS - 2 * HOUR_MS)
        turn(connection, 1, "large", 500, NOW_MS - HOUR_MS, reason="only-affordable", finish_reason="length",
             lowered_max_tokens=5)  # fmt: skip
        entry(connection, 1, "overage", 7, NOW_MS - HOUR_MS)
        turn(connection, 2, "small", 60, NOW_MS - LAG_MS + 1)
    with transaction(database_url) as connection:
        assert advance(connection, NOW_MS) == 3
    with transaction(database_url) as connection:
        assert advance(connection, NOW_MS) == 0
        rows = connection.execute(select(usage_hours).order_by(usage_hours.c.hour_ms)).mappings().all()
        assert [(row["hour_ms"] // HOUR_MS, row["model"], row["turns"], row["spent_nanousd"]) for row in rows] == [
            (98, "small", 1, 50), (99, "large", 1, 507),
        ]  # fmt: skip
        names = ("forced_turns", "cut_turns", "lowered_turns", "cached_tokens")
        assert [rows[1][name] for name in names] == [1, 1, 1, 30]
    with transaction(database_url) as connection:
        assert advance(connection, NOW_MS + LAG_MS) == 1
        period = queries.last_days(1, NOW_MS, None)
        usage = queries.usage(connection, period, HOUR_MS)
        assert queries.totals(usage)["spent_nanousd"] == 617
        assert queries.spend_by_model(usage) == [("large", 507, 1), ("small", 110, 2)]


def test_two_replicas_that_read_the_same_entries_add_them_once(postgres_url: str) -> None:
    with transaction(postgres_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        turn(connection, 0, "small", 50, NOW_MS - HOUR_MS)
        rollups.advance(connection, 0)  # the mark exists
    with transaction(postgres_url) as first, transaction(postgres_url) as second:
        assert first.execute(select(usage_hours)).all() == second.execute(select(usage_hours)).all() == []
        assert advance(first, NOW_MS) == 1
        first.commit()
        assert advance(second, NOW_MS) == 0
    with transaction(postgres_url) as connection:
        assert [row.spent_nanousd for row in connection.execute(select(usage_hours))] == [50]


def test_hours_older_than_a_week_are_joined_into_days_and_no_sum_changes(database_url: str) -> None:
    at_ms = 20 * DAY_MS + 5 * HOUR_MS
    with transaction(database_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        for number, hour in enumerate((0, 3, 3, 30, 31, 11 * 24 + 1, 12 * 24 + 1, 12 * 24 + 2)):
            turn(connection, number, "small", 10**number, hour * HOUR_MS)
        advance(connection, at_ms)
    period = queries.Period(0, at_ms, None)
    with transaction(database_url) as connection:
        before = queries.totals(queries.usage(connection, period, DAY_MS)), queries.baselines(connection, period)
        assert [join_hours(connection, at_ms) for _ in range(4)] == [True, True, True, False]
        after = queries.totals(queries.usage(connection, period, DAY_MS)), queries.baselines(connection, period)
        assert before == after
        hours = [
            row.hour_ms // HOUR_MS for row in connection.execute(select(usage_hours.c.hour_ms).order_by("hour_ms"))
        ]
        assert hours == [0, 24, 11 * 24, 12 * 24 + 1, 12 * 24 + 2]
    with transaction(database_url) as connection:  # a bill that comes late still counts
        entry(connection, 0, "overage", 7, 5 * HOUR_MS)
        advance(connection, at_ms)
        assert join_hours(connection, at_ms)
        assert queries.totals(queries.usage(connection, period, DAY_MS))["spent_nanousd"] == 11_111_118


def wait_for_a_waiting_one(postgres_url: str) -> None:
    """Return when a connection is seen waiting for a row that another holds."""
    activity = table("pg_stat_activity", column("datname"), column("wait_event_type"))
    waiting = (
        select(func.count())
        .select_from(activity)
        .where(activity.c.datname == func.current_database(), activity.c.wait_event_type == "Lock")
    )
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        with transaction(postgres_url) as connection:  # one transaction sees the same activity throughout
            if connection.execute(waiting).scalar_one():
                return
    raise AssertionError("no one waits for the other's commit")


def test_two_replicas_join_the_same_hours_once(postgres_url: str) -> None:
    at_ms = 20 * DAY_MS
    with transaction(postgres_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        turn(connection, 0, "small", 50, 3 * HOUR_MS)
        advance(connection, at_ms)

    def join() -> bool:
        with transaction(postgres_url) as connection:
            return join_hours(connection, at_ms)

    with ThreadPoolExecutor(2) as pool, transaction(postgres_url) as first:
        assert join_hours(first, at_ms)
        second = pool.submit(join)
        wait_for_a_waiting_one(postgres_url)
        first.commit()
        assert not second.result(timeout=30)
    with transaction(postgres_url) as connection:
        assert [tuple(row) for row in connection.execute(select(usage_hours.c.hour_ms, usage_hours.c.turns))] == [
            (0, 1)
        ]


def test_baselines_are_scaled_by_how_well_predictions_met_the_bills(sqlite_url: str) -> None:
    with transaction(sqlite_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        turn(connection, 0, "small", 50, NOW_MS - HOUR_MS)
        turn(connection, 1, "large", 500, NOW_MS - HOUR_MS)
        advance(connection, NOW_MS)
        # Predicted for what answered: 100 + 1,000; billed: 550, so bills were half of the predictions.
        chosen = connection.execute(select(baseline_hours).where(baseline_hours.c.model == CHOSEN)).mappings().one()
        assert (chosen["predicted_nanousd"], chosen["billed_nanousd"]) == (1_100, 550)
        large, small = queries.baselines(connection, queries.last_days(1, NOW_MS, "t"))
        assert (large.model, large.estimated_nanousd, large.saved_nanousd) == ("large", 1_000, 450)
        assert (small.model, small.estimated_nanousd, small.saved_nanousd) == ("small", 100, -450)
        assert small.saved_share == -4.5
        assert queries.baselines(connection, queries.last_days(1, NOW_MS, "other")) == []
        judge = {"hour_ms": NOW_MS - NOW_MS % HOUR_MS, "tenant_id": JUDGE_TENANT, "model": "small", "turns": 1}
        connection.execute(insert(usage_hours).values(**judge, spent_nanousd=40))
        charged, _ = queries.baselines(connection, queries.last_days(1, NOW_MS, None))
        assert (charged.estimated_nanousd, charged.saved_nanousd) == (1_000, 410)


def test_the_efforts_of_a_model_are_added_up_and_are_baselines_of_their_own(sqlite_url: str) -> None:
    levels = [
        {"model": f"think#{effort}", "effort": effort, "cost_nano_usd": cost, "quality": 0.5}
        for effort, cost in (("low", 100), ("high", 300))
    ]
    with transaction(sqlite_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", created_at_ms=0))
        for number, effort in enumerate(("low", "high")):
            turn(connection, number, f"think#{effort}", 50, NOW_MS - HOUR_MS, candidates=json.dumps(levels))
        entry(connection, 1, "overage", 7, NOW_MS - HOUR_MS)
        advance(connection, NOW_MS)
        period = queries.last_days(1, NOW_MS, None)
        assert queries.spend_by_model(queries.usage(connection, period, HOUR_MS)) == [("think", 107, 2)]
        assert {row.model for row in queries.baselines(connection, period)} == {
            "think at low effort", "think at high effort",
        }  # fmt: skip
        chosen = connection.execute(select(baseline_hours).where(baseline_hours.c.model == CHOSEN)).mappings().one()
        assert (chosen["turns"], chosen["predicted_nanousd"]) == (2, 400)
