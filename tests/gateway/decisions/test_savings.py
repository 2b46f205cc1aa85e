"""Savings against rivals on turns whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gateway.decisions.savings import LAMBDAS, RoutedTurn, Savings, SavingsTally, could_serve


def candidate(model: str, cost: int, quality: float | None, **more: Any) -> dict[str, Any]:
    return {"model": model, "cost_nano_usd": cost, "quality": quality} | more


def turn(session: int, model: str, billed: int, candidates: list[dict[str, Any]], **more: Any) -> RoutedTurn:
    fields: dict[str, Any] = {"propensity": 1.0, "score": None}
    return RoutedTurn("t", f"s{session}", model, billed, candidates=candidates, **(fields | more))


def result(turns: list[RoutedTurn]) -> Savings:
    tally = SavingsTally()
    tally.add(turns)
    return tally.result()


PAIR = [candidate("small", 100, 0.5), candidate("large", 1_000, 0.9)]


def test_rivals_are_named_by_quality_and_cost() -> None:
    middle = candidate("middle", 300, 0.8)
    found = result([turn(n, "large" if n % 2 else "small", 1_000 if n % 2 else 100, [*PAIR, middle]) for n in range(8)])
    assert (found.strongest, found.best_fixed, found.cheapest) == ("large", "middle", "small")
    assert {rival.name: rival.estimated_nanousd for rival in found.models} == {
        "large": 8_000, "middle": 2_400, "small": 800,
    }  # fmt: skip
    assert [rival.saved.value for rival in found.models] == [8_000 - 4_400, 2_400 - 4_400, 800 - 4_400]


def test_without_a_model_that_costs_as_little_as_routing_the_best_fixed_is_the_cheapest() -> None:
    found = result([turn(0, "small", 100, [candidate("small", 100, 0.5), candidate("large", 1_000, 0.9)])])
    assert (found.best_fixed, found.cheapest) == ("small", "small")


def test_the_tuned_rule_reaches_the_same_quality_at_the_least_cost() -> None:
    # Routing paid for `large` where it adds little and not where it adds much: a tuned rule does the opposite.
    much = [candidate("small", 100, 0.2), candidate("large", 1_000, 0.9)]
    little = [candidate("small", 100, 0.8), candidate("large", 1_000, 0.85)]
    turns = [turn(n, "small", 100, much) for n in range(20)] + [turn(20 + n, "large", 1_000, little) for n in range(20)]
    found = result(turns)
    assert found.tuned is not None
    assert found.tuned_lambda_per_usd is not None
    assert 0 < found.tuned.estimated_nanousd < found.billed_nanousd
    assert found.tuned.saved.value < 0  # this routing cost more than the rule would have
    assert found.tuned.saved.high is not None


def test_an_interval_needs_sessions_and_covers_the_truth_as_often_as_it_says() -> None:
    assert result([turn(0, "small", 100, PAIR)] * 50).models[0].saved.low is None
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        turns = []
        for session in range(300):
            many = int(generator.integers(1, 4))
            turns += [turn(session, "small", int(generator.gamma(2.0, 50.0)) + 1, PAIR) for _ in range(many)]
        saved = result(turns).models[0].saved_share
        assert saved.low is not None
        assert saved.high is not None
        covered += saved.low <= 0.9 <= saved.high  # bills scale both models: a tenth, whatever they are
    assert covered >= 50


def test_the_front_corrects_predictions_by_what_the_log_shows() -> None:
    """`large` is predicted at 0.9 and scores 0.6; the draw was even, so the point at lambda 0 comes down to 0.6."""
    generator = np.random.default_rng(5)
    turns = []
    for session in range(800):
        large = generator.random() < 0.5
        score = 0.6 if large else 0.5
        turns.append(turn(session, "large" if large else "small", 1_000 if large else 100, PAIR, propensity=0.5,
                          score=score))  # fmt: skip
    found = result(turns)
    best = found.front[0]
    assert best.quality.value == pytest.approx(0.6, abs=0.05)
    assert best.quality.low is not None
    assert best.quality.high is not None
    assert best.quality.low < best.quality.value < best.quality.high < 0.7
    cheap = found.front[-1]
    assert cheap.cost_usd.value == pytest.approx(1e-7)
    assert cheap.quality.value == pytest.approx(0.5)
    assert found.today is not None
    assert found.today.quality.value == pytest.approx(0.55, abs=0.02)
    assert len(found.front) == len(LAMBDAS)


def test_chunks_add_up_to_the_whole() -> None:
    turns = [turn(n, "small", 90 + n, PAIR, score=0.4) for n in range(40)]
    tally = SavingsTally()
    for start in range(0, 40, 7):
        tally.add(turns[start : start + 7])
    assert tally.result().models[0].saved.value == pytest.approx(result(turns).models[0].saved.value)


def test_a_log_without_predictions_or_turns_has_no_rivals() -> None:
    assert result([]).models == ()
    found = result([turn(0, "gone", 100, [])])
    assert (found.turns, found.models, found.tuned, found.front) == (1, (), None, ())
    unrated = result([turn(0, "small", 100, [candidate("small", 100, None)])])
    assert (unrated.quality, unrated.strongest, unrated.cheapest) == (None, None, "small")
    assert math.isclose(unrated.models[0].saved.value, 0.0)


@pytest.mark.parametrize(
    ("shown", "serves"),
    [
        ({}, True), ({"feasible": True}, True), ({"feasible": False, "why_not": "not affordable"}, True),
        ({"feasible": False, "why_not": "lacks vision"}, False),
        ({"feasible": False, "why_not": "not the pinned model"}, False),
    ],
)  # fmt: skip
def test_a_model_that_only_money_kept_from_a_turn_could_have_served_it(shown: dict[str, Any], serves: bool) -> None:
    assert could_serve(candidate("m", 1, 0.5, **shown)) is serves
