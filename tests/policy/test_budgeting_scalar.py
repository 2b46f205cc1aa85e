"""The scalar form of a decision agrees with the arrays of `budgeting`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from policy import budgeting
from policy import budgeting_scalar as scalar
from policy.features import expected_cost_usd, paused_long
from policy.mdp import Observation, mean_cost_usd
from tests.policy.observations import random_observation


def observations(count: int = 300) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [random_observation(rng, most_candidates=8) for _ in range(count)]


def arrays(view: Observation) -> tuple[np.ndarray, np.ndarray]:
    quantiles = np.array([c.cost_quantiles_usd for c in view.candidates])
    return quantiles, np.asarray(expected_cost_usd(quantiles))


def test_a_mean_is_that_of_the_arrays() -> None:
    for view in observations(20):
        quantiles, means = arrays(view)
        assert view.means_usd == pytest.approx(means, rel=1e-6)
        assert mean_cost_usd(tuple(quantiles[0])) == pytest.approx(means[0], rel=1e-6)


def cached_costs(view: Observation) -> tuple[list[tuple[float, float]], tuple[np.ndarray, np.ndarray]]:
    """Cold and warm costs by numbers and by arrays."""
    paused = paused_long(view.session)
    rows = [(c.input_tokens, c.warm_tokens, c.served_last) for c in view.candidates]
    prices = [(c.input_usd_per_mtok, c.cached_input_usd_per_mtok) for c in view.candidates]
    kept = [scalar.kept_tokens(*row, paused) for row in rows]
    found = [
        scalar.cache_costs(mean, row[1], held, *price)
        for mean, row, held, price in zip(view.means_usd, rows, kept, prices, strict=True)
    ]
    tokens, warm, served = np.array(rows).T
    expected_kept = budgeting.kept_tokens(tokens, warm, served > 0, paused)
    assert expected_kept.tolist() == kept
    return found, budgeting.cache_costs(view.means_usd, warm, expected_kept, *np.array(prices).T)


@pytest.mark.parametrize("shared", [False, True])
def test_the_shield_keeps_the_same_candidates(shared: bool) -> None:
    rng = np.random.default_rng(1)
    kept = set()
    for view in observations():
        quantiles, _ = arrays(view)
        caches = (np.arange(len(quantiles)) // 2).tolist() if shared else None
        alike = budgeting.sharing_caches(np.array(caches)) if shared else None
        pairs, both = cached_costs(view)
        left, turns = view.session.remaining_usd, float(rng.uniform(1.0, 9.0))
        expected = budgeting.shield(quantiles, view.mask, left, turns, 0.8, both, alike)
        told = [c.cost_quantiles_usd for c in view.candidates]
        found = scalar.shield(told, view.means_usd, pairs, view.mask.tolist(), left, turns, 0.8, caches)
        assert found == expected.tolist()
        kept.add((sum(found) == 1, sum(found) == view.mask.sum()))
    assert len(kept) > 2  # all of the guard's, some of them, one


@pytest.mark.parametrize(("cache", "shared"), [(False, False), (True, False), (True, True)])
def test_the_price_of_money_the_plan_and_the_scores_are_the_same(cache: bool, shared: bool) -> None:
    """Over sessions that have enough, that must choose, and whose highest price still overspends."""
    rng = np.random.default_rng(2)
    at_floor = at_most = 0
    for view in observations():
        _, means = arrays(view)
        cold, warm = means, means
        if cache:
            pairs, (cold, warm) = cached_costs(view)
            assert np.array(pairs) == pytest.approx(np.stack([cold, warm], axis=1))
        now, usual = rng.random((2, len(means)))
        turns, left = float(rng.uniform(1.0, 12.0)), float(10 ** rng.uniform(-5, 1))
        floor = view.lambda_per_usd
        caches = (np.arange(len(means)) // 2).tolist() if shared else None
        alike = budgeting.sharing_caches(np.array(caches)) if shared else None
        expected = budgeting.resolve(now, usual, means, cold, warm, view.mask, left, turns, floor, 0.1, alike)
        session = scalar.Session(
            usual.tolist(), means.tolist(), cold.tolist(), warm.tolist(), view.mask.tolist(), turns - 1.0, 0.1, caches
        )
        found = scalar.resolve(session, now.tolist(), left, floor)
        assert found.lambda_per_usd == pytest.approx(float(expected.lambda_per_usd), rel=1e-6)
        assert np.array(found.scores)[view.mask] == pytest.approx(expected.scores[view.mask], rel=1e-6, abs=1e-6)
        assert np.array(found.later.spend_usd)[view.mask] == pytest.approx(
            expected.plan.spend_usd[view.mask], rel=1e-6, abs=1e-9
        )
        at_floor += found.lambda_per_usd == floor
        at_most += session.total_usd(found.lambda_per_usd, found.later) > left * (1 + 1e-6)
    assert 50 < at_floor < 250
    assert at_most > 10


def test_what_is_spent_falls_as_the_price_rises() -> None:
    """The halving rests on it."""
    for view in observations(60):
        _, means = arrays(view)
        cold, warm = means * 1.2, means * 0.7
        quality = [c.quality_prior for c in view.candidates]
        session = scalar.Session(quality, means.tolist(), cold.tolist(), warm.tolist(), view.mask.tolist(), 4.5, 0.1)
        spent = [session.total_usd(price, session.later(price)) for price in np.geomspace(0.1, 1e6, 20)]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(spent))


def test_where_one_turn_is_left_nothing_comes_later() -> None:
    session = scalar.Session([0.5, 0.9], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [True, True], 0.0, 0.1)
    found = scalar.resolve(session, [0.4, 0.95], remaining_usd=10.0, lambda_floor_per_usd=0.1)
    assert found.later == scalar.ScalarPlan([0.0, 0.0], [0.0, 0.0])
    assert found.scores == pytest.approx([0.4 - 0.1, 0.95 - 0.2])
