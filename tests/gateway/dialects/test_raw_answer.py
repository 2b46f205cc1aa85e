"""Facts read from an answer as it was received: never out of the JSON that a model wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.raw_answer import gemini_finished


def called(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": arguments}}]}}]}


def events(*payloads: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(payload).encode() + b"\r\n\r\n" for payload in payloads)


COUNTED = {"usageMetadata": {"promptTokenCount": 9}}
WRITTEN = called({"finishReason": "STOP"})
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
