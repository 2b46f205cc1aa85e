"""Budgeting arithmetic of the rules: prices of money, pacing, reserves, the prompt cache.

Pure NumPy over leading axes. Everywhere: `quality`, `mean_cost_usd`, `mask` have shape (..., K); `remaining_usd`,
`turns_left` (this turn included) and `lambda_per_usd` have shape (...). Serving calls with no leading axis, replay with
one per session.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.arrays import Bools, Floats
from policy.features import expected_cost_usd
from policy.mdp import COST_LEVELS

CACHE_MIN_TOKENS = 1024
"""Providers cache prompts of about a thousand tokens or more."""

_Q95, _Q98, _Q99 = (COST_LEVELS.index(level) for level in (0.95, 0.98, 0.99))
PLAN_STEPS = 6
"""A plan's gain per turn has converged by then; later turns add the gain of the model it converged on."""
PRICE_STEPS = np.concatenate([[0.0], np.geomspace(0.03, 1e3, 36)])
"""Prices of money tried by `resolve`, in quality per range of the candidates' costs, cold to warm."""


class Plan(NamedTuple):
    """Value (quality - lambda cost) and USD spend of the later turns if k serves this one."""

    value: Floats
    spend_usd: Floats


class ResolvedPrice(NamedTuple):
    """Re-solved price of money, (...,), with the scores and the plan at that price, (..., K)."""

    lambda_per_usd: Floats
    scores: Floats
    plan: Plan


def lagrangian_scores(quality: ArrayLike, mean_cost_usd: ArrayLike, lambda_per_usd: ArrayLike) -> Floats:
    """quality - lambda * cost, with `lambda_per_usd` the quality that a dollar must buy."""
    scores: Floats = np.asarray(quality) - np.asarray(lambda_per_usd)[..., None] * np.asarray(mean_cost_usd)
    return scores


def pacing_scores(
    quality: Floats,
    mean_cost_usd: Floats,
    mask: Bools,
    remaining_usd: ArrayLike,
    turns_left: ArrayLike,
    factor: float,
    lambda_per_usd: ArrayLike = 0.0,
) -> Floats:
    """quality - lambda * cost of candidates whose expected cost is within an even share.

    The share is `factor` * remaining / turns left. Candidates beyond it rank below all within it, cheaper ones higher.
    """
    share_usd = factor * np.asarray(remaining_usd, float) / np.maximum(turns_left, 1.0)
    worth = lagrangian_scores(quality, mean_cost_usd, lambda_per_usd)
    lowest = np.min(np.where(mask, worth, 0.0), axis=-1, initial=0.0, keepdims=True)
    beyond = lowest - 1.0 + cheapness(mean_cost_usd, mask)
    return np.where(mean_cost_usd <= share_usd[..., None], worth, beyond)


def cheapness(mean_cost_usd: Floats, mask: Bools) -> Floats:
    """Minus the cost in units of the most expensive allowed candidate: 0 (free) to -1."""
    costliest = np.max(np.where(mask, mean_cost_usd, 0.0), axis=-1, keepdims=True)
    return -np.asarray(mean_cost_usd / np.maximum(costliest, 1e-12))


def shield(
    cost_quantiles_usd: Floats,
    mask: Bools,
    remaining_usd: ArrayLike,
    turns_left: ArrayLike,
    reserve: float,
    cached: tuple[Floats, Floats] | None = None,
    alike: Floats | None = None,
) -> Bools:
    """Mask of the candidates after which the remaining turns can still be paid; never empty.

    Allowed when  q99(this call) + reserve * R(turns left - 1)  fits into what is left, R being `reserve_usd`; `reserve`
    is calibrated (1: all of R; 0: only this call must fit). When nothing fits, only the candidate that lacks least is
    allowed. cost_quantiles_usd is (..., K, 15); `cached` are the costs of `cache_costs`.
    """
    kept_usd = reserve * reserve_usd(cost_quantiles_usd, mask, np.asarray(turns_left, float) - 1.0, cached, alike)
    needed_usd = np.where(mask, cost_quantiles_usd[..., _Q99] + kept_usd, np.inf)
    fits = needed_usd <= np.asarray(remaining_usd, float)[..., None]
    nearest = mask & (np.arange(mask.shape[-1]) == np.argmin(needed_usd, axis=-1)[..., None])
    allowed: Bools = np.where(fits.any(axis=-1, keepdims=True), fits, nearest)
    return allowed


def reserve_usd(
    cost_quantiles_usd: Floats,
    mask: Bools,
    later_turns: ArrayLike,
    cached: tuple[Floats, Floats] | None = None,
    alike: Floats | None = None,
) -> Floats:
    """Bound the cost of n later turns on the cheapest candidate after each one, (..., K).

    With 95 % confidence; 0 without any candidate.

        R(n) = n * warm + sqrt(n) * (q95 - mean) + min(n, 1) * (cold - warm),   the last where the model changes

    Without a cache, cold, warm and mean are equal. For one turn R is q95, and for many far less than n * q95, because
    bills that are not all high together average out. Shapes: (..., K, 15), (..., K), (...); `cached` and `alike` as for
    `later_plan`.
    """
    mean, q95 = expected_cost_usd(cost_quantiles_usd), cost_quantiles_usd[..., _Q95]
    cold, warm = (mean, mean) if cached is None else cached
    later = np.maximum(np.asarray(later_turns, float), 0.0)[..., None]
    stay = np.where(mask, later * warm + np.sqrt(later) * np.maximum(q95 - mean, 0.0), np.inf)
    change = stay + np.minimum(later, 1.0) * (cold - warm)
    if alike is not None:  # another effort of the model stays too
        stay = np.min(np.where(alike > 0.0, stay[..., None, :], np.inf), axis=-1)
    least = np.minimum(stay, change.min(axis=-1, keepdims=True))
    return np.where(mask.any(axis=-1, keepdims=True), least, 0.0)


def unspent_usd(
    cost_quantiles_usd: Floats, mean_usd: Floats, cached: tuple[Floats, Floats], mask: Bools, turns_left: ArrayLike
) -> Floats:
    """Money that a session with a prompt cache is expected to leave unspent, (...).

    A model is offered while its likely bill (q98) fits, but costs the mean: after the last turn the difference is left.
    Averaged over the candidates; 0 on the last turn, and in proportion where less than a turn is expected after this.
    Also 0 where no cold cost of `cached` exceeds the warm one: there it gained nothing (docs/policy-results.md).
    """
    left = np.where(mask, np.maximum(cost_quantiles_usd[..., _Q98] - mean_usd, 0.0), 0.0)
    remembers = (mask & (cached[0] > cached[1])).any(axis=-1)
    later = remembers * np.clip(np.asarray(turns_left, float) - 1.0, 0.0, 1.0)
    return np.asarray(later * left.sum(axis=-1) / np.maximum(mask.sum(axis=-1), 1))


def kept_tokens(
    input_tokens: ArrayLike, warm_tokens: ArrayLike, served_last: ArrayLike, paused: ArrayLike
) -> NDArray[np.floating]:
    """Tokens that a later turn is expected to read from each model's cache, (..., K).

    Each on the assumption that this model serves this turn. A cache is expected to hold as much again as it holds now,
    and nothing where the model served the last turn and its cache is empty. For the other models it is the whole
    prompt, unless that is too short or the session paused for longer than caches live, `paused` (...).
    """
    tokens, warm = np.asarray(input_tokens, float), np.asarray(warm_tokens, float)
    unknown = (warm <= 0.0) & ~np.asarray(served_last, np.bool_)
    hoped = (tokens >= CACHE_MIN_TOKENS) & ~np.asarray(paused, np.bool_)[..., None]
    return np.where(unknown, np.where(hoped, tokens, 0.0), warm)


def cache_costs(
    mean_cost_usd: ArrayLike,
    warm_tokens: ArrayLike,
    kept: ArrayLike,
    input_usd_per_mtok: ArrayLike,
    cached_input_usd_per_mtok: ArrayLike,
) -> tuple[Floats, Floats]:
    """Expected cost of a turn like this one on a cold and on a warm cache, each (..., K).

    The warm one holds `kept` tokens. The input price is that of a token which is not cached: of writing it, where that
    costs more.
    """
    discount = np.maximum(np.asarray(input_usd_per_mtok) - np.asarray(cached_input_usd_per_mtok), 0.0) * 1e-6
    cold = np.asarray(mean_cost_usd) + np.asarray(warm_tokens) * discount
    return cold, np.maximum(cold - np.asarray(kept) * discount, 0.0)


def sharing_caches(caches: NDArray[np.integer]) -> Floats | None:
    """Return `alike` of `later_plan` from the number of each candidate's cache, (..., K).

    None where no cache is shared.
    """
    alike = caches[..., :, None] == caches[..., None, :]
    return alike.astype(float) if (alike.sum(axis=-1) > 1).any() else None


def later_plan(
    quality: Floats,
    cold_usd: Floats,
    warm_usd: Floats,
    mask: Bools,
    later_turns: ArrayLike,
    lambda_per_usd: Floats,
    spread: float,
    alike: Floats | None = None,
) -> Plan:
    """Value and spend of the later turns for each model serving now, by soft backward induction.

    Tasks differ: a model's quality on a later turn is its average plus Gumbel noise of scale `spread`, so with
    c(j|k) = warm cost if j and k share a prompt cache, else cold cost (the cache remembers one turn)

        V_n(k) = spread * log sum_j exp((quality_j - lambda c(j|k) + V_{n-1}(j)) / spread)
        S_n(k) = sum_j p_n(j|k) (c(j|k) + S_{n-1}(j)),   p_n the softmax of the same terms

    (McFadden 1978; the soft Bellman equation of entropy-regularised RL). Shapes (..., K), `later_turns` and
    `lambda_per_usd` (...); fractions of a turn count as fractions. `alike` (..., K, K) is 1 for efforts of one model,
    which share its cache (`sharing_caches`); without it each candidate has its own.
    """
    price = lambda_per_usd[..., None] / spread  # values are kept in units of `spread`
    turns = np.maximum(np.asarray(later_turns, float), 0.0)[..., None]
    offered = np.where(mask, quality / spread - price * cold_usd, -np.inf)
    discount = cold_usd - warm_usd
    saved = price * discount
    longest = float(turns.max(initial=0.0))
    value = spend = gain = gain_usd = np.zeros(offered.shape)
    # Without a cache to remember, every later turn is like the first.
    steps = min(math.ceil(longest), PLAN_STEPS) if discount.any() else min(math.ceil(longest), 1)
    for step in range(steps):
        backed_up, spent = _soft_backup(offered + value, saved, cold_usd + spend, warm_usd + spend, alike)
        gain, gain_usd = backed_up - value, spent - spend
        weight = np.minimum(np.maximum(turns - step, 0.0), 1.0)
        value, spend = value + weight * gain, spend + weight * gain_usd
    if longest > steps:
        more = np.maximum(turns - steps, 0.0)
        settled = np.argmax(np.where(mask, value, -np.inf), axis=-1)
        value = value + more * _pick(gain, settled)
        spend = spend + more * _pick(gain_usd, settled)
    value = spread * value
    return Plan(value, spend)


def resolve(
    quality: Floats,
    later_quality: Floats,
    mean_cost_usd: Floats,
    cold_usd: Floats,
    warm_usd: Floats,
    mask: Bools,
    remaining_usd: ArrayLike,
    turns_left: ArrayLike,
    lambda_floor_per_usd: ArrayLike,
    spread: float,
    alike: Floats | None = None,
) -> ResolvedPrice:
    """Find the lowest price of money at which this turn and the later ones cost `remaining_usd`.

    Re-solving (Jasin & Kumar 2012; "fluid" policies of revenue management): each turn the price is recomputed, so
    what was saved or lost so far is spread over the later turns. This turn counts as one of the session's tasks; only
    the scores use its own quality. Where even the highest price tried overspends, the highest is taken: the cheapest
    candidate. The price is never below the floor. `mask` marks what later turns may choose too.
    """
    floor = np.asarray(lambda_floor_per_usd, float)
    mask = mask | ~mask.any(axis=-1, keepdims=True)  # avoids warnings for rows that are all masked
    # Of cold and warm costs: the candidates' own may lie close together where one of them alone is warm.
    costliest = np.max(np.where(mask, cold_usd, -np.inf), axis=-1)
    cheapest = np.min(np.where(mask, warm_usd, np.inf), axis=-1)
    unit = 1.0 / np.maximum(costliest - cheapest, 1e-9)
    prices = floor[..., None] + PRICE_STEPS * unit[..., None]  # (..., L)
    later_turns = np.broadcast_to(np.asarray(turns_left, float)[..., None] - 1.0, prices.shape)
    plan = later_plan(
        later_quality[..., None, :],
        cold_usd[..., None, :],
        warm_usd[..., None, :],
        mask[..., None, :],
        later_turns,
        prices,
        spread,
        None if alike is None else alike[..., None, :, :],
    )
    spend_usd = _expected_total(later_quality, mean_cost_usd, mask, prices, plan, spread)
    left = np.asarray(remaining_usd, float)[..., None]
    within = spend_usd <= left
    tried = np.arange(prices.shape[-1])
    upper = np.where(within.any(axis=-1), within.argmax(axis=-1), tried[-1])[..., None]
    last_over, first_within = tried == upper - 1, tried == upper
    # Spend is taken to be linear between the last price that overspends and the first that does not.
    over = (spend_usd * last_over).sum(axis=-1, keepdims=True) - left
    under = left - (spend_usd * first_within).sum(axis=-1, keepdims=True)
    share = np.where((upper > 0) & (under >= 0.0), over / np.maximum(over + under, 1e-300), 1.0)
    weights = last_over * (1.0 - share) + first_within * share

    def between(values: Floats) -> Floats:
        return np.asarray((weights[..., None, :] @ values)[..., 0, :])

    price = between(prices[..., None])
    found = Plan(between(plan.value), between(plan.spend_usd))
    return ResolvedPrice(price[..., 0], quality - price * mean_cost_usd + found.value, found)


def _expected_total(
    later_quality: Floats, mean_cost_usd: Floats, mask: Bools, prices: Floats, plan: Plan, spread: float
) -> Floats:
    """Expected spend of this and all later turns at every price, (..., L)."""
    terms = later_quality[..., None, :] - prices[..., None] * mean_cost_usd[..., None, :] + plan.value
    terms = np.where(mask[..., None, :], terms, -np.inf) / spread
    weights = np.exp(terms - np.max(terms, axis=-1, keepdims=True))
    totals = mean_cost_usd[..., None, :] + plan.spend_usd
    expected: Floats = (weights * totals).sum(axis=-1) / weights.sum(axis=-1)
    return expected


def _pick(values: Floats, chosen: NDArray[np.intp]) -> Floats:
    """`values` (..., K) at `chosen` (...), as (..., 1): `take_along_axis` without its costly checks."""
    rows = values.reshape(-1, values.shape[-1])
    return np.asarray(rows[np.arange(len(rows)), chosen.reshape(-1)].reshape(*chosen.shape, 1))


def _soft_backup(
    terms: Floats, saved: Floats, cold_total: Floats, warm_total: Floats, alike: Floats | None = None
) -> tuple[Floats, Floats]:
    """log-sum-exp over j of terms_j + [j shares k's cache] saved_j, for every k.

    And the mean total under its softmax. One pass over the candidates instead of one per pair: only those of one cache
    differ. `saved` is not negative.
    """

    def of_cache(values: Floats) -> Floats:
        return values if alike is None else (alike @ values[..., None])[..., 0]

    most = terms.max(axis=-1, keepdims=True)
    moves = np.exp(terms - most)
    stays = np.exp(np.minimum(terms - most + saved, 600.0))
    total = (moves.sum(axis=-1, keepdims=True) - of_cache(moves)) + of_cache(stays)
    total = np.maximum(total, 1e-300)
    moved = moves * cold_total
    spent: Floats = ((moved.sum(axis=-1, keepdims=True) - of_cache(moved)) + of_cache(stays * warm_total)) / total
    return most + np.log(total), spent
