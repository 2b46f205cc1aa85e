"""Hindsight budget relabeling (Xu, Zheng, Wang, arXiv 2605.25424, section 4), drawn afresh inside the jitted step.

What the user says next does not depend on what is left in the purse, and the purse follows by subtraction. So one
recorded turn is a true transition under *any* budget: draw one, recompute what is left after the bill, and end the
session where the money ends. The same holds for lambda, and for a horizon shorter than the recorded one.
Nothing here is a measurement: the score of the answer is the log's, and is lost when the bill exceeds the purse.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.features import expected_cost_usd
from policy.mdp import COST_LEVELS
from train.config import RelabelConfig

Array = jax.Array

RESERVE_LEVEL = COST_LEVELS.index(0.95)


class Turns(NamedTuple):
    """Recorded turns, flat and on the device; N turns, K candidates. Row i + 1 follows row i unless `left` is 1.

    `grades` (N, K) are scores in [0, 1] with their weights (N, K); `graded` marks real grades, the others are the
    reward model's. `left` (N,) counts the recorded turns from this one on. `bills_usd` (N, K) are real bills, NaN where
    none is known.
    """

    state: Array
    candidates: Array
    cost_quantiles_usd: Array
    mask: Array
    action: Array
    bills_usd: Array
    grades: Array
    weights: Array
    graded: Array
    spent_usd: Array
    left: Array


class Terms(NamedTuple):
    """Under which money a transition is learnt; all (B,)."""

    remaining_usd: Array
    budget_usd: Array
    turns_left: Array
    lambda_per_usd: Array


class Afterwards(NamedTuple):
    """What the books say after each candidate's bill: `score`, `remaining_usd`, `ended`, each (..., K)."""

    score: Array
    remaining_usd: Array
    ended: Array


def draw_terms(
    key: Array, left: Array, spent_usd: Array, costs_usd: Array, mask: Array, config: RelabelConfig
) -> Terms:
    """New budgets, horizons and lambdas for turns with `left` (B,) recorded turns and mean costs (B, K).

    The purse per turn is log-uniform from budget_low times the cheapest candidate to budget_high times the dearest;
    the horizon is uniform on 1..left; lambda is 0 or log-uniform in quality per mean turn cost.
    """
    keys = jax.random.split(key, 5)
    shape = left.shape
    cheapest = jnp.min(jnp.where(mask, costs_usd, jnp.inf), axis=-1)
    dearest = jnp.max(jnp.where(mask, costs_usd, 0.0), axis=-1)
    drawn = jnp.floor(jax.random.uniform(keys[0], shape) * left) + 1.0
    single = jax.random.bernoulli(keys[1], config.single_turn_fraction, shape)
    turns_left = jnp.where(single, 1.0, jnp.minimum(drawn, left))
    per_turn = log_uniform(keys[2], config.budget_low * cheapest, config.budget_high * dearest)
    remaining = per_turn * turns_left
    middle = jnp.sum(jnp.where(mask, costs_usd, 0.0), axis=-1) / jnp.maximum(mask.sum(axis=-1), 1)
    price = log_uniform(keys[3], jnp.full(shape, config.lambda_low), jnp.full(shape, config.lambda_high)) / middle
    free = jax.random.bernoulli(keys[4], config.lambda_zero_fraction, shape)
    return Terms(remaining, remaining + spent_usd, turns_left, jnp.where(free, 0.0, price))


def log_uniform(key: Array, low: Array, high: Array) -> Array:
    """exp(U(log low, log high)), elementwise."""
    return jnp.exp(jax.random.uniform(key, low.shape, minval=0.0, maxval=1.0) * jnp.log(high / low)) * low


def draw_bills(key: Array, cost_quantiles_usd: Array, masses: Array, bills_usd: Array) -> Array:
    """What each candidate would bill, (B, K): its real bill where that is known, else a draw of its cost law.

    One of the 15 quantiles by its mass at every step: in expectation the backup over all of them, at the price of one.
    """
    batch, candidates, levels = cost_quantiles_usd.shape
    chosen = jax.random.choice(key, levels, (batch, candidates), p=masses)
    drawn = jnp.take_along_axis(cost_quantiles_usd, chosen[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isnan(bills_usd), drawn, bills_usd)


def after_bill(score: Array, bill_usd: Array, terms: Terms, config: RelabelConfig) -> Afterwards:
    """The bookkeeping transition: score and bill (B, K) -> (B, K).

    An answer dearer than the purse is cut: its score is lost and so is the purse. A purse at zero ends the session;
    `starved_penalty` is paid when turns were still to come or the answer itself was cut.
    """
    remaining = terms.remaining_usd[:, None]
    cut = bill_usd > remaining
    after = jnp.where(cut, 0.0, remaining - bill_usd)
    last = (terms.turns_left <= 1.0)[:, None]
    starved = cut | ((after <= 0.0) & ~last)
    paid = jnp.where(cut, 0.0, score) - config.starved_penalty * starved
    return Afterwards(paid, after, last | (after <= 0.0))


def affordable(cost_quantiles_usd: Array, mask: Array, remaining_usd: Array) -> Array:
    """Candidates whose bill fits into the purse with probability .95 or more: (..., K, L), (...) -> (..., K)."""
    return mask & (cost_quantiles_usd[..., RESERVE_LEVEL] <= remaining_usd[..., None])


def mean_costs(cost_quantiles_usd: Array) -> Array:
    """(..., K, L) -> (..., K)."""
    return jnp.asarray(expected_cost_usd(cost_quantiles_usd, jnp))
