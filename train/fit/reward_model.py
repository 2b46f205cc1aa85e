"""Reward model: expected scores of a turn's candidates by two-stage kernel ridge regression.

With a few hundred sessions of bandit feedback a network memorises noise; a closed-form, cross-fitted, shrunken model
does not. It grades actions that were not taken and turns without a score, is the direct-method part of the doubly
robust estimates, serves behind the planning rules, and grades the turns that train the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from policy.kernel import KernelQuality, kernel, squared_distances
from policy.text import STATS_DIM, TEXT_DIM
from train.config import QualityConfig
from train.log.episodes import Episodes, session_fraction

MIN_ROWS_FOR_OWN_PART = 20
BLOCK_ROWS = 8_192
SPACE_ROWS = 16_384
"""Turns, evenly spaced in the log, from which scales and landmarks are computed."""
SLOPE_STRENGTH = 2.0
"""Weight of the pooled slopes in each model's, as predicted variance (sum of squares)."""
LEAST_OF_ROUTE = 20
"""Graded turns below which a route has no offset."""
MOST_ROUTES = 64
SESSION_WEIGHT = 0.2
"""Weight of the session's features in the kernel; the text and its statistics have 1 each."""


@dataclass(frozen=True)
class Space:
    """Nystrom features: R landmarks of D scaled state entries, `whiten` (R, R) = K(Z, Z)^(-1/2)."""

    centre: F64  # (D,)
    scale: F64  # (D,)
    landmarks: F64  # (R, D)
    width: F64  # (2,)
    whiten: F64  # (R, R)

    def features(self, states: NDArray[np.floating]) -> F64:
        """Map states (N, D) to features (N, R + 1); a constant is last."""
        found = np.ones((len(states), len(self.landmarks) + 1))
        for rows in _blocks(len(states)):
            scaled = (states[rows].astype(np.float64) - self.centre) * self.scale
            found[rows, :-1] = kernel(scaled, self.landmarks, self.width) @ self.whiten
        return found


@dataclass(frozen=True)
class RewardModel:
    """Fitted reward model of M models.

    `means` (M,), `shared` (R + 1,), `own` (M, R + 1); `slope` (M, 2) shrinks the two parts separately.
    """

    space: Space
    means: F64
    shared: F64
    own: F64
    slope: F64
    pooled: F64  # (2,)
    out_of_fold_error: float
    rows: I64  # (M,) graded turns each model was fitted on
    deviation: F64  # (M + 1,) mean posterior deviation of a prediction; last of a model missing from the log
    routes: I64  # (G,) whose columns are before the constant's

    def predict(self, states: NDArray[np.floating], route: I64) -> F64:
        """Expected score of every model, (N, M), for states (N, D) and their routes (N,)."""
        found = np.empty((len(states), len(self.means)))
        for rows in _blocks(len(states)):
            x = with_routes(self.space.features(states[rows]), route[rows], self.routes)
            deviations = self.slope[:, 0] * (x @ self.shared)[:, None] + self.slope[:, 1] * (x @ self.own.T)
            found[rows] = np.clip(self.means + deviations, 0.0, 1.0)
        return found

    def served(self, models: tuple[str, ...]) -> KernelQuality:
        """The same function with all linear parts folded into one matrix, as a checkpoint stores it."""
        columns = np.vstack(
            [self.slope[:, :1] * self.shared + self.slope[:, 1:] * self.own, self.pooled[0] * self.shared[None]]
        )
        space, of_routes = self.space, slice(len(self.space.landmarks), -1)
        return KernelQuality(
            models=models,
            centre=space.centre.astype(np.float32),
            scale=space.scale.astype(np.float32),
            landmarks=space.landmarks.astype(np.float32),
            width=space.width.astype(np.float32),
            means=self.means.astype(np.float32),
            weights=(space.whiten @ columns[:, : of_routes.start].T).astype(np.float32),
            offset=columns[:, -1].astype(np.float32),
            routes=self.routes.astype(np.float32),
            of_route=columns[:, of_routes].T.astype(np.float32),
        )


class Moments(NamedTuple):
    """Sufficient statistics of ridge regression by model: x'wx, x'wy, sums of w and of wy.

    Shapes (M, d, d), (M, d), (M,), (M,). Moments of disjoint rows add up, so that leaving a fold out is a subtraction
    and the data are read once.
    """

    xx: F64
    xy: F64
    rows: F64
    y: F64

    def minus(self, other: Moments) -> Moments:
        """Moments of the rows that are in these but not in `other`, a subset."""
        return Moments(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def total(parts: Sequence[Moments], models: int, width: int) -> Moments:
    """Sum of moments of disjoint rows; zeros for none."""
    shapes = ((models, width, width), (models, width), (models,), (models,))
    return Moments(*(sum((part[i] for part in parts), np.zeros(shape)) for i, shape in enumerate(shapes)))


class Parts(NamedTuple):
    """Out-of-fold predictions, (N, M) each: the shared part, each model's own, and the means."""

    shared: F64
    own: F64
    means: F64


def fit_quality(
    states: NDArray[np.floating],
    models: I64,
    scores: F64,
    groups: I64,
    priors: F64,
    config: QualityConfig,
    weights: F64 | None = None,
    route: I64 | None = None,
) -> tuple[RewardModel, F64]:
    """Fit on graded turns; returns the model and its out-of-fold predictions (N, M).

    States (N, D), models (N,), scores (N,) in [0, 1], groups (N,) fold of each turn's session, `priors` (M,) of the
    catalogue, `weights` (N,) of the rows (default 1), `route` (N,) of the observations (default none). Each row's
    prediction comes from a model that did not see the row's session. Penalty and slopes are chosen by out-of-fold
    error. Raises ValueError without penalties.
    """
    if not config.penalties:
        raise ValueError("quality.penalties: expected at least one penalty, got none")
    space = fit_space(states, int(config.landmarks), config.width, config.text_width)
    route = np.zeros(len(models), np.int64) if route is None else route
    routes = known_routes(route)
    x = with_routes(_features_once(space, states), route, routes)
    counted = np.ones(len(models)) if weights is None else weights
    by_fold = {
        int(fold): moments(x, models, scores, groups == fold, len(priors), counted) for fold in np.unique(groups)
    }
    everything = total(list(by_fold.values()), len(priors), x.shape[1])
    best: tuple[float, float, F64, F64, F64] | None = None
    for penalty in config.penalties:
        parts = _out_of_fold(x, groups, by_fold, everything, priors, penalty, config)
        slopes, pooled = _slopes(parts, models, scores, counted)
        predicted = np.clip(parts.means + slopes[:, 0] * parts.shared + slopes[:, 1] * parts.own, 0.0, 1.0)
        squares = (predicted[np.arange(len(models)), models] - scores) ** 2
        error = float(np.average(squares, weights=counted)) if len(models) else 0.0
        if best is None or error < best[0]:
            best = (error, penalty, slopes, pooled, predicted)
    assert best is not None
    error, penalty, slopes, pooled, predicted = best
    means, shared, own = _solve(everything, priors, penalty, config)
    rows = np.bincount(models, minlength=len(priors))
    deviation = posterior_deviation(everything, priors, means, error, penalty, config)
    return RewardModel(space, means, shared, own, slopes, pooled, error, rows, deviation, routes), predicted


def known_routes(route: I64) -> I64:
    """The most frequent routes of graded turns, (G,)."""
    routes, turns = np.unique(route[route > 0], return_counts=True)
    order = np.argsort(-turns, kind="stable")[:MOST_ROUTES]
    return np.asarray(routes[order[turns[order] >= LEAST_OF_ROUTE]], np.int64)


def with_routes(x: F64, route: I64, routes: I64) -> F64:
    """Features (N, R + 1) with columns of the routes before the constant: (N, R + G + 1).

    Each is 1 where the turn is of its route, else 0: the ridge penalty shrinks a route's offset to 0 as a random
    effect's prior would (Robinson 1991), and an unknown route has none.
    """
    if not len(routes):
        return x
    return np.hstack([x[:, :-1], route[:, None] == routes, x[:, -1:]])


def posterior_deviation(
    seen: Moments, priors: F64, means: F64, error: float, penalty: float, config: QualityConfig
) -> F64:
    """Mean posterior deviation of each model's predictions over the log's turns, (M + 1,).

        variance_k = noise (mean of x' (X_k' X_k + penalty)^-1 x  +  1 / (prior strength + rows_k))

    Bayesian ridge regression's (Bishop 2006, 3.59) of a model's own part, and its mean's. A model missing from the log
    is assumed to be as far off as the known ones' priors were, and no nearer than a known one without grades.
    """
    d = seen.xx.shape[-1]
    typical_xx = seen.xx.sum(axis=0) / max(float(seen.rows.sum()), 1.0)
    spread = np.array([np.trace(np.linalg.solve(xx + penalty * np.eye(d), typical_xx)) for xx in seen.xx])
    noise = max(error, 1e-6)
    known = np.sqrt(noise * (spread + 1.0 / (config.prior_strength + seen.rows)))
    graded = seen.rows > 0
    off = float(np.sqrt(np.mean((means - priors)[graded] ** 2))) if graded.any() else 0.0
    nothing = float(np.sqrt(noise * (np.trace(typical_xx) / penalty + 1.0 / config.prior_strength)))
    return np.append(known, max(off, nothing))


def _features_once(space: Space, states: NDArray[np.floating]) -> F64:
    """`space.features`, computed once for equal consecutive rows: the candidates of one turn."""
    changes = np.ones(len(states), np.bool_)
    for rows in _blocks(len(states)):
        here = states[rows]
        changes[rows][1:] = (here[1:] != here[:-1]).any(axis=1)
    return np.asarray(space.features(states[changes])[np.cumsum(changes) - 1])


def fit_space(states: NDArray[np.floating], landmarks: int, width: float, text_width: float) -> Space:
    """Fit scales and landmarks to the states alone, without scores.

    The text keeps its shape (its columns are one vector's) with total variance 1; the other features vary equally, the
    statistics by 1 in total, the session's by SESSION_WEIGHT. Widths are in median squared distances.
    """
    d = states.shape[1]
    states = states[np.linspace(0, len(states) - 1, min(len(states), SPACE_ROWS)).astype(np.int64)].astype(np.float64)
    if not len(states):
        return Space(np.zeros(d), np.zeros(d), np.zeros((1, d)), np.ones(2), np.eye(1))
    centre, deviation = states.mean(axis=0), states.std(axis=0)
    scale = np.zeros(d)
    text = slice(0, min(TEXT_DIM, d))
    spread_of_text = float(np.linalg.norm(deviation[text]))
    scale[text] = 1.0 / spread_of_text if spread_of_text > 1e-6 else 0.0
    for block, weight in (
        (slice(TEXT_DIM, TEXT_DIM + STATS_DIM), 1.0),
        (slice(TEXT_DIM + STATS_DIM, d), SESSION_WEIGHT),
    ):
        varies = deviation[block] > 1e-6  # constant features carry no information
        scale[block] = np.where(varies, weight / np.maximum(deviation[block], 1e-6), 0.0) / np.sqrt(
            max(varies.sum(), 1)
        )
    scaled = (states - centre) * scale
    z = scaled[_landmarks(scaled, landmarks)]
    spread = np.array([width * median_squared_distance(z), text_width * median_squared_distance(z[:, text])])
    values, vectors = np.linalg.eigh(kernel(z, z, spread))
    whiten = (vectors / np.sqrt(np.maximum(values, 1e-4))) @ vectors.T
    return Space(centre, scale, z, spread, whiten)


def _landmarks(scaled: F64, most: int) -> I64:
    """Indices of the landmark rows: one for each distinct text, then rows that differ otherwise.

    A question repeated in many sessions would otherwise crowd out those asked once.
    """

    def distinct(columns: F64) -> I64:
        first: dict[bytes, int] = {}
        for i, row in enumerate(np.ascontiguousarray(np.round(columns, 4) + 0.0)):  # no -0
            first.setdefault(row.tobytes(), i)
        return np.random.default_rng(0).permutation(np.array(list(first.values()), np.int64))

    said = distinct(scaled[:, : TEXT_DIM + STATS_DIM])
    others = np.setdiff1d(distinct(scaled), said, assume_unique=True)
    return np.sort(np.concatenate([said, others])[:most])


def median_squared_distance(z: F64) -> float:
    """Median squared distance between two of the rows; tiny and positive when all are equal."""
    apart = squared_distances(z, z)[~np.eye(len(z), dtype=bool)]
    return max(float(np.median(apart)) if len(apart) else 1.0, 1e-6)


def folds_of(episodes: Episodes, folds: int, seed: int) -> I64:
    """Fold of every turn, (S, T), by hash of its task if named, else of its session's tree.

    Turns of one task share a fold: a cross-fitted model is only asked about tasks that it has not seen.
    """
    names = zip(episodes.tenant_ids, episodes.root_ids, strict=True)
    of_tree = np.array([int(session_fraction(t, s, seed + 1) * folds) for t, s in names], np.int64)
    tasks, where = np.unique(episodes.task, return_inverse=True)
    of_task = np.array([int(session_fraction("task", str(t), seed + 1) * folds) for t in tasks], np.int64)
    return np.where(episodes.task >= 0, of_task[where].reshape(episodes.task.shape), of_tree[:, None])


def moments(x: F64, models: I64, scores: F64, rows: NDArray[np.bool_], count: int, weights: F64) -> Moments:
    """Moments of the chosen rows of x (N, d), by model; weights (N,)."""
    d = x.shape[1]
    xx, xy = np.zeros((count, d, d)), np.zeros((count, d))
    number, total = np.zeros(count), np.zeros(count)
    for k in range(count):
        mine = np.flatnonzero(rows & (models == k))
        for block in _blocks(len(mine)):
            some = mine[block]
            weighted = x[some] * weights[some, None]
            xx[k] += weighted.T @ x[some]
            xy[k] += weighted.T @ scores[some]
        number[k], total[k] = weights[mine].sum(), (weights[mine] * scores[mine]).sum()
    return Moments(xx, xy, number, total)


def _blocks(rows: int) -> Iterator[slice]:
    """Slices of `rows` that bound the memory of intermediate results."""
    for start in range(0, rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def _out_of_fold(
    x: F64,
    groups: I64,
    by_fold: dict[int, Moments],
    everything: Moments,
    priors: F64,
    penalty: float,
    config: QualityConfig,
) -> Parts:
    shape = (len(x), len(priors))
    parts = Parts(np.zeros(shape), np.zeros(shape), np.tile(priors, (len(x), 1)).astype(np.float64))
    for fold, held_out in by_fold.items():
        held = groups == fold
        means, shared, own = _solve(everything.minus(held_out), priors, penalty, config)
        parts.means[held] = means
        parts.shared[held] = (x[held] @ shared)[:, None]
        parts.own[held] = x[held] @ own.T
    return parts


def _solve(seen: Moments, priors: F64, penalty: float, config: QualityConfig) -> tuple[F64, F64, F64]:
    """Solve for means (M,), the shared part (d,) and each model's own part beyond it (M, d)."""
    means = (config.prior_strength * priors + seen.y) / (config.prior_strength + seen.rows)
    residual = seen.xy - means[:, None] * seen.xx[:, :, -1]  # the last column of x is the constant
    shared = ridge_from_moments(seen.xx.sum(axis=0), residual.sum(axis=0), penalty)
    own = np.zeros((len(priors), len(shared)))
    for k in np.flatnonzero(seen.rows >= MIN_ROWS_FOR_OWN_PART):
        own[k] = ridge_from_moments(seen.xx[k], residual[k] - seen.xx[k] @ shared, penalty)
    return means, shared, own


def _slopes(parts: Parts, models: I64, scores: F64, weights: F64) -> tuple[F64, F64]:
    """Out-of-fold regression of scores on the two predicted parts: (M, 2) and pooled (2,).

    A model's slopes are shrunk to the pooled ones, and those, where nothing is predicted, to (1, 0). Within [0, 1.5].
    """
    rows, count = np.arange(len(models)), parts.means.shape[1]
    predicted = np.stack([parts.shared[rows, models], parts.own[rows, models]], axis=1)
    happened = scores - parts.means[rows, models]
    root = np.sqrt(weights)
    predicted, happened = predicted * root[:, None], happened * root
    pooled = np.clip(_shrunken_least_squares(predicted, happened, np.array([1.0, 0.0]), 1e-3), 0.0, 1.5)
    slopes = np.tile(pooled, (count, 1))
    for k in range(count):
        own = models == k
        slopes[k] = _shrunken_least_squares(predicted[own], happened[own], pooled, SLOPE_STRENGTH)
    return np.clip(slopes, 0.0, 1.5), pooled


def _shrunken_least_squares(x: F64, y: F64, default: F64, strength: float) -> F64:
    """Solve argmin_w |y - x w|^2 + strength |w - default|^2."""
    gram = x.T @ x + strength * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ y + strength * default))


def ridge(x: F64, y: F64, penalty: float) -> F64:
    """Solve argmin_w |y - x w|^2 + penalty |w|^2 (Hoerl & Kennard 1970).

    A constant column of x is penalised too.
    """
    return ridge_from_moments(x.T @ x, x.T @ y, penalty)


def ridge_from_moments(xx: F64, xy: F64, penalty: float) -> F64:
    """Ridge regression from x'x (d, d) and x'y (d,)."""
    return np.asarray(np.linalg.solve(xx + penalty * np.eye(len(xy)), xy))
