"""Send a policy through the logged sessions with its own purse: what would it have done, earned and spent?

The policy is the object that the gateway serves, asked with the observation the gateway would have built. What the
user said is taken from the log; what is left, and which model's prompt cache is warm, follow from what the policy
itself did. A turn's score is the doubly robust estimate for that turn; its bill is the real one where the log knows it,
else a draw from the candidate's cost law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.features import CANDIDATE_FEATURES, COST_MASSES, SESSION_FEATURES, TEXT_SCALE
from policy.mdp import CandidateView, Observation, Policy, SessionView
from policy.text import STATS_DIM, TEXT_DIM
from train.episodes import NOT_AFFORDABLE, Episodes, session_fraction
from train.ope import Logged

F64 = NDArray[np.float64]

_AFFORDABLE_LEVEL = 12
"""Index of the .98 quantile: the purse must hold it, as the gateway's reservation would ask."""


@dataclass(frozen=True)
class Played:
    """One policy on every session, (S, T): per-turn probabilities (S, T, K) and what came of them."""

    probabilities: F64
    score: F64
    """Expected score by the reward model, corrected by what really happened: the terms of the DR estimate."""
    logged: Logged
    cost_usd: F64
    starved: NDArray[np.bool_]  # (S,)
    spent_usd: F64  # (S,)


def play(
    policy: Policy, episodes: Episodes, grades: F64, *, seed: int, weight_cap: float, budget_multiple: float = 1.0
) -> Played:
    """`grades` (S, T, K) are the reward model's scores, fitted on other sessions. Deterministic given the seed."""
    s, t, k = episodes.mask.shape
    probabilities = np.zeros((s, t, k))
    cost_usd = np.zeros((s, t))
    starved = np.zeros(s, np.bool_)
    answered = np.zeros((s, t), np.bool_)
    cumulative = np.cumsum(COST_MASSES)
    known_bills_usd = episodes.known_bills_usd()
    for i in range(s):
        # The same draws for every policy: differences between policies are not differences of luck.
        name = session_fraction(episodes.tenant_ids[i], episodes.session_ids[i], seed)
        generator = np.random.default_rng(int(name * 2**53))
        uniforms = generator.random((t, 2))
        budget_usd = float(episodes.budget_usd[i, 0]) * budget_multiple
        purse_usd = budget_usd - max(float(episodes.budget_usd[i, 0] - episodes.remaining_usd[i, 0]), 0.0)
        for j in range(int(episodes.lengths[i])):
            seen = observed(episodes, i, j, remaining_usd=purse_usd, budget_usd=budget_usd)
            if not seen.mask.any():
                starved[i] = True
                break
            decision = policy.decide(seen, float(uniforms[j, 0]))
            probabilities[i, j, : len(seen.candidates)] = decision.probabilities
            bill_usd = float(known_bills_usd[i, j, decision.action])
            if not np.isfinite(bill_usd):
                bill_usd = _drawn_bill(episodes.cost_quantiles_usd[i, j, decision.action], cumulative, uniforms[j, 1])
            cost_usd[i, j] = min(bill_usd, purse_usd)
            purse_usd = max(purse_usd - bill_usd, 0.0)
            answered[i, j] = True
    at = episodes.action[..., None]
    ratio = np.take_along_axis(probabilities, at, axis=-1)[..., 0] / episodes.propensity
    ratio = np.minimum(ratio, weight_cap)
    labelled = np.isfinite(episodes.reward) & episodes.valid
    q = np.take_along_axis(grades, at, axis=-1)[..., 0]
    reward = np.where(labelled, episodes.reward, q)
    # A turn that was not graded says nothing about the reward model's error; graded ones speak for all.
    share = labelled.sum() / max(episodes.valid.sum(), 1)
    reward = q + (reward - q) / max(share, 1e-9)
    v = np.sum(probabilities * grades, axis=-1)
    logged = Logged(episodes.valid, np.where(answered, ratio, 0.0), reward, q, np.where(answered, v, 0.0))
    score = np.where(episodes.valid, logged.v + logged.ratio * (logged.reward - logged.q), 0.0)
    return Played(probabilities, score, logged, cost_usd, starved, cost_usd.sum(axis=1))


def probabilities_as_logged(policies: Mapping[str, Policy], episodes: Episodes) -> dict[str, F64]:
    """Each policy's probabilities at the logged states, money and all, (S, T, K): for sequential estimators."""
    found = {name: np.zeros(episodes.mask.shape) for name in policies}
    for i, j in np.argwhere(episodes.valid).tolist():
        seen = observed(
            episodes,
            i,
            j,
            remaining_usd=float(episodes.remaining_usd[i, j]),
            budget_usd=float(episodes.budget_usd[i, j]),
            as_logged=True,
        )
        for name, policy in policies.items():
            found[name][i, j, : len(seen.candidates)] = policy.decide(seen, 0.0).probabilities
    return found


def observed(
    episodes: Episodes, i: int, j: int, *, remaining_usd: float, budget_usd: float, as_logged: bool = False
) -> Observation:
    """Turn j of session i as the gateway showed it, under another purse. Inverts `policy.features.encode`.

    Unless `as_logged`, a candidate is feasible when the log's guard let it pass for other reasons than money and the
    purse holds its cost.
    """
    expected = int(episodes.expected_turns[i, j])
    value = dict(zip(SESSION_FEATURES, episodes.state[i, j, TEXT_DIM + STATS_DIM :].tolist(), strict=True))
    input_tokens = round(np.expm1(value["log_input_tokens"] * 12.0))
    shown = int((episodes.model[i, j] >= 0).sum())
    candidates = tuple(
        _candidate(episodes, i, j, k, input_tokens, None if as_logged else remaining_usd) for k in range(shown)
    )
    session = SessionView(
        turn=round(np.expm1(value["turn"] * 3.0)),
        expected_turns=expected or None,
        budget_usd=budget_usd,
        remaining_usd=remaining_usd,
        tenant_remaining_usd=remaining_usd,
        spent_usd=max(budget_usd - remaining_usd, 0.0),
        tokens_so_far=round(np.expm1(value["log_tokens_so_far"] * 12.0)),
        failures=round(np.expm1(value["failures"])),
        regenerations=round(np.expm1(value["regenerations"])),
        tool_errors=round(np.expm1(value["tool_errors"])),
        last_quality=value["last_quality"] if value["last_quality_known"] > 0 else None,
        mean_quality=value["mean_quality"] if value["mean_quality_known"] > 0 else None,
        last_model=next((c.name for c in candidates if c.served_last), None),
        seconds_since_last=None if j == 0 else float(np.expm1(value["log_seconds_since_last"] * 10.0)),
        tool_loop=value["tool_loop"] > 0,
    )
    return Observation(
        text=episodes.state[i, j, :TEXT_DIM] / TEXT_SCALE,
        text_stats=episodes.state[i, j, TEXT_DIM : TEXT_DIM + STATS_DIM],
        session=session,
        candidates=candidates,
        lambda_per_usd=float(episodes.lambda_per_usd[i, j]),
    )


def _candidate(
    episodes: Episodes, i: int, j: int, k: int, input_tokens: int, remaining_usd: float | None
) -> CandidateView:
    row = dict(zip(CANDIDATE_FEATURES, episodes.candidates[i, j, k].tolist(), strict=True))
    price_in = 10.0 ** (row["log_input_price"] * 3.0) - 1e-3
    quantiles = tuple(episodes.cost_quantiles_usd[i, j, k].tolist())
    capable = bool(episodes.mask[i, j, k])
    if remaining_usd is None:
        feasible = bool(episodes.offered[i, j, k])
    else:
        feasible = capable and quantiles[_AFFORDABLE_LEVEL] <= remaining_usd
    return CandidateView(
        name=episodes.models[int(episodes.model[i, j, k])],
        input_usd_per_mtok=price_in,
        cached_input_usd_per_mtok=row["cached_price_ratio"] * price_in,
        output_usd_per_mtok=10.0 ** (row["log_output_price"] * 3.0) - 1e-3,
        quality_prior=row["quality_prior"],
        context_limit_tokens=round(np.expm1(row["log_context_limit"] * 14.0)),
        input_tokens=input_tokens,
        warm_tokens=round(row["warm_share"] * max(input_tokens, 1)),
        output_tokens_mean=float(np.expm1(row["log_output_tokens"] * 10.0)),
        cost_quantiles_usd=quantiles,
        cost_max_usd=quantiles[-1],
        served_last=row["served_last"] > 0.5,
        failure_rate=row["failure_rate"],
        latency_s=float(np.expm1(row["log_latency"] * 4.0)),
        feasible=feasible,
        why_not="" if feasible else NOT_AFFORDABLE if capable else "not capable",
    )


def _drawn_bill(
    quantiles_usd: NDArray[np.floating[Any]], cumulative: NDArray[np.floating[Any]], uniform: float
) -> float:
    """The quantile of a cost law (15,) at `uniform`."""
    level = min(int(np.searchsorted(cumulative, uniform, side="right")), len(cumulative) - 1)
    return float(quantiles_usd[level])
