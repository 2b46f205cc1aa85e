"""Implicit quality signals, derived from a turn about its own response and the previous one.

`regenerates` and `edits` concern the previous turn (the same messages again; the last message rewritten), the others
this turn. They are stored as observed; training assigns their weights (train/log/reward.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.dialects.older_functions import calls_in, offered_functions
from gateway.dialects.request import ChatRequest
from gateway.routing.session import Answered, SessionMemory
from gateway.turn.stall import stall_signals
from gateway.unchecked import at, listed, mapping

KEPT_ARGUMENTS = 256 * 1024
"""Limit of collected tool arguments in characters; longer calls are not checked."""
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def implicit_signals(
    chat: ChatRequest, memory: SessionMemory, choices: Sequence[Mapping[str, Any]], finish_reason: str | None
) -> dict[str, bool]:
    """The observed signals, each True. `choices` may be malformed."""
    messages = [message for choice in choices if isinstance(message := choice.get("message"), Mapping)]
    calls = [call for message in messages for call in calls_in(message)]
    tools = _schemas(offered_functions(chat.params))
    signals = {
        "regenerates": regenerates(chat, memory),
        "edits": edits(chat, memory),
        "invalid_tool_json": any(not valid_call(call, tools) for call in calls),
        "truncated": finish_reason == "length",
        "refusal": finish_reason == "content_filter" or any(message.get("refusal") for message in messages),
    }
    seen = {name: True for name, value in signals.items() if value}
    return seen | dict.fromkeys(stall_signals(chat.messages), True)


def regenerates(chat: ChatRequest, memory: SessionMemory) -> bool:
    """True if the messages of the previous turn, which was answered, are sent again."""
    last = _same_length_turn(chat, memory)
    return last is not None and last.digest == chat.digests.whole


def edits(chat: ChatRequest, memory: SessionMemory) -> bool:
    """True if the user rewrote the message that the previous turn answered.

    Requires an earlier answered turn: two first messages in one session may be two questions.
    """
    last = _same_length_turn(chat, memory)
    if last is None or not chat.messages or chat.messages[-1].get("role") != "user":
        return False
    if last.digest == chat.digests.whole:
        return False
    return any(
        turn.messages < last.messages - 1 and turn.digest == chat.digests.of(turn.messages)
        for turn in memory.answered[:-1]
    )


def _same_length_turn(chat: ChatRequest, memory: SessionMemory) -> Answered | None:
    """The previous turn, if it was answered and this one has as many messages."""
    last = memory.answered[-1] if memory.answered else None
    if last is None or last.messages != len(chat.messages) or memory.last_request != last.digest:
        return None
    return last


def valid_call(call: object, tools: Mapping[str, Mapping[str, Any]]) -> bool:
    """True for a call of an offered tool with an object of arguments that matches its schema.

    Only the first level of the schema is checked: required names and plain types. Without `tools` any name is valid.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return isinstance(call, Mapping) and "custom" in call  # free-form tools have no schema
    arguments = _object(function.get("arguments"))
    if arguments is None:
        return False
    schema = tools.get(str(function.get("name")))
    if schema is None:
        return not tools
    required = [name for name in listed(schema.get("required")) if isinstance(name, str)]
    if any(name not in arguments for name in required):
        return False
    known = mapping(schema.get("properties"))
    return all(_has_type(value, known.get(name)) for name, value in arguments.items())


class StreamedAnswer:
    """Collects tool calls and refusals for the signals, and the first choice as returned."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._call_ids: dict[int, str] = {}
        self._calls: dict[tuple[int, int], dict[str, str]] = {}
        self._refused: set[int] = set()
        self._kept = 0

    def note(self, chunk: Mapping[str, Any]) -> None:
        """Collect from one chunk."""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta")
            if not isinstance(delta, Mapping):
                continue
            content = delta.get("content")
            if isinstance(content, str) and content and not _index(choice):
                self._said.append(content)
            if delta.get("refusal"):
                self._refused.add(_index(choice))
            for call in calls_in(delta):
                self._add(_index(choice), call)

    def choices(self) -> list[dict[str, Any]]:
        """Choices with a tool call or refusal, in the form of a complete response."""
        found: dict[int, dict[str, Any]] = {index: {"refusal": "refused"} for index in sorted(self._refused)}
        if self._kept <= KEPT_ARGUMENTS:
            for (index, _), function in sorted(self._calls.items()):
                found.setdefault(index, {}).setdefault("tool_calls", []).append({"function": function})
        return [{"message": message} for message in found.values()]

    def first_message(self) -> dict[str, Any]:
        """The first choice's text and the ids of its tool calls, as its message would have them."""
        return {"content": "".join(self._said), "tool_calls": [{"id": made} for made in self._call_ids.values()]}

    def _add(self, choice: int, call: object) -> None:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(call, Mapping) and not choice and isinstance(call.get("id"), str):
            self._call_ids.setdefault(_index(call), call["id"])
        if not isinstance(call, Mapping) or not isinstance(function, Mapping):
            return
        made = self._calls.setdefault((choice, _index(call)), {"name": "", "arguments": ""})
        for name in made:
            piece = function.get(name)
            if isinstance(piece, str) and self._kept <= KEPT_ARGUMENTS:
                made[name] += piece
                self._kept += len(piece)


def _schemas(functions: Sequence[object]) -> dict[str, Mapping[str, Any]]:
    """The parameters of each offered function, by name."""
    named = [function for function in functions if isinstance(at(function, "name"), str)]
    return {function["name"]: mapping(function.get("parameters")) for function in map(mapping, named)}


def _has_type(value: object, schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return True
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else [name for name in listed(wanted) if isinstance(name, str)]
    if not names or any(name not in _JSON_TYPES for name in names):
        return True
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return isinstance(value, tuple(kind for name in names for kind in _JSON_TYPES[name]))


def _object(arguments: object) -> dict[str, Any] | None:
    if not isinstance(arguments, str):
        return None
    try:
        read = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return None
    return read if isinstance(read, dict) else None


def _index(item: Mapping[str, Any]) -> int:
    index = item.get("index")
    return index if isinstance(index, int) else 0
