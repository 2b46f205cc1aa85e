"""Ablations of the policy: `python -m bench.ablations --data FOLDER [--network] [--seed N]`.

The planner of the folder's training half plays test sessions under tight budgets (mode `cut`) and with a prompt cache
(budget: the middle model's warm cost). Each line removes one part and shows the change in quality per turn, with a 95 %
interval paired over prompts, and the share of starved sessions. `--network` also fits the value network, once per
removed part. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from policy import batch, budgeting
from policy.features import Horizon, expected_cost_usd
from policy.planned import Planner
from train.config import FitConfig, RelabelConfig, TrainConfig
from train.fit.network import grade
from train.fit.presets import learn_horizon
from train.fit.reward_model import RewardModel
from train.fit.seqroute_paper import BUDGET_SHARES, fit_published
from train.fit.value_table import Setting, draw_samples, tabulate
from train.log.episodes import Episodes
from train.replay import baselines_learned as cited
from train.replay.catalogue import CatalogueSetup, Environment, Sets, compose_sets, stages, studies
from train.replay.dataset import read_folder
from train.replay.grid import Cell, Grid, quick
from train.replay.network import build_policy, train_network
from train.replay.ours import training_log
from train.replay.served import as_rule, turn_batch
from train.replay.simulator import NO_CONTEXT, Context, Played, Rule

TURNS = 8
PENALTY = 0.3
NETWORK = FitConfig()
Seen = Callable[[batch.Batch], batch.Batch]


@dataclass(frozen=True)
class Ablation:
    """The policy without one part, and a description."""

    words: str
    rule: Rule


@dataclass(frozen=True)
class Learned:
    """A graded log and the models fitted to it."""

    episodes: Episodes
    quality: RewardModel
    grades: np.ndarray
    horizon: Horizon

    def planner(self, config: TrainConfig, penalty: float = PENALTY, cache_aware: bool = True) -> Planner:
        """Make the planner for one penalty of a lost answer."""
        samples = draw_samples(self.episodes, self.grades, config.plan)
        table = tabulate(samples, config.plan, Setting(penalty), cache_aware)
        quality = self.quality.served(self.episodes.models)
        return Planner("planner", quality, table, penalty, horizon=self.horizon)


def main() -> None:
    """Print the table of every catalogue in the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", action="store_true")
    args = parser.parse_args()
    for folder in args.data:
        for graded in read_folder(folder):
            study = next(studies(graded, quick(), (), args.seed, only=0))
            print(f"\n{graded.source}, {len(study.graded.models)} models\n")
            print("| cells | without | quality | 95 % | starved |\n|---|---|--:|--:|--:|")
            for line in table(study, quick(), NETWORK if args.network else None):
                print(line, flush=True)


def table(study: CatalogueSetup, grid: Grid, network: FitConfig | None) -> Iterator[str]:
    """Markdown lines of one catalogue, including the network's if `network` is given."""
    sets = compose_sets(study, grid, TURNS)
    for context, kind in ((NO_CONTEXT, "budget"), (grid.contexts[0], "cache")):
        cells = [Cell(TURNS, phi, "cut", context) for phi in grid.phis]
        if kind == "cache":
            cells = [Cell(TURNS, None, "degrade", context)]
        played = [stages(study, sets, cell)[1] for cell in cells]
        learned = learn_from(study, grid, context)
        whole = [stage.play(as_rule(learned.planner(grid.training), study.seen)) for stage in played]
        yield line(study, kind, "(the planner)", played, whole, None)
        for ablation in ablations(study, grid, learned, kind):
            yield line(study, kind, ablation.words, played, [stage.play(ablation.rule) for stage in played], whole)
        if kind == "budget":
            yield from published_lines(study, grid, learned, sets, cells)
        if network is not None and kind == "budget":
            yield from network_lines(study, grid, learned, played, network_variants(network))


def learn_from(study: CatalogueSetup, grid: Grid, context: Context) -> Learned:
    """Fit the planner's inputs to the training half."""
    episodes = training_log(study, grid, study.halves.training, TURNS, context)
    quality, flat = grade(episodes, grid.training)
    grades = np.zeros(episodes.mask.shape)
    grades[episodes.valid] = flat
    return Learned(episodes, quality, grades, learn_horizon(episodes.lengths))


def ablations(study: CatalogueSetup, grid: Grid, learned: Learned, kind: str) -> Iterator[Ablation]:
    """The planner without each of its parts."""
    config = grid.training
    whole = learned.planner(config)

    def seeing(policy: Planner, change: Seen) -> Rule:
        return lambda turn: batch.draw_rows(
            batch.probabilities(policy, change(turn_batch(turn, study.seen))), turn.uniform
        )

    if kind == "cache":
        yield Ablation("the cache, in this turn alone", seeing(whole, batch.Batch.without_cache))
        blind = learned.planner(config, cache_aware=False)
        yield Ablation("the cache, in the plan alone", as_rule(blind, study.seen))
        yield Ablation("the cache, in turn and plan", seeing(blind, batch.Batch.without_cache))
    flat = replace(learned, episodes=with_mean_bills(learned.episodes))
    yield Ablation("quantiles of the bill: its mean", seeing(flat.planner(config), with_mean_bill))
    slopes = np.ones_like(learned.quality.slope)
    steep = replace(learned, quality=replace(learned.quality, slope=slopes, pooled=np.ones(2)))
    yield Ablation("shrinkage of predicted differences", as_rule(steep.planner(config), study.seen))
    level = replace(learned, quality=replace(learned.quality, slope=0.0 * slopes, pooled=np.zeros(2)))
    yield Ablation("the prompt: means of the models alone", as_rule(level.planner(config), study.seen))
    alike = replace(whole.table, answers=np.ones_like(whole.table.answers))
    yield Ablation("expensive answers being poor ones", as_rule(replace(whole, table=alike), study.seen))
    nothing = replace(whole.table, values=np.zeros_like(whole.table.values))
    yield Ablation("the plan: later money has no value", as_rule(replace(whole, table=nothing), study.seen))
    yield Ablation("the penalty of a lost answer", as_rule(learned.planner(config, penalty=0.0), study.seen))
    yield Ablation("(with the shield before it)", seeing(whole, lambda shown: behind_shield(shown, learned.horizon)))


def published_lines(
    study: CatalogueSetup, grid: Grid, learned: Learned, sets: Sets, cells: list[Cell]
) -> Iterator[str]:
    """The published method with all relabelled budgets, and with the largest only."""
    unit = 1.0 / study.bank.mean_usd[study.named.strong]
    before: list[Played] | None = None
    for words, shares in (("(as published, safe)", BUDGET_SHARES), ("relabelled budgets: the largest alone", (1.0,))):
        config = replace(grid.published, budget_shares=shares)
        rules = cited.prepare_published(fit_published(learned.episodes, config, study.seed), study.seen)
        played, tests = [], []
        for cell in cells:
            training, test = stages(study, sets, cell)
            safe = cited.safest_worth(unit, partial(played_at, training, rules))
            played.append(test.play(rules.rule(safe.lambda_per_usd)))
            tests.append(test)
        yield line(study, "budget", words, tests, played, before)
        before = before or played


def played_at(stage: Environment, rules: cited.PublishedNetwork, lambda_per_usd: float) -> Played:
    """Play the training sessions with the published method at one lambda."""
    return stage.play(rules.rule(lambda_per_usd))


def network_variants(base: FitConfig) -> Iterator[tuple[str, FitConfig, RelabelConfig]]:
    """The network as fitted nightly, and without each of its parts, with descriptions."""
    relabel = RelabelConfig()
    yield "(the network)", base, relabel
    yield "temporal differences: the warm start alone", replace(base, steps=0), relabel
    yield "the warm start: as shipped", replace(base, warm_steps=0, steps=0), relabel
    yield "lambda: 0 alone is trained", base, replace(relabel, lambda_zero_fraction=1.0)
    yield "lower confidence: no margin", replace(base, margin=0.0), relabel


def network_lines(
    study: CatalogueSetup,
    grid: Grid,
    learned: Learned,
    played: list[Environment],
    variants: Iterable[tuple[str, FitConfig, RelabelConfig]],
) -> Iterator[str]:
    """Quality of each variant relative to the first."""
    before: list[Played] | None = None
    for words, fitting, relabelling in variants:
        config = replace(grid.training, relabel=relabelling, fit=fitting, seed=study.seed)
        network = train_network(learned.episodes, learned.grades, learned.quality, config)
        policy = build_policy(network, learned.episodes, learned.grades, learned.quality, config)
        after = [stage.play(as_rule(policy, study.seen)) for stage in played]
        yield line(study, "budget", words, played, after, before)
        before = before or after


def line(
    study: CatalogueSetup,
    kind: str,
    words: str,
    at: list[Environment],
    played: list[Played],
    whole: list[Played] | None,
) -> str:
    """Quality per turn over some cells, or the paired difference from `whole` with its interval."""
    valid = [one.valid for one in played]
    quality = np.concatenate([one.quality[v] for one, v in zip(played, valid, strict=True)])
    starved = f"{np.mean([one.starved.mean() for one in played]):.1%}"
    if whole is None:
        return f"| {kind} | {words} | {quality.mean():.4f} | | {starved} |"
    difference = quality - np.concatenate([one.quality[v] for one, v in zip(whole, valid, strict=True)])
    prompts = np.concatenate([stage.board.sessions.rows[v] for stage, v in zip(at, valid, strict=True)])
    means = study.resampled.means(study.graded.task[prompts], difference[:, None])[:, 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"| {kind} | {words} | {difference.mean():+.4f} | {low:+.4f} to {high:+.4f} | {starved} |"


def with_mean_bills(episodes: Episodes) -> Episodes:
    """The log with every candidate's cost distribution replaced by its mean."""
    mean = expected_cost_usd(episodes.cost_quantiles_usd)[..., None]
    return replace(
        episodes, cost_quantiles_usd=np.broadcast_to(mean, episodes.cost_quantiles_usd.shape).astype(np.float32)
    )


def with_mean_bill(shown: batch.Batch) -> batch.Batch:
    """Replace every cost distribution of a batch by its mean."""
    mean = expected_cost_usd(shown.cost_quantiles_usd)[..., None]
    return replace(shown, cost_quantiles_usd=np.broadcast_to(mean, shown.cost_quantiles_usd.shape).astype(np.float32))


def behind_shield(shown: batch.Batch, horizon: Horizon) -> batch.Batch:
    """Remove the candidates that the budget shield excludes."""
    left = shown.turns_left(horizon)
    allowed = budgeting.shield(shown.cost_quantiles_usd, shown.mask, shown.available_usd, left, 1.0)
    return replace(shown, mask=allowed)


if __name__ == "__main__":
    main()
