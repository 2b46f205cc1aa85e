"""Provider-bound state inside fields that clients of other dialects return unchanged.

A model's response may contain state that must come back with the next turn and is useless to other providers:
OpenRouter's `reasoning_details`, Gemini's thought signatures in `tool_calls[].extra_content`, Anthropic's signed
thinking, OpenAI's encrypted reasoning. Anthropic's `signature` and `data` and OpenAI's `encrypted_content` are opaque
to clients, so the state of every other provider travels in them, marked with a prefix.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.dialects.answer_parts import provider_id

PREFIX = "sr1."
_LISTS = ("thinking_blocks", "reasoning_items", "reasoning_details")


def seal(state: Mapping[str, Any]) -> str:
    """The state as an opaque string; empty when there is none."""
    kept = {name: value for name, value in state.items() if value}
    return PREFIX + base64.urlsafe_b64encode(orjson.dumps(kept)).decode() if kept else ""


def unseal(text: str) -> dict[str, Any] | None:
    """The state in a string that `seal` made, None for any other string."""
    if not text.startswith(PREFIX):
        return None
    try:
        state = orjson.loads(base64.urlsafe_b64decode(text.removeprefix(PREFIX)))
    except (binascii.Error, orjson.JSONDecodeError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def restore(message: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Put unsealed state back into the assistant message of a chat request."""
    for name in _LISTS:
        items = state.get(name)
        if isinstance(items, list):
            message.setdefault(name, []).extend(items)
    extra = state.get("extra_content")
    if isinstance(extra, dict):
        message.setdefault("extra_content", {}).update(extra)


def attach_extra_content(message: dict[str, Any]) -> None:
    """Move restored `extra_content` to the tool calls that it belongs to.

    The calls get the ids back that their provider gave them.
    """
    extra = message.pop("extra_content", None)
    for call in message.get("tool_calls") or ():
        if extra and call.get("id") in extra:
            call["extra_content"] = extra[call["id"]]
        call["id"] = provider_id(call["id"])
