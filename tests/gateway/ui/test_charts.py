"""Data of the charts and of the table of costs."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.decisions.rollups import HOUR_MS
from gateway.ui.charts import LEAST_STEPS, burn_down, candidate_costs, spend_series
from gateway.ui.queries import Period


def turn(number: int, model: str, before: int, after: int | None, **costs: int | None) -> dict[str, Any]:
    return {
        "turn": number, "model": model, "effort": None, "budget_before_nano_usd": before,
        "budget_after_nano_usd": after,
        "candidates": [
            {"model": name, "effort": None, "feasible": cost is not None, "cost_nano_usd": cost or 0,
             "why_not": "" if cost is not None else "no image input"}
            for name, cost in costs.items()
        ],
    }  # fmt: skip


TURNS = [
    turn(0, "large", 10**9, 6 * 10**8, large=400, small=20),
    turn(1, "small", 6 * 10**8, None, large=None, small=30),
]


def test_costs_have_a_column_for_each_candidate_and_a_total_where_it_could_answer_every_turn() -> None:
    found = candidate_costs(TURNS)
    assert found.names == ["small", "large"]
    assert [(row["turn"], row["chosen"], row["nanousd"]) for row in found.rows] == [
        (0, 1, [20, 400]),
        (1, 0, [30, None]),
    ]
    assert found.totals == [50, None]


def test_the_remaining_budget_begins_before_the_first_turn_and_goes_on_as_forecast() -> None:
    assert burn_down(TURNS, {"available": False}, 0)["data"] == [[0, 1], [1.0, 0.6]]
    forecast = {
        "available": True, "turns_to_go": {"p50": 3}, "cost_to_go": {"p50_nano_usd": 10**8, "p90_nano_usd": 7 * 10**8},
    }  # fmt: skip
    numbers, left, half, most = burn_down(TURNS, forecast, 6 * 10**8)["data"]
    assert (numbers, left) == ([0, 1, 4], [1.0, 0.6, None])
    assert (half, [round(value, 9) if value is not None else None for value in most]) == (
        [None, 0.6, 0.5],
        [None, 0.6, -0.1],
    )


@pytest.mark.parametrize(("spent_at", "begins_at"), [(160, 168 - LEAST_STEPS), (100, 99), (0, 0)])
def test_the_spend_is_drawn_from_the_first_on_and_not_over_empty_days_before(spent_at: int, begins_at: int) -> None:
    rows = [{"model": "small", "at_ms": spent_at * HOUR_MS, "spent_nanousd": 2 * 10**9, "turns": 3}]
    chart = spend_series(rows, Period(0, 168 * HOUR_MS, None), HOUR_MS)
    hours = [second // 3600 for second in chart["data"][0]]
    assert hours == list(range(begins_at, 168))
    assert {hour: usd for hour, usd in zip(hours, chart["data"][1], strict=True) if usd} == {spent_at: 2.0}
