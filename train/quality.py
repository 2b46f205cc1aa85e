"""The reward model: what score would this candidate have earned at this turn? Ridge regression in two stages.

With a few hundred sessions of bandit feedback a network memorises noise; a closed-form, cross-fitted, shrunken model
does not. It grades the actions that were not taken and the turns that nobody graded, is the direct-method part of the
doubly robust estimates, and is what the network is distilled from.

score(x, k) = mean_k + slope * (shared difficulty(x) scaled per model + own part_k(x)),  clipped to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.config import QualityConfig
from train.episodes import Episodes, session_fraction

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MIN_ROWS_FOR_OWN_PART = 20


@dataclass(frozen=True)
class QualityModel:
    """`means` (M,), `shared` (D+1,), `own` (M, D+2); M models, D features. `slope` shrinks (0: means only)."""

    centre: F64
    scale: F64
    means: F64
    shared: F64
    own: F64
    slope: F64  # (M,)
    out_of_fold_error: float
    rows: I64  # (M,) graded turns each model was fitted on

    def predict(self, states: NDArray[np.floating]) -> F64:
        """Expected score of every model, (N, M), for states (N, D)."""
        return np.clip(self.means + self.slope * self._deviation(states), 0.0, 1.0)

    def _deviation(self, states: NDArray[np.floating]) -> F64:
        x = _design(states, self.centre, self.scale)
        difficulty = x @ self.shared
        return np.asarray(np.column_stack([x, difficulty]) @ self.own.T)


def fit_quality(
    states: NDArray[np.floating], models: I64, scores: F64, groups: I64, priors: F64, config: QualityConfig
) -> tuple[QualityModel, F64]:
    """Fit on graded turns: states (N, D), models (N,), scores (N,) in [0, 1], groups (N,) fold of each turn's session.

    `priors` (M,) are the catalogue's beliefs. Returns the model and its out-of-fold predictions (N, M): every row's
    come from a model that did not see the row's session. Penalty and slopes are chosen by out-of-fold error.
    """
    best: tuple[float, float, F64, F64] | None = None
    for penalty in config.penalties:
        deviations, means = _out_of_fold(states, models, scores, groups, priors, penalty, config)
        slopes = _slopes(deviations, means, models, scores, len(priors))
        predicted = np.clip(means + slopes * deviations, 0.0, 1.0)
        error = float(np.mean((predicted[np.arange(len(models)), models] - scores) ** 2)) if len(models) else 0.0
        if best is None or error < best[0]:
            best = (error, penalty, slopes, predicted)
    if best is None:
        raise ValueError("quality.penalties: expected at least one penalty, got none")
    error, penalty, slopes, predicted = best
    final = _fit(states, models, scores, priors, penalty, config, slopes, error)
    return final, predicted


def folds_of(episodes: Episodes, folds: int, seed: int) -> I64:
    """The fold of every session, (S,): by hash, so that siblings of a session never part."""
    names = zip(episodes.tenant_ids, episodes.session_ids, strict=True)
    return np.array([int(session_fraction(t, s, seed + 1) * folds) for t, s in names], np.int64)


def _out_of_fold(
    states: NDArray[np.floating], models: I64, scores: F64, groups: I64, priors: F64, penalty: float,
    config: QualityConfig,
) -> tuple[F64, F64]:
    deviations = np.zeros((len(models), len(priors)))
    means = np.tile(priors, (len(models), 1)).astype(np.float64)
    ones = np.ones(len(priors))
    for fold in np.unique(groups):
        held = groups == fold
        model = _fit(states[~held], models[~held], scores[~held], priors, penalty, config, ones, 0.0)
        deviations[held] = model._deviation(states[held])
        means[held] = model.means
    return deviations, means


def _slopes(deviations: F64, means: F64, models: I64, scores: F64, count: int) -> F64:
    """Out-of-fold regression slope of what happened on what was predicted, per model, pooled where data are few."""
    rows = np.arange(len(models))
    predicted, happened = deviations[rows, models], scores - means[rows, models]
    pooled = _slope(predicted, happened, 1.0, 0.0)
    slopes = np.full(count, pooled)
    for k in range(count):
        own = models == k
        slopes[k] = _slope(predicted[own], happened[own], pooled, 2.0)
    return np.asarray(np.clip(slopes, 0.0, 1.2))


def _slope(predicted: F64, happened: F64, default: float, prior_weight: float) -> float:
    """Least squares through the origin, pulled to `default` with the weight of so many units of predicted variance."""
    energy = float(predicted @ predicted)
    if energy <= 0:
        return default
    return (float(predicted @ happened) + prior_weight * default) / (energy + prior_weight)


def _fit(
    states: NDArray[np.floating], models: I64, scores: F64, priors: F64, penalty: float, config: QualityConfig,
    slopes: F64, error: float,
) -> QualityModel:
    centre = states.mean(axis=0).astype(np.float64) if len(states) else np.zeros(states.shape[1])
    scale = states.std(axis=0).astype(np.float64) if len(states) else np.ones(states.shape[1])
    scale = np.where(scale > 1e-6, scale, np.inf)  # a constant feature says nothing
    x = _design(states, centre, scale)
    rows = np.bincount(models, minlength=len(priors)).astype(np.int64)
    sums = np.bincount(models, weights=scores, minlength=len(priors))
    means = (config.prior_strength * priors + sums) / (config.prior_strength + rows)
    residual = scores - means[models]
    shared = ridge(x, residual, penalty)
    own = np.zeros((len(priors), x.shape[1] + 1))
    own[:, -1] = 1.0
    for k in np.flatnonzero(rows >= MIN_ROWS_FOR_OWN_PART):
        mine = models == k
        difficulty = x[mine] @ shared
        gain = _slope(difficulty, residual[mine], 1.0, 1.0)
        own[k, -1] = gain
        own[k, :-1] = ridge(x[mine], residual[mine] - gain * difficulty, penalty)
    return QualityModel(centre, scale, means, shared, own, slopes, error, rows)


def ridge(x: F64, y: F64, penalty: float) -> F64:
    """argmin_w |y - x w|^2 + penalty |w|^2; the last column (the constant) is penalised like the others.

    Hoerl & Kennard 1970. Solved in whichever of the two dual forms is smaller.
    """
    n, d = x.shape
    if n == 0:
        return np.zeros(d)
    if n < d:
        return np.asarray(x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(n), y))
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(d), x.T @ y))


def _design(states: NDArray[np.floating], centre: F64, scale: F64) -> F64:
    standard = np.clip((states - centre) / scale, -5.0, 5.0)
    return np.column_stack([standard, np.ones(len(states))])
