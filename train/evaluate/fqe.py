"""Fitted Q evaluation: a policy's value, by regression backwards from the session's end.

Le, Voloshin, Yue 2019 (arXiv 1903.08738), with a linear model per number of turns left: exact at this horizon, and its
error is easy to see. It is the model part of the sequential doubly robust estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64
from policy.features import expected_cost_usd
from train.fit.reward_model import ridge
from train.log.episodes import Episodes

PENALTY = 20.0
FEATURES = 5


@dataclass(frozen=True)
class FittedEvaluation:
    """Weights (T + 1, FEATURES): row h gives the later value with h turns left; row 0 is unused."""

    weights: F64


def features(episodes: Episodes, grades: F64) -> F64:
    """Features of the later turns' value, (S, T, K, FEATURES): grade and budget after this bill."""
    costs = expected_cost_usd(episodes.cost_quantiles_usd.astype(np.float64))
    shown = np.where(episodes.mask, costs, np.inf)
    cheapest = np.where(np.isfinite(shown.min(axis=-1)), shown.min(axis=-1), 1e-9)
    left = turns_left(episodes)
    after = np.maximum(episodes.remaining_usd[..., None] - costs, 0.0)
    room = np.log1p(after / np.maximum(cheapest * np.maximum(left - 1, 1), 1e-9)[..., None])
    share = np.minimum(costs / np.maximum(episodes.remaining_usd, 1e-9)[..., None], 2.0)
    return np.stack([np.ones(costs.shape), grades, room, share, grades * room], axis=-1)


def turns_left(episodes: Episodes) -> NDArray[np.int64]:
    """Recorded turns left at each turn, this one included, (S, T)."""
    left = episodes.lengths[:, None] - np.arange(episodes.valid.shape[1])[None, :]
    return np.asarray(np.maximum(left, 0), np.int64)


def fitted_q_evaluation(
    episodes: Episodes, grades: F64, rewards: F64, target: F64, penalty: float = PENALTY
) -> FittedEvaluation:
    """Regress V_{h-1}(next) on the logged action's features, backwards in turns left h.

    grades, target (S, T, K): reward model and the evaluated policy's probabilities; rewards (S, T) without NaN.
    Q_h(s, a) = grade(s, a) + features(s, a) . w_h, and V_h(s) = sum_a target(a|s) Q_h(s, a). The first turn's error in
    the grade is regressed too: y = reward - grade + V_{h-1}(next).
    """
    phi = features(episodes, grades)
    left = turns_left(episodes)
    horizon = episodes.valid.shape[1]
    at = episodes.action[..., None]
    chosen = np.take_along_axis(phi, at[..., None], axis=2)[:, :, 0]
    grade = np.take_along_axis(grades, at, axis=-1)[..., 0]
    weights = np.zeros((horizon + 1, FEATURES))
    following = np.zeros(episodes.valid.shape)
    for h in range(1, horizon + 1):
        here = episodes.valid & (left == h)
        y = (rewards - grade)[here] + following[here]
        weights[h] = ridge(chosen[here], y, penalty) if h == 1 else _around_mean(chosen[here], y, penalty)
        value = np.sum(target * (grades + phi @ weights[h]), axis=-1)
        rows, columns = np.nonzero(here & (np.arange(horizon) > 0)[None, :])
        following[rows, columns - 1] = value[rows, columns]
    return FittedEvaluation(weights)


def _around_mean(x: F64, y: F64, penalty: float) -> F64:
    """Ridge of the deviation from the mean: later turns are worth about the same in any case."""
    if len(y) == 0:
        return np.zeros(x.shape[1])
    w = ridge(x, y - y.mean(), penalty)
    w[0] += y.mean()
    return w


def values(evaluation: FittedEvaluation, episodes: Episodes, grades: F64, target: F64) -> tuple[F64, F64]:
    """Values to go of the logged actions and of the evaluated policy: (q, v), each (S, T)."""
    left = np.minimum(turns_left(episodes), len(evaluation.weights) - 1)
    weights = evaluation.weights[left]
    to_go = grades + np.einsum("stkf,stf->stk", features(episodes, grades), weights)
    q = np.take_along_axis(to_go, episodes.action[..., None], axis=-1)[..., 0]
    return q, np.asarray(np.sum(target * to_go, axis=-1))
