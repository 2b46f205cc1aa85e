"""Worth and regret of a newcomer: `python -m bench.newcomer --data FOLDER [--seed N]`.

The middle model of each folder's largest catalogue is withheld from all training and then added with a prior that is
off by as much as each line says. The planner of the other models' log plays the budget cells of `quick` with it and
without it: the paired difference in quality per turn, with a 95 % interval over prompts, and the share of turns that
the newcomer answered. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.ablations import TURNS, learn_from
from train.replay.catalogue import (
    CatalogueSetup,
    compose_sets,
    re_boarded,
    stages,
    studies,
    with_newcomer,
    without_model,
)
from train.replay.dataset import read_folder
from train.replay.grid import Cell, middle, quick
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT

ERRORS = (-0.2, -0.1, 0.0, 0.1, 0.2)


def main() -> None:
    """Print the table of every folder with three models or more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sessions", type=int, default=400)
    args = parser.parse_args()
    print("| catalogue | newcomer | its prior is off by | gain | 95 % | answered by it |\n|---|---|--:|--:|--:|--:|")
    for folder in args.data:
        for graded in read_folder(folder):
            study = next(studies(graded, replace(quick(), test_sessions=args.sessions), (), args.seed, only=0))
            for line in table(study, args.sessions) if len(study.graded.models) > 2 else ():
                print(line, flush=True)


def table(study: CatalogueSetup, sessions: int) -> Iterator[str]:
    """Markdown lines of one catalogue."""
    grid, model = replace(quick(), test_sessions=sessions), middle(study.average_cost_usd)
    absent, there = without_model(study, model), with_newcomer(study, model)
    planner = learn_from(absent, grid, NO_CONTEXT).planner(grid.training)
    sets = compose_sets(study, grid, TURNS)
    at = [stages(study, sets, Cell(TURNS, phi, mode, NO_CONTEXT))[1] for phi in grid.phis for mode in grid.modes]
    alone = [re_boarded(stage, absent).play(as_rule(planner, absent.seen)) for stage in at]
    for error in ERRORS:
        average = there.predictions.average.copy()
        average[model] = np.clip(average[model] + error, 0.0, 1.0)
        shown = replace(there, predictions=replace(there.predictions, average=average))
        played = [re_boarded(stage, shown).play(as_rule(planner, there.seen)) for stage in at]
        gain = np.concatenate(
            [one.quality[one.valid] - old.quality[one.valid] for one, old in zip(played, alone, strict=True)]
        )
        prompts = np.concatenate([s.board.sessions.rows[one.valid] for s, one in zip(at, played, strict=True)])
        means = study.resampled.means(study.graded.task[prompts], gain[:, None])[:, 0]
        low, high = np.quantile(means, (0.025, 0.975))
        share = np.mean(np.concatenate([one.action[one.valid] for one in played]) == model)
        name = f"{study.graded.source}, {len(study.graded.models)} models"
        yield (
            f"| {name} | {study.graded.models[model]} | {error:+.1f} | {100 * gain.mean():+.2f} | "
            f"{100 * low:+.2f} to {100 * high:+.2f} | {share:.0%} |"
        )


if __name__ == "__main__":
    main()
