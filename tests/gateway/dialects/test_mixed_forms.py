"""Chat bodies with tools and parts in the forms of other APIs are read as chat's; what has no form there is named."""

import json
from typing import Any

import pytest

from gateway.config.settings import LimitSettings
from gateway.dialects.request import ChatRequest, parse_chat
from gateway.errors import InvalidRequest

LIMITS = LimitSettings()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
PICTURE = "data:image/png;base64,QQ=="
USER = {"role": "user", "content": "hello"}


def parsed(*messages: Any, **fields: Any) -> ChatRequest:
    body = {"model": "auto", "messages": list(messages) or [USER], **fields}
    return parse_chat(json.dumps(body).encode(), LIMITS)


def part_of(part: Any) -> Any:
    return parsed({"role": "user", "content": [part]}).messages[0]["content"][0]


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "name": "weather", "description": "d", "parameters": SCHEMA},
        {"name": "weather", "description": "d", "parameters": SCHEMA},
        {"name": "weather", "description": "d", "input_schema": SCHEMA},
        {"type": "custom", "name": "weather", "description": "d", "input_schema": SCHEMA},
        {"function": {"name": "weather", "description": "d", "parameters": SCHEMA}},
    ],
    ids=["Responses", "no type", "Anthropic", "Anthropic with its type", "chat without its type"],
)
def test_a_tool_in_another_api_s_form_is_a_function(tool: dict[str, Any]) -> None:
    chat = parsed(tools=[WEATHER, tool])
    assert chat.params["tools"] == [WEATHER, WEATHER]
    assert chat.capabilities == {"tools"}
    assert chat.dropped == ()


def test_a_free_form_tool_of_responses_keeps_its_grammar() -> None:
    grammar = {"syntax": "lark", "definition": "start: A"}
    chat = parsed(tools=[{"type": "custom", "name": "p", "format": {"type": "grammar", **grammar}}])
    custom = {"name": "p", "format": {"type": "grammar", "grammar": grammar}}
    assert chat.params["tools"] == [{"type": "custom", "custom": custom}]


@pytest.mark.parametrize("system", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_prompt_beside_the_messages_is_the_first_of_them(system: Any) -> None:
    chat = parsed(system=system)
    assert list(chat.messages) == [{"role": "system", "content": "Be brief."}, USER]
    assert chat.dropped == ()
    with pytest.raises(InvalidRequest) as caught:
        parsed(USER, {"role": "user", "content": [{"type": "text", "text": 3}]}, system=system)
    assert caught.value.param == "messages[1].content[0].text"


def test_what_chat_cannot_say_of_a_tool_or_a_part_is_named() -> None:
    result = {"type": "tool_result", "tool_use_id": "c", "content": "sunny", "caller": "x"}
    tool = {"name": "weather", "input_schema": SCHEMA, "defer_loading": True}
    flat = {"type": "function", "name": "g", "defer_loading": True}
    chat = parsed(USER, {"role": "user", "content": [result]}, tools=[tool, flat])
    assert chat.dropped == ("tools[].defer_loading", "messages[].content[].caller")
    picture = {"type": "image", "data": "QQ==", "mimeType": "image/png", "annotations": {"audience": ["user"]}}
    assert parsed({"role": "user", "content": [picture]}).dropped == ("messages[].content[].annotations",)


def test_calls_and_results_of_anthropic_are_calls_and_messages_of_tools() -> None:
    chat = parsed(
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And?"},
                {"type": "tool_result", "tool_use_id": "c", "is_error": True, "content": "no such city"},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "d", "content": "sunny"}]},
        tools=[WEATHER],
    )
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}
    assert list(chat.messages[1:]) == [
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "Error: no such city"},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        {"role": "tool", "tool_call_id": "d", "content": "sunny"},
    ]
    assert chat.open_tool_loop


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("hello", {"type": "text", "text": "hello"}),
        ({"text": "hello"}, {"type": "text", "text": "hello"}),
        ({"image_url": PICTURE}, {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "input_text", "text": "hello"}, {"type": "text", "text": "hello"}),
        ({"type": "output_text", "text": "hello", "annotations": []}, {"type": "text", "text": "hello"}),
        ({"type": "input_image", "image_url": PICTURE}, {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "image", "image": PICTURE}, {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "image", "data": "QQ==", "mimeType": "image/png"},
         {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "image", "source_type": "base64", "data": "QQ==", "mime_type": "image/png"},
         {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "image", "base64": "QQ==", "mime_type": "image/png"},
         {"type": "image_url", "image_url": {"url": PICTURE}}),
        ({"type": "audio", "data": "QQ==", "mimeType": "audio/wav"},
         {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}),
        ({"type": "file", "data": "QQ==", "mediaType": "application/pdf", "filename": "a.pdf"},
         {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QQ=="}}),
        ({"type": "image", "url": PICTURE}, {"type": "image_url", "image_url": {"url": PICTURE}}),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
            {"type": "image_url", "image_url": {"url": PICTURE}},
        ),
        ({"type": "video", "video": "data:video/mp4;base64,QQ=="},
         {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,QQ=="}}),
        (
            {"type": "audio_url", "audio_url": {"url": "data:audio/mpeg;base64,QQ=="}},
            {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "mp3"}},
        ),
        (
            {"type": "audio_url", "audio_url": "data:audio/x-wav;codecs=1;base64,QQ=="},
            {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
        ),
        (
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QQ=="},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QQ=="}},
        ),
        (
            {"type": "document", "source": {"type": "text", "data": "a"}, "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        ),
    ],
)  # fmt: skip
def test_a_part_in_another_api_s_form_is_chat_s(part: Any, expected: dict[str, Any]) -> None:
    assert part_of(part) == expected


@pytest.mark.parametrize("written", [[[{"type": "text", "text": "a"}]], {"type": "text", "text": "a"}, [["a"]]])
def test_parts_in_a_list_too_many_or_in_none_are_parts(written: Any) -> None:
    assert parsed({"role": "user", "content": written}).messages[0]["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    ("content", "text"), [({"celsius": 18}, '{"celsius":18}'), (18, "18"), (True, "true"), ({}, "{}")]
)
def test_arguments_and_results_of_tools_as_objects_are_their_json(content: Any, text: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    chat = parsed(
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": content},
    )
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"city":"Bern"}'
    assert chat.messages[2]["content"] == text
    older = parsed(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": {"city": "Bern"}}},
        {"role": "function", "name": "weather", "content": content},
    )
    assert older.messages[1]["function_call"]["arguments"] == '{"city":"Bern"}'
    assert older.messages[2]["content"] == text


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "reasoning", "text": "hm"},
        {"type": "reasoning", "reasoning": "hm", "index": 0},
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
    ],
    ids=["AI SDK", "LangChain", "Mistral"],
)
def test_a_part_of_reasoning_is_the_message_s(thought: dict[str, Any]) -> None:
    text = {"type": "text", "text": "a"}
    chat = parsed(USER, {"role": "assistant", "content": [thought, text]}, USER)
    assert chat.messages[1] == {"role": "assistant", "content": [text], "reasoning_content": "hm"}
    assert chat.dropped == (("messages[].content[].index",) if "index" in thought else ())


def test_whole_numbers_may_be_written_with_a_point() -> None:
    chat = parsed(max_tokens=100.0, seed=7.0, n=2.0)
    assert (chat.max_tokens, chat.params["seed"], chat.n) == (100, 7, 2)


def test_parallel_calls_are_turned_off_as_anthropic_writes_it() -> None:
    chat = parsed(tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert chat.params["tool_choice"] == "required"
    assert chat.params["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ({"name": "x", "strict": True, "schema": SCHEMA}, {"name": "x", "strict": True, "schema": SCHEMA}),
        ({"schema": SCHEMA}, {"name": "answer", "schema": SCHEMA}),
        ({"json_schema": {"schema": SCHEMA}}, {"name": "answer", "schema": SCHEMA}),
        ({"json_schema": SCHEMA}, {"name": "answer", "schema": SCHEMA}),
        ({"json_schema": {"name": "x"}}, {"name": "x"}),
    ],
    ids=["Responses", "the schema beside the type", "no name", "the schema alone", "no schema"],
)
def test_a_schema_in_another_form_is_chat_s(shape: dict[str, Any], made: dict[str, Any]) -> None:
    chat = parsed(response_format={"type": "json_schema"} | shape)
    assert chat.params["response_format"] == {"type": "json_schema", "json_schema": made}
    assert chat.dropped == ()
    assert chat.capabilities == {"response_schema"}


@pytest.mark.parametrize(
    ("kind", "field"),
    [("grammar", "grammar"), ("regex", "pattern"), ("structural_tag", "structures"), ("json", "value")],
)
def test_a_format_that_says_nothing_is_refused(kind: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(response_format={"type": kind, "other": "x"})
    assert caught.value.param == f"response_format.{field}"


def test_extra_body_is_read_in_such_a_body_too() -> None:
    chat = parsed(tools=[{"name": "weather", "input_schema": SCHEMA}], extra_body={"top_k": 3})
    assert chat.extras == {"top_k": 3}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER, {"role": "user", "content": [{"type": "tool_result"}]}]},
         "messages[1].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": ""}, {"type": "document", "context": "c", "source": {
                "type": "base64", "media_type": "application/pdf", "data": "QQ=="}}, {"type": "text", "text": 3}]}]},
         "messages[0].content[2].text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": "https://x.test/a.mp3"}]}]},
         "messages[0].content[0].audio_url"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "messages[0].content[0].file_id"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [["a", {"type": "hologram"}]]}]}, "messages[0].content[0][1].type"),
        ({"messages": [{"role": "user", "content": {"type": "file"}}]}, "messages[0].content.file"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "hologram"}]}, "system[0].type"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -1.0}, "max_tokens"),
        ({"n": -1}, "n"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": 1, "input_schema": {}}]}, "tools[0].name"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_at_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(json.dumps({"model": "auto", "messages": [USER], **fields}).encode(), LIMITS)
    assert caught.value.param == param


def test_a_deep_body_is_refused_before_its_parts_are_read() -> None:
    inner: Any = "x"
    for _ in range(300):
        inner = [{"type": "document", "source": {"type": "content", "content": inner}}]
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parsed({"role": "user", "content": inner})
