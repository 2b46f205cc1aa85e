"""A recorded turn as the gateway showed it, under any budget: one by one for any policy, many at once for some.

Inverts `policy.features.encode`: what a policy looks at is all in the log. Shapes as in train/log/episodes.py; N turns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy import batch
from policy.features import CANDIDATE_FEATURES, SESSION_FEATURES, TEXT_SCALE
from policy.mdp import CandidateView, Observation, Policy, SessionView
from policy.text import STATS_DIM, TEXT_DIM
from train.log.episodes import NOT_AFFORDABLE, Bools, Episodes

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_AFFORDABLE_LEVEL = 12
"""Index of the .98 quantile: the budget must hold it, as the gateway's reservation would ask."""


def asked(
    policy: Policy, episodes: Episodes, i: I64, j: I64, remaining_usd: F64, budget_usd: F64, uniform: F64
) -> tuple[F64, I64]:
    """What a policy would draw from at the turns (i, j), (N, K), and what it draws by `uniform`; all others (N,).

    Each turn must have a candidate that its budget holds (`affordable`).
    """
    if batch.has_batched_form(policy):
        shares = batch.probabilities(policy, recorded(episodes, i, j, remaining_usd))
        return shares, batch.draw_rows(shares, uniform)
    shares, action = np.zeros((len(i), episodes.mask.shape[-1])), np.zeros(len(i), np.int64)
    for n, (session, turn) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
        seen = observed(episodes, session, turn, remaining_usd=float(remaining_usd[n]), budget_usd=float(budget_usd[n]))
        decision = policy.decide(seen, float(uniform[n]))
        shares[n, : len(seen.candidates)], action[n] = decision.probabilities, decision.action
    return shares, action


def affordable(episodes: Episodes, i: I64, j: I64, remaining_usd: F64) -> Bools:
    """Candidates that the guard let pass for other reasons than money and that the budget holds, (N, K)."""
    tail = episodes.cost_quantiles_usd[i, j, :, _AFFORDABLE_LEVEL].astype(np.float64)
    return np.asarray(episodes.mask[i, j] & (tail <= remaining_usd[:, None]))


def recorded(episodes: Episodes, i: I64, j: I64, remaining_usd: F64, *, as_logged: bool = False) -> batch.Batch:
    """`observed` for the turns (i, j), (N,) each, as one batch."""
    state, model = episodes.state[i, j], episodes.model[i, j]

    def of_session(name: str) -> F64:
        return state[:, TEXT_DIM + STATS_DIM + SESSION_FEATURES.index(name)].astype(np.float64)

    def of_candidate(name: str) -> F64:
        return episodes.candidates[i, j, :, CANDIDATE_FEATURES.index(name)].astype(np.float64)

    usd_in = 10.0 ** (of_candidate("log_input_price") * 3.0) - 1e-3
    tokens = np.asarray(np.round(np.expm1(of_session("log_input_tokens") * 12.0)), np.float64)[:, None]
    return batch.Batch(
        models=episodes.models,
        model=model.astype(np.int64),
        state=state,
        prior=of_candidate("quality_prior"),
        usd_in=usd_in,
        usd_cached=of_candidate("cached_price_ratio") * usd_in,
        usd_out=10.0 ** (of_candidate("log_output_price") * 3.0) - 1e-3,
        input_tokens=np.broadcast_to(tokens, model.shape),
        warm_tokens=np.round(of_candidate("warm_share") * np.maximum(tokens, 1.0)),
        cost_quantiles_usd=episodes.cost_quantiles_usd[i, j],
        mask=episodes.offered[i, j] if as_logged else affordable(episodes, i, j, remaining_usd),
        able=episodes.mask[i, j],
        available_usd=np.maximum(remaining_usd, 0.0),
        turn=np.round(np.expm1(of_session("turn") * 3.0)).astype(np.int64),
        expected_turns=episodes.expected_turns[i, j].astype(np.int64),
        lambda_per_usd=episodes.lambda_per_usd[i, j].astype(np.float64),
    )


def observed(
    episodes: Episodes, i: int, j: int, *, remaining_usd: float, budget_usd: float, as_logged: bool = False
) -> Observation:
    """Turn j of session i as the gateway showed it, under another budget.

    Unless `as_logged`, a candidate is feasible when the log's guard let it pass for other reasons than money and the
    budget holds its cost.
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
