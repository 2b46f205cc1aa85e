"""`ours`: what the gateway would serve after a night on this data: the planner, if the gate lets it.

Grades, value tables and the gate are those of `train.fit`, `train.candidates` and `train.gate`; what decides is the
object that the gateway would make of the published recipe. The reward model is fitted and the tables are learnt on
sessions under TRAINING_PHIS alone, from prompts that the gate never looks at. The network of
`train.cql`, which a night also proposes, is not fitted here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policy.checkpoint import Recipe
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.mdp import Policy
from train.candidates import build, plans
from train.config import TrainConfig
from train.episodes import Episodes
from train.fit import grade
from train.presets import learn_horizon
from train.published import Published, fit_published
from train.replay.baselines import quality_per_turn
from train.replay.cells import TRAINING_PHIS, Cell, Grid, budgets_usd
from train.replay.cloning import Clone, clone
from train.replay.log import joined, log_episodes
from train.replay.served import as_rule
from train.replay.study import Stage, Study, composed
from train.replay.world import NO_CONTEXT, Board, Context, make_board, turns_left

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HELD_OUT = 0.4
"""Share of the training half's prompts that the gate keeps for itself."""
Curve = tuple[tuple[float, Policy], ...]
"""(penalty of a lost answer, the planner at it)"""
ALARM_PHI = 0.35
"""The calibrated penalty is found under this budget, in mode `cut`."""


@dataclass(frozen=True)
class Planners:
    """The planner with a value table for each penalty of a lost answer.

    `best` earned most on sessions that the tables were not learnt on, `calibrated` most among those that starved no
    more than the config's share of them. Which penalties these are is settled without a prompt cache.
    """

    curve: Curve
    best_at: int
    calibrated_at: int

    @property
    def best(self) -> Policy:
        return self.curve[self.best_at][1]

    @property
    def calibrated(self) -> Policy:
        return self.curve[self.calibrated_at][1]


@dataclass(frozen=True)
class Learned:
    """What was learnt of a catalogue before any cell is played; planners by what the conversation weighs."""

    planners: dict[Context, Planners]
    clone: Clone
    published: Published
    horizon: Horizon


def learn(study: Study, grid: Grid, turns: int | None) -> Learned:
    """Fit on the training half less what the gate keeps, under the budgets of TRAINING_PHIS."""
    plain, episodes, horizon = training_logs(study, grid, turns, NO_CONTEXT)
    left = turns_left(plain[1].sessions, horizon)
    cloned = clone(*plain, study.seen, left, study.predictions.average_cost_usd)
    published = fit_published(episodes, grid.published, study.seed)
    first = planners(study, grid, episodes, horizon, Cell(turns, ALARM_PHI, "cut", NO_CONTEXT))
    learnt = {NO_CONTEXT: first}
    for context in grid.contexts:
        _, episodes, heavier = training_logs(study, grid, turns, context)
        alarm = Cell(turns, ALARM_PHI, "cut", context)
        learnt[context] = planners(study, grid, episodes, heavier, alarm, (first.best_at, first.calibrated_at))
    return Learned(learnt, cloned, published, horizon)


def learn_planners(study: Study, grid: Grid, turns: int | None, context: Context) -> Planners:
    """The planners of one context alone."""
    _, episodes, horizon = training_logs(study, grid, turns, context)
    return planners(study, grid, episodes, horizon, Cell(turns, ALARM_PHI, "cut", context))


def training_logs(
    study: Study, grid: Grid, turns: int | None, context: Context
) -> tuple[tuple[Episodes, Board], Episodes, Horizon]:
    """The log under the middle one of TRAINING_PHIS with its board, the logs under all of them as one, its horizon."""
    fitting, _ = parts(study)
    each = max(grid.log_sessions // len(TRAINING_PHIS), 2)
    cells = [Cell(turns, phi, "degrade", context) for phi in TRAINING_PHIS]
    logs = [one_log(study, grid, fitting, cell, each, 11 + i) for i, cell in enumerate(cells)]
    episodes = joined([log for log, _ in logs])
    return logs[len(logs) // 2], episodes, learn_horizon(episodes.lengths)


def planners(
    study: Study,
    grid: Grid,
    episodes: Episodes,
    horizon: Horizon,
    alarm: Cell,
    settled: tuple[int, int] | None = None,
) -> Planners:
    """A table for every penalty, and which of them to take: `settled`, or by playing the alarm cell."""
    config = replace(grid.training, seed=study.seed)
    quality, flat = grade(episodes, config)
    # Tables are learnt from out-of-fold predictions although real grades are at hand: later turns will have to be
    # decided by predictions, and knowing each answer beforehand would make later money look dearer than it is.
    grades = np.zeros(episodes.mask.shape)
    grades[episodes.valid] = flat
    base = Recipe(
        policy_id="replay-planned",
        models=episodes.models,
        horizon=horizon,
        average_quality=dict(zip(episodes.models, (float(x) for x in quality.means), strict=True)),
    )
    arrays = quality.served(episodes.models).arrays()
    curve = tuple(
        (
            recipe.rule_parameters["starved_penalty"],
            build(
                replace(recipe, policy_id=f"replay-planned-{recipe.rule_parameters['starved_penalty']:g}"), made, GREEDY
            ),
        )
        for recipe, made in plans(base, arrays, episodes, grades, config)
    )
    best, calibrated = settled or penalties(study, grid, curve, horizon, config, alarm)
    return Planners(curve, best, calibrated)


def penalties(
    study: Study, grid: Grid, curve: Curve, horizon: Horizon, config: TrainConfig, alarm: Cell
) -> tuple[int, int]:
    """(the one that earns most, the one that does among those that starve hardly anybody) on the gate's prompts."""
    stage = gate_stage(study, grid, alarm, horizon, grid.tuning_sessions, part=301)
    tried = [stage.play(as_rule(policy, study.seen)) for _, policy in curve]
    earned = [quality_per_turn(played) for played in tried]
    starved = [max(float(played.starved.mean()), config.plan.most_starved) for played in tried]
    return int(np.argmax(earned)), min(range(len(curve)), key=lambda i: (starved[i], -earned[i]))


def gate_stage(study: Study, grid: Grid, cell: Cell, horizon: Horizon, sessions: int, *, part: int) -> Stage:
    """Sessions of the prompts that nothing was fitted on, under this cell's purse."""
    _, untouched = parts(study)
    made = composed(study, untouched, max(sessions, 2), cell.turns, grid.orderings, part=part)
    board = make_board(study.graded, study.predictions, made, cell.context)
    budget = budgets_usd(board, study.average_cost_usd, study.named, cell.phi)
    return Stage(board, budget, cell.mode, horizon, study.seed + part)


def parts(study: Study) -> tuple[I64, I64]:
    """The training half's prompts: those to fit on, and those that the gate keeps."""
    prompts = study.halves.training
    fraction = study.halves.fraction[prompts]
    kept = fraction >= np.quantile(fraction, 1.0 - HELD_OUT)
    return prompts[~kept], prompts[kept]


def one_log(study: Study, grid: Grid, prompts: I64, cell: Cell, sessions: int, part: int) -> tuple[Episodes, Board]:
    """What the gateway would have logged of sessions composed of these prompts, under this cell's purse."""
    made = composed(study, prompts, sessions, cell.turns, grid.orderings, part=part)
    board = make_board(study.graded, study.predictions, made, cell.context)
    budget = budgets_usd(board, study.average_cost_usd, study.named, cell.phi)
    horizon = learn_horizon(made.lengths)
    log = log_episodes(board, study.seen, study.graded.task, budget, cell.mode, horizon, seed=part)
    return log, board
