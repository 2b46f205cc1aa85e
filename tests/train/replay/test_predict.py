"""Predictions of quality and cost: shrunk to what the data support, honest out of fold, and of a model never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from policy.features import expected_cost_usd
from tests.train.replay.folders import write_folder
from train.replay.dataset import Graded, read_folder
from train.replay.predict import Predictions, newcomer, nonnegative, predict, ridges, stack_views
from train.replay.richer import richer_bills, richer_vectors
from train.replay.split import Halves, halves


def richer_predictions(graded: Graded, split: Halves) -> Predictions:
    seen = richer_vectors(graded, split.training)
    return predict(graded, seen, richer_bills(graded, seen, split.training, 0), split.training, 0)


def test_weights_that_would_be_negative_are_zero() -> None:
    """min (w1 - 1)^2 + (w2 + 1)^2 over w >= 0, and the same with a correlation of 1/2: w2 stays 0, w1 is free."""
    assert nonnegative(np.eye(2), np.array([1.0, -1.0])).tolist() == [1.0, 0.0]
    gram = np.array([[1.0, 0.5], [0.5, 1.0]])
    assert nonnegative(gram, np.array([1.0, 0.0])).tolist() == pytest.approx([1.0, 0.0])
    assert nonnegative(gram, np.array([1.0, 1.0])).tolist() == pytest.approx([2 / 3, 2 / 3])


def test_a_fold_is_predicted_by_the_others() -> None:
    """One feature that is 1 everywhere, penalty 1: the sum of the other folds' targets over their number plus 1."""
    design, targets = np.ones((4, 1)), np.array([[1.0], [3.0], [5.0], [9.0]])
    learn, fold = np.array([True, True, True, False]), np.array([0, 1, 2, 0])
    (found,) = ridges(design, targets, learn, fold, (1.0,))
    assert found[:, 0].tolist() == pytest.approx([8 / 3, 6 / 3, 4 / 3, 9 / 4])


def test_a_view_of_noise_is_shrunk_away() -> None:
    generator = np.random.default_rng(0)
    targets = generator.standard_normal((400, 2))
    noise = generator.standard_normal((400, 2))
    learn, fold = np.ones(400, np.bool_), np.arange(400) % 5
    predicted, explained = stack_views([lambda *_: noise], targets, learn, fold)
    assert abs(predicted).max() < 0.5
    assert explained < 0.02
    truth, explained = stack_views([lambda *_: noise, lambda *_: targets], targets, learn, fold)
    assert np.allclose(truth, targets, atol=0.01)
    assert explained > 0.99


@pytest.mark.parametrize("content", ["text", "embedding", "none"])
def test_hard_tasks_are_told_from_easy_ones_on_the_unseen_half(tmp_path: Path, content: str) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=300, content=content))
    split = halves(graded, 0)
    found = richer_predictions(graded, split)
    small, large = graded.models.index("small"), graded.models.index("large")
    gain = found.quality[split.test, large] - found.quality[split.test, small]
    hard = graded.group[split.test] == 1
    assert gain[hard].mean() > 0.6  # the truth is .8
    assert abs(gain[~hard].mean()) < 0.25  # the truth is .05
    mean = found.cost_usd[split.test].mean(axis=0)
    assert mean == pytest.approx(graded.cost_usd[split.test].mean(axis=0), rel=0.05)
    over = (graded.cost_usd[split.test] > found.cost_quantiles_usd[split.test][..., 11]).mean()
    assert over < 0.12  # the .95 quantile


def test_a_newcomer_has_its_prior_the_others_difficulty_and_its_own_prices(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=300))
    split = halves(graded, 0)
    known = richer_predictions(graded, split)
    medium = graded.models.index("medium")
    found = newcomer(graded, known, medium, [0, 2])
    assert found.average[medium] == pytest.approx(round(known.average[medium] / 0.05) * 0.05)
    hard = graded.group == 1
    assert found.quality[~hard, medium].mean() > found.quality[hard, medium].mean() + 0.2
    expected = expected_cost_usd(known.cost_quantiles_usd[:, medium])
    assert np.asarray(expected_cost_usd(found.cost_quantiles_usd[:, medium])) == pytest.approx(expected, rel=0.1)
    assert (found.quality[:, [0, 2]] == known.quality[:, [0, 2]]).all()
