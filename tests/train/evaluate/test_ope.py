"""Every estimator against two sessions of two turns, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from train.evaluate import ope
from train.evaluate.ope import Logged

TOY = Logged(
    valid=np.ones((2, 2), np.bool_),
    ratio=np.array([[2.0, 0.5], [1.0, 1.0]]),
    reward=np.array([[1.0, 0.0], [0.0, 1.0]]),
    q=np.full((2, 2), 0.5),
    v=np.array([[0.6, 0.4], [0.6, 0.4]]),
)


def test_per_decision_is_multiplies_the_ratios_up_to_each_reward() -> None:
    # First session: 2 * 1 + (2 * .5) * 0; second: 1 * 0 + 1 * 1.
    assert ope.per_decision_is(TOY) == pytest.approx([2.0, 1.0])


def test_weighted_per_decision_is_normalises_the_weights_of_each_turn() -> None:
    # t = 0: weights 2 and 1 of 2 sessions, so 2 * 2/3 * 1; t = 1: weights 1 and 1.
    assert ope.per_decision_weighted_is(TOY) == pytest.approx([4 / 3, 1.0])


def test_weighted_is_counts_only_the_sessions_that_reach_a_turn() -> None:
    shorter = TOY._replace(valid=np.array([[True, True], [True, False]]))
    # t = 1 now has one session: its weight is normalised to 1, its reward is 0.
    assert ope.per_decision_weighted_is(shorter) == pytest.approx([4 / 3, 0.0])


def test_doubly_robust_adds_the_weighted_error_of_the_model() -> None:
    # First: .6 + 2 (1 - .5) + 2 * .4 + 1 (0 - .5); second: .6 - .5 + .4 + .5.
    assert ope.doubly_robust(TOY) == pytest.approx([1.9, 1.0])


def test_padding_says_nothing() -> None:
    noisy = Logged(*(np.concatenate([part, np.full((2, 1), 7.0)], axis=1) for part in TOY))._replace(
        valid=np.array([[True, True, False]] * 2)
    )
    for estimator in (ope.per_decision_is, ope.per_decision_weighted_is, ope.doubly_robust):
        assert estimator(noisy) == pytest.approx(estimator(TOY))


def test_effective_sample_size_is_kishs() -> None:
    assert ope.effective_sample_size(np.array([1.0, 1.0, 1.0, 1.0])) == pytest.approx(4.0)
    assert ope.effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)


def test_overlap_is_the_probability_on_actions_the_log_could_take() -> None:
    target = np.array([[[0.7, 0.3]]])
    assert ope.overlap(target, np.array([[[1.0, 0.0]]]), np.array([[True]])) == pytest.approx(0.7)


def test_bootstrap_of_equal_sessions_has_no_width() -> None:
    found = ope.bootstrap(np.full(50, 0.3), resamples=200, tail=0.05, seed=1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))


def test_bootstrap_matches_the_normal_interval_of_a_large_sample() -> None:
    values = np.random.default_rng(0).standard_normal(4000)
    found = ope.bootstrap(values, resamples=2000, tail=0.05, seed=1)
    assert found.low == pytest.approx(values.mean() - 1.645 * values.std() / np.sqrt(4000), abs=2e-3)


def test_bootstrap_with_weights_is_a_ratio_of_sums() -> None:
    found = ope.bootstrap(np.array([2.0, 6.0]), 100, 0.05, 0, weights=np.array([1.0, 3.0]))
    assert found.mean == pytest.approx(2.0)


def test_doubly_robust_corrects_a_wrong_model_and_is_unbiased() -> None:
    # Two actions of worth .2 and .8, logged 50/50; the policy always takes the second; the model says .5 to all.
    generator = np.random.default_rng(3)
    action = generator.integers(0, 2, (4000, 3))
    reward = (generator.random(action.shape) < np.where(action == 1, 0.8, 0.2)).astype(float)
    ratio = np.where(action == 1, 2.0, 0.0)
    half = np.full(action.shape, 0.5)
    logged = Logged(np.ones(action.shape, np.bool_), ratio, reward, half, half)
    assert ope.doubly_robust(logged).mean() == pytest.approx(2.4, abs=0.05)
    assert ope.per_decision_weighted_is(logged).mean() == pytest.approx(2.4, abs=0.08)
