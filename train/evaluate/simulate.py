"""Simulation of a policy on the logged sessions with its own budget: actions, scores, bills.

The policy is the object that the gateway serves, given the observations the gateway would have built. Users' turns are
taken from the log; the money left and the warm prompt cache follow from the policy's own actions. A turn's score is its
doubly robust estimate; its bill is the real one where the log has it, else a draw from the candidate's cost
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy import batch
from policy.arrays import F64, I64, Bools
from policy.mdp import COST_MASSES, Policy
from train.evaluate.logged_turns import affordable, ask_policy, recorded_batch, recorded_observation
from train.evaluate.ope import Logged
from train.log.episodes import Episodes, session_fraction

ROUNDING = 1e-6
"""Difference of amounts, as a share of the session's budget, that is rounding."""


@dataclass(frozen=True)
class PlayedLog:
    """Result of one policy on every session, (S, T)."""

    probabilities: F64
    score: F64
    """Terms of the doubly robust estimate: the reward model's score, corrected by the logged one."""
    logged: Logged
    cost_usd: F64
    starved: NDArray[np.bool_]  # (S,)
    spent_usd: F64  # (S,)


def play(
    policy: Policy, episodes: Episodes, grades: F64, *, seed: int, weight_cap: float, budget_multiple: float = 1.0
) -> PlayedLog:
    """Run a policy through the sessions. Deterministic given the seed.

    `grades` (S, T, K) are the reward model's scores, fitted on other sessions. `budget_multiple` also
    multiplies the other changes of the money left (`other_money_usd`).
    """
    s, t, k = episodes.mask.shape
    probabilities = np.zeros((s, t, k))
    cost_usd = np.zeros((s, t))
    answered = np.zeros((s, t), np.bool_)
    starved = np.zeros(s, np.bool_)
    first = episodes.budget_usd[:, 0].astype(np.float64)
    budget_usd = first * budget_multiple
    left_usd = budget_usd - np.maximum(first - episodes.remaining_usd[:, 0], 0.0)
    other_usd = other_money_usd(episodes) * budget_multiple
    uniforms, lengths = luck(episodes, seed), episodes.lengths
    for turn in range(t):
        i = np.flatnonzero((turn < lengths) & ~starved)
        left_usd[i] = np.maximum(left_usd[i] + other_usd[i, turn], 0.0)
        here = affordable(episodes, i, np.full(len(i), turn), left_usd[i]).any(axis=-1)
        starved[i[~here]] = True
        i = i[here]
        j = np.full(len(i), turn)
        shares, action = ask_policy(policy, episodes, i, j, left_usd[i], budget_usd[i], uniforms[i, turn, 0])
        bill_usd = bills_usd(episodes, i, j, action, uniforms[i, turn, 1])
        probabilities[i, turn] = shares
        cost_usd[i, turn] = np.minimum(bill_usd, left_usd[i])
        left_usd[i] = np.maximum(left_usd[i] - bill_usd, 0.0)
        answered[i, turn] = True
    logged = turnwise(episodes, probabilities, answered, grades, weight_cap)
    score = np.where(episodes.valid, logged.v + logged.ratio * (logged.reward - logged.q), 0.0)
    return PlayedLog(probabilities, score, logged, cost_usd, starved, cost_usd.sum(axis=1))


def other_money_usd(episodes: Episodes) -> F64:
    """Other changes of the money left, since the turn before each, (S, T); negative if spent.

    Causes are budgets raised in between, turns that are not trained on (pinned, failed), other sessions of a tree, and
    holds of running turns. They do not depend on the policy, so every policy gets them. Rounding of float32 is left
    out.
    """
    remaining_usd, cost_usd = episodes.remaining_usd.astype(np.float64), episodes.cost_usd.astype(np.float64)
    found = np.zeros(remaining_usd.shape)
    found[:, 1:] = remaining_usd[:, 1:] - np.maximum(remaining_usd[:, :-1] - cost_usd[:, :-1], 0.0)
    most_usd = np.maximum(remaining_usd, episodes.budget_usd).max(axis=1, initial=0.0)
    return np.where(episodes.valid & (np.abs(found) > ROUNDING * most_usd[:, None]), found, 0.0)


def turnwise(episodes: Episodes, probabilities: F64, answered: Bools, grades: F64, weight_cap: float) -> Logged:
    """Terms of the per-turn doubly robust estimate, (S, T); unanswered turns earn nothing."""
    at = episodes.action[..., None]
    ratio = np.take_along_axis(probabilities, at, axis=-1)[..., 0] / episodes.propensity
    ratio = np.minimum(ratio, weight_cap)
    q = np.take_along_axis(grades, at, axis=-1)[..., 0]
    reward = np.where(episodes.graded, episodes.reward, q)
    # Only graded turns estimate the reward model's error; they are weighted to represent all.
    reward = q + (reward - q) / np.where(episodes.implied, 1.0, max(episodes.graded_share, 1e-9))
    v = np.sum(probabilities * grades, axis=-1)
    return Logged(episodes.valid, np.where(answered, ratio, 0.0), reward, q, np.where(answered, v, 0.0))


def luck(episodes: Episodes, seed: int) -> F64:
    """Random draws of every turn, (S, T, 2), common to all policies for paired differences."""
    names = zip(episodes.tenant_ids, episodes.session_ids, strict=True)
    generators = [np.random.default_rng(int(session_fraction(*name, seed) * 2**53)) for name in names]
    turns = episodes.valid.shape[1]
    return np.array([generator.random((turns, 2)) for generator in generators]).reshape(-1, turns, 2)


def bills_usd(episodes: Episodes, i: I64, j: I64, action: I64, uniform: F64) -> F64:
    """Cost of the turns (i, j) by these actions, (N,): billed, else drawn from the distribution."""
    logged = np.where(action == episodes.action[i, j], episodes.cost_usd[i, j], episodes.bills_usd[i, j, action])
    level = np.searchsorted(np.cumsum(COST_MASSES), uniform, side="right")
    level = np.minimum(level, len(COST_MASSES) - 1)
    drawn = episodes.cost_quantiles_usd[i, j, action, level]
    return np.where(np.isfinite(logged), logged, drawn).astype(np.float64)


def probabilities_as_logged(policies: Mapping[str, Policy], episodes: Episodes) -> dict[str, F64]:
    """Probabilities of each policy at the logged states, (S, T, K), for sequential estimators."""
    found = {name: np.zeros(episodes.mask.shape) for name in policies}
    alone = dict(policies)
    i, j = np.nonzero(episodes.valid)
    remaining_usd = episodes.remaining_usd[i, j].astype(np.float64)
    for name, policy in policies.items():
        if batch.has_batched_form(policy):
            found[name][i, j] = batch.probabilities(
                policy, recorded_batch(episodes, i, j, remaining_usd, as_logged=True)
            )
            del alone[name]
    for n, (session, turn) in enumerate(zip(i.tolist(), j.tolist(), strict=True) if alone else ()):
        budget_usd = float(episodes.budget_usd[session, turn])
        seen = recorded_observation(
            episodes, session, turn, remaining_usd=float(remaining_usd[n]), budget_usd=budget_usd, as_logged=True
        )
        for name, policy in alone.items():
            found[name][session, turn, : len(seen.candidates)] = policy.decide(seen, 0.0).probabilities
    return found
