from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from policy.exploration import GREEDY, Exploration, Price, action_probabilities, draw, price
from policy.mdp import PolicyFault
from policy.rules import Strongest
from tests.policy.observations import candidate, observation


def test_near_ties_share_the_floor_by_hand() -> None:
    # The third is worse by .4, .38 beyond the tolerance: exp(-.38 / .05) = .0005 of a near-tie's share.
    found = action_probabilities(np.array([0.5, 0.49, 0.1]), np.ones(3, bool), Exploration(floor=0.1, tolerance=0.02))
    assert found == pytest.approx([0.95, 0.05, 0.0], abs=5e-5)
    assert found[2] == pytest.approx(0.1 * np.exp(-7.6) / (2 + np.exp(-7.6)), rel=1e-4)


def test_what_is_worse_is_tried_more_rarely_by_hand() -> None:
    exploration = Exploration(floor=0.1, tolerance=0.01, temperature=0.1)
    found = action_probabilities(np.array([0.5, 0.4]), np.ones(2, bool), exploration)
    other = 0.1 * np.exp(-0.9) / (1 + np.exp(-0.9))
    assert found == pytest.approx([1 - other, other])


def test_a_near_tie_takes_no_one_else_s_chance() -> None:
    """Support: with a twin of the best in the catalogue a third candidate is still tried."""
    scores, allowed = np.array([0.5, 0.5, 0.4]), np.ones(3, bool)
    assert action_probabilities(scores, allowed, Exploration(floor=0.1))[2] > 1e-3


def test_what_a_quota_lacks_is_tried_however_far_behind_it_is_by_hand() -> None:
    # Floor .1: the best has .9 - .1 * .5, and half of the floor's as much again goes to b and c as 1 to 4.
    exploration = Exploration(floor=0.1, tolerance=0.0, temperature=0.01)
    found = action_probabilities(np.array([1.0, 0.0, 0.0]), np.ones(3, bool), exploration, (0.0, 0.125, 0.5))
    assert found == pytest.approx([0.95, 0.01, 0.04], abs=1e-6)
    masked = action_probabilities(
        np.array([1.0, 0.0, 0.0]), np.array([True, True, False]), exploration, (0.0, 0.5, 1.0)
    )
    assert masked == pytest.approx([0.95, 0.05, 0.0], abs=1e-6), "what may not serve takes no share"


def test_a_quota_adds_nothing_to_a_greedy_draw_and_no_probability_leaves_0_to_1() -> None:
    scores, allowed = np.array([1.0, 0.0]), np.ones(2, bool)
    assert action_probabilities(scores, allowed, GREEDY, (1.0, 1.0)).tolist() == [1.0, 0.0]
    assert action_probabilities(scores, allowed, Exploration(floor=1.0, tolerance=2.0), (1.0, 1.0)).tolist() == [
        0.5,
        0.5,
    ]
    full = action_probabilities(scores, allowed, Exploration(floor=0.5, tolerance=0.0, temperature=0.01), (0.0, 1.0))
    assert full == pytest.approx([0.5, 0.5])


def test_a_decision_draws_from_what_it_says_with_a_quota() -> None:
    seen = replace(observation([candidate("a", prior=0.9), candidate("b", prior=0.1)]), wanted=(0.0, 1.0))
    policy = Strongest(exploration=Exploration(floor=0.1, temperature=0.01))
    best, other = policy.decide(seen, 0.0), policy.decide(seen, 0.95)
    assert best.probabilities == pytest.approx([0.9, 0.1], abs=1e-6)
    assert (other.action, other.reason) == (1, "explore")
    assert other.propensity == pytest.approx(0.1, abs=1e-6)


def test_the_price_of_exploring_by_hand() -> None:
    probabilities = np.array([0.9, 0.04, 0.06], np.float32)
    paid = price(probabilities, 0, [0.002, 0.012, 0.001], np.array([0.8, 0.9, 0.3]))
    assert paid.extra_usd == pytest.approx(0.04 * 0.010)  # the cheaper third refunds nothing
    assert paid.quality == pytest.approx(0.06 * 0.5 - 0.04 * 0.1)
    assert price(np.array([0.0, 1.0], np.float32), 1, [1.0, 2.0], np.array([0.1, 0.2])) == Price(0.0, 0.0)
    unknown = np.array([np.nan, np.nan, np.nan])
    assert price(probabilities, 0, [0.0, 0.0, 0.0], unknown) == Price(0.0, 0.0)


@pytest.mark.parametrize("floor", [0.02, 0.34, 0.5])
def test_what_a_quota_makes_more_probable_than_the_best_is_still_charged(floor: float) -> None:
    seen = replace(
        observation([candidate("a", 0.001, 0.9), candidate("b", 0.001, 0.9), candidate("c", 0.5, 0.2)]),
        wanted=(0.0, 0.0, 1.0),
    )
    made = Strongest(exploration=Exploration(floor=floor)).decide(seen, 0.999)
    chance, mean = float(made.probabilities[2]), seen.means_usd
    assert (made.action, made.best) == (2, 0)
    paid = price(made.probabilities, made.best, mean, np.array([0.9, 0.9, 0.2]))
    assert paid.extra_usd == pytest.approx(chance * (mean[2] - mean[0]))
    assert paid.quality == pytest.approx(chance * 0.7, rel=1e-5)


def test_a_turn_that_opted_out_takes_the_best_with_probability_one() -> None:
    seen = observation([candidate("a", prior=0.8), candidate("b", prior=0.8)])
    policy = Strongest(exploration=Exploration(floor=0.5))
    assert policy.decide(seen, 0.0).propensity == pytest.approx(0.75)
    for uniform in (0.0, 0.5, 0.999):
        decision = policy.decide(replace(seen, explore=False), uniform)
        assert (decision.action, decision.propensity, decision.reason) == (0, 1.0, "policy")


def test_greedy_takes_the_first_of_equals_and_nothing_masked_is_ever_drawn() -> None:
    scores = np.array([9.0, 0.5, 0.5])
    mask = np.array([False, True, True])
    assert action_probabilities(scores, mask, GREEDY).tolist() == [0.0, 1.0, 0.0]
    explored = action_probabilities(scores, mask, Exploration(floor=1.0))
    assert explored.tolist() == [0.0, 0.5, 0.5]
    assert {draw(explored, u) for u in np.linspace(0, 0.999999, 101)} == {1, 2}


def test_a_masked_score_that_is_not_finite_is_no_fault_and_an_allowed_one_is() -> None:
    scores = np.array([np.nan, 0.5])
    assert action_probabilities(scores, np.array([False, True]), GREEDY).tolist() == [0.0, 1.0]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(PolicyFault, match="finite"):
            action_probabilities(np.array([bad, 0.5]), np.array([True, True]), GREEDY)
    with pytest.raises(PolicyFault, match="no candidate"):
        action_probabilities(scores, np.array([False, False]), GREEDY)


def test_draws_come_as_often_as_their_probability_says() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.array([0.0, 0.2, 0.0, 0.75, 0.05], np.float32)
    drawn = np.bincount([draw(probabilities, float(u)) for u in rng.random(20_000)], minlength=5) / 20_000
    assert drawn == pytest.approx(probabilities, abs=0.01)
    assert drawn[0] == drawn[2] == 0.0


def test_the_edges_of_the_uniform_draw_stay_inside() -> None:
    probabilities = np.array([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0], np.float32)
    assert draw(probabilities, 0.0) == 1
    assert draw(probabilities, np.nextafter(1.0, 0.0)) == 3
    for outside in (1.0, -1e-9, float("nan")):
        with pytest.raises(PolicyFault, match="uniform"):
            draw(probabilities, outside)


@pytest.mark.parametrize("settings", [{"floor": -0.1}, {"floor": 1.1}, {"temperature": 0.0}, {"tolerance": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Exploration(**settings)
