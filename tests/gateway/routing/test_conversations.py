"""Which session a conversation without an id continues, and how long what it left is remembered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.database.database import Database, transaction
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import KnownBeginning
from gateway.routing.conversations import (
    MAX_SOUGHT,
    NEAREST,
    Conversation,
    Place,
    answer_digest,
    continued,
    conversation,
    forget,
    leave,
)


def asked(*texts: str, system: str | None = None, tenant_id: str = "t", key_id: str = "k") -> Conversation:
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return conversation(tenant_id, key_id, messages)


def answer(text: str) -> str:
    return answer_digest({"content": text})


def known(
    session_id: str, *texts: str, answered: str | None = "a", behind: str | None = None, opening: bool = False,
    at_ms: int = 0,
) -> KnownBeginning:  # fmt: skip
    made = asked(*texts, *([behind] if behind is not None else []))
    return KnownBeginning(
        digest=asked(*texts).digest,
        session_id=session_id,
        messages=len(texts),
        opening=opening or len(texts) == 1,
        answer=None if answered is None else answer(answered),
        continued=None if behind is None else made.next_digest(len(texts)),
        at_ms=at_ms,
    )


def chosen(turn: Conversation, *rows: KnownBeginning, retried: bool = False) -> str | None:
    matching = [row for row in rows if row.digest in turn.digests.values()]
    found = continued(turn, matching, retried=retried)
    return None if found is None else found.session_id


def test_the_longest_beginning_counts() -> None:
    rows = known("short", "f", behind="a"), known("long", "f", "a", "u", answered="b")
    assert chosen(asked("f", "a", "u", "b", "v"), *rows) == "long"


def test_the_same_first_turn_again_is_a_conversation_of_its_own_unless_it_is_a_retry() -> None:
    assert chosen(asked("f"), known("s", "f")) is None
    assert chosen(asked("f"), known("s", "f", answered=None)) == "s"
    assert chosen(asked("f"), known("s", "f"), retried=True) == "s"
    # A tool whose first turn brings examples, with answers among them.
    assert chosen(asked("x", "y", "f"), known("s", "x", "y", "f", opening=True)) is None


def test_of_runs_that_begin_alike_the_answer_tells_which_one_goes_on() -> None:
    rows = known("first", "f", answered="a", at_ms=1), known("second", "f", answered="b", at_ms=2)
    assert chosen(asked("f", "a", "u"), *rows) == "first"
    assert chosen(asked("f", "b", "u"), *rows) == "second"


def test_an_answer_that_its_client_changed_is_still_continued() -> None:
    assert chosen(asked("f", "shortened", "u"), known("s", "f", answered="a long answer")) == "s"


def test_what_was_continued_otherwise_is_another_conversation() -> None:
    assert chosen(asked("f", "b", "u"), known("first", "f", behind="a")) is None
    assert chosen(asked("f", "b", "u"), known("first", "f", behind="a"), known("second", "f")) == "second"


def test_an_agent_goes_on_after_a_sub_agent_that_was_told_of_its_call() -> None:
    """Google ADK: the sub-agent's history has the call in words, the agent's own history has the call itself."""
    call = {"id": "call_01512", "type": "function", "function": {"name": "transfer_to_agent", "arguments": "{}"}}
    told = "For context: [a] called tool `transfer_to_agent`"
    asked_first = {"role": "user", "content": "What is the weather?"}
    first = known("s", asked_first["content"]).digest
    row = KnownBeginning(
        digest=first, session_id="s", messages=1, opening=True, answer=answer_digest({"tool_calls": [call]}),
        continued=conversation("t", "k", [asked_first, {"role": "user", "content": told}]).next_digest(1), at_ms=1,
    )  # fmt: skip
    other = known("other", asked_first["content"], answered="It is sunny.", at_ms=2)
    again = conversation(
        "t", "k",
        [
            asked_first,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_01512", "content": "null"},
            {"role": "user", "content": "For context: [weatherman] said: It is sunny."},
        ],
    )  # fmt: skip
    assert chosen(again, row) == "s"
    assert chosen(again, row, other) == "s"


def test_two_runs_with_the_same_answers_stay_two() -> None:
    first = (
        known("first", "f", behind="a"),
        known("first", "f", "a", "u", answered="b", behind="b"),
        known("first", "f", "a", "u", "b", "v", answered="c"),
    )
    assert chosen(asked("f", "a", "u"), *first, known("second", "f")) == "second"
    second = known("second", "f", behind="a"), known("second", "f", "a", "u", answered="b")
    assert chosen(asked("f", "a", "u", "b", "v"), *first, *second) == "second"


def test_an_edited_or_repeated_later_message_stays_in_its_session() -> None:
    rows = known("s", "f", behind="a"), known("s", "f", "a", "u", answered="b", behind="b")
    assert chosen(asked("f", "a", "edited"), *rows) == "s"
    assert chosen(asked("f", "a", "u"), *rows) == "s"
    assert chosen(asked("f", "a", "u", "other", "w"), *rows) == "s"


def test_of_equals_the_newest_counts() -> None:
    assert chosen(asked("f", "a", "u"), known("old", "f", at_ms=1), known("new", "f", at_ms=2)) == "new"


def test_an_answer_is_known_by_its_tool_calls_else_by_its_text() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    given_out = answer_digest({"content": "I look.", "tool_calls": calls})
    assert given_out == answer_digest({"content": None, "tool_calls": [{"id": "call_1"}]})
    assert given_out != answer_digest({"content": "I look.", "tool_calls": [{"id": "call_2"}]})
    assert answer("text\n") == answer_digest({"content": [{"type": "text", "text": "text"}]}) != answer("other")


def test_a_system_prompt_and_the_way_of_writing_make_no_other_conversation() -> None:
    assert asked("f", "a").digest == asked("f", "a", system="be brief").digest
    parts = [{"type": "text", "text": "f", "cache_control": {"type": "ephemeral"}}]
    assert conversation("t", "k", [{"role": "user", "content": parts}]).digest == asked("f").digest
    assert conversation("t", "k", [{"role": "system", "content": "alone"}]).digest


def test_pictures_and_tool_results_count() -> None:
    def pictured(data: str) -> str:
        parts = [{"type": "text", "text": "f"}, {"type": "image_url", "image_url": {"url": f"data:{data}"}}]
        return conversation("t", "k", [{"role": "user", "content": parts}]).digest

    def result(call: str) -> str:
        return conversation("t", "k", [{"role": "tool", "tool_call_id": call, "content": "42"}]).digest

    assert pictured("AAAA") == pictured("AAAA") != pictured("BBBB")
    assert result("1") == result("1") != result("2")


TEXTS = st.lists(st.text(alphabet="abc", min_size=1, max_size=2), min_size=1, max_size=NEAREST)


@given(TEXTS, TEXTS)
def test_beginnings_are_equal_exactly_when_their_messages_are(one: list[str], other: list[str]) -> None:
    common = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        common += 1
    assert len(set(asked(*one).digests.values()) & set(asked(*other).digests.values())) == common


def test_of_a_very_long_conversation_a_bounded_number_of_the_longest_beginnings_is_looked_up() -> None:
    counts = [*asked(*map(str, range(5_001))).digests]
    # All messages; what lies near the end; then the turns before, each with an answer behind it.
    assert counts[:7] == [5_001, 5_000, 4_999, 4_998, 4_997, 4_995, 4_993]
    # The first turns, for histories that were shortened in the middle.
    assert counts[-5:] == [4_983, 7, 5, 3, 1]
    assert len(counts) == MAX_SOUGHT


def test_a_long_conversation_whose_old_results_are_shortened_stays_in_its_session() -> None:
    def history(turns: int) -> list[dict[str, Any]]:
        """The last three results are whole, those before them are cut down."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": "do it"}]
        for turn in range(turns):
            call = {"id": f"call_{turn}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            result = f"result {turn}" if turn >= turns - 3 else "[cut]"
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": result})
        return messages

    rows: list[KnownBeginning] = []
    for turn in range(40):
        now = conversation("t", "k", history(turn))
        found = continued(now, [row for row in rows if row.digest in now.digests.values()], retried=False)
        assert (found is None) == (turn == 0)
        said = answer_digest({"tool_calls": [{"id": f"call_{turn}"}]})
        behind = _next_digest(history(turn + 1), len(now.messages))
        rows.append(KnownBeginning(now.digest, "s", len(now.messages), turn == 0, said, behind, turn))


def _next_digest(messages: list[dict[str, Any]], count: int) -> str:
    return conversation("t", "k", messages).next_digest(count)


@pytest.fixture
async def ledger(database_url: str) -> Any:
    database = Database(database_url)
    await database.start()
    books = Ledger(database, clock=lambda: 0.0)
    await books.start()
    yield books
    await books.close()
    await database.close()


async def test_a_beginning_is_found_by_its_own_tenant_and_key_alone(ledger: Ledger, database_url: str) -> None:
    with transaction(database_url) as connection:
        leave(connection, "t", "s", Place(asked("f"), "s").beginning(answer("a")), 1_000)
    longer = asked("f", "a", "u")
    [found] = await ledger.beginnings("t", "k", longer.sought())
    assert found == known("s", "f", at_ms=1_000)
    assert await ledger.beginnings("t", "other", longer.sought()) == []
    assert await ledger.beginnings("other", "k", longer.sought()) == []


async def test_whoever_left_all_messages_is_found_and_who_left_the_longest_other_beginning(
    ledger: Ledger, database_url: str
) -> None:
    with transaction(database_url) as connection:
        for session_id, texts in (("a", "f"), ("b", "fau"), ("c", "faubv"), ("d", "f"), ("e", "faubvcw")):
            leave(connection, "t", session_id, Place(asked(*texts), session_id).beginning(answer("x")), 1)
    found = await ledger.beginnings("t", "k", asked(*"faubv").sought())
    assert {row.session_id for row in found} == {"c", "b"}


async def test_among_many_runs_that_begin_alike_the_one_with_the_answer_is_found(
    ledger: Ledger, database_url: str
) -> None:
    with transaction(database_url) as connection:
        for number in range(60):
            place = Place(asked("f"), f"s{number:03d}")
            leave(connection, "t", place.session_id, place.beginning(answer(f"a{number}")), number)
    rows = await ledger.beginnings("t", "k", asked("f", "a7", "u").sought())
    assert len(rows) == 4
    assert chosen(asked("f", "a7", "u"), *rows) == "s007"


def test_what_was_left_long_ago_is_forgotten(database_url: str) -> None:
    with transaction(database_url) as connection:
        for at_ms in (1_000, 2_000):
            leave(connection, "t", f"s{at_ms}", Place(asked("f"), f"s{at_ms}").beginning(None), at_ms)
        assert forget(connection, 2_000) == 1
        assert forget(connection, 2_000) == 0
