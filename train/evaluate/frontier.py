"""Cost-quality frontier of a log: a policy swept over lambda and budgets, and single models.

Every point is the policy itself, run through the held-out sessions with its own budget (train/evaluate/simulate.py) and
scored doubly robust. All points share sessions and random draws; intervals are a bootstrap over whole sessions with the
same resamples for every point, so that "which budget for this quality" has an interval too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policy.arrays import F64, I64
from policy.features import expected_cost_usd
from policy.mdp import Policy
from policy.rules import Fixed
from train.evaluate.simulate import play
from train.log.episodes import Episodes

LAMBDAS, BUDGETS = 9, 9
"""Points of either sweep, without lambda 0."""
RESAMPLES = 1000
LAMBDA_RANGE = (0.02, 5.0)
"""From almost no effect to always the cheapest, in quality points per mean bill of a turn."""
BUDGET_RANGE = (0.7, 1.5)
"""In session costs: times the cheapest model's to times the most expensive one's."""


@dataclass(frozen=True)
class SweepSetting:
    """One point of a sweep: lambda and the budget of every session (None: the log's)."""

    lambda_per_usd: float
    budget_usd: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of one policy under one setting, (S,) each: summed score, bill, whether it starved."""

    policy: str
    setting: SweepSetting
    score: F64
    spent_usd: F64
    starved: F64


@dataclass(frozen=True)
class Sample:
    """Sessions to play, with grades of every candidate at every turn, (S, T, K)."""

    episodes: Episodes
    grades: F64
    seed: int
    weight_cap: float


class SessionResamples:
    """Bootstrap weights over sessions, (R, S), shared by all means.

    The sessions of one tree are drawn together.
    """

    def __init__(self, turns: F64, trees: I64, seed: int, resamples: int = RESAMPLES) -> None:
        generator = np.random.default_rng([seed, 11])
        count = int(trees.max()) + 1
        drawn = generator.integers(0, count, (resamples, count))
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        self.weights = weights[:, trees]
        self.turns = turns

    def per_turn(self, values: F64) -> F64:
        """Mean per turn of values (S, ...) under every resample, (R, ...)."""
        return np.asarray(np.tensordot(self.weights, values, axes=(1, 0)).T / (self.weights @ self.turns)).T

    def per_session(self, values: F64) -> F64:
        """Mean per session of values (S, ...) under every resample, (R, ...)."""
        return np.asarray(np.tensordot(self.weights, values, axes=(1, 0)).T / self.weights.sum(axis=1)).T


def lambda_settings(episodes: Episodes) -> list[SweepSetting]:
    """Lambda 0 and a geometric sweep in units of the log's mean bill."""
    bill = max(float(episodes.cost_usd[episodes.valid].mean()), 1e-12)
    low, high = LAMBDA_RANGE
    return [SweepSetting(0.0), *(SweepSetting(float(x)) for x in np.geomspace(low, high, LAMBDAS) / bill)]


def budget_settings(episodes: Episodes) -> list[SweepSetting]:
    """Geometric sweep of one budget for all sessions, around the session costs of single models."""
    costs = expected_cost_usd(episodes.cost_quantiles_usd.astype(np.float64))
    able = episodes.mask & episodes.valid[..., None]
    cheapest = np.where(able, costs, np.inf).min(axis=-1, initial=np.inf)
    costliest = np.where(able, costs, 0.0).max(axis=-1, initial=0.0)
    low, high = (float(np.where(episodes.valid, x, 0.0).sum(axis=1).mean()) for x in (cheapest, costliest))
    low, high = max(low * BUDGET_RANGE[0], 1e-12), max(high * BUDGET_RANGE[1], 1e-12)
    return [SweepSetting(0.0, float(x)) for x in np.geomspace(low, max(high, low * 2), BUDGETS)]


def outcome(policy: Policy, setting: SweepSetting, sample: Sample, name: str | None = None) -> Outcome:
    """Play one policy under one setting."""
    logged = sample.episodes
    asked = replace(logged, lambda_per_usd=np.full_like(logged.lambda_per_usd, setting.lambda_per_usd))
    if setting.budget_usd is not None:
        full = np.full_like(logged.budget_usd, setting.budget_usd)
        asked = replace(asked, budget_usd=full, remaining_usd=full)
    played = play(policy, asked, sample.grades, seed=sample.seed, weight_cap=sample.weight_cap)
    return Outcome(
        name or policy.policy_id, setting, played.score.sum(axis=1), played.spent_usd, played.starved.astype(np.float64)
    )


def sweep(
    policy: Policy, settings: Sequence[SweepSetting], sample: Sample, step: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Play the policy under every setting."""
    found = []
    for setting in settings:
        found.append(outcome(policy, setting, sample))
        step()
    return found


def single_models(sample: Sample, step: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Play every model alone under the log's budgets, with the cheapest as its fallback."""
    found = []
    for model in sample.episodes.models:
        found.append(outcome(Fixed(model), SweepSetting(0.0), sample, f"only {model}"))
        step()
    return found


def least_budget(budgets_usd: F64, quality: F64, wanted: float) -> float:
    """Least budget at which a quality is reached; infinite if none.

    `budgets_usd` ascending (P,), `quality` (P,). More money never hurts, so the curve is its running maximum; between
    points it is linear in the logarithm of the budget.
    """
    curve = np.maximum.accumulate(quality)
    above = np.flatnonzero(curve >= wanted)
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(budgets_usd[0])
    share = (wanted - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(np.exp(np.log(budgets_usd[i - 1]) + share * np.log(budgets_usd[i] / budgets_usd[i - 1])))


def budget_for(outcomes: Sequence[Outcome], wanted: float, resampled: SessionResamples) -> dict[str, Any]:
    """Least budget per session for a quality, with its 95 % interval; null where out of reach."""
    budgets = np.array([o.setting.budget_usd for o in outcomes], np.float64)
    scores = np.stack([o.score for o in outcomes], axis=1)
    best = least_budget(budgets, scores.sum(axis=0) / resampled.turns.sum(), wanted)
    found = np.sort([least_budget(budgets, row, wanted) for row in resampled.per_turn(scores)])
    low, high = (found[min(int(level * len(found)), len(found) - 1)] for level in (0.025, 0.975))
    return {
        "quality": wanted,
        "budget_usd": _finite(best),
        "low": _finite(low),
        "high": _finite(high),
        "reached_in": float(np.isfinite(found).mean()),
    }


def presets_of(outcomes: Sequence[Outcome], shares: Mapping[str, float]) -> dict[str, float]:
    """Lambda of each preset from measured bills.

    The least lambda whose mean bill is within `share` of the way, on a log scale, from the sweep's cheapest point to
    that of lambda 0.
    """
    bills = np.array([max(float(o.spent_usd.mean()), 1e-15) for o in outcomes])
    least, most = bills.min(), bills[0]
    found = {}
    for name, share in shares.items():
        within = np.flatnonzero(bills <= least * (most / least) ** share * (1 + 1e-9))
        found[name] = float(outcomes[int(within[0])].setting.lambda_per_usd) if len(within) else 0.0
    return found


def as_point(outcome: Outcome, resampled: SessionResamples) -> dict[str, Any]:
    """A point as JSON with 95 % intervals: quality per turn, bill per session, starved share."""
    turns = float(resampled.turns.sum())
    return {
        "policy": outcome.policy,
        "lambda_per_usd": outcome.setting.lambda_per_usd,
        "budget_usd": outcome.setting.budget_usd,
        "quality": _interval(float(outcome.score.sum()) / turns, resampled.per_turn(outcome.score)),
        "cost_usd": _interval(float(outcome.spent_usd.mean()), resampled.per_session(outcome.spent_usd)),
        "starved_rate": _interval(float(outcome.starved.mean()), resampled.per_session(outcome.starved)),
    }


def _interval(mean: float, resampled: F64) -> dict[str, float]:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"mean": mean, "low": float(low), "high": float(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
