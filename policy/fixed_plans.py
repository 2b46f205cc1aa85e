"""Fixed plans: what later turns are worth at least where a cache holds the conversation.

The value curves err most for long conversations on catalogues that they were not trained on, and an error of a few
hundredths a turn decides whose cache is filled. Some plans need no network: model j for t turns, then i, the model with
the cheapest turns on a warm cache. Of n turns such a plan earns and costs

    t q_j + (n - t) q_i,    first_j + mean_j + (t - 1) w_j + [t < n] (switch_i + (n - t) w_i),

w being the bill of a turn on a warm cache and switch_i what i's first reading costs beyond that. t is as long as the
money allows that sqrt(n) (q95_j - mean_j) leaves, the tail of n independent bills, as in the shield: one plan in twenty
costs more. The best policy is worth no less than the best plan, whose values replace the network's where these are
lower: a rollout over several base policies (Bertsekas, Tsitsiklis, Wu 1997).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from policy.budgeting import CACHE_MIN_TOKENS
from policy.value_curves import Catalogue, Later, session_usd

LOST = 0.05
"""Chance that a plan costs more than its money."""
LEAST_USD = 1e-15


class Plans(NamedTuple):
    """All plans after each candidate that serves now.

    Of K models after S candidates, (..., S, K), or numbers (..., S, 1). A plan of t turns on the model costs
    `start_usd` + t `each_usd`, one of all turns `stay_usd`. `rest` is the quality of i, `gain` what a turn on the model
    earns beyond it, `held` tells whether a cache holds the conversation.
    """

    start_usd: Any
    each_usd: Any
    stay_usd: Any
    tail_usd: Any
    gain: Any
    rest: Any
    turns: Any
    lambda_per_usd: Any
    penalty: Any
    mask: Any
    held: Any


def plans_of(catalogue: Catalogue, later: Later, xp: Any = np) -> Plans:
    """All plans of these later turns; `later` is (..., S), `catalogue` (..., 1, K)."""
    stay_usd, first_usd, _ = session_usd(catalogue, later, xp)
    n, context, grown, price, penalty = (
        x[..., None]
        for x in (later.turns, later.context_tokens, later.grown_tokens, later.lambda_per_usd, later.penalty)
    )
    halfway = context + grown * n / 2.0
    read_usd = xp.where(halfway >= CACHE_MIN_TOKENS, catalogue.cached_usd, catalogue.input_usd)
    warm_usd = catalogue.mean_usd + halfway * read_usd  # (..., S, K)
    switch_usd = (context + grown * n) * (catalogue.input_usd - read_usd)
    cheapest = xp.argmin(xp.where(catalogue.mask, warm_usd, np.inf), axis=-1)[..., None]

    def of_cheapest(values: Any) -> Any:
        return xp.take_along_axis(xp.broadcast_to(values, warm_usd.shape), cheapest, axis=-1)

    rest_usd, rest = of_cheapest(warm_usd), of_cheapest(catalogue.quality)
    return Plans(
        first_usd + catalogue.mean_usd - warm_usd + of_cheapest(switch_usd) + n * rest_usd,
        xp.maximum(warm_usd - rest_usd, LEAST_USD),
        stay_usd,
        xp.sqrt(n) * xp.maximum(catalogue.q95_usd - catalogue.mean_usd, 0.0),
        catalogue.quality - rest,
        rest,
        n,
        price,
        penalty,
        catalogue.mask,
        context >= CACHE_MIN_TOKENS,
    )


def at_least(to_go: tuple[Any, Any, Any], plans: Plans, left_usd: Any, xp: Any = np) -> tuple[Any, Any, Any]:
    """Raise values to go to those of the best plan where it is better.

    Quality, spend and starved of a later turn and `left_usd` are (..., S, L).
    """
    wide = Plans(*(x[..., None] for x in plans))  # (..., S, K, 1)
    spare_usd = left_usd[..., None, :] - wide.tail_usd
    stays = spare_usd >= wide.stay_usd
    most = xp.minimum((spare_usd - wide.start_usd) / wide.each_usd, wide.turns - 1.0)
    turns = xp.where(stays, wide.turns, most)
    cost_usd = xp.where(stays, wide.stay_usd, wide.start_usd + most * wide.each_usd)
    worth = turns * wide.gain - wide.lambda_per_usd * cost_usd
    worth = xp.where(wide.mask & (turns >= 1.0), worth, -np.inf)
    best = xp.argmax(worth, axis=-2)[..., None, :]
    gained, cost, turns = (xp.take_along_axis(x, best, axis=-2)[..., 0, :] for x in (worth, cost_usd, turns))
    n, price, penalty = plans.turns, plans.lambda_per_usd, plans.penalty
    quality, spend_usd, starved = to_go
    known = n * (quality - plans.rest) - price * n * spend_usd - penalty * starved
    better = plans.held & (gained - penalty * LOST > known)
    return (
        xp.where(better, plans.rest + (gained + price * cost) / n, quality),
        xp.where(better, cost / n, spend_usd),
        xp.where(better, LOST, starved),
    )
