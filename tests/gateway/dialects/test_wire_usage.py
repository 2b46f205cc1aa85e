"""Usage out of the bytes of an answer, in any form and in any pieces, and never out of what a model wrote."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.catalog.usage import Usage
from gateway.catalog.usage_reading import read_usage
from gateway.dialects.wire_usage import WireUsage, with_plain_usage
from tests.harness.dialects import as_frames

COUNTS = {"prompt_tokens": 1_000, "completion_tokens": 50}
WRITTEN = {
    "usage": {"prompt_tokens": 9, "completion_tokens": 9},
    "eval_count": 9,
    "usageMetadata": {"promptTokenCount": 9},
}


def events(*payloads: Mapping[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(payload).encode() + b"\r\n\r\n" for payload in payloads)


def wrapped(payload: Mapping[str, Any]) -> bytes:
    return as_frames(("chunk", {"bytes": base64.b64encode(json.dumps(payload).encode()).decode()}))[1]


ANSWERS: dict[str, bytes] = {
    "whole": json.dumps({"usage": COUNTS, "choices": []}).encode(),
    "printed": json.dumps({"choices": [], "usage": COUNTS}, indent=1).encode(),
    "a list": json.dumps([{"candidates": []}, {"usage": COUNTS}], indent=1).encode(),
    "lines": b'{"response": "a"}\n{"response": ""}\n' + json.dumps(COUNTS | {"done": True}).encode() + b"\n",
    "events": events({"choices": []}, {"usage": COUNTS}),
    "a byte order mark": b"\xef\xbb\xbf" + events({"usage": COUNTS}),
    "events of several lines": b"data: {\ndata: " + json.dumps({"usage": COUNTS}).encode()[1:] + b"\n\n",
    "events without a line between": b"data: {}\ndata: " + json.dumps({"usage": COUNTS}).encode() + b"\n\n",
    "frames": wrapped({"type": "message_start"}) + wrapped({"usage": COUNTS}),
    "frames of Amazon's own": as_frames(("messageStop", {}), ("metadata", {"usage": COUNTS}))[1],
    "a start and an end": events(
        {"type": "message_start", "message": {"usage": {"input_tokens": 1_000, "output_tokens": 1}}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 50}},
    ),
    "an end in a response": events({"type": "response.completed", "response": {"usage": COUNTS}}),
    "an end in a delta": events({"type": "message-end", "delta": {"usage": {"billed_units": COUNTS}}}),
    "results": events({"results": [{"input_token_count": 1_000, "generated_token_count": 50}]}),
    "half a character": b'data: {"choices": [{"delta": {"content": "\\ud83d"}}], "usage": '
    + json.dumps(COUNTS).encode() + b"}\n\n",
}  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_report_is_read_in_any_form_and_in_any_pieces(name: str, size: int) -> None:
    answer, made = ANSWERS[name], WireUsage()
    for start in range(0, len(answer), size):
        made.feed(answer[start : start + size])
    made.finish()
    assert read_usage(made.report) == Usage(1_000, 50)


@pytest.mark.parametrize(
    "answer",
    [
        {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": WRITTEN}}]}}]},
        {"content": [{"type": "tool_use", "input": WRITTEN}]},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "input": WRITTEN}},
        {"message": {"tool_calls": [{"function": {"arguments": WRITTEN}}]}},
        {"output": {"message": {"content": [{"toolUse": {"input": WRITTEN}}]}}},
        {"content": [{"type": "text", "text": "usage eval_count prompt_tokens"}]},
        {"usage": None}, {"usage": {}}, {"usageMetadata": {}}, {"meta": {"billed_units": {}}},
    ],
)  # fmt: skip
def test_what_a_model_wrote_is_no_report(answer: dict[str, Any]) -> None:
    for raw in (json.dumps(answer).encode(), events(answer), wrapped(answer)):
        assert read_usage(WireUsage.of(raw, {}).report) is None


def test_counts_before_the_last_words_are_outdated_until_the_next() -> None:
    made, said = WireUsage(), {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    for event, outdated in ((said | {"usage": COUNTS}, False), (said, True), ({"choices": []}, True),
                            (said | {"usage": COUNTS}, False), ({"error": {"message": "o"}}, False)):  # fmt: skip
        made.feed(events(event))
        assert made.outdated == outdated


def test_bedrock_s_headers_are_a_report() -> None:
    headers = {"x-amzn-bedrock-input-token-count": "1000", "x-amzn-bedrock-output-token-count": "50"}
    assert read_usage(WireUsage.of(b'{"outputText": "hi"}', headers).report) == Usage(1_000, 50)


def test_google_is_paid_for_a_search_and_not_for_what_it_found() -> None:
    counts = {"promptTokenCount": 10, "candidatesTokenCount": 5, "toolUsePromptTokenCount": 70, "totalTokenCount": 85}
    made = WireUsage.of(json.dumps({"usageMetadata": counts}).encode(), {})
    assert read_usage(made.report) == Usage(80, 5)
    made.note_searches({"prompt_tokens_details": {"web_search_requests": 2}})
    assert read_usage(made.report) == Usage(10, 5, web_searches=2)


def test_an_answer_for_litellm_keeps_all_but_its_usage() -> None:
    answer = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": None}
    assert json.loads(with_plain_usage(json.dumps(answer).encode()))["candidates"] == answer["candidates"]
    for kept in (b"no JSON", b"[1]", b'{"choices": [], "usage": null}'):
        assert with_plain_usage(kept) == kept
