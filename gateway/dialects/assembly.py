"""Conversion between complete responses and chunks, for providers that sent the other form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_LISTS = ("reasoning_details", "annotations", "images")


class Assembly:
    """Assembles the repaired chunks of one stream."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add a chunk."""
        self._head |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            made = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant", "content": None}})
            _add_delta(made["message"], choice.get("delta") or {})
            _add_logprobs(made, choice.get("logprobs"))
            rest = {name: value for name, value in choice.items() if name not in ("index", "delta", "logprobs")}
            made |= {name: value for name, value in rest.items() if value is not None}

    def body(self) -> dict[str, Any]:
        """The complete response."""
        choices = [choice for _, choice in sorted(self._choices.items())]
        for choice in choices:
            for call in choice["message"].get("tool_calls", ()):
                call.pop("index", None)
        return {**self._head, "object": "chat.completion", "choices": choices}


def chunks_of(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A repaired complete response as the chunks of a stream."""
    head = {name: value for name, value in body.items() if name not in ("choices", "object")}
    for choice in body["choices"]:
        index, message = choice["index"], dict(choice["message"])
        calls = message.get("tool_calls")
        if calls:
            message["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        rest = {name: value for name, value in choice.items() if name not in ("index", "message", "finish_reason")}
        yield _chunk(head, {"index": index, "delta": message, "finish_reason": None, **rest})
        yield _chunk(head, {"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})


def _chunk(head: Mapping[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        if value is None or name == "role":
            continue
        if name in _TEXTS and isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif name in _LISTS and isinstance(value, list):
            message[name] = [*message.get(name, ()), *value]
        elif name == "tool_calls" and isinstance(value, list):
            for call in value:
                _add_call(message, call)
        elif name in ("function_call", "audio") and isinstance(value, Mapping):
            _add_strings(message.setdefault(name, {}), value, ("arguments", "name", "data", "transcript"))
        else:
            message[name] = value


def _add_call(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    calls = message.setdefault("tool_calls", [])
    call = next((call for call in calls if call["index"] == delta["index"]), None)
    if call is None:
        call = {"index": delta["index"]}
        calls.append(call)
    for name, value in delta.items():
        if name in ("function", "custom") and isinstance(value, Mapping):
            _add_strings(call.setdefault(name, {}), value, ("name", "arguments", "input"))
        elif value is not None:
            call[name] = value


def _add_strings(made: dict[str, Any], piece: Mapping[str, Any], joined: tuple[str, ...]) -> None:
    for name, value in piece.items():
        if name in joined and isinstance(value, str):
            before = made.get(name, "")
            # Some providers repeat the whole name with every piece of the arguments.
            made[name] = before if name == "name" and before == value else before + value
        elif value is not None:
            made[name] = value


def _add_logprobs(choice: dict[str, Any], logprobs: object) -> None:
    if not isinstance(logprobs, Mapping):
        return
    made = choice.setdefault("logprobs", {})
    for name, value in logprobs.items():
        made[name] = [*(made.get(name) or ()), *value] if isinstance(value, list) else made.get(name, value)
