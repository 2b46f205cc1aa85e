"""What an answer is worth by its bill, on logs whose costly answers are the failures."""

from __future__ import annotations

import numpy as np
import pytest

from policy.mdp import COST_LEVELS, COST_MASSES
from train.fit.answers import levels_of, shares

LEVELS = len(COST_LEVELS)


def turns(rows: int, *, failing_from: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Levels drawn by their masses, and scores: 1 below a level, 0 from it on."""
    levels = np.random.default_rng(seed).choice(LEVELS, rows, p=COST_MASSES / COST_MASSES.sum())
    return levels, (levels < failing_from).astype(np.float64)


def test_a_bill_belongs_to_the_nearest_quantile_of_its_distribution() -> None:
    quantiles = np.arange(1.0, LEVELS + 1.0)[None].repeat(3, axis=0)  # midpoints at 1.5, 2.5, ...
    assert levels_of(np.array([0.1, 2.4, 99.0]), quantiles).tolist() == [0, 1, LEVELS - 1]


def test_costly_answers_that_fail_are_worth_less_and_the_mean_stays() -> None:
    levels, scores = turns(4000, failing_from=10)
    predicted = np.full(len(levels), scores.mean())
    found = shares(levels, np.zeros(len(levels), np.int64), scores, predicted, 1)
    assert found @ COST_MASSES == pytest.approx([1.0, 1.0], abs=1e-6)
    right = COST_MASSES[:10].sum()
    assert found[0, 3] == pytest.approx(1.0 / right, rel=0.03)  # all the worth is in the cheap ones
    assert found[0, -2] < 0.15


def test_a_model_hardly_seen_is_taken_to_be_like_the_others() -> None:
    levels, scores = turns(4000, failing_from=10)
    few, right = np.array([3]), np.array([1.0])
    models = np.concatenate([np.zeros(len(levels), np.int64), np.ones(len(few), np.int64)])
    everything = np.concatenate([scores, right])
    predicted = np.where(models == 0, scores.mean(), 1.0)
    found = shares(np.concatenate([levels, few]), models, everything, predicted, 3)
    assert found[1] == pytest.approx(found[3], abs=0.25)
    assert found[2] == pytest.approx(found[3], abs=1e-9)  # never seen


def test_where_nothing_is_known_bill_and_answer_are_independent() -> None:
    none = np.zeros(0)
    assert shares(none.astype(np.int64), none.astype(np.int64), none, none, 2) == pytest.approx(np.ones((3, LEVELS)))
