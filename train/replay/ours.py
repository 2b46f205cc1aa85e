"""`ours`: what the gateway would serve after a night on this data: the planner, if the gate lets it.

Grades, value tables and the gate are those of `train.fit`, `train.candidates` and `train.gate`; what decides is the
object that the gateway would make of the published recipe. Nothing is fitted or chosen under other budgets than those
of TRAINING_PHIS and ALARM_PHI, and no test prompt is looked at. The network of `train.cql`, which a night also
proposes, is not fitted here.

Since every action is graded, no prompt is set aside: the planner is made on one half of the training prompts and
judged on the other, and the reverse (two rehearsals); what serves is made of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policy.checkpoint import Recipe
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.mdp import Policy
from policy.planned import Planned
from train.candidates import build, plans, predictions_by_turn
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
from train.replay.sessions import Sessions, covering
from train.replay.study import Study, composed, staged
from train.replay.world import NO_CONTEXT, Board, Context, make_board, turns_left

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

Curve = tuple[tuple[float, Policy], ...]
"""(penalty of a lost answer, the planner at it)"""
ALARM_PHI = 0.35
"""The calibrated penalty is found under this budget, in mode `cut`."""


@dataclass(frozen=True)
class Rehearsal:
    """Planners made of one half of the training prompts, and the other half, which judges them."""

    judging: I64
    curve: Curve


@dataclass(frozen=True)
class Planners:
    """The planner with a value table for each penalty of a lost answer; the same in every rehearsal.

    `best` earned most in the rehearsals, `calibrated` most among those that starved no more than the config's share of
    sessions. Which penalties these are is settled without a prompt cache.
    """

    curve: Curve
    best_at: int
    calibrated_at: int
    rehearsals: tuple[Rehearsal, ...] = ()

    @property
    def best(self) -> Policy:
        return self.curve[self.best_at][1]

    @property
    def calibrated(self) -> Policy:
        return self.curve[self.calibrated_at][1]

    def expecting(self, horizon: Horizon) -> Planners:
        """The same planners where sessions are known to last like this."""
        made = tuple(replace(one, curve=told(one.curve, horizon)) for one in self.rehearsals)
        return replace(self, curve=told(self.curve, horizon), rehearsals=made)


@dataclass(frozen=True)
class Learned:
    """What was learnt of a catalogue before any cell is played; planners by what the conversation weighs."""

    planners: dict[Context, Planners]
    clone: Clone
    published: Published
    horizon: Horizon

    def expecting(self, horizon: Horizon) -> Learned:
        """The same where sessions are known to last like this: whatever the log's did (docs/decisions/0115)."""
        planners = {context: made.expecting(horizon) for context, made in self.planners.items()}
        return replace(self, planners=planners, horizon=horizon)


def learn(study: Study, grid: Grid, turns: int | None) -> Learned:
    """Fit everything on the training half."""
    each = max(grid.log_sessions // len(TRAINING_PHIS), 2)
    cells = [Cell(turns, phi, "degrade", NO_CONTEXT) for phi in TRAINING_PHIS]
    logs = []
    for i, cell in enumerate(cells):
        part = 11 + i
        made = composed(study, study.halves.training, each, turns, grid.orderings, part=part)
        logs.append(one_log(study, made, cell, part))
    episodes = joined([log for log, _ in logs])
    horizon = learn_horizon(np.concatenate([board.sessions.lengths for _, board in logs]))
    plain, board = logs[len(logs) // 2]
    left = turns_left(board.sessions, horizon)
    learnt: dict[Context, Planners] = {}
    for context in (NO_CONTEXT, *grid.contexts):
        learnt[context] = rehearsed(study, grid, turns, context, learnt.get(NO_CONTEXT))
    return Learned(
        learnt,
        clone(plain, board, study.seen, left, study.predictions.average_cost_usd),
        fit_published(episodes, grid.published, study.seed),
        horizon,
    )


def learnt_turns(grid: Grid) -> int | None:
    """How long the sessions are that are learnt from: as those to be played, mixed where these differ."""
    return grid.turns[0] if len(set(grid.turns)) == 1 else None


def rehearsed(study: Study, grid: Grid, turns: int | None, context: Context, settled: Planners | None) -> Planners:
    """Planners of all training prompts and of either half, at the penalties that were `settled` elsewhere, or here."""
    halves = parts(study)
    rehearsals = tuple(
        Rehearsal(judging, curve_of(study, grid, fitting, turns, context, settled))
        for fitting, judging in (halves, halves[::-1])
    )
    best, calibrated = penalties(study, grid, rehearsals, turns, context) if settled is None else kept_of(settled)
    return Planners(curve_of(study, grid, study.halves.training, turns, context, settled), best, calibrated, rehearsals)


def planner_like(study: Study, grid: Grid, turns: int | None, context: Context, settled: Planners) -> Policy:
    """The planner of another catalogue, at the penalty that was best in `settled`."""
    return curve_of(study, grid, study.halves.training, turns, context, settled)[kept_of(settled)[0]][1]


def curve_of(
    study: Study, grid: Grid, prompts: I64, turns: int | None, context: Context, settled: Planners | None = None
) -> Curve:
    """The planner made of these prompts, with a table for every penalty of the config; of `settled` for its two."""
    config = replace(grid.training, seed=study.seed)
    if settled is not None:
        wanted = sorted({settled.curve[settled.best_at][0], settled.curve[settled.calibrated_at][0]})
        config = replace(config, plan=replace(config.plan, starved_penalties=tuple(wanted)))
    episodes = training_log(study, grid, prompts, turns, context)
    return planners(episodes, learn_horizon(episodes.lengths), config)


def training_log(study: Study, grid: Grid, prompts: I64, turns: int | None, context: Context) -> Episodes:
    """The log of sessions in which each of these prompts occurs, all actions graded."""
    part = 11 + len(TRAINING_PHIS)
    generator = np.random.default_rng([study.seed, part, turns or 0])
    made = covering(study.graded, prompts, least=grid.log_sessions, turns=turns, generator=generator)
    return one_log(study, made, Cell(turns, max(TRAINING_PHIS), "degrade", context), part)[0]


def kept_of(settled: Planners) -> tuple[int, int]:
    """Where the two settled penalties stand in a curve that has no others."""
    best, calibrated = settled.curve[settled.best_at][0], settled.curve[settled.calibrated_at][0]
    return int(calibrated < best), int(best < calibrated)


def told(curve: Curve, horizon: Horizon) -> Curve:
    """The planners of a curve, expecting sessions of this horizon where none is declared."""
    return tuple(
        (penalty, replace(policy, horizon=horizon) if isinstance(policy, Planned) else policy)
        for penalty, policy in curve
    )


def planners(episodes: Episodes, horizon: Horizon, config: TrainConfig) -> Curve:
    """A planner for every penalty, out of a log of which every action is graded."""
    quality, flat = grade(episodes, config)
    grades = predictions_by_turn(episodes, flat)
    base = Recipe(
        policy_id="replay-planned",
        models=episodes.models,
        horizon=horizon,
        average_quality=dict(zip(episodes.models, (float(x) for x in quality.means), strict=True)),
    )
    arrays = quality.served(episodes.models).arrays()
    return tuple(
        (
            recipe.rule_parameters["starved_penalty"],
            build(
                replace(recipe, policy_id=f"replay-planned-{recipe.rule_parameters['starved_penalty']:g}"), made, GREEDY
            ),
        )
        for recipe, made in plans(base, arrays, episodes, grades, config)
    )


def penalties(
    study: Study, grid: Grid, rehearsals: Sequence[Rehearsal], turns: int | None, context: Context
) -> tuple[int, int]:
    """(the one that earns most, the one that does among those that starve hardly anybody), in the rehearsals."""
    alarm = Cell(turns, ALARM_PHI, "cut", context)
    count = len(rehearsals[0].curve)
    earned, starved = np.zeros(count), np.zeros(count)
    for i, rehearsal in enumerate(rehearsals):
        part, sessions = 301 + i, max(grid.tuning_sessions // 2, 2)
        made = composed(study, rehearsal.judging, sessions, turns, grid.orderings, part=part)
        board = make_board(study.graded, study.predictions, made)
        stage = staged(study, board, alarm, learn_horizon(made.lengths), study.seed + part)
        played = [stage.play(as_rule(policy, study.seen)) for _, policy in rehearsal.curve]
        earned += [quality_per_turn(one) for one in played]
        starved += [float(one.starved.mean()) for one in played]
    rate = np.maximum(starved / len(rehearsals), grid.training.plan.most_starved)
    return int(np.argmax(earned)), min(range(count), key=lambda at: (rate[at], -earned[at]))


def parts(study: Study) -> tuple[I64, I64]:
    """Two halves of the training half's prompts that share no task."""
    prompts = study.halves.training
    fraction = study.halves.fraction[prompts]
    second = fraction >= np.median(fraction)
    return prompts[~second], prompts[second]


def one_log(study: Study, made: Sessions, cell: Cell, part: int) -> tuple[Episodes, Board]:
    """What the gateway would have logged of these sessions, under this cell's purse."""
    board = make_board(study.graded, study.predictions, made, cell.context)
    budget = budgets_usd(board, study.average_cost_usd, study.named, cell.phi)
    horizon = learn_horizon(made.lengths)
    log = log_episodes(board, study.seen, study.graded.task, budget, cell.mode, horizon, seed=part)
    return log, board
