"""`seqroute-train replay`: every policy on every cell of every source, and what each earned. `run` is the story."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.baselines import Resolving
from policy.features import Horizon
from train.presets import learn_horizon
from train.replay.baselines import Bank, Ends, TunedRule, ends, families, make_bank, tune
from train.replay.cells import RANDOM, Cell, Grid, budgets_usd, catalogues, cells, phi_of, session_cost_usd
from train.replay.data import Graded, read_folder
from train.replay.predictors import Predictions, predict
from train.replay.report import Entry, Resampled, rows
from train.replay.served import as_rule
from train.replay.sessions import Sessions, compose, group_difficulty
from train.replay.split import Halves, halves
from train.replay.vectors import Vectors, vectors
from train.replay.world import Board, Played, Rule, make_board, play

I64 = NDArray[np.int64]
Progress = Callable[[str, int, int], None]

FORMAT = "seqroute-replay/1"
DEFAULT_RULE = "gateway-default"


@dataclass(frozen=True)
class Options:
    """What to play. Empty `models` and `policies` mean the defaults and all."""

    folders: tuple[Path, ...]
    grid: Grid
    preset: str = "quick"
    models: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    seed: int = 0
    progress: Progress | None = None

    def step(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(name, done, total)


@dataclass(frozen=True)
class Study:
    """One catalogue of one source, ready to be played: what is known of it, from the training half alone."""

    graded: Graded
    halves: Halves
    seen: Vectors
    predictions: Predictions
    named: Ends
    difficulty: NDArray[np.float64]
    bank: Bank
    seed: int
    resampled: Resampled


@dataclass(frozen=True)
class Sets:
    """Composed sessions of either half for one number of turns, and the horizon that the training sessions teach."""

    training: Board
    test: Board
    horizon: Horizon


def run(options: Options) -> dict[str, Any]:
    """Play everything. Returns the output as docs/replay.md gives it. Deterministic given data and seed."""
    sources = [graded for folder in options.folders for graded in read_folder(folder)]
    played = cells(options.grid)
    found: list[dict[str, Any]] = []
    for graded in sources:
        for study in studies(graded, options):
            label = f"{graded.source}, {len(study.graded.models)} models"
            sets = {turns: compose_sets(study, options.grid, turns) for turns in {cell.turns for cell in played}}
            for done, cell in enumerate(played):
                options.step(label, done, len(played))
                found += play_cell(study, sets[cell.turns], cell, options)
    return {"meta": meta(options, sources), "rows": found}


def studies(graded: Graded, options: Options) -> Iterator[Study]:
    """The catalogues of one source, each with its predictions."""
    split = halves(graded, options.seed)
    seen = vectors(graded, split.training)
    resampled = Resampled(len(graded.task_ids), options.grid.resamples, options.seed)
    for chosen in catalogues(graded, split.training, options.models):
        predictions = predict(chosen, seen, split.training, options.seed)
        named = ends(predictions.average, predictions.average_cost_usd)
        yield Study(
            graded=chosen,
            halves=split,
            seen=seen,
            predictions=predictions,
            named=named,
            difficulty=group_difficulty(chosen, split.training, named.weak),
            bank=make_bank(predictions.quality[split.training], predictions.cost_usd[split.training], named.strong),
            seed=options.seed,
            resampled=resampled,
        )


def compose_sets(study: Study, grid: Grid, turns: int | None) -> Sets:
    """The same sessions for every budget, mode and context: what differs between cells is not luck."""
    training = composed(study, study.halves.training, grid.training_sessions, turns, grid.orderings, part=1)
    test = composed(study, study.halves.test, grid.test_sessions, turns, grid.orderings, part=2)
    return Sets(
        training=make_board(study.graded, study.predictions, training),
        test=make_board(study.graded, study.predictions, test),
        horizon=learn_horizon(training.lengths),
    )


def composed(
    study: Study, prompts: I64, count: int, turns: int | None, orderings: Sequence[str], *, part: int
) -> Sessions:
    generator = np.random.default_rng([study.seed, part, turns or 0])
    return compose(
        study.graded,
        prompts,
        study.difficulty,
        sessions=count,
        turns=turns,
        generator=generator,
        orderings=orderings,
    )


def play_cell(study: Study, sets: Sets, cell: Cell, options: Options) -> list[dict[str, Any]]:
    """All policies under one purse, tuned on the training half, measured on the other."""
    training, test = sets.training.within(cell.context), sets.test.within(cell.context)
    cost = study.predictions.average_cost_usd
    training_usd = budgets_usd(training, cost, study.named, cell.phi)
    test_usd = budgets_usd(test, cost, study.named, cell.phi)

    def on_training(rule: Rule) -> Played:
        return play(training, rule, training_usd, cell.mode, sets.horizon, study.seed + 1)

    def on_test(rule: Rule) -> Played:
        return play(test, rule, test_usd, cell.mode, sets.horizon, study.seed + 2)

    tuned = [tune(family, on_training) for family in families(training, study.bank, study.named)]
    entries = [_baseline(rule, on_test(rule.rule)) for rule in tuned if _wanted(rule.name, options)]
    if _wanted(DEFAULT_RULE, options):
        policy = Resolving(horizon=sets.horizon)
        entries.append(Entry(DEFAULT_RULE, on_test(as_rule(policy, study.seen)), 0.0))
    described = {
        "source": study.graded.source,
        "models": ",".join(study.graded.models),
        "turns": cell.turns or RANDOM,
        "phi": round(phi_of(test_usd, session_cost_usd(test, cost), study.named), 6),
        "budget": "phi" if cell.phi is not None else "warm-mid",
        "mode": cell.mode,
        "base_context": cell.context.base_tokens,
        "cached_price": cell.context.cached_price,
    }
    return rows(entries, test.sessions, study.graded.task, study.resampled, study.named.strong, described)


def meta(options: Options, sources: Sequence[Graded]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preset": options.preset,
        "seed": options.seed,
        "sources": [
            {"source": g.source, "prompts": g.prompts, "models": list(g.models), "digest": g.digest, "notes": g.notes}
            for g in sources
        ],
    }


def _baseline(tuned: TunedRule, played: Played) -> Entry:
    return Entry(
        tuned.name,
        played,
        tuned.numbers.get("lambda_per_usd"),
        tuned.training_quality,
        baseline=True,
        numbers=tuned.numbers,
    )


def _wanted(policy: str, options: Options) -> bool:
    return not options.policies or policy in options.policies
