"""Answers of Claude's and Gemini's servers in another form, or dialect, than was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.usage import PartialUsage, Usage
from gateway.dialects.assembly import Assembly
from gateway.errors import http_status
from gateway.providers.errors import BrokenFault, UpstreamFault
from gateway.providers.providers import Call, Upstream
from tests.gateway.providers.test_provider_dialects import (
    CLAUDE_ANSWER,
    CLAUDE_BILL,
    CLAUDE_END,
    CLAUDE_START,
    CLAUDE_TEXT,
    GEMINI_BILL,
    GEMINI_USAGE,
    WEATHER,
    call,
    gemini,
    tool_delta,
)
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer, raw_answer

# LiteLLM's wrapper reads attributes that pydantic wants to give up.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

CLAUDE, GEMINI = "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CLAUDE_EVENTS: list[dict[str, Any]] = [CLAUDE_START, *CLAUDE_TEXT, *CLAUDE_END]
THOUGHT = {"type": "thinking", "thinking": "Let me see", "signature": "sig=="}
CLAUDE_CALLING = CLAUDE_ANSWER | {
    "content": [THOUGHT, {"type": "text", "text": "Hello"}, WEATHER],
    "stop_reason": "tool_use",
}
CALLING_EVENTS: list[dict[str, Any]] = [
    CLAUDE_START,
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Let me see"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig=="}},
    {"type": "content_block_stop", "index": 0},
    *({**event, "index": 1} for event in (*CLAUDE_TEXT, CLAUDE_END[0])),
    {"type": "content_block_start", "index": 2, "content_block": WEATHER | {"input": {}}},
    *({**tool_delta(text), "index": 2} for text in ('{"city": ', '"Paris"}')),
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
OPENAI_USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
OPENAI = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "claude-sonnet-4-5",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
    "usage": OPENAI_USAGE,
}  # fmt: skip


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


OPENAI_CHUNKS = chunk({"role": "assistant", "content": "Hel"}), chunk({"content": "lo"}, "stop", usage=OPENAI_USAGE)


NULL_DELTA = {"type": "content_block_delta", "index": 0, "delta": None}
GEMINI_NULLS: list[dict[str, Any]] = [
    {"candidates": None},
    {"candidates": [{"content": None, "index": 0}]},
    {"candidates": [{"content": {"parts": None}, "index": 0}], "promptFeedback": None},
]


def with_done(*events: dict[str, Any]) -> bytes:
    """Events with the end of OpenAI's dialect."""
    frames = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return raw_answer(frames + b"data: [DONE]\n\n", "text/event-stream")


async def answered(upstream: Upstream, answer: bytes, model: str, *, stream: bool, **more: Any) -> tuple[Any, Any]:
    """The assembled body and its usage."""
    async with CannedProvider(answer) as provider:
        outgoing = upstream.outgoing(call(provider, model, stream=stream, **more))
        if not stream:
            reply = await upstream.complete(outgoing)
            return reply.body, reply.usage
        received = await upstream.open_stream(outgoing)
        whole = Assembly()
        async for each in received:
            whole.add(each)
        assert received.ended_properly
        return whole.body(), received.usage


def said(body: Any) -> tuple[str, str]:
    [choice] = body["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def lines(*values: Any) -> bytes:
    return raw_answer(b"\n".join(json.dumps(value).encode() for value in values), "application/json")


def pretty(*values: Any) -> bytes:
    return raw_answer(json.dumps(values, indent=1).encode(), "application/json")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "answer", "bill"),
    [
        (CLAUDE, json_answer(CLAUDE_ANSWER), CLAUDE_BILL),
        (CLAUDE, event_answer(*CLAUDE_EVENTS), CLAUDE_BILL),
        (CLAUDE, event_answer({"type": "ping"}, *CLAUDE_EVENTS), CLAUDE_BILL),
        (CLAUDE, lines(*CLAUDE_EVENTS), CLAUDE_BILL),
        (CLAUDE, pretty(*CLAUDE_EVENTS), CLAUDE_BILL),
        (CLAUDE, json_answer(OPENAI), Usage(12, 3)),
        (CLAUDE, event_answer(*OPENAI_CHUNKS), Usage(12, 3)),
        (GEMINI, json_answer(gemini("Hello", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, event_answer(gemini("Hel"), gemini("lo", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, pretty(gemini("Hel"), gemini("lo", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, pretty(gemini("Hello", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, lines(gemini("Hel"), gemini("lo", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, json_answer(OPENAI), Usage(12, 3)),
        (GEMINI, event_answer(*OPENAI_CHUNKS), Usage(12, 3)),
    ],
)
async def test_an_answer_is_read_in_whatever_form_it_comes(
    upstream: Upstream, model: str, answer: bytes, bill: Usage, stream: bool
) -> None:
    body, usage = await answered(upstream, answer, model, stream=stream)
    assert (said(body), usage) == (("Hello", "stop"), bill)


ODD_CHUNKS: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}}], "id": 5, "created": "1"},
    {"choices": [{"index": 0, "delta": None}]},
    {"choices": None},
    {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": "l"}]}}], "model": None},
    {"choices": [{"index": 0, "text": "o", "finish_reason": "stop"}]},
    {"choices": [], "usage": OPENAI_USAGE},
]
PARTS = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
IN_PARTS = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": PARTS}}


@pytest.mark.parametrize("model", ["mistral/m", "databricks/m", "datarobot/m", "ollama_chat/m"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        json_answer(OPENAI),
        json_answer({**OPENAI, "choices": [IN_PARTS]}),
        event_answer(*OPENAI_CHUNKS),
        event_answer(*ODD_CHUNKS),
    ],
)
async def test_openai_s_form_is_read_tolerantly_whoever_the_provider_is(
    upstream: Upstream, model: str, stream: bool, answer: bytes
) -> None:
    body, usage = await answered(upstream, answer, model, stream=stream)
    assert (said(body), usage) == (("Hello", "stop"), Usage(12, 3))


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_s_form_is_read_where_streams_are_made_of_whole_answers(upstream: Upstream, stream: bool) -> None:
    async with CannedProvider(json_answer(OPENAI)) as provider:
        wanted = call(provider, "cohere_chat/m", stream=stream, api_base=f"{provider.address}/cohere/v2/chat")
        outgoing = upstream.outgoing(wanted)
        if stream:
            received = await upstream.open_stream(outgoing)
            assert [each["usage"] async for each in received if not each["choices"]] == [OPENAI_USAGE]
        else:
            assert said((await upstream.complete(outgoing)).body) == ("Hello", "stop")


@pytest.mark.parametrize(
    ("model", "begins"),
    [
        (CLAUDE, CLAUDE_START),
        (GEMINI, {"usageMetadata": {"promptTokenCount": 1_477, "totalTokenCount": 1_477}}),
        ("openai/m", {"choices": [], "usage": {"prompt_tokens": 1_477, "completion_tokens": 0}}),
    ],
)
async def test_what_a_stream_reported_before_its_client_left_is_known(
    upstream: Upstream, model: str, begins: dict[str, Any]
) -> None:
    sent = asyncio.Event()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        writer.write(b"data: " + json.dumps(begins).encode() + b"\n\n")
        await writer.drain()
        sent.set()
        await reader.read()  # until it is left
        writer.close()

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" + ("/v1beta" if model == GEMINI else "")
        outgoing = upstream.outgoing(
            Call(model, ({"role": "user", "content": "hi"},), api_base=base, api_key="k", max_tokens=64, stream=True)
        )
        opening = asyncio.ensure_future(upstream.open_stream(outgoing))
        await sent.wait()
        while not outgoing.heard.usage and not opening.done():
            await asyncio.sleep(0.05)
            opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
    usage = outgoing.heard.usage
    assert isinstance(usage, PartialUsage)
    assert (usage.known.prompt_tokens, usage.has_prompt, usage.has_output) == (1_477, True, False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "answer", "bill"),
    [
        (CLAUDE, with_done(*CLAUDE_EVENTS), CLAUDE_BILL),
        (CLAUDE, event_answer(*CLAUDE_EVENTS[:2], NULL_DELTA, *CLAUDE_EVENTS[2:]), CLAUDE_BILL),
        (GEMINI, with_done(gemini("Hel"), gemini("lo", "STOP", GEMINI_USAGE)), GEMINI_BILL),
        (GEMINI, event_answer(*GEMINI_NULLS, gemini("Hello", "STOP", GEMINI_USAGE)), GEMINI_BILL),
    ],
)
async def test_nulls_and_the_end_of_another_dialect_do_not_end_a_reading(
    upstream: Upstream, model: str, answer: bytes, bill: Usage, stream: bool
) -> None:
    body, usage = await answered(upstream, answer, model, stream=stream)
    assert (said(body), usage) == (("Hello", "stop"), bill)


async def test_a_null_among_gemini_s_arguments_stays(upstream: Upstream) -> None:
    part = {"functionCall": {"name": "weather", "args": {"city": None}}}
    answer = {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}], "usageMetadata": GEMINI_USAGE}
    body, _ = await answered(upstream, event_answer(answer), GEMINI, stream=True, params={"tools": [TOOL]})
    [made] = body["choices"][0]["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"city": None}


@pytest.mark.parametrize(
    ("stream", "answer"), [(True, json_answer(CLAUDE_CALLING)), (False, event_answer(*CALLING_EVENTS))]
)
async def test_tools_and_thinking_arrive_in_the_other_form_too(upstream: Upstream, stream: bool, answer: bytes) -> None:
    body, usage = await answered(upstream, answer, CLAUDE, stream=stream, params={"tools": [TOOL]})
    message = body["choices"][0]["message"]
    assert (said(body), message["reasoning_content"]) == (("Hello", "tool_calls"), "Let me see")
    assert (usage.prompt_tokens, usage.output_tokens) == (1_477, 7)
    [made] = message["tool_calls"]
    assert (made["id"], json.loads(made["function"]["arguments"])) == ("toolu_1", WEATHER["input"])
    assert [block["signature"] for block in message["thinking_blocks"] if block.get("signature")] == ["sig=="]


@pytest.mark.parametrize(
    ("model", "texts", "read"),
    [
        (CLAUDE, ("Hi\ud83d", "\ude00"), "Hi\N{GRINNING FACE}"),
        (CLAUDE, ("Hi", "\ud83d"), "Hi\N{REPLACEMENT CHARACTER}"),
        (GEMINI, ("Hi", "\ud83d"), "Hi\N{REPLACEMENT CHARACTER}"),
    ],
)
async def test_half_characters_of_a_stream_for_a_whole_answer_are_joined_or_replaced(
    upstream: Upstream, model: str, texts: tuple[str, str], read: str
) -> None:
    delta = {"type": "content_block_delta", "index": 0}
    deltas = [delta | {"delta": {"type": "text_delta", "text": text}} for text in texts]
    events: dict[str, list[dict[str, Any]]] = {
        CLAUDE: [CLAUDE_START, CLAUDE_TEXT[0], *deltas, *CLAUDE_END],
        GEMINI: [gemini(texts[0]), gemini(texts[1], "STOP", GEMINI_USAGE)],
    }
    body, _ = await answered(upstream, event_answer(*events[model]), model, stream=False)
    assert said(body)[0] == read


async def test_an_output_that_only_the_start_of_a_stream_counted_is_none(upstream: Upstream) -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    _, usage = await answered(upstream, event_answer(*CLAUDE_EVENTS[:-2], end, CLAUDE_END[2]), CLAUDE, stream=False)
    assert isinstance(usage, PartialUsage)
    assert (usage.has_output, usage.known.prompt_tokens) == (False, 1_477)


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (CLAUDE, event_answer(*CLAUDE_EVENTS[:3])),
        (CLAUDE, lines(*CLAUDE_EVENTS[:3])),
        (GEMINI, event_answer(gemini("Hel"))),
        (GEMINI, pretty(gemini("Hel"), gemini("lo"))),
        (GEMINI, raw_answer(json.dumps([gemini("Hel"), gemini("lo", "STOP")])[:-9].encode(), "application/json")),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_cut_is_no_answer_in_any_form(
    upstream: Upstream, model: str, answer: bytes, stream: bool
) -> None:
    with pytest.raises(BrokenFault):
        await answered(upstream, answer, model, stream=stream)


async def test_an_answer_that_cannot_be_read_is_billed_as_its_provider_reported(upstream: Upstream) -> None:
    odd = CLAUDE_ANSWER | {"content": [{"type": "text", "text": {"no": "text"}}, 7]}
    with pytest.raises(BrokenFault) as caught:
        await answered(upstream, json_answer(odd), CLAUDE, stream=False)
    assert caught.value.usage == CLAUDE_BILL


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "o"}}
EXHAUSTED = {"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "answer", "status"),
    [
        (CLAUDE, json_answer(OVERLOADED), 503),
        (CLAUDE, event_answer(OVERLOADED), 503),
        (GEMINI, json_answer(EXHAUSTED), 429),
        (GEMINI, json_answer([EXHAUSTED]), 429),
        (GEMINI, event_answer(EXHAUSTED), 429),
    ],
)
async def test_an_error_means_the_same_in_every_form(
    upstream: Upstream, model: str, answer: bytes, status: int, stream: bool
) -> None:
    with pytest.raises(UpstreamFault) as caught:
        await answered(upstream, answer, model, stream=stream)
    assert http_status(caught.value.answer()) == status
    assert (caught.value.retryable, caught.value.dispatched) == (True, False)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("tier", [{}, {"service_tier": "on_demand"}])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["groq/openai/gpt-oss-20b", "groq/llama-3.1-8b-instant"])
async def test_groq_s_structured_answers_need_no_service_tier(
    upstream: Upstream, model: str, stream: bool, tier: dict[str, str]
) -> None:
    message: dict[str, Any] = {"role": "assistant", "content": "{}"}
    finish = "stop"
    if "llama" in model:
        function = {"name": "json_tool_call", "arguments": "{}"}
        message = {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": function}]}
        finish = "tool_calls"
    choice = {"index": 0, "finish_reason": finish, "message": message}
    params = {"response_format": SCHEMA}
    answer = json_answer({**OPENAI, "choices": [choice], **tier})
    body, usage = await answered(upstream, answer, model, stream=stream, params=params)
    assert (said(body), usage.prompt_tokens, usage.output_tokens) == (("{}", "stop"), 12, 3)
