"""Quality of an answer by its bill: long ones are often the failures.

A model that loops, digresses or reaches its limit costs the most and earns the least. In the interactive SQL sessions
of the development data a strong model is right in all of its cheapest answers and in three of ten of its most expensive
ones. Answers that an empty budget cuts off would mostly have been wrong anyway. A planner that treats bill and quality
as independent is therefore far too careful (train/fit/value_table.py, policy/planned.py).

    share[k, l] = E[score | bill at level l] / E[score predicted],    mean 1 over the cost distribution
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from policy.mdp import COST_LEVELS, COST_MASSES
from train.log.episodes import Episodes

POOLED_STRENGTH = 20.0
MODEL_STRENGTH = 10.0
"""Pseudo-observations, in predicted score: of independence in the pooled shares, of these in a model's."""
SMOOTHING = np.array([0.25, 0.5, 0.25])


def answer_shares(episodes: Episodes, grades: F64) -> F64:
    """Answer shares of a log, (K + 1, L); the last row pools all models, for unknown ones.

    `grades` (S, T, K) are predictions, out of fold. Only turns with a known score and bill count, for their logged
    action.
    """
    valid = episodes.valid
    scores, bills = episodes.known_scores()[valid], episodes.known_bills_usd()[valid]
    models = episodes.model[valid]
    known = np.isfinite(scores) & np.isfinite(bills) & (models >= 0)
    levels = levels_of(bills[known].astype(np.float64), episodes.cost_quantiles_usd[valid][known].astype(np.float64))
    return shares(levels, models[known].astype(np.int64), scores[known], grades[valid][known], len(episodes.models))


def levels_of(bills_usd: F64, quantiles_usd: F64) -> I64:
    """Index of the quantile (N, L) nearest to each bill (N,), by midpoints."""
    midpoints = (quantiles_usd[:, 1:] + quantiles_usd[:, :-1]) / 2.0
    return np.asarray((bills_usd[:, None] > midpoints).sum(axis=1), np.int64)


def shares(levels: I64, models: I64, scores: NDArray[np.floating], predicted: F64, count: int) -> F64:
    """Ratios of sums from turns (N,), (count + 1, L), smoothed along the levels and shrunk."""
    size = count * len(COST_LEVELS)
    cell = models * len(COST_LEVELS) + levels
    shape = (count, len(COST_LEVELS))
    earned = _smooth(np.bincount(cell, scores, size).reshape(shape).astype(np.float64))
    expected = _smooth(np.bincount(cell, predicted, size).reshape(shape).astype(np.float64))
    masses = COST_MASSES.astype(np.float64)
    # Rescale predictions to be right on average: only the shape along the levels remains.
    pooled = (earned.sum(0) + POOLED_STRENGTH * masses) / (expected.sum(0) + POOLED_STRENGTH * masses)
    pooled /= pooled @ masses
    level = earned.sum(1, keepdims=True) / np.maximum(expected.sum(1, keepdims=True), 1e-9)
    level = np.where(level > 0.0, level, 1.0)
    found = (earned / level + MODEL_STRENGTH * masses * pooled) / (expected + MODEL_STRENGTH * masses)
    found = np.vstack([found, pooled])
    return np.asarray(found / (found @ masses)[:, None])


def _smooth(sums: F64) -> F64:
    """Mix a quarter of either neighbour into each level; the end levels repeat."""
    padded = np.pad(sums, ((0, 0), (1, 1)), mode="edge")
    return np.asarray(sum(w * padded[:, i : i + sums.shape[1]] for i, w in enumerate(SMOOTHING)))
