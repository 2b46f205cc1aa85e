"""What came of a turn, as pure functions: the body a client sees, the columns of the completed decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.chat import ChatRequest
from gateway.decisions import describe_candidates, visible
from gateway.estimates import Estimate
from gateway.money import usd_string
from gateway.router import Routed
from gateway.streaming import generated_texts
from gateway.usage import Usage
from policy.mdp import Observation

MAX_STORED_TEXT = 1_000_000
MAX_FINISH_REASON = 32


def completion_id(decision_id: str) -> str:
    """The id in the body: ours, because a provider's may be missing or used twice."""
    return "chatcmpl-" + decision_id.removeprefix("dec_")


def answered_body(body: Mapping[str, Any], decision_id: str, model: str) -> dict[str, Any]:
    """The provider's body under our id, with the catalogue's name of the model that really answered."""
    return {**body, "id": completion_id(decision_id), "model": model}


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
) -> dict[str, Any]:
    """The columns of `decisions` that the settlement completes; `usage` is the provider's or our own count.

    What a provider said is cut to what a column holds: no answer may keep its bill from being posted.
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
        "signals": orjson.dumps(signals).decode(),
        "response_text": None if response_text is None else _storable(response_text, MAX_STORED_TEXT),
        "completed_at_ms": now_ms,
    }


def stored_request(chat: ChatRequest) -> str:
    """The messages of a tenant that opted in to storing text."""
    return orjson.dumps(list(chat.messages)).decode()[:MAX_STORED_TEXT]


def stored_answer(body: Mapping[str, Any]) -> str:
    return orjson.dumps(body.get("choices") or []).decode()[:MAX_STORED_TEXT]


def generated_text(body: Mapping[str, Any]) -> str:
    """Everything generated in a whole answer, for a count where usage is missing."""
    messages = [choice.get("message") for choice in _listed(body.get("choices"))]
    return "".join(text for message in messages if isinstance(message, Mapping) for text in generated_texts(message))


def estimated_usage(usage: Usage) -> dict[str, Any]:
    """Usage the provider did not report, marked as ours."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "estimated": True,
    }


def usage_chunk(decision_id: str, model: str, usage: Usage, created_s: float) -> dict[str, Any]:
    """The usage chunk of a stream whose provider reported none."""
    return {
        "id": completion_id(decision_id),
        "object": "chat.completion.chunk",
        "created": int(created_s),
        "model": model,
        "choices": [],
        "usage": estimated_usage(usage),
    }


def dry_run(session_id: str, observation: Observation, routed: Routed, chosen: Estimate) -> dict[str, Any]:
    """`POST /v1/route`: the decision that this body would meet now."""
    decision = routed.decision
    return {
        "session_id": session_id,
        "turn": observation.session.turn,
        "model": chosen.view.name,
        "probability": float(decision.propensity),
        "policy": decision.policy_id,
        "reason": decision.reason,
        "lambda": observation.lambda_per_usd,
        "reserve_nano_usd": chosen.hold_nanousd,
        "reserve_usd": usd_string(chosen.hold_nanousd),
        "max_tokens": chosen.max_tokens,
        "candidates": visible(describe_candidates(observation, decision)),
    }


def _listed(value: object) -> list[Any]:
    """What a provider should have sent as a list."""
    return value if isinstance(value, list) else []


def _storable(text: str, length: int) -> str:
    """Postgres has no NUL in text."""
    return text.replace("\0", "")[:length]
