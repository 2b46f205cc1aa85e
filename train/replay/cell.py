"""All policies in one cell: tuned baselines, the published method, ours and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from policy.mdp import Policy
from policy.network_policy import NetworkPolicy
from policy.rules import ReSolving
from train.config import TrainConfig
from train.evaluate.gate import GateVerdict
from train.evaluate.session_costs import coverage, session_costs
from train.fit.tune import Dial, bisect_penalty, laplace
from train.replay import baselines_learned as cited
from train.replay import bounds
from train.replay.baselines import TunedRule, families, quality_per_turn, safest, tune
from train.replay.blind import Blind, at_list_price
from train.replay.catalogue import CatalogueSetup, Environment, re_boarded, with_newcomer, without_model
from train.replay.gate import Gate, Trial, trial, verdict
from train.replay.grid import RANDOM, Cell, phi_of, session_cost_usd
from train.replay.network import Networks, policy_kind, shipped_policy
from train.replay.ours import Curve, Learned, Planners, with_horizon
from train.replay.served import as_rule
from train.replay.simulator import Context, Played, Rule
from train.replay.statistics import CellEntry, rows

DEFAULT_RULE = "gateway-default"


@dataclass(frozen=True)
class CellRun:
    """A cell of a study: environments, those of its rehearsals, and learned policies."""

    study: CatalogueSetup
    cell: Cell
    training: Environment
    test: Environment
    gate: tuple[Environment, ...]
    learned: Learned
    config: TrainConfig

    @property
    def planners(self) -> Planners:
        """The planners for the cell's context."""
        return self.learned.planners[self.cell.context]

    @property
    def networks(self) -> Networks:
        """The networks for the cell's context."""
        return self.learned.networks[self.cell.context]

    @property
    def context_without_writes(self) -> Context:
        """The cell's context with writes at the list price, where the grid has it."""
        free = replace(self.cell.context, write_price=1.0)
        return free if free in self.learned.planners else self.cell.context


def play_cell(contest: CellRun, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """Play a cell; returns its rows.

    `policies` () is all. Baselines are always played, since the best of them is the reference.
    """
    baselines, heuristic = baseline_entries(contest)
    entries = [
        *baselines,
        cloned_entry(contest),
        *published_entries(contest),
        *learned_entries(contest, heuristic),
        *bound_entries(contest),
    ]
    study = contest.study
    found = rows(
        entries,
        contest.test.board.sessions,
        study.graded.task,
        study.resampled,
        study.named.strong,
        cell_columns(contest),
    )
    return [row for row in found if not policies or row["policy"] in policies]


def cell_columns(contest: CellRun) -> dict[str, Any]:
    """Columns shared by all rows of a cell."""
    study, cell, test = contest.study, contest.cell, contest.test
    cost = session_cost_usd(test.board, study.average_cost_usd)
    return {
        "source": study.graded.source,
        "inputs": study.inputs,
        "models": ",".join(study.graded.models),
        "new_model": None,
        "turns": cell.turns or RANDOM,
        "phi": round(phi_of(test.budget_usd, cost, study.named), 6),
        "budget": "phi" if cell.phi is not None else "warm-mid",
        "mode": cell.mode,
        "base_context": cell.context.base_tokens,
        "cached_price": cell.context.cached_price,
        "write_price": cell.context.write_price,
        "predictor": study.seen.kind,
    }


class Heuristic(NamedTuple):
    """The best tuned rule, by the whole training half and by each rehearsal's part."""

    serving: TunedRule
    rehearsed: tuple[Rule, ...]


def baseline_entries(contest: CellRun) -> tuple[list[CellEntry], Heuristic]:
    """Every baseline at its best parameters, the best safe one, and the best for the gate."""
    study, training, test = contest.study, contest.training, contest.test
    judging = [rehearsal.judging for rehearsal in contest.planners.rehearsals]
    counted = [~np.isin(training.board.sessions.rows, prompts) for prompts in judging]
    entries, found, careful = [], [], []
    for family in families(training.board, study.bank, study.named):
        tuned, safe, fair = tune(family, training.play, counted)
        careful.append(safe)
        entries.append(
            CellEntry(
                tuned.name,
                test.play(tuned.rule),
                tuned.numbers.get("lambda_per_usd"),
                tuned.training_quality,
                baseline=True,
                numbers=tuned.numbers,
            )
        )
        if family.grid:
            found.append((tuned, *fair))
    safe = safest(careful)
    numbers = {"rule": safe.name} | dict(safe.numbers)
    entries.append(CellEntry("safe-tuned", test.play(safe.rule), None, safe.training_quality, numbers=numbers))
    best = [max(column, key=lambda rule: rule.training_quality) for column in zip(*found, strict=True)]
    return entries, Heuristic(best[0], tuple(rule.rule for rule in best[1:]))


def cloned_entry(contest: CellRun) -> CellEntry:
    """Imitation of the logging policy."""
    cloned = contest.learned.clone.rule(contest.study.seen)
    earned = quality_per_turn(contest.training.play(cloned))
    return CellEntry("behaviour-cloning", contest.test.play(cloned), training_quality=earned, baseline=True)


def learned_entries(contest: CellRun, heuristic: Heuristic) -> Iterator[CellEntry]:
    """The policy that passed the gate, and network and planner regardless of the gate."""
    seen, planners, networks = contest.study.seen, contest.planners, contest.networks
    first = shipped_policy(contest.learned.horizon)
    trials, dial = planner_trials(contest), turned_dial(contest)
    best_at = best_setting(trials)
    best = planners.curve[best_at][1]
    boldest = max(dial.tried, key=lambda penalty: float(dial.tried[penalty].quality.mean()))
    found = judge_cell(contest, first, trials, dial, heuristic)
    policies = {policy.policy_id: policy for _, policy in planners.curve}
    policies |= {one.policy_id: one for one in [networks.at(penalty).serving for penalty in dial.tried]}
    rules = {name: as_rule(policy, seen) for name, policy in policies.items()}
    rules |= {first.policy_id: as_rule(first, seen), heuristic.serving.name: heuristic.serving.rule}
    rules[DEFAULT_RULE] = as_rule(ReSolving(horizon=contest.learned.horizon), seen)
    names = {
        DEFAULT_RULE: DEFAULT_RULE,
        "ours-pretrained": first.policy_id,
        "ours": found.candidate or first.policy_id,
        "ours-ungated": best.policy_id,
        "ours-network": networks.at(boldest).serving.policy_id,
        "ours-calibrated": networks.at(dial.calibrated).serving.policy_id,
    }
    untrained = {first.policy_id, DEFAULT_RULE}

    def play_as_served(stage: Environment, rule: str) -> Played:
        return (as_installed(contest, stage) if rule in untrained else stage).play(rules[rule])

    played = {rule: play_as_served(contest.test, rule) for rule in dict.fromkeys(names.values())}
    for name, rule in names.items():
        served = "rule:resolving" if rule == DEFAULT_RULE else policy_kind(rule)
        gate: dict[str, Any] = {"policy_id": rule}
        if name == "ours":
            forecast = forecast_of_costs(play_as_served(contest.training, rule), played[rule])
            gate = {"gate": found.outcome, "serves": rule, "forecast": forecast}
        yield CellEntry(name, played[rule], 0.0, numbers=gate, served=served)
    if contest.cell.context.cached_price < 1.0:
        yield _planned(contest, "ours-blind", Blind(planners.blind[best_at][1]), contest.test)
    if contest.cell.context.write_price != 1.0:
        free = contest.context_without_writes
        planner = contest.learned.planners[free].curve[best_at][1]
        network = contest.learned.networks[free].at(boldest).serving
        rule_alone = ReSolving(horizon=contest.learned.horizon)
        yield _planned(contest, "ours-ungated-list-price", planner, contest.test, list_price=True)
        yield _planned(contest, "ours-network-list-price", network, contest.test, list_price=True)
        installed = as_installed(contest, contest.test)
        yield _planned(contest, f"{DEFAULT_RULE}-list-price", rule_alone, installed, list_price=True)


def as_installed(contest: CellRun, stage: Environment) -> Environment:
    """The environment with a fresh install's forecasts.

    What serves without a night's policy has no others.
    """
    return re_boarded(stage, contest.study.as_installed)


def forecast_of_costs(past: Played, test: Played) -> dict[str, Any]:
    """Coverage of forecasts of the test sessions by those of the training half."""
    return coverage(*({"": session_costs(each.cost_usd, each.valid)} for each in (past, test)))


def planner_trials(contest: CellRun) -> list[Trial]:
    """Play the planner at every setting in all rehearsals."""
    seen, planners = contest.study.seen, contest.planners
    return [
        play_trial(contest, [as_rule(policy, seen) for policy in planners.at(k)]) for k in range(len(planners.curve))
    ]


def play_trial(contest: CellRun, each: Sequence[Rule]) -> Trial:
    """Play one rule per rehearsal."""
    return trial(contest.gate, [stage.play(rule) for stage, rule in zip(contest.gate, each, strict=True)])


def turned_dial(contest: CellRun) -> Dial:
    """Play the network in all rehearsals at the penalties that bisection asks for."""
    seen = contest.study.seen

    def at(penalty: float) -> Trial:
        return play_trial(contest, [as_rule(policy, seen) for policy in contest.networks.at(penalty).rehearsals])

    def starved(trial: Trial) -> float:
        return laplace(float(trial.starved.mean()), len(trial.starved))

    return bisect_penalty(at, starved, contest.config.plan.most_starved)


def best_setting(trials: Sequence[Trial]) -> int:
    """Index of the planner's setting with the highest score in the rehearsals."""
    return int(np.argmax([float(trial.quality.mean()) for trial in trials]))


def judge_cell(
    contest: CellRun, incumbent: NetworkPolicy, trials: Sequence[Trial], dial: Dial, heuristic: Heuristic
) -> GateVerdict:
    """Judge network, planner and best tuned rule against the shipped network, in all rehearsals."""
    gate = Gate(contest.study.graded.task, contest.study.resampled, contest.config.gate)
    planned = {policy.policy_id: trial for (_, policy), trial in zip(contest.planners.curve, trials, strict=True)}
    networks = {contest.networks.at(penalty).serving.policy_id: trial for penalty, trial in dial.tried.items()}
    candidates = networks | planned | {heuristic.serving.name: play_trial(contest, heuristic.rehearsed)}
    rule = as_rule(incumbent, contest.study.seen)
    before = trial(contest.gate, [as_installed(contest, stage).play(rule) for stage in contest.gate])
    return verdict(gate, before, candidates, frozenset(networks), incumbent_network=True)


def published_entries(contest: CellRun) -> Iterator[CellEntry]:
    """SeqRoute as published, at lambda 0 and at its best safe lambda."""
    published = cited.prepare_published(contest.learned.published, contest.study.seen)
    unit = 1.0 / contest.study.bank.mean_usd[contest.study.named.strong]
    yield CellEntry("published", contest.test.play(published.rule(0.0)), 0.0)
    safe = cited.safest_worth(unit, lambda price: contest.training.play(published.rule(price)))
    played = contest.test.play(published.rule(safe.lambda_per_usd))
    yield CellEntry("published-safe", played, safe.lambda_per_usd, safe.training_quality)


def bound_entries(contest: CellRun) -> Iterator[CellEntry]:
    """The reference results of train/replay/bounds.py."""
    study, test, cell = contest.study, contest.test, contest.cell
    at = study.halves.training
    quantiles_usd, turns = study.predictions.cost_quantiles_usd[at], int(test.board.sessions.lengths.max())
    most = float(test.budget_usd.max())
    predicted = bounds.plan(
        test.board, study.predictions.quality[at], quantiles_usd, most, turns, cell.mode, study.seed
    )
    yield CellEntry("dp-predicted", test.play(bounds.planned_rule(predicted, cell.mode, lambda turn: turn.quality)))
    perfect = bounds.plan(test.board, study.graded.quality[at], quantiles_usd, most, turns, cell.mode, study.seed)
    yield CellEntry("dp-perfect", test.play(bounds.planned_rule(perfect, cell.mode, bounds.known_quality)))
    yield CellEntry("knapsack", bounds.knapsack(test.board, test.budget_usd))


def _planned(contest: CellRun, name: str, policy: Policy, test: Environment, *, list_price: bool = False) -> CellEntry:
    rule = as_rule(policy, contest.study.seen)
    played = test.play(at_list_price(rule) if list_price else rule)
    served = policy_kind(policy.policy_id)
    return CellEntry(name, played, 0.0, numbers={"policy_id": policy.policy_id}, served=served)


def newcomer_rows(contest: CellRun, model: int, curve: Curve, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of the cell with one model withheld from all training, known by prices and a prior.

    The planner (`curve`) was trained without it: `ours` is offered it, `ours-not-offered` is not; `ours-trained` was
    trained with it. Budgets and sessions are the same for all three.
    """
    newcomer, absent = with_newcomer(contest.study, model), without_model(contest.study, model)
    at = best_setting(planner_trials(contest))
    planner = with_horizon(curve, contest.learned.horizon)[at][1]
    training, test = (re_boarded(stage, newcomer) for stage in (contest.training, contest.test))
    there = replace(contest, study=newcomer, training=training, test=test)
    smaller = re_boarded(contest.test, absent)
    known = [k for k in range(len(contest.study.graded.models)) if k != model]
    entries = [
        *baseline_entries(there)[0],
        _planned(there, "ours", planner, there.test),
        CellEntry("ours-not-offered", rename_actions(smaller.play(as_rule(planner, absent.seen)), known), 0.0),
        _planned(contest, "ours-trained", contest.planners.curve[at][1], contest.test),
    ]
    found = rows(
        entries,
        test.board.sessions,
        newcomer.graded.task,
        newcomer.resampled,
        contest.study.named.strong,
        cell_columns(contest) | {"new_model": contest.study.graded.models[model]},
    )
    return [row for row in found if not policies or row["policy"] in policies]


def rename_actions(played: Played, known: Sequence[int]) -> Played:
    """Map the actions of a smaller catalogue to those of the whole."""
    places = np.append(np.asarray(known, np.int64), -1)
    return replace(played, action=places[played.action])
