"""Worth of what the policy is told: `python -m bench.inputs --data FOLDER [--seed N]`.

The planner of the folder's training half, as `live` (the gateway's features and forecast of bills), `plain` (without
the learned head of answer lengths) and `richer` (embeddings and groups), on the same test sessions in the four budget
cells of `quick`. Each line is the quality per turn, and below `plain` the paired difference to it with a 95 % interval,
and the share of starved sessions. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from bench.ablations import TURNS, learn_from, line
from train.replay.catalogue import compose_sets, stages, studies
from train.replay.dataset import Graded, read_folder
from train.replay.grid import Cell, quick
from train.replay.inputs import Inputs
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT, Played

ORDER: tuple[Inputs, ...] = ("plain", "live", "richer")


def main() -> None:
    """Print a table for every catalogue in the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for folder in args.data:
        for graded in read_folder(folder):
            for number in (0, 1):
                for row in table(graded, args.seed, number):
                    print(row, flush=True)


def table(graded: Graded, seed: int, number: int) -> Iterator[str]:
    """Markdown lines of one catalogue of a source; none if it has no such catalogue."""
    grid = quick()
    before: dict[Cell, Played] = {}
    for inputs in ORDER:
        study = next(studies(graded, grid, (), seed, only=number, inputs=inputs), None)
        if study is None:
            return
        if inputs == ORDER[0]:
            yield f"\n{graded.source}, {len(study.graded.models)} models\n"
            yield "| cell | inputs | quality | 95 % | starved |\n|---|---|--:|--:|--:|"
        sets = compose_sets(study, grid, TURNS)
        rule = as_rule(learn_from(study, grid, NO_CONTEXT).planner(grid.training), study.seen)
        for cell in [Cell(TURNS, phi, mode, NO_CONTEXT) for phi in grid.phis for mode in grid.modes]:
            test = stages(study, sets, cell)[1]
            played = test.play(rule)
            whole = [before[cell]] if cell in before else None
            yield line(study, f"phi {cell.phi} {cell.mode}", inputs, [test], [played], whole)
            before.setdefault(cell, played)


if __name__ == "__main__":
    main()
