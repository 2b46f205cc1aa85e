"""Discrete conservative Q-learning, one function per equation, over the network that the gateway serves.

Single-example signatures; `jax.vmap` makes the batch. E ensemble members, K candidates. gamma is 1: sessions end.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from policy.network import Heads, heads
from train.config import FitConfig, RelabelConfig
from train.fit.relabel import Afterwards, Terms, Turns, affordable, after_bill, draw_bills, draw_terms, mean_costs

Array = jax.Array
Params = dict[str, dict[str, Array]]
Info = dict[str, Array]


class Batch(NamedTuple):
    """Recorded turns, the turns that follow them (meaningless where the session ends) and the money drawn for both."""

    now: Turns
    following: Turns
    terms: Terms
    bills_usd: Array  # (B, K)
    backed_up: Array  # (B,) the action whose value-to-go is learnt at this step


def double_q_target(
    score: Array,
    bill_usd: Array,
    ended: Array,
    online: Heads,
    target: Heads,
    lambda_per_usd: Array,
    mask: Array,
    lower_confidence: float = 0.0,
) -> tuple[Array, Array]:
    """Targets of quality and cost to go, each (E,): the online network picks the next action, the target values it.

    van Hasselt, Guez, Silver 2016 (arXiv 1509.06461). `online` and `target` are of the next turn; nothing is affordable
    there when `mask` (K,) is empty, and then the session has ended. score, bill_usd, ended, lambda are scalars.
    """
    utility = online.q_quality - lambda_per_usd * online.q_cost_usd
    choice = jnp.argmax(jnp.where(mask, pessimistic(utility, lower_confidence), -jnp.inf))
    goes_on = jnp.where(ended | ~jnp.any(mask), 0.0, 1.0)
    quality = score + goes_on * target.q_quality[:, choice]
    cost_usd = bill_usd + goes_on * target.q_cost_usd[:, choice]
    return jax.lax.stop_gradient(quality), jax.lax.stop_gradient(cost_usd)


def pessimistic(values: Array, deviations: float) -> Array:
    """Mean of the ensemble less so many standard deviations: (E, K) -> (K,)."""
    return values.mean(axis=0) - deviations * values.std(axis=0)


def conservative_loss(utility: Array, action: Array, mask: Array) -> Array:
    """logsumexp over feasible actions of the utility, less that of the logged action; mean over members.

    Kumar et al. 2020 (arXiv 2006.04779), equation 4, CQL(H). utility (E, K), action scalar, mask (K,).
    """
    pushed_down = jax.nn.logsumexp(jnp.where(mask, utility, -jnp.inf), axis=-1)
    return jnp.mean(pushed_down - utility[:, action])


def huber(error: Array, delta: float) -> Array:
    """Huber 1964: quadratic up to delta, linear beyond."""
    return jnp.asarray(optax.huber_loss(error, delta=delta))


def polyak(target: Params, online: Params, step: float) -> Params:
    """target + step (online - target), Polyak & Juditsky 1992."""
    updated: Params = optax.incremental_update(online, target, step)
    return updated


def draw_batch(key: Array, turns: Turns, masses: Array, cdf: Array, fit: FitConfig, relabel: RelabelConfig) -> Batch:
    """Recorded turns drawn by their sessions' weights (`cdf` (N,)), each under money of its own."""
    keys = jax.random.split(key, 4)
    drawn = jax.random.uniform(keys[0], (fit.batch_size,)) * cdf[-1]
    rows = jnp.minimum(jnp.searchsorted(cdf, drawn, side="right"), len(cdf) - 1)
    now = gather(turns, rows)
    following = gather(turns, jnp.minimum(rows + 1, len(cdf) - 1))
    terms = draw_terms(keys[1], now.left, now.spent_usd, mean_costs(now.cost_quantiles_usd), now.mask, relabel)
    bills_usd = draw_bills(keys[2], now.cost_quantiles_usd, masses, now.bills_usd)
    return Batch(now, following, terms, bills_usd, draw_backed_up(keys[3], now, fit.counterfactual_fraction))


def gather(turns: Turns, rows: Array) -> Turns:
    """Some rows, in float32: what is stored in half precision is computed in single."""
    return Turns(*(x[rows].astype(jnp.float32) if x.dtype == jnp.float16 else x[rows] for x in turns))


def draw_backed_up(key: Array, now: Turns, counterfactual_fraction: float) -> Array:
    """The logged action, or sometimes another graded one: what follows it differs by its bill alone."""
    coin, other = jax.random.split(key)
    weights = jnp.where(now.mask & (now.weights > 0), now.weights, 0.0)
    logits = jnp.where(weights > 0, jnp.log(jnp.maximum(weights, 1e-9)), -jnp.inf)
    safe = jnp.where(jnp.any(weights > 0, axis=-1, keepdims=True), logits, 0.0)
    explored = jax.random.bernoulli(coin, counterfactual_fraction, now.action.shape) & jnp.any(weights > 0, axis=-1)
    return jnp.where(explored, jax.random.categorical(other, safe), now.action)


def look(params: Params, turn: Turns, terms: Terms, mask: Array) -> Heads:
    """The network's values of one turn under given money; `mask` is what the gateway would offer then."""
    return heads(
        params,
        turn.state,
        turn.candidates,
        terms.remaining_usd,
        terms.budget_usd,
        terms.turns_left,
        terms.lambda_per_usd,
        turn.cost_quantiles_usd,
        mask,
    )


def loss(params: Params, target: Params, batch: Batch, fit: FitConfig, relabel: RelabelConfig) -> tuple[Array, Info]:
    """TD error of quality and cost to go, error of the turn's own quality, and the conservative term."""
    books = after_bill(batch.now.grades, batch.bills_usd, batch.terms, relabel)
    parts = jax.vmap(partial(_losses_of_one, params, target, fit))(
        batch.now, batch.following, batch.terms, books, batch.bills_usd, batch.backed_up
    )
    td_quality, td_cost, turn_quality, conservative = (part.mean() for part in parts)
    total = td_quality + fit.cost_weight * td_cost + fit.turn_weight * turn_quality + fit.alpha * conservative
    return total, {
        "critic/td_quality": td_quality,
        "critic/td_cost": td_cost,
        "critic/turn_quality": turn_quality,
        "critic/conservative": conservative,
        "critic/loss": total,
    }


def _losses_of_one(
    params: Params,
    target: Params,
    fit: FitConfig,
    now: Turns,
    following: Turns,
    terms: Terms,
    books: Afterwards,
    bills_usd: Array,
    backed_up: Array,
) -> tuple[Array, Array, Array, Array]:
    a, horizon = backed_up, jnp.maximum(terms.turns_left, 1.0)
    within = affordable(now.cost_quantiles_usd, now.mask, terms.remaining_usd)
    mask = jnp.where(jnp.any(within), within, now.mask)
    values = look(params, now, terms, mask)

    after = books.remaining_usd[a]
    next_terms = Terms(after, terms.budget_usd, jnp.maximum(terms.turns_left - 1.0, 1.0), terms.lambda_per_usd)
    next_mask = affordable(following.cost_quantiles_usd, following.mask, after)
    online = look(jax.lax.stop_gradient(params), following, next_terms, next_mask)
    valued = look(target, following, next_terms, next_mask)
    quality, cost_usd = double_q_target(
        books.score[a],
        bills_usd[a],
        books.ended[a],
        online,
        valued,
        terms.lambda_per_usd,
        next_mask,
        fit.lower_confidence,
    )
    unit_usd = jnp.sum(jnp.where(mask, mean_costs(now.cost_quantiles_usd), 0.0)) / jnp.maximum(mask.sum(), 1)
    learnt = jnp.where(mask[a], 1.0, 0.0)
    td_quality = learnt * huber((values.q_quality[:, a] - quality) / jnp.sqrt(horizon), fit.huber_delta).mean()
    td_cost = learnt * huber((values.q_cost_usd[:, a] - cost_usd) / (unit_usd * horizon), fit.huber_delta).mean()

    weights = jnp.where(mask, now.weights, 0.0)
    error = (values.turn_quality - books.score) ** 2
    turn_quality = jnp.sum(weights * error.mean(axis=0)) / jnp.maximum(weights.sum(), 1e-6)

    utility = values.q_quality - terms.lambda_per_usd * values.q_cost_usd
    ungraded = 1.0 - jnp.sum(jnp.where(mask, now.graded, 0.0)) / jnp.maximum(mask.sum(), 1)
    conservative = jnp.where(mask[now.action], ungraded * conservative_loss(utility, now.action, mask), 0.0)
    return td_quality, td_cost, turn_quality, conservative
