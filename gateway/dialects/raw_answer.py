"""Facts that LiteLLM's translation leaves out, read from an answer as it was received.

The answer is parsed, and facts are read where only the provider writes: a model writes JSON too, as the arguments of
its tool calls. The body may be the tail of a stream, whose first line may have lost its beginning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.catalog.usage import counts_by_modality
from gateway.dialects.amazon_frames import last_exception
from gateway.dialects.sse import EventReader

_ERROR, _BLOCKED = b'"error"', b'"blockReason"'
_FINISH = b'"finishReason"'
_USAGE = b'"usageMetadata"'
_BY_MODEL = frozenset({"args", "arguments", "input", "parameters"})
"""What a model wrote in a tool call, in every dialect that has it as JSON."""
_OLLAMA_COUNTS = {"prompt_eval_count": "prompt_tokens", "eval_count": "completion_tokens"}
_USAGE_NAMES = (b'"usage', b'"meta"', b"eval_count", b"_token_count")


def gemini_cached_audio(raw: bytes | bytearray) -> int:
    """The cached audio tokens of the last `usageMetadata` of Gemini's answer or stream."""
    if b'"cacheTokensDetails"' not in raw:
        return 0
    for event in _events(raw, _USAGE):
        usage = event.get("usageMetadata")
        if isinstance(usage, Mapping):
            details = usage.get("cacheTokensDetails")
            with contextlib.suppress(ValueError):
                return counts_by_modality(details).get("audio_tokens", 0) if isinstance(details, list) else 0
            return 0
    return 0


def ollama_report(raw: bytes | bytearray) -> dict[str, int] | None:
    """The counts of Ollama's answer, or of a stream's last line; None without any.

    It leaves out a count of zero: that of a prompt which it had in its cache. LiteLLM puts its own count there, and
    drops both of a stream.
    """
    for line in reversed(bytes(raw).splitlines() or [b""]):
        if b'eval_count"' not in line:
            continue
        try:
            answer = orjson.loads(line)
        except ValueError:
            try:
                answer = orjson.loads(raw)
            except ValueError:
                return None
        if isinstance(answer, dict):
            counts = {theirs: answer.get(ours) for ours, theirs in _OLLAMA_COUNTS.items()}
            return {name: count for name, count in counts.items() if isinstance(count, int) and count} or None
    return None


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
        feedback = event.get("promptFeedback")
        if isinstance(feedback, Mapping) and feedback.get("blockReason"):
            return True
    if _FINISH not in tail:
        return False
    for event in _events(tail, _FINISH):
        candidates = event.get("candidates")
        for each in candidates if isinstance(candidates, list) else ():
            if isinstance(each, Mapping) and each.get("finishReason"):
                return True
    first, line_end, _ = bytes(tail).partition(b"\n")
    return bool(line_end) and _FINISH in first and not first.startswith(b"data:")


def mentions_usage(answer: bytes | bytearray) -> bool:
    """True if a complete answer in any dialect has a usage, outside of what its model wrote."""
    if not any(name in answer for name in _USAGE_NAMES):
        return False
    try:
        waiting = [orjson.loads(answer)]
    except ValueError:
        return True
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += [each for each in value if isinstance(each, dict | list)]
        elif isinstance(value, dict):
            if any(inner not in (None, {}) and _is_usage_name(name) for name, inner in value.items()):
                return True
            waiting += [
                inner for name, inner in value.items() if isinstance(inner, dict | list) and name not in _BY_MODEL
            ]
    return False


def _is_usage_name(name: str) -> bool:
    return name.startswith("usage") or name == "meta" or "eval_count" in name or "_token_count" in name


def _events(raw: bytes | bytearray, mark: bytes) -> Iterator[Mapping[str, Any]]:
    """The objects of an answer, the last first: the whole body, or the events that have `mark`."""
    with contextlib.suppress(ValueError):
        value = orjson.loads(raw)
        yield from (each for each in reversed(value if isinstance(value, list) else [value]) if isinstance(each, dict))
        return
    for line in reversed(bytes(raw).splitlines()):
        if line.startswith((b"data:", b"{")) and mark in line:
            with contextlib.suppress(ValueError):
                event = orjson.loads(line.removeprefix(b"data:"))
                if isinstance(event, dict):
                    yield event
