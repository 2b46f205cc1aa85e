"""The report on a log small enough to work out by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, insert, update

from gateway.database.tables import (
    decisions,
    feedback,
    ledger_entries,
    metadata,
    refused_turns,
    sessions,
    tenants,
)
from gateway.decisions.report import report
from gateway.decisions.report_page import report_page
from gateway.ui.insights import read_insight


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as opened:
        opened.execute(insert(tenants).values(tenant_id="t", name="acme", granted_nanousd=1000, created_at_ms=0))
        yield opened
    engine.dispose()


def candidate(model: str, cost: int, quality: float | None = None) -> dict[str, Any]:
    return {"model": model, "cost_nano_usd": cost, "quality": quality}


def turn(
    connection: Connection, session: str, number: int, model: str, cost: int, candidates: list[dict[str, Any]],
    *, remaining: int = 10_000, at_ms: int = 5, score: float | None = None,
) -> None:  # fmt: skip
    decision_id = f"dec_{session}_{number}"
    connection.execute(
        insert(decisions).values(
            decision_id=decision_id, tenant_id="t", session_id=session, turn=number, requested_model="auto",
            feature_version=1, features=b"", candidate_features=b"", candidates=json.dumps(candidates),
            lambda_per_usd=1.0, session_budget_nanousd=100, remaining_before_nanousd=remaining + cost,
            remaining_after_nanousd=remaining, model=model, action=0, propensity=1.0, uniform=0.5, policy_id="rule",
            reason="policy", status="completed", reserved_nanousd=cost, cost_nanousd=cost, usage_source="reported",
            created_at_ms=at_ms,
        )
    )  # fmt: skip
    connection.execute(
        insert(ledger_entries).values(
            kind="settle", scope="turn", amount_nanousd=cost, spent_delta_nanousd=cost, tenant_id="t",
            session_id=session, hold_id=f"hold_{decision_id}", created_at_ms=at_ms,
        )
    )  # fmt: skip
    if number == 0:
        connection.execute(
            insert(sessions).values(tenant_id="t", session_id=session, created_at_ms=at_ms, updated_at_ms=at_ms)
        )
    if score is not None:
        connection.execute(
            insert(feedback).values(
                feedback_id=f"fb_{decision_id}", tenant_id="t", session_id=session, decision_id=decision_id,
                source="s", name="n", score=score, created_at_ms=at_ms,
            )
        )  # fmt: skip


def test_a_baseline_is_scaled_by_how_well_predictions_met_the_bills(connection: Connection) -> None:
    # Predicted for what answered: 100 + 400 = 500; billed: 50 + 200 = 250; so bills were half of the predictions.
    turn(connection, "s1", 0, "small", 50, [candidate("small", 100, 0.6), candidate("large", 1000, 0.9)], score=1.0)
    turn(connection, "s1", 1, "large", 200, [candidate("small", 60, 0.4), candidate("large", 400, 0.8)], score=0.5)
    found = report(connection)
    assert (found["turns"], found["spent_nano_usd"], found["sessions"]) == (2, 250, 1)
    large, small = found["baselines"]
    # Always large: (1000 + 400) / 2 = 700, so 450 were saved; always small: (100 + 60) / 2 = 80, 170 more were spent.
    assert (large["always"], large["estimated_nano_usd"], large["saved_nano_usd"]) == ("large", 700, 450)
    assert large["saved_share"] == pytest.approx(450 / 700)
    assert large["predicted_quality"] == pytest.approx(0.85)
    assert (small["always"], small["estimated_nano_usd"], small["saved_nano_usd"]) == ("small", 80, -170)
    assert [(row["model"], row["turns"], row["spent_nano_usd"], row["mean_score"]) for row in found["models"]] == [
        ("large", 1, 200, 0.5),
        ("small", 1, 50, 1.0),
    ]
    assert found["models"][0]["spent_usd"] == "0.0000002"


def test_a_turn_that_a_model_could_not_have_served_keeps_its_cost(connection: Connection) -> None:
    turn(connection, "s1", 0, "small", 100, [candidate("small", 100), candidate("large", 900)])
    turn(connection, "s1", 1, "small", 100, [candidate("small", 100)])
    large = next(row for row in report(connection)["baselines"] if row["always"] == "large")
    assert (large["estimated_nano_usd"], large["turns_not_comparable"]) == (1000, 1)


def test_the_order_of_the_log_changes_no_baseline(connection: Connection) -> None:
    """A model that first appears in a later turn keeps the cost of the earlier ones too."""
    turn(connection, "s1", 0, "small", 100, [candidate("small", 100)])
    turn(connection, "s1", 1, "small", 100, [candidate("small", 100), candidate("large", 900)])
    large = next(row for row in report(connection)["baselines"] if row["always"] == "large")
    assert (large["estimated_nano_usd"], large["turns_not_comparable"]) == (1000, 1)


def refuse(connection: Connection, session: str, turns: int, at_ms: int, code: str = "session_budget_exceeded") -> None:
    connection.execute(
        insert(refused_turns).values(
            tenant_id="t", session_id=session, code=code, turns=turns, first_at_ms=at_ms, last_at_ms=at_ms
        )
    )


def test_a_session_with_a_refused_turn_ran_out_of_money_and_one_with_little_left_did_not(
    connection: Connection,
) -> None:
    both = [candidate("small", 100), candidate("large", 900)]
    turn(connection, "poor", 0, "small", 100, both, remaining=90)
    turn(connection, "done", 0, "small", 100, both, remaining=90)
    refuse(connection, "poor", 3, 50)
    refuse(connection, "poor", 1, 60, "tenant_budget_exceeded")
    refuse(connection, "never served", 1, 10)
    refuse(connection, "", 7, 10)  # of sessions without a row
    found = report(connection)
    assert (found["bankrupt_sessions"], found["refused_turns"], found["sessions_with_turns"]) == (2, 12, 2)
    assert report(connection, since_ms=40)["bankrupt_sessions"] == 1
    assert report(connection, tenant_id="another")["bankrupt_sessions"] == 0


def test_what_a_pinned_model_answered_is_no_saving_and_the_gateways_own_turns_are_charged(
    connection: Connection,
) -> None:
    both = [candidate("small", 100, 0.6), candidate("large", 1000, 0.9)]
    turn(connection, "s1", 0, "small", 100, both)
    turn(connection, "s2", 0, "small", 100, both)
    turn(connection, "judged", 0, "small", 30, both)
    turn(connection, "second:s1", 0, "large", 200, both)
    connection.execute(update(decisions).where(decisions.c.session_id == "s2").values(reason="pinned"))
    connection.execute(update(decisions).where(decisions.c.session_id == "judged").values(origin="judge"))
    second = decisions.c.session_id == "second:s1"
    connection.execute(update(decisions).where(second).values(origin="second"))
    found = report(connection)
    assert (found["turns"], found["routed_turns"], found["pinned_turns"]) == (2, 1, 1)
    strongest = next(row for row in found["rivals"] if row["rival"] == "always the strongest")
    assert (strongest["model"], strongest["estimated_nano_usd"], found["judge_nano_usd"]) == ("large", 1000, 30)
    assert found["second_answers_nano_usd"] == 200
    assert strongest["saved_nano_usd"] == 1000 - 100 - 30 - 200
    # The dashboard says the same.
    shown = read_insight(connection, 1, 10, None).savings
    assert (shown["own_turns_nano_usd"], shown["rivals"]) == (230, found["rivals"])


def test_since_leaves_out_what_was_before(connection: Connection) -> None:
    turn(connection, "old", 0, "small", 100, [candidate("small", 100)], at_ms=5)
    turn(connection, "new", 0, "small", 30, [candidate("small", 30)], at_ms=50)
    found = report(connection, tenant_id="t", since_ms=40)
    assert (found["turns"], found["spent_nano_usd"], found["sessions"]) == (1, 30, 1)
    assert report(connection, tenant_id="somebody else")["turns"] == 0


def test_the_efforts_of_a_model_are_one_model_that_answered_and_baselines_of_their_own(connection: Connection) -> None:
    levels = [
        {**candidate("think#low", 10), "effort": "low"}, {**candidate("think#high", 40), "effort": "high"},
        candidate("other#low", 20),
    ]  # fmt: skip
    turn(connection, "s", 0, "think#low", 10, levels)
    turn(connection, "s", 1, "think#high", 40, levels)
    turn(connection, "s", 2, "other#low", 20, levels)
    found = report(connection)
    assert [(row["model"], row["turns"], row["spent_nano_usd"]) for row in found["models"]] == [
        ("think", 2, 50), ("other#low", 1, 20),
    ]  # fmt: skip
    assert [(row["always"], row["estimated_nano_usd"]) for row in found["baselines"]] == [
        ("think at high effort", 120), ("other#low", 60), ("think at low effort", 30),
    ]  # fmt: skip


def test_the_page_has_every_part_with_its_units_and_loads_nothing(connection: Connection) -> None:
    both = [candidate("small", 100_000, 0.6), candidate("large", 1_000_000, 0.9)]
    for number in range(30):
        turn(connection, f"s{number}", 0, "small", 90_000, both, at_ms=5 + number * 86_400_000, score=0.7)
    refuse(connection, "s1", 2, 9)
    shown = report_page(report(connection), tenant="all tenants", at_ms=10**12)
    for expected in (
        "1 session (3.3%)", "2 turns refused", "always the strongest: large", "tuned lambda", "95 %: +",
        "US cents per turn", "Spent by day (UTC), USD", "budget, USD",
    ):  # fmt: skip
        assert expected in shown, expected
    assert "<script" not in shown
    assert "nothing to compare" in report_page(report(connection, since_ms=10**13), tenant="x", at_ms=10**12)
