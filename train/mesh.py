"""Data-parallel training: the batch of every step is split over the devices of a mesh, the parameters are on each.

One device is the default and needs none of this. With a mesh the same program computes the same step - draws are made
from the same key everywhere, gradients are summed by the compiler's collectives - so the parameters agree up to the
order of floating-point sums. Over several processes (`jax.distributed.initialize`) the mesh spans all their devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def data_parallel(devices: int | None = None) -> NamedSharding:
    """The sharding of a batch over so many devices of all processes (default: all). Raises ValueError for too many."""
    found = jax.devices()
    wanted = len(found) if devices is None else devices
    if not 1 <= wanted <= len(found):
        raise ValueError(f"expected 1 to {len(found)} devices, got {wanted}")
    return NamedSharding(Mesh(found[:wanted], (AXIS,)), PartitionSpec(AXIS))  # type: ignore[no-untyped-call]


def everywhere(tree: Any, batch: NamedSharding) -> Any:
    """A tree of arrays, the same on every process, as arrays that all devices of the mesh hold."""
    replicated = NamedSharding(batch.mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def put(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # only their numbers go to other processes
            return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(leaf), replicated))
        return jax.device_put(leaf, replicated)

    return jax.tree.map(put, tree)


def split(tree: Any, batch: NamedSharding | None) -> Any:
    """Inside jit: the rows of every leaf go to the devices of the mesh; nothing without one."""
    return tree if batch is None else jax.lax.with_sharding_constraint(tree, batch)  # type: ignore[no-untyped-call]
