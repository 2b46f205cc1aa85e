"""Data-parallel training over a device mesh, with results that do not depend on its size.

One device is the default and needs none of this. On a mesh the batch is cut into SHARDS parts, however many devices
there are: each part's gradient is computed by itself, all are gathered, and every device takes their mean in the same
order. So meshes of 1, 2, 4 and 8 devices learn the same parameters to the bit. Another order of summation would not:
Adam divides a gradient by its own size, and one that is only rounding error moves a weight as far as any other. Over
several processes (`jax.distributed.initialize`) the mesh spans all their devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"
SHARDS = 16
"""Parts of every batch: two or more on each of eight devices. With one per device parameters were 3e-6 apart after
200 steps at full width (probably compiled without its loop, and so rounded differently)."""


def data_parallel(devices: int | None = None) -> NamedSharding:
    """Sharding of a batch over `devices` (default: all). Raises ValueError when there are fewer."""
    found = jax.devices()
    wanted = len(found) if devices is None else devices
    if not 1 <= wanted <= len(found):
        raise ValueError(f"expected 1 to {len(found)} devices, got {wanted}")
    return NamedSharding(Mesh(found[:wanted], (AXIS,)), PartitionSpec(AXIS))


def everywhere(tree: Any, batch: NamedSharding) -> Any:
    """Copy a tree of arrays, equal on every process, to all devices of the mesh."""
    replicated = NamedSharding(batch.mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # only raw key data can be sent to other processes
            return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(leaf), replicated))
        return jax.device_put(leaf, replicated)

    return jax.tree.map(put, tree)


def mean_of_shards(function: Callable[..., Any], replicated: Any, batch: Any, sharding: NamedSharding) -> Any:
    """Mean over SHARDS parts of a batch of function(replicated, part), the same on every mesh.

    Call inside jit. The rows of every leaf of `batch` must be divisible by SHARDS, SHARDS by the devices. The function
    returns a tree of floating-point arrays.
    """
    rows = len(jax.tree.leaves(batch)[0])
    devices = sharding.mesh.size
    if rows % SHARDS or SHARDS % (2 * devices):
        raise ValueError(
            f"expected a batch divisible by {SHARDS} and 1, 2, 4 or 8 devices, got {rows} rows, {devices} devices"
        )
    replicated, batch = replicate((replicated, batch), sharding)
    parts = jax.tree.map(lambda x: x.reshape(SHARDS, rows // SHARDS, *x.shape[1:]), batch)

    def each(same: Any, mine: Any) -> Any:
        # In sequence and behind barriers, so that every part compiles to the same code.
        def one(part: Any) -> Any:
            shown = jax.lax.optimization_barrier((same, part))
            flat = ravel_pytree(function(*shown))[0]
            return jax.lax.optimization_barrier(flat)

        return jax.lax.map(one, mine)

    spec, whole = PartitionSpec(AXIS), PartitionSpec()
    found = jax.shard_map(each, mesh=sharding.mesh, in_specs=(whole, spec), out_specs=spec, check_vma=False)(
        replicated, parts
    )
    # One vector, one collective: devices that share few threads may wait for several in different orders.
    gathered = replicate(found, sharding)
    shapes = jax.eval_shape(function, replicated, jax.tree.map(lambda x: x[0], parts))
    unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))[1]
    return replicate(unravel(gathered.mean(axis=0)), sharding)


def replicate(tree: Any, sharding: NamedSharding) -> Any:
    """Replicate a tree and materialize it before anything that follows; inside jit."""
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.lax.optimization_barrier(jax.lax.with_sharding_constraint(tree, whole))
