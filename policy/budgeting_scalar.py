"""Scalar form of `budgeting` for one turn: what the gateway calls for its few candidates.

An array operation on three numbers takes twenty times as long as its arithmetic, and a decision used to take eighty of
them. `budgeting` is the reference, used by replay and evaluation; a test checks that both agree. All lists have one
entry per candidate; entries outside `mask` are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from policy.budgeting import CACHE_MIN_TOKENS, PLAN_STEPS, PRICE_STEPS
from policy.mdp import COST_LEVELS

Numbers = Sequence[float]
Mask = Sequence[bool]

_STEPS: tuple[float, ...] = tuple(PRICE_STEPS.tolist())
_Q95, _Q98, _Q99 = (COST_LEVELS.index(level) for level in (0.95, 0.98, 0.99))
_LARGEST_EXPONENT = 600.0


class ScalarPlan(NamedTuple):
    """The plan of the rest of a session at one price (`budgeting.Plan`)."""

    value: list[float]
    spend_usd: list[float]


class ScalarResolvedPrice(NamedTuple):
    """The price of money for one turn (`budgeting.ResolvedPrice`)."""

    lambda_per_usd: float
    scores: list[float]
    later: ScalarPlan


def shield(
    quantiles_usd: Sequence[Numbers],
    means_usd: Numbers,
    cached: Sequence[tuple[float, float]],
    mask: Mask,
    remaining_usd: float,
    turns_left: float,
    reserve: float,
    caches: Sequence[int] | None = None,
) -> list[bool]:
    """The candidates that leave enough for later turns, or the one that lacks least."""
    later = max(turns_left - 1.0, 0.0)
    root, first = math.sqrt(later), min(later, 1.0)
    stay, change = [], math.inf
    for usd, mean, (cold, warm), allowed in zip(quantiles_usd, means_usd, cached, mask, strict=True):
        kept = later * warm + root * max(usd[_Q95] - mean, 0.0) if allowed else math.inf
        stay.append(kept)
        change = min(change, kept + first * (cold - warm))
    if caches is not None:
        stay = [min(kept for kept, other in zip(stay, caches, strict=True) if other == cache) for cache in caches]
    needed = [
        usd[_Q99] + reserve * min(kept, change) if allowed else math.inf
        for usd, kept, allowed in zip(quantiles_usd, stay, mask, strict=True)
    ]
    fits = [usd <= remaining_usd for usd in needed]
    if any(fits):
        return fits
    nearest = needed.index(min(needed))
    return [k == nearest for k in range(len(mask))]


def unspent_usd(
    quantiles_usd: Sequence[Numbers],
    means_usd: Numbers,
    cached: Sequence[tuple[float, float]],
    mask: Mask,
    turns_left: float,
) -> float:
    """Money that a session with a prompt cache is expected to leave (`budgeting.unspent_usd`)."""
    offered = [k for k, allowed in enumerate(mask) if allowed]
    if not any(cached[k][0] > cached[k][1] for k in offered):
        return 0.0
    left = sum(max(quantiles_usd[k][_Q98] - means_usd[k], 0.0) for k in offered)
    return min(max(turns_left - 1.0, 0.0), 1.0) * left / len(offered)


def kept_tokens(input_tokens: float, warm_tokens: float, served_last: bool, paused: bool) -> float:
    """Tokens that a later turn is expected to read from a model's cache (`budgeting`)."""
    if warm_tokens > 0.0 or served_last:
        return warm_tokens
    return 0.0 if paused or input_tokens < CACHE_MIN_TOKENS else input_tokens


def cache_costs(
    mean: float, warm_tokens: float, kept: float, usd_per_mtok: float, cached_usd_per_mtok: float
) -> tuple[float, float]:
    """The costs of one candidate on a cold cache and on one that holds `kept` tokens."""
    discount = max(usd_per_mtok - cached_usd_per_mtok, 0.0) * 1e-6
    cold = mean + warm_tokens * discount
    return cold, max(cold - kept * discount, 0.0)


class Session(NamedTuple):
    """Inputs of `resolve` for a turn and later ones; `mask` marks what later turns may choose."""

    quality: Numbers
    mean_usd: Numbers
    cold_usd: Numbers
    warm_usd: Numbers
    mask: Mask
    later_turns: float
    spread: float
    caches: Sequence[int] | None = None
    """Number of each candidate's prompt cache, which efforts of one model share; None: each has its own."""

    @property
    def steps(self) -> int:
        """Number of turns planned one by one; without a cache discount every later turn is alike."""
        remembers = any(cold > warm for cold, warm in zip(self.cold_usd, self.warm_usd, strict=True))
        return min(math.ceil(self.later_turns), PLAN_STEPS if remembers else 1)

    def later(self, price: float) -> ScalarPlan:
        """The plan of the later turns at one price of money."""
        count, spread, steps = len(self.mask), self.spread, self.steps
        scaled = price / spread
        offered = [
            quality / spread - scaled * cold if allowed else -math.inf
            for quality, cold, allowed in zip(self.quality, self.cold_usd, self.mask, strict=True)
        ]
        saved = [scaled * (cold - warm) for cold, warm in zip(self.cold_usd, self.warm_usd, strict=True)]
        value, spend = [0.0] * count, [0.0] * count
        gain, gain_usd = value, spend
        for step in range(steps):
            terms = [offer + worth for offer, worth in zip(offered, value, strict=True)]
            best, spent = _soft_backup(terms, saved, self.cold_usd, self.warm_usd, spend, self.caches)
            gain = [new - old for new, old in zip(best, value, strict=True)]
            gain_usd = [new - old for new, old in zip(spent, spend, strict=True)]
            weight = min(max(self.later_turns - step, 0.0), 1.0)
            value = [old + weight * more for old, more in zip(value, gain, strict=True)]
            spend = [old + weight * more for old, more in zip(spend, gain_usd, strict=True)]
        more_turns = self.later_turns - steps
        if more_turns > 0.0 and steps:
            settled = max((k for k in range(count) if self.mask[k]), key=value.__getitem__)
            value = [old + more_turns * gain[settled] for old in value]
            spend = [old + more_turns * gain_usd[settled] for old in spend]
        return ScalarPlan([spread * old for old in value], spend)

    def total_usd(self, price: float, later: ScalarPlan) -> float:
        """Expected spend of this and all later turns at a price, this turn's quality unknown."""
        terms = [
            (quality - price * mean + value) / self.spread
            for quality, mean, value in zip(self.quality, self.mean_usd, later.value, strict=True)
        ]
        most = max(term for term, allowed in zip(terms, self.mask, strict=True) if allowed)
        weights = [math.exp(term - most) if allowed else 0.0 for term, allowed in zip(terms, self.mask, strict=True)]
        spent = [
            weight * (mean + usd) for weight, mean, usd in zip(weights, self.mean_usd, later.spend_usd, strict=True)
        ]
        return sum(spent) / sum(weights)


def resolve(
    session: Session, quality: Numbers, remaining_usd: float, lambda_floor_per_usd: float
) -> ScalarResolvedPrice:
    """The price at which a session's money lasts, by bisection (`budgeting.resolve`).

    Spend falls as the price rises (it is the slope of a convex function of the price, soft Bellman values), so that the
    first price within the money is found without trying all.
    """
    price, later = lambda_floor_per_usd, session.later(lambda_floor_per_usd)
    usd = session.total_usd(price, later)
    if usd > remaining_usd:
        price, later = _raised_price(session, remaining_usd, price, later, usd)
    scores = [
        now - price * mean + value for now, mean, value in zip(quality, session.mean_usd, later.value, strict=True)
    ]
    return ScalarResolvedPrice(price, scores, later)


def _raised_price(
    session: Session, remaining_usd: float, floor: float, floor_later: ScalarPlan, floor_usd: float
) -> tuple[float, ScalarPlan]:
    """Interpolate between the last price that overspends and the first that does not."""
    costliest = max(cold for cold, allowed in zip(session.cold_usd, session.mask, strict=True) if allowed)
    cheapest = min(warm for warm, allowed in zip(session.warm_usd, session.mask, strict=True) if allowed)
    unit = 1.0 / max(costliest - cheapest, 1e-9)
    low, high = 0, len(_STEPS) - 1
    tried: dict[int, tuple[float, ScalarPlan, float]] = {0: (floor, floor_later, floor_usd)}

    def spent_usd(step: int) -> float:
        if step not in tried:
            price = floor + _STEPS[step] * unit
            later = session.later(price)
            tried[step] = price, later, session.total_usd(price, later)
        return tried[step][2]

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if spent_usd(middle) <= remaining_usd else (middle, high)
    under = remaining_usd - spent_usd(high)
    price, later, _ = tried[high]
    if under < 0.0:
        return price, later  # even the highest overspends
    price_low, later_low, usd_low = tried[low]
    over = usd_low - remaining_usd
    share = over / max(over + under, 1e-300)

    def between(lows: Numbers, highs: Numbers) -> list[float]:
        return [a * (1.0 - share) + b * share for a, b in zip(lows, highs, strict=True)]

    met = ScalarPlan(between(later_low.value, later.value), between(later_low.spend_usd, later.spend_usd))
    return price_low * (1.0 - share) + price * share, met


def _soft_backup(
    terms: Numbers,
    saved: Numbers,
    cold_usd: Numbers,
    warm_usd: Numbers,
    spend_usd: Numbers,
    caches: Sequence[int] | None,
) -> tuple[list[float], list[float]]:
    """`budgeting._soft_backup` at one price."""
    most = max(terms)
    moves = [math.exp(term - most) for term in terms]
    totals = [usd + later for usd, later in zip(cold_usd, spend_usd, strict=True)]
    moved = [move * usd for move, usd in zip(moves, totals, strict=True)]
    all_moves, all_moved = sum(moves), sum(moved)
    stays = [math.exp(min(term - most + less, _LARGEST_EXPONENT)) for term, less in zip(terms, saved, strict=True)]
    stayed = [stay * (usd + later) for stay, usd, later in zip(stays, warm_usd, spend_usd, strict=True)]
    if caches is not None:
        moves, moved, stays, stayed = (_of_cache(each, caches) for each in (moves, moved, stays, stayed))
    values, spends = [], []
    for left, left_usd, stay, stay_usd in zip(moves, moved, stays, stayed, strict=True):
        total = max(all_moves - left + stay, 1e-300)
        values.append(most + math.log(total))
        spends.append((all_moved - left_usd + stay_usd) / total)
    return values, spends


def _of_cache(values: Numbers, caches: Sequence[int]) -> list[float]:
    """The sum over the candidates that share each one's cache."""
    total = dict.fromkeys(caches, 0.0)
    for cache, value in zip(caches, values, strict=True):
        total[cache] += value
    return [total[cache] for cache in caches]
