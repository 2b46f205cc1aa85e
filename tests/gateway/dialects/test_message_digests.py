"""Digests of a conversation's beginnings."""

from __future__ import annotations

from typing import Any

from gateway.dialects.message_digests import MessageDigests, messages_digest


def test_a_cache_mark_that_moves_leaves_the_beginning_what_it_was() -> None:
    """Claude Code marks the newest message on every turn, and the one that was the newest no more."""
    mark = {"cache_control": {"type": "ephemeral"}}

    def said(text: str, **more: Any) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text, **more}]}

    marked = messages_digest([said("a"), said("b", **mark)])
    assert marked == messages_digest([said("a"), said("b")])
    assert marked == messages_digest([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert marked != messages_digest([said("a"), said("c", **mark)])
    tool = {"role": "tool", "tool_call_id": "t", "content": "x"}
    assert messages_digest([tool | mark]) == messages_digest([tool])


def test_each_beginning_has_the_digest_of_its_messages_alone() -> None:
    messages = [{"role": "user", "content": text} for text in "abc"]
    digests = MessageDigests(messages)
    assert len(digests) == 3
    assert [digests.of(count) for count in (1, 2, 3)] == [messages_digest(messages[:count]) for count in (1, 2, 3)]
    assert digests.whole == digests.of(3) != digests.of(2)
