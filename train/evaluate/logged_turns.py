"""Recorded turns as the gateway presented them, under any budget, singly or in batches.

All that a policy sees is in the log. Shapes as in train/log/episodes.py; N turns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from policy import batch
from policy.arrays import F64, I64, Bools
from policy.facts import CANDIDATE_FACTS, SESSION_FACTS, LoggedColumns, observation_of
from policy.features import decode
from policy.mdp import NOT_AFFORDABLE, Observation, Policy
from train.log.episodes import Episodes

_AFFORDABLE_LEVEL = 12
"""Index of the .98 quantile, which the budget must hold, like the gateway's reservation."""


def ask_policy(
    policy: Policy, episodes: Episodes, i: I64, j: I64, remaining_usd: F64, budget_usd: F64, uniform: F64
) -> tuple[F64, I64]:
    """Probabilities (N, K) of a policy at the turns (i, j) and its draws by `uniform`, (N,).

    Each turn must have a candidate that its budget holds (`affordable`).
    """
    if batch.has_batched_form(policy):
        shares = batch.probabilities(policy, recorded_batch(episodes, i, j, remaining_usd))
        return shares, batch.draw_rows(shares, uniform)
    shares, action = np.zeros((len(i), episodes.mask.shape[-1])), np.zeros(len(i), np.int64)
    for n, (session, turn) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
        seen = recorded_observation(
            episodes, session, turn, remaining_usd=float(remaining_usd[n]), budget_usd=float(budget_usd[n])
        )
        decision = policy.decide(seen, float(uniform[n]))
        shares[n, : len(seen.candidates)], action[n] = decision.probabilities, decision.action
    return shares, action


def affordable(episodes: Episodes, i: I64, j: I64, remaining_usd: F64) -> Bools:
    """Candidates, (N, K), that nothing but money excluded and that the budget holds."""
    tail = episodes.cost_quantiles_usd[i, j, :, _AFFORDABLE_LEVEL].astype(np.float64)
    return np.asarray(episodes.mask[i, j] & (tail <= remaining_usd[:, None]))


def recorded_batch(episodes: Episodes, i: I64, j: I64, remaining_usd: F64, *, as_logged: bool = False) -> batch.Batch:
    """The logged observations of the turns (i, j), (N,) each, as one batch."""
    facts, model = decode(episodes.state[i, j], episodes.candidates[i, j]), episodes.model[i, j]

    def of_candidate(name: str) -> F64:
        return facts.candidates[..., CANDIDATE_FACTS.index(name)]

    return batch.Batch(
        models=episodes.models,
        model=model.astype(np.int64),
        state=episodes.state[i, j],
        prior=of_candidate("quality_prior"),
        usd_in=of_candidate("input_usd_per_mtok"),
        usd_cached=of_candidate("cached_input_usd_per_mtok"),
        usd_out=of_candidate("output_usd_per_mtok"),
        input_tokens=of_candidate("input_tokens"),
        warm_tokens=of_candidate("warm_tokens"),
        served_last=of_candidate("served_last") > 0.5,
        cost_quantiles_usd=episodes.cost_quantiles_usd[i, j],
        mask=episodes.offered[i, j] if as_logged else affordable(episodes, i, j, remaining_usd),
        able=episodes.mask[i, j],
        available_usd=np.maximum(remaining_usd, 0.0),
        turn=facts.session[..., SESSION_FACTS.index("turn")].astype(np.int64),
        expected_turns=episodes.expected_turns[i, j].astype(np.int64),
        lambda_per_usd=episodes.lambda_per_usd[i, j].astype(np.float64),
        route=episodes.route[i, j],
    )


def recorded_observation(
    episodes: Episodes, i: int, j: int, *, remaining_usd: float, budget_usd: float, as_logged: bool = False
) -> Observation:
    """Turn j of session i as the gateway presented it, under another budget.

    Unless `as_logged`, a candidate is feasible when nothing but money excluded it and the budget holds its cost.
    """
    shown = int((episodes.model[i, j] >= 0).sum())
    quantiles = [tuple(levels) for levels in episodes.cost_quantiles_usd[i, j, :shown].tolist()]
    capable = episodes.mask[i, j, :shown].tolist()
    if as_logged:
        feasible = episodes.offered[i, j, :shown].tolist()
    else:
        feasible = [able and q[_AFFORDABLE_LEVEL] <= remaining_usd for able, q in zip(capable, quantiles, strict=True)]
    columns = LoggedColumns(
        names=[episodes.models[k] for k in episodes.model[i, j, :shown].tolist()],
        cost_quantiles_usd=quantiles,
        exclusions=[
            "" if passed else NOT_AFFORDABLE if able else "not capable"
            for passed, able in zip(feasible, capable, strict=True)
        ],
        budget_usd=budget_usd,
        remaining_usd=remaining_usd,
        expected_turns=int(episodes.expected_turns[i, j]) or None,
        lambda_per_usd=float(episodes.lambda_per_usd[i, j]),
    )
    facts = decode(episodes.state[i, j], episodes.candidates[i, j, :shown])
    return observation_of(replace(facts, route=int(episodes.route[i, j])), columns)
