"""The reward model: hand-worked ridge, cross-fitting, and shrinkage to nothing when nothing can be learned."""

from __future__ import annotations

import numpy as np
import pytest

from policy.kernel import KernelQuality
from policy.text import STATS_DIM, TEXT_DIM
from train.config import QualityConfig
from train.fit.reward_model import LEAST_OF_ROUTE, fit_quality, fit_space, moments, ridge, total


def test_ridge_by_hand() -> None:
    # (1 + 4 + 5) w = 2 + 8; and with more columns than rows, x' 5 / (5 + 5).
    assert ridge(np.array([[1.0], [2.0]]), np.array([2.0, 4.0]), 5.0) == pytest.approx([1.0])
    assert ridge(np.array([[1.0, 2.0]]), np.array([5.0]), 5.0) == pytest.approx([0.5, 1.0])


def world(rows: int, informative: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    states = generator.standard_normal((rows, 6))
    models = generator.integers(0, 2, rows)
    chance = np.where(models == 1, 0.9, np.where(states[:, 0] > 0, 0.1, 0.9)) if informative else np.full(rows, 0.5)
    return states, models, (generator.random(rows) < chance).astype(float), generator.integers(0, 5, rows)


def test_it_learns_which_turns_the_weak_model_fails() -> None:
    model, _ = fit_quality(*world(800, True), np.array([0.5, 0.5]), QualityConfig())
    hard, easy = model.predict(np.array([[1.5, 0, 0, 0, 0, 0], [-1.5, 0, 0, 0, 0, 0]]), np.zeros(2, np.int64))
    assert hard[0] < 0.3 < 0.75 < easy[0]
    assert hard[1] > 0.75


def test_noise_is_shrunk_to_the_means() -> None:
    model, out_of_fold = fit_quality(*world(400, False), np.array([0.5, 0.5]), QualityConfig())
    elsewhere = np.random.default_rng(1).standard_normal((50, 6))
    assert np.abs(model.predict(elsewhere, np.zeros(50, np.int64)) - model.means).max() < 0.1
    assert np.abs(out_of_fold - 0.5).mean() < 0.1


def test_a_model_never_seen_keeps_its_prior() -> None:
    states, models, scores, groups = world(200, True)
    model, _ = fit_quality(states, models, scores, groups, np.array([0.5, 0.5, 0.77]), QualityConfig())
    assert model.means[2] == pytest.approx(0.77)


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    states, models, scores, groups = world(150, True)
    priors, config = np.array([0.5, 0.5]), QualityConfig()
    heavy, _ = fit_quality(states, models, scores, groups, priors, config, np.full(150, 2.0))
    doubled = [np.concatenate([values, values]) for values in (states, models, scores, groups)]
    twice, _ = fit_quality(doubled[0], doubled[1], doubled[2], doubled[3], priors, config)
    seen = np.random.default_rng(2).standard_normal((20, 6))
    nowhere = np.zeros(20, np.int64)
    assert heavy.predict(seen, nowhere) == pytest.approx(twice.predict(seen, nowhere), abs=1e-6)
    assert heavy.rows.tolist() == [int((models == k).sum()) for k in (0, 1)]


def test_a_route_has_an_offset_that_few_turns_shrink_and_an_unknown_one_has_none() -> None:
    """On route 7 only the first model is right, on all others each is half of the time; route 8 was seen too rarely."""
    generator = np.random.default_rng(4)
    states, models = generator.standard_normal((600, 6)), generator.integers(0, 2, 600)
    route = np.repeat([7, 5, 0, 8], [300, 200, LEAST_OF_ROUTE * 5 - 1, 1])
    scores = np.where(route == 7, models == 0, generator.random(600) < 0.5).astype(float)
    groups = generator.integers(0, 5, 600)
    model, _ = fit_quality(states, models, scores, groups, np.array([0.5, 0.5]), QualityConfig(), route=route)
    assert model.routes.tolist() == [7, 5]
    of_7, of_5, of_none, unknown = model.predict(np.zeros((4, 6)), np.array([7, 5, 0, 99])).tolist()
    assert of_7[0] > 0.85 > 0.15 > of_7[1]
    assert abs(of_5[0] - of_5[1]) < 0.25
    assert unknown == of_none
    served = model.served(("a", "b"))
    deviations = served.deviations(np.zeros((3, 6), np.float32), np.array([7, 5, 99]))
    assert served.means + deviations[:, :2] == pytest.approx(np.array([of_7, of_5, unknown]), abs=1e-5)
    assert KernelQuality.deviation(served, np.zeros(6, np.float32), 7) == pytest.approx(deviations[0], abs=1e-5)
    assert KernelQuality.deviation(served, np.zeros(6, np.float32), 99) == pytest.approx(deviations[2], abs=1e-5)


def test_without_any_text_the_rest_still_counts() -> None:
    """The first night after a change of the text has no turn with the new one, and serves turns that have one."""
    states = np.column_stack([np.zeros((200, TEXT_DIM)), np.random.default_rng(1).standard_normal((200, STATS_DIM))])
    space = fit_space(states, 50, 0.7, 0.4)
    with_text = states + np.r_[np.ones(TEXT_DIM), np.zeros(STATS_DIM)]
    assert space.features(with_text) == pytest.approx(space.features(states))
    assert space.features(states).std(axis=0).max() > 0.05


def test_a_mean_weighs_its_rows() -> None:
    """Prior .5 counts for 4, eight ones of weight a half for 4: (4 x .5 + 4 x 1) / 8."""
    states = np.random.default_rng(3).standard_normal((8, 6))
    rows, zeros = np.ones(8), np.zeros(8, np.int64)
    model, _ = fit_quality(states, zeros, rows, zeros, np.array([0.5]), QualityConfig(), np.full(8, 0.5))
    assert model.means[0] == pytest.approx(0.75)


def test_out_of_fold_predictions_do_not_depend_on_the_rows_own_scores() -> None:
    states, models, scores, groups = world(120, True)
    config = QualityConfig(penalties=(10.0,))
    _, before = fit_quality(states, models, scores, groups, np.array([0.5, 0.5]), config)
    changed = scores.copy()
    changed[groups == 2] = 1 - changed[groups == 2]
    _, after = fit_quality(states, models, changed, groups, np.array([0.5, 0.5]), config)
    # Only the slopes, two numbers per model, may move what fold 2 is told about itself.
    ratio = (after - after.mean(0))[groups == 2][:, 1].std() / (before - before.mean(0))[groups == 2][:, 1].std()
    order = np.corrcoef(before[groups == 2][:, 0], after[groups == 2][:, 0])[0, 1]
    assert order > 0.99
    assert 0.0 <= ratio <= 2.0


def test_what_was_said_once_is_a_landmark_before_what_was_said_in_many_places() -> None:
    # Three texts in twenty places of sessions each: with room for five landmarks, each text has one.
    generator = np.random.default_rng(0)
    texts = generator.standard_normal((3, TEXT_DIM + STATS_DIM))
    places = generator.standard_normal((60, 4))
    states = np.column_stack([texts[np.arange(60) % 3], places])
    space = fit_space(states, 5, 0.7, 0.4)
    assert len(space.landmarks) == 5
    assert len(np.unique(np.round(space.landmarks[:, 0], 6))) == 3
    # Where nothing differs but the place, the places are compared.
    assert len(fit_space(np.column_stack([np.zeros((60, TEXT_DIM + STATS_DIM)), places]), 5, 0.7, 0.4).landmarks) == 5


def test_moments_of_all_folds_are_those_of_all_rows() -> None:
    generator = np.random.default_rng(3)
    x, scores, models = generator.normal(size=(30, 4)), generator.random(30), np.arange(30) % 2
    fold, weights = np.arange(30) % 3, generator.random(30)
    folds = [moments(x, models, scores, fold == i, 2, weights) for i in range(3)]
    whole = moments(x, models, scores, np.ones(30, np.bool_), 2, weights)
    for mine, theirs in zip(total(folds, 2, 4), whole, strict=True):
        assert mine == pytest.approx(theirs)
    assert [part.tolist() for part in total([], 1, 1)] == [[[[0.0]]], [[0.0]], [0.0], [0.0]]
