"""Eight devices, forced in a process of their own, and two processes: the parameters of one device, to the bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from train.fit.mesh import data_parallel

FIT = """
import sys
import jax, numpy as np
folder, part, processes, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, part)
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
leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(network.layers)]
if part == 0:
    np.savez(f"{folder}/{jax.device_count()}-{processes}.npz", *leaves)
"""


def start(folder: Path, devices: int, part: int = 0, processes: int = 1, port: int = 0) -> subprocess.Popen[bytes]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", FIT, str(folder), str(part), str(processes), str(port)]
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if processes > 1:
        # Only the first process writes compiled programs; with what it finds there it would run ahead of the other.
        environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(command, env=environ)


def leaves(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.timeout(600)
def test_a_mesh_and_two_processes_fit_what_one_device_fits(tmp_path: Path) -> None:
    port = free_port()
    running = [start(tmp_path, 1), start(tmp_path, 8)]
    running += [start(tmp_path, 1, part, 2, port) for part in range(2)]
    assert [process.wait(timeout=580) for process in running] == [0, 0, 0, 0]
    alone = leaves(tmp_path / "1-1.npz")
    assert len(alone) > 10
    for other in ("8-1.npz", "2-2.npz"):
        for a, b in zip(alone, leaves(tmp_path / other), strict=True):
            assert (a == b).all()


def test_more_devices_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="devices"):
        data_parallel(10_000)
