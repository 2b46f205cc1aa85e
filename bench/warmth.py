"""Gains by knowing the price of cache writes and learning how warm caches are.

`python -m bench.warmth --data DIR`: the default rule, with `--trained` also a planner and a network, in cells in which
a provider really has all, .6 or nothing of a matching prefix in its cache, and in which a write costs 1 or 1.25 times
the list price. The policy knows that price and learns the share from bills, as the gateway does. It is compared with
one that assumes whole prefixes, with one that is told list prices, and with one that does both; each is trained in the
context that it is told. Points of quality with 95 % intervals over prompts. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog.cache_hits import CacheHits
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.rules import ReSolving
from train.replay.blind import believing
from train.replay.catalogue import CatalogueSetup, Environment, compose_sets, stages, studies
from train.replay.dataset import read_folder
from train.replay.grid import WRITE_PRICE, Cell, Grid, quick
from train.replay.network import hasty
from train.replay.ours import lesson, planners
from train.replay.served import as_rule
from train.replay.simulator import Context, Played, Rule
from train.replay.warmth import learning

TURNS = 8
PENALTY = 0.3
CELLS = ((1.0, WRITE_PRICE), (0.6, 1.0), (0.6, WRITE_PRICE), (0.0, 1.0), (0.0, WRITE_PRICE))
"""(share of a matching prefix that is really cached, price of a write over the list price)"""
LESS: dict[str, dict[str, Any]] = {
    "assumed warmth": {"hit_share": 1.0},
    "list prices": {"write_price": 1.0},
    "both": {"hit_share": 1.0, "write_price": 1.0},
}
"""What the policy that is compared with is told instead of the truth."""


@dataclass(frozen=True)
class Gain:
    """Points over a policy that knows less, their interval, and both starved shares."""

    points: float
    low: float
    high: float
    starved: tuple[float, float]

    def __str__(self) -> str:
        less, ours = self.starved
        return f"{self.points:+.2f} ({self.low:+.2f} to {self.high:+.2f}), {less:.1%} -> {ours:.1%}"


def main() -> None:
    """Print a line for every cell and comparison, then a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--trained", action="store_true")
    args = parser.parse_args()
    found: dict[tuple[str, ...], list[Gain]] = {}
    for graded in (each for folder in args.data for each in read_folder(folder)):
        for seed in args.seed or [0]:
            for study in studies(graded, quick(), (), seed, inputs="live" if args.trained else "plain"):
                for name, gain in gains(study, quick(), args.trained):
                    print(
                        f"{graded.source}, {len(study.graded.models)} models, seed {seed} | {' | '.join(name)} | {gain}"
                    )
                    found.setdefault(name, []).append(gain)
    print(
        "\n| policy | cached | write | over | gain | certainly better, worse | starved |\n|---|--:|--:|---|--:|--:|--:|"
    )
    for name, each in found.items():
        print(summary(name, each), flush=True)


def gains(study: CatalogueSetup, grid: Grid, trained: bool) -> Iterator[tuple[tuple[str, ...], Gain]]:
    """Gains by policy, cell and what the other policy is told."""
    base, sets = grid.contexts[0], compose_sets(study, grid, TURNS)
    contexts = [
        replace(base, hit_share=share, write_price=price) for share in (1.0, 0.6, 0.0) for price in (1.0, WRITE_PRICE)
    ]
    learned = trained_policies(study, grid, contexts) if trained else {}
    for share, price in CELLS:
        context = replace(base, hit_share=share, write_price=price)
        _, at = stages(study, sets, Cell(TURNS, None, "degrade", context))
        for kind in ("rule", *dict.fromkeys(kind for kind, _ in learned)):

            def rule_for(told: Context, kind: str = kind, at: Environment = at) -> Rule:
                policy = (
                    ReSolving(horizon=at.horizon)
                    if kind == "rule"
                    else replace(learned[kind, told], horizon=at.horizon)
                )
                return as_rule(policy, study.seen)

            ours = at.play(learning(rule_for(context), CacheHits()))
            for words, less in LESS.items():
                told = replace(context, **less)
                if told != context:
                    other = at.play(told_less(rule_for, told, less))
                    yield (kind, f"{share:g}", f"{price:g}", words), gain_of(study, at, ours, other)


def told_less(rule_for: Callable[[Context], Rule], told: Context, less: dict[str, Any]) -> Rule:
    """The rule that is told less; unless it assumes whole prefixes, it learns warmth."""
    rule = believing(rule_for(told), **less)
    return rule if "hit_share" in less else learning(rule, CacheHits())


def trained_policies(
    study: CatalogueSetup, grid: Grid, contexts: list[Context]
) -> dict[tuple[str, Context], Planner | NetworkPolicy]:
    """A planner and a network (with the shorter training of rehearsals) for each context."""
    one = lesson(study, grid, study.halves.training, TURNS, contexts)
    config = replace(one.config, plan=replace(one.config.plan, starved_penalties=(PENALTY,), cautious_penalties=()))
    layers = one.network(hasty(one.config))
    found: dict[tuple[str, Context], Planner | NetworkPolicy] = {}
    for i, context in enumerate(contexts):
        planner = planners(one.logs[i], one.quality, one.grades, config)[0][1]
        assert isinstance(planner, Planner)
        found["planner", context] = planner
        found["network", context] = replace(one.served(layers, i), starved_penalty=PENALTY)
    return found


def gain_of(study: CatalogueSetup, at: Environment, ours: Played, other: Played) -> Gain:
    """The gain of one play over another of the same sessions."""
    more = 100 * (ours.quality - other.quality)[ours.valid]
    prompts = at.board.sessions.rows[ours.valid]
    means = study.resampled.means(study.graded.task[prompts], more[:, None])[:, 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return Gain(float(more.mean()), float(low), float(high), (float(other.starved.mean()), float(ours.starved.mean())))


def summary(name: tuple[str, ...], each: list[Gain]) -> str:
    """Markdown line over all catalogues: mean, least and greatest gain."""
    points = [gain.points for gain in each]
    better, worse = sum(gain.low > 1e-9 for gain in each), sum(gain.high < -1e-9 for gain in each)
    less, ours = np.mean([gain.starved for gain in each], axis=0)
    change = f"{np.mean(points):+.2f} ({min(points):+.2f} to {max(points):+.2f})"
    return f"| {' | '.join(name)} | {change} | {better}, {worse} of {len(each)} | {less:.1%} -> {ours:.1%} |"


if __name__ == "__main__":
    main()
