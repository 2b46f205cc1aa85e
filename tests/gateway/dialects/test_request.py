"""The chat dialect: what is malformed is refused by name before any money; what is well formed is understood."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.tokens import IMAGE, TokenCounter
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
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 129}, "tools"),
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


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SIGNED = {"google": {"thought_signature": "S"}}


@pytest.mark.parametrize(
    "answer",
    [
        {"content": None, "tool_calls": [CALL]},
        {"content": None, "reasoning_content": "t"},
        {"audio": {"id": "a1"}},
        {"content": None, "reasoning_details": [{"type": "reasoning.text", "text": "t"}]},
        {"content": "x", "annotations": [], "refusal": None, "tool_calls": None, "audio": None, "function_call": None},
        {"content": [{"type": "thinking", "thinking": "t", "signature": "S"}, {"type": "text", "text": "x"}]},
        {"content": "x", "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
    ],
)
def test_an_answer_that_was_handed_out_is_taken_back(answer: dict[str, Any]) -> None:
    chat = parsed(messages=[USER, {"role": "assistant", **answer}, USER])
    assert chat.messages[1] == {"role": "assistant", **answer}
    assert chat.dropped == ()


@pytest.mark.parametrize("answer", [{}, {"content": None}, {"content": None, "tool_calls": []}, {"refusal": None}])
def test_an_answer_of_nothing_is_taken_back_as_an_empty_text(answer: dict[str, Any]) -> None:
    chat = parsed(messages=[USER, {"role": "assistant", **answer}, USER])
    assert chat.messages[1]["content"] == ""


def test_what_says_how_to_use_tools_is_named_where_there_are_none() -> None:
    chat = parsed(messages=[USER], tool_choice="none", parallel_tool_calls=True, tools=[])
    assert chat.dropped == ("tool_choice", "parallel_tool_calls")
    assert chat.params.keys().isdisjoint(chat.dropped)


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_an_empty_list_of_tools_is_none(name: str) -> None:
    """Claude, OpenAI and others refuse it."""
    chat = parsed(messages=[USER], function_call="auto", **{name: []})
    assert (dict(chat.params), chat.dropped) == ({}, ("function_call",))
    assert "tools" not in chat.capabilities


@pytest.mark.parametrize(
    ("answer", "bound"),
    [
        ({"content": "x"}, False),
        ({"content": "x", "reasoning_content": "t", "annotations": [], "reasoning_details": []}, False),
        ({"content": "x", "reasoning_details": [{"type": "reasoning.encrypted", "data": "E"}]}, True),
        ({"content": "x", "thinking_blocks": [{"type": "thinking", "signature": "S"}]}, True),
        ({"content": [{"type": "redacted_thinking", "data": "E"}]}, True),
        ({"audio": {"id": "a1"}}, True),
        ({"tool_calls": [CALL]}, False),
        ({"tool_calls": [CALL | {"extra_content": SIGNED}]}, True),
        ({"tool_calls": [CALL | {"function": {"name": "f", "provider_specific_fields": {"thought_signature": "S"}}}]},
         True),
        ({"tool_calls": [CALL | {"id": "call_1__thought__S"}]}, True),
    ],
)  # fmt: skip
def test_state_that_only_its_provider_can_read_binds_the_model(answer: dict[str, Any], bound: bool) -> None:
    assert parsed(messages=[USER, {"role": "assistant", **answer}, USER]).provider_bound is bound


def test_what_no_provider_is_sent_is_named() -> None:
    chat = parsed(
        messages=[USER | {"mood": 1, "content": [{"type": "text", "text": "x", "api_base": "y"}]}],
        tools=[{"type": "function", "function": {"name": "f", "server": 1}, "server_url": "z"}],
        response_format={"type": "text", "enforce": True},
        metadata={"a": "b", "tags": ["c"]},
        provider={"order": ["a"], "api_base": "y"},
    )
    assert set(chat.dropped) == {
        "messages[].mood", "messages[].content[].api_base", "tools[].function.server", "tools[].server_url",
        "response_format.enforce", "metadata.tags", "provider.api_base",
    }  # fmt: skip
    assert chat.messages == ({"role": "user", "content": [{"type": "text", "text": "x"}]},)
    assert chat.params["metadata"] == {"a": "b"}


def test_parameters_inside_extra_body_are_parameters_by_the_same_rules() -> None:
    chat = parsed(extra_body={"top_k": 5, "temperature": 1, "model": "other", "max_tokens": 10**9, "foo": 1}, seed=3)
    assert chat.model == "auto"
    assert chat.max_tokens is None
    assert chat.params == {"temperature": 1, "seed": 3}
    assert chat.extras == {"top_k": 5, "foo": 1}
    assert set(chat.dropped) == {"extra_body.model", "extra_body.max_tokens"}
    assert refused(json.dumps({"model": "auto", "messages": [USER], "extra_body": {"top_k": "x"}}).encode()) == "top_k"


@pytest.mark.parametrize(
    "kind", ["mcp", "web_search", "web_search_preview", "code_interpreter", "file_search", "computer_use_preview"]
)
def test_a_tool_that_a_provider_would_run_is_refused_by_name(kind: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": kind, "server_url": "http://169.254.169.254/"}]
    with pytest.raises(InvalidRequest, match=kind) as caught:
        parsed(tools=tools)
    assert caught.value.param == "tools[1].type"


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("any", "required"), ({"type": "any"}, "required"), ({"type": "auto"}, "auto"), ({"type": "none"}, "none"),
        ({"type": "function", "name": "f"}, NAMED), ({"type": "tool", "name": "f"}, NAMED),
        ({"type": "custom", "name": "f"}, {"type": "custom", "custom": {"name": "f"}}),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
         {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}),
    ],
)  # fmt: skip
def test_a_choice_of_tools_in_another_api_s_form_is_openai_s(written: Any, meant: Any) -> None:
    chat = parsed(tools=[NAMED], tool_choice=written)
    assert (chat.params["tool_choice"], chat.dropped) == (meant, ())


@pytest.mark.parametrize("choice", ["perhaps", {"type": "perhaps"}, {"type": "function"}, {"name": "f"}])
def test_a_choice_of_tools_that_says_nothing_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidRequest, match="tool_choice: expected none, auto, required") as caught:
        parsed(tools=[NAMED], tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_a_tool_s_result_of_nothing_is_an_empty_text() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    chat = parsed(messages=[USER, answer, {"role": "tool", "tool_call_id": "c", "content": None}])
    assert (chat.messages[1]["content"], chat.messages[2]["content"]) == (None, "")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "video_url", "video_url": "data:video/mp4;base64,AAAA"},
        {"type": "input_video", "input_video": {"data": "AAAA", "format": "mp4"}},
        {"type": "input_video", "input_video": {"data": "data:video/mp4;base64,AAAA"}},
    ],
)
def test_a_video_is_taken_in_every_form_and_needs_a_model_that_sees_videos(part: dict[str, Any]) -> None:
    chat = parsed(messages=[{"role": "user", "content": [part]}])
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    assert (chat.messages[0]["content"], chat.capabilities) == ([video], frozenset({"video"}))


def test_a_video_without_data_is_refused_by_its_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(messages=[{"role": "user", "content": [{"type": "input_video", "input_video": {"format": "mp4"}}]}])
    assert caught.value.param == "messages[0].content[0].input_video.data"


def test_a_stream_s_obfuscation_is_kept_for_openai() -> None:
    chat = parsed(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert (chat.include_usage, chat.extras) == (True, {"stream_options": {"include_obfuscation": False}})


def test_custom_tools_and_every_choice_of_tools_are_taken() -> None:
    tools = [
        {"type": "custom", "custom": {"name": "sql", "format": {"type": "text"}}},
        {"type": "function", "function": {"name": "f"}},
    ]
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    for choice in (
        "auto", {"type": "custom", "custom": {"name": "sql"}}, {"type": "function", "function": {"name": "f"}},
        {"type": "allowed_tools", "allowed_tools": allowed},
    ):  # fmt: skip
        chat = parsed(tools=tools, tool_choice=choice)
        assert (chat.params["tools"], chat.params["tool_choice"]) == (tools, choice)
        assert "custom_tools" in chat.capabilities
    call = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
    history = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert (
        "custom_tools"
        in parsed(messages=[*history, {"role": "tool", "tool_call_id": "c", "content": "1"}]).capabilities
    )
    assert "custom_tools" not in parsed(tools=tools[1:]).capabilities


def test_a_picture_s_address_may_stand_for_the_picture() -> None:
    chat = parsed(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "https://x.org/a.png"}]}])
    assert chat.messages[0]["content"] == [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}]


def test_json_inside_a_body_is_bounded_in_depth() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parsed(tools=[{"type": "function", "function": {"name": "f", "parameters": deep}}])
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parsed(messages=[{"role": "assistant", "content": "x", "reasoning_details": [deep]}, USER])


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


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("https://example.com/a.png", {"vision", "image_addresses"}),
        ("HTTP://example.com/a.png", {"vision", "insecure_image_addresses"}),
        ("data:image/png;base64,AA==", {"vision"}),
    ],
)
def test_a_picture_s_address_needs_a_provider_that_fetches_it(url: str, needed: set[str]) -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    assert parsed(messages=[picture]).capabilities == needed


@pytest.mark.parametrize(
    "image",
    [
        {"type": "image_url", "image_url": {"url": "https://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "image_url", "image_url": "gs://bucket/a.png"},
        {"image_url": 3},
        7,
    ],
)
async def test_pictures_of_earlier_answers_are_inline_held_for_and_nothing_else(image: Any) -> None:
    url = "data:image/png;base64,AAAA"
    own = {"type": "image_url", "image_url": {"url": url, "format": "video/mp4", "detail": "low"}, "index": 0}
    turn = {"role": "assistant", "content": None, "images": [own, image]}
    read = parsed(messages=[{"role": "user", "content": "q"}, turn, {"role": "user", "content": "q"}])
    assert read.messages[1]["images"] == [{"type": "image_url", "image_url": {"url": url}}]
    assert (read.images, read.dropped) == (1, ("messages[].images",))
    counter = TokenCounter()
    plain = [{**message, "images": None} for message in read.messages]
    more = (await counter.count(read.messages, {})).bound - (await counter.count(plain, {})).bound
    await counter.close()
    assert more == IMAGE.bound
    alone = parsed(messages=[{"role": "user", "content": "q"}, turn | {"images": [image]}])
    assert alone.messages[1] == {"role": "assistant", "content": ""}
