"""The reward model: what score would this candidate have earned at this turn? Ridge regression in two stages.

With a few hundred sessions of bandit feedback a network memorises noise; a closed-form, cross-fitted, shrunken model
does not. It grades the actions that were not taken and the turns that nobody graded, is the direct-method part of the
doubly robust estimates, and is what the network is distilled from.

score(x, k) = mean_k + slope * (shared difficulty(x) scaled per model + own part_k(x)),  clipped to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
        x = _design(states, self.centre, self.scale)
        return np.clip(self.means + self.slope * _deviations(x, self.shared, self.own), 0.0, 1.0)


class Moments(NamedTuple):
    """All that ridge regression needs of some rows, by model: x'x (M, d, d), x'y (M, d), rows (M,), sum of y (M,).

    Moments of disjoint rows add up, so that leaving a fold out is a subtraction and the data are read once.
    """

    xx: F64
    xy: F64
    rows: F64
    y: F64

    def less(self, other: Moments) -> Moments:
        return Moments(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def fit_quality(
    states: NDArray[np.floating], models: I64, scores: F64, groups: I64, priors: F64, config: QualityConfig
) -> tuple[QualityModel, F64]:
    """Fit on graded turns: states (N, D), models (N,), scores (N,) in [0, 1], groups (N,) fold of each turn's session.

    `priors` (M,) are the catalogue's beliefs. Returns the model and its out-of-fold predictions (N, M): every row's
    come from a model that did not see the row's session. Penalty and slopes are chosen by out-of-fold error.
    """
    if not config.penalties:
        raise ValueError("quality.penalties: expected at least one penalty, got none")
    centre, scale = _standard(states)
    x = _design(states, centre, scale)
    by_fold = {int(fold): moments(x, models, scores, groups == fold, len(priors)) for fold in np.unique(groups)}
    everything = moments(x, models, scores, np.ones(len(models), np.bool_), len(priors))
    best: tuple[float, float, F64, F64] | None = None
    for penalty in config.penalties:
        deviations = np.zeros((len(models), len(priors)))
        means = np.tile(priors, (len(models), 1)).astype(np.float64)
        for fold, held_out in by_fold.items():
            held = groups == fold
            fold_means, shared, own = _solve(everything.less(held_out), priors, penalty, config)
            deviations[held], means[held] = _deviations(x[held], shared, own), fold_means
        slopes = _slopes(deviations, means, models, scores, len(priors))
        predicted = np.clip(means + slopes * deviations, 0.0, 1.0)
        error = float(np.mean((predicted[np.arange(len(models)), models] - scores) ** 2)) if len(models) else 0.0
        if best is None or error < best[0]:
            best = (error, penalty, slopes, predicted)
    assert best is not None
    error, penalty, slopes, predicted = best
    final_means, shared, own = _solve(everything, priors, penalty, config)
    rows = everything.rows.astype(np.int64)
    return QualityModel(centre, scale, final_means, shared, own, slopes, error, rows), predicted


def folds_of(episodes: Episodes, folds: int, seed: int) -> I64:
    """The fold of every turn, (S, T): by hash of its task where that has a name, else of its session.

    Siblings never part: what a cross-fitted model is asked about it has not seen anywhere.
    """
    names = zip(episodes.tenant_ids, episodes.session_ids, strict=True)
    of_session = np.array([int(session_fraction(t, s, seed + 1) * folds) for t, s in names], np.int64)
    tasks, where = np.unique(episodes.task, return_inverse=True)
    of_task = np.array([int(session_fraction("task", str(t), seed + 1) * folds) for t in tasks], np.int64)
    return np.where(episodes.task >= 0, of_task[where].reshape(episodes.task.shape), of_session[:, None])


def moments(x: F64, models: I64, scores: F64, rows: NDArray[np.bool_], count: int) -> Moments:
    """Moments of the chosen rows of x (N, d), by model."""
    d = x.shape[1]
    xx, xy = np.zeros((count, d, d)), np.zeros((count, d))
    number, total = np.zeros(count), np.zeros(count)
    for k in range(count):
        mine = rows & (models == k)
        xx[k], xy[k] = x[mine].T @ x[mine], x[mine].T @ scores[mine]
        number[k], total[k] = mine.sum(), scores[mine].sum()
    return Moments(xx, xy, number, total)


def _solve(seen: Moments, priors: F64, penalty: float, config: QualityConfig) -> tuple[F64, F64, F64]:
    """(means (M,), shared (d,), own (M, d + 1)): what all models share, then what each has of its own beyond that."""
    means = (config.prior_strength * priors + seen.y) / (config.prior_strength + seen.rows)
    residual = seen.xy - means[:, None] * seen.xx[:, :, -1]  # the last column of x is the constant
    shared = ridge_from_moments(seen.xx.sum(axis=0), residual.sum(axis=0), penalty)
    own = np.zeros((len(priors), len(shared) + 1))
    own[:, -1] = 1.0
    for k in np.flatnonzero(seen.rows >= MIN_ROWS_FOR_OWN_PART):
        explained = seen.xx[k] @ shared
        gain = _slope(float(shared @ residual[k]), float(shared @ explained), 1.0, 1.0)
        own[k, -1] = gain
        own[k, :-1] = ridge_from_moments(seen.xx[k], residual[k] - gain * explained, penalty)
    return means, shared, own


def _deviations(x: F64, shared: F64, own: F64) -> F64:
    return np.asarray(np.column_stack([x, x @ shared]) @ own.T)


def _slopes(deviations: F64, means: F64, models: I64, scores: F64, count: int) -> F64:
    """Out-of-fold regression slope of what happened on what was predicted, per model, pooled where data are few."""
    rows = np.arange(len(models))
    predicted, happened = deviations[rows, models], scores - means[rows, models]
    pooled = _slope(float(predicted @ happened), float(predicted @ predicted), 1.0, 0.0)
    slopes = np.full(count, pooled)
    for k in range(count):
        own = models == k
        slopes[k] = _slope(float(predicted[own] @ happened[own]), float(predicted[own] @ predicted[own]), pooled, 2.0)
    return np.asarray(np.clip(slopes, 0.0, 1.2))


def _slope(product: float, energy: float, default: float, prior_weight: float) -> float:
    """Least squares through the origin, x'y / x'x, pulled to `default` with the weight of so many units of x'x."""
    if energy <= 0:
        return default
    return (product + prior_weight * default) / (energy + prior_weight)


def ridge(x: F64, y: F64, penalty: float) -> F64:
    """argmin_w |y - x w|^2 + penalty |w|^2. Hoerl & Kennard 1970; the constant, if x has one, is penalised too."""
    return ridge_from_moments(x.T @ x, x.T @ y, penalty)


def ridge_from_moments(xx: F64, xy: F64, penalty: float) -> F64:
    """As `ridge`, from x'x (d, d) and x'y (d,)."""
    return np.asarray(np.linalg.solve(xx + penalty * np.eye(len(xy)), xy))


def _standard(states: NDArray[np.floating]) -> tuple[F64, F64]:
    if not len(states):
        return np.zeros(states.shape[1]), np.ones(states.shape[1])
    centre, scale = states.mean(axis=0).astype(np.float64), states.std(axis=0).astype(np.float64)
    return centre, np.where(scale > 1e-6, scale, np.inf)  # a constant feature says nothing


def _design(states: NDArray[np.floating], centre: F64, scale: F64) -> F64:
    standard = np.clip((states - centre) / scale, -5.0, 5.0)
    return np.column_stack([standard, np.ones(len(states))])
