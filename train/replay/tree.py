"""Evaluation in the trees of a rollout, to measure the error of composed sessions.

A composed session gives every later turn the grades that belong to *one* drawn past, whichever models the policy chose
before. In a tree a policy is followed: at a state it chooses a model and moves to the state after that model's answer.
Where only some answers were continued, a visited state represents 1 / (its probability of being visited): a turn's mean
is self-normalised importance sampling over states, with known probabilities.

Shapes: S paths from a root to a leaf, T turns, G tasks, R resamples of whole tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policy.arrays import F64, I64, Bools
from policy.features import Horizon
from policy.mdp import Policy
from policy.rules import ReSolving
from train.replay import baselines
from train.replay.branches import Branches, drawn_paths, leaf_paths, states_of
from train.replay.catalogue import CatalogueSetup
from train.replay.compose import Sessions
from train.replay.dataset import Graded
from train.replay.grid import budgets_usd
from train.replay.inputs import Inputs, bills_of, vectors_of
from train.replay.predict import predict
from train.replay.served import as_rule
from train.replay.simulator import Mode, Played, Rule, SessionBatch, make_board, play
from train.replay.split import halves
from train.replay.vectors import Vectors

PHIS = (3.0, 0.5)
"""A loose budget that ends no session and a binding one."""
MODE: Mode = "degrade"
KIND = "text"
"""Kind of vectors of the states; policies for prompts with embeddings were trained on those instead."""


class Sums(NamedTuple):
    """Weighted grades and weights by task and turn, (G, T)."""

    grades: F64
    weights: F64


@dataclass(frozen=True)
class Ways:
    """Paths through the trees with their states.

    `leads` (S, T) is the model that a path continues with, -1 at its end; `counted` (S, T) whether this path represents
    the state, which several may share; `weight` (S, T) how many states that one represents.
    """

    board: SessionBatch
    task: I64  # (S,)
    leads: I64
    counted: Bools
    weight: F64


@dataclass(frozen=True)
class Trees:
    """The test half of a rollout: all paths, and each task's session as replay composes it."""

    seen: Vectors
    ways: Ways
    composed: SessionBatch
    composed_task: I64
    tasks: int


def tree_rows(
    study: CatalogueSetup, branches: Branches, planner: Policy, horizon: Horizon, resamples: int
) -> list[dict[str, Any]]:
    """Rows on the effect of each model's answer on the next turn, and of policies in the trees.

    For every single model, the default rule and `planner`: quality in the trees of the test half, beside that of
    sessions composed of the same tasks.
    """
    if study.seen.kind != KIND:
        return []
    states, at = states_of(branches, study.graded)
    tasks = len(states.task_ids)
    drawn = np.random.default_rng([study.seed, 701]).multinomial(tasks, np.full(tasks, 1.0 / tasks), resamples)
    about = {"source": states.source, "inputs": study.inputs, "models": ",".join(states.models)}
    found = [about | row for row in after(states, branches, at, drawn)]
    trees = build_trees(states, branches, at, study.seed, study.inputs)
    if trees is not None:
        found += [about | row for row in follow_policies(study, trees, planner, horizon, drawn)]
    return found


def build_trees(states: Graded, branches: Branches, at: I64, seed: int, inputs: Inputs = "live") -> Trees | None:
    """Trees of the test half with vectors and predictions of a study; None if a half is empty.

    Only the training tasks' one session is used for training, as in replay.
    """
    own = halves(states, seed)
    learn = own.training[branches.drawn[at][own.training]]
    tested = np.isin(np.arange(states.prompts), own.test)
    rows, leads = leaf_paths(states, branches, at)
    leads, rows = leads[tested[rows[:, 0]]], rows[tested[rows[:, 0]]]
    single = drawn_paths(states, branches, at)
    single = single[tested[single[:, 0]]]
    if not len(learn) or not len(rows) or not len(single):
        return None
    seen = vectors_of(inputs, states, learn)
    predictions = predict(states, seen, bills_of(inputs, states, seen, learn, seed), learn, seed)
    tasks = len(states.task_ids)
    turns = np.zeros(tasks, np.int64)
    np.maximum.at(turns, states.task, states.turn + 1)

    def board(made: I64) -> SessionBatch:
        declared = turns[states.task[made[:, 0]]]
        return make_board(states, predictions, Sessions(made, declared, np.zeros(len(made), np.int64)))

    weight = 1.0 / branches.probability[at][np.maximum(rows, 0)]
    ways = Ways(board(rows), states.task[rows[:, 0]], leads, first_of_each(rows), weight)
    return Trees(seen, ways, board(single), states.task[single[:, 0]], tasks)


def follow_policies(
    study: CatalogueSetup, trees: Trees, planner: Policy, horizon: Horizon, drawn: I64
) -> Iterator[dict[str, Any]]:
    """Evaluate every policy and budget; one row each."""
    models = study.graded.models
    rules: dict[str, Rule] = {f"only {name}": baselines.fixed(k) for k, name in enumerate(models)}
    rules["gateway-default"] = as_rule(ReSolving(horizon=horizon), trees.seen)
    rules["planner"] = as_rule(planner, trees.seen)

    def played(board: SessionBatch, rule: Rule, phi: float) -> Played:
        budget = budgets_usd(board, study.average_cost_usd, study.named, phi)
        return play(board, rule, budget, MODE, horizon, study.seed)

    for phi in PHIS:
        for name, rule in rules.items():
            true = in_trees(trees.ways, played(trees.ways.board, rule, phi), trees.tasks)
            assumed = in_sessions(played(trees.composed, rule, phi), trees.composed_task, trees.tasks)
            yield {"kind": "policy", "policy": name, "phi": phi, "mode": MODE} | beside(true, assumed, drawn)


def in_trees(ways: Ways, played: Played, tasks: int) -> Sums:
    """Sums over the states that the policy reaches by its own choices.

    After a lost answer (cut, unanswered) nothing was played: the later turns count as failures.
    """
    lost_turn = played.cut | played.unanswered
    on = np.ones(len(ways.task), np.bool_)
    lost, carried = np.zeros(len(ways.task), np.bool_), np.zeros(len(ways.task))
    grades, weights = np.zeros(played.valid.shape), np.zeros(played.valid.shape)
    for j in range(played.valid.shape[1]):
        here = np.where(on & ways.counted[:, j], ways.weight[:, j], 0.0)
        weights[:, j] = np.where(lost, carried, here) * played.valid[:, j]
        grades[:, j] = np.where(lost, 0.0, played.quality[:, j]) * weights[:, j]
        just_lost = on & lost_turn[:, j]
        carried, lost = np.where(just_lost, here, carried), lost | just_lost
        on = on & ~lost_turn[:, j] & (played.action[:, j] == ways.leads[:, j])
    return Sums(by_task(grades, ways.task, tasks), by_task(weights, ways.task, tasks))


def in_sessions(played: Played, task: I64, tasks: int) -> Sums:
    """Sums over composed sessions: every turn counts, whichever model answered before."""
    valid = played.valid.astype(np.float64)
    return Sums(by_task(played.quality * valid, task, tasks), by_task(valid, task, tasks))


def beside(true: Sums, assumed: Sums, drawn: I64) -> dict[str, Any]:
    """Quality per turn in trees and in composed sessions, and their difference, with intervals.

    The 95 % intervals are over tasks. A turn's share is how many tasks have it. `effective` is the least effective
    number of tasks of a turn's mean (Kish: (sum w)^2 / sum w^2). None where a policy leaves the visited states.
    """
    share = assumed.weights.sum(axis=0)
    share = share / share.sum()

    def quality(sums: Sums, weights: F64) -> F64:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ sums.grades)[:, : len(share)] / (weights @ sums.weights)[:, : len(share)]
        return np.asarray(np.where(share > 0.0, means * share, 0.0).sum(axis=1))

    once, many = np.ones((1, len(drawn[0]))), drawn.astype(np.float64)
    found = (quality(true, once), quality(true, many), quality(assumed, once), quality(assumed, many))
    per_turn = true.weights.sum(axis=0) ** 2 / np.maximum((true.weights**2).sum(axis=0), 1e-300)
    return {
        **interval("quality", found[0], found[1]),
        **interval("composed", found[2], found[3]),
        **interval("diff", found[0] - found[2], found[1] - found[3]),
        "effective": round(float(per_turn[: len(share)].min()), 2),
        "tasks": int((assumed.weights[:, 0] > 0).sum()),
    }


def after(states: Graded, branches: Branches, at: I64, drawn: I64) -> Iterator[dict[str, Any]]:
    """Mean grade of all models at a turn after one model's answer, against after another's."""
    later = states.turn > 0
    if not later.any():
        return
    last = np.array([branches.path[n][-1] if branches.path[n] else "" for n in at])
    later &= np.isin(last, states.models)
    weight = 1.0 / branches.probability[at]
    grade, tasks = states.quality.mean(axis=1), drawn.shape[1]
    for name in states.models:
        sums = []
        for chosen in (later & (last == name), later & (last != name)):
            counted = np.where(chosen, weight, 0.0)
            sums.append([by_task(x, states.task, tasks) for x in (counted * grade, counted)])

        def mean(pair: list[F64], weights: F64) -> F64:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray((weights @ pair[0]) / (weights @ pair[1]))

        once, many = np.ones((1, tasks)), drawn.astype(np.float64)
        mine, others = ((mean(pair, once), mean(pair, many)) for pair in sums)
        yield {
            "kind": "after",
            "model": name,
            **interval("quality", *mine),
            **interval("others", *others),
            **interval("diff", mine[0] - others[0], mine[1] - others[1]),
            "tasks": int((sums[0][1] > 0).sum()),
        }


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Text summary under the loose budget."""
    for row in rows:
        if row["diff"] is None:
            diff = "left the visited states"
        else:
            diff = f"{row['diff']:+.3f} ({row['diff_lo']:+.3f} to {row['diff_hi']:+.3f})"
        if row["kind"] == "after":
            yield f"{row['source']}: grade of a turn after {row['model']}'s answer, against after another's: {diff}"
        elif row["phi"] == PHIS[0]:
            followed_by = "" if row["quality"] is None else f", in the trees {row['quality']:.3f}"
            yield f"{row['source']}: {row['policy']}: composed {row['composed']:.3f}{followed_by}: {diff}"


def interval(name: str, mean: F64, resampled: F64) -> dict[str, float | None]:
    """Mean and 95 % interval over the resamples that have data; None without any."""
    some = resampled[np.isfinite(resampled)]
    if not np.isfinite(mean).all() or not len(some):
        return {name: None, f"{name}_lo": None, f"{name}_hi": None}
    low, high = np.quantile(some, (0.025, 0.975))
    return {name: round(float(mean[0]), 6), f"{name}_lo": round(float(low), 6), f"{name}_hi": round(float(high), 6)}


def first_of_each(rows: I64) -> Bools:
    """Mask of the first occurrence of each state in rows (S, T); -1 never counts."""
    found = np.zeros(rows.size, np.bool_)
    found[np.unique(rows, return_index=True)[1]] = True
    return found.reshape(rows.shape) & (rows >= 0)


def by_task(values: F64, task: I64, tasks: int) -> F64:
    """Sums over the rows of each task: (S, ...) -> (G, ...)."""
    found = np.zeros((tasks, *values.shape[1:]))
    np.add.at(found, task, values)
    return found
