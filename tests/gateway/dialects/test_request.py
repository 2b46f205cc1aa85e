"""The chat dialect: what is malformed is refused by name before any money; what is well formed is understood."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import LimitSettings
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.errors import InvalidRequest

LIMITS = LimitSettings()
USER = {"role": "user", "content": "hello"}


def parsed(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "auto", "messages": [USER], **fields}).encode(), LIMITS)


def refused(body: bytes) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body, LIMITS)
    return caught.value.param


def test_a_plain_request_has_the_defaults_of_openai() -> None:
    chat = parsed()
    assert (chat.model, chat.stream, chat.n, chat.max_tokens, chat.include_usage) == ("auto", False, 1, None, False)
    assert chat.capabilities == frozenset()
    assert not chat.open_tool_loop
    assert chat.last_user_text == "hello"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "virus"}]}]}, "messages[0].content[0].type"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"n": 10**6}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 7}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": 3}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"stop": 4}, "stop"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_a_malformed_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    assert refused(json.dumps({"model": "auto", "messages": [USER], **fields}).encode()) == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": 1e400}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
    ],
    ids=range(11),
)
def test_a_body_that_is_no_sane_json_object_is_a_400(body: bytes) -> None:
    refused(body)


def test_the_request_says_what_it_needs_of_a_model() -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    chat = parsed(
        messages=[picture],
        tools=[{"type": "function", "function": {"name": "f"}}],
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    )
    assert chat.capabilities == {"vision", "tools", "response_schema"}
    assert chat.images == 1


def test_a_tool_result_at_the_end_is_an_open_loop() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}
    assert parsed(messages=[USER, call, {"role": "tool", "tool_call_id": "c", "content": "4"}]).open_tool_loop


@pytest.mark.parametrize(
    "name", ["api_base", "api_key", "mock_response", "fallbacks", "metadata", "extra_body", "num_retries"]
)
def test_provider_control_never_becomes_a_parameter(name: str) -> None:
    assert name not in parsed(**{name: {"x": 1}}).params


def test_the_opening_identifies_a_conversation_and_not_its_later_turns() -> None:
    system = {"role": "system", "content": "be brief"}
    first = parsed(messages=[system, USER])
    later = parsed(messages=[system, USER, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}])
    other = parsed(messages=[system, {"role": "user", "content": "something else"}])
    assert first.opening() == later.opening() != other.opening()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_json_value_in_any_place_is_understood_or_refused_but_never_a_crash(value: Any) -> None:
    for name in (
        "model", "messages", "tools", "stop", "n", "stream_options", "response_format", "metadata", "modalities",
    ):  # fmt: skip
        with contextlib.suppress(InvalidRequest):
            parsed(**{name: value})
