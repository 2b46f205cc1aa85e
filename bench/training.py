"""Speed of training: `python -m bench.training [--sessions 10000] [--devices 1,2]`.

Composes sessions of four turns and two models, relabelled under budgets like the paper's 10,000 (2.38 M transitions),
and prints, each from its own process: the published baseline, materialised and trained on every transition once; a
nightly fit at its defaults, reward model included, which draws terms in the compiled step; and a short fit without a
mesh and over forced host devices, with the largest difference of a parameter from a mesh of one. Forced devices share
the same cores: they test equality, not speed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from policy.features import CANDIDATE_DIM, STATE_DIM
from policy.mdp import COST_LEVELS
from policy.value_network_shapes import KNOTS
from train.config import FitConfig, QualityConfig, TrainConfig
from train.fit.mesh import data_parallel
from train.fit.network import fit
from train.fit.seqroute_paper import PublishedConfig, fit_published, largest_budget_usd, relabel_paths
from train.fit.value_curves import CHUNK_STEPS
from train.log.episodes import Episodes, blank_episodes

TURNS, MODELS = 4, 2
NO_MESH = "0"
PUBLISHED, NIGHT = "published", "night"
PATHS = 16
"""Paths per session that give 2.38 M transitions for 10,000 sessions under five budgets."""


def composed(sessions: int) -> Episodes:
    """Random turns with every model graded: the cost of a step does not depend on their values."""
    generator = np.random.default_rng(0)
    names = [str(i) for i in range(sessions)]
    blank = blank_episodes(
        names, ["t"] * sessions, ("small", "large"), ("p",), (sessions, TURNS, MODELS, STATE_DIM, CANDIDATE_DIM)
    )
    shape = (sessions, TURNS, MODELS)
    scores = generator.random(shape).astype(np.float32)
    bills_usd = (np.array([1e-4, 1e-3]) * generator.lognormal(0.0, 0.5, shape)).astype(np.float32)
    every = np.ones(shape, np.bool_)
    return replace(
        blank,
        valid=every[..., 0],
        state=generator.standard_normal((sessions, TURNS, STATE_DIM), np.float32),
        mask=every,
        offered=every,
        model=np.tile(np.arange(MODELS, dtype=np.int32), (sessions, TURNS, 1)),
        cost_quantiles_usd=np.repeat(bills_usd[..., None], len(COST_LEVELS), axis=-1),
        reward=scores[..., 0],
        cost_usd=bills_usd[..., 0],
        scores=scores,
        bills_usd=bills_usd,
    )


def measured(sessions: int, steps: int, devices: int, kept: Path | None) -> dict[str, Any]:
    """Time one fit in this process; write its parameters to `kept`."""
    episodes = composed(sessions)
    config = TrainConfig(
        fit=FitConfig(warm_steps=0, steps=steps), quality=QualityConfig(folds=2, penalties=(10.0,), landmarks=64)
    )
    marks: list[float] = []
    sharding = data_parallel(devices) if devices else None
    fitted = fit(episodes, config, jax.random.key(0), lambda done, total: marks.append(time.perf_counter()), sharding)
    if kept is not None:
        np.savez(kept, *(np.asarray(leaf) for leaf in jax.tree.leaves(fitted.network.layers)))
    # The first chunk compiles; the others are timed.
    rate = (
        transitions(config) * CHUNK_STEPS * (len(marks) - 1) / (marks[-1] - marks[0])
        if len(marks) > 1
        else float("nan")
    )
    return {"devices": devices, "transitions_per_s": rate, "peak_gib": peak_gib()}


def published(sessions: int) -> str:
    """Time the published method: relabel first, then train on every transition once."""
    episodes, config = composed(sessions), PublishedConfig(paths=PATHS)
    began = time.perf_counter()
    rows = relabel_paths(episodes, largest_budget_usd(episodes), config, 0)
    made_s, mib = time.perf_counter() - began, sum(np.asarray(column).nbytes for column in rows) / 2**20
    began = time.perf_counter()
    fit_published(episodes, replace(config, steps=-(-len(rows.row) // config.batch_size)), 0)
    fitted_s = time.perf_counter() - began
    return (
        f"published: {len(rows.row):,} transitions materialised in {made_s:.1f} s ({mib:.0f} MiB), "
        f"trained on once in {fitted_s:.0f} s ({len(rows.row) / fitted_s:,.0f}/s), peak {peak_gib():.1f} GiB"
    )


def night(sessions: int) -> str:
    """Time a nightly fit at its defaults: reward model, then the network."""
    episodes, config = composed(sessions), TrainConfig()
    began = time.perf_counter()
    fit(episodes, config, jax.random.key(0))
    seconds, drawn = time.perf_counter() - began, config.fit.steps * transitions(config)
    return (
        f"a night's fit: {episodes.turns:,} turns, {drawn:,} transitions drawn on the fly in {seconds:.0f} s "
        f"({drawn / seconds:,.0f}/s, reward model and compiling included), peak {peak_gib():.1f} GiB"
    )


def transitions(config: TrainConfig) -> int:
    """Transitions of one TD step: drawn turns times knots of the budget axis."""
    return config.fit.groups * config.fit.rows * KNOTS


def peak_gib() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run every measurement in its own process and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", choices=(PUBLISHED, NIGHT), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole is not None:
        print({PUBLISHED: published, NIGHT: night}[options.whole](options.sessions))
        return
    if options.keep is not None:
        print(json.dumps(measured(options.sessions, options.steps, int(options.devices), options.keep)))
        return
    for whole in (PUBLISHED, NIGHT):
        command = [sys.executable, "-m", "bench.training", "--whole", whole, "--sessions", str(options.sessions)]
        subprocess.run(command, check=True)
    with TemporaryDirectory() as folder:
        first: list[np.ndarray] | None = None
        for devices in [NO_MESH, *options.devices.split(",")]:
            kept = Path(folder) / f"{devices}.npz"
            command = [sys.executable, "-m", "bench.training", "--devices", devices, "--keep", str(kept)]
            command += ["--sessions", str(options.sessions), "--steps", str(options.steps)]
            flags = f"--xla_force_host_platform_device_count={max(int(devices), 1)}"
            done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            speed = f"{row['transitions_per_s']:,.0f} transitions/s on the fly, peak {row['peak_gib']:.1f} GiB"
            if devices == NO_MESH:
                print(f"no mesh: {speed}")
                continue
            with np.load(kept) as arrays:
                leaves = [arrays[name] for name in arrays.files]
            first = leaves if first is None else first
            apart = max(float(np.abs(a - b).max()) for a, b in zip(first, leaves, strict=True))
            print(f"mesh of {devices}: {speed}, parameters within {apart:.1e}")


if __name__ == "__main__":
    main()
