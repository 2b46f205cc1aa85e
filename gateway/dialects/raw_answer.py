"""Facts that LiteLLM's translation leaves out, read from an answer as it was received.

The answer is parsed, and facts are read where only the provider writes: a model writes JSON too, as the arguments of
its tool calls. The body may be the tail of a stream, whose first line may have lost its beginning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.dialects.amazon_frames import last_exception
from gateway.dialects.loose_json import read_json
from gateway.dialects.sse import EventReader
from gateway.unchecked import at, listed, objects_in

_ERROR, _BLOCKED = b'"error"', b'"blockReason"'
_FINISH = b'"finishReason"'
_FAILED = "response.failed"
"""The last event of OpenAI's Responses when they fail; the error is within the response."""


def last_error(tail: bytes | bytearray) -> dict[str, Any] | None:
    """The last event, line or frame of a stream that reports an error; None without one.

    What an event named `error` says is one, whatever its form and whichever of its lines comes first.
    """
    thrown = last_exception(tail)
    if thrown is not None:
        return {"error": thrown}
    reader = EventReader(max_event_bytes=len(tail) + 1)
    for event in reversed([*reader.feed(bytes(tail)), *reader.finish()]):
        named = event.name == b"error"
        for value in _values(event.data) if named or _ERROR in event.data else ():
            if at(value, "type") == _FAILED:
                error = at(value, "response", "error") or {"message": "the response failed"}
                return {"type": "error", "error": error}
            reports = isinstance(value, dict) and (value.get("error") or value.get("type") == "error")
            if reports or named:
                return dict(value) if reports else {"error": value}
    return None


def _values(data: bytes) -> list[Any]:
    """The JSON values of an event, or of its lines from the last; without any its text."""
    found = []
    for text in (data, *reversed(data.split(b"\n"))):
        with contextlib.suppress(ValueError):
            found.append(orjson.loads(text))
    return found or [data.decode("utf-8", "replace")]


def gemini_finished(tail: bytes | bytearray) -> bool:
    """True if Gemini's stream has a finish reason, or its prompt was blocked.

    Of an event that lost its beginning the end is searched: a picture may be larger than the kept tail.
    """
    for event in _events(tail, _BLOCKED) if _BLOCKED in tail else ():
        if at(event, "promptFeedback", "blockReason"):
            return True
    if _FINISH not in tail:
        return False
    for event in _events(tail, _FINISH):
        if any(each.get("finishReason") for each in objects_in(event.get("candidates"))):
            return True
    first, line_end, _ = bytes(tail).partition(b"\n")
    return bool(line_end) and _FINISH in first and not first.startswith(b"data:")


def _events(raw: bytes | bytearray, mark: bytes) -> Iterator[Mapping[str, Any]]:
    """The objects of an answer, the last first: the whole body, or the events that have `mark`."""
    with contextlib.suppress(ValueError):
        value = read_json(raw)
        yield from (each for each in reversed(value if isinstance(value, list) else [value]) if isinstance(each, dict))
        return
    for line in reversed(bytes(raw).splitlines()):
        if line.startswith((b"data:", b"{")) and mark in line:
            with contextlib.suppress(ValueError):
                event = read_json(line.removeprefix(b"data:"))
                if isinstance(event, dict):
                    yield event


def stopped_text(raw: bytes | bytearray) -> str | None:
    """The text of Gemini's whole answer that its filter stopped; None without one."""
    for answer in _events(raw, _FINISH):
        first = next(iter(listed(answer.get("candidates"))), None)
        parts = objects_in(at(first, "content", "parts"))
        return "".join(str(part.get("text") or "") for part in parts if not part.get("thought")) or None
    return None


def cohere_end(data: bytes | bytearray) -> tuple[str, str] | None:
    """Return the end of an answer in Cohere's form and its plan; None for other forms.

    LiteLLM leaves both out.
    """
    if b'"finish_reason"' not in data or b'"choices"' in data:
        return None
    body = _read(data)
    reason, message = at(body, "finish_reason"), at(body, "message")
    if not isinstance(reason, str) or not isinstance(message, dict):
        return None
    plan = message.get("tool_plan")
    return reason, plan if isinstance(plan, str) else ""


def refused_text(data: bytes | bytearray) -> str:
    """The words with which a Responses answer refuses, which LiteLLM leaves out."""
    if b'"refusal"' not in data:
        return ""
    parts = [part for item in objects_in(at(_read(data), "output")) for part in objects_in(item.get("content"))]
    return "".join(str(part.get("refusal") or "") for part in parts)


def _read(data: bytes | bytearray) -> Any:
    """The value of a whole answer; None for one that is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
