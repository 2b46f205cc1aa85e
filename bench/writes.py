"""Default rule with the price of cache writes against one with list prices.

`python -m bench.writes play OUT --data DIR`, then `compare BEFORE AFTER`:
`play` plays the rule of this checkout in all cells of `quick` and keeps its answers; `compare BEFORE AFTER` prints the
gain of AFTER's rule over BEFORE's, told list prices where the cell has writes, with 95 % intervals over prompts. For an
older rule copy this file into a checkout of its commit. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from policy.arrays import F64, I64
from policy.rules import ReSolving
from train.replay.catalogue import compose_sets, stages, studies
from train.replay.dataset import read_folder
from train.replay.grid import Cell, quick
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT, Rule, Turn

TURNS = 8
RESAMPLES = 1_000


def main() -> None:
    """Play the rule, or compare what two played."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("play")
    one.add_argument("out", type=Path)
    one.add_argument("--data", type=Path, action="append", required=True)
    one.add_argument("--seed", type=int, default=0)
    two = commands.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "play":
        args.out.write_bytes(pickle.dumps(play(args.data, args.seed)))
    else:
        compare(*(pickle.loads(path.read_bytes()) for path in (args.before, args.after)))


def play(folders: list[Path], seed: int) -> dict[tuple[str, ...], dict[str, Any]]:
    """Grades, tasks and starved sessions of every cell.

    By catalogue, kind, cell and what the rule is told.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for graded in (each for folder in folders for each in read_folder(folder)):
        for study in studies(graded, quick(), (), seed, inputs="plain"):
            sets = compose_sets(study, quick(), TURNS)
            cells = [Cell(TURNS, phi, mode, NO_CONTEXT) for phi in quick().phis for mode in quick().modes]
            for cell in [*cells, *(Cell(TURNS, None, "degrade", context) for context in quick().contexts)]:
                _, at = stages(study, sets, cell)
                rule = as_rule(ReSolving(horizon=at.horizon), study.seen)
                kind = "writes" if cell.context.write_price != 1.0 else "cache" if cell.phi is None else "budget"
                name = (f"{study.graded.source}, {','.join(study.graded.models)}", kind, f"{cell.phi} {cell.mode}")
                for told, each in (("writes", rule), ("list", at_list_price(rule))):
                    played = at.play(each)
                    task = study.graded.task[at.board.sessions.rows[played.valid]]
                    found[*name, told] = {"q": played.quality[played.valid], "task": task, "starved": played.starved}
    return found


def at_list_price(rule: Rule) -> Rule:
    """Rule told list prices, as `train.replay.blind` has it today, for older checkouts."""

    def told(turn: Turn) -> I64:
        board = turn.board.within(replace(turn.board.context, write_price=1.0))
        more_usd = turn.board.context_usd(turn.index, turn.last) - board.context_usd(turn.index, turn.last)
        bills_usd = turn.cost_quantiles_usd - more_usd[..., None]
        return rule(replace(turn, board=board, cost_quantiles_usd=bills_usd, mean_usd=turn.mean_usd - more_usd))

    return told


def compare(before: dict[tuple[str, ...], dict[str, Any]], after: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """Print a line for every cell."""
    generator = np.random.default_rng(0)
    for key in after:
        if key[-1] == "writes":
            new, old = after[key], before[*key[:-1], "list"]
            gain: F64 = new["q"] - old["q"]
            _, place = np.unique(new["task"], return_inverse=True)
            sums, counts = np.bincount(place, gain), np.bincount(place)
            drawn = generator.integers(0, len(sums), (RESAMPLES, len(sums)))
            low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.025, 0.975))
            starved = f"{old['starved'].mean():.1%} -> {new['starved'].mean():.1%}"
            print(
                f"{' | '.join(key[:-1])} | {100 * gain.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) | {starved}"
            )


if __name__ == "__main__":
    main()
