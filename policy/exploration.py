"""Exploration with exactly known probabilities: one draw, used by every policy.

    p(a) = (1 - floor) * [a is the best] + floor * u(a)

`u` is uniform over the near-ties of the best, where trying costs nothing; without a near-tie it is a softmax over what
is allowed. The logged propensity is the number the draw used, after every mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.mdp import BoolArray, FloatArray, PolicyFault

_NEVER = 1e-6
"""Smaller probabilities become zero: no log would ever weigh them usefully."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """`floor` is the probability of exploring; `tolerance` (what counts as a near-tie) and `temperature` are in the
    scores' units: quality, 0 to 1."""

    floor: float = 0.0
    tolerance: float = 0.02
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not (0.0 <= self.floor <= 1.0 and self.tolerance >= 0.0 and self.temperature > 0.0):
            raise ValueError(f"exploration out of range: {self}")


GREEDY = Exploration()


def action_probabilities(scores: NDArray[np.floating], mask: BoolArray, exploration: Exploration) -> FloatArray:
    """Probability of every candidate, float32 (K,), zero outside `mask`. The first of equal scores is the best."""
    if not mask.any():
        raise PolicyFault("no candidate may be chosen")
    shown = np.where(mask, np.asarray(scores, np.float64), -np.inf)
    best = int(np.argmax(shown))
    if not np.isfinite(shown[mask]).all():
        raise PolicyFault("a score is not finite")
    probabilities = np.zeros(shown.shape)
    if exploration.floor > 0.0:
        near = shown >= shown[best] - exploration.tolerance
        tried = near.astype(np.float64) if near.sum() > 1 else np.exp((shown - shown[best]) / exploration.temperature)
        probabilities = exploration.floor * tried / tried.sum()
    probabilities[best] += 1.0 - exploration.floor
    probabilities[probabilities < _NEVER] = 0.0
    normalised: FloatArray = (probabilities / probabilities.sum()).astype(np.float32)
    return normalised


def draw(probabilities: FloatArray, uniform: float) -> int:
    """The action whose share of [0, 1) holds `uniform`; never one of probability zero."""
    if not 0.0 <= uniform < 1.0:
        raise PolicyFault("expected a uniform number in [0, 1)")
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    action = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(action, int(np.flatnonzero(probabilities)[-1]))
