"""A fresh install against the default rule: `python -m bench.fresh --data FOLDER`.

Policies that know nothing but prices and priors play the budget cells and the prompt-cache cells of `quick`, with
`--sessions` test sessions each: the default rule, the shipped network, and the network of every `--checkpoint`.
`exact` is the dynamic programme on the same priors, which knows the distribution of the training half's prompts
beside: what planning could earn. Prints quality in points per turn, the paired difference to the default rule with a
95 % interval over prompts, starved sessions, and the means over all catalogues. `--inputs plain`, the default, is what
a gateway knows before its first night: each model's own distribution of answer lengths. Deterministic given the data
and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from policy.checkpoint import load
from policy.learned import policy_from
from policy.mdp import COST_LEVELS
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.quality import PriorQuality, difficulties
from policy.reload import PRETRAINED_FOLDER
from policy.rules import ReSolving
from train.config import PlanConfig
from train.fit.value_table import Samples, Setting, tabulate
from train.replay.catalogue import CatalogueSetup, Environment, compose_sets, stages, studies
from train.replay.dataset import read_folder
from train.replay.grid import Cell, quick
from train.replay.inputs import KINDS
from train.replay.served import as_rule
from train.replay.simulator import KEPT_TOKENS, NO_CONTEXT, Played

TURNS = 8
SAMPLED = 256
"""Turns of the training half that the exact programme plans with."""
Known = ReSolving | NetworkPolicy | Planner
"""Policies of a fresh install."""
RULE, EXACT = "default rule", "exact"


@dataclass(frozen=True)
class Line:
    """Result of one policy in the cells of one kind of one catalogue."""

    catalogue: str
    kind: str
    policy: str
    quality: float
    gain: float
    low: float
    high: float
    starved: float

    def __str__(self) -> str:
        """A Markdown row, in points per turn."""
        gain = f"{100 * self.gain:+.2f} ({100 * self.low:+.2f} to {100 * self.high:+.2f})"
        cells = (self.catalogue, self.kind, self.policy, f"{100 * self.quality:.2f}", gain, f"{self.starved:.1%}")
        return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a row for every catalogue, kind of cell and policy, then their means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--inputs", choices=KINDS, default="plain")
    parser.add_argument("--sessions", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folders = {"shipped": PRETRAINED_FOLDER} | {folder.name: folder for folder in args.checkpoint}
    networks = {name: network(folder) for name, folder in folders.items()}
    print("| catalogue | cells | policy | quality | against the default rule | starved |\n|---|---|---|--:|--:|--:|")
    found: list[Line] = []
    for folder in args.data:
        for graded in read_folder(folder):
            for study in studies(
                graded, replace(quick(), test_sessions=args.sessions), (), args.seed, inputs=args.inputs
            ):
                for line in lines(study, args.sessions, networks):
                    print(line, flush=True)
                    found.append(line)
    for line in means(found):
        print(line)


def network(folder: Path) -> NetworkPolicy:
    """The network of a checkpoint without models. Raises CheckpointError."""
    policy = policy_from(load(folder))
    if not isinstance(policy, NetworkPolicy):
        raise SystemExit(f"--checkpoint: {folder}: expected a network")
    return policy


def lines(study: CatalogueSetup, sessions: int, networks: Mapping[str, Known]) -> Iterator[Line]:
    """One line for every kind of cell and policy of a catalogue, the default rule first."""
    grid = replace(quick(), test_sessions=sessions)
    sets = compose_sets(study, grid, TURNS)
    name = f"{study.graded.source}, {len(study.graded.models)} models"
    budget = [Cell(TURNS, phi, mode, NO_CONTEXT) for phi in grid.phis for mode in grid.modes]
    cached = [Cell(TURNS, None, "degrade", context) for context in grid.contexts]
    for kind, cells in (("budget", budget), ("cache", cached)):
        training, at = zip(*(stages(study, sets, cell) for cell in cells), strict=True)
        rule = played_by(study, at, ReSolving())
        yield line_of(study, (name, kind, RULE), at, rule, rule)
        for each, policy in networks.items():
            yield line_of(study, (name, kind, each), at, played_by(study, at, policy), rule)
        planned = [
            one
            for past, stage in zip(training, at, strict=True)
            for one in played_by(study, [stage], exact(study, past))
        ]
        yield line_of(study, (name, kind, EXACT), at, planned, rule)


def exact(study: CatalogueSetup, past: Environment) -> Planner:
    """The programme on priors and on forecast bills of prompts of the training half."""
    board, priors = past.board, PriorQuality()
    at = np.flatnonzero(board.sessions.valid.ravel())[:SAMPLED]
    rows, models = board.sessions.rows.ravel()[at], len(board.models)
    hard = difficulties(study.seen.stats[rows], np.zeros(len(at)), np.zeros(len(at), np.bool_))
    base, usd = float(board.context.base_tokens), board.usd_in_per_m * 1e-6
    samples = Samples(
        models=board.models,
        quality=np.clip(board.average ** priors.exponent(hard)[:, None], 0.0, 1.0),
        bills_usd=board.cost_quantiles_usd.reshape(-1, models, len(COST_LEVELS))[at],
        input_usd=usd * board.context.write_price,
        cached_usd=usd * board.context.cached_price,
        list_usd=np.maximum(board.usd_in_per_m + board.usd_out_per_m, 1e-6),
        answers=np.ones((models + 1, len(COST_LEVELS))),
        grown_tokens=float(KEPT_TOKENS if base else 0),
    )
    contexts = (0.0, *(base + KEPT_TOKENS * turns for turns in (0, 4, 8))) if base else (0.0,)
    table = tabulate(samples, replace(PlanConfig(), money_points=96, contexts_tokens=contexts), Setting())
    return Planner(EXACT, priors, table)


def played_by(study: CatalogueSetup, at: Sequence[Environment], policy: Known) -> list[Played]:
    """Play a policy that knows the horizon of every environment."""
    return [stage.play(as_rule(replace(policy, horizon=stage.horizon), study.seen)) for stage in at]


def line_of(
    study: CatalogueSetup,
    named: tuple[str, str, str],
    at: Sequence[Environment],
    played: Sequence[Played],
    rule: Sequence[Played],
) -> Line:
    """Mean over the cells of one kind, paired with the rule's."""
    quality, before = (np.concatenate([one.quality[one.valid] for one in each]) for each in (played, rule))
    prompts = np.concatenate([s.board.sessions.rows[one.valid] for s, one in zip(at, played, strict=True)])
    gain = quality - before
    resampled = study.resampled.means(study.graded.task[prompts], gain[:, None])[:, 0]
    low, high = (float(x) for x in np.quantile(resampled, (0.025, 0.975)))
    starved = float(np.mean([one.starved.mean() for one in played]))
    return Line(*named, float(quality.mean()), float(gain.mean()), low, high, starved)


def means(found: Sequence[Line]) -> Iterator[Line]:
    """Means over catalogues by kind of cell and policy, with the range of their gains."""
    for kind, policy in dict.fromkeys((line.kind, line.policy) for line in found):
        these = [line for line in found if (line.kind, line.policy) == (kind, policy)]
        gains = [line.gain for line in these]
        quality, starved = (float(np.mean(x)) for x in ([t.quality for t in these], [t.starved for t in these]))
        yield Line(
            "all, least and most gain", kind, policy, quality, float(np.mean(gains)), min(gains), max(gains), starved
        )


if __name__ == "__main__":
    main()
