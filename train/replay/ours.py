"""The policy `ours`: what a gateway would serve after a night on this data.

Network or planner, if the gate lets it pass. Grades, curves, value tables and the gate are those of
`train.fit.network`, `train.fit.tune` and `train.evaluate.gate`; decisions are made by the object that the gateway would
build from the published recipe. Fitting uses only the budgets of TRAINING_PHIS, and no test prompt.

Since every action is graded, no prompt is held out: network and planner are fitted on two thirds of the training
prompts and judged on the last third, three times over (rehearsals); what serves is fitted on all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy.arrays import F64, I64
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.manifest import Recipe
from policy.mdp import Policy
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from train.config import TrainConfig
from train.fit.network import Network, grade
from train.fit.presets import learn_horizon
from train.fit.reward_model import RewardModel
from train.fit.seqroute_paper import Published, fit_published
from train.fit.tune import build, plans, predictions_by_turn
from train.fit.value_table import Setting, settings_of
from train.log.episodes import Episodes
from train.replay.catalogue import CatalogueSetup, compose_sessions
from train.replay.cloning import Clone, clone
from train.replay.compose import Sessions, covering
from train.replay.grid import TRAINING_PHIS, Cell, Grid, budgets_usd
from train.replay.network import Networks, build_policy, hasty, train_network
from train.replay.simulated_log import concatenate, log_episodes
from train.replay.simulator import NO_CONTEXT, Context, SessionBatch, make_board, turns_left

Curve = tuple[tuple[Setting, Policy], ...]
"""(setting of the trade-off between quality and starvation, its planner)"""
REHEARSALS = 3


@dataclass(frozen=True)
class Rehearsal:
    """Planners fitted on some of the training prompts, and the others, which judge them."""

    judging: I64
    curve: Curve


@dataclass(frozen=True)
class Planners:
    """Planners at every setting of the config, and those of every rehearsal; cells choose one."""

    curve: Curve
    rehearsals: tuple[Rehearsal, ...] = ()
    blind: Curve = ()
    """Planners whose plan ignores the prompt cache, in contexts with one."""

    def at(self, setting: int) -> list[Policy]:
        """One setting's planner of each rehearsal."""
        return [rehearsal.curve[setting][1] for rehearsal in self.rehearsals]

    def expecting(self, horizon: Horizon) -> Planners:
        """The same planners with this horizon of sessions."""
        made = tuple(replace(one, curve=with_horizon(one.curve, horizon)) for one in self.rehearsals)
        return Planners(with_horizon(self.curve, horizon), made, with_horizon(self.blind, horizon))


@dataclass(frozen=True)
class Learned:
    """Everything learned of a catalogue before its cells are played, by context."""

    planners: dict[Context, Planners]
    networks: dict[Context, Networks]
    clone: Clone
    published: Published
    horizon: Horizon

    def expecting(self, horizon: Horizon) -> Learned:
        """The same with this horizon of sessions instead of the log's (docs/decisions/0039)."""
        planners = {context: made.expecting(horizon) for context, made in self.planners.items()}
        networks = {context: made.expecting(horizon) for context, made in self.networks.items()}
        return replace(self, planners=planners, networks=networks, horizon=horizon)


def learn(study: CatalogueSetup, grid: Grid, turns: int | None) -> Learned:
    """Fit everything on the training half."""
    each = max(grid.log_sessions // len(TRAINING_PHIS), 2)
    cells = [Cell(turns, phi, "degrade", NO_CONTEXT) for phi in TRAINING_PHIS]
    logs = []
    for i, cell in enumerate(cells):
        part = 11 + i
        made = compose_sessions(study, study.halves.training, each, turns, grid.orderings, part=part)
        logs.append(one_log(study, made, cell, part))
    episodes = concatenate([log for log, _ in logs])
    horizon = learn_horizon(np.concatenate([board.sessions.lengths for _, board in logs]))
    plain, board = logs[len(logs) // 2]
    left = turns_left(board.sessions, horizon)
    planned: dict[Context, Planners] = {}
    networks: dict[Context, Networks] = {}
    layers: list[Network] = []
    for alike in by_weight((NO_CONTEXT, *grid.contexts)):
        lessons = study_lessons(study, grid, turns, alike)
        planned |= rehearse(lessons, alike)
        # The first is without conversation: its training holds for all.
        layers = layers or [one.network(hasty(one.config) if at else one.config) for at, one in enumerate(lessons.each)]
        networks |= {
            context: Networks(first, tuple(others))
            for i, context in enumerate(alike)
            for first, *others in [[one.served(made, i) for one, made in zip(lessons.each, layers, strict=True)]]
        }
    return Learned(
        planned,
        networks,
        clone(plain, board, study.seen, left, study.predictions.average_cost_usd),
        fit_published(episodes, grid.published, study.seed),
        horizon,
    )


def learned_turns(grid: Grid) -> int | None:
    """Length of the training sessions: that of the played ones, mixed where these differ."""
    return grid.turns[0] if len(set(grid.turns)) == 1 else None


@dataclass(frozen=True)
class Lessons:
    """Training data of all training prompts, and of all but each judging part."""

    whole: Lesson
    judged: tuple[I64, ...]
    less: tuple[Lesson, ...]

    @property
    def each(self) -> tuple[Lesson, ...]:
        """All lessons, the complete one first."""
        return (self.whole, *self.less)


def study_lessons(study: CatalogueSetup, grid: Grid, turns: int | None, contexts: Sequence[Context]) -> Lessons:
    """Lessons of all training prompts, and of all but each part, in contexts of equal tokens."""
    prompts, judged = study.halves.training, parts(study)
    less = [lesson(study, grid, np.setdiff1d(prompts, judging), turns, contexts) for judging in judged]
    return Lessons(lesson(study, grid, prompts, turns, contexts), tuple(judged), tuple(less))


def rehearse(lessons: Lessons, contexts: Sequence[Context]) -> dict[Context, Planners]:
    """Planners of all training prompts, and of all but each part, for contexts of equal tokens."""
    whole, less = lessons.whole.curves(), [one.curves() for one in lessons.less]
    cached = any(context.cached_price < 1.0 for context in contexts)
    blind = lessons.whole.curves(cache_aware=False) if cached else []
    return {
        context: Planners(
            whole[i],
            tuple(Rehearsal(*both) for both in zip(lessons.judged, [made[i] for made in less], strict=True)),
            blind[i] if context.cached_price < 1.0 else (),
        )
        for i, context in enumerate(contexts)
    }


def by_weight(contexts: Iterable[Context]) -> list[list[Context]]:
    """Group contexts of equal tokens, which differ in the price of cached ones."""
    found: dict[tuple[int, int], list[Context]] = {}
    for context in contexts:
        found.setdefault((context.base_tokens, context.kept_tokens), []).append(context)
    return list(found.values())


@dataclass(frozen=True)
class Lesson:
    """Training data of some prompts in contexts of equal tokens.

    A log of each context, and one reward model with its out-of-fold grades (S, T, K).
    """

    logs: tuple[Episodes, ...]
    quality: RewardModel
    grades: F64
    config: TrainConfig

    def curves(self, cache_aware: bool = True) -> list[Curve]:
        """The planner at every setting of the config, for each context."""
        return [planners(log, self.quality, self.grades, self.config, cache_aware) for log in self.logs]

    def network(self, config: TrainConfig) -> Network:
        """The network's layers, trained on the first context's log."""
        return train_network(self.logs[0], self.grades, self.quality, config)

    def served(self, network: Network, at: int) -> NetworkPolicy:
        """The network in the context at this index."""
        return build_policy(network, self.logs[at], self.grades, self.quality, self.config)


def lesson(study: CatalogueSetup, grid: Grid, prompts: I64, turns: int | None, contexts: Sequence[Context]) -> Lesson:
    """Training data of these prompts.

    Quality does not depend on prices: it is learned once, from the first context's log.
    """
    logs = tuple(training_log(study, grid, prompts, turns, context) for context in contexts)
    config = replace(grid.training, seed=study.seed)
    quality, flat = grade(logs[0], config)
    for log in logs[1:]:
        log.valid[:] &= logs[0].valid
    return Lesson(logs, quality, predictions_by_turn(logs[0], flat), config)


def curves_of(
    study: CatalogueSetup, grid: Grid, prompts: I64, turns: int | None, contexts: Sequence[Context]
) -> list[Curve]:
    """Planners of these prompts at every setting of the config, in contexts of equal tokens."""
    return lesson(study, grid, prompts, turns, contexts).curves()


def training_log(study: CatalogueSetup, grid: Grid, prompts: I64, turns: int | None, context: Context) -> Episodes:
    """Log of sessions that contain each of these prompts, with all actions graded."""
    part = 11 + len(TRAINING_PHIS)
    generator = np.random.default_rng([study.seed, part, turns or 0])
    made = covering(study.graded, prompts, least=grid.log_sessions, turns=turns, generator=generator)
    return one_log(study, made, Cell(turns, max(TRAINING_PHIS), "degrade", context), part)[0]


def with_horizon(curve: Curve, horizon: Horizon) -> Curve:
    """The planners of a curve with this horizon for sessions that declare none."""
    return tuple(
        (setting, replace(policy, horizon=horizon) if isinstance(policy, Planner) else policy)
        for setting, policy in curve
    )


def planners(
    episodes: Episodes, quality: RewardModel, grades: F64, config: TrainConfig, cache_aware: bool = True
) -> Curve:
    """Planners for every setting from a fully graded log; `grades` (S, T, K) are out of fold."""
    base = Recipe(
        policy_id="replay-planned",
        models=episodes.models,
        horizon=learn_horizon(episodes.lengths),
        average_quality=dict(zip(episodes.models, (float(x) for x in quality.means), strict=True)),
    )
    recipes = plans(base, quality.served(episodes.models).arrays(), episodes, grades, config, cache_aware)
    return tuple(
        (setting, build(replace(recipe, policy_id=f"replay-planned-{setting_name(setting)}"), made, GREEDY))
        for setting, (recipe, made) in zip(settings_of(config.plan), recipes, strict=True)
    )


def setting_name(setting: Setting) -> str:
    """Name of a setting, like `0.3` or `10-cautious`."""
    return f"{setting.starved_penalty:g}" + ("-cautious" if setting.caution != 1.0 else "")


def parts(study: CatalogueSetup) -> list[I64]:
    """The training half's prompts in REHEARSALS parts of about equal size that share no task."""
    prompts = study.halves.training
    fraction = study.halves.fraction[prompts]
    part = np.searchsorted(np.quantile(fraction, np.arange(1, REHEARSALS) / REHEARSALS), fraction, side="right")
    if len(np.unique(part)) == 1:  # all tasks have one text: assign them in turn
        part = np.unique(study.graded.task[prompts], return_inverse=True)[1] % REHEARSALS
    return [prompts[part == i] for i in range(REHEARSALS) if (part == i).any()]


def one_log(study: CatalogueSetup, made: Sessions, cell: Cell, part: int) -> tuple[Episodes, SessionBatch]:
    """The gateway's log of these sessions under this cell's budget."""
    board = make_board(study.graded, study.predictions, made, cell.context)
    budget = budgets_usd(board, study.average_cost_usd, study.named, cell.phi)
    horizon = learn_horizon(made.lengths)
    log = log_episodes(board, study.seen, study.graded.task, budget, cell.mode, horizon, seed=part)
    return log, board
