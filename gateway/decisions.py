"""The transition log: one row per decision, written pending with the reservation and completed with the settlement.

`features` and `candidate_features` are what `policy.features.encode` made of the observation, so that a training run
sees exactly what the served policy saw; `propensity` is the probability of the executed draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from sqlalchemy import Connection, select

from gateway import tables
from gateway.money import NANOUSD_PER_USD, usd_string
from policy.features import FEATURE_VERSION, Encoded
from policy.mdp import Decision, Observation

NOT_ALLOWED = "not allowed"
"""Why a model outside the allow-list of tenant or key is no candidate."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a policy that does not serve would have done; None: it should have served, and could not."""

    policy_id: str
    model: str | None


def pending_row(
    observation: Observation,
    encoded: Encoded,
    decision: Decision,
    *,
    uniform: float,
    requested_model: str,
    endpoint: str,
    request_text: str | None,
    shadow: Shadow | None,
    now_ms: int,
    origin: str | None = None,
    exploration_floor: float | None = None,
) -> dict[str, Any]:
    """The columns known before dispatch; the ledger adds ids, turn and balances in the same transaction."""
    return {
        "endpoint": endpoint,
        "requested_model": requested_model,
        "feature_version": FEATURE_VERSION,
        "features": encoded.state.astype("<f4").tobytes(),
        "candidate_features": encoded.candidates.astype("<f4").tobytes(),
        "candidates": orjson.dumps(describe_candidates(observation, decision)).decode(),
        "lambda_per_usd": float(observation.lambda_per_usd),
        "expected_turns": observation.session.expected_turns,
        "model": observation.candidates[decision.action].name,
        "action": int(decision.action),
        "propensity": float(decision.propensity),
        "uniform": uniform,
        "policy_id": decision.policy_id,
        "reason": decision.reason,
        "shadow_policy_id": shadow.policy_id if shadow else None,
        "shadow_model": shadow.model if shadow else None,
        "request_text": request_text,
        "created_at_ms": now_ms,
        "origin": origin,
        "exploration_floor": exploration_floor,
    }


def describe_candidates(observation: Observation, decision: Decision) -> list[dict[str, Any]]:
    """Every candidate with mask, probability, predicted quality and cost, as the contract names the fields."""
    rows = []
    usd = np.array([candidate.cost_quantiles_usd for candidate in observation.candidates], np.float64)
    nanousd: list[list[int]] = np.rint(usd * NANOUSD_PER_USD).astype(np.int64).tolist()
    for index, (candidate, quantiles) in enumerate(zip(observation.candidates, nanousd, strict=True)):
        rows.append(
            {
                "model": candidate.name,
                "feasible": candidate.feasible,
                "why_not": candidate.why_not or None,
                "probability": _number(decision.probabilities[index]),
                "quality": _number(decision.quality[index]),
                "cost_nano_usd": round(sum(quantiles) / len(quantiles)),
                "cost_quantiles_nano_usd": quantiles,
                "q_quality": _number(decision.q_quality[index]),
                "q_cost": _number(decision.q_cost_usd[index]),
            }
        )
    return rows


def visible(candidates: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a tenant may see of the candidates: no name of a model that it may not use."""
    return [candidate for candidate in candidates if candidate["why_not"] != NOT_ALLOWED]


def find(connection: Connection, decision_id: str, tenant_id: str | None) -> Mapping[str, Any] | None:
    """One decision of a tenant (of any tenant when None), or None; a foreign id looks like an unknown one."""
    row = tables.decisions
    query = select(row).where(row.c.decision_id == decision_id)
    if tenant_id is not None:
        query = query.where(row.c.tenant_id == tenant_id)
    found = connection.execute(query).mappings().first()
    return None if found is None else dict(found)


def explain(row: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """`GET /v1/decisions/{id}` and `seqroute explain`: why this model. `whole`: for an operator, every candidate."""
    candidates = orjson.loads(row["candidates"])
    before, after = row["remaining_before_nanousd"], row["remaining_after_nanousd"]
    return {
        "decision_id": row["decision_id"],
        "session_id": row["session_id"],
        "tenant_id": row["tenant_id"],
        "turn": row["turn"],
        "previous_decision_id": row["previous_decision_id"],
        "model": row["model"],
        "requested_model": row["requested_model"],
        "probability": row["propensity"],
        "policy": row["policy_id"],
        "reason": row["reason"],
        "lambda": row["lambda_per_usd"],
        "budget_before_nano_usd": before,
        "budget_before_usd": usd_string(before),
        "budget_after_nano_usd": after,
        "budget_after_usd": None if after is None else usd_string(after),
        "reserved_nano_usd": row["reserved_nanousd"],
        "reserved_usd": usd_string(row["reserved_nanousd"]),
        "cost_nano_usd": row["cost_nanousd"],
        "cost_usd": None if row["cost_nanousd"] is None else usd_string(row["cost_nanousd"]),
        "usage_source": row["usage_source"],
        "input_tokens": row["input_tokens"],
        "cached_tokens": row["cached_tokens"],
        "output_tokens": row["output_tokens"],
        "latency_ms": row["latency_ms"],
        "status": row["status"],
        "finish_reason": row["finish_reason"],
        "signals": orjson.loads(row["signals"]),
        "shadow_policy": row["shadow_policy_id"],
        "shadow_model": row["shadow_model"],
        "feature_version": row["feature_version"],
        "origin": row["origin"] or "client",
        "exploration_floor": row["exploration_floor"],
        "created_at_ms": row["created_at_ms"],
        "candidates": candidates if whole else visible(candidates),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: a policy without values-to-go has none to show."""
    return float(value) if math.isfinite(value) else None
