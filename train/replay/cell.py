"""All policies in one cell: baselines tuned on its training half, the published rule, ours, and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from policy.mdp import Policy
from policy.network_policy import NetworkPolicy
from policy.rules import ReSolving
from train.config import TrainConfig
from train.evaluate.gate import Verdict
from train.fit.tune import Dial, laplace, turned
from train.replay import baselines_learned as cited
from train.replay import bounds
from train.replay.baselines import TunedRule, families, quality_per_turn, tune
from train.replay.blind import Blind
from train.replay.catalogue import CatalogueSetup, Environment, re_boarded, with_newcomer, without_model
from train.replay.gate import Gate, Trial, trial, verdict
from train.replay.grid import RANDOM, Cell, phi_of, session_cost_usd
from train.replay.network import Networks, named, shipped
from train.replay.ours import Curve, Learned, Planners, told
from train.replay.served import as_rule
from train.replay.simulator import Played, Rule
from train.replay.statistics import Entry, rows

DEFAULT_RULE = "gateway-default"


@dataclass(frozen=True)
class CellRun:
    """One cell of one study with its two stages, the gate's stage of each rehearsal, and what was learnt."""

    study: CatalogueSetup
    cell: Cell
    training: Environment
    test: Environment
    gate: tuple[Environment, ...]
    learned: Learned
    config: TrainConfig

    @property
    def planners(self) -> Planners:
        return self.learned.planners[self.cell.context]

    @property
    def networks(self) -> Networks:
        return self.learned.networks[self.cell.context]


def play_cell(contest: CellRun, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one cell. `policies` () is all; baselines are played anyway, since the best of them is the measure."""
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
        described(contest),
    )
    return [row for row in found if not policies or row["policy"] in policies]


def described(contest: CellRun) -> dict[str, Any]:
    """The columns that all rows of a cell share."""
    study, cell, test = contest.study, contest.cell, contest.test
    cost = session_cost_usd(test.board, study.average_cost_usd)
    return {
        "source": study.graded.source,
        "models": ",".join(study.graded.models),
        "new_model": None,
        "turns": cell.turns or RANDOM,
        "phi": round(phi_of(test.budget_usd, cost, study.named), 6),
        "budget": "phi" if cell.phi is not None else "warm-mid",
        "mode": cell.mode,
        "base_context": cell.context.base_tokens,
        "cached_price": cell.context.cached_price,
        "predictor": study.seen.kind,
    }


class Heuristic(NamedTuple):
    """The best of the tuned rules: by the whole training half, and by what each rehearsal may know."""

    serving: TunedRule
    rehearsed: tuple[Rule, ...]


def baseline_entries(contest: CellRun) -> tuple[list[Entry], Heuristic]:
    """Every baseline at the numbers that did best on the training half; and the best of them, for the gate."""
    study, training, test = contest.study, contest.training, contest.test
    judging = [rehearsal.judging for rehearsal in contest.planners.rehearsals]
    counted = [~np.isin(training.board.sessions.rows, prompts) for prompts in judging]
    entries, found = [], []
    for family in families(training.board, study.bank, study.named):
        tuned, fair = tune(family, training.play, counted)
        entries.append(
            Entry(
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
    best = [max(column, key=lambda rule: rule.training_quality) for column in zip(*found, strict=True)]
    return entries, Heuristic(best[0], tuple(rule.rule for rule in best[1:]))


def cloned_entry(contest: CellRun) -> Entry:
    """What the log's policy did, imitated."""
    cloned = contest.learned.clone.rule(contest.study.seen)
    earned = quality_per_turn(contest.training.play(cloned))
    return Entry("behaviour-cloning", contest.test.play(cloned), training_quality=earned, baseline=True)


def learned_entries(contest: CellRun, heuristic: Heuristic) -> Iterator[Entry]:
    """What the gateway would serve: what passed the gate; and network and planner whatever the gate says."""
    seen, planners, networks = contest.study.seen, contest.planners, contest.networks
    first = shipped(contest.learned.horizon)
    trials, dial = planner_trials(contest), turned_dial(contest)
    best_at = best_setting(trials)
    best = planners.curve[best_at][1]
    boldest = max(dial.tried, key=lambda penalty: float(dial.tried[penalty].quality.mean()))
    found = gated(contest, first, trials, dial, heuristic)
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
    played = {rule: contest.test.play(rules[rule]) for rule in dict.fromkeys(names.values())}
    for name, rule in names.items():
        served = "rule:resolving" if rule == DEFAULT_RULE else named(rule)
        gate = {"gate": found.outcome, "serves": rule} if name == "ours" else {"policy_id": rule}
        yield Entry(name, played[rule], 0.0, numbers=gate, served=served)
    if contest.cell.context.cached_price < 1.0:
        yield _planned(contest, "ours-blind", Blind(planners.blind[best_at][1]))


def planner_trials(contest: CellRun) -> list[Trial]:
    """The planner at every setting in all rehearsals."""
    seen, planners = contest.study.seen, contest.planners
    return [tried(contest, [as_rule(policy, seen) for policy in planners.at(k)]) for k in range(len(planners.curve))]


def tried(contest: CellRun, each: Sequence[Rule]) -> Trial:
    """One rule for each rehearsal, played there."""
    return trial(contest.gate, [stage.play(rule) for stage, rule in zip(contest.gate, each, strict=True)])


def turned_dial(contest: CellRun) -> Dial:
    """The network in all rehearsals, at the penalties that bisection asks for; each a Trial."""
    seen = contest.study.seen

    def at(penalty: float) -> Trial:
        return tried(contest, [as_rule(policy, seen) for policy in contest.networks.at(penalty).rehearsals])

    def starved(trial: Trial) -> float:
        return laplace(float(trial.starved.mean()), len(trial.starved))

    return turned(at, starved, contest.config.plan.most_starved)


def best_setting(trials: Sequence[Trial]) -> int:
    """The planner's setting that earned most in the rehearsals."""
    return int(np.argmax([float(trial.quality.mean()) for trial in trials]))


def gated(
    contest: CellRun, incumbent: NetworkPolicy, trials: Sequence[Trial], dial: Dial, heuristic: Heuristic
) -> Verdict:
    """The network along its dial, the planner at every setting and the best tuned rule against what a fresh install
    serves, in all rehearsals."""
    gate = Gate(contest.study.graded.task, contest.study.resampled, contest.config.gate)
    planned = {policy.policy_id: trial for (_, policy), trial in zip(contest.planners.curve, trials, strict=True)}
    networks = {contest.networks.at(penalty).serving.policy_id: trial for penalty, trial in dial.tried.items()}
    candidates = networks | planned | {heuristic.serving.name: tried(contest, heuristic.rehearsed)}
    before = tried(contest, [as_rule(incumbent, contest.study.seen)] * len(contest.gate))
    return verdict(gate, before, candidates, frozenset(networks), incumbent_network=True)


def published_entries(contest: CellRun) -> Iterator[Entry]:
    """SeqRoute as published, at lambda 0 and at the best lambda that bankrupts hardly any training session."""
    published = cited.cited(contest.learned.published, contest.study.seen)
    unit = 1.0 / contest.study.bank.mean_usd[contest.study.named.strong]
    yield Entry("published", contest.test.play(published.rule(0.0)), 0.0)
    safe = cited.safest_worth(unit, lambda price: contest.training.play(published.rule(price)))
    played = contest.test.play(published.rule(safe.lambda_per_usd))
    yield Entry("published-safe", played, safe.lambda_per_usd, safe.training_quality)


def bound_entries(contest: CellRun) -> Iterator[Entry]:
    study, test, cell = contest.study, contest.test, contest.cell
    at = study.halves.training
    law, turns = study.predictions.cost_quantiles_usd[at], int(test.board.sessions.lengths.max())
    most = float(test.budget_usd.max())
    predicted = bounds.plan(test.board, study.predictions.quality[at], law, most, turns, cell.mode, study.seed)
    yield Entry("dp-predicted", test.play(bounds.planned(predicted, cell.mode, lambda turn: turn.quality)))
    perfect = bounds.plan(test.board, study.graded.quality[at], law, most, turns, cell.mode, study.seed)
    yield Entry("dp-perfect", test.play(bounds.planned(perfect, cell.mode, bounds.known_quality)))
    yield Entry("knapsack", bounds.knapsack(test.board, test.budget_usd))


def _planned(contest: CellRun, name: str, policy: Policy) -> Entry:
    played = contest.test.play(as_rule(policy, contest.study.seen))
    served = named(policy.policy_id)
    return Entry(name, played, 0.0, numbers={"policy_id": policy.policy_id}, served=served)


def newcomer_rows(contest: CellRun, model: int, curve: Curve, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """The cell again with one model withheld from all training: it joins by its prices and a prior.

    The planner (`curve`) was trained without it and is now offered it (`ours`); `ours-not-offered` is not,
    `ours-trained` knew it all along. Purse and sessions are the same for all three.
    """
    newcomer, absent = with_newcomer(contest.study, model), without_model(contest.study, model)
    at = best_setting(planner_trials(contest))
    planner = told(curve, contest.learned.horizon)[at][1]
    training, test = (re_boarded(stage, newcomer) for stage in (contest.training, contest.test))
    there = replace(contest, study=newcomer, training=training, test=test)
    smaller = re_boarded(contest.test, absent)
    known = [k for k in range(len(contest.study.graded.models)) if k != model]
    entries = [
        *baseline_entries(there)[0],
        _planned(there, "ours", planner),
        Entry("ours-not-offered", renamed(smaller.play(as_rule(planner, absent.seen)), known), 0.0),
        _planned(contest, "ours-trained", contest.planners.curve[at][1]),
    ]
    found = rows(
        entries,
        test.board.sessions,
        newcomer.graded.task,
        newcomer.resampled,
        contest.study.named.strong,
        described(contest) | {"new_model": contest.study.graded.models[model]},
    )
    return [row for row in found if not policies or row["policy"] in policies]


def renamed(played: Played, known: Sequence[int]) -> Played:
    """Actions of a smaller catalogue as those of the whole."""
    places = np.append(np.asarray(known, np.int64), -1)
    return replace(played, action=places[played.action])
