"""All policies in one cell: baselines tuned on its training half, the published rule, ours, and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policy.baselines import Resolving
from policy.mdp import Policy
from train.replay import bounds, cited
from train.replay.baselines import families, quality_per_turn, tune
from train.replay.blind import Blind
from train.replay.cells import RANDOM, Cell, Grid, phi_of, session_cost_usd
from train.replay.ours import Learned, Served, learn, night
from train.replay.report import Entry, rows
from train.replay.served import as_rule
from train.replay.study import Stage, Study, re_boarded, with_newcomer, without_model
from train.replay.world import Played

DEFAULT_RULE = "gateway-default"


@dataclass(frozen=True)
class Contest:
    """One cell of one study with its two stages and what `ours` serves there."""

    study: Study
    cell: Cell
    training: Stage
    test: Stage
    learned: Learned
    served: Served


def play_cell(contest: Contest, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of one cell. `policies` () is all; baselines are played anyway, since the best of them is the measure."""
    entries = [
        *baseline_entries(contest),
        cloned_entry(contest),
        *published_entries(contest),
        *learned_entries(contest),
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


def described(contest: Contest) -> dict[str, Any]:
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


def baseline_entries(contest: Contest) -> Iterator[Entry]:
    """Every baseline at the numbers that did best on the training half."""
    study, training, test = contest.study, contest.training, contest.test
    for family in families(training.board, study.bank, study.named):
        tuned = tune(family, training.play)
        yield Entry(
            tuned.name,
            test.play(tuned.rule),
            tuned.numbers.get("lambda_per_usd"),
            tuned.training_quality,
            baseline=True,
            numbers=tuned.numbers,
        )


def cloned_entry(contest: Contest) -> Entry:
    """What the log's policy did, imitated."""
    cloned = contest.learned.clone.rule(contest.study.seen)
    earned = quality_per_turn(contest.training.play(cloned))
    return Entry("behaviour-cloning", contest.test.play(cloned), training_quality=earned, baseline=True)


def learned_entries(contest: Contest) -> Iterator[Entry]:
    """The objects that the gateway would serve."""
    served = contest.served
    yield _served(contest, DEFAULT_RULE, Resolving(horizon=contest.test.horizon))
    yield _served(contest, "ours", served.gated)
    yield _served(contest, "ours-ungated", served.ungated)
    yield _served(contest, "ours-calibrated", served.calibrated)
    if contest.cell.context.cached_price < 1.0:
        yield _served(contest, "ours-blind", Blind(served.gated))


def published_entries(contest: Contest) -> Iterator[Entry]:
    """SeqRoute as published, at lambda 0 and at the best lambda that bankrupts hardly any training session."""
    published, seen = contest.learned.published, contest.study.seen
    unit = 1.0 / contest.study.bank.mean_usd[contest.study.named.strong]
    yield Entry("published", contest.test.play(cited.rule(published, seen, 0.0)), 0.0)
    safe = cited.safest_worth(published, seen, unit, contest.training.play)
    played = contest.test.play(cited.rule(published, seen, safe.lambda_per_usd))
    yield Entry("published-safe", played, safe.lambda_per_usd, safe.training_quality)


def bound_entries(contest: Contest) -> Iterator[Entry]:
    study, test, cell = contest.study, contest.test, contest.cell
    at = study.halves.training
    law, turns = study.predictions.cost_quantiles_usd[at], int(test.board.sessions.lengths.max())
    most = float(test.budget_usd.max())
    predicted = bounds.plan(test.board, study.predictions.quality[at], law, most, turns, cell.mode, study.seed)
    yield Entry("dp-predicted", test.play(bounds.planned(predicted, cell.mode, lambda turn: turn.quality)))
    perfect = bounds.plan(test.board, study.graded.quality[at], law, most, turns, cell.mode, study.seed)
    yield Entry("dp-perfect", test.play(bounds.planned(perfect, cell.mode, bounds.known_quality)))
    yield Entry("knapsack", bounds.knapsack(test.board, test.budget_usd))


def _served(contest: Contest, name: str, policy: Policy) -> Entry:
    played = contest.test.play(as_rule(policy, contest.study.seen))
    return Entry(name, played, 0.0, numbers={"policy_id": policy.policy_id, "gate": contest.served.outcome})


def newcomer_rows(contest: Contest, model: int, grid: Grid, policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """The cell again with one model withheld from all training: it joins by its prices and a prior.

    `ours` was trained without it and is now offered it; `ours-not-offered` is not, `ours-trained` knew it all along.
    Purse and sessions are the same for all three.
    """
    newcomer, absent = with_newcomer(contest.study, model), without_model(contest.study, model)
    learned = learn(absent, grid, contest.cell.turns)
    served = night(absent, grid, learned, [contest.cell])
    training, test = (re_boarded(stage, newcomer) for stage in (contest.training, contest.test))
    there = replace(contest, study=newcomer, training=training, test=test, served=served)
    smaller = re_boarded(contest.test, absent)
    known = [k for k in range(len(contest.study.graded.models)) if k != model]
    entries = [
        *baseline_entries(there),
        _served(there, "ours", served.gated),
        Entry("ours-not-offered", renamed(smaller.play(as_rule(served.gated, absent.seen)), known), 0.0),
        Entry("ours-trained", contest.test.play(as_rule(contest.served.gated, contest.study.seen)), 0.0),
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
