"""Plain and reproducible oracle: `python -m bench.oracle --data FOLDER [--seed N]`.

A folder with `runs.parquet` (task_id, model, run, quality) has several runs of each task by each model. The best single
model of all tasks; the plain oracle, which takes each task's best model by the same run that it is judged by, luck
included; and the reproducible oracle, which takes it by the first half of the runs and is judged by the second half,
and the other way round. Ties go to the model with the best mean over the tasks by the runs that choose. With 95 %
intervals of a bootstrap over tasks. Deterministic given data and seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

F64 = NDArray[np.float64]
RESAMPLES = 2000


def main() -> None:
    """Print a table for every folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for folder in options.data:
        print(f"\n{folder.name}\n\n| | quality | 95 % | above the best single |\n|---|--:|--:|--:|")
        for line in table(read_runs(folder), options.seed):
            print(line)


def read_runs(folder: Path) -> F64:
    """Quality by run, task and model, (R, N, M).

    Of the models with the most tasks of which every run is known, and of the tasks that all of these have.
    """
    rows = pq.read_table(folder / "runs.parquet", columns=["task_id", "model", "run", "quality"]).to_pydict()
    tasks, models, runs = (sorted(set(rows[name])) for name in ("task_id", "model", "run"))
    found = np.full((len(runs), len(tasks), len(models)), np.nan)
    at = tuple(
        [each.index(x) for x in rows[name]] for each, name in ((runs, "run"), (tasks, "task_id"), (models, "model"))
    )
    found[at] = rows["quality"]
    found = found[:, :, np.isfinite(found).any(axis=(0, 1))]
    most = np.isfinite(found).all(axis=0).mean(axis=0)
    found = found[:, :, most == most.max()]
    return np.asarray(found[:, np.isfinite(found).all(axis=(0, 2))])


def plain(runs: F64) -> F64:
    """The plain oracle's quality of each task, mean over runs: (R, N, M) -> (N,)."""
    return np.asarray(runs.max(axis=2).mean(axis=0))


def best_single(runs: F64) -> F64:
    """The quality of the model that is best over all tasks and runs, (N,)."""
    means = runs.mean(axis=0)
    return np.asarray(means[:, int(means.mean(axis=0).argmax())])


def reproducible(runs: F64) -> F64:
    """The reproducible oracle's quality of each task, (N,).

    Each half of the runs chooses a model that the other half judges.
    """
    halves = np.array_split(runs, 2)
    return np.asarray(sum(_chosen_by(one, other) for one, other in (halves, halves[::-1])) / 2.0)


def _chosen_by(choosing: F64, judging: F64) -> F64:
    means = choosing.mean(axis=0)
    ranked = np.lexsort((means.mean(axis=0),))[::-1]  # the best overall first: argmax takes the first of equals
    best = ranked[means[:, ranked].argmax(axis=1)]
    return np.asarray(judging.mean(axis=0)[np.arange(len(best)), best])


def table(runs: F64, seed: int) -> Iterator[str]:
    """Markdown lines of the three."""
    single = best_single(runs)
    drawn = np.random.default_rng(seed).integers(0, len(single), (RESAMPLES, len(single)))
    for words, each in (
        ("best single model", single),
        ("plain oracle", plain(runs)),
        ("reproducible oracle", reproducible(runs)),
    ):
        low, high = np.quantile(each[drawn].mean(axis=1), (0.025, 0.975))
        gain, (least, most) = each - single, np.quantile((each - single)[drawn].mean(axis=1), (0.025, 0.975))
        yield (
            f"| {words} | {each.mean():.3f} | {low:.3f} to {high:.3f} "
            f"| {gain.mean():+.3f} ({least:+.3f} to {most:+.3f}) |"
        )


if __name__ == "__main__":
    main()
