"""What a policy sees of a turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.ledger.types import Balance
from gateway.routing.observe import Observer
from gateway.routing.session import SessionMemory
from policy.mdp import Observation
from policy.text import HASHED_SPACE, TEXT_DIM, TextSpace, embed, space_number
from tests.gateway.turn.turns import LEFT, session_row
from tests.harness.models import chat

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def seen(request: dict[str, Any] | None = None, *, observer: Observer | None = None, **changes: Any) -> Observation:
    arguments: dict[str, Any] = {
        "memory": SessionMemory(), "row": None, "tenant": Balance(9 * LEFT, 0, LEFT),
        "budget_nanousd": LEFT, "left_nanousd": LEFT // 2, "expected_turns": 7, "lambda_per_usd": 3.0, "at_ms": 5_000,
    } | changes  # fmt: skip
    return (observer or Observer()).observe(chat(**(request or {})), **arguments)


def test_money_is_in_dollars_and_the_first_turn_is_turn_zero() -> None:
    session = seen().session
    assert (session.turn, session.budget_usd, session.remaining_usd, session.spent_usd) == (0, 1.0, 0.5, 0.0)
    assert (session.tenant_remaining_usd, session.expected_turns) == (8.0, 7)
    assert seen().lambda_per_usd == 3.0
    assert seen().candidates == ()


def test_a_later_turn_sees_what_was_spent_and_how_it_was_scored() -> None:
    row = session_row(Balance(LEFT, 0, LEFT // 4), turns=3, quality_count=2, quality_sum=1.0, last_quality=0.2)
    memory = SessionMemory(last_model="big", last_at_ms=2_000, failures=1)
    session = seen(row=row, memory=memory).session
    assert (session.turn, session.spent_usd, session.mean_quality, session.last_quality) == (3, 0.25, 0.5, 0.2)
    assert (session.last_model, session.seconds_since_last, session.failures) == ("big", 3.0, 1)


def test_tools_pictures_and_schemas_change_what_is_seen_of_the_text() -> None:
    plain = seen().text_stats
    picture = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    for request in (
        {"tools": TOOLS},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": picture}]},
    ):
        assert not np.array_equal(seen(request).text_stats, plain)
    assert np.array_equal(seen({"response_format": {"type": "text"}}).text_stats, plain)


def test_an_open_tool_loop_is_seen() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    loop = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    assert seen({"messages": loop}).session.tool_loop
    assert not seen({"messages": loop[:1]}).session.tool_loop


def test_a_turn_without_any_user_message_is_seen_as_an_empty_text() -> None:
    found = seen({"messages": [{"role": "system", "content": "be kind"}]})
    np.testing.assert_array_equal(found.text, embed(""))


def test_a_text_is_embedded_once_and_the_memory_of_texts_is_bounded() -> None:
    observer = Observer(cache_size=2)
    first = seen({"messages": "one"}, observer=observer).text
    for words in ("two", "three", "four"):
        seen({"messages": words}, observer=observer)
    assert len(observer._read) == 2
    np.testing.assert_array_equal(seen({"messages": "one"}, observer=observer).text, first)


def test_a_long_text_is_read_once_and_remembered_by_its_digest() -> None:
    observer, words = Observer(), "Why? " * 5_000
    first = seen({"messages": words}, observer=observer)
    ((key, read),) = observer._read.items()
    assert isinstance(key, bytes)
    assert len(key) == 64
    again = seen({"messages": words}, observer=observer)
    assert list(observer._read.values()) == [read], "the same arrays: nothing was computed again"
    np.testing.assert_array_equal(again.text, first.text)
    np.testing.assert_array_equal(again.text_stats, first.text_stats)


def test_a_text_is_of_the_space_that_is_configured() -> None:
    space = TextSpace("ones", lambda text: np.full(TEXT_DIM, len(text), np.float32))
    found = seen({"messages": "hi"}, observer=Observer(space))
    assert found.text == pytest.approx(np.full(TEXT_DIM, 1 / 16))
    assert (found.text_space, seen().text_space) == (space_number("ones"), HASHED_SPACE)


def test_a_route_is_of_the_first_system_messages_and_the_tools_whatever_the_date() -> None:
    def route(*messages: tuple[str, str], **more: Any) -> int:
        return seen({"messages": [{"role": role, "content": text} for role, text in messages], **more}).route

    said = ("user", "hello")
    alone = route(("system", "You answer on 30 November 2026."), said)
    assert 0 < alone < 2**24
    assert route(("system", "You answer on 1 November 2027."), ("user", "something else")) == alone
    assert route(("system", "You answer on 30 November 2026."), said, ("system", "be brief"), said) == alone
    others = [route(("system", "You answer."), said), route(said, tools=TOOLS), route(said)]
    assert len({alone, *others}) == 4
    assert others[2] == 0


@pytest.mark.parametrize("words", ["", "\0", "🙂" * 5_000, "\u202eevil", "x" * 200_000])
def test_whatever_the_text_is_it_becomes_finite_numbers(words: str) -> None:
    found = seen({"messages": words})
    assert np.isfinite(found.text).all()
    assert np.isfinite(found.text_stats).all()
