"""Decision log: a row per decision, added by the reservation, completed by the settlement.

`features` and `candidate_features` hold the facts of the observation (policy/facts.py), so that training sees exactly
the served policy's input; `propensity` is the probability of the executed draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from sqlalchemy import Connection, select

from gateway.catalog.usage import Usage
from gateway.database import tables
from gateway.decisions.failures import FailedAttempt, column, shown
from gateway.dialects.chat import completion_id
from gateway.dialects.request import ChatRequest
from gateway.money import NANOUSD_PER_USD, usd_string
from gateway.routing.estimates import Estimate
from gateway.routing.guard import NOT_ALLOWED
from gateway.routing.router import Routed, Shadow
from policy.facts import LOG_VERSION, pack
from policy.mdp import Decision, Observation

MAX_FINISH_REASON = 32

MAX_STORED_TEXT = 1_000_000


def pending_row(
    observation: Observation,
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
    lowered_max_tokens: int | None = None,
    second_chances: Sequence[float] = (),
    root_session_id: str | None = None,
) -> dict[str, Any]:
    """The columns known before dispatch; the ledger adds ids, turn and balances.

    `second_chances`: each candidate's probability to answer the turn once more; empty if none can.
    """
    features, candidate_features = pack(observation)
    candidates = describe_candidates(observation, decision)
    for candidate, chance in zip(candidates, second_chances, strict=False):
        candidate["second"] = chance
    return {
        "endpoint": endpoint,
        "requested_model": requested_model,
        "feature_version": LOG_VERSION,
        "features": features,
        "candidate_features": candidate_features,
        "candidates": orjson.dumps(candidates).decode(),
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
        "lowered_max_tokens": lowered_max_tokens,
        "root_session_id": root_session_id,
    }


def describe_candidates(observation: Observation, decision: Decision) -> list[dict[str, Any]]:
    """Every candidate with its mask, probability and predictions, each under its own name."""
    rows = []
    columns: tuple[list[float], ...] = tuple(
        values.tolist()
        for values in (decision.probabilities, decision.quality, decision.q_quality, decision.q_cost_usd)
    )
    usd = np.array([candidate.cost_quantiles_usd for candidate in observation.candidates], np.float64)
    nanousd: list[list[int]] = np.rint(usd * NANOUSD_PER_USD).astype(np.int64).tolist()
    lacking = observation.wanted or (0.0,) * len(nanousd)
    for candidate, wanted, quantiles, probability, quality, q_quality, q_cost in zip(
        observation.candidates, lacking, nanousd, *columns, strict=True
    ):
        rows.append(
            {
                "model": candidate.name,
                "feasible": candidate.feasible,
                "why_not": candidate.why_not or None,
                "probability": _number(probability),
                "quality": _number(quality),
                "cost_nano_usd": round(sum(quantiles) / len(quantiles)),
                "cost_quantiles_nano_usd": quantiles,
                "q_quality": _number(q_quality),
                "q_cost": _number(q_cost),
                **({"effort": candidate.effort} if candidate.effort else {}),
                **({"wanted": wanted} if wanted else {}),
            }
        )
    return rows


def visible(candidates: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The candidates as the API shows them, without the models that the tenant may not use."""
    shown = (with_effort(candidate) for candidate in candidates if candidate["why_not"] != NOT_ALLOWED)
    return [{name: value for name, value in each.items() if name != "second"} for each in shown]


def with_effort(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """A logged candidate with its model's name and its effort (or None) apart."""
    effort = candidate.get("effort")
    model = candidate["model"].removesuffix(f"#{effort}") if effort else candidate["model"]
    return {**candidate, "model": model, "effort": effort}


def answered_by(action: str, candidates: Iterable[Mapping[str, Any]]) -> tuple[str, str | None]:
    """The model and the effort of a decision's logged action."""
    chosen = next((with_effort(each) for each in candidates if each["model"] == action), None)
    return (action, None) if chosen is None else (chosen["model"], chosen["effort"])


def action_name(candidate: Mapping[str, Any]) -> str:
    """The name of a logged candidate, as people read it."""
    effort = candidate.get("effort")
    return at_effort(with_effort(candidate)["model"], effort) if effort else str(candidate["model"])


def at_effort(model: str, effort: str | None) -> str:
    """The name of a model at an effort, as people read it."""
    return f"{model} at {effort} effort" if effort else model


def find(connection: Connection, decision_id: str, tenant_id: str | None) -> Mapping[str, Any] | None:
    """A tenant's decision (any tenant's when None); None for an unknown or foreign id."""
    row = tables.decisions
    query = select(row).where(row.c.decision_id == decision_id)
    if tenant_id is not None:
        query = query.where(row.c.tenant_id == tenant_id)
    found = connection.execute(query).mappings().first()
    return None if found is None else dict(found)


def explain(row: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """A decision as the API and `seqroute explain` show it; `whole` includes forbidden models."""
    candidates = orjson.loads(row["candidates"])
    model, effort = answered_by(row["model"], candidates)
    before, after = row["remaining_before_nanousd"], row["remaining_after_nanousd"]
    return {
        "decision_id": row["decision_id"],
        "session_id": row["session_id"],
        "tenant_id": row["tenant_id"],
        "turn": row["turn"],
        "previous_decision_id": row["previous_decision_id"],
        "model": model,
        "effort": effort,
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
        "error_code": row["error_code"],
        "failed_attempts": shown(row["failures"]),
        "signals": orjson.loads(row["signals"]),
        "shadow_policy": row["shadow_policy_id"],
        "shadow_model": row["shadow_model"],
        "feature_version": row["feature_version"],
        "origin": row["origin"] or "client",
        "exploration_floor": row["exploration_floor"],
        "lowered_max_tokens": row["lowered_max_tokens"],
        "created_at_ms": row["created_at_ms"],
        "candidates": [with_effort(each) for each in candidates] if whole else visible(candidates),
    }


def _number(value: float) -> float | None:
    """None for NaN, which JSON lacks: some policies predict no values-to-go."""
    return value if math.isfinite(value) else None


def completed_columns(
    *,
    decision_id: str,
    status: str,
    usage: Usage,
    usage_source: str,
    latency_ms: int,
    first_byte_ms: int | None,
    finish_reason: str | None,
    error_code: str | None,
    signals: Mapping[str, bool],
    response_text: str | None,
    now_ms: int,
    failures: tuple[FailedAttempt, ...] = (),
) -> dict[str, Any]:
    """The columns that the settlement completes; `usage` is reported or estimated.

    Provider values are cut to their columns' width: no answer may prevent its bill from being posted.
    """
    return {
        "completion_id": completion_id(decision_id),
        "status": status,
        "usage_source": usage_source,
        "input_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "latency_ms": latency_ms,
        "first_byte_ms": first_byte_ms,
        "finish_reason": _storable(finish_reason, MAX_FINISH_REASON) if isinstance(finish_reason, str) else None,
        "error_code": error_code,
        "failures": column(failures),
        "signals": orjson.dumps(signals).decode(),
        "response_text": None if response_text is None else _storable(response_text, MAX_STORED_TEXT),
        "completed_at_ms": now_ms,
    }


def stored_request(chat: ChatRequest) -> str:
    """The request's messages as JSON, for a tenant that opted in to storing text."""
    return orjson.dumps(list(chat.messages)).decode()[:MAX_STORED_TEXT]


def stored_answer(body: Mapping[str, Any]) -> str:
    """The answer's choices as JSON, for a tenant that opted in to storing text."""
    return orjson.dumps(body.get("choices") or []).decode()[:MAX_STORED_TEXT]


def dry_run(session_id: str, observation: Observation, routed: Routed, chosen: Estimate) -> dict[str, Any]:
    """The answer to `POST /v1/route`: the decision that this request would get now."""
    decision = routed.decision
    return {
        "session_id": session_id,
        "turn": observation.session.turn,
        "model": chosen.option.model.name,
        "effort": chosen.option.model.effort or None,
        "probability": float(decision.propensity),
        "policy": decision.policy_id,
        "reason": decision.reason,
        "lambda": observation.lambda_per_usd,
        "reserve_nano_usd": chosen.hold_nanousd,
        "reserve_usd": usd_string(chosen.hold_nanousd),
        "max_tokens": chosen.max_tokens,
        "candidates": visible(describe_candidates(observation, decision)),
    }


def _storable(text: str, length: int) -> str:
    """Text without NUL, which Postgres cannot store, cut to `length`."""
    return text.replace("\0", "")[:length]
