"""Scores of turns from logged quality signals, recomputable since signals are stored.

A turn without a grade has no score (NaN), never zero: train/fit/reward_model.py estimates it and the estimators correct
for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.decisions.feedback import JUDGE
from train.config import RewardConfig

LabelKind = Literal["turn", "session", "implicit", "none"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of `feedback`: `score` in [0, 1]."""

    source: str
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Label:
    """Score of a turn and its origin; `score` is NaN when `kind` is "none"."""

    score: float
    kind: LabelKind
    implied: bool = False
    """Whether an implicit signal would grade the turn if nothing else did."""


def label(
    of_turn: Iterable[Signal], of_session: Iterable[Signal], implicit: Mapping[str, object], config: RewardConfig
) -> Label:
    """Score one turn: by its own feedback, else the session's, else implicit signals, else none.

    A session's score counts for each of its turns, so a session's return stays (score x turns).
    """
    implied = [config.implicit[name] for name, seen in implicit.items() if seen and name in config.implicit]
    spoken = weighted_mean(of_turn, config)
    if spoken is not None:
        return Label(spoken, "turn", bool(implied))
    spoken = weighted_mean(of_session, config)
    if spoken is not None:
        return Label(spoken, "session", bool(implied))
    if implied:
        return Label(min(implied), "implicit", True)
    return Label(math.nan, "none")


def second_score(first: Label, of_first: Iterable[Signal], of_second: Iterable[Signal], config: RewardConfig) -> float:
    """Score of a second answer, which only the judge graded; NaN without a common scale.

    Where others graded the first answer too, the judge's difference of both counts from the first's score:
    score 2 = score 1 + judge 2 - judge 1, in [0, 1].
    """
    second = weighted_mean(of_second, config)
    if second is None:
        return math.nan
    first_by_judge = weighted_mean((each for each in of_first if each.source == JUDGE), config)
    if first_by_judge is None:
        return second if first.kind == "none" else math.nan
    return min(1.0, max(0.0, first.score + second - first_by_judge))


def weighted_mean(signals: Iterable[Signal], config: RewardConfig) -> float | None:
    """Weighted mean of the scores, clipped to [0, 1]; None without signals.

    A signal's weight is that of its name, else of its source, else 1.
    """
    total = weight = 0.0
    for signal in signals:
        w = config.weights.get(signal.name, config.weights.get(signal.source, 1.0))
        if w > 0 and math.isfinite(signal.score):
            total += w * min(1.0, max(0.0, signal.score))
            weight += w
    return total / weight if weight > 0 else None
