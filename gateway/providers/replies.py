"""Whole answers: the provider's own JSON where it speaks OpenAI's dialect, LiteLLM's translation where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.catalog.usage import ReportedUsage, usage_from_openai
from gateway.providers.errors import BrokenFault, FailedFault
from gateway.providers.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `body` is the chat completion; `usage` only what the provider itself reported."""

    body: dict[str, Any]
    usage: ReportedUsage
    finish_reason: str | None
    provider_model: str | None


def native_reply(exchange: Exchange) -> Reply:
    """The provider's own JSON."""
    try:
        body = orjson.loads(exchange.body)
    except orjson.JSONDecodeError:
        raise BrokenFault("the provider's answer was not JSON", status=exchange.status) from None
    if isinstance(body, dict) and body.get("error"):
        raise FailedFault("the provider reported an error instead of an answer", status=502)
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not all(_is_choice(choice) for choice in choices):
        raise BrokenFault("the provider's answer was not a chat completion", status=exchange.status)
    usage = body.get("usage")
    return Reply(
        body=body,
        usage=usage_from_openai(usage if isinstance(usage, dict) else None),
        finish_reason=finish if isinstance(finish := choices[0].get("finish_reason"), str) else None,
        provider_model=body.get("model") if isinstance(body.get("model"), str) else None,
    )


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def translated_reply(exchange: Exchange, response: Any) -> Reply:
    """Another dialect, as LiteLLM translated it."""
    body: dict[str, Any] = response.model_dump(exclude_none=True)
    usage = body.get("usage")
    reported = usage_from_openai(usage if isinstance(usage, dict) else None)
    if exchange.status >= 400 or (exchange.whole and not _mentions_usage(bytes(exchange.body))):
        # LiteLLM fills in zeros, or an estimate of its own, where the provider reported nothing.
        reported = None
        body.pop("usage", None)
    choices = body.get("choices") or [{}]
    return Reply(
        body=body, usage=reported, finish_reason=choices[0].get("finish_reason"), provider_model=body.get("model")
    )


def _mentions_usage(answer: bytes) -> bool:
    return any(name in answer for name in (b'"usage"', b'"usageMetadata"', b'"meta"', b"eval_count"))
