"""Exploration with exactly known probabilities: one draw, used by every policy.

    p(a) = (1 - floor - extra) * [a is the best] + floor * u(a) + extra * wanted(a) / sum wanted,
    extra = min(floor * max wanted, 1 - floor)

`u` is proportional to exp(-(gap - tolerance)+ / temperature): near-ties of the best candidate share equally, since
trying them costs nothing; beyond the tolerance, worse candidates are tried exponentially less often. `wanted`, 0 to 1,
is what each candidate lacks of its quota of answers (gateway/routing/exploration.py): without it a model whose score
is far behind would never be tried, and the log would never show that the score is wrong.
The logged propensity is the number the draw used, after every mask.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32, Bools
from policy.mdp import PolicyFault

NEVER = 1e-6
"""Smaller probabilities become zero: no log would ever weigh them usefully."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """Exploration settings: probability of exploring, width of a near-tie, temperature.

    `floor` is that probability; `tolerance` and `temperature` are in the scores' units: quality, 0 to 1.
    """

    floor: float = 0.0
    tolerance: float = 0.02
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not (0.0 <= self.floor <= 1.0 and self.tolerance >= 0.0 and self.temperature > 0.0):
            raise ValueError(f"exploration out of range: {self}")


GREEDY = Exploration()


def action_probabilities(
    scores: NDArray[np.floating], mask: Bools, exploration: Exploration, wanted: Sequence[float] = ()
) -> F32:
    """Probability of every candidate, float32 (K,), zero outside `mask`.

    The first of equal scores is the best. Raises PolicyFault without a candidate or with a score that is not finite.
    """
    shown: list[float] = np.asarray(scores, np.float64).tolist()
    return shares_of(shown, list(compress(range(len(shown)), np.asarray(mask).tolist())), exploration, wanted)


def shares_of(shown: list[float], allowed: list[int], exploration: Exploration, wanted: Sequence[float] = ()) -> F32:
    """The probabilities of plain scores at the places of the allowed candidates."""
    if not allowed:
        raise PolicyFault("no candidate may be chosen")
    if not all(map(math.isfinite, [shown[k] for k in allowed])):
        raise PolicyFault("a score is not finite")
    best = max(allowed, key=shown.__getitem__)
    probabilities, taken = [0.0] * len(shown), 0.0
    if exploration.floor > 0.0:
        enough = shown[best] - exploration.tolerance
        tried = [math.exp(-max(enough - shown[k], 0.0) / exploration.temperature) for k in allowed]
        share = exploration.floor / sum(tried)
        for k, weight in zip(allowed, tried, strict=True):
            probabilities[k] = share * weight
        if wanted and (lacking := [wanted[k] for k in allowed]) and (most := max(lacking)) > 0.0:
            taken = min(exploration.floor * most, 1.0 - exploration.floor)
            for k, lack in zip(allowed, lacking, strict=True):
                probabilities[k] += taken * lack / sum(lacking)
    probabilities[best] += 1.0 - exploration.floor - taken
    kept = [p if p >= NEVER else 0.0 for p in probabilities]
    total = sum(kept)
    return np.array([p / total for p in kept], np.float32)


def draw(probabilities: F32, uniform: float) -> int:
    """The action whose share of [0, 1) holds `uniform`; never one of probability zero."""
    if not 0.0 <= uniform < 1.0:
        raise PolicyFault("expected a uniform number in [0, 1)")
    shares: list[float] = probabilities.tolist()
    cumulative = list(accumulate(shares))
    action = bisect_right(cumulative, uniform * cumulative[-1])
    return min(action, max(k for k, share in enumerate(shares) if share > 0.0))


class Price(NamedTuple):
    """Expected cost of exploring in one turn against its best candidate; not negative."""

    extra_usd: float
    quality: float


def price(probabilities: F32, best: int, cost_usd: Sequence[float], quality: NDArray[np.floating]) -> Price:
    """Expected extra cost and lost quality of drawing from `probabilities`; arrays are (K,).

        extra_usd = sum_a p(a) (cost(a) - cost(best))+,    quality = (sum_a p(a) (quality(best) - quality(a)))+

    `best` is the best by score, though a candidate below its quota may be more probable. Cheaper draws save nothing
    here, because they must not refill the budget for exploration. Where a policy predicts no quality (NaN), no loss of
    quality is counted.
    """
    chances: list[float] = np.asarray(probabilities).tolist()
    qualities: list[float] = np.asarray(quality).tolist()
    extra = sum([p * max(cost - cost_usd[best], 0.0) for p, cost in zip(chances, cost_usd, strict=True)])
    # A NaN is not greater than anything, nor less.
    worse = [p * (qualities[best] - q) for p, q in zip(chances, qualities, strict=True)]
    return Price(extra, max(0.0, sum([lost for lost in worse if lost < 0.0 or lost > 0.0])))
