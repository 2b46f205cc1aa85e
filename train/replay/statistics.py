"""Rows of the output: means, paired bootstrap intervals, differences to the best baseline.

The tasks of the test half are resampled, the same resamples for every policy of a source; a turn counts as often as its
task was drawn. Decisions under a budget are not replayed per resample: the usual approximation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy.arrays import F64, I64, Bools
from train.replay.compose import ORDERINGS, Sessions
from train.replay.simulator import Played

MIXED = "mixed"


@dataclass(frozen=True)
class CellEntry:
    """One policy's result in one cell, with its lambda and tuned parameters.

    `training_quality` is its quality on the training half, None if not tuned. `baseline`: a candidate for the cell's
    best tuned baseline.
    """

    policy: str
    played: Played
    lambda_per_usd: float | None = None
    training_quality: float | None = None
    baseline: bool = False
    numbers: Mapping[str, Any] | None = None
    served: str | None = None
    """Kind of the policy behind `ours` (`network`, `planner`, `rule:NAME`, `heuristic:NAME`)."""


class Resampled:
    """Bootstrap weights of every task of a source; means per turn for many policies."""

    def __init__(self, tasks: int, resamples: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, tasks, (resamples, tasks))
        self._weights = np.stack([np.bincount(row, minlength=tasks) for row in drawn]).astype(np.float32)

    def means(self, task: I64, values: F64) -> F64:
        """Means of values (N, E) of turns that belong to tasks (N,), under every resample: (R, E)."""
        used, at = np.unique(task, return_inverse=True)
        weights = self._weights[:, used]
        count = np.bincount(at, minlength=len(used)).astype(np.float32)
        sums = np.stack([np.bincount(at, weights=column, minlength=len(used)) for column in values.T], axis=1)
        return np.asarray((weights @ sums) / np.maximum(weights @ count, 1e-9)[:, None], np.float64)


def best_tuned(entries: Sequence[CellEntry]) -> int:
    """Index of the best baseline on the training half."""
    of_baselines = [(e.training_quality or 0.0, -i) for i, e in enumerate(entries) if e.baseline]
    return -max(of_baselines)[1]


def best_on_test(entries: Sequence[CellEntry]) -> int:
    """Index of the best baseline on the test half itself: an upper bound for choosing one."""
    earned = [(float(e.played.quality[e.played.valid].mean()), -i) for i, e in enumerate(entries) if e.baseline]
    return -max(earned)[1]


def rows(
    entries: Sequence[CellEntry],
    sessions: Sessions,
    task_of_prompt: I64,
    resampled: Resampled,
    strong: int,
    cell: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One row per policy and ordering, the mixed set first. `cell` has the shared columns."""
    reference, bound = best_tuned(entries), best_on_test(entries)
    found = []
    for ordering, chosen in _parts(sessions):
        valid = sessions.valid[chosen]
        task = task_of_prompt[sessions.rows[chosen][valid]]
        values = np.stack([entry.played.quality[chosen][valid] for entry in entries], axis=1)
        means = resampled.means(task, values)
        for i, entry in enumerate(entries):
            found.append(
                {
                    **cell,
                    "ordering": ordering,
                    "policy": entry.policy,
                    "served": entry.served,
                    "lambda": entry.lambda_per_usd,
                    **_interval("quality", values[:, i].mean(), means[:, i]),
                    "best_tuned": entries[reference].policy,
                    **_difference("best_tuned", i, reference, values, means),
                    **_difference("best_on_test", i, bound, values, means),
                    **_conduct(entry.played, chosen, strong),
                    "training_quality": entry.training_quality,
                    "numbers": dict(entry.numbers or {}),
                }
            )
    return found


def _parts(sessions: Sessions) -> list[tuple[str, Bools]]:
    present = [o for o in range(len(ORDERINGS)) if (sessions.ordering == o).any()]
    everything = [(MIXED, np.ones(len(sessions.ordering), np.bool_))] if len(present) > 1 else []
    return everything + [(ORDERINGS[o], sessions.ordering == o) for o in present]


def _interval(name: str, mean: float, resampled: F64) -> dict[str, float]:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {name: round(float(mean), 6), f"{name}_lo": round(float(low), 6), f"{name}_hi": round(float(high), 6)}


def _difference(name: str, i: int, reference: int, values: F64, means: F64) -> dict[str, float]:
    """Paired: both policies saw the same turns in every resample."""
    short = {"best_tuned": "diff", "best_on_test": "diff_vs_best_on_test"}[name]
    low, high = np.quantile(means[:, i] - means[:, reference], (0.025, 0.975))
    mean = float((values[:, i] - values[:, reference]).mean())
    head = "diff_vs_best_tuned" if name == "best_tuned" else short
    return {head: round(mean, 6), f"{short}_lo": round(float(low), 6), f"{short}_hi": round(float(high), 6)}


def _conduct(played: Played, chosen: Bools, strong: int) -> dict[str, float]:
    """Money per session, and rates of failed sessions and turns."""
    answered = played.action[chosen] >= 0
    return {
        "cost_usd": float(f"{played.cost_usd[chosen].sum(axis=1).mean():.6g}"),
        "starved_rate": round(float(played.starved[chosen].mean()), 6),
        "bankrupt_rate": round(float(played.bankrupt[chosen].mean()), 6),
        "unanswered_rate": round(float(played.unanswered[chosen].any(axis=1).mean()), 6),
        "switches": round(float(played.switches[chosen].mean()), 6),
        "strong_share": round(float((played.action[chosen] == strong).sum() / max(int(answered.sum()), 1)), 6),
        "entropy_bits": round(entropy_bits(played.action[chosen][answered]), 6),
    }


def entropy_bits(actions: I64) -> float:
    """Shannon entropy of the choices (N,).

    0 for always the same model, log2 K for K models equally often.
    """
    shares = np.bincount(actions) / max(len(actions), 1)
    shares = shares[shares > 0.0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0
