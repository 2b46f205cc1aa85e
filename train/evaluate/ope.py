"""Off-policy estimators of a policy's score on logged sessions, named as in their papers.

All take logged arrays of shape (S, T), padded with `valid` False, and return one value per session (S,) whose mean is
the estimate, so that differences can be paired and whole sessions resampled. gamma is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policy.arrays import F64, Bools


class Logged(NamedTuple):
    """Terms of the estimators.

    `ratio` pi(a|s) / mu(a|s) of the logged actions, their `reward`, and the model's values at the logged states: `q` of
    the logged action, `v` of the evaluated policy. Per-turn estimates use values of the turn, sequential ones values to
    go.
    """

    valid: Bools
    ratio: F64
    reward: F64
    q: F64
    v: F64


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


def step_weights(ratio: F64, valid: Bools) -> F64:
    """Cumulative ratios rho_{0:t}, (S, T); the 1 in padding is never used."""
    return np.asarray(np.cumprod(np.where(valid, ratio, 1.0), axis=1), np.float64)


def per_decision_is(logged: Logged) -> F64:
    """Per-decision importance sampling, sum_t rho_{0:t} r_t (Precup, Sutton, Singh 2000)."""
    weights = step_weights(logged.ratio, logged.valid)
    return np.asarray(np.sum(np.where(logged.valid, weights * logged.reward, 0.0), axis=1))


def per_decision_weighted_is(logged: Logged) -> F64:
    """Per-decision weighted importance sampling: weights at t are normalised over sessions.

    Precup, Sutton, Singh 2000; Thomas 2015 (CWPDIS). Each session's share is scaled so that the mean is the estimate.
    """
    weights = np.where(logged.valid, step_weights(logged.ratio, logged.valid), 0.0)
    total = weights.sum(axis=0)
    alive = logged.valid.sum(axis=0)
    scale = np.divide(alive, total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(np.sum(weights * scale * np.where(logged.valid, logged.reward, 0.0), axis=1))


def doubly_robust(logged: Logged) -> F64:
    """Sequential doubly robust estimate, with values to go.

    sum_t rho_{0:t-1} v_t + rho_{0:t} (r_t - q_t)          (Jiang & Li 2016, arXiv 1511.03722, eq. 10)
    """
    weights = step_weights(logged.ratio, logged.valid)
    before = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    terms = before * logged.v + weights * (logged.reward - logged.q)
    return np.asarray(np.sum(np.where(logged.valid, terms, 0.0), axis=1))


def effective_sample_size(weights: F64) -> float:
    """Kish's effective sample size (1965): (sum w)^2 / sum w^2."""
    square = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / square if square > 0 else 0.0


def overlap(target: F64, behaviour: F64, valid: Bools, least: float = 0.0) -> float:
    """Probability of the evaluated policy on actions that the log took with more than `least`.

    `target` and `behaviour` are (S, T, K), `valid` (S, T).
    """
    covered = np.sum(np.where(behaviour > least, target, 0.0), axis=-1)
    return float(covered[valid].mean()) if valid.any() else 0.0


def bootstrap(values: F64, resamples: int, tail: float, seed: int, weights: F64 | None = None) -> Interval:
    """Mean over sessions with its percentile interval, `tail` outside on each side.

    Efron & Tibshirani 1993, resampling whole sessions. `weights` (S,) turn the mean into a ratio: sum(values) /
    sum(weights) of each resample, which for weights = turns is the score per turn.
    """
    count = len(values)
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    divisor = np.ones(count) if weights is None else weights
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 256):
        size = min(256, resamples - start)
        drawn = generator.integers(0, count, (size, count))
        means[start : start + size] = values[drawn].sum(axis=1) / divisor[drawn].sum(axis=1)
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(values.sum() / divisor.sum()), float(low), float(high))


def known_noise(target: F64, other: F64, behaviour: F64, grades: F64, valid: Bools, weight_cap: float) -> F64:
    """Variance of each session's difference of doubly robust scores from the log's draws, (S,).

    sum_t sum_a mu(a) (min(pi(a)/mu(a), cap) - min(pi'(a)/mu(a), cap))^2 q(a) (1 - q(a)); arrays (S, T, K). The
    propensities are known, and a score in [0, 1] with mean q varies by q (1 - q) at most. Unlike the sample's variance,
    it does not vanish when a rare action was hardly drawn.
    """
    chance = np.maximum(behaviour, 1e-12)
    apart = np.minimum(target / chance, weight_cap) - np.minimum(other / chance, weight_cap)
    likely = np.clip(grades, 0.1, 0.9)  # no grade is certain
    noise = np.where(behaviour > 0, behaviour * apart**2 * likely * (1.0 - likely), 0.0)
    return np.asarray(noise.sum(axis=(1, 2), where=valid[..., None]))


def widen(interval: Interval, sd: float, count: int, quantile: float) -> Interval:
    """The interval, widened to the normal one of a mean over `count` with this sd."""
    reach = quantile * sd / math.sqrt(max(count, 1))
    return Interval(interval.mean, min(interval.low, interval.mean - reach), max(interval.high, interval.mean + reach))


def summary(interval: Interval) -> dict[str, Any]:
    """The interval as JSON."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
