"""One catalogue of one source, prepared for play: predictions and sessions of either half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy.arrays import F64, I64
from policy.features import Horizon
from policy.text import HASHED, TextSpace
from train.fit.presets import learn_horizon
from train.replay.baselines import Bank, Ends, ends, make_bank
from train.replay.compose import Sessions, compose, group_difficulty
from train.replay.dataset import Graded
from train.replay.grid import Cell, Grid, budgets_usd, catalogues
from train.replay.inputs import Inputs, bills_of, vectors_of
from train.replay.predict import Predictions, newcomer, predict
from train.replay.simulator import Mode, Played, Rule, SessionBatch, make_board, play
from train.replay.split import Halves, halves
from train.replay.statistics import Resampled
from train.replay.vectors import Vectors

GATE_PART = 401
"""First seed of the sessions that judge rehearsals."""


@dataclass(frozen=True)
class CatalogueSetup:
    """A catalogue with its prompts' vectors and predictions.

    `bank` is the expected cost of a turn at each price of money. `average_cost_usd` (K,) sets budgets; it includes a
    newcomer's. `installed` are the predictions of a gateway before its first night.
    """

    graded: Graded
    halves: Halves
    seen: Vectors
    predictions: Predictions
    installed: Predictions
    named: Ends
    difficulty: F64
    bank: Bank
    average_cost_usd: F64
    resampled: Resampled
    seed: int
    inputs: Inputs = "live"

    @property
    def as_installed(self) -> CatalogueSetup:
        """The catalogue as a fresh install knows it, without a night's head of answer lengths."""
        return replace(self, predictions=self.installed)


@dataclass(frozen=True)
class Sets:
    """Composed sessions of either half for one number of turns.

    With the horizon learned from the training sessions; `gate` judge the rehearsals.
    """

    training: SessionBatch
    test: SessionBatch
    horizon: Horizon
    gate: tuple[SessionBatch, ...] = ()


@dataclass(frozen=True)
class Environment:
    """Sessions under one budget in one mode: where a rule is played."""

    board: SessionBatch
    budget_usd: F64  # (S,)
    mode: Mode
    horizon: Horizon
    seed: int

    def play(self, rule: Rule) -> Played:
        """Play a rule on these sessions."""
        return play(self.board, rule, self.budget_usd, self.mode, self.horizon, self.seed)


def studies(
    graded: Graded,
    grid: Grid,
    models: Sequence[str],
    seed: int,
    only: int | None = None,
    inputs: Inputs = "live",
    space: TextSpace = HASHED,
) -> Iterator[CatalogueSetup]:
    """Catalogues of one source with predictions; `only` one of them, by its number."""
    split = halves(graded, seed)
    graded = graded.with_prices(split.training)
    resampled = Resampled(len(graded.task_ids), grid.resamples, seed)
    for chosen in catalogues(graded, split.training, models)[slice(only, None if only is None else only + 1)]:
        seen = vectors_of(inputs, chosen, split.training, space)
        bills = bills_of(inputs, chosen, seen, split.training, seed)
        predictions = predict(chosen, seen, bills, split.training, seed)
        installed = predictions
        if inputs == "live":
            installed = replace(predictions, bills=bills_of("plain", chosen, seen, split.training, seed))
        cost = predictions.average_cost_usd
        yield _study(chosen, split, seen, predictions, installed, cost, resampled, seed, inputs)


def with_newcomer(study: CatalogueSetup, model: int) -> CatalogueSetup:
    """The same catalogue without any data on one model: it has its prices and a prior."""
    known = [k for k in range(len(study.graded.models)) if k != model]
    return _study(
        study.graded,
        study.halves,
        study.seen,
        newcomer(study.graded, study.predictions, model, known),
        newcomer(study.graded, study.installed, model, known),
        study.average_cost_usd,
        study.resampled,
        study.seed,
        study.inputs,
    )


def without_model(study: CatalogueSetup, model: int) -> CatalogueSetup:
    """The catalogue without one model; sessions and budgets are unchanged."""
    known = [k for k in range(len(study.graded.models)) if k != model]
    graded = study.graded.with_models([study.graded.models[k] for k in known])
    predictions, installed = study.predictions.of(known), study.installed.of(known)
    cost = study.average_cost_usd[known]
    return _study(
        graded, study.halves, study.seen, predictions, installed, cost, study.resampled, study.seed, study.inputs
    )


def compose_sets(study: CatalogueSetup, grid: Grid, turns: int | None, judging: Sequence[I64] = ()) -> Sets:
    """Compose sessions shared by all budgets, modes and contexts, for paired differences.

    `judging` are the prompts by which each rehearsal is judged.
    """

    def board(prompts: I64, sessions: int, part: int) -> SessionBatch:
        made = compose_sessions(study, prompts, sessions, turns, grid.orderings, part=part)
        return make_board(study.graded, study.predictions, made)

    training = board(study.halves.training, grid.training_sessions, 1)
    return Sets(
        training=training,
        test=board(study.halves.test, grid.test_sessions, 2),
        horizon=learn_horizon(training.sessions.lengths),
        gate=tuple(board(prompts, max(grid.gate_sessions, 2), GATE_PART + i) for i, prompts in enumerate(judging)),
    )


def compose_sessions(
    study: CatalogueSetup, prompts: I64, count: int, turns: int | None, orderings: Sequence[str], *, part: int
) -> Sessions:
    """Compose `count` sessions of these prompts, seeded by `part`."""
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


def stages(study: CatalogueSetup, sets: Sets, cell: Cell) -> tuple[Environment, Environment]:
    """Environments (training, test) of one cell."""
    seed = study.seed + 1
    return (
        make_environment(study, sets.training, cell, sets.horizon, seed),
        make_environment(study, sets.test, cell, sets.horizon, seed + 1),
    )


def gate_stages(study: CatalogueSetup, sets: Sets, cell: Cell) -> tuple[Environment, ...]:
    """Environment of each rehearsal in one cell."""
    return tuple(
        make_environment(study, board, cell, learn_horizon(board.sessions.lengths), study.seed + GATE_PART + i)
        for i, board in enumerate(sets.gate)
    )


def make_environment(
    study: CatalogueSetup, board: SessionBatch, cell: Cell, horizon: Horizon, seed: int
) -> Environment:
    """A board with one cell's context, budget and mode."""
    weighed = board.within(cell.context)
    budget = budgets_usd(weighed, study.average_cost_usd, study.named, cell.phi)
    return Environment(weighed, budget, cell.mode, horizon, seed)


def re_boarded(stage: Environment, study: CatalogueSetup) -> Environment:
    """The same sessions and budgets with another study's predictions."""
    board = make_board(study.graded, study.predictions, stage.board.sessions, stage.board.context)
    return replace(stage, board=board)


def _study(
    graded: Graded,
    split: Halves,
    seen: Vectors,
    predictions: Predictions,
    installed: Predictions,
    average_cost_usd: F64,
    resampled: Resampled,
    seed: int,
    inputs: Inputs,
) -> CatalogueSetup:
    named = ends(predictions.average, average_cost_usd)
    at = split.training
    return CatalogueSetup(
        graded=graded,
        halves=split,
        seen=seen,
        predictions=predictions,
        installed=installed,
        named=named,
        difficulty=group_difficulty(graded, at, named.weak),
        bank=make_bank(predictions.quality[at], predictions.cost_usd[at], named.strong),
        average_cost_usd=average_cost_usd,
        resampled=resampled,
        seed=seed,
        inputs=inputs,
    )
