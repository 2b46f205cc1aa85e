"""What a turn says of itself and of the one before, without anybody sending a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.routing.session import SessionMemory
from gateway.turn.signals import KEPT_ARGUMENTS, StreamedAnswer, implicit_signals
from tests.harness.models import chat, remember

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "at": {"type": ["string", "null"]}},
            "required": ["city"],
        },
    },
}


def call(arguments: object, name: str = "weather") -> dict[str, Any]:
    return {"message": {"tool_calls": [{"id": "c", "function": {"name": name, "arguments": arguments}}]}}


def signals(*choices: Any, finish: Any = "stop", **fields: Any) -> dict[str, bool]:
    return implicit_signals(chat(**fields), SessionMemory(), choices, finish)


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation that begins with the user and alternates."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def after(*turns: Sequence[dict[str, str]], failed: bool = False) -> SessionMemory:
    """The memory after these turns; `failed` is the last one's."""
    memory = SessionMemory()
    for number, messages in enumerate(turns, 1):
        memory = remember(
            memory, model="m", messages=messages, prompt_tokens=1, output_tokens=1,
            failed=failed and number == len(turns), regenerated=False, tool_error=False, at_ms=number,
        )  # fmt: skip
    return memory


def next_turn(memory: SessionMemory, messages: Sequence[dict[str, str]]) -> dict[str, bool]:
    return implicit_signals(chat(list(messages)), memory, [], "stop")


def test_an_ordinary_answer_signals_nothing() -> None:
    assert signals({"message": {"content": "hi"}}) == {}
    assert signals(call('{"city": "Berlin"}'), finish="tool_calls") == {}
    assert signals(call("")) == {}


@pytest.mark.parametrize("arguments", ['{"city": ', "[1]", '"x"', "NaN", None, {"city": "Berlin"}, 5])
def test_tool_arguments_that_are_no_json_object_are_a_signal(arguments: object) -> None:
    assert signals(call(arguments)) == {"invalid_tool_json": True}


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ('{"city": "Berlin"}', True),
        ('{"city": "Berlin", "days": 2, "at": null, "more": [1]}', True),
        ('{"city": "Berlin", "days": 2.0}', True),
        ("{}", False),
        ('{"city": 5}', False),
        ('{"city": "Berlin", "days": true}', False),
        ('{"city": "Berlin", "days": 2.5}', False),
        ('{"city": "Berlin", "at": 7}', False),
    ],
)
def test_arguments_are_held_against_the_schema_of_the_tool(arguments: str, valid: bool) -> None:
    assert signals(call(arguments), tools=[WEATHER]) == ({} if valid else {"invalid_tool_json": True})


def test_a_tool_that_nobody_offered_is_a_signal_and_a_schema_that_is_none_judges_nothing() -> None:
    assert signals(call("{}", "fly"), tools=[WEATHER]) == {"invalid_tool_json": True}
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"properties": 5, "required": "x"}}}
    assert signals(call('{"a": 1}', "odd"), tools=[odd]) == {}


@pytest.mark.parametrize(("arguments", "valid"), [('{"city": "Rome"}', True), ('{"days": 2}', False), ("no", False)])
def test_a_call_of_the_older_functions_is_judged_like_one_of_a_tool(arguments: str, valid: bool) -> None:
    called = {"name": "weather", "arguments": arguments}
    expected = {} if valid else {"invalid_tool_json": True}
    functions = [WEATHER["function"]]
    assert signals({"message": {"function_call": called}}, functions=functions) == expected
    answer = StreamedAnswer()
    for piece in ({"name": "weather", "arguments": ""}, {"arguments": arguments[:3]}, {"arguments": arguments[3:]}):
        answer.note({"choices": [{"index": 0, "delta": {"function_call": piece}}]})
    assert signals(*answer.choices(), functions=functions) == expected


def test_truncation_and_refusal_are_signals() -> None:
    assert signals(finish="length") == {"truncated": True}
    assert signals(finish="content_filter") == {"refusal": True}
    assert signals({"message": {"refusal": "no"}}) == {"refusal": True}


def test_the_same_messages_again_are_a_regeneration() -> None:
    asked = said("hello")
    assert next_turn(after(asked), asked) == {"regenerates": True}
    assert next_turn(after(asked), said("another")) == {}
    assert next_turn(after(asked, said("hello", "hi", "more")), asked) == {}


def test_a_failed_turn_sent_again_is_a_retry_and_says_nothing_of_an_answer() -> None:
    asked = said("hello")
    assert next_turn(after(asked, failed=True), asked) == {}


def test_a_rewritten_last_message_in_the_same_conversation_is_an_edit() -> None:
    first, second = said("hello"), said("hello", "hi", "where is it?")
    memory = after(first, second)
    assert next_turn(memory, said("hello", "hi", "where is the station?")) == {"edits": True}
    assert next_turn(memory, said("hello", "hi", "where is it?", "there", "thanks")) == {}
    assert next_turn(memory, said("goodbye", "hi", "where is the station?")) == {}


def test_two_first_messages_may_be_two_questions() -> None:
    assert next_turn(after(said("hello")), said("what is 2 + 2?")) == {}


def test_a_streamed_tool_call_is_judged_as_a_whole_one() -> None:
    heard = StreamedAnswer()
    for piece in ({"name": "weather", "arguments": '{"ci'}, {"arguments": 'ty": "Berlin"}'}):
        heard.note({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": piece}]}}]})
    assert signals(*heard.choices(), tools=[WEATHER]) == {}
    heard.note({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "function": {"name": "weather"}}]}}]})
    assert signals(*heard.choices(), tools=[WEATHER]) == {"invalid_tool_json": True}


def test_a_streamed_refusal_is_a_signal_and_text_is_not_gathered() -> None:
    heard = StreamedAnswer()
    heard.note({"choices": [{"index": 0, "delta": {"content": "hello"}}, {"index": 1, "delta": None}]})
    assert heard.choices() == []
    heard.note({"choices": [{"index": 0, "delta": {"refusal": "I cannot"}}]})
    assert signals(*heard.choices()) == {"refusal": True}


def test_a_streamed_call_beyond_the_limit_is_not_judged() -> None:
    heard = StreamedAnswer()
    for _ in range(3):
        function = {"arguments": "x" * (KEPT_ARGUMENTS // 2)}
        heard.note({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": function}]}}]})
    assert heard.choices() == []
