"""One catalogue of one source, ready to be played: what the training half says, sessions of either half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policy.features import Horizon
from train.fit.presets import learn_horizon
from train.replay.baselines import Bank, Ends, ends, make_bank
from train.replay.compose import Sessions, compose, group_difficulty
from train.replay.dataset import Graded
from train.replay.grid import Cell, Grid, budgets_usd, catalogues
from train.replay.predict import Predictions, newcomer, predict
from train.replay.simulator import Mode, Played, Rule, SessionBatch, make_board, play
from train.replay.split import Halves, halves
from train.replay.statistics import Resampled
from train.replay.vectors import Vectors, vectors

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

GATE_PART = 401
"""Where the numbers of the sessions begin that rehearsals are judged by."""


@dataclass(frozen=True)
class CatalogueSetup:
    """`seen` are the prompts' vectors, `predictions` what may be predicted of them, `bank` what a turn is expected to
    cost at each price of money. `average_cost_usd` (K,) sets budgets; it knows a newcomer's too."""

    graded: Graded
    halves: Halves
    seen: Vectors
    predictions: Predictions
    named: Ends
    difficulty: F64
    bank: Bank
    average_cost_usd: F64
    resampled: Resampled
    seed: int


@dataclass(frozen=True)
class Sets:
    """Composed sessions of either half for one number of turns, and the horizon that the training sessions teach;
    `gate` are those that each rehearsal is judged by."""

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
        return play(self.board, rule, self.budget_usd, self.mode, self.horizon, self.seed)


def studies(
    graded: Graded, grid: Grid, models: Sequence[str], seed: int, only: int | None = None
) -> Iterator[CatalogueSetup]:
    """The catalogues of one source, each with its predictions; `only` one of them, by its number."""
    split = halves(graded, seed)
    seen = vectors(graded, split.training)
    resampled = Resampled(len(graded.task_ids), grid.resamples, seed)
    for chosen in catalogues(graded, split.training, models)[slice(only, None if only is None else only + 1)]:
        predictions = predict(chosen, seen, split.training, seed)
        yield _study(chosen, split, seen, predictions, predictions.average_cost_usd, resampled, seed)


def with_newcomer(study: CatalogueSetup, model: int) -> CatalogueSetup:
    """The same catalogue, where nothing was ever seen of one model: it has its prices and a prior."""
    known = [k for k in range(len(study.graded.models)) if k != model]
    predictions = newcomer(study.graded, study.predictions, model, known)
    return _study(
        study.graded, study.halves, study.seen, predictions, study.average_cost_usd, study.resampled, study.seed
    )


def without_model(study: CatalogueSetup, model: int) -> CatalogueSetup:
    """The catalogue less one model; its sessions and budgets stay as they are."""
    known = [k for k in range(len(study.graded.models)) if k != model]
    graded = study.graded.with_models([study.graded.models[k] for k in known])
    predictions = study.predictions.of(known)
    cost = study.average_cost_usd[known]
    return _study(graded, study.halves, study.seen, predictions, cost, study.resampled, study.seed)


def compose_sets(study: CatalogueSetup, grid: Grid, turns: int | None, judging: Sequence[I64] = ()) -> Sets:
    """The same sessions for every budget, mode and context: what differs between cells is not luck.

    `judging` are the prompts by which each rehearsal is judged.
    """

    def board(prompts: I64, sessions: int, part: int) -> SessionBatch:
        made = composed(study, prompts, sessions, turns, grid.orderings, part=part)
        return make_board(study.graded, study.predictions, made)

    training = board(study.halves.training, grid.training_sessions, 1)
    return Sets(
        training=training,
        test=board(study.halves.test, grid.test_sessions, 2),
        horizon=learn_horizon(training.sessions.lengths),
        gate=tuple(board(prompts, max(grid.gate_sessions, 2), GATE_PART + i) for i, prompts in enumerate(judging)),
    )


def composed(
    study: CatalogueSetup, prompts: I64, count: int, turns: int | None, orderings: Sequence[str], *, part: int
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


def stages(study: CatalogueSetup, sets: Sets, cell: Cell) -> tuple[Environment, Environment]:
    """(training stage, test stage) of one cell."""
    seed = study.seed + 1
    return (
        staged(study, sets.training, cell, sets.horizon, seed),
        staged(study, sets.test, cell, sets.horizon, seed + 1),
    )


def gate_stages(study: CatalogueSetup, sets: Sets, cell: Cell) -> tuple[Environment, ...]:
    """The stage of each rehearsal in one cell."""
    return tuple(
        staged(study, board, cell, learn_horizon(board.sessions.lengths), study.seed + GATE_PART + i)
        for i, board in enumerate(sets.gate)
    )


def staged(study: CatalogueSetup, board: SessionBatch, cell: Cell, horizon: Horizon, seed: int) -> Environment:
    """A board under one cell's context, budget and mode."""
    weighed = board.within(cell.context)
    budget = budgets_usd(weighed, study.average_cost_usd, study.named, cell.phi)
    return Environment(weighed, budget, cell.mode, horizon, seed)


def re_boarded(stage: Environment, study: CatalogueSetup) -> Environment:
    """The same sessions and budgets as another study of the same prompts sees them."""
    board = make_board(study.graded, study.predictions, stage.board.sessions, stage.board.context)
    return replace(stage, board=board)


def _study(
    graded: Graded,
    split: Halves,
    seen: Vectors,
    predictions: Predictions,
    average_cost_usd: F64,
    resampled: Resampled,
    seed: int,
) -> CatalogueSetup:
    named = ends(predictions.average, average_cost_usd)
    at = split.training
    return CatalogueSetup(
        graded=graded,
        halves=split,
        seen=seen,
        predictions=predictions,
        named=named,
        difficulty=group_difficulty(graded, at, named.weak),
        bank=make_bank(predictions.quality[at], predictions.cost_usd[at], named.strong),
        average_cost_usd=average_cost_usd,
        resampled=resampled,
        seed=seed,
    )
