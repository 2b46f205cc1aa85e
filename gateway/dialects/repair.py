"""Repairs responses that nearly match OpenAI's format, so that usable content is not lost.

`repair_whole` and `StreamRepair.repair` modify their argument in place and leave valid parts unchanged. They never
invent content: only positions, names and types that follow from the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, TypeGuard

import orjson

from gateway.dialects.answer_parts import extended_id
from gateway.unchecked import at, listed, mapping

_NO_FINISH = ("", "null", "None")
"""Values that some servers send instead of a missing finish reason."""
_FINISHES: Mapping[str, tuple[str, ...]] = {
    "stop": ("complete", "completed", "end", "end_of_turn", "end_turn", "eos", "eos_token", "finished", "stop_sequence",
             "stop_token"),
    "length": ("error_limit", "length_limit", "max_completion_tokens", "max_length", "max_new_tokens",
               "max_output_tokens", "max_tokens", "model_context_window_exceeded", "model_length",
               "repetition_truncation", "token_limit"),
    "tool_calls": ("tool_call", "tool_use"),
    "content_filter": ("blocklist", "content_filtered", "error_toxic", "guardrail_intervened", "image_safety",
                       "model_armor", "prohibited_content", "recitation", "safety", "sensitive", "spii"),
    "function_call": (),
}  # fmt: skip
"""OpenAI's finish reasons, on which clients, learning and other dialects act, with other servers' words for them."""
FAILED_FINISH = "malformed_function_call"
_FAILED_FINISHES = frozenset(
    {
        FAILED_FINISH, "abort", "aborted", "canceled", "cancelled", "error", "failed", "insufficient_system_resource",
        "internal_error", "malformed_model_output", "malformed_response", "malformed_tool_use",
        "missing_thought_signature", "network_error", "server_error", "timeout", "too_many_tool_calls",
        "unexpected_tool_call", "user_cancel",
    }
)  # fmt: skip
"""Words for an answer that failed: it has no finish, and passed on it would be complete in other dialects."""
_OPENAI_FINISH = {word: name for name, words in _FINISHES.items() for word in (name, *words)}
_MAX_INDEX = 2**31 - 1
"""A higher number is no position, and clients read none beyond it."""

NewCallId = Callable[[], str]
"""Makes the id of a tool call without one."""


def finishes_in_openai_s_words() -> Iterator[tuple[str, str]]:
    """Each word for the end of an answer with OpenAI's, or with FAILED_FINISH."""
    for word, name in (*_OPENAI_FINISH.items(), *dict.fromkeys(_FAILED_FINISHES, FAILED_FINISH).items()):
        yield from ((word, name), (word.upper(), name))


def has_failed(choice: Mapping[str, Any]) -> bool:
    """True for a repaired choice with whose end its provider says that it failed."""
    return choice.get("finish_reason") is None and _spelt(choice.get("native_finish_reason")) in _FAILED_FINISHES


def unwrapped(body: Any) -> Any:
    """The response without what encloses it; a usage beside it is kept.

    It may be in a list, in an object such as `{"result": {...}}`, or JSON in a string.
    """
    if isinstance(body, str) and body.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            body = orjson.loads(body)
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if isinstance(body, dict) and "choices" not in body:
        for inner in body.values():
            if isinstance(inner, list) and len(inner) == 1:
                inner = inner[0]
            if isinstance(inner, dict) and "choices" in inner:
                return inner if inner.get("usage") or not body.get("usage") else inner | {"usage": body["usage"]}
    return body


def repair_whole(body: dict[str, Any], new_call_id: NewCallId, *, one_choice: bool = False) -> None:
    """Add the fields that clients read to a complete response; drop invalid choices.

    `one_choice`: one answer was asked for, so calls of tools in choices of their own belong to it.
    """
    _drop_empty_error(body)
    choices = body.get("choices")
    body["choices"] = kept = []
    for position, choice in enumerate(choices if isinstance(choices, list) else [choices]):
        if not isinstance(choice, dict):
            continue
        message = _message_of(choice, "message")
        if message is None:
            continue
        _set_index(choice, position)
        _find_finish(choice, message, body)
        message["role"] = "assistant"
        _repair_texts(message)
        _nest_notes(message)
        message.setdefault("content", None)
        calls = _repaired_calls(message)
        given: set[str] = set()
        for call in calls:
            call.pop("index", None)
            _complete_call(call, new_call_id)
            call["id"] = _unique(call["id"], given, new_call_id)
            if isinstance(function := call.get("function"), dict) and not function.get("arguments"):
                function["arguments"] = "{}"
        if choice.get("finish_reason") is None and not has_failed(choice):
            if all(value is None for name, value in message.items() if name != "role"):
                continue  # neither content nor a finish reason
            # The response is complete, so it finished; only the provider could know `length`.
            choice["finish_reason"] = "tool_calls" if calls else "stop"
        kept.append(choice)
    if one_choice and len(kept) > 1:
        _join_calls(kept, new_call_id)
    if len(kept) == 1:
        kept[0]["index"] = 0  # some count from 1


class StreamRepair:
    """Repairs the chunks of one stream."""

    def __init__(self, new_call_id: NewCallId, *, one_choice: bool = False) -> None:
        self._new_call_id = new_call_id
        self._one_choice = one_choice
        self._begun: set[int] = set()
        self._calls: dict[int, _CallNumbers] = {}

    def repair(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Repair `chunk` and return its choices."""
        if "error" in chunk:
            _drop_empty_error(chunk)
        choices = chunk.get("choices")
        if type(choices) is not list:
            choices = [choices] if isinstance(choices, dict) else []
            chunk["choices"] = choices
        for position, choice in enumerate(choices):
            if not self._is_plain(choice):
                chunk["choices"] = choices = [*self._repaired(choices, position, chunk)]
                break
        return choices

    def _is_plain(self, choice: Any) -> bool:
        """True for the common case: a piece of text in a choice that has started."""
        if type(choice) is not dict:
            return False
        delta, index, finish = choice.get("delta"), choice.get("index"), choice.get("finish_reason")
        if type(delta) is not dict or type(index) is not int or index not in self._begun:
            return False
        content = delta.get("content")
        return (
            (content is None or type(content) is str)
            and (finish is None or (type(finish) is str and finish in _FINISHES))
            and "finish_reason" in choice
            and "finish_reason" not in delta
            and "tool_calls" not in delta
            and "function_call" not in delta
        )

    def _repaired(self, choices: list[Any], start: int, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from choices[:start]
        for position, choice in enumerate(choices[start:], start):
            if not isinstance(choice, dict):
                continue
            delta = _message_of(choice, "delta")
            if delta is None:
                delta = choice["delta"] = {}
            if self._one_choice and len(choices) == 1:
                choice["index"] = 0  # some count from 1
            number = _set_index(choice, position)
            _find_finish(choice, delta, chunk)
            if number not in self._begun:
                self._begun.add(number)
                delta["role"] = "assistant"
            _repair_texts(delta)
            placed: set[int] = set()
            for call in _repaired_calls(delta):
                numbers = self._calls.setdefault(number, _CallNumbers())
                is_new = numbers.place(call, placed)
                placed.add(call["index"])
                if is_new:
                    _complete_call(call, self._new_call_id)
                    numbers.name(call, self._new_call_id)
                    if isinstance(function := call.get("function"), dict) and function.get("arguments") is None:
                        function["arguments"] = ""
                else:
                    numbers.shorten(call)
            yield choice


class _CallNumbers:
    """Assigns deltas to tool calls when a provider numbers them wrongly or not at all, or gives several one id."""

    def __init__(self) -> None:
        self._current: dict[int, tuple[str, int]] = {}
        self._by_id: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._given: set[str] = set()
        self._taken: set[int] = set()
        self._last = 0

    def place(self, call: dict[str, Any], placed: Set[int]) -> bool:
        """Number a call of a delta that has placed some already; True if it starts a new one."""
        index, call_id = _index_in(call), call.get("id")
        name = call_id if isinstance(call_id, str) else ""
        begins = bool(_function_name(call))
        if index is None:
            number = self._by_id.get(name)
            if number is None or (begins and number in placed):
                number = self._free if begins or name or not self._taken else self._last
        else:
            known = self._current.get(index)
            if known is None:
                # Some count their texts too, and clients need 0 first; an id may be only the function's name.
                number = self._free if begins else self._by_id.get(name, self._free)
            elif begins and name and known[0] and name != known[0]:
                number = self._by_id.get(name, self._free)  # one number for several calls, distinguished by their ids
            else:
                number = known[1]
            self._current[index] = (name or (known[0] if known is not None else ""), number)
        is_new = number not in self._taken
        self._taken.add(number)
        self._last = call["index"] = number
        if name:
            self._by_id[name] = number
        return is_new

    @property
    def _free(self) -> int:
        return max(self._taken, default=-1) + 1

    def name(self, call: dict[str, Any], new_call_id: NewCallId) -> None:
        """Record the id of a new call, and give it another one if it has that of an earlier call."""
        self._by_id[call["id"]] = call["index"]
        self._ids[call["index"]] = call["id"]
        self._names[call["index"]] = _function_name(call)
        call["id"] = _unique(call["id"], self._given, new_call_id)

    def shorten(self, call: dict[str, Any]) -> None:
        """Remove what repeats the start of a call: clients append each piece to what they have."""
        if "id" in call and str(call["id"] or "") == self._ids.get(call["index"]):
            del call["id"]
        function = call.get("function") or call.get("custom")
        if isinstance(function, dict) and function.get("name") == self._names.get(call["index"]):
            function.pop("name", None)


def _nest_notes(message: dict[str, Any]) -> None:
    """Write citations in the form of /v1/responses, as LiteLLM passes them on, in that of chat."""
    for note in listed(message.get("annotations")):
        kind = at(note, "type")
        if kind == "url_citation" and kind not in note and "url" in note:
            note[kind] = {name: note.pop(name) for name in tuple(note) if name != "type"}


def _drop_empty_error(body: dict[str, Any]) -> None:
    """Remove an error that says nothing: OpenAI's SDK for Node takes an empty object for one."""
    if not body.get("error"):
        body.pop("error", None)


def _join_calls(choices: list[dict[str, Any]], new_call_id: NewCallId) -> None:
    """Make one choice of one with a text, or none, and others with nothing but calls of tools."""
    said = [choice for choice in choices if choice["message"]["content"] or not choice["message"].get("tool_calls")]
    if len(said) > 1:
        return  # other answers
    (kept,) = said or choices[:1]
    calls = [call for choice in choices for call in choice["message"].get("tool_calls") or ()]
    given: set[str] = set()
    for call in calls:
        call["id"] = _unique(call["id"], given, new_call_id)
    kept["message"]["tool_calls"] = calls
    kept["finish_reason"] = "tool_calls"
    choices[:] = [kept]


def _message_of(choice: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A choice's message, moved to the field that clients read."""
    message = choice.get(name)
    if not isinstance(message, dict):
        other = choice.get("delta" if name == "message" else "message")
        text = next((said for said in (message, other, choice.get("text")) if isinstance(said, str)), None)
        if isinstance(other, dict):
            message = other
        elif isinstance(text, str):
            message = {"content": text}
        elif name == "message" and _is_finish(choice.get("finish_reason")):
            message = {}  # a filtered response
        else:
            message = None
    for alias in ("delta", "message", "text"):
        choice.pop(alias, None)
    if message is not None:
        choice[name] = message
    return message


def _set_index(choice: dict[str, Any], position: int) -> int:
    index = _index_in(choice)
    index = choice["index"] = position if index is None else index
    return index


def _index_in(numbered: Mapping[str, Any]) -> int | None:
    """The number of a choice or a tool call; some write it as 1.0."""
    value = numbered.get("index")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_INDEX:
        return None
    return int(value) if value == int(value) else None


def _find_finish(choice: dict[str, Any], part: dict[str, Any], body: Mapping[str, Any]) -> None:
    """Give a choice its finish reason as a text, wherever it stands; None while it has none."""
    places = [choice.get("finish_reason"), part.pop("finish_reason", None), choice.get("finishReason")]
    if "finish_reason" not in choice:
        places += [choice.get("stop_reason"), body.get("finish_reason")]  # vLLM has both, and means something else
    for reason in places:
        if isinstance(reason, list) and len(reason) == 1:
            reason = reason[0]
        if _is_finish(reason):
            if _spelt(reason) in _FAILED_FINISHES:
                choice["native_finish_reason"] = reason
                break
            name = choice["finish_reason"] = _OPENAI_FINISH.get(_spelt(reason), reason)
            if name != reason:
                choice.setdefault("native_finish_reason", reason)
            return
        if reason and isinstance(reason, int):
            choice["finish_reason"] = "stop"
            return
    choice["finish_reason"] = None


def _spelt(reason: object) -> str:
    return reason.lower().replace("-", "_") if isinstance(reason, str) else ""


def _is_finish(reason: object) -> TypeGuard[str]:
    return isinstance(reason, str) and reason not in _NO_FINISH


def _repair_texts(message: dict[str, Any]) -> None:
    """Join a content of text parts into one text."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    if isinstance(content, bool):
        message["content"] = None
        return
    if isinstance(content, list) and all(isinstance(part, dict | str) for part in content):
        _join_parts(message, content)
    elif isinstance(content, dict) and isinstance(content.get("text"), str):
        message["content"] = content["text"]
    else:
        message["content"] = orjson.dumps(content).decode()


def _join_parts(message: dict[str, Any], parts: list[Any]) -> None:
    texts: list[str] = []
    thoughts: list[str] = []
    pictures, others = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part.get("refusal"), str):
            message.setdefault("refusal", part["refusal"])
        elif part.get("type") in ("thinking", "reasoning", "reasoning_content"):
            thoughts += _texts_in(part)
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image_url":
            pictures.append(part)
        else:
            others.append(part)
    if others and not texts:
        return  # parts of other kinds stay unchanged
    if others:
        fields = message.get("provider_specific_fields")
        message["provider_specific_fields"] = {**mapping(fields), "content": others}
    message["content"] = "".join(texts)
    if thoughts and not message.get("reasoning_content"):
        message["reasoning_content"] = "".join(thoughts)
    if pictures:
        message.setdefault("images", pictures)


def _texts_in(value: Any) -> Iterator[str]:
    """All texts of a thinking part, in any of its fields: `{"thinking": "..."}`, `{"summary": [{"text": "..."}]}`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, dict):
        for name in ("thinking", "text", "reasoning", "content", "summary"):
            if name in value:
                yield from _texts_in(value[name])
                return


def _repaired_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message, each a function with arguments as text."""
    legacy = message.get("function_call")
    if isinstance(legacy, dict):
        _write_arguments(legacy)
    if "tool_calls" not in message:
        return []
    made = message["tool_calls"]
    calls = [call for call in (made if isinstance(made, list) else [made]) if isinstance(call, dict)]
    if not calls:
        del message["tool_calls"]
        return []
    for call in calls:
        _repair_call(call)
    message["tool_calls"] = calls
    return calls


def _repair_call(call: dict[str, Any]) -> None:
    function = call.get("function")
    if isinstance(call.get("custom"), dict):
        return
    if not isinstance(function, dict):
        named = {"name": function} if isinstance(function, str) else {}
        moved = {name: call.pop(name) for name in ("name", "arguments") if name in call}
        function = call["function"] = named | moved
    _write_arguments(function)


def _write_arguments(function: dict[str, Any]) -> None:
    arguments = function.get("arguments", "")
    if arguments is not None and not isinstance(arguments, str):
        function["arguments"] = orjson.dumps(arguments).decode()


def _function_name(call: dict[str, Any]) -> str:
    name = at(call.get("function") or call.get("custom"), "name")
    return name if isinstance(name, str) else ""


def _unique(call_id: str, given: set[str], new_call_id: NewCallId) -> str:
    """The id, extended if an earlier call of the answer has it: clients match results by ids."""
    if call_id in given:
        call_id = extended_id(call_id, new_call_id().rpartition("_")[2], len(given))
    given.add(call_id)
    return call_id


def _complete_call(call: dict[str, Any], new_call_id: NewCallId) -> None:
    call_id = call.get("id")
    if isinstance(call_id, int) and not isinstance(call_id, bool):
        call["id"] = str(call_id)
    elif not isinstance(call_id, str) or not call_id:
        call["id"] = new_call_id()
    if not isinstance(call.get("type"), str) or not call["type"]:
        call["type"] = "custom" if isinstance(call.get("custom"), dict) else "function"
