"""Marks for a provider's prompt cache (`cache_control`), and who is sent them.

Claude's providers and some others read them. Of the rest LiteLLM leaves them out of a request; for Gemini it makes a
cache first, which is a second request and has a price of its own, and Azure's servers have no such field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

MARK = "cache_control"
_WITHOUT = frozenset({"azure", "azure_text"})


def writes_marks(litellm: Any, model: str, provider: str, api_base: str | None) -> bool:
    """True if LiteLLM writes a mark into a request for the model.

    For Bedrock's first one it imports what takes .1 s and more.
    """
    if provider in _WITHOUT:
        return False
    part = {"type": "text", "text": "x", MARK: {"type": "ephemeral"}}
    try:
        config = litellm.utils.ProviderConfigManager.get_provider_chat_config(model, litellm.LlmProviders(provider))
        body = config.transform_request(
            model=model, messages=[{"role": "user", "content": [part]}], optional_params={},
            litellm_params={"custom_llm_provider": provider, "api_base": api_base}, headers={},
        )  # fmt: skip
    except Exception:  # noqa: BLE001 - each provider's code has errors of its own
        return False
    return any(word in orjson.dumps(body, default=str) for word in (b"ephemeral", b"cachePoint"))


def has_marks(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> bool:
    """True if a message, a part of one, or a tool is marked."""
    for message in messages:
        content = message.get("content")
        if MARK in message or (type(content) is list and any(MARK in part for part in content)):
            return True
    return any(MARK in tool or MARK in (tool.get("function") or ()) for tool in tools)


def without_marks(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Copies of messages and tools without marks."""
    plain = []
    for message in messages:
        content = message.get("content")
        made = _unmarked(message)
        if type(content) is list:
            made["content"] = [_unmarked(part) for part in content]
        plain.append(made)
    return plain, [
        _unmarked(tool) | ({"function": _unmarked(tool["function"])} if tool.get("function") else {}) for tool in tools
    ]


def _unmarked(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != MARK}
