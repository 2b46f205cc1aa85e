"""The tuned rules by hand, and that tuning takes what did best."""

from __future__ import annotations

import numpy as np
import pytest

from train.replay import baselines
from train.replay.baselines import Bank, Ends, Family, TunedRule, ends, make_bank, safest, tune
from train.replay.grid import front, middle
from train.replay.simulator import Played


def test_the_weakest_is_the_cheapest_and_the_strongest_the_costliest_of_the_best() -> None:
    assert ends(np.array([0.6, 0.9, 0.895, 0.7]), np.array([1.0, 5.0, 9.0, 20.0])) == Ends(weak=0, strong=2)


def test_of_models_that_cost_the_same_the_weakest_is_the_better_one() -> None:
    assert ends(np.array([0.3, 0.5, 0.9]), np.array([1.0, 1.0, 9.0])).weak == 1


def test_the_front_leaves_out_what_is_beaten_and_thins_evenly() -> None:
    assert front(np.array([0.5, 0.4, 0.8, 0.7]), np.array([1.0, 2.0, 3.0, 4.0])) == [0, 2]
    steps = np.arange(1.0, 12.0)
    assert front(steps / 12, steps, most=6) == [0, 2, 4, 6, 8, 10]


def test_the_middle_of_a_pair_is_the_costlier_and_of_four_the_third() -> None:
    assert middle(np.array([9.0, 1.0])) == 0
    assert middle(np.array([1.0, 4.0, 3.0, 2.0])) == 2


def test_the_bank_answers_with_the_price_at_which_so_much_is_spent() -> None:
    """Two prompts; the second model costs 1 more and gains .4 or .2: at prices under .2 both take it."""
    quality, cost = np.array([[0.5, 0.9], [0.5, 0.7]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    bank = make_bank(quality, cost, strong=1)
    low, between, high = (float(bank.price(np.array([spend]))[0]) for spend in (1.0, 1.5, 2.0))
    assert high < 0.2 < between < 0.4 < low
    assert bank.price(np.array([5.0])).tolist() == [0.0]


def test_a_bank_interpolates_between_its_prices() -> None:
    bank = Bank(np.array([0.0, 1.0]), np.array([4.0, 2.0]), np.array([1.0]))
    assert bank.price(np.array([3.0])).tolist() == pytest.approx([0.5])


def test_tuning_takes_the_best_and_of_equals_the_one_that_starves_fewer() -> None:
    def outcome(quality: float, starved: bool) -> Played:
        yes, no = np.ones((1, 1), np.bool_), np.zeros((1, 1), np.bool_)
        value = np.array([[quality]])
        return Played(yes, np.zeros((1, 1), np.int64), value, value, yes if starved else no, no)

    family = Family("toy", lambda x: baselines.fixed(int(x["model"])), {"model": (0.0, 1.0, 2.0)})
    outcomes = iter([outcome(0.5, False), outcome(0.7, True), outcome(0.7, False)])
    found, safe, _ = tune(family, lambda _: next(outcomes))
    assert (found.numbers, found.training_quality) == ({"model": 2.0}, 0.7)
    assert (safe.numbers, safe.starved_rate) == ({"model": 2.0}, 0.0)


def test_the_safest_is_the_best_of_those_that_starve_at_most_one_in_a_hundred() -> None:
    def rule(quality: float, starved_rate: float) -> TunedRule:
        return TunedRule("toy", baselines.fixed(0), {}, quality, starved_rate)

    bold, safe, dull = rule(0.9, 0.02), rule(0.7, 0.01), rule(0.6, 0.0)
    assert safest([bold, dull, safe]) is safe
    assert safest([rule(0.9, 0.3), bold]) is bold
