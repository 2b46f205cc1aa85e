"""Checks of a chat request's messages beyond its schema, and what they contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.arguments import THINKING_PARTS
from gateway.dialects.pictures import picture_of
from gateway.errors import InvalidRequest

_INSTEAD_OF_CONTENT = (
    "tool_calls", "function_call", "refusal", "audio", "reasoning", "reasoning_content", "reasoning_details",
    "reasoning_items", "reasoning_text", "thinking_blocks", "encrypted_content", "images",
)  # fmt: skip
# State that only its provider can read: signatures, encrypted reasoning, ids of its own store.
_BOUND_FIELDS = (
    "thinking_blocks", "reasoning_items", "encrypted_content", "reasoning_details", "reasoning_opaque",
    "reasoning_signature", "signature", "extra_content", "provider_specific_fields",
)  # fmt: skip
_BOUND_CALL_FIELDS = ("extra_content", "provider_specific_fields", "thought_signature", "signature")
_SIGNED_ID = "__thought__"
"""LiteLLM's mark in a tool call id that contains a thought signature."""
_FREE_FIELDS = (
    "audio", "annotations", "images", "citations", "reasoning", "reasoning_details", "reasoning_items",
    "thinking_blocks", "thinking", "extra_content", "provider_specific_fields",
)  # fmt: skip
_PLAIN_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "cache_control"})
_PLAIN_CALL = frozenset({"id", "type", "index", "function", "custom"})
_PLAIN_FUNCTION = frozenset({"name", "arguments"})


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return ""


@dataclass(slots=True)
class SeenMessages:
    """Contents of the messages: parts, their types, arbitrary JSON, provider-bound state."""

    with_parts: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    free: list[Any] = field(default_factory=list)
    bound: bool = False
    has_custom: bool = False
    file_by_id: str | None = None
    generated_pictures: int = 0
    """Pictures of earlier answers, which Gemini is sent again."""
    left_out: bool = False
    """Whether some of them are neither inline nor pictures, and are left out."""


def read_messages(messages: Sequence[dict[str, Any]]) -> SeenMessages:
    """Check the required fields of roles and types, beyond the schema. Raises InvalidRequest."""
    seen = SeenMessages()
    for index, message in enumerate(messages):
        content, calls = message.get("content"), message.get("tool_calls")
        if content is None:
            stated = message["role"] == "assistant" and any(message.get(name) for name in _INSTEAD_OF_CONTENT)
            empty = message["role"] == "assistant" and index + 1 < len(messages)
            if not stated and (empty or message["role"] in ("tool", "function")):
                message["content"] = ""  # an answer or a result of nothing
            elif not stated:
                where = f"messages[{index}].content"
                raise InvalidRequest(f"{where}: expected a string or a list of parts", param=where)
        elif type(content) is list:
            seen.with_parts.append((index, message))
            for position, part in enumerate(content):
                _check_part(part, f"messages[{index}].content[{position}]")
                seen.kinds.append(part["type"])
                if part["type"] == "file" and part["file"].get("file_id") and seen.file_by_id is None:
                    seen.file_by_id = f"messages[{index}].content[{position}].file.file_id"
        if message["role"] == "tool" and message.get("tool_call_id") is None:
            where = f"messages[{index}].tool_call_id"
            raise InvalidRequest(f"{where}: expected a string", param=where)
        if not _PLAIN_FIELDS.issuperset(message):
            if "images" in message:
                _read_pictures(message, seen)
            seen.free += [message[name] for name in _FREE_FIELDS if name in message]
            seen.bound = seen.bound or any(message.get(name) for name in _BOUND_FIELDS)
            seen.bound = seen.bound or "id" in (message.get("audio") or {})
        for call in calls or ():
            called = call.get("function") or {}
            seen.has_custom = seen.has_custom or bool(call.get("custom"))
            if not _PLAIN_CALL.issuperset(call) or not _PLAIN_FUNCTION.issuperset(called):
                seen.free += [call.get(name) or called.get(name) for name in _BOUND_CALL_FIELDS]
                seen.bound = seen.bound or any(call.get(name) or called.get(name) for name in _BOUND_CALL_FIELDS)
            seen.bound = seen.bound or _SIGNED_ID in (call.get("id") or "")
    seen.bound = seen.bound or not THINKING_PARTS.isdisjoint(seen.kinds)
    return seen


def _read_pictures(message: dict[str, Any], seen: SeenMessages) -> None:
    """Keep inline pictures alone: LiteLLM would fetch an address, and take a caller's word for another kind."""
    given = message["images"] or []
    inline = [picture_of(each) for each in given]
    kept = [f"data:image/{each.format};base64,{each.data}" for each in inline if each.data]
    seen.left_out = seen.left_out or len(kept) < len(given)
    seen.generated_pictures += len(kept)
    message["images"] = [{"type": "image_url", "image_url": {"url": url}} for url in kept]
    if not kept:
        del message["images"]
        message["content"] = message.get("content") or ""


def _check_part(part: dict[str, Any], where: str) -> None:
    kind = part["type"]
    name = "data" if kind == "redacted_thinking" else kind
    if name not in part:
        raise InvalidRequest(f"{where}.{name}: expected it beside the type", param=f"{where}.{name}")
    if kind == "input_video":
        _write_video(part, where)
    for kind in ("image_url", "video_url"):
        if isinstance(part.get(kind), str):
            part[kind] = {"url": part[kind]}


def _write_video(part: dict[str, Any], where: str) -> None:
    """Write a video in the form that servers of open models and OpenRouter know."""
    shown = part.pop("input_video")
    url, data = shown.get("url"), shown.get("data")
    if not url and not data:
        where = f"{where}.input_video.data"
        raise InvalidRequest(f"{where}: expected a string", param=where)
    inline = data if str(data).startswith("data:") else f"data:video/{shown.get('format') or 'mp4'};base64,{data}"
    part |= {"type": "video_url", "video_url": {"url": url or inline}}
