"""The action-conditioned scorer: one network for every candidate of every catalogue, quality and cost to go.

    q_quality(s, a) = turn_quality(s, a) + (turns left - 1) * later_quality(s, a)
    q_cost(s, a)    = E[cost of this turn on a] + (turns left - 1) * later_cost(s, a) * mean cost of the candidates

`turn_quality` starts at the candidate's prior, `later_quality` at the priors' mean; this turn's cost is known, so
only what later turns cost is learnt. All parts see the money left and lambda (a universal value function): one network
holds the whole front. Candidates are embedded alike and pooled (Zaheer et al. 2017, arXiv 1703.06114): the order of
the catalogue does not matter, and neither does padding.

Pure functions over a plain tree of float32 arrays, `parameters.parameter_shapes`, whose leading axis is the ensemble.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from policy.features import PRIOR_COLUMN, expected_cost_usd, money_features
from policy.network_shapes import HEADS, Sizes

Array = jax.Array
Params = dict[str, dict[str, Array]]


class Heads(NamedTuple):
    """One value per ensemble member and candidate, each (E, K); costs in USD, masked candidates hold zeros."""

    turn_quality: Array
    later_quality: Array
    q_quality: Array
    q_cost_usd: Array


class Scorer(nn.Module):
    """One ensemble member: (state, money, rows (K, row), mask (K,)) -> (K, HEADS)."""

    sizes: Sizes

    @nn.compact
    def __call__(self, state: Array, money: Array, rows: Array, mask: Array) -> Array:
        embedded = nn.Dense(self.sizes.joint, name="rows")(rows)
        pooled = _pooled(nn.relu(embedded), mask)
        hidden = jnp.concatenate([state, money, pooled])
        hidden = nn.relu(nn.LayerNorm(name="trunk_0_norm")(nn.Dense(self.sizes.hidden, name="trunk_0")(hidden)))
        hidden = nn.relu(nn.LayerNorm(name="trunk_1_norm")(nn.Dense(self.sizes.hidden, name="trunk_1")(hidden)))
        joint = embedded + nn.Dense(self.sizes.joint, name="context")(hidden)
        joint = nn.relu(nn.LayerNorm(name="joint_0_norm")(joint))
        joint = nn.relu(nn.LayerNorm(name="joint_1_norm")(nn.Dense(self.sizes.joint, name="joint_1")(joint)))
        # Small at first: an untrained network ranks by the priors.
        return nn.Dense(HEADS, name="heads", kernel_init=nn.initializers.normal(1e-3))(joint)


def init(key: Array, sizes: Sizes = Sizes()) -> Params:  # noqa: B008 - frozen
    """Fresh parameters, each member from its own key."""
    state, money = jnp.zeros(sizes.state_dim), jnp.zeros(sizes.money_dim)
    rows, mask = jnp.zeros((1, sizes.candidate_dim + sizes.candidate_money_dim)), jnp.ones(1, bool)

    def one(member: Array) -> Any:
        return Scorer(sizes).init(member, state, money, rows, mask)["params"]

    params: Params = jax.vmap(one)(jax.random.split(key, sizes.members))
    return params


def apply(
    params: Params,
    state: Array,
    candidates: Array,
    remaining_usd: Array,
    budget_usd: Array,
    turns_left: Array,
    lambda_per_usd: Array,
    cost_quantiles_usd: Array,
    mask: Array,
) -> tuple[Array, Array]:
    """(q_quality (E, K), q_cost_usd (E, K)) of one observation; `jax.vmap` it for a batch.

    state (STATE_DIM,), candidates (K, CANDIDATE_DIM), cost_quantiles_usd (K, 15), mask (K,), the rest scalars.
    K is any number; serving pads to MAX_CANDIDATES.
    """
    values = heads(
        params, state, candidates, remaining_usd, budget_usd, turns_left, lambda_per_usd, cost_quantiles_usd, mask
    )
    return values.q_quality, values.q_cost_usd


def heads(
    params: Params,
    state: Array,
    candidates: Array,
    remaining_usd: Array,
    budget_usd: Array,
    turns_left: Array,
    lambda_per_usd: Array,
    cost_quantiles_usd: Array,
    mask: Array,
) -> Heads:
    """As `apply`, with the parts that the values are made of."""
    money, candidate_money = money_features(
        remaining_usd, budget_usd, turns_left, lambda_per_usd, cost_quantiles_usd, mask, xp=jnp
    )
    rows = jnp.where(mask[:, None], jnp.concatenate([candidates, candidate_money], axis=-1), 0.0)
    sizes = _sizes(params)

    def member(parameters: Params) -> Any:
        return Scorer(sizes).apply({"params": parameters}, state, money, rows, mask)

    raw = jax.vmap(member)(params)

    count = jnp.maximum(jnp.sum(mask), 1)
    prior = candidates[:, PRIOR_COLUMN]
    mean_prior = jnp.sum(jnp.where(mask, prior, 0.0)) / count
    cost_now = jnp.where(mask, expected_cost_usd(cost_quantiles_usd, jnp), 0.0)
    unit_usd = jnp.sum(cost_now) / count
    later_turns = jnp.maximum(turns_left - 1.0, 0.0)

    turn_quality = jnp.where(mask, prior + raw[..., 0], 0.0)
    later_quality = jnp.where(mask, mean_prior + raw[..., 1], 0.0)
    # softplus(x + .54) is 1 at 0: at first a later turn is taken to cost what the candidates cost on average.
    later_cost_usd = jnp.where(mask, jax.nn.softplus(raw[..., 2] + 0.5413) * unit_usd, 0.0)
    return Heads(
        turn_quality,
        later_quality,
        turn_quality + later_turns * later_quality,
        cost_now + later_turns * later_cost_usd,
    )


def _pooled(embedded: Array, mask: Array) -> Array:
    """Mean and maximum over the candidates of the mask: (K, d) -> (2 d,); zeros when there is none."""
    shown = jnp.where(mask[:, None], embedded, 0.0)  # relu'd: zero is the least
    return jnp.concatenate([jnp.sum(shown, axis=0) / jnp.maximum(jnp.sum(mask), 1), jnp.max(shown, axis=0)])


def _sizes(params: Params) -> Sizes:
    """The widths that the modules need, read off the parameters (shapes are static under jit)."""
    members, hidden, joint = params["context"]["kernel"].shape
    return Sizes(hidden=hidden, joint=joint, members=members)
