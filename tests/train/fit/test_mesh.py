"""Eight devices, forced in a process of their own, and two processes: what one device learns, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.harness.processes import free_port
from train.fit.mesh import data_parallel

FIT = """
import sys
import jax, numpy as np
from tests.train.fit.test_full_information import asked_everywhere
from train.config import FitConfig, QualityConfig, TrainConfig
from train.fit.network import fit_network, grade
from train.fit.mesh import data_parallel
config = TrainConfig(
    fit=FitConfig(warm_steps=0, steps=50, groups=16, rows=2, samples=32, encoder=8, hidden=8),
    quality=QualityConfig(folds=2, penalties=(10.0,), landmarks=8),
)
episodes = asked_everywhere()
quality, flat = grade(episodes, config)
grades = np.zeros(episodes.mask.shape)
grades[episodes.valid] = flat
network, _ = fit_network(episodes, grades, quality, config, jax.random.key(0), batch_sharding=data_parallel())
np.savez(sys.argv[1], *[np.asarray(leaf) for leaf in jax.tree.leaves(network.layers)])
"""

DESCENT = """
import sys
import jax, jax.numpy as jnp, numpy as np
path, part, processes, address = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, part)
from train.fit.mesh import data_parallel, everywhere, mean_of_shards
mesh = data_parallel()
assert mesh.mesh.size == processes
loss = lambda weights, rows: jnp.mean(jnp.tanh(rows @ weights[0]) @ weights[1]) ** 2
draws = np.random.default_rng(0)
weights = [draws.normal(size=size).astype(np.float32) for size in ((8, 16), (16,))]
weights, rows = everywhere((weights, draws.normal(size=(64, 8)).astype(np.float32)), mesh)
step = jax.jit(lambda weights: mean_of_shards(jax.grad(loss), weights, rows, mesh))
for _ in range(20):
    weights = jax.block_until_ready(jax.tree.map(lambda w, g: w - 0.5 * g, weights, step(weights)))
if part == 0:
    np.savez(path, *[np.asarray(leaf) for leaf in weights])
"""


def start(code: str, *given: object, devices: int = 1, cached: bool = True) -> subprocess.Popen[bytes]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if not cached:
        environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, given)], env=environ)


def leaves(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def assert_equal_to_the_bit(one: Path, other: Path, *, least: int) -> None:
    alone = leaves(one)
    assert len(alone) >= least
    for a, b in zip(alone, leaves(other), strict=True):
        assert (a == b).all()


@pytest.mark.timeout(600)
def test_a_mesh_of_eight_devices_fits_what_one_device_fits(tmp_path: Path) -> None:
    one, eight = tmp_path / "1.npz", tmp_path / "8.npz"
    running = [start(FIT, one), start(FIT, eight, devices=8)]
    assert [process.wait(timeout=580) for process in running] == [0, 0]
    assert_equal_to_the_bit(one, eight, least=11)


def test_a_mesh_over_two_processes_descends_as_one_device_does(tmp_path: Path) -> None:
    alone, both, address = tmp_path / "1.npz", tmp_path / "2.npz", f"127.0.0.1:{free_port()}"
    running = [start(DESCENT, alone, 0, 1, "")]
    # Only the first process writes compiled programs; with what it finds there it would run ahead of the other.
    running += [start(DESCENT, both, part, 2, address, cached=False) for part in range(2)]
    assert [process.wait(timeout=280) for process in running] == [0, 0, 0]
    assert_equal_to_the_bit(alone, both, least=2)


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="devices"):
        data_parallel(10_000)
