"""What an answer costs is read from its bytes: every shape of a usage, in every dialect, however the answer ends.

Prices in nano-USD a token: 1,000 in, 2,000 out, 100 cached, 1,250 written to the cache. The bill of a full report is
1,000 * 1,000 + 50 * 2,000. Our own estimate is 13 tokens of prompt and 2 of output.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.cost import Settlement, settlement
from gateway.catalog.usage import ReportedUsage
from gateway.providers.errors import UpstreamFault
from gateway.providers.providers import Call, Upstream
from tests.harness.dialects import as_events, as_frames
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer, raw_answer
from tests.harness.models import prices

# LiteLLM's wrapper reads attributes that pydantic wants to give up.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
]

TEXT = "hello there"
PRICES = prices(1.0, 2.0, cached_input_femtousd=10**8, cache_write_femtousd=125 * 10**7)
FULL = 1_000 * 1_000 + 50 * 2_000
PROMPT_KNOWN = 1_000 * 1_000 + 2 * 2_000
OUTPUT_KNOWN = 13 * 1_000 + 50 * 2_000
OWN = 13 * 1_000 + 2 * 2_000
AWS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s", "aws_region_name": "us-east-1"}

CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def billed(reported: ReportedUsage) -> Settlement:
    return settlement(PRICES, reported, held_nanousd=10**10, prompt_tokens=13, output_tokens=2)


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return CHUNK | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


def openai_whole(usage: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
    return json_answer(CHAT | {"choices": [choice], "usage": usage})


def openai_stream(usage: Any) -> bytes:
    said = [chunk({"role": "assistant", "content": "hello "}), chunk({"content": "there"}), chunk({}, "stop")]
    kind, body = as_events(*said, CHUNK | {"choices": [], "usage": usage}, done=True)
    return raw_answer(body, kind)


def claude_whole(usage: Any) -> bytes:
    return json_answer({
        "id": "m", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn", "stop_sequence": None, "usage": usage,
    })  # fmt: skip


def claude_events(start: Any, *ends: tuple[str | None, Any]) -> list[dict[str, Any]]:
    """The events of a message: its start with a usage, and a delta for each end (its reason, its usage)."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": [], "usage": start}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
        {"type": "content_block_stop", "index": 0},
        *({"type": "message_delta", "delta": {"stop_reason": reason}} | ({} if usage is None else {"usage": usage})
          for reason, usage in ends),
    ]  # fmt: skip


STOP = {"type": "message_stop"}


def claude_stream(usage: Any) -> bytes:
    return event_answer(*claude_events(usage, ("end_turn", usage)), STOP)


def gemini_answer(usage: Any, finish: str | None = "STOP") -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": [{"text": TEXT}]}, "index": 0, "finishReason": finish}
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-pro", "usageMetadata": usage}


def converse_whole(usage: Any) -> bytes:
    message = {"role": "assistant", "content": [{"text": TEXT}]}
    return json_answer({"output": {"message": message}, "stopReason": "end_turn", "usage": usage, "metrics": {}})


def converse_stream(usage: Any) -> bytes:
    kind, body = as_frames(
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": TEXT}}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": usage, "metrics": {"latencyMs": 1}}),
    )
    return raw_answer(body, kind)


def cohere_whole(usage: Any) -> bytes:
    message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
    return json_answer({"id": "c", "message": message, "finish_reason": "COMPLETE", "usage": usage})


def ollama(usage: Any) -> dict[str, Any]:
    counts = usage if isinstance(usage, dict) else {}
    said = {"message": {"role": "assistant", "content": TEXT}, "done": True, "done_reason": "stop"}
    return {"model": "m", "created_at": "2026-01-01T00:00:00Z", **said, **counts}


def responses_body(usage: Any, status: str = "completed", **more: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    item = {"type": "message", "id": "i", "role": "assistant", "status": "completed", "content": [part]}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-5-codex", "status": status,
        "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage, **more,
    }  # fmt: skip


def responses_events(usage: Any, kind: str = "completed", **more: Any) -> list[dict[str, Any]]:
    begun = responses_body(None, "in_progress") | {"output": []}
    delta = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": TEXT}
    ended = responses_body(usage, kind, **more)
    return [
        {"type": "response.created", "response": begun, "sequence_number": 0},
        delta | {"sequence_number": 1},
        {"type": f"response.{kind}", "response": ended, "sequence_number": 2},
    ]


@dataclass(frozen=True)
class Dialect:
    """A provider's model, and the names of its counts; `{}` answers stand for the usage of a test."""

    model: str
    prompt: str
    output: str
    base: str = "/v1"
    options: Mapping[str, str] | None = None

    def usage(self, prompt: Any, output: Any) -> dict[str, Any]:
        return {self.prompt: prompt, self.output: output}


OPENAI_NAMES = ("prompt_tokens", "completion_tokens")
DIALECTS = {
    "openai": (Dialect("openai/m", *OPENAI_NAMES), openai_whole, openai_stream),
    "mistral": (Dialect("mistral/m", *OPENAI_NAMES), openai_whole, openai_stream),
    "databricks": (Dialect("databricks/m", *OPENAI_NAMES), openai_whole, openai_stream),
    "datarobot": (Dialect("datarobot/m", *OPENAI_NAMES, base=""), openai_whole, openai_stream),
    "anthropic": (
        Dialect("anthropic/claude-sonnet-4-5", "input_tokens", "output_tokens", base=""), claude_whole, claude_stream
    ),
    "gemini": (
        Dialect("gemini/gemini-2.5-pro", "promptTokenCount", "candidatesTokenCount", base="/v1beta"),
        lambda usage: json_answer(gemini_answer(usage)),
        lambda usage: event_answer(gemini_answer(usage)),
    ),
    "bedrock": (
        Dialect("bedrock/us.amazon.nova-pro-v1:0", "inputTokens", "outputTokens", base="", options=AWS),
        converse_whole,
        converse_stream,
    ),
    "cohere": (
        Dialect("cohere/m", "input_tokens", "output_tokens", base="/cohere/v2/chat"), cohere_whole, cohere_whole
    ),
    "ollama": (
        Dialect("ollama_chat/m", "prompt_eval_count", "eval_count", base=""),
        lambda usage: json_answer(ollama(usage)),
        lambda usage: raw_answer(json.dumps(ollama(usage)).encode() + b"\n", "application/x-ndjson"),
    ),
    "responses": (
        Dialect("openai/responses/gpt-5-codex", "input_tokens", "output_tokens"),
        lambda usage: json_answer(responses_body(usage)),
        lambda usage: event_answer(*responses_events(usage)),
    ),
}  # fmt: skip

SHAPES: dict[str, tuple[Any, int, str]] = {
    "numbers": ((1_000, 50), FULL, "reported"),
    "texts": (("1000", "50"), FULL, "reported"),
    "nulls": ((None, None), OWN, "estimated"),
    "zeros": ((0, 0), OWN, "estimated"),
    "prompt": ((1_000, None), PROMPT_KNOWN, "estimated"),
    "no output": ((1_000, 0), PROMPT_KNOWN, "estimated"),
    "output": ((None, 50), OUTPUT_KNOWN, "estimated"),
    "unreadable": (("n/a", 50), OUTPUT_KNOWN, "estimated"),
    "impossible": ((1_000, 10**15), PROMPT_KNOWN, "estimated"),
    "other names": ({"prompt_tokens": 1_000, "completion_tokens": 50}, FULL, "reported"),
    "newer names": ({"input_tokens": 1_000, "output_tokens": 50}, FULL, "reported"),
    # 13 of prompt by our own count, and the rest of the total
    "total": ({"total_tokens": 1_050}, 13 * 1_000 + 1_037 * 2_000, "estimated"),
    "nothing": ({}, OWN, "estimated"),
    "null": (None, OWN, "estimated"),
    # 600 * 1,000 + 400 * 100 + 50 * 2,000
    "bad detail": (
        {"prompt_tokens": 1_000, "completion_tokens": 50, "total_tokens": 1_050, "cached_tokens": 400,
         "completion_tokens_details": {"reasoning_tokens": "n/a", "audio_tokens": 51}},
        740_000, "reported",
    ),
}  # fmt: skip


async def asked(upstream: Upstream, dialect: Dialect, answer: bytes, *, stream: bool) -> tuple[str, ReportedUsage, Any]:
    """The text, the usage and the fault, if any, of a call that gets `answer`."""
    text = ""
    async with CannedProvider(answer) as provider:
        options = dict(dialect.options or {})
        if dialect.options:
            options["aws_bedrock_runtime_endpoint"] = provider.address
        wanted = Call(
            litellm_model=dialect.model, api_base=None if options else provider.address + dialect.base,
            api_key="sk-ours", messages=[{"role": "user", "content": "hi"}], max_tokens=64, stream=stream,
            timeout_s=20.0, stream_timeout_s=15.0, options=options,
        )  # fmt: skip
        try:
            if not stream:
                reply = await upstream.complete(upstream.outgoing(wanted))
                return reply.body["choices"][0]["message"]["content"], reply.usage, None
            opened = await upstream.open_stream(upstream.outgoing(wanted))
        except UpstreamFault as fault:
            return "", fault.usage, fault
        try:
            async for each in opened:
                text += "".join(choice["delta"].get("content") or "" for choice in each["choices"])
        except UpstreamFault as fault:
            return text, opened.usage, fault
        return text, opened.usage, None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_usage_of_any_shape_is_read_or_marked(upstream: Upstream, name: str, shape: str, stream: bool) -> None:
    dialect, whole, streamed = DIALECTS[name]
    counts, amount, source = SHAPES[shape]
    usage = dialect.usage(*counts) if isinstance(counts, tuple) else counts
    text, reported, fault = await asked(upstream, dialect, (streamed if stream else whole)(usage), stream=stream)
    bill = billed(reported)
    assert (text, fault, bill.amount_nanousd, bill.usage_source) == (TEXT, None, amount, source)


CLAUDE, GEMINI, RESPONSES = (DIALECTS[name][0] for name in ("anthropic", "gemini", "responses"))
MISTRAL, COHERE, BEDROCK = (DIALECTS[name][0] for name in ("mistral", "cohere", "bedrock"))
START = {"input_tokens": 1_000, "output_tokens": 1}
COUNTED = {"promptTokenCount": 1_000, "candidatesTokenCount": 50, "totalTokenCount": 1_050}
CHAT_COUNTS = {"prompt_tokens": 1_000, "completion_tokens": 50, "total_tokens": 1_050}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "o"}}
UNAVAILABLE = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}

ENDS: dict[str, tuple[Dialect, bytes, int, str, bool]] = {
    # (dialect, answer, bill, source, whether it ends properly)
    "cumulative deltas": (
        CLAUDE, event_answer(*claude_events(START, (None, {"output_tokens": 20}), ("end_turn", {"output_tokens": 50})),
                             STOP), FULL, "reported", True,
    ),
    "a delta behind the finish": (
        CLAUDE, event_answer(*claude_events(START, ("end_turn", {"output_tokens": 20}), (None, {"output_tokens": 50})),
                             STOP), FULL, "reported", True,
    ),
    "counted behind the finish alone": (
        CLAUDE, event_answer(*claude_events(START, ("end_turn", None), (None, {"output_tokens": 50})), STOP),
        FULL, "reported", True,
    ),
    "nulls behind counts": (
        CLAUDE, event_answer(*claude_events(START, ("end_turn", {
            "input_tokens": None, "cache_read_input_tokens": None, "output_tokens": 50})), STOP),
        FULL, "reported", True,
    ),
    # 1,000 * 1,000 + 400 * 100 + 200 * 1,250 + 50 * 2,000
    "a cache of the start": (
        CLAUDE, event_answer(*claude_events(
            START | {"cache_read_input_tokens": 400, "cache_creation_input_tokens": 200},
            ("end_turn", {"input_tokens": None, "cache_read_input_tokens": None, "output_tokens": 50})), STOP),
        1_390_000, "reported", True,
    ),
    "never counted": (CLAUDE, event_answer(*claude_events(START, ("end_turn", None)), STOP), PROMPT_KNOWN, "estimated",
                      True),
    "no end": (CLAUDE, event_answer(*claude_events(START)), PROMPT_KNOWN, "estimated", False),
    "an error": (CLAUDE, event_answer(*claude_events(START), OVERLOADED), PROMPT_KNOWN, "estimated", False),
    "a reset": (CLAUDE, event_answer(*claude_events(START), whole=False), PROMPT_KNOWN, "estimated", False),
    "counts in texts": (
        CLAUDE, event_answer(*claude_events({"input_tokens": "1000"}, ("end_turn", {"output_tokens": "50"})), STOP),
        FULL, "reported", True,
    ),
    "gemini, then an error": (
        GEMINI, event_answer(gemini_answer(COUNTED, None), UNAVAILABLE), FULL, "reported", False,
    ),
    "gemini, then a reset": (
        GEMINI, event_answer(gemini_answer(COUNTED), whole=False), FULL, "reported", True,
    ),
    "gemini, a prompt and no more": (
        GEMINI, event_answer(gemini_answer({"promptTokenCount": 1_000, "totalTokenCount": 1_000}, None)),
        PROMPT_KNOWN, "estimated", False,
    ),
    "mistral, then an error": (
        MISTRAL, event_answer(chunk({"content": TEXT}, usage=CHAT_COUNTS), UNAVAILABLE), FULL, "reported", False,
    ),
    "mistral, an early count": (
        MISTRAL, event_answer(chunk({"content": "hello "}, usage={"prompt_tokens": 1_000, "completion_tokens": 1}),
                              chunk({"content": "there"}), whole=False), PROMPT_KNOWN, "estimated", False,
    ),
    "x_groq": (
        MISTRAL, event_answer(chunk({"content": TEXT}), chunk({}, "stop", x_groq={"usage": CHAT_COUNTS})),
        FULL, "reported", True,
    ),
    "in the choice": (
        MISTRAL, event_answer(chunk({"content": TEXT}), CHUNK | {"choices": [
            {"index": 0, "delta": {}, "finish_reason": "stop", "usage": CHAT_COUNTS}]}), FULL, "reported", True,
    ),
    "a failed response": (
        RESPONSES, event_answer(*responses_events(
            {"input_tokens": 1_000, "output_tokens": 50}, "failed",
            error={"code": "server_error", "message": "o"})), FULL, "reported", False,
    ),
    "an incomplete response": (
        RESPONSES, event_answer(*responses_events(
            {"input_tokens": 1_000, "output_tokens": 50}, "incomplete",
            incomplete_details={"reason": "max_output_tokens"})), FULL, "reported", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
async def test_what_was_reported_is_billed_however_a_stream_ends(upstream: Upstream, name: str) -> None:
    dialect, answer, amount, source, proper = ENDS[name]
    text, reported, fault = await asked(upstream, dialect, answer, stream=True)
    bill = billed(reported)
    assert (text, bill.amount_nanousd, bill.usage_source) == (TEXT, amount, source)
    assert (fault is None) == proper


@pytest.mark.parametrize("stream", [False, True])
async def test_cohere_is_paid_what_it_billed(upstream: Upstream, stream: bool) -> None:
    units, tokens = {"input_tokens": 1_000, "output_tokens": 50}, {"input_tokens": 1_300, "output_tokens": 60}
    for usage in ({"billed_units": units, "tokens": tokens}, {"billed_units": units}):
        _, reported, _ = await asked(upstream, COHERE, cohere_whole(usage), stream=stream)
        assert billed(reported).amount_nanousd == FULL
        assert billed(reported).usage_source == "reported"


async def test_an_answer_that_bedrock_wraps_in_frames_is_read_event_by_event(upstream: Upstream) -> None:
    events = [*claude_events(START, ("end_turn", {"output_tokens": 50})), STOP]
    wrapped = [("chunk", {"bytes": base64.b64encode(json.dumps(event).encode()).decode()}) for event in events]
    kind, body = as_frames(*wrapped)
    claude = Dialect("bedrock/invoke/anthropic.claude-3-haiku-20240307-v1:0", "", "", base="", options=AWS)
    text, reported, fault = await asked(upstream, claude, raw_answer(body, kind), stream=True)
    assert (text, fault, billed(reported).amount_nanousd) == (TEXT, None, FULL)


async def test_what_a_client_received_before_it_left_is_billed_as_reported_so_far(upstream: Upstream) -> None:
    start = START | {"cache_creation_input_tokens": 50_000}
    async with CannedProvider(event_answer(*claude_events(start), whole=False)) as provider:
        wanted = Call(
            litellm_model=CLAUDE.model, api_base=provider.address, api_key="sk-ours", stream=True, timeout_s=20.0,
            stream_timeout_s=15.0, messages=[{"role": "user", "content": "hi"}], max_tokens=64,
        )  # fmt: skip
        stream = await upstream.open_stream(upstream.outgoing(wanted))
        with suppress(UpstreamFault):
            await anext(stream)
        await stream.aclose()
    # 1,000 * 1,000 + 50,000 * 1,250 + 2 * 2,000
    bill = billed(stream.usage)
    assert (bill.amount_nanousd, bill.usage_source) == (63_504_000, "estimated")


@pytest.mark.parametrize("finish", ["SAFETY", "RECITATION", "BLOCKLIST", "SPII", "PROHIBITED_CONTENT"])
async def test_a_whole_gemini_answer_keeps_the_text_that_was_stopped(upstream: Upstream, finish: str) -> None:
    text, reported, _ = await asked(upstream, GEMINI, json_answer(gemini_answer(COUNTED, finish)), stream=False)
    assert (text, billed(reported).amount_nanousd) == (TEXT, FULL)


async def test_a_gemini_stream_may_end_in_half_a_character(upstream: Upstream) -> None:
    answer = json.dumps(gemini_answer(COUNTED)).replace(TEXT, TEXT + "\\ud83d")
    body = f"data: {answer}\n\n".encode()
    text, reported, fault = await asked(upstream, GEMINI, raw_answer(body, "text/event-stream"), stream=True)
    assert (text, fault, billed(reported).amount_nanousd) == (TEXT + "\N{REPLACEMENT CHARACTER}", None, FULL)
