"""Anthropic's and Gemini's own dialects, as real LiteLLM translates them: same answer, same truth, exact bill."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.usage import PartialUsage, Usage
from gateway.dialects.assembly import Assembly
from gateway.providers.errors import BrokenFault, UpstreamFault
from gateway.providers.providers import Call, Upstream
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer, raw_answer

# LiteLLM's wrapper reads attributes that pydantic wants to give up.
pytestmark = pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}")

CLAUDE_USAGE = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 456,
    "cache_read_input_tokens": 1_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 56, "ephemeral_1h_input_tokens": 400},
    "output_tokens": 7,
}
CLAUDE_BILL = Usage(1_477, 7, cached_tokens=1_000, cache_write_tokens=456, cache_write_1h_tokens=400)
CLAUDE_ANSWER = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": CLAUDE_USAGE,
}  # fmt: skip
CLAUDE_START: dict[str, Any] = {
    "type": "message_start",
    "message": CLAUDE_ANSWER | {"content": [], "stop_reason": None, "usage": CLAUDE_USAGE | {"output_tokens": 1}},
}
CLAUDE_TEXT: tuple[dict[str, Any], ...] = (
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
)
CLAUDE_END: tuple[dict[str, Any], ...] = (
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
     "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
)  # fmt: skip

GEMINI_USAGE = {
    "promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 5, "thoughtsTokenCount": 30,
    "totalTokenCount": 135,
}  # fmt: skip
GEMINI_BILL = Usage(100, 35, cached_tokens=40, reasoning_tokens=30)


def gemini(text: str, finish: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    answer: dict[str, Any] = {"candidates": [candidate | ({"finishReason": finish} if finish else {})]}
    return answer | {"modelVersion": "gemini-2.5-pro"} | ({"usageMetadata": usage} if usage else {})


def call(provider: CannedProvider, model: str, *, stream: bool = False, **more: Any) -> Call:
    base = provider.address if model.startswith("anthropic") else f"{provider.address}/v1beta"
    arguments: dict[str, Any] = {
        "litellm_model": model,
        "api_base": base,
        "api_key": "sk-ours",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 64,
        "stream": stream,
        "timeout_s": 20.0,
        "stream_timeout_s": 15.0,
    }
    return Call(**arguments | more)


async def read(upstream: Upstream, wanted: Call) -> tuple[str, Any, str | None]:
    stream = await upstream.open_stream(upstream.outgoing(wanted))
    text = ""
    async for chunk in stream:
        text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    assert stream.ended_properly
    return text, stream.usage, stream.finish_reason


TOOL_USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


@pytest.mark.parametrize("told", [{"stop_reason": None}, {"stop_reason": ""}, {}], ids=["null", "empty", "missing"])
@pytest.mark.parametrize(
    ("block", "finish"), [({"type": "text", "text": "Hello"}, "stop"), (TOOL_USE, "tool_calls")], ids=["text", "tool"]
)
async def test_a_whole_answer_of_claude_without_a_reason_for_its_end_has_ended(
    upstream: Upstream, told: dict[str, Any], block: dict[str, Any], finish: str
) -> None:
    answer = {name: value for name, value in CLAUDE_ANSWER.items() if name != "stop_reason"}
    async with CannedProvider(json_answer(answer | told | {"content": [block]})) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5")))
    assert (reply.finish_reason, reply.usage) == (finish, CLAUDE_BILL)


async def test_a_task_budget_goes_to_claude_beside_its_effort(upstream: Upstream) -> None:
    left = {"type": "tokens", "total": 64_000, "remaining": 50_000}
    async with CannedProvider(json_answer(CLAUDE_ANSWER)) as provider:
        wanted = call(provider, "anthropic/claude-opus-4-7", task_budget=left, params={"reasoning_effort": "low"})
        await upstream.complete(upstream.outgoing(wanted))
        await upstream.complete(upstream.outgoing(call(provider, "anthropic/claude-opus-4-7", task_budget=left)))
    assert [body["output_config"] for _, body in provider.received] == [
        {"task_budget": left, "effort": "low"},
        {"task_budget": left},
    ]


async def test_claude_answers_whole(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(CLAUDE_ANSWER)) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5")))
    assert reply.body["choices"][0]["message"]["content"] == "Hello"
    assert (reply.finish_reason, reply.usage) == ("stop", CLAUDE_BILL)
    path, body = provider.received[0]
    assert path == "/v1/messages"
    assert body["max_tokens"] == 64


async def test_claude_streams(upstream: Upstream) -> None:
    async with CannedProvider(event_answer(CLAUDE_START, *CLAUDE_TEXT, *CLAUDE_END)) as provider:
        assert await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True)) == (
            "Hello", CLAUDE_BILL, "stop",
        )  # fmt: skip


WEATHER: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}


def tool_delta(text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": text}}


@pytest.mark.parametrize(
    ("block", "deltas", "arguments"),
    [
        (WEATHER, (), {"city": "Paris"}),
        (WEATHER, (tool_delta(""),), {"city": "Paris"}),
        (WEATHER, (tool_delta('{"city": '), tool_delta('"Paris"}')), {"city": "Paris"}),
        (WEATHER | {"input": '{"city": "Paris"}'}, (), {"city": "Paris"}),
        (WEATHER | {"input": {}}, (tool_delta('{"city": "Paris"}'),), {"city": "Paris"}),
        (WEATHER | {"input": {}}, (), {}),
    ],
)
async def test_a_tool_s_input_is_read_from_the_start_of_its_block_or_from_deltas(
    upstream: Upstream, block: dict[str, Any], deltas: tuple[dict[str, Any], ...], arguments: dict[str, Any]
) -> None:
    begin = {"type": "content_block_start", "index": 0, "content_block": block}
    second = [begin | {"index": 1, "content_block": {**WEATHER, "id": "toolu_2", "input": {"city": "Rome"}}}]
    second.append({"type": "content_block_stop", "index": 1})
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    answer = event_answer(CLAUDE_START, begin, *deltas, CLAUDE_END[0], *second, *CLAUDE_END[1:])
    async with CannedProvider(answer) as provider:
        wanted = call(provider, "anthropic/claude-sonnet-4-5", stream=True, params={"tools": [tool]})
        stream = await upstream.open_stream(upstream.outgoing(wanted))
        whole = Assembly()
        async for chunk in stream:
            whole.add(chunk)
    calls = whole.body()["choices"][0]["message"]["tool_calls"]
    assert [(each["id"], json.loads(each["function"]["arguments"])) for each in calls] == [
        ("toolu_1", arguments), ("toolu_2", {"city": "Rome"}),
    ]  # fmt: skip
    assert stream.usage == CLAUDE_BILL


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != name}


UNCOUNTED = [without(CLAUDE_END[1], "usage"), CLAUDE_END[1] | {"usage": None}]


@pytest.mark.parametrize("end", UNCOUNTED)
async def test_the_count_of_a_claude_stream_s_start_is_no_count_of_its_output(
    upstream: Upstream, end: dict[str, Any]
) -> None:
    async with CannedProvider(event_answer(CLAUDE_START, *CLAUDE_TEXT, CLAUDE_END[0], end, CLAUDE_END[2])) as provider:
        text, usage, finish = await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True))
    assert (text, finish) == ("Hello", "stop")
    assert isinstance(usage, PartialUsage)
    assert (usage.has_prompt, usage.has_output, usage.known.prompt_tokens) == (True, False, 1_477)


async def test_a_claude_stream_that_begins_without_a_usage_is_billed_as_it_ends(upstream: Upstream) -> None:
    for message in (CLAUDE_START["message"] | {"usage": None}, without(CLAUDE_START["message"], "usage")):
        end = (CLAUDE_END[0], CLAUDE_END[1] | {"usage": CLAUDE_USAGE}, CLAUDE_END[2])
        answer = event_answer({"type": "message_start", "message": message}, *CLAUDE_TEXT, *end)
        async with CannedProvider(answer) as provider:
            got = await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True))
        assert got == ("Hello", CLAUDE_BILL, "stop")


@pytest.mark.parametrize(
    ("answer", "text", "usage"),
    [
        (CLAUDE_ANSWER | {"content": "Hello"}, "Hello", CLAUDE_BILL),
        (without(CLAUDE_ANSWER, "usage"), "Hello", None),
        (CLAUDE_ANSWER | {"usage": None}, "Hello", None),
        (CLAUDE_ANSWER | {"content": None}, None, CLAUDE_BILL),
    ],
)
async def test_odd_whole_answers_in_claude_s_form_are_read(
    upstream: Upstream, answer: dict[str, Any], text: str | None, usage: Any
) -> None:
    async with CannedProvider(json_answer(answer)) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5")))
    assert (reply.body["choices"][0]["message"]["content"] or None, reply.usage) == (text, usage)


async def test_comments_and_empty_lines_in_a_gemini_stream_are_skipped(upstream: Upstream) -> None:
    said, last = json.dumps(gemini("Hel")), json.dumps(gemini("lo", "STOP", GEMINI_USAGE))
    body = f": still here\n\nevent: message\nid: 1\ndata: {said}\n\ndata:\n\n: x\n\nretry: 5\ndata: {last}\n\n"
    async with CannedProvider(raw_answer(body.encode(), "text/event-stream")) as provider:
        got = await read(upstream, call(provider, "gemini/gemini-2.5-pro", stream=True))
    assert got == ("Hello", GEMINI_BILL, "stop")


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("deltas", [True, False])
async def test_blocks_that_never_end_or_late_are_ended_by_what_follows(
    upstream: Upstream, deltas: bool, late: bool
) -> None:
    written = json.dumps(WEATHER["input"])
    events: list[dict[str, Any]] = [CLAUDE_START]
    thought = {"type": "thinking", "thinking": "Let me see", "signature": "sig=="}
    events.append({"type": "content_block_start", "index": 0, "content_block": thought})
    events += [{**event, "index": 1} for event in CLAUDE_TEXT]
    for index, name in ((2, "toolu_1"), (3, "toolu_2")):
        block = WEATHER | {"id": name} | ({"input": {}} if deltas else {})
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [CLAUDE_END[0] | {"index": index - 1}] if late else []
        events += [tool_delta(part) | {"index": index} for part in (written[:5], written[5:]) if deltas]
    events += CLAUDE_END[1:]
    async with CannedProvider(event_answer(*events)) as provider:
        stream = await upstream.open_stream(
            upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5", stream=True))
        )
        whole = Assembly()
        async for chunk in stream:
            whole.add(chunk)
    message = whole.body()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "Let me see")
    assert [(each["id"], json.loads(each["function"]["arguments"])) for each in message["tool_calls"]] == [
        ("toolu_1", WEATHER["input"]), ("toolu_2", WEATHER["input"]),
    ]  # fmt: skip
    assert any(block.get("signature") == "sig==" for block in message["thinking_blocks"])
    assert isinstance(stream.usage, Usage)
    assert (stream.usage.prompt_tokens, stream.usage.output_tokens) == (1_477, 7)


async def test_thinking_that_comes_whole_is_read_with_its_signature(upstream: Upstream) -> None:
    block = {"type": "thinking", "thinking": "Let me see", "signature": "sig=="}
    begin = {"type": "content_block_start", "index": 0, "content_block": block}
    text = [{**event, "index": 1} for event in (*CLAUDE_TEXT, CLAUDE_END[0])]
    async with CannedProvider(event_answer(CLAUDE_START, begin, CLAUDE_END[0], *text, *CLAUDE_END[1:])) as provider:
        wanted = call(provider, "anthropic/claude-sonnet-4-5", stream=True)
        deltas = [
            choice["delta"]
            async for chunk in await upstream.open_stream(upstream.outgoing(wanted))
            for choice in chunk["choices"]
        ]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Let me see"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
    blocks = [block for delta in deltas for block in delta.get("thinking_blocks") or ()]
    assert [block.get("signature") for block in blocks if block.get("signature")] == ["sig=="]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_claude_stream_that_is_cut_is_no_answer(upstream: Upstream, whole: bool) -> None:
    async with CannedProvider(event_answer(CLAUDE_START, *CLAUDE_TEXT, whole=whole)) as provider:
        with pytest.raises(BrokenFault):
            await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True))


async def test_a_claude_that_filled_its_window_was_cut(upstream: Upstream) -> None:
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "model_context_window_exceeded"},
        "usage": {"output_tokens": 7},
    }
    stop = (CLAUDE_END[0], end, CLAUDE_END[2])
    async with CannedProvider(event_answer(CLAUDE_START, *CLAUDE_TEXT, *stop)) as provider:
        assert await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True)) == (
            "Hello", CLAUDE_BILL, "length",
        )  # fmt: skip


async def test_a_prompt_that_gemini_blocks_is_filtered_in_a_stream_too(upstream: Upstream) -> None:
    usage = {"promptTokenCount": 10, "totalTokenCount": 10}
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
    async with CannedProvider(event_answer(blocked)) as provider:
        told = await read(upstream, call(provider, "gemini/gemini-2.5-pro", stream=True))
    assert told == ("", Usage(10, 0), "content_filter")


async def test_gemini_answers_whole(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(gemini("Hello", "STOP", GEMINI_USAGE))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "gemini/gemini-2.5-pro")))
    assert reply.body["choices"][0]["message"]["content"] == "Hello"
    assert (reply.finish_reason, reply.usage) == ("stop", GEMINI_BILL)


async def test_gemini_streams(upstream: Upstream) -> None:
    events = gemini("Hel"), gemini("lo", "STOP", GEMINI_USAGE)
    async with CannedProvider(event_answer(*events)) as provider:
        assert await read(upstream, call(provider, "gemini/gemini-2.5-pro", stream=True)) == (
            "Hello", GEMINI_BILL, "stop",
        )  # fmt: skip


@pytest.mark.parametrize("word", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"])
async def test_a_call_of_gemini_s_that_came_out_malformed_is_no_answer(upstream: Upstream, word: str) -> None:
    """LiteLLM takes it for an empty answer that is complete."""
    answer = gemini("", word, GEMINI_USAGE)
    del answer["candidates"][0]["content"]
    for stream, sent in ((False, json_answer(answer)), (True, event_answer(answer))):
        async with CannedProvider(sent) as provider:
            wanted = call(provider, "gemini/gemini-2.5-pro", stream=stream)
            with pytest.raises(BrokenFault) as caught:
                await (upstream.open_stream if stream else upstream.complete)(upstream.outgoing(wanted))
        assert caught.value.usage == GEMINI_BILL


async def test_gemini_s_cached_audio_is_counted(upstream: Upstream) -> None:
    """LiteLLM subtracts it from the audio and tells it nowhere."""
    details = {
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}, {"modality": "AUDIO", "tokenCount": 70}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 40}],
    }
    usage = GEMINI_USAGE | details
    bill = replace(GEMINI_BILL, audio_input_tokens=70, cached_audio_tokens=40)
    said = json.dumps({"cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}]})
    async with CannedProvider(json_answer(gemini(said, "STOP", usage))) as provider:
        assert (await upstream.complete(upstream.outgoing(call(provider, "gemini/gemini-2.5-flash")))).usage == bill
    async with CannedProvider(event_answer(gemini("Hel", usage=usage), gemini(said, "STOP", usage))) as provider:
        _, reported, _ = await read(upstream, call(provider, "gemini/gemini-2.5-flash", stream=True))
        assert reported == bill


async def test_what_a_model_writes_as_arguments_is_no_usage_and_no_finish(upstream: Upstream) -> None:
    written = {"cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 9_000}], "finishReason": "STOP", "usage": 1}
    details = {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}, {"modality": "AUDIO", "tokenCount": 70}]}
    bill = replace(GEMINI_BILL, audio_input_tokens=70)
    model = "gemini/gemini-2.5-flash"

    def called(finish: str | None, usage: dict[str, Any] | None) -> dict[str, Any]:
        made = gemini("", finish, usage)
        made["candidates"][0]["content"]["parts"] = [{"functionCall": {"name": "f", "args": written}}]
        return made

    async with CannedProvider(json_answer(called("STOP", GEMINI_USAGE | details))) as provider:
        assert (await upstream.complete(upstream.outgoing(call(provider, model)))).usage == bill
    async with CannedProvider(event_answer(called("STOP", GEMINI_USAGE | details))) as provider:
        _, reported, _ = await read(upstream, call(provider, model, stream=True))
        assert reported == bill
    async with CannedProvider(event_answer(called(None, None))) as provider:
        with pytest.raises(BrokenFault):
            await read(upstream, call(provider, model, stream=True))
    tool = {"type": "tool_use", "id": "t", "name": "f", "input": written}
    async with CannedProvider(json_answer(CLAUDE_ANSWER | {"content": [tool]})) as provider:
        assert (
            await upstream.complete(upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5")))
        ).usage == CLAUDE_BILL


OLLAMA_COUNTS: list[tuple[dict[str, int], Any]] = [
    ({"prompt_eval_count": 26, "eval_count": 5}, Usage(26, 5)),
    ({"eval_count": 5}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
    ({"prompt_eval_count": 0, "eval_count": 5}, PartialUsage(Usage(0, 5), has_prompt=False, has_output=True)),
    ({"prompt_eval_count": 26}, PartialUsage(Usage(26, 0), has_prompt=True, has_output=False)),
    ({}, None),
]


@pytest.mark.filterwarnings("ignore::UserWarning:pydantic")
@pytest.mark.parametrize("kind", ["ollama_chat", "ollama"])
@pytest.mark.parametrize(("counts", "usage"), OLLAMA_COUNTS)
async def test_only_what_ollama_counted_is_its_usage(
    upstream: Upstream, kind: str, counts: dict[str, int], usage: Any
) -> None:
    def line(text: str, **more: Any) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if kind == "ollama_chat" else {"response": text}
        return {"model": "llama3", "created_at": "2026-01-01T00:00:00Z", "done": False, **said, **more}

    end = {"done": True, "done_reason": "stop", "total_duration": 9, **counts}
    async with CannedProvider(json_answer(line("Hello", **end))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, f"{kind}/llama3", api_base=provider.address)))
    assert (reply.body["choices"][0]["message"]["content"], reply.usage) == ("Hello", usage)
    lines = b"".join(json.dumps(each).encode() + b"\n" for each in (line("Hel"), line("lo"), line("", **end)))
    async with CannedProvider(raw_answer(lines, "application/x-ndjson")) as provider:
        assert await read(upstream, call(provider, f"{kind}/llama3", stream=True, api_base=provider.address)) == (
            "Hello",
            usage,
            "stop",
        )


async def test_a_gemini_stream_that_is_cut_is_no_answer(upstream: Upstream) -> None:
    async with CannedProvider(event_answer(gemini("Hel"), gemini("lo"))) as provider:
        with pytest.raises(BrokenFault):
            await read(upstream, call(provider, "gemini/gemini-2.5-pro", stream=True))


async def test_a_gemini_stream_without_usage_has_none(upstream: Upstream) -> None:
    async with CannedProvider(event_answer(gemini("Hello", "STOP"))) as provider:
        assert await read(upstream, call(provider, "gemini/gemini-2.5-pro", stream=True)) == ("Hello", None, "stop")


async def test_azure_is_called_with_its_own_path_and_key(upstream: Upstream) -> None:
    answer = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": {"prompt_tokens": 3,
        "completion_tokens": 4, "total_tokens": 7},
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    }  # fmt: skip
    async with CannedProvider(json_answer(answer)) as provider:
        wanted = call(provider, "azure/my-gpt", api_base=provider.address, options={"api_version": "2024-10-21"})
        reply = await upstream.complete(upstream.outgoing(wanted))
    assert reply.usage == Usage(3, 4)
    assert provider.received[0][0] == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"


ODD_CHUNKS: list[Any] = [
    {"choices": "none"}, {"choices": [None]}, {"choices": [[]]}, {"choices": [{"delta": 7}]}, {"choices": {}},
    {"choices": [{"index": [], "delta": {"role": 7}, "finish_reason": {}}]}, {"usage": "many"}, {"usage": [1]},
    {"choices": None, "model": 3}, {"choices": [{"delta": {"tool_calls": 5}}]}, [], 7, None, "text",
    {"usage": {"prompt_tokens": {"a": 1}, "prompt_tokens_details": []}}, {"error": 0, "choices": []}, {"error": "x"},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_CHUNKS, ids=str)
async def test_no_shape_of_a_chunk_or_an_answer_is_more_than_a_fault(upstream: Upstream, odd: Any) -> None:
    good = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    async with CannedProvider(raw_events(good, odd)) as provider:
        with pytest.raises(UpstreamFault):
            await read(upstream, call(provider, "openai/x", stream=True))
    async with CannedProvider(json_answer(odd)) as provider:
        with pytest.raises(UpstreamFault):
            await upstream.complete(upstream.outgoing(call(provider, "openai/x")))


def raw_events(*events: Any) -> bytes:
    lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(lines)
    return head + lines


@pytest.mark.parametrize(
    ("word", "finish"), [("TOOL_CALL", "tool_calls"), ("MAX_TOKENS", "length"), ("COMPLETE", "stop"), ("ODD", "ODD")]
)
async def test_cohere_s_answers_end_as_they_say_and_keep_their_plan(upstream: Upstream, word: str, finish: str) -> None:
    answer = {
        "id": "c", "finish_reason": word,
        "message": {"role": "assistant", "tool_plan": "look first", "content": [{"type": "text", "text": "hi"}]},
        "usage": {"billed_units": {"input_tokens": 10, "output_tokens": 5}},
    }  # fmt: skip
    call = Call(
        "cohere_chat/command-a-03-2025", [{"role": "user", "content": "x"}], api_key="k", is_chat=True, params={}
    )
    async with CannedProvider(json_answer(answer)) as canned:
        reply = await upstream.complete(upstream.outgoing(replace(call, api_base=canned.address)))
    choice = reply.body["choices"][0]
    assert (choice["finish_reason"], choice["message"]["reasoning_content"]) == (finish, "look first")
    assert choice["message"]["content"] == "hi"
