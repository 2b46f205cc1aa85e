"""What came of a turn: columns that no provider's words can break."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.usage import Usage
from gateway.decisions import log
from gateway.dialects import chat as outcome
from gateway.routing.session import SessionMemory
from gateway.turn.signals import implicit_signals
from tests.harness.models import chat


def columns(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "decision_id": "dec_1", "status": "completed", "usage": Usage(10, 5, cached_tokens=4),
        "usage_source": "reported", "latency_ms": 7, "first_byte_ms": None, "finish_reason": "stop",
        "error_code": None, "signals": {}, "response_text": None, "now_ms": 99,
    }  # fmt: skip
    return log.completed_columns(**(fields | changes))


def test_the_completion_s_id_is_the_decision_s() -> None:
    assert outcome.completion_id("dec_01abc") == "chatcmpl-01abc"


def test_the_body_is_the_provider_s_under_our_id_and_the_catalogue_s_name() -> None:
    said = {"id": "c", "object": "chat.completion", "created": 5, "model": "small", "choices": [1]}
    given = {"id": "x", "object": "", "model": "small-2026", "choices": [1]}
    assert outcome.answered(given, "c", "chat.completion", "small", 5) == said
    for created in (None, "yesterday", 1.5, True):
        assert outcome.answered(given | {"created": created}, "c", "chat.completion", "small", 5) == said
    assert outcome.answered(given | {"created": 7}, "c", "chat.completion", "small", 5)["created"] == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["message", "tool_calls", "function", "function_call", "arguments", "content", "refusal"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["message", "index"]), JSON, max_size=2), max_size=3), JSON)
def test_no_shape_of_an_answer_stops_its_settlement(choices: list[dict[str, Any]], finish_reason: Any) -> None:
    """A provider is free to send nonsense; the money of its call must come to rest all the same."""
    found = implicit_signals(chat(), SessionMemory(), choices, finish_reason)
    assert all(found.values())
    body = {"choices": choices}
    assert isinstance(outcome.generated_text(body), str)
    assert isinstance(log.stored_answer(body), str)
    made = columns(finish_reason=finish_reason, signals=found)
    assert made["finish_reason"] is None or (
        isinstance(made["finish_reason"], str) and len(made["finish_reason"]) <= 32
    )


def test_the_columns_of_a_completed_decision() -> None:
    assert columns(signals={"truncated": True}, finish_reason="length") == {
        "completion_id": "chatcmpl-1", "status": "completed", "usage_source": "reported", "input_tokens": 10,
        "cached_tokens": 4, "output_tokens": 5, "latency_ms": 7, "first_byte_ms": None, "finish_reason": "length",
        "error_code": None, "failures": None, "signals": '{"truncated":true}', "response_text": None,
        "completed_at_ms": 99,
    }  # fmt: skip


@pytest.mark.parametrize("finish_reason", ["s\0top", "x" * 1000, 5, ["stop"], {"a": 1}])
def test_a_finish_reason_that_no_column_holds_is_cut_to_one_that_does(finish_reason: Any) -> None:
    kept = columns(finish_reason=finish_reason)["finish_reason"]
    assert kept is None or (len(kept) <= 32 and "\0" not in kept)


def test_text_a_tenant_lets_us_store_fits_its_column_whatever_is_in_it() -> None:
    text = "a\0b" + "x" * 2 * log.MAX_STORED_TEXT
    kept = columns(response_text=text)["response_text"]
    assert kept.startswith("ab")
    assert len(kept) == log.MAX_STORED_TEXT
    assert "\0" not in log.stored_request(chat([{"role": "user", "content": "a\0b"}]))


def test_everything_generated_is_counted() -> None:
    message = {
        "content": "one",
        "reasoning_content": "two",
        "tool_calls": [{"function": {"name": "f", "arguments": "3"}}],
    }
    assert (
        outcome.generated_text({"choices": [{"message": message}, {"message": {"content": "four"}}]}) == "onetwof3four"
    )


def test_our_own_count_of_usage_is_marked() -> None:
    estimated = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "estimated": True}
    assert outcome.estimated_usage(Usage(3, 4)) == estimated
