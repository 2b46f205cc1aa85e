"""`ours`: what the gateway would serve after a night on this data, by the code that `nightly` runs.

Fit, propose, evaluate and judge are those of `train.fit`, `train.candidates`, `train.evaluate` and `train.gate`. The
network is fitted on sessions under TRAINING_PHIS alone; candidates are tuned and gated on a log of the budgets that are
played, as they would be where these budgets are the custom. The prompts that the gate looks at were not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from numpy.typing import NDArray

from policy.baselines import Resolving
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.mdp import Policy
from train.candidates import build, grades_by_turn, plans, propose
from train.config import TrainConfig
from train.episodes import Episodes
from train.evaluate import evaluate
from train.fit import Fitted, fit, grade
from train.gate import judge
from train.presets import learn_horizon
from train.published import Published, fit_published
from train.replay.cells import TRAINING_PHIS, Cell, Grid, budgets_usd
from train.replay.cloning import Clone, clone
from train.replay.log import joined, log_episodes
from train.replay.study import Study, composed
from train.replay.world import NO_CONTEXT, Board, make_board, turns_left

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HELD_OUT = 0.4
"""Share of the training half's prompts that the gate keeps for itself."""


@dataclass(frozen=True)
class Learned:
    """What was learnt of a catalogue before any cell is played."""

    fitted: Fitted
    clone: Clone
    published: Published
    horizon: Horizon
    config: TrainConfig


@dataclass(frozen=True)
class Served:
    """The policies of a night: `gated` serves (the default rule where the gate kept it), `ungated` is the planner.

    `calibrated` is the planner at the setting that starves hardly anybody, `curve` the planner at every penalty tried.
    `outcome` and `candidate` are the gate's words.
    """

    gated: Policy
    ungated: Policy
    calibrated: Policy
    curve: tuple[tuple[float, Policy], ...]
    outcome: str
    candidate: str


def learn(study: Study, grid: Grid, turns: int | None) -> Learned:
    """Fit on the training half less what the gate keeps, under the budgets of TRAINING_PHIS."""
    config = replace(grid.training, seed=study.seed)
    cells = [Cell(turns, phi, "degrade", NO_CONTEXT) for phi in TRAINING_PHIS]
    cells += [Cell(turns, phi, "degrade", context) for context in grid.contexts[-1:] for phi in TRAINING_PHIS]
    fitting, _ = parts(study)
    logs = [
        one_log(study, grid, fitting, cell, grid.log_sessions // len(cells), 11 + i) for i, cell in enumerate(cells)
    ]
    episodes = joined([log for log, _ in logs])
    horizon = learn_horizon(episodes.lengths)
    fitted = fit(episodes, config, jax.random.key(study.seed))
    plain, board = logs[len(TRAINING_PHIS) // 2]
    left = turns_left(board.sessions, horizon)
    cloned = clone(plain, board, study.seen, left, study.predictions.average_cost_usd)
    published = fit_published(episodes, grid.published, study.seed)
    return Learned(fitted, cloned, published, horizon, config)


def night(study: Study, grid: Grid, learned: Learned, cells: Sequence[Cell]) -> Served:
    """Tune candidates on a log of these cells' budgets, evaluate them on another, and let the gate decide."""
    fitting, untouched = parts(study)
    config = learned.config
    each = -(-grid.night_sessions // len(cells))
    training = joined([one_log(study, grid, fitting, cell, each, 101 + i)[0] for i, cell in enumerate(cells)])
    held = joined([one_log(study, grid, untouched, cell, each, 201 + i)[0] for i, cell in enumerate(cells)])
    grades = grades_by_turn(training, grade(training, config)[1])
    tuned, _ = propose(learned.fitted, training, grades, config, "replay")
    policies = {item.recipe.policy_id: build(item.recipe, item.params, GREEDY) for item in tuned}
    scores = {item.recipe.policy_id: item.score for item in tuned}
    incumbent = Resolving(horizon=learned.horizon)
    known = learned.fitted.quality.predict(held.state[held.valid].astype(np.float64))
    found = evaluate(policies, incumbent, held, grades_by_turn(held, known), training, grades, scores, config)
    verdict = judge(found.evidence, config.gate)
    planners = [item for item in tuned if item.recipe.rule == "planned"]
    ungated, calibrated = (policies[planners[i].recipe.policy_id] for i in (0, -1))
    curve = tuple(
        (recipe.rule_parameters["starved_penalty"], build(recipe, params, GREEDY))
        for recipe, params in plans(planners[0].recipe, planners[0].params["quality"], training, grades, config)
    )
    gated = incumbent if verdict.candidate is None else policies[verdict.candidate]
    return Served(gated, ungated, calibrated, curve, verdict.outcome, verdict.candidate or incumbent.policy_id)


def parts(study: Study) -> tuple[I64, I64]:
    """The training half's prompts: those to fit on, and those that the gate keeps."""
    prompts = study.halves.training
    fraction = study.halves.fraction[prompts]
    kept = fraction >= np.quantile(fraction, 1.0 - HELD_OUT)
    return prompts[~kept], prompts[kept]


def one_log(study: Study, grid: Grid, prompts: I64, cell: Cell, sessions: int, part: int) -> tuple[Episodes, Board]:
    """What the gateway would have logged of sessions composed of these prompts, under this cell's purse."""
    made = composed(study, prompts, max(sessions, 2), cell.turns, grid.orderings, part=part)
    board = make_board(study.graded, study.predictions, made, cell.context)
    budget = budgets_usd(board, study.average_cost_usd, study.named, cell.phi)
    horizon = learn_horizon(made.lengths)
    log = log_episodes(board, study.seen, study.graded.task, budget, cell.mode, horizon, seed=part)
    return log, board
