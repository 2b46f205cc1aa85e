"""OpenAI's Responses as chat and back; the SDK's own types read what is rendered."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.catalog.usage import Usage
from gateway.dialects.dialect import Billed
from gateway.dialects.responses_answer import ResponseObject, ResponsesStream, whole_response
from gateway.dialects.responses_request import ResponsesRequest, referenced_ids, to_chat
from gateway.dialects.responses_tools import function_name
from gateway.dialects.sealed_state import seal, unseal
from gateway.errors import InvalidRequest, UpstreamError
from tests.gateway.dialects.events import call, delta, events, function_call, whole

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = Usage(100, 20, cached_tokens=60, reasoning_tokens=5)
FLAT = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
FILE_BY_ID = {"type": "input_image", "file_id": "f"}
TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]}


def request(**fields: Any) -> ResponsesRequest:
    return to_chat({"model": "auto", "input": "Hi", **fields})


def messages(*items: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request(input=list(items)).chat["messages"]
    return found


# -- up ----------------------------------------------------------------------------------------------------------------


def test_a_string_is_one_user_message_behind_the_instructions() -> None:
    made = request(instructions="Be brief", max_output_tokens=9, temperature=0.1, stream=True)
    assert made.chat == {
        "model": "auto", "max_tokens": 9, "temperature": 0.1, "stream": True,
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip
    assert made.store


def test_items_without_a_type_and_history_as_clients_send_it_back() -> None:
    answer = {
        "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    assert messages({"role": "developer", "content": "d"}, {"role": "user", "content": "q"}, answer, TEXT) == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
    ]


def test_one_turn_s_items_are_one_assistant_message_and_results_follow_it() -> None:
    made = messages(
        TEXT,
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "think"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": "data:image/png;base64,QQ=="},
        ]},
        {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
    )  # fmt: skip
    assert made == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "reasoning_content": "think", "content": "a", "tool_calls": [
            function_call("c1", "f", "{}"), function_call("c2", "f", "{}"),
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": [
            {"type": "text", "text": "Pictures and files in the result of tool call c2:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [function_call("c3", "f", "{}")]},
    ]  # fmt: skip


def test_calls_and_outputs_get_back_the_id_that_their_provider_gave() -> None:
    made = messages(
        TEXT,
        {"type": "function_call", "call_id": "f__sr_7_0", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "f__sr_7_0", "output": "one"},
    )
    assert made[1]["tool_calls"] == [function_call("f", "f", "{}")]
    assert made[2]["tool_call_id"] == "f"


def test_a_longer_conversation_begins_with_the_messages_of_the_shorter_one() -> None:
    """Prompt caches and the session's memory go by equal beginnings."""
    items = [
        TEXT,
        {"type": "reasoning", "summary": [], "encrypted_content": seal({"reasoning_details": [{"type": "x"}]})},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_image", "image_url": "data:x"}]},
        {"type": "message", "role": "assistant", "content": "a"},
        TEXT,
    ]
    whole_made = messages(*items)
    for end in (1, 4, 6):
        made = messages(*items[:end])
        assert whole_made[: len(made)] == made


def test_pictures_files_and_refusals() -> None:
    content = [
        {"type": "input_image", "image_url": "https://x.test/a.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,QQ=="},
        {"type": "input_text", "text": "t"},
    ]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    made = messages({"role": "user", "content": content}, refusal)
    assert made[0]["content"] == [
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ==", "filename": "a.pdf"}},
        {"type": "text", "text": "t"},
    ]
    assert made[1]["content"] == [{"type": "refusal", "refusal": "no"}]


def test_tools_of_every_kind_are_functions() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
    made = request(
        tools=[
            FLAT,
            {"type": "custom", "name": "apply_patch", "description": "Patch", "format": grammar},
            {"type": "namespace", "name": "fs", "description": "", "tools": [FLAT | {"name": "read"}]},
            {"type": "web_search", "external_web_access": False},
        ],
        parallel_tool_calls=False,
    )
    functions = [tool["function"] for tool in made.chat["tools"]]
    assert [function["name"] for function in functions] == ["f", "apply_patch", "fs__read"]
    assert functions[0] == {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
    assert "lark grammar:\nstart: x" in functions[1]["description"]
    assert functions[1]["parameters"]["required"] == ["input"]
    assert made.dropped == ("tools.web_search",)
    assert made.forwarded is not None
    assert not made.forwarded.required
    assert made.chat["parallel_tool_calls"] is False


def test_what_is_not_translated_is_named() -> None:
    made = request(
        tools=[FLAT | {"defer_loading": True}], reasoning={"effort": "low", "context": "auto"}, truncation="auto",
        text={"verbosity": "low", "tone": "dry"}, max_tool_calls=3, service_tier="flex", prompt_cache_retention="24h",
    )  # fmt: skip
    lost = ("max_tool_calls", "reasoning.context", "text.tone", "tools[].defer_loading", "truncation")
    assert made.dropped == lost
    assert (made.chat["service_tier"], made.chat["prompt_cache_retention"]) == ("flex", "24h")  # for chat to judge


SAID = {"type": "input_text", "text": "q"}
CALLED: dict[str, Any] = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT: dict[str, Any] = {"type": "function_call_output", "call_id": "c", "output": [SAID | {"tone": "dry"}]}


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"input": [TEXT | {"phase": "commentary"}]}, ("input[].phase",)),
        ({"input": [{"role": "user", "content": [SAID | {"tone": "dry"}]}]}, ("input[].content[].tone",)),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x", "zoom": 2}]}]},
         ("input[].content[].zoom",)),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "QQ==", "detail": "high"}]}]},
         ("input[].content[].detail",)),
        ({"input": [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav", "rate": 8}}
        ]}]}, ("input[].content[].input_audio.rate",)),
        ({"input": [TEXT, CALLED | {"caller": {"type": "program"}}, RESULT | {"took_s": 3}]},
         ("input[].caller", "input[].output[].tone", "input[].took_s")),
        ({"input": [{"role": "assistant", "content": [
            {"type": "output_text", "text": "a", "annotations": [{"type": "url_citation"}], "logprobs": [{}]}
        ]}, TEXT]}, ("input[].content[].annotations",)),
        ({"input": [{"role": "assistant", "id": "msg_1", "status": "completed", "content": [
            {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}
        ]}, TEXT]}, ()),
        ({"include": ["reasoning.encrypted_content", "file_search_call.results", "message.mood"]},
         ("include.message.mood",)),
        ({"text": {"format": {"type": "text", "examples": []}}}, ("text.format.examples",)),
        ({"stream_options": {"include_obfuscation": False, "pace": 1}}, ("stream_options.pace",)),
        ({"tools": [FLAT], "tool_choice": {"type": "function", "name": "f", "why": "x"}}, ("tool_choice.why",)),
    ],
)  # fmt: skip
def test_what_is_left_out_inside_items_and_objects_is_named(fields: dict[str, Any], dropped: tuple[str, ...]) -> None:
    assert request(**fields).dropped == dropped


def test_what_earlier_turns_left_out_is_not_named_again() -> None:
    earlier: list[dict[str, Any]] = [TEXT | {"phase": "commentary"}, {"role": "assistant", "content": "a"}]
    assert to_chat({"model": "m", "input": "next"}, earlier).dropped == ()


def test_what_is_forwarded_keeps_the_fields_that_no_chat_message_has() -> None:
    item = TEXT | {"phase": "commentary"}
    made = request(input=[item], tools=[{"type": "web_search"}]).forwarded
    assert made is not None
    assert (made.body["input"], made.dropped) == ([item], ())


def test_a_reference_needs_no_type() -> None:
    assert referenced_ids([{"id": "msg_1"}, {"type": "item_reference", "id": "msg_2"}, TEXT]) == [
        "msg_1", "msg_2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("access", "codex", "required"),
    [(False, False, False), (False, True, False), (True, True, False), (True, False, True), (None, True, True)],
)
def test_only_the_search_that_codex_adds_unasked_may_be_left_out(
    access: bool | None, codex: bool, required: bool
) -> None:
    """Codex says `true` in a session that may do anything; its requests have `client_metadata`."""
    search = {"type": "web_search"} | ({} if access is None else {"external_web_access": access})
    made = request(tools=[FLAT, search], **({"client_metadata": {"session_id": "s"}} if codex else {}))
    assert made.forwarded is not None
    assert made.forwarded.required is required
    assert ("tools.web_search" in made.dropped) is not required


def test_calls_of_free_form_and_namespace_tools_in_the_history() -> None:
    made = messages(
        TEXT,
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": 'say "x"'},
        {"type": "function_call", "call_id": "c2", "namespace": "fs", "name": "read", "arguments": "{}"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
        {"type": "function_call_output", "call_id": "c2", "output": "x"},
    )
    assert made[1]["tool_calls"] == [
        function_call("c1", "apply_patch", '{"input":"say \\"x\\""}'),
        function_call("c2", "fs__read", "{}"),
    ]
    assert [message["role"] for message in made[2:]] == ["tool", "tool"]


def test_a_name_too_long_for_a_function_is_cut_and_stays_unique() -> None:
    long = ["n" * 70 + "1", "n" * 70 + "2"]
    names = {function_name(name, "space") for name in long}
    assert len(names) == 2
    assert all(len(name) == 64 for name in names)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}, "required"),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    made = request(tools=[FLAT, FLAT | {"name": "g"}], tool_choice=choice).chat
    assert made["tool_choice"] == expected
    assert len(made["tools"]) == (1 if isinstance(choice, dict) and choice["type"] == "allowed_tools" else 2)


def test_shape_effort_and_verbosity() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    made = request(text={"format": schema, "verbosity": "low"}, reasoning={"effort": "high", "summary": "auto"}).chat
    assert made["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }  # fmt: skip
    assert (made["verbosity"], made["reasoning_effort"]) == ("low", "high")


@pytest.mark.parametrize(
    ("fields", "session"),
    [
        ({"conversation_id": "s"}, "s"),
        ({"thread_id": "s"}, "s"),
        ({"chat_id": "s"}, "s"),
        ({"tensorzero::episode_id": "s"}, "s"),
        ({"metadata": {"session_id": "s"}}, "s"),
        ({"conversation": {"id": "c"}, "conversation_id": "s"}, "c"),
        ({"session_id": "s", "conversation": "c", "metadata": {"session_id": "m"}}, "s"),
    ],
)
def test_a_body_names_its_session_as_a_chat_body_does(fields: dict[str, Any], session: str) -> None:
    made = request(**fields)
    assert (made.chat["session_id"], made.dropped) == (session, ())
    forwarded = request(tools=[{"type": "web_search"}], **fields).forwarded
    assert forwarded is not None
    assert set(forwarded.dropped) <= {"metadata"}


def test_what_a_namespace_loses_is_named() -> None:
    inner = FLAT | {"name": "read", "defer_loading": True}
    made = request(tools=[SPACE | {"description": "Files", "icon": None, "tools": [inner]}])
    assert made.dropped == ("tools[].description", "tools[].tools[].defer_loading")
    assert request(tools=[SPACE]).dropped == ()
    assert request(tool_choice="auto").dropped == ("tool_choice",)


def test_a_null_is_an_absent_field() -> None:
    picture = {"type": "input_image", "image_url": "HTTPS://X.test/A.png", "detail": None, "file_id": None}
    reasoning: dict[str, Any] = {
        "type": "reasoning",
        "id": None,
        "summary": [],
        "content": None,
        "encrypted_content": "gAAAA",
    }
    call: dict[str, Any] = {
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": "{}",
        "namespace": None,
        "id": None,
    }
    made = request(
        input=[{"type": None, "role": "user", "content": [picture], "status": None}, reasoning, call],
        tools=[FLAT | {"format": None, "defer_loading": None}], tool_choice=None, reasoning={"effort": None},
        text={"format": None}, truncation=None, metadata=None, conversation=None,
    )  # fmt: skip
    assert made.dropped == ()
    assert [message["role"] for message in made.chat["messages"]] == ["user", "assistant"]
    user, assistant = made.chat["messages"]
    assert user["content"] == [{"type": "image_url", "image_url": {"url": "https://X.test/A.png"}}]
    assert assistant["reasoning_items"] == [{"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}]
    assert referenced_ids([{"id": "msg_1", "type": None, "status": None}]) == ["msg_1"]


def test_nulls_of_a_client_s_own_items_are_not_forwarded() -> None:
    hosted = {"type": "code_interpreter_call", "id": "ci", "code": "1", "container_id": "c", "outputs": None}
    item = {"type": None, "role": "user", "content": "q", "status": None}
    made = request(input=[item, hosted, item])
    assert made.forwarded is not None
    assert made.forwarded.body["input"] == [{"role": "user", "content": "q"}, hosted, {"role": "user", "content": "q"}]


def test_the_session_that_codex_names() -> None:
    made = request(client_metadata={"session_id": "s-1", "thread_id": "t"}, prompt_cache_key="k", store=False)
    assert made.chat["session_id"] == "s-1"
    assert not made.store
    assert made.dropped == ()


def test_encrypted_reasoning_of_openai_stays_an_item() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    made = messages(TEXT, item, {"type": "message", "role": "assistant", "content": "a"})
    assert made[1]["reasoning_items"] == [item]


def test_earlier_items_come_first() -> None:
    made = to_chat({"model": "m", "input": "next", "instructions": "i"}, [TEXT, {"role": "assistant", "content": "a"}])
    assert [message["content"] for message in made.chat["messages"]] == ["i", "q", "a", "next"]
    assert [item.get("role") for item in made.items] == ["user", "assistant", "user"]


def test_references_are_named_for_the_store() -> None:
    assert referenced_ids([TEXT, {"type": "item_reference", "id": "msg_1"}]) == ["msg_1"]
    with pytest.raises(InvalidRequest):
        messages({"type": "item_reference", "id": "msg_1"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "telepathy_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"role": "user", "content": [FILE_BY_ID]}]}, "input[0].content[0].file_id"),
        ({"tools": [{"type": "telepathy"}]}, "tools[0].type"),
        ({"tools": [{"type": ["web_search"]}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}], "max_tool_calls": 0}, "max_tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [FLAT], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [FLAT], "tool_choice": "maybe"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"stream": "yes"}, "stream"),
        ({"store": 1}, "store"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request(**fields)
    assert refusal.value.param == param


# -- down --------------------------------------------------------------------------------------------------------------

SPACE = {"type": "namespace", "name": "fs", "description": "", "tools": [FLAT | {"name": "read"}]}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAAA"}}
NOTE = {"type": "url_citation", "url_citation": {"url": "https://a.test"}}
TOOLS = [FLAT, {"type": "custom", "name": "patch"}, SPACE]
CALLS = [
    function_call("c1", "f", '{"a":1}'), function_call("c2", "patch", '{"input":"x"}'),
    function_call("c3", "fs__read", "{}"),
]  # fmt: skip
CASES: list[tuple[dict[str, Any], list[dict[str, Any]], list[str], str]] = [
    (
        whole(content="Hello"),
        [delta(role="assistant", content=""), delta(content="Hel"), delta(content="lo"), delta("stop")],
        ["message"],
        "completed",
    ),
    (
        whole("tool_calls", content=None, reasoning_content="think", tool_calls=CALLS),
        [
            delta(reasoning_content="th"), delta(reasoning_content="ink"), call(0, "", id="c1", name="f"),
            call(0, '{"a"'), call(0, ":1}"), call(1, '{"input"', id="c2", name="patch"), call(1, ':"x"}'),
            call(2, "{}", id="c3", name="fs__read"), delta("tool_calls"),
        ],
        ["reasoning", "function_call", "custom_tool_call", "function_call"],
        "completed",
    ),
    (whole("length", content="cut"), [delta(content="cut"), delta("length")], ["message"], "incomplete"),
    (whole("content_filter", refusal="No"), [delta(refusal="No"), delta("content_filter")], ["message"], "incomplete"),
    (
        whole(content="a", thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": "S"}]),
        [
            delta(thinking_blocks=[{"type": "thinking", "thinking": "t", "signature": ""}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "", "signature": "S"}]),
            delta(content="a"), delta("stop"),
        ],
        ["reasoning", "message"],
        "completed",
    ),
    (
        whole(content="a", images=[PICTURE], annotations=[NOTE]),
        [delta(content="a"), delta(annotations=[NOTE]), delta(images=[PICTURE]), delta("stop")],
        ["message", "image_generation_call"],
        "completed",
    ),
    (
        whole("length", content=None, images=[PICTURE]),
        [delta(images=[PICTURE]), delta("length")],
        ["image_generation_call"],
        "incomplete",
    ),
    (
        whole(content=None, audio={"id": "a", "data": "AAAA", "transcript": "Hello"}),
        [delta(audio={"transcript": "Hel"}), delta(audio={"data": "AAAA", "transcript": "lo"}), delta("stop")],
        ["message", "message"],
        "completed",
    ),
    (
        {**whole(content="a"), "search_results": [{"url": "https://a.test", "title": "t"}]},
        [{**delta(content="a"), "search_results": [{"url": "https://a.test", "title": "t"}]}, delta("stop")],
        ["message"],
        "completed",
    ),
]  # fmt: skip


def response_object() -> ResponseObject:
    made = request(tools=TOOLS, instructions="i", metadata={"a": "b"})
    return ResponseObject("dec_1", "small", 7.9, made.echoed, made.tools, made.store)


@pytest.mark.parametrize(("answer", "chunks", "kinds", "status"), CASES)
def test_an_answer_is_the_same_response_whole_and_streamed(
    answer: dict[str, Any], chunks: list[dict[str, Any]], kinds: list[str], status: str
) -> None:
    made = whole_response(response_object(), answer, USAGE)
    Response.model_validate(made)
    assert [item["type"] for item in made["output"]] == kinds
    assert (made["status"], made["id"], made["model"], made["created_at"]) == (status, "resp_1", "small", 7)
    stream = ResponsesStream(response_object())
    rendered = b"".join(stream.chunk(chunk) for chunk in chunks) + stream.end(
        Billed(USAGE, False, {"model": "small", "cost_usd": "0.1", "cost_nano_usd": 9}.copy, True), None
    )
    seen = events(rendered)
    for event in seen:
        STREAM_EVENT.validate_python(event)
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    assert [event["type"] for event in seen[:2]] == ["response.created", "response.in_progress"]
    assert seen[-1]["type"] == f"response.{status}"
    assert made == stream.ended
    assert seen[-1]["response"] == made | {"usage": made["usage"] | {"seqroute": {"cost_nano_usd": 9}}}
    assert [event["item"] for event in seen if event["type"] == "response.output_item.done"] == made["output"]
    assert gathered(seen) == [content for item in made["output"] for content in texts(item)]


def texts(item: dict[str, Any]) -> list[str]:
    """Everything in an item that deltas make up."""
    found: list[str] = [part.get("text", part.get("refusal")) for part in item.get("content") or ()]
    found += [part["text"] for part in item.get("summary") or ()]
    return found + [item[name] for name in ("arguments", "input") if name in item]


def gathered(seen: list[dict[str, Any]]) -> list[str]:
    """The texts that a client puts together out of the deltas of each item."""
    grown: dict[int, str] = {}
    for event in seen:
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] = grown.get(event["output_index"], "") + event["delta"]
    return [grown[index] for index in sorted(grown)]


def test_tools_come_back_under_their_own_kind_and_name() -> None:
    made = whole_response(response_object(), whole("tool_calls", tool_calls=CALLS), USAGE)["output"]
    assert (made[1]["type"], made[1]["name"], made[1]["input"]) == ("custom_tool_call", "patch", "x")
    assert (made[2]["namespace"], made[2]["name"], made[2]["call_id"]) == ("fs", "read", "c3")
    assert "namespace" not in made[0]


def test_provider_bound_state_is_sealed_and_comes_back() -> None:
    blocks = [{"type": "thinking", "thinking": "t", "signature": "S"}, {"type": "redacted_thinking", "data": "R"}]
    made = whole_response(response_object(), whole(content="a", thinking_blocks=blocks), USAGE)["output"]
    assert unseal(made[0]["encrypted_content"]) == {"thinking_blocks": blocks[:1]}
    assert messages(TEXT, *made)[1] == {"role": "assistant", "content": "a", "thinking_blocks": blocks}
    signature = {"google": {"thought_signature": "S"}}
    calls = [function_call("c1", "f", "{}") | {"extra_content": signature}]
    made = whole_response(response_object(), whole("tool_calls", tool_calls=calls), USAGE)["output"]
    assert messages(TEXT, *made)[1]["tool_calls"][0]["extra_content"] == signature


def test_a_generated_picture_comes_back_as_one_that_any_model_can_see() -> None:
    made = whole_response(response_object(), whole(content="a", images=[PICTURE]), USAGE)["output"]
    assert (made[1]["result"], made[1]["output_format"]) == ("AAAA", "webp")
    expected = {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAAA"}}
    sent = request(input=[TEXT, *made, TEXT])
    assert sent.forwarded is None
    assert [message["role"] for message in sent.chat["messages"]] == ["user", "assistant", "user", "user"]
    assert sent.chat["messages"][2]["content"][1] == expected
    passed = request(input=[TEXT, *made, TEXT], tools=[{"type": "code_interpreter", "container": {"type": "auto"}}])
    assert passed.forwarded is not None
    shown = {"type": "input_image", "image_url": "data:image/webp;base64,AAAA"}
    assert passed.forwarded.body["input"][2] == {"role": "user", "content": [shown]}


def test_a_picture_between_a_call_and_its_result_is_shown_behind_the_result() -> None:
    answer = whole("tool_calls", content=None, images=[PICTURE], tool_calls=[function_call("c1", "f", "{}")])
    made = whole_response(response_object(), answer, USAGE)["output"]
    output = {"type": "function_call_output", "call_id": "c1", "output": "r"}
    roles = [message["role"] for message in messages(TEXT, *made[::-1], output, TEXT)]
    assert roles == ["user", "assistant", "tool", "user", "user"]


@pytest.mark.parametrize("picture", [{"images": [PICTURE]}, {"content": [PICTURE]}])
def test_a_picture_amid_a_call_s_arguments_does_not_end_them(picture: dict[str, Any]) -> None:
    stream = ResponsesStream(response_object())
    chunks = [call(0, '{"a"', id="c1", name="f"), delta(**picture), call(0, ":1}"), delta("tool_calls")]
    b"".join(map(stream.chunk, chunks)) + stream.end(Billed(USAGE, False, dict), None)
    assert stream.ended is not None
    asked, shown = stream.ended["output"]
    assert (asked["arguments"], shown["result"]) == ('{"a":1}', "AAAA")


def test_citations_that_come_behind_their_text_are_not_lost() -> None:
    stream = ResponsesStream(response_object())
    chunks = [delta(content="a"), call(0, "{}", id="c1", name="f"), delta(annotations=[NOTE]), delta("tool_calls")]
    rendered = b"".join(map(stream.chunk, chunks)) + stream.end(Billed(USAGE, False, dict), None)
    assert [event["annotation"]["url"] for event in events(rendered) if "annotation" in event] == ["https://a.test"]
    assert stream.ended is not None
    assert [item["type"] for item in stream.ended["output"]] == ["message", "function_call", "message"]


def test_citations_stand_at_the_text_that_has_them() -> None:
    cited = {"url": "https://a.test", "title": "t", "start_index": 0, "end_index": 1}
    notes = [{"type": "url_citation", "url_citation": cited}, {"type": "other"}, 3]
    made = whole_response(response_object(), whole(content="x", annotations=notes), USAGE)["output"]
    assert made[0]["content"][0]["annotations"] == [{"type": "url_citation", **cited}]
    stream = ResponsesStream(response_object())
    deltas: list[dict[str, Any]] = [{"content": "x"}, {"annotations": notes}]
    rendered = b"".join(stream.chunk({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas)
    seen = events(rendered + stream.end(Billed(USAGE, False, dict, False), None))
    for event in seen:
        STREAM_EVENT.validate_python(event)
    told = [event["annotation"] for event in seen if event["type"] == "response.output_text.annotation.added"]
    assert told == made[0]["content"][0]["annotations"]
    assert [item["content"] for item in seen[-1]["response"]["output"]] == [item["content"] for item in made]


def test_a_broken_stream_ends_with_response_failed() -> None:
    stream = ResponsesStream(response_object())
    rendered = stream.chunk(delta(content="Hel")) + stream.end(Billed(USAGE, False, {}.copy), UpstreamError("broke"))
    last = events(rendered)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "upstream_error", "message": "broke"}


def test_the_last_events_can_be_rendered_again_with_a_newer_report() -> None:
    stream = ResponsesStream(response_object())
    stream.chunk(delta(content="Hi"))
    first, second = (
        stream.end(Billed(USAGE, False, {"n": 1}.copy), None),
        stream.end(Billed(USAGE, False, {"n": 2}.copy), None),
    )
    assert first.replace(b'{"n":1}', b'{"n":2}') == second
