"""Values of every candidate from this turn on: its bill exactly, then the value curves.

    Q(s, k) = sum_l mass_l [bill_kl <= m] (quality_k answer_kl + G(m - bill_kl))
              - lambda E[min(bill_k, m) + [fits] S(m - bill_k)] - penalty P(session ends starved)

G, S and P are the network's values to go (policy/value_curves.py), and no less than those of the best fixed plan
(policy/fixed_plans.py). NumPy or traced by JAX, from the same lines (`xp`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from policy.budgeting import CACHE_MIN_TOKENS
from policy.fixed_plans import at_least, plans_of
from policy.mdp import COST_MASSES
from policy.value_curves import Catalogue, Forward, Later, curves, read
from policy.value_network_shapes import TURNS


class Backup(NamedTuple):
    """Expected quality, spend and chance of ending starved from this turn on, each (...)."""

    quality: Any
    spend_usd: Any
    starved: Any

    def worth(self, lambda_per_usd: Any, penalty: Any) -> Any:
        """Return quality - lambda spend - penalty P(starved)."""
        return self.quality - lambda_per_usd * self.spend_usd - penalty * self.starved


def after_bill(
    answers: Any, bills_usd: Any, money_usd: Any, later_turns: Any, to_go: tuple[Any, Any, Any], xp: Any = np
) -> Backup:
    """Expectation over this turn's whole cost distribution.

    Answers, bills and values to go at money - bill are (..., L), the rest (...). An answer more expensive than the
    money left is lost, and the money with it: the session ends starved. This is the exact transition of hindsight
    budget relabeling (arXiv 2605.25424), summed over the quantiles instead of drawn.
    """
    money, n = money_usd[..., None], later_turns[..., None]
    fits = bills_usd <= money
    quality, spend_usd, starved = to_go
    return Backup(
        xp.sum(COST_MASSES * xp.where(fits, answers + n * quality, 0.0), axis=-1),
        xp.sum(COST_MASSES * (xp.minimum(bills_usd, money) + xp.where(fits, n * spend_usd, 0.0)), axis=-1),
        xp.sum(COST_MASSES * xp.where(fits, xp.where(n > 0.0, starved, 0.0), 1.0), axis=-1),
    )


def q_values(
    forward: Forward,
    catalogue: Catalogue,
    answers: Any,
    bills_usd: Any,
    money_usd: Any,
    later: Later,
    xp: Any = np,
) -> Backup:
    """Values of every candidate, (..., K), from this turn on.

    Answers (quality by bill) and bills are (..., K, L), money and `later` (...). `later.last` is ignored. Less than one
    later turn counts as that share of one; more than TURNS as TURNS, repeated.
    """
    k, known_turns = catalogue.quality.shape[-1], xp.clip(later.turns, 1.0, TURNS)
    # Where no cache holds the conversation, later turns are the same after every candidate: one curve is enough.
    alike = xp is np and not (later.context_tokens >= CACHE_MIN_TOKENS).any()
    served = np.array([k] if alike else range(k), np.float32)
    nothing = np.zeros(served.shape, np.float32)
    each = Later(*(x[..., None] + nothing for x in later._replace(turns=known_turns, last=nothing[0])))
    each = each._replace(last=served + 0.0 * each.turns)
    every = catalogue.at_each_candidate()
    known = curves(forward, every, each, xp)
    share = (xp.maximum(later.turns, 1e-6) / known_turns)[..., None, None]
    left = xp.maximum(money_usd[..., None, None] - bills_usd, 0.0) / share
    if alike:
        to_go = tuple(x.reshape(left.shape) for x in read(known, left.reshape(*left.shape[:-2], 1, -1), xp))
    else:
        to_go = at_least(read(known, left, xp), plans_of(every, each, xp), left, xp)
    money, turns = money_usd[..., None], later.turns[..., None]
    return after_bill(answers, bills_usd, money, turns, (to_go[0], to_go[1], to_go[2]), xp)
