"""Flax layers of the value network: one small module for every catalogue.

The catalogue is a set (Deep Sets: Zaheer et al. 2017, arXiv 1703.06114): the order of the candidates does not matter,
nor does padding, and a new model is one more row. policy/value_curves.py defines inputs and outputs. Importing this
imports JAX; policy/value_layers.py holds the same layers in NumPy, for serving.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from policy.value_backup import Backup
from policy.value_backup import q_values as q_values_by
from policy.value_curves import Catalogue, Curves, Forward, Later
from policy.value_curves import curves as curves_by
from policy.value_network_shapes import CURVES, KNOTS, ROW_DIM, STATE_DIM, Sizes

Array = jax.Array
Params = dict[str, dict[str, Array]]


class ValueNetwork(nn.Module):
    """Layers: rows (..., K, ROW_DIM), mask, state (..., STATE_DIM) -> (..., CURVES, KNOTS + 1)."""

    sizes: Sizes = Sizes()

    @nn.compact
    def __call__(self, rows: Array, mask: Array, state: Array) -> Array:
        encoded = nn.relu(nn.Dense(self.sizes.encoder, name="encoder_0")(rows))
        encoded = nn.relu(nn.Dense(self.sizes.encoder, name="encoder_1")(encoded))
        encoded = jnp.where(mask[..., None], encoded, 0.0)
        mean = encoded.sum(-2) / jnp.maximum(mask.sum(-1), 1)[..., None]
        hidden = jnp.concatenate([mean, encoded.max(-2), state], -1)
        hidden = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(self.sizes.hidden, name="trunk_0")(hidden)))
        hidden = hidden + nn.relu(nn.Dense(self.sizes.hidden, name="trunk_1")(hidden))
        hidden = hidden + nn.relu(nn.Dense(self.sizes.hidden, name="trunk_2")(hidden))
        # Small initial weights: untrained curves are straight.
        raw = nn.Dense(CURVES * (KNOTS + 1), kernel_init=nn.initializers.normal(1e-2), name="curves")(hidden)
        return raw.reshape(*raw.shape[:-1], CURVES, KNOTS + 1)


def init(key: Array, sizes: Sizes = Sizes()) -> Params:  # noqa: B008 - frozen
    """Fresh parameters."""
    rows, mask, state = jnp.zeros((1, ROW_DIM)), jnp.ones(1, bool), jnp.zeros(STATE_DIM)
    # One program: step by step, every process would compile sixty small ones.
    params: Params = jax.jit(ValueNetwork(sizes).init)(key, rows, mask, state)["params"]
    return params


def forward_of(params: Params) -> Forward:
    """The module with its parameters bound."""
    sizes = Sizes(encoder=params["encoder_0"]["kernel"].shape[-1], hidden=params["trunk_0"]["kernel"].shape[-1])
    return lambda rows, mask, state: ValueNetwork(sizes).apply({"params": params}, rows, mask, state)


def curves(params: Params, catalogue: Catalogue, later: Later) -> Curves:
    """The value curves, to be differentiated and compiled."""
    return curves_by(forward_of(params), catalogue, later, jnp)


def q_values(
    params: Params, catalogue: Catalogue, answers: Any, bills_usd: Any, money_usd: Any, later: Later
) -> Backup:
    """The values of `value_backup.q_values`, to be compiled."""
    return q_values_by(forward_of(params), catalogue, answers, bills_usd, money_usd, later, jnp)
