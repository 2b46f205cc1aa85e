"""Anthropic's Messages as chat and back; the SDK's own types read what is rendered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from gateway.catalog.usage import Usage
from gateway.config.settings import LimitSettings
from gateway.dialects.arguments import outgoing_params
from gateway.dialects.dialect import Billed
from gateway.dialects.messages_answer import MessagesStream, error_body, whole_message
from gateway.dialects.messages_request import to_chat
from gateway.dialects.request import chat_of
from gateway.dialects.sealed_state import seal, unseal
from gateway.errors import InvalidRequest, NotFound, SessionBudgetExceeded, UpstreamRejected
from tests.gateway.dialects.events import call, delta, events, function_call, whole

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}
USAGE = Usage(100, 20, cached_tokens=60, cache_write_tokens=30)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return to_chat(body(**fields)).chat


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    """The chat message of an assistant's blocks."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": list(blocks)}]
    found: dict[str, Any] = chat(messages=turns)["messages"][1]
    return found


# -- up ----------------------------------------------------------------------------------------------------------------


def test_a_plain_request_is_a_chat_request() -> None:
    assert chat(temperature=0.5, top_k=3, top_p=0.9, stop_sequences=["END"], system="Be brief") == {
        "model": "auto", "max_tokens": 100, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "stop": ["END"],
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip


def test_system_blocks_keep_their_cache_marks_and_lose_the_billing_line() -> None:
    mark = {"type": "ephemeral"}
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cch=abc"},
        {"type": "text", "text": "You are", "cache_control": mark},
        {"type": "text", "text": "an agent"},
    ]
    assert chat(system=system)["messages"][0]["content"] == [
        {"type": "text", "text": "You are", "cache_control": mark}, {"type": "text", "text": "an agent"},
    ]  # fmt: skip


def test_a_system_message_in_the_middle_stays_where_it_is() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "b"}]}]
    assert [(m["role"], m["content"]) for m in chat(messages=messages)["messages"]] == [("user", "a"), ("system", "b")]


def test_pictures_and_documents() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
        {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
        {"type": "document", "title": "T.pdf", "source": pdf},
        {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "body"}},
        {"type": "text", "text": "Compare"},
    ]  # fmt: skip
    assert chat(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        {"type": "file", "file": {"filename": "T.pdf", "file_data": "data:application/pdf;base64,QQ=="}},
        {"type": "text", "text": "T\nbody"},
        {"type": "text", "text": "Compare"},
    ]


def test_a_tool_loop_with_an_error_and_a_picture_in_its_results() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "read", "input": {"path": "a"}}
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "no such file", "is_error": True},
        {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "seen"}, picture]},
        {"type": "text", "text": "go on"},
    ]
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}, use, use | {"id": "t2", "input": {}}]},
        {"role": "user", "content": results},
    ]
    assert chat(messages=turns)["messages"][1:] == [
        {"role": "assistant", "content": "ok", "tool_calls": [
            function_call("t1", "read", '{"path":"a"}'), function_call("t2", "read", "{}"),
        ]},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no such file"},
        {"role": "tool", "tool_call_id": "t2", "content": "seen"},
        {"role": "user", "content": [
            {"type": "text", "text": "Pictures and files in the result of tool call t2:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
            {"type": "text", "text": "go on"},
        ]},
    ]  # fmt: skip


def test_signed_thinking_stays_bound_and_unsigned_thinking_is_only_text() -> None:
    signed = {"type": "thinking", "thinking": "deep", "signature": "S"}
    message = assistant(signed, {"type": "redacted_thinking", "data": "R"}, {"type": "text", "text": "a"})
    assert message["thinking_blocks"] == [signed, {"type": "redacted_thinking", "data": "R"}]
    assert "reasoning_content" not in message
    message = assistant({"type": "thinking", "thinking": "deep", "signature": ""}, {"type": "text", "text": "a"})
    assert message["reasoning_content"] == "deep"
    assert "thinking_blocks" not in message


def test_another_provider_s_state_comes_back_where_it_was() -> None:
    signature = {"google": {"thought_signature": "S"}}
    message = assistant(
        {"type": "thinking", "thinking": "r", "signature": seal({"reasoning_details": [{"type": "reasoning.text"}]})},
        {"type": "redacted_thinking", "data": seal({"extra_content": {"c1": signature}})},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    )
    assert message["reasoning_details"] == [{"type": "reasoning.text"}]
    assert message["tool_calls"][0]["extra_content"] == signature


def test_calls_with_one_id_have_their_own_for_clients_and_the_provider_s_again_in_the_next_request() -> None:
    made = [{"id": "f", "type": "function", "function": {"name": "f", "arguments": text}} for text in ("{}", '{"a":1}')]
    signature = {"google": {"thought_signature": "S"}}
    made[1] |= {"extra_content": signature}
    body = {"choices": [{"index": 0, "message": {"tool_calls": made}, "finish_reason": "tool_calls"}]}
    content = whole_message(body, "dec_7", "m", Usage(1, 1), ())["content"]
    ids = [block["id"] for block in content if block["type"] == "tool_use"]
    assert ids == ["f__sr_7_0", "f__sr_7_1"]
    results = [{"type": "tool_result", "tool_use_id": each, "content": "r"} for each in ids]
    said = [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
    asked, *answered = chat(messages=said)["messages"]
    assert asked["tool_calls"] == made
    assert [message["tool_call_id"] for message in answered] == ["f", "f"]


def test_tools_and_their_choice() -> None:
    mark = {"type": "ephemeral"}
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": mark}
    made = chat(tools=[tool], tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True})
    assert made["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
            "cache_control": mark,
        }
    ]
    assert made["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert made["parallel_tool_calls"] is False
    assert chat(tools=[tool], tool_choice={"type": "any"})["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"thinking": {"type": "adaptive"}}, "medium"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, None),
        ({}, None),
    ],
)
def test_thinking_and_effort_become_a_reasoning_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert chat(**fields).get("reasoning_effort") == effort


def test_a_cache_mark_of_the_whole_body_is_one_at_its_end() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    assert chat(cache_control=mark)["messages"][-1]["content"][-1]["cache_control"] == mark
    assert to_chat(body(cache_control=mark)).dropped == ()
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True}
    made = chat(messages=[{"role": "user", "content": [result]}])["messages"][-1]
    assert made["content"] == "Error"


def test_a_schema_for_the_answer() -> None:
    shape = {"type": "json_schema", "schema": {"type": "object"}}
    made = chat(output_config={"format": shape})["response_format"]
    assert made == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        ('{"device_id":"d","account_uuid":"","session_id":"s-1"}', {"session_id": "s-1"}),
        ("user_0af_account__session_s-2", {"session_id": "s-2"}),
        ("someone", {"user": "someone"}),
        ("{broken", {}),
    ],
)
def test_the_session_inside_claude_code_s_user_id(user_id: str, expected: dict[str, str]) -> None:
    made = chat(metadata={"user_id": user_id})
    assert {name: made[name] for name in ("session_id", "user") if name in made} == expected


def test_what_only_concerns_the_client_s_side_is_left_out_by_name() -> None:
    made = to_chat(body(context_management={"edits": []}, service_tier="auto", speed=None))
    assert made.dropped == ("context_management", "service_tier")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "thinking"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "assistant", "content": [{"type": "telepathy"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"tools": [{"type": "telepathy_20250305", "name": "t"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "x"}}, "thinking.type"),
        ({"output_config": {"effort": "x"}}, "output_config.effort"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"temperature": True}, "temperature"),
        ({"compaction": {"type": "compaction"}}, "compaction"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        to_chat(body(**fields))
    assert refusal.value.param == param


@pytest.mark.parametrize("messages", [[{"role": "user", "content": [TOOL_RESULT]}], []])
def test_a_continued_thread_is_not_found_so_that_its_client_sends_the_whole_conversation(messages: list[Any]) -> None:
    """The requests of the tool runner of Anthropic's SDKs (2.15 for Python, 1.15 for JavaScript)."""
    thread = {"type": "continue", "previous_message_id": "msg_01m8rnp835rptthpe9qvcsr9z6"}
    with pytest.raises(NotFound) as lost:
        to_chat({"model": "auto", "max_tokens": 200, "messages": messages, "thread": thread})
    assert error_body(lost.value)["error"]["type"] == "not_found_error"
    assert error_body(lost.value)["error"]["details"] == {"error_code": "thread_not_found"}
    whole = to_chat(body(thread={"type": "create"}))
    assert whole.chat["messages"] == [{"role": "user", "content": "Hi"}]
    assert whole.dropped == ("thread",)


# -- down --------------------------------------------------------------------------------------------------------------

CITED = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.test", "title": "t", "content": "said", "start_index": 0, "end_index": 1},
}
CITATION = {
    "type": "web_search_result_location", "url": "https://a.test", "title": "t", "cited_text": "said",
    "encrypted_index": "",
}  # fmt: skip
CHARACTERS = {
    "type": "char_location", "cited_text": "said", "document_index": 0, "document_title": "d", "start_char_index": 0,
    "end_char_index": 4,
}  # fmt: skip
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TWO_CALLS = [function_call("c1", "f", '{"a":1}'), function_call("c2", "g", "{}")]
CASES: list[tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]], str]] = [
    (
        whole(content="Hello"),
        [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta("stop")],
        [{"type": "text", "text": "Hello"}],
        "end_turn",
    ),
    (
        whole("tool_calls", content="Let me", tool_calls=TWO_CALLS),
        [
            delta(content="Let me"), call(0, "", id="c1", name="f"), call(0, '{"a"'), call(0, ":1}"),
            call(1, "{}", id="c2", name="g"), delta("tool_calls"),
        ],
        [
            {"type": "text", "text": "Let me"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
        ],
        "tool_use",
    ),
    (
        whole("length", content="a", thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": "S"}]),
        [
            delta(thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": ""}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "", "signature": "S"}]),
            delta(content="a"), delta("length"),
        ],
        [{"type": "thinking", "thinking": "t", "signature": "S"}, {"type": "text", "text": "a"}],
        "max_tokens",
    ),
    (
        whole("content_filter", refusal="No"),
        [delta(refusal="No"), delta("content_filter")],
        [{"type": "text", "text": "No"}],
        "refusal",
    ),
    (whole(content=None), [delta("stop")], [], "end_turn"),
    (
        whole(content="x", annotations=[CITED]),
        [delta(content="x"), delta(annotations=[CITED]), delta("stop")],
        [{"type": "text", "text": "x", "citations": [CITATION]}],
        "end_turn",
    ),
    (
        whole(content="x", provider_specific_fields={"citations": [[CHARACTERS]]}, annotations=[CITED]),
        [delta(content="x"), delta(provider_specific_fields={"citation": CHARACTERS}), delta("stop")],
        [{"type": "text", "text": "x", "citations": [CHARACTERS]}],
        "end_turn",
    ),
    (
        {**whole(content="x"), "citations": ["https://a.test"], "search_results": [{"url": "https://a.test"}]},
        [{**delta(content="x"), "citations": ["https://a.test"]}, delta("stop")],
        [{"type": "text", "text": "x", "citations": [{**CITATION, "title": None, "cited_text": ""}]}],
        "end_turn",
    ),
    (
        whole(content="x", images=[PICTURE, {"type": "image_url", "image_url": {"url": "https://a.test/1.png"}}]),
        [
            delta(content="x"), delta(images=[PICTURE]),
            delta(images=[{"type": "image_url", "image_url": {"url": "https://a.test/1.png"}}]), delta("stop"),
        ],
        [
            {"type": "text", "text": "x"},
            {
                "type": "text",
                "text": "[A picture (image/png, 3 bytes) was generated. This API has no place for it: ask at "
                "/v1/responses or /v1/chat/completions.]",
            },
            {"type": "text", "text": "![picture](https://a.test/1.png)"},
        ],
        "end_turn",
    ),
    (
        whole(content=None, audio={"id": "a", "data": "AAAA", "transcript": "Hello", "expires_at": 1}),
        [delta(audio={"transcript": "Hel"}), delta(audio={"data": "AAAA", "transcript": "lo"}), delta("stop")],
        [
            {"type": "text", "text": "Hello"},
            {
                "type": "text",
                "text": "[A sound (3 bytes) was generated. This API has no place for it: ask at /v1/chat/completions.]",
            },
        ],
        "end_turn",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "chunks", "content", "reason"), CASES)
def test_an_answer_is_the_same_message_whole_and_streamed(
    answer: dict[str, Any], chunks: list[dict[str, Any]], content: list[dict[str, Any]], reason: str
) -> None:
    made = whole_message(answer, "dec_1", "small", USAGE, ())
    Message.model_validate(made)
    assert (made["content"], made["stop_reason"], made["id"]) == (content, reason, "msg_1")
    stream = MessagesStream("dec_1", "small", 7, ())
    rendered = b"".join(stream.chunk(chunk) for chunk in chunks) + stream.end(
        Billed(USAGE, False, {"model": "small", "cost_usd": "0.1", "cost_nano_usd": 9}.copy, True), None
    )
    seen = events(rendered)
    for event in seen:
        STREAM_EVENT.validate_python(event)
    assert seen[0]["type"] == "message_start"
    assert seen[-1] == {"type": "message_stop"}
    whole = {name: made[name] for name in ("content", "stop_reason", "stop_sequence")}
    assert gathered(seen) == whole | {"usage": made["usage"] | {"seqroute": {"cost_nano_usd": 9}}}


def gathered(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client puts together out of its events, by Anthropic's rules."""
    blocks: dict[int, dict[str, Any]] = {}
    arguments: dict[int, str] = {}
    open_block: int | None = None
    message: dict[str, Any] = {}
    for event in seen:
        if event["type"] == "content_block_start":
            assert open_block is None
            assert event["index"] == len(blocks)
            open_block = event["index"]
            blocks[event["index"]] = dict(event["content_block"])
        elif event["type"] == "content_block_delta":
            assert open_block == event["index"]
            block, change = blocks[event["index"]], event["delta"]
            if change["type"] == "input_json_delta":
                arguments[event["index"]] = arguments.get(event["index"], "") + change["partial_json"]
            elif change["type"] == "signature_delta":
                block["signature"] = change["signature"]
            elif change["type"] == "citations_delta":
                block["citations"] = [*block.get("citations", ()), change["citation"]]
            else:
                name = change["type"].removesuffix("_delta")
                block[name] += change[name]
        elif event["type"] == "content_block_stop":
            assert open_block == event["index"]
            open_block = None
        elif event["type"] == "message_delta":
            message = event["delta"] | {"usage": event["usage"]}
    for index, text in arguments.items():
        blocks[index]["input"] = json.loads(text)
    return message | {"content": [blocks[index] for index in sorted(blocks)]}


def test_usage_counts_the_cache_apart() -> None:
    made = whole_message(whole(content="x"), "dec_1", "m", USAGE, ())["usage"]
    assert made == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 20,
    }


def test_a_stop_sequence_that_the_server_names_is_named() -> None:
    answer = whole(content="x")
    answer["choices"][0]["stop_reason"] = "END"
    made = whole_message(answer, "dec_1", "m", USAGE, ("END",))
    assert (made["stop_reason"], made["stop_sequence"]) == ("stop_sequence", "END")


def test_state_of_another_provider_travels_in_the_signature() -> None:
    details = [{"type": "reasoning.text", "text": "t"}]
    made = whole_message(whole(reasoning="t", reasoning_details=details, content="x"), "dec_1", "m", USAGE, ())
    thinking = made["content"][0]
    assert thinking["thinking"] == "t"
    assert unseal(thinking["signature"]) == {"reasoning_details": details}
    assert assistant(thinking, {"type": "text", "text": "x"})["reasoning_details"] == details


def test_broken_arguments_stay_visible() -> None:
    made = whole_message(whole("tool_calls", tool_calls=[function_call("c", "f", '{"a')]), "dec_1", "m", USAGE, ())
    assert made["content"][0]["input"] == {"_invalid_json": '{"a'}


def test_a_broken_stream_ends_with_an_error_event_and_no_message_stop() -> None:
    stream = MessagesStream("dec_1", "m", 7, ())
    rendered = stream.chunk(delta(content="Hel")) + stream.end(
        Billed(USAGE, False, {}.copy), SessionBudgetExceeded("spent")
    )
    seen = events(rendered)
    assert seen[-1]["type"] == "error"
    assert seen[-1]["error"]["type"] == "billing_error"
    assert "message_stop" not in [event["type"] for event in seen]


def test_the_last_events_can_be_rendered_again_with_a_newer_report() -> None:
    stream = MessagesStream("dec_1", "m", 7, ())
    stream.chunk(delta(content="Hi"))
    first, second = (
        stream.end(Billed(USAGE, False, {"n": 1}.copy), None),
        stream.end(Billed(USAGE, False, {"n": 2}.copy), None),
    )
    assert first.replace(b'{"n":1}', b'{"n":2}') == second


def test_errors_have_anthropic_s_shape() -> None:
    made = error_body(SessionBudgetExceeded("spent", details={"remaining_nano_usd": 3}))
    assert made == {
        "type": "error",
        "error": {
            "type": "billing_error", "message": "spent", "code": "session_budget_exceeded", "param": None,
            "remaining_nano_usd": 3,
        },
    }  # fmt: skip
    assert error_body(UpstreamRejected("no", status=409))["error"]["type"] == "invalid_request_error"


def test_a_document_keeps_its_pictures_and_what_is_said_about_it() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    source = {"type": "content", "content": [{"type": "text", "text": "a"}, picture]}
    file = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
    made = to_chat(
        {
            "model": "m", "max_tokens": 9,
            "messages": [{"role": "user", "content": [
                {"type": "document", "title": "t", "source": source},
                {"type": "document", "title": "p.pdf", "context": "signed", "source": file,
                 "cache_control": {"type": "ephemeral"}},
            ]}],
        }
    ).chat["messages"]  # fmt: skip
    assert made[0]["content"] == [
        {"type": "text", "text": "t\na"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
        {"type": "text", "text": "signed"},
        {"type": "file", "file": {"filename": "p.pdf", "file_data": "data:application/pdf;base64,QQ=="},
         "cache_control": {"type": "ephemeral"}},
    ]  # fmt: skip


FILE = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
PNG: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}
MARK = {"cache_control": {"type": "ephemeral"}}
FOUND: dict[str, Any] = {"type": "search_result", "title": "T", "source": "s"}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def named(filename: str) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": filename, "file_data": "data:application/pdf;base64,QQ=="}}


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ({"context": "signed", "source": FILE}, [said("signed"), named("document.pdf")]),
        ({"title": "", "context": "signed", "source": FILE}, [said("signed"), named("document.pdf")]),
        ({"title": None, "source": FILE}, [named("document.pdf")]),
        ({"source": {"type": "content", "content": [PNG]}}, [SHOWN]),
        ({"title": "t", "source": {"type": "content", "content": [PNG]}}, [said("t"), SHOWN]),
        (
            {"title": "t", "source": {"type": "content", "content": [said("a") | MARK, PNG | MARK, said("b")]}},
            [said("t\na") | MARK, SHOWN | MARK, said("b")],
        ),
        ({"source": {"type": "content", "content": [said("a"), PNG]}} | MARK, [said("a"), SHOWN | MARK]),
        ({"source": {"type": "content", "content": ""}}, [said("")]),
    ],
)
def test_a_document_s_parts_keep_their_order_and_marks(document: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    content = [{"type": "document"} | document, said("q")]
    assert chat(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == [*parts, said("q")]


@pytest.mark.parametrize(
    ("inner", "mark", "parts"),
    [
        ([said("a"), said("b")], {}, [said("T\ns\na\nb")]),
        ([said("a") | MARK, said("b")], {}, [said("T\ns\na") | MARK, said("b")]),
        ([said("a"), said("b") | MARK], {}, [said("T\ns\na\nb") | MARK]),
        ([said("a") | MARK, said("b")], MARK, [said("T\ns\na") | MARK, said("b") | MARK]),
        ([], MARK, [said("T\ns") | MARK]),
    ],
)
def test_a_found_text_keeps_the_cache_marks_within_it(
    inner: list[dict[str, Any]], mark: dict[str, Any], parts: list[dict[str, Any]]
) -> None:
    content = [FOUND | {"content": inner} | mark, said("q")]
    assert chat(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == [*parts, said("q")]


@pytest.mark.parametrize("mark", ["x", 1, True, [1]])
def test_a_malformed_mark_on_a_thinking_block_breaks_nothing(mark: Any) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s", "cache_control": mark}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [thought, said("a")]}]
    body = {"model": "m", "max_tokens": 50, "messages": [*messages, {"role": "user", "content": "q"}]}
    assert to_chat(body).chat["messages"][1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"output_config": {"task_budget": {"type": "tokens", "total": 9}, "effort": "low"}},
         ("output_config.task_budget",)),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, ("thinking.display",)),
        ({"metadata": {"user_id": "u", "team": "t", "session_id": "s"}}, ("metadata.team",)),
        ({"metadata": {"user_id": "{broken"}}, ("metadata.user_id",)),
        ({"tool_choice": {"type": "auto"}}, ("tool_choice",)),
        ({"system": [said("s") | {"tone": "dry"}]}, ("system[].tone",)),
        ({"system": [said("s") | {"cache_control": {"type": "ephemeral", "scope": "global"}}]},
         ("system[].cache_control.scope",)),
        ({"content": [{"type": "document", "citations": {"enabled": True}, "source": FILE}]},
         ("messages[].content[].citations",)),
        ({"content": [{"type": "document", "citations": {"enabled": False}, "source": FILE}]}, ()),
        ({"content": [said("q") | {"citations": None}, PNG | {"alt": "a cat"}]}, ("messages[].content[].alt",)),
        ({"content": [{"type": "tool_result", "tool_use_id": "t", "content": [said("r") | {"tone": "dry"}]}]},
         ("messages[].content[].content[].tone",)),
        ({"content": [{"type": "document", "source": {"type": "content", "content": [said("r") | {"tone": "dry"}]}}]},
         ("messages[].content[].source.content[].tone",)),
        ({"content": [{"type": "image", "source": PNG["source"] | {"alt": "a cat"}}]},
         ("messages[].content[].source.alt",)),
        ({"content": [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
                      {"type": "document", "source": {"type": "content", "content": "d", "pages": 3}}]},
         ("messages[].content[].source.pages",)),
        ({"content": [FOUND | {"citations": {"enabled": True}, "content": [said("r") | {"citations": [{}]}]}]},
         ("messages[].content[].citations", "messages[].content[].content[].citations")),
    ],
)  # fmt: skip
def test_what_is_left_out_inside_a_field_is_named(fields: dict[str, Any], dropped: tuple[str, ...]) -> None:
    content = fields.pop("content", "q")
    assert to_chat(body(messages=[{"role": "user", "content": content}], **fields)).dropped == dropped


@pytest.mark.parametrize(
    "fields",
    [{"session_id": "s"}, {"conversation_id": "s"}, {"chat_id": "s"}, {"tensorzero::episode_id": "s"},
     {"metadata": {"session_id": "s"}}, {"metadata": {"user_id": "u", "thread_id": "s"}}],
)  # fmt: skip
def test_a_body_names_its_session_as_a_chat_body_does(fields: dict[str, Any]) -> None:
    made = to_chat(body(**fields))
    assert (made.chat["session_id"], made.dropped) == ("s", ())
    server = {"type": "web_search_20250305", "name": "web_search"}
    forwarded = to_chat(body(tools=[server], **fields)).forwarded
    assert forwarded is not None
    assert forwarded.dropped == ()


def test_more_tools_and_stop_sequences_than_a_chat_request_has() -> None:
    tools = [{"name": f"f{index}", "input_schema": {}} for index in range(1_024)]
    stops = [str(index) for index in range(17)]
    made = chat_of(chat(tools=tools, stop_sequences=stops), LimitSettings(), b"", shallow=True)
    sent = outgoing_params(made.params)
    assert (len(sent["tools"]), sent["stop"]) == (1_024, stops)
    with pytest.raises(InvalidRequest, match="tools"):
        chat(tools=[*tools, tools[0]])


def test_a_null_is_an_absent_field() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": None}}
    reference = {"type": "tool_reference", "tool_name": "read", "cache_control": None}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [reference], "is_error": None} | mark
    found = {"type": "search_result", "title": None, "source": "s", "content": [{"type": "text", "text": None}]}
    made = chat(
        system=[said("s") | mark], tools=[{"name": "f", "input_schema": {}, "description": None} | mark],
        messages=[{"role": "user", "content": [result, said("q") | mark, found]}], metadata={"user_id": None},
    )  # fmt: skip
    assert made["messages"] == [
        {"role": "system", "content": [said("s") | MARK]},
        {"role": "tool", "tool_call_id": "t", "content": [said("Tool: read") | MARK]},
        {"role": "user", "content": [said("q") | MARK, said("s\n")]},
    ]
    assert outgoing_params({"tools": made["tools"]})["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {}}} | MARK
    ]


def test_fields_of_tools_that_are_not_translated_are_named() -> None:
    tool = {"name": "f", "input_schema": {}, "input_examples": [{}], "defer_loading": True}
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}], "tools": [tool]}
    assert to_chat(asked).dropped == ("tools[].defer_loading", "tools[].input_examples")
