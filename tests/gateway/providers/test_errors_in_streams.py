"""Errors that a provider of another dialect reports inside its stream, after status 200."""

from __future__ import annotations

import binascii
import json
import struct
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.dialects.amazon_frames import last_exception
from gateway.errors import http_status
from gateway.providers.errors import BrokenMidAnswer, FailedFault, TimeoutFault, UpstreamFault
from gateway.providers.providers import Call, Upstream
from tests.gateway.providers.test_provider_dialects import CLAUDE_START, CLAUDE_TEXT, call, gemini, read
from tests.harness.dialects import DialectProvider, Spoken, as_frames, invoked, thrown
from tests.harness.fixed_answers import CannedProvider, event_answer, raw_answer

# LiteLLM's wrapper reads attributes that pydantic wants to give up.
pytestmark = pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}")

USER = {"role": "user", "content": "hi"}
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "o"}}
UNAVAILABLE = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
EXHAUSTED = {"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}


@pytest.mark.parametrize(
    ("model", "begun", "error", "status"),
    [
        ("anthropic/claude-sonnet-4-5", [CLAUDE_START, *CLAUDE_TEXT], OVERLOADED, 503),
        ("gemini/gemini-2.5-pro", [gemini("Hel")], UNAVAILABLE, 502),
        ("gemini/gemini-2.5-pro", [gemini("Hel")], EXHAUSTED, 429),
    ],
)  # fmt: skip
async def test_an_error_in_a_stream_of_another_dialect_means_what_its_status_would(
    upstream: Upstream, model: str, begun: list[dict[str, Any]], error: dict[str, Any], status: int
) -> None:
    async with CannedProvider(event_answer(error)) as provider:
        with pytest.raises(UpstreamFault) as first:
            await upstream.open_stream(upstream.outgoing(call(provider, model, stream=True)))
    assert http_status(first.value.answer()) == status
    assert (first.value.retryable, first.value.dispatched) == (True, False)
    async with CannedProvider(event_answer(*begun, error)) as provider:
        with pytest.raises(BrokenMidAnswer) as later:
            await read(upstream, call(provider, model, stream=True))
    assert http_status(later.value.answer()) == status
    assert (later.value.retryable, later.value.dispatched) == (False, True)


async def test_an_error_in_json_lines_is_one(upstream: Upstream) -> None:
    line = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "h"}}
    error = b'{"error":"an error was encountered while running the model"}\n'
    for begun, fault in ((b"", FailedFault), (json.dumps(line | {"done": False}).encode() + b"\n", BrokenMidAnswer)):
        async with CannedProvider(raw_answer(begun + error, "application/x-ndjson")) as provider:
            with pytest.raises(fault):
                await read(upstream, call(provider, "ollama_chat/llama3", api_base=provider.address, stream=True))


async def test_an_error_inside_a_claude_stream_is_one(upstream: Upstream) -> None:
    trouble = {"type": "error", "error": {"type": "overloaded_error", "message": "key sk-ours is tired"}}
    async with CannedProvider(event_answer(CLAUDE_START, *CLAUDE_TEXT, trouble)) as provider:
        with pytest.raises(UpstreamFault) as caught:
            await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True))
    assert "sk-ours" not in f"{caught.value!r}"


_ERROR = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "o"}})


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        f"event: error\r\ndata: {_ERROR}\r\n\r\n", f"data: {_ERROR}\nevent: error\n\n", f"data: {_ERROR}\n\n",
        "event: error\ndata: overloaded\n\n", "data: overloaded\nevent: error\n\n",
        'event: error\ndata: "overloaded"\n\n', 'event: error\ndata: {"message": "overloaded"}\n\n',
        'event: error\ndata: {"error": "overloaded"}\n\n', 'data: {"error": {"type": "overloaded_error"}}\n\n',
        'event: error\ndata: {"type": "overloaded_error", "message": "o"}\n\n',
        'event: error\ndata: {"type": "error",\ndata:  "error": {"type": "overloaded_error"}}\n\n',
    ],
)  # fmt: skip
async def test_an_error_event_of_a_claude_stream_means_what_it_says_in_every_form(
    upstream: Upstream, event: str, begun: bool
) -> None:
    """LiteLLM skips some of them, and takes others for an answer that it cannot read."""
    before = (CLAUDE_START, *CLAUDE_TEXT) if begun else ()
    body = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in before) + event
    async with CannedProvider(raw_answer(body.encode(), "text/event-stream")) as provider:
        with pytest.raises(UpstreamFault) as caught:
            await read(upstream, call(provider, "anthropic/claude-sonnet-4-5", stream=True))
    assert (type(caught.value), caught.value.status) == (BrokenMidAnswer if begun else FailedFault, 503)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("event", [f"data: {_ERROR}", "event: error\ndata: overloaded\n"])
@pytest.mark.parametrize(
    ("model", "before"),
    [
        ("anthropic/claude-sonnet-4-5", [CLAUDE_START, *CLAUDE_TEXT]), ("gemini/gemini-2.5-pro", [gemini("Hel")]),
        ("groq/llama", [{"choices": [{"index": 0, "delta": {"content": "Hel"}}]}]),
    ],
)  # fmt: skip
async def test_an_error_before_a_connection_breaks_is_read_although_its_line_has_no_end(
    upstream: Upstream, model: str, before: list[dict[str, Any]], event: str, begun: bool
) -> None:
    answer = event_answer(*(before if begun else ()), whole=False)
    async with CannedProvider(answer + f"{len(event):x}\r\n{event}\r\n".encode()) as provider:
        with pytest.raises(UpstreamFault) as caught:
            async with aclosing(
                await upstream.open_stream(upstream.outgoing(call(provider, model, stream=True)))
            ) as stream:
                async for _ in stream:
                    pass
    assert (type(caught.value), caught.value.status) == (BrokenMidAnswer if begun else FailedFault, 503)


@pytest.mark.parametrize(
    ("model", "before"),
    [
        ("bedrock/converse/amazon.nova-pro-v1:0", as_frames(
            ("messageStart", {"role": "assistant"}),
            ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}}),
        )),
        ("bedrock/invoke/anthropic.claude-3-5-sonnet-20240620-v1:0", invoked([CLAUDE_START, *CLAUDE_TEXT])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("kind", "message", "status", "code"),
    [
        ("throttlingException", "Too many requests", 429, ""), ("serviceUnavailableException", "x", 503, ""),
        ("internalServerException", "x", 502, ""), ("modelStreamErrorException", "x", 502, ""),
        ("modelTimeoutException", "x", 504, ""),
        ("validationException", "Input is too long for requested model.", 400, "context_length_exceeded"),
    ],
)  # fmt: skip
async def test_an_exception_in_amazon_s_frames_means_what_its_type_says(
    upstream: Upstream, model: str, before: Spoken, begun: bool, kind: str, message: str, status: int, code: str
) -> None:
    content_type, frames = before
    async with DialectProvider() as provider:
        provider.answering = lambda _: (content_type, (frames if begun else b"") + thrown(kind, message))
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region_name": "us-east-1"}
        asked = Call(model, [USER], api_base=provider.address, max_tokens=50, stream=True, options=keys)
        with pytest.raises(UpstreamFault) as caught:
            await read(upstream, asked)
    fault = caught.value
    meant = fault.meaning if isinstance(fault, BrokenMidAnswer) else fault
    assert isinstance(fault, BrokenMidAnswer | TimeoutFault) or not begun
    assert (meant.status, meant.code, meant.reported.type) == (status, code, kind)


@given(cut=st.integers(0, 400), noise=st.binary(max_size=40))
def test_an_exception_is_found_behind_a_frame_that_lost_its_beginning(cut: int, noise: bytes) -> None:
    _, frames = invoked([CLAUDE_START])
    found = last_exception(noise + frames[cut:] + thrown("throttlingException", "slow down"))
    assert found == {"type": "throttlingException", "message": "slow down"}
    assert last_exception(noise + frames[cut:]) is None


@pytest.mark.parametrize(
    ("length", "header_length"), [(0, 0), (8, 0), (15, 0), (16, 1), (16, 2**32 - 1), (40, 25), (2**32 - 1, 0)]
)
def test_a_frame_whose_lengths_cannot_be_is_none(
    monkeypatch: pytest.MonkeyPatch, length: int, header_length: int
) -> None:
    """An end that is not behind the start was read without end."""
    lengths = struct.pack("!II", length, header_length)
    odd = lengths + struct.pack("!I", binascii.crc32(lengths))
    counted, checksums = binascii.crc32, iter(range(100))

    def checksum(data: bytes) -> int:
        assert next(checksums, None) is not None
        return counted(data)

    monkeypatch.setattr("gateway.dialects.amazon_frames.binascii.crc32", checksum)
    assert last_exception(odd + b":message-type" + b"x" * 20) is None
    found = last_exception(odd + thrown("throttlingException", "slow down"))
    assert found == {"type": "throttlingException", "message": "slow down"}
