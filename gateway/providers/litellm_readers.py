"""Makes LiteLLM's readers of other dialects tolerate compatible servers.

Anthropic begins a block empty, fills it by deltas and ends it. LiteLLM reads the input of a tool and the thinking from
deltas alone, and a text from both. A usage of null, a text for the content and a comment between events end its
reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from typing import Any

from gateway.dialects.claude_blocks import OpenBlock
from gateway.dialects.native_forms import without_nulls
from gateway.unchecked import at

_NO_CHUNK = (":", "event:", "id:", "retry:")


def read_whole_answers(config_class: Any) -> None:
    """Let LiteLLM read Claude's whole answers with plain text, or without a stop reason."""
    inner = config_class.transform_parsed_response
    if hasattr(inner, "__wrapped__"):
        return  # done before

    @wraps(inner)
    def transformed(self: Any, completion_response: dict[str, Any], *arguments: Any, **more: Any) -> Any:
        if "error" not in completion_response and "choices" not in completion_response:
            content = completion_response.get("content") or []
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            called = any(at(block, "type") == "tool_use" for block in content)
            reason = completion_response.get("stop_reason") or ("tool_use" if called else "end_turn")
            completion_response = {**completion_response, "content": content, "stop_reason": reason}
        return inner(self, completion_response, *arguments, **more)

    config_class.transform_parsed_response = transformed


def keep_service_tiers(config_class: Any) -> None:
    """Let LiteLLM read Groq's whole answers without a service tier, and keep one."""
    inner = config_class.__mro__[1].transform_response

    def transformed(self: Any, *arguments: Any, **more: Any) -> Any:
        response = inner(self, *arguments, **more)
        self._add_web_search_usage(model_response=response)
        return response

    config_class.transform_response = transformed


def read_gemini_events(parser_class: Any) -> None:
    """Let LiteLLM's parser of Gemini's events skip comments, other fields than data, and nulls."""
    inner, of_chunk = parser_class._common_chunk_parsing_logic, parser_class.chunk_parser
    if hasattr(inner, "__wrapped__"):
        return  # done before

    @wraps(inner)
    def parsed(self: Any, chunk: str) -> Any:
        return None if str(chunk).startswith(_NO_CHUNK) else inner(self, chunk)

    def parsed_chunk(self: Any, chunk: dict[str, Any]) -> Any:
        return of_chunk(self, without_nulls(chunk))

    parser_class._common_chunk_parsing_logic, parser_class.chunk_parser = parsed, parsed_chunk


def read_whole_blocks(parser_class: Any) -> None:
    """Let LiteLLM's parser of Claude's events read the start of a block too, and end each."""
    if hasattr(parser_class, "parsed_alone"):
        return  # done before
    inner, following = parser_class.chunk_parser, parser_class.__anext__

    async def next_chunk(self: Any) -> Any:
        waiting: dict[str, Any] | None = getattr(self, "waiting_event", None)
        if waiting is None:
            return await following(self)
        self.waiting_event = None
        return parsed_block(self, waiting)

    def parsed(self: Any, chunk: dict[str, Any]) -> Any:
        if not hasattr(self, "open_block"):
            self.open_block = OpenBlock()
        _drop_usage(chunk)
        kind = chunk.get("type")
        if kind == "message_delta":
            chunk["delta"] = chunk.get("delta") or {}
        empty = kind == "content_block_delta" and not chunk.get("delta")
        events = [] if empty else self.open_block.in_order(chunk)
        if not events:
            return inner(self, {"type": "ping"})
        # One event is one chunk: the other waits for the next one, where chunks are taken one by one.
        if len(events) == 1 or not hasattr(self, "async_response_iterator"):
            return parsed_block(self, chunk)
        first, self.waiting_event = events
        return parsed_block(self, first)

    def parsed_block(self: Any, chunk: dict[str, Any]) -> Any:
        kind = chunk.get("type")
        if kind == "content_block_start":
            made = inner(self, chunk)
            thinking, self.whole_block = _whole(chunk.get("content_block"))
            return inner(self, _delta("thinking_delta", "thinking", thinking)) if thinking else made
        rest: dict[str, Any] | None = getattr(self, "whole_block", None)
        if rest is None or kind not in ("content_block_delta", "content_block_stop"):
            return inner(self, chunk)
        if kind == "content_block_delta":
            if _repeats(chunk.get("delta"), rest["delta"]):
                self.whole_block = None
            return inner(self, chunk)
        self.whole_block = None
        made = inner(self, rest)
        inner(self, chunk)
        return made

    parser_class.parsed_alone, parser_class.chunk_parser = inner, parsed
    parser_class.__anext__ = next_chunk


def ignore_usage(parser_class: Any, name: str = "chunk_parser") -> None:
    """Let LiteLLM's parser of a stream's events see no usage, whose form may end its reading."""
    inner = getattr(parser_class, name)
    if hasattr(inner, "__wrapped__"):
        return  # done before

    @wraps(inner)
    def parsed(self: Any, *arguments: Any, **named: Any) -> Any:
        for chunk in (*arguments, *named.values()):
            if isinstance(chunk, dict):
                _drop_usage(chunk)
        return inner(self, *arguments, **named)

    setattr(parser_class, name, parsed)


def _drop_usage(event: dict[str, Any]) -> None:
    """Remove a usage, which `gateway.dialects.wire_usage` reads; LiteLLM needs one of Bedrock and Gemini."""
    for part in (event, event.get("message"), event.get("response")):
        if isinstance(part, dict):
            part.pop("usage", None)
    if "metrics" in event:
        event["usage"] = {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0}
    if "usageMetadata" in event:
        event["usageMetadata"] = {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}


def _whole(block: object) -> tuple[str | None, dict[str, Any] | None]:
    """The thinking of a block, and the delta that is left for its end; None for what comes in deltas."""
    if not isinstance(block, Mapping):
        return None, None
    if block.get("type") == "thinking":
        thinking, signature = (block.get(name) or None for name in ("thinking", "signature"))
        return thinking, None if signature is None else _delta("signature_delta", "signature", signature)
    if block.get("type") != "tool_use":
        return None, None
    written = block.get("input") or {}
    text = written if isinstance(written, str) else json.dumps(written)
    return None, _delta("input_json_delta", "partial_json", text)


def _delta(kind: str, name: str, value: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: value}}


def _repeats(delta: object, rest: Mapping[str, Any]) -> bool:
    """True if a delta brings what its block already had at the start."""
    return isinstance(delta, Mapping) and any(delta.get(name) for name in rest if name != "type")
