"""Prior quality model, used before anything is learned: catalogue priors bent by difficulty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32
from policy.mdp import Observation
from policy.text import STAT_NAMES

_LENGTH, _CODE, _MATH, _REASONING = (
    STAT_NAMES.index(name) for name in ("log_chars", "code_marks", "math_marks", "reasoning_words")
)
_ORDINARY = 0.35
"""Difficulty at which the priors hold as they are."""


class QualityModel(Protocol):
    """Predictor of the quality of every candidate, 0 to 1, float32 (K,)."""

    def predict(self, observation: Observation) -> F32:
        """Quality on this turn."""

    def average(self, observation: Observation) -> F32:
        """Quality on a later turn of the session."""


@dataclass(frozen=True, slots=True)
class PriorQuality:
    """The prior as a quality: hard turns widen the gap between weak and strong models.

    At the ordinary difficulty priors .6 and .9 stay; at difficulty 1 they are .28 and .77, at 0 .73 and .94.
    """

    sensitivity: float = 2.0

    def predict(self, observation: Observation) -> F32:
        """The priors bent by this turn's difficulty."""
        return np.asarray(self.average(observation) ** np.float32(self.exponent(difficulty(observation))), np.float32)

    def exponent(self, difficulty: Any) -> Any:
        """Exponent of the priors, rising with difficulty (0 to 1); 1 at ordinary difficulty."""
        return 2.0 ** (self.sensitivity * (difficulty - _ORDINARY))

    def average(self, observation: Observation) -> F32:
        """The priors as they are."""
        priors = [min(max(c.quality_prior, 1e-3), 1.0) for c in observation.candidates]
        return np.array(priors, np.float32)


def difficulties(
    text_stats: NDArray[np.floating], trouble: NDArray[np.floating], poor: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The difficulty of many turns, (N,).

    From statistics (N, STATS_DIM), failures of any kind and whether the last grade was poor.
    """
    stats = np.asarray(text_stats, np.float64)
    text = (
        0.8 * np.clip(stats[:, _LENGTH] - 0.2, 0.0, 0.5)
        + 0.15 * np.minimum(stats[:, _CODE], 1.0)
        + 0.15 * np.minimum(stats[:, _MATH], 1.0)
        + 0.2 * np.minimum(stats[:, _REASONING], 1.0)
    )
    return np.asarray(np.clip(text + np.minimum(0.2 * np.log1p(trouble) + 0.2 * poor, 0.5), 0.0, 1.0))


def difficulty(observation: Observation) -> float:
    """Heuristic difficulty, 0 to 1, from the text's surface and above all the session so far.

    A failure, a tool error, a regeneration or a poor last grade says more than any word of the text (escalation).
    """
    stats, session = observation.text_stats, observation.session
    text = (
        0.8 * min(max(float(stats[_LENGTH]) - 0.2, 0.0), 0.5)
        + 0.15 * min(float(stats[_CODE]), 1.0)
        + 0.15 * min(float(stats[_MATH]), 1.0)
        + 0.2 * min(float(stats[_REASONING]), 1.0)
    )
    poor = session.last_quality is not None and session.last_quality < 0.5
    trouble = 0.2 * math.log1p(session.failures + session.tool_errors + session.regenerations) + 0.2 * poor
    return float(min(max(text + min(trouble, 0.5), 0.0), 1.0))
