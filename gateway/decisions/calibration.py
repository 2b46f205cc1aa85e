"""Predictions against bills and scores, by model, and their drift.

Drift is the change from the older to the newer half of the turns.

A difference is called drift when it is larger than chance over sessions explains (three standard errors) and large
enough to matter (a tenth of the costs, or three points of quality).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.decisions.savings import RoutedTurn

BINS = 10
MIN_TURNS = 20
"""Turns of each half, below which nothing is said about drift."""
_COST_MATTERS, _QUALITY_MATTERS = 0.10, 0.03
_CERTAIN = 3.0


@dataclass(frozen=True, slots=True)
class ModelCalibration:
    """One model's predictions against its bills and scores; None: nothing to compare."""

    model: str
    turns: int
    cost_ratio: float | None
    """Bills over predicted costs; 1 is right."""
    graded: int
    predicted_quality: float | None
    score: float | None
    cost_drift: float | None
    """Change of the cost ratio from the older to the newer half; None: too few turns."""
    score_drift: float | None
    drifted: bool


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Graded answers of a range of predicted quality."""

    predicted: float
    score: float
    turns: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """All models, and the predicted qualities in bins."""

    models: tuple[ModelCalibration, ...]
    bins: tuple[ReliabilityBin, ...]


@dataclass(slots=True)
class _Answered:
    at_ms: int
    session: str
    billed: float
    predicted: float
    quality: float | None
    score: float | None


def calibrate(turns: Sequence[RoutedTurn]) -> Calibration:
    """Compare the predictions for what answered with bills and scores."""
    by_model: dict[str, list[_Answered]] = defaultdict(list)
    for turn in turns:
        own = next((candidate for candidate in turn.candidates if candidate["model"] == turn.model), None)
        if own is not None:
            session = f"{turn.tenant_id}/{turn.session_id}"
            by_model[turn.model].append(
                _Answered(
                    turn.at_ms, session, turn.billed_nanousd, own["cost_nano_usd"], own.get("quality"), turn.score
                )
            )
    every = [seen for found in by_model.values() for seen in found]
    middle_ms = float(np.median([seen.at_ms for seen in every])) if every else 0.0
    models = [_calibration(name, found, middle_ms) for name, found in by_model.items()]
    return Calibration(tuple(sorted(models, key=lambda model: -model.turns)), _bins(every))


def _calibration(name: str, found: Sequence[_Answered], middle_ms: float) -> ModelCalibration:
    graded = [seen for seen in found if seen.score is not None and seen.quality is not None]
    older = [seen for seen in found if seen.at_ms <= middle_ms]
    newer = [seen for seen in found if seen.at_ms > middle_ms]
    cost, cost_certain = _change(
        [(seen.session, seen.billed / seen.predicted) for seen in older if seen.predicted],
        [(seen.session, seen.billed / seen.predicted) for seen in newer if seen.predicted],
    )
    score, score_certain = _change(
        [(seen.session, seen.score) for seen in older if seen.score is not None],
        [(seen.session, seen.score) for seen in newer if seen.score is not None],
    )
    predicted = sum(seen.predicted for seen in found)
    return ModelCalibration(
        model=name,
        turns=len(found),
        cost_ratio=sum(seen.billed for seen in found) / predicted if predicted else None,
        graded=len(graded),
        predicted_quality=float(np.mean([seen.quality for seen in graded])) if graded else None,
        score=float(np.mean([seen.score for seen in graded])) if graded else None,
        cost_drift=cost,
        score_drift=score,
        drifted=(cost_certain and abs(cost or 0.0) >= _COST_MATTERS)
        or (score_certain and abs(score or 0.0) >= _QUALITY_MATTERS),
    )


def _change(older: Sequence[tuple[str, float]], newer: Sequence[tuple[str, float]]) -> tuple[float | None, bool]:
    """The difference of the means, and whether it is certain; turns of one session count as one observation."""
    if min(len(older), len(newer)) < MIN_TURNS:
        return None, False
    (before, error), (after, other) = _mean(older), _mean(newer)
    return after - before, abs(after - before) > _CERTAIN * float(np.hypot(error, other))


def _mean(values: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """The mean with its standard error, clustered by session."""
    numbers = np.array([value for _, value in values])
    mean = float(numbers.mean())
    sums: dict[str, float] = defaultdict(float)
    for session, value in values:
        sums[session] += value - mean
    clusters = len(sums)
    spread = sum(value**2 for value in sums.values()) * clusters / max(1, clusters - 1)
    return mean, float(np.sqrt(spread)) / len(numbers)


def _bins(found: Sequence[_Answered]) -> tuple[ReliabilityBin, ...]:
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for seen in found:
        if seen.quality is not None and seen.score is not None:
            groups[min(BINS - 1, int(seen.quality * BINS))].append((seen.quality, seen.score))
    return tuple(
        ReliabilityBin(float(np.mean([q for q, _ in pairs])), float(np.mean([s for _, s in pairs])), len(pairs))
        for _, pairs in sorted(groups.items())
    )
