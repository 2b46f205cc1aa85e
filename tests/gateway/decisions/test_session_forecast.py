"""Forecasts of a session's rest: hand-worked futures, and coverage on sessions that were kept back."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import insert

from gateway.database.database import transaction
from gateway.database.tables import decisions, sessions
from gateway.decisions.session_forecast import (
    MAX_REFERENCES,
    MIN_SESSIONS,
    PastTurn,
    futures,
    past_sessions,
    quantile,
    summarise,
)

LAMBDAS = {"best": 0.0, "cheap": 1_000.0}


def turn(cost: int) -> PastTurn:
    """Small costs 1 million at quality .5; large 10 million at quality .9."""
    return PastTurn(cost, ((0.5, 1_000_000), (0.9, 10_000_000)))


def test_a_future_is_what_came_after_the_turn_that_is_asked_about() -> None:
    past = [[turn(2), turn(4), turn(6)], [turn(2)]]
    (found,) = futures(past, 1, 2, LAMBDAS)
    assert (found.turns, found.cost_nanousd) == (2, 10)
    # best: .9 twice; cheap: .5 - 1000 * .001 = -.5 beats .9 - 1000 * .01 = -9.1.
    assert found.cost_at_nanousd == {"best": 20_000_000, "cheap": 2_000_000}


def test_a_session_that_spends_twice_as_much_scales_its_references_by_a_shrunk_share() -> None:
    # After 3 turns the weight is 3 / (3 + 3) = .5: twice the spend scales by the root of 2.
    past = [[turn(10), turn(10), turn(10), turn(100)]]
    (found,) = futures(past, 3, 60, {})
    assert found.cost_nanousd == 141


def test_the_newest_sessions_that_went_on_are_the_references() -> None:
    newest_first = [[turn(1)], *[[turn(1), turn(cost)] for cost in range(2 * MAX_REFERENCES)]]
    found = futures(newest_first, 1, 1, {})
    assert [future.cost_nanousd for future in found] == list(range(MAX_REFERENCES))


def test_quantiles_are_conformal() -> None:
    values = list(range(1, 10))
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99)] == [5, 9, 9]
    assert quantile([7], 0.5) == 7


def test_few_references_give_no_forecast_but_a_reason() -> None:
    found = summarise(futures([[turn(1), turn(1)]] * (MIN_SESSIONS - 1), 1, 1, {}), 10, 7)
    assert (found["available"], found["sessions_read"]) == (False, 7)
    assert f"{MIN_SESSIONS} are needed" in found["why_not"]


def test_the_share_that_finishes_counts_futures_within_what_is_left() -> None:
    past = [[turn(1), turn(cost)] for cost in range(1, 11)]
    found = summarise(futures(past, 1, 1, {}), 4, 10)
    assert found["finishes_within_budget"] == 0.4
    assert found["cost_to_go"]["p50_nano_usd"] == 6
    assert found["turns_to_go"] == {"p50": 1, "p90": 1, "p99": 1}


@pytest.mark.parametrize("asked_after", [0, 1, 3])
def test_p90_covers_nine_in_ten_of_the_sessions_kept_back(asked_after: int) -> None:
    """Sessions with a level of their own, turns with a heavy tail, lengths that vary."""
    source = random.Random(11)

    def draw() -> list[PastTurn]:
        level = source.lognormvariate(13.0, 0.5)
        return [turn(round(level * source.lognormvariate(0.0, 0.8))) for _ in range(source.randint(2, 12))]

    past = [draw() for _ in range(300)]
    covered = asked = 0
    for session in (draw() for _ in range(600)):
        if len(session) <= asked_after:
            continue
        spent = sum(each.cost_nanousd for each in session[:asked_after])
        found = summarise(futures(past, asked_after, spent, {}), 0, len(past))
        asked += 1
        covered += sum(each.cost_nanousd for each in session[asked_after:]) <= found["cost_to_go"]["p90_nano_usd"]
    assert 0.85 <= covered / asked <= 0.95


def test_past_sessions_are_read_newest_first_with_their_turns_in_order(database_url: str) -> None:
    ended_at_ms = {"a": 20, "b": 30, "c": 10, "running": 90}
    billed: list[tuple[str, int, int]] = [("b", 1, 7), ("a", 0, 1), ("b", 0, 6), ("c", 0, 3), ("running", 0, 9)]
    row: dict[str, Any] = {
        "tenant_id": "t", "requested_model": "auto", "feature_version": 1, "features": b"", "candidate_features": b"",
        "candidates": "[]", "lambda_per_usd": 1.0, "session_budget_nanousd": 1, "remaining_before_nanousd": 1,
        "model": "small", "action": 0, "propensity": 1.0, "uniform": 0.5, "policy_id": "rule", "reason": "policy",
        "reserved_nanousd": 1, "created_at_ms": 0,
    }  # fmt: skip
    with transaction(database_url) as connection:
        connection.execute(
            insert(sessions),
            [
                {"tenant_id": "t", "session_id": name, "turns": 1, "created_at_ms": 0, "updated_at_ms": ms}
                for name, ms in ended_at_ms.items()
            ],
        )
        connection.execute(
            insert(decisions),
            [
                row | {"decision_id": f"dec_{name}{at}", "session_id": name, "turn": at, "cost_nanousd": cost}
                for name, at, cost in billed
            ],
        )
        found = past_sessions(connection, "t", idle_before_ms=50)
    assert [(name, [each.cost_nanousd for each in turns]) for name, turns in found.items()] == [
        ("b", [6, 7]),
        ("a", [1]),
        ("c", [3]),
    ]
