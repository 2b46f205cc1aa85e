"""Discrete conservative Q-learning, shared by the residual and the published baseline."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def conservative_loss(utility: Array, action: Array, mask: Array) -> Array:
    """Return logsumexp over feasible actions of the utility, less that of the logged action.

    Kumar et al. 2020 (arXiv 2006.04779), equation 4, CQL(H). utility and mask (..., K), action (...) -> (...).
    """
    pushed_down = jax.nn.logsumexp(jnp.where(mask, utility, -jnp.inf), axis=-1)
    return pushed_down - jnp.take_along_axis(utility, action[..., None], axis=-1)[..., 0]


def huber(error: Array, delta: float) -> Array:
    """Huber loss (1964): quadratic up to delta, linear beyond."""
    return jnp.asarray(optax.huber_loss(error, delta=delta))


def polyak(target: Any, online: Any, step: float) -> Any:
    """Move target parameters towards the online ones by `step` (Polyak & Juditsky 1992)."""
    return optax.incremental_update(online, target, step)
