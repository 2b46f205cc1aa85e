"""Facts read from an answer as it was received: never out of the JSON that a model wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.raw_answer import gemini_cached_audio, gemini_finished, mentions_usage


def audio(count: Any) -> dict[str, Any]:
    return {"cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 5}, {"modality": "AUDIO", "tokenCount": count}]}


def called(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": arguments}}]}}]}


def events(*payloads: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(payload).encode() + b"\r\n\r\n" for payload in payloads)


COUNTED = {"usageMetadata": audio(40)}
WRITTEN = called({"usageMetadata": audio(9_000), **audio(9_000)})


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        (json.dumps(COUNTED | WRITTEN).encode(), 40),
        (json.dumps(WRITTEN | COUNTED).encode(), 40),
        (json.dumps(WRITTEN).encode(), 0),
        (json.dumps(WRITTEN | {"usageMetadata": audio(-3)}).encode(), 0),
        (json.dumps([{"usageMetadata": audio(3)}, WRITTEN | COUNTED]).encode(), 40),
        (events({"usageMetadata": audio(3)}, COUNTED, WRITTEN), 40),
        (events(WRITTEN | COUNTED, {"usageMetadata": {"promptTokenCount": 9}}), 0),
        (events(COUNTED)[9:] + events(WRITTEN), 0),
        (b"", 0),
    ],
)
def test_cached_audio_is_read_from_the_usage_alone(raw: bytes, tokens: int) -> None:
    assert gemini_cached_audio(raw) == tokens


ENDED = {"candidates": [{"content": {}, "finishReason": "STOP"}]}


@pytest.mark.parametrize(
    ("tail", "finished"),
    [
        (events(ENDED), True),
        (events(WRITTEN, ENDED, COUNTED), True),
        (events(called({"finishReason": "STOP", "candidates": [ENDED]})), False),
        (events({"candidates": [{"content": {}, "finishReason": None}]}), False),
        (events(ENDED)[20:], True),  # only the tail of a large event is kept
        (events(ENDED)[20:-4], False),
        (b"", False),
    ],
)
def test_a_finish_is_read_from_the_candidates_alone(tail: bytes, finished: bool) -> None:
    assert gemini_finished(tail) == finished


@pytest.mark.parametrize(
    ("answer", "mentioned"),
    [
        ({"usageMetadata": {"promptTokenCount": 3}}, True),
        ({"usageMetadata": {}}, False),
        ({"usage": None}, False),
        ({"prompt_eval_count": 3}, True),
        ({"results": [{"generated_token_count": 3}]}, True),
        ({"meta": {"billed_units": {}}}, True),
        (called({"usage": 1, "eval_count": 2}), False),
        ({"content": [{"type": "tool_use", "input": {"a": {"usage": 1}}}]}, False),
        ({"content": [{"type": "text", "text": "eval_count and _token_count"}]}, False),
        ({"message": {"content": "hi"}}, False),
    ],
)
def test_a_usage_is_found_in_no_tool_call(answer: dict[str, Any], mentioned: bool) -> None:
    assert mentions_usage(json.dumps(answer).encode()) == mentioned


def test_of_an_answer_that_is_not_json_the_text_is_searched() -> None:
    assert mentions_usage(b'data: {"usage": {}}\n\n')
    assert not mentions_usage(b"data: {}\n\n")
