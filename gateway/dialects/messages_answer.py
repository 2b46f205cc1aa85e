"""Responses of `POST /v1/messages`: Anthropic's messages, events and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.catalog.usage import Usage
from gateway.dialects import sealed_state
from gateway.dialects.answer_parts import AnswerPart, AnswerParts, PartEvent, first_choice, whole_parts
from gateway.dialects.citations import as_claude_s
from gateway.dialects.dialect import Billed, StreamRenderer
from gateway.dialects.sse import billed_frame, event_frame
from gateway.errors import GatewayError, http_status

_STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use",
    "content_filter": "refusal",
}  # fmt: skip
_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


def message_id(decision_id: str) -> str:
    """The response id of a decision."""
    return "msg_" + decision_id.removeprefix("dec_")


def whole_message(
    body: Mapping[str, Any], decision_id: str, model: str, usage: Usage, stop_sequences: Sequence[str]
) -> dict[str, Any]:
    """A complete chat response as Anthropic's message."""
    parts = whole_parts(body, decision_id.removeprefix("dec_"))
    choice = next(iter(first_choice(body)), {})
    reason, sequence = stop_reason(choice.get("finish_reason"), choice.get("stop_reason"), parts, stop_sequences)
    return _envelope(decision_id, model) | {
        "content": [_finished_block(part) for part in parts],
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_object(usage),
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage object, in which `input_tokens` excludes cache reads and writes."""
    fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    return {
        "input_tokens": max(0, fresh),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def stop_reason(
    finish_reason: object, matched: object, parts: Sequence[AnswerPart], stop_sequences: Sequence[str]
) -> tuple[str, str | None]:
    """Anthropic's stop reason and stop sequence; `matched` is the string that vLLM reports."""
    if isinstance(matched, str) and matched in stop_sequences:
        return "stop_sequence", matched
    reason = _STOP_REASONS.get(str(finish_reason), "end_turn")
    # Some servers send "stop" after a tool call; clients run the tool only after "tool_use".
    if reason == "end_turn" and any(part.kind == "tool" for part in parts):
        reason = "tool_use"
    return reason, None


def error_body(error: GatewayError) -> dict[str, Any]:
    """Anthropic's error object. Claude Code compacts its context on "prompt is too long"."""
    status = http_status(error)
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    too_long = error.code == "context_length_exceeded"
    message = f"prompt is too long: {error.message}" if too_long else error.message
    fields = {"type": kind, "message": message, "code": error.code, "param": error.param}
    return {"type": "error", "error": fields | error.details}


class MessagesStream(StreamRenderer):
    """Chat chunks to Anthropic's events. `prompt_tokens` is our estimate for the first event."""

    def __init__(self, decision_id: str, model: str, prompt_tokens: int, stop_sequences: Sequence[str]) -> None:
        self._decision_id = decision_id
        self._model = model
        self._stop_sequences = stop_sequences
        self._prompt_tokens = prompt_tokens
        self._parts = AnswerParts(decision_id.removeprefix("dec_"))
        self._finish: object = None
        self._matched: object = None
        self._started = False
        self._last: bytes | None = None

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        frames = [] if self._started else [self._start()]
        self._parts.listed(chunk)
        for choice in first_choice(chunk):
            self._finish = choice.get("finish_reason") or self._finish
            self._matched = choice.get("stop_reason") or self._matched
            delta = choice.get("delta")
            if isinstance(delta, Mapping) and delta:
                frames += [_part_frames(event) for event in self._parts.feed(delta)]
        return b"".join(frames)

    def end(self, billed: Billed, error: GatewayError | None) -> bytes:
        if error is not None:
            return billed_frame(billed.report, event_frame("error", error_body(error)))
        if self._last is None:
            start = [] if self._started else [self._start()]
            self._last = b"".join([*start, *(_part_frames(event) for event in self._parts.finish())])
        reason, sequence = stop_reason(self._finish, self._matched, self._parts.parts, self._stop_sequences)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": billed.told_in(usage_object(billed.usage)),
            "seqroute": billed.report,
        }
        return b"".join(
            [
                self._last,
                event_frame("message_delta", delta),
                billed_frame(billed.report, event_frame("message_stop", {"type": "message_stop"})),
            ]
        )

    def _start(self) -> bytes:
        self._started = True
        message = _envelope(self._decision_id, self._model) | {
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Usage(self._prompt_tokens, 0)),
        }
        return event_frame("message_start", {"type": "message_start", "message": message})


def _envelope(decision_id: str, model: str) -> dict[str, Any]:
    return {"id": message_id(decision_id), "type": "message", "role": "assistant", "model": model}


def _part_frames(event: PartEvent) -> bytes:
    step, part, piece = event
    if step == "grow":
        return _delta(part, _GROWTH[part.kind](piece))
    if step == "open":
        start = {"type": "content_block_start", "index": part.index, "content_block": _opened_block(part)}
        return event_frame("content_block_start", start)
    signature = _signature(part) if part.kind == "reasoning" else ""
    signed = _delta(part, {"type": "signature_delta", "signature": signature}) if signature else b""
    cited = b"".join(_delta(part, {"type": "citations_delta", "citation": each}) for each in _citations(part))
    return signed + cited + event_frame("content_block_stop", {"type": "content_block_stop", "index": part.index})


_GROWTH: Mapping[str, Any] = {
    "text": lambda piece: {"type": "text_delta", "text": piece},
    "refusal": lambda piece: {"type": "text_delta", "text": piece},
    "reasoning": lambda piece: {"type": "thinking_delta", "thinking": piece},
    "tool": lambda piece: {"type": "input_json_delta", "partial_json": piece},
}


def _delta(part: AnswerPart, delta: Mapping[str, Any]) -> bytes:
    return event_frame("content_block_delta", {"type": "content_block_delta", "index": part.index, "delta": delta})


def _opened_block(part: AnswerPart) -> dict[str, Any]:
    """A block without its content, for its first event."""
    if part.kind == "tool":
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return _state_block(part) if part.kind == "state" else {"type": "text", "text": ""}


def _finished_block(part: AnswerPart) -> dict[str, Any]:
    if part.kind == "tool":
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.text)}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": _signature(part)}
    if part.kind == "state":
        return _state_block(part)
    cited = _citations(part)
    return {"type": "text", "text": part.text} | ({"citations": cited} if cited else {})


def _citations(part: AnswerPart) -> list[dict[str, Any]]:
    return [found for note in part.notes if (found := as_claude_s(note)) is not None]


def _signature(part: AnswerPart) -> str:
    return part.signature or sealed_state.seal(part.state)


def _state_block(part: AnswerPart) -> dict[str, Any]:
    """Anthropic's redacted thinking unchanged, or another provider's state in its place."""
    blocks = part.state.get("thinking_blocks")
    data = blocks[0].get("data") if isinstance(blocks, list) and len(part.state) == 1 else None
    return {"type": "redacted_thinking", "data": data if isinstance(data, str) else sealed_state.seal(part.state)}


def _input(arguments: str) -> dict[str, Any]:
    """Tool arguments as an object, as Anthropic's clients expect; invalid JSON stays visible."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return {"_invalid_json": arguments}
    return found if isinstance(found, dict) else {"value": found}
