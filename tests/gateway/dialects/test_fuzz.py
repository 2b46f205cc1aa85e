"""Every dialect's translators against JSON of any shape: understood, or refused before any money; never a crash."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.usage import Usage
from gateway.config.settings import LimitSettings
from gateway.dialects import completions, messages_request, responses_request
from gateway.dialects.dialect import AnswerIdentity, Billed
from gateway.dialects.embeddings import parse_embeddings
from gateway.dialects.messages import MessagesDialect
from gateway.dialects.messages_answer import whole_message
from gateway.dialects.messages_forwarded import MessagesReader
from gateway.dialects.moderations import parse_moderations
from gateway.dialects.repair import StreamRepair
from gateway.dialects.request import ChatRequest, chat_of, parse_chat, parse_object, with_forwarded
from gateway.dialects.responses import ResponsesDialect
from gateway.dialects.responses_answer import ResponseObject, whole_response
from gateway.dialects.responses_forwarded import ResponsesReader
from gateway.dialects.usage_report import take_usage
from gateway.errors import GatewayError, http_status
from tests.harness.forwarded_answers import SEARCH_CALL, SEARCH_RESULT, SERVER_USE, forwarded_events, forwarded_whole

LIMITS = LimitSettings()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT: dict[str, Any] = {
    "model": "m", "stream": True, "stream_options": {"include_usage": True}, "n": 1, "max_tokens": 9, "temperature": 1,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [
            {"type": "text", "text": "t", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        ]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}}, "metadata": {"session_id": "s"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
}  # fmt: skip
MESSAGES: dict[str, Any] = {
    "model": "m", "max_tokens": 2_000, "stream": False, "stop_sequences": ["x"], "temperature": 1, "top_k": 3,
    "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "QQ=="}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"},
            SERVER_USE, SEARCH_RESULT, {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "u", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "u", "is_error": True, "content": [{"type": "text", "text": "x"}]},
            {"type": "document", "title": "d", "source": {"type": "text", "data": "x"}},
        ]},
        {"role": "system", "content": "note"},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA}, {"type": "web_search_20250305", "name": "w", "max_uses": 2}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}, "mcp_servers": [{"name": "x"}],
    "thinking": {"type": "enabled", "budget_tokens": 1_024}, "metadata": {"user_id": '{"session_id": "s"}'},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
}  # fmt: skip
RESPONSES: dict[str, Any] = {
    "model": "m", "stream": False, "instructions": "i", "max_output_tokens": 100, "store": False, "max_tool_calls": 2,
    "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low", "summary": "auto"},
    "client_metadata": {"session_id": "s"}, "conversation": {"id": "c"}, "prompt_cache_key": "k",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "t"}, {"type": "input_image", "image_url": "https://x.test"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "r"}], "encrypted_content": "e"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x"},
        SEARCH_CALL,
        {"type": "computer_call_output", "call_id": "e", "output": {"image_url": "data:image/png;base64,QQ=="}},
    ],
    "tools": [
        {"type": "function", "name": "f", "parameters": SCHEMA, "strict": True},
        {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g"}]},
        {"type": "web_search", "external_web_access": False}, {"type": "image_generation", "model": "gpt-image-1"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
}  # fmt: skip
MIXED: dict[str, Any] = {
    "model": "m", "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "messages": [
        {"role": "user", "content": ["t", {"type": "input_text", "text": "t"}, {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "QQ=="}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "u", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "u", "is_error": True, "content": [{"type": "text", "text": "x"}]},
            {"type": "document", "title": "d", "source": {"type": "text", "data": "x"}},
            {"type": "audio_url", "audio_url": {"url": "data:audio/mpeg;base64,QQ=="}},
            {"type": "image", "image": "data:image/png;base64,QQ=="}, {"text": "u"},
        ]},
    ],
    "tools": [
        {"name": "f", "input_schema": SCHEMA}, {"type": "function", "name": "g", "parameters": SCHEMA},
        {"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    ],
}  # fmt: skip
COMPLETIONS: dict[str, Any] = {
    "model": "m", "prompt": ["a"], "suffix": None, "echo": False, "logprobs": 2, "n": 1, "best_of": 1, "stream": True,
    "max_tokens": 3, "stop": ["x"], "stream_options": {"include_usage": True},
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
VALUES = JSON | st.sampled_from(
    ["function", "web_search", "mcp", "computer_call_output", "sr1.e30=", "sr1.x", "system", "tool", {"type": "file"}]
)


def as_chat(read: Any) -> ChatRequest:
    chat = chat_of(read.chat, LIMITS, b"")
    forwarded = getattr(read, "forwarded", None)
    if forwarded is not None:
        chat = with_forwarded(chat, forwarded)
        orjson.dumps(forwarded.outgoing("m", 1_000, 2, stream=True, notes=["note"]))
        orjson.dumps(forwarded.closing().outgoing("m", None, 0, stream=False, notes=()))
    return chat


def read_responses(body: bytes) -> None:
    fields = parse_object(body, LIMITS)
    responses_request.referenced_ids(responses_request.input_items(fields))
    as_chat(responses_request.to_chat(fields))


READ: Mapping[str, tuple[dict[str, Any], Callable[[bytes], object]]] = {
    "chat": (CHAT, lambda body: parse_chat(body, LIMITS)),
    "chat in mixed forms": (MIXED, lambda body: parse_chat(body, LIMITS)),
    "messages": (MESSAGES, lambda body: as_chat(messages_request.to_chat(parse_object(body, LIMITS), betas="a-b,x"))),
    "count_tokens": (
        MESSAGES, lambda body: as_chat(messages_request.to_chat(parse_object(body, LIMITS), counting=True))
    ),
    "responses": (RESPONSES, read_responses),
    "completions": (COMPLETIONS, lambda body: as_chat(completions.to_chat(parse_object(body, LIMITS)))),
    "embeddings": (
        {"model": "m", "input": [[3], [1, 2]], "dimensions": 3, "encoding_format": "base64", "user": "u"},
        lambda body: parse_embeddings(parse_object(body, LIMITS), body),
    ),
    "moderations": (
        {"model": "m", "input": [{"type": "text", "text": "x"}]},
        lambda body: parse_moderations(parse_object(body, LIMITS), body, "m"),
    ),
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(body: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """`body` with some of its values replaced."""
    made = copy.deepcopy(body)
    for number, value in changes:
        found = list(places(made))
        if not found:
            break
        *path, last = found[number % len(found)]
        place: Any = made
        for key in path:
            place = place[key]
        place[last] = copy.deepcopy(value)
    return made


FOREIGN: Mapping[str, tuple[str, ...]] = {
    "messages": ("stop", "response_format", "reasoning_effort", "parallel_tool_calls"),
    "responses": ("messages", "max_tokens", "response_format", "reasoning_effort", "verbosity", "logprobs"),
    "completions": ("messages", "top_logprobs"),
}
"""Fields of chat that a translated body has under another name."""


@pytest.mark.parametrize("dialect", READ)
@settings(max_examples=150, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), VALUES), min_size=1, max_size=3))
def test_a_body_of_any_shape_is_read_or_refused_by_name(dialect: str, changes: list[tuple[int, Any]]) -> None:
    body, read = READ[dialect]
    asked = changed(body, changes)
    try:
        sent = orjson.dumps(asked)
    except TypeError:  # an integer beyond 64 bits, which orjson does not write
        return
    refusal = None
    try:
        read(sent)
    except GatewayError as error:
        refusal = error
    if refusal is not None:
        assert 400 <= http_status(refusal) < 500
        assert refusal.message
        assert names_a_place(asked, refusal.param), refusal.message
        assert re.split(r"[.\[]", refusal.param or "")[0] not in FOREIGN.get(dialect, ()), refusal.message


def names_a_place(body: Any, param: str | None) -> bool:
    """Whether an error names a place of the client's own body: all but the last step of its path are there."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", param or "")[:-1]:
        if not (isinstance(body, dict) and name in body if name else isinstance(body, list) and int(index) < len(body)):
            return False
        body = body[name or int(index)]
    return True


@pytest.mark.parametrize("dialect", READ)
def test_the_bodies_that_are_changed_are_fine_as_they_are(dialect: str) -> None:
    body, read = READ[dialect]
    read(orjson.dumps(body))


# -- answers -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(NAMES, st.integers(-5, 5) | TEXTS, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3)
ANSWER = AnswerIdentity("dec_1", "m", 1.0, 7)
BILLED = Billed(Usage(7, 3), False, {"cost_usd": "0.1"}.copy)


def chat_answer(text: str, calls: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    made = [
        {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": orjson.dumps(given).decode()}}
        for number, (name, given) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})
    return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if made else "stop"}]}


@settings(max_examples=100, derandomize=True)
@given(text=TEXTS, calls=CALLS)
def test_an_answer_that_comes_back_is_what_was_answered(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    """Rendered, sent back as history and read: the same text and the same calls, in both dialects."""
    body = chat_answer(text, calls)
    message = whole_message(body, "dec_1", "m", Usage(1, 1), ())
    asked: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "q"}]}
    asked["messages"] += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": "n"}]
    response = whole_response(ResponseObject("dec_1", "m", 1.0, {}, {}, True), body, Usage(1, 1))
    items = [{"role": "user", "content": "q"}, *response["output"], {"role": "user", "content": "n"}]
    for chat in (messages_request.to_chat(asked).chat, responses_request.to_chat({"model": "m", "input": items}).chat):
        said = [message for message in chat["messages"] if message["role"] == "assistant"]
        assert "".join(message.get("content") or "" for message in said) == text
        called = [call["function"] for message in said for call in message.get("tool_calls") or ()]
        assert [(call["name"], orjson.loads(call["arguments"])) for call in called] == calls


def renderers(route: str) -> Any:
    if route == "messages":
        return MessagesDialect(forwarded=True).stream(ANSWER), MessagesReader()
    read = responses_request.to_chat({"model": "m", "input": "x", "tools": [{"type": "web_search"}]})
    return ResponsesDialect(read, _store_nothing).stream(ANSWER), ResponsesReader()


async def _store_nothing(session_id: str, response: Mapping[str, Any], items: list[Mapping[str, Any]]) -> None:
    """Nothing is stored."""


@pytest.mark.parametrize("route", ["responses", "messages"])
@settings(max_examples=100, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), VALUES), max_size=3))
def test_events_of_any_shape_are_passed_on(route: str, changes: list[tuple[int, Any]]) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    events = [event for event, _ in forwarded_events(route, "m", [" a", " b"], lambda: usage, "stop")]
    stream, reader = renderers(route)
    repair = StreamRepair(lambda: "call")
    sent = b""
    for event in [changed(event, changes) for event in events]:
        if not _writable(event):
            continue
        assert reader.failure(event) is None or isinstance(reader.failure(event), Mapping)
        for chunk in reader.chunks(event):
            repair.repair(chunk)
            take_usage(chunk)
            sent += stream.chunk(chunk)
    sent += stream.end(BILLED, None)
    assert b"seqroute" in sent
    if not changes:
        assert sent.count(b"event: ") == len(events)


@pytest.mark.parametrize("route", ["responses", "messages"])
@settings(max_examples=100, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), VALUES), max_size=3))
def test_a_whole_answer_of_any_shape_is_passed_on(route: str, changes: list[tuple[int, Any]]) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    answer = changed(forwarded_whole(route, "m", [" a"], usage, "stop"), changes)
    if route == "messages":
        forwarded = messages_request.to_chat(
            {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "q"}], "container": "c"}
        ).forwarded
        dialect: Any = MessagesDialect(forwarded=True)
    else:
        read = responses_request.to_chat({"model": "m", "input": "x", "tools": [{"type": "web_search"}]})
        forwarded, dialect = read.forwarded, ResponsesDialect(read, _store_nothing)
    assert forwarded is not None
    body = forwarded.chat_body(answer)
    assert body["choices"][0]["message"]["role"] == "assistant"
    take_usage(body)
    assert dialect.whole(ANSWER, body, BILLED)["model"] == "m"


def _writable(event: dict[str, Any]) -> bool:
    try:
        orjson.dumps(event)
    except TypeError:
        return False
    return True
