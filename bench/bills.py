"""Do forecasts of bills hold? `python -m bench.bills --data FOLDER [--seed N]`.

The bill of every test prompt on every model is forecast as in the gateway, from the training half's answers: the share
of real bills within the median and within the .9 and .99 quantiles, for each model with at least `--turns` test
prompts, with the learned head of answer lengths (`live`, where a night would keep it) and without it (`plain`). The aim
for the .9 quantile is .85 to .95. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from policy.mdp import COST_LEVELS
from train.replay.dataset import Graded, read_folder
from train.replay.inputs import Inputs, bills_of, vectors_of
from train.replay.split import halves

SHOWN = (0.5, 0.9, 0.99)
LEAST, MOST = 0.85, 0.95


def main() -> None:
    """Print a line for every model, and how many of them are within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=200)
    args = parser.parse_args()
    print("| source | model | inputs | test prompts | " + " | ".join(f"q{level:g}" for level in SHOWN) + " |")
    print("|---|---|---|--:|" + "--:|" * len(SHOWN))
    within: dict[str, list[bool]] = {}
    for folder in args.data:
        for graded in read_folder(folder):
            for name, inputs, count, shares in coverages(graded, args.seed):
                if count >= args.turns:
                    shown = " | ".join(f"{share:.3f}" for share in shares)
                    print(f"| {graded.source} | {name} | {inputs} | {count} | {shown} |", flush=True)
                    within.setdefault(inputs, []).append(LEAST <= shares[SHOWN.index(0.9)] <= MOST)
    for kind, found in within.items():
        print(f"{kind}: q0.9 holds {LEAST} to {MOST} of the bills of {sum(found)} of {len(found)} models")


def coverages(graded: Graded, seed: int) -> Iterator[tuple[str, Inputs, int, list[float]]]:
    """(model, inputs, test prompts, share of bills within each shown quantile) of one source."""
    split = halves(graded, seed)
    graded = graded.with_prices(split.training)
    test = np.setdiff1d(np.arange(graded.prompts), split.training)
    kinds: tuple[Inputs, ...] = ("plain", "live")
    for inputs in kinds:
        seen = vectors_of(inputs, graded, split.training)
        forecast = bills_of(inputs, graded, seen, split.training, seed).cost_quantiles_usd[test]
        for k, name in enumerate(graded.models):
            bills = graded.cost_usd[test, k]
            yield (
                name,
                inputs,
                len(test),
                [float((bills <= forecast[:, k, COST_LEVELS.index(level)]).mean()) for level in SHOWN],
            )


if __name__ == "__main__":
    main()
