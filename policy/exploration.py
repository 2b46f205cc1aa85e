"""Exploration with exactly known probabilities: one draw, used by every policy.

    p(a) = (1 - floor) * [a is the best] + floor * u(a)

`u` is proportional to exp(-(gap - tolerance)+ / temperature): the near-ties of the best share alike, since trying them
costs nothing, and what is worse by more than the tolerance is tried the more rarely the worse it is, near-ties or not.
The logged propensity is the number the draw used, after every mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.mdp import BoolArray, FloatArray, PolicyFault

NEVER = 1e-6
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
        beyond = np.maximum(shown[best] - shown - exploration.tolerance, 0.0)
        tried = np.exp(-beyond / exploration.temperature)
        probabilities = exploration.floor * tried / tried.sum()
    probabilities[best] += 1.0 - exploration.floor
    probabilities[probabilities < NEVER] = 0.0
    normalised: FloatArray = (probabilities / probabilities.sum()).astype(np.float32)
    return normalised


def draw(probabilities: FloatArray, uniform: float) -> int:
    """The action whose share of [0, 1) holds `uniform`; never one of probability zero."""
    if not 0.0 <= uniform < 1.0:
        raise PolicyFault("expected a uniform number in [0, 1)")
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    action = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(action, int(np.flatnonzero(probabilities)[-1]))


class Price(NamedTuple):
    """What exploring is expected to cost one turn, against taking the most probable candidate; neither is negative."""

    extra_usd: float
    quality: float


def price(probabilities: FloatArray, cost_usd: NDArray[np.floating], quality: NDArray[np.floating]) -> Price:
    """sum_a p(a) (cost(a) - cost(best))+ and (sum_a p(a) (quality(best) - quality(a)))+, all (K,); best = argmax p.

    Trying something cheaper saves no money here: a budget for exploring is not refilled by luck. Where a policy says
    nothing of quality (NaN), none is counted as given up.
    """
    best = int(np.argmax(probabilities))
    p = np.asarray(probabilities, np.float64)
    dearer = np.maximum(np.asarray(cost_usd, np.float64) - float(cost_usd[best]), 0.0)
    worse = np.nan_to_num(float(quality[best]) - np.asarray(quality, np.float64), nan=0.0)
    return Price(float(p @ dearer), max(0.0, float(p @ worse)))
