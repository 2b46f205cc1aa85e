"""Discrete conservative Q-learning, one function per equation: what the residual and the published baseline share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def conservative_loss(utility: Array, action: Array, mask: Array) -> Array:
    """logsumexp over feasible actions of the utility, less that of the logged action.

    Kumar et al. 2020 (arXiv 2006.04779), equation 4, CQL(H). utility and mask (..., K), action (...) -> (...).
    """
    pushed_down = jax.nn.logsumexp(jnp.where(mask, utility, -jnp.inf), axis=-1)
    return pushed_down - jnp.take_along_axis(utility, action[..., None], axis=-1)[..., 0]


def huber(error: Array, delta: float) -> Array:
    """Huber 1964: quadratic up to delta, linear beyond."""
    return jnp.asarray(optax.huber_loss(error, delta=delta))


def polyak(target: Any, online: Any, step: float) -> Any:
    """target + step (online - target), Polyak & Juditsky 1992."""
    return optax.incremental_update(online, target, step)
