"""Lines added to the system prompt of a turn: where they stand."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.turn.notes import with_notes

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], [{"role": "system", "content": "a\n\nb"}, USER]),
        ([{"role": "system", "content": "x"}, USER], [{"role": "system", "content": "x\n\na\n\nb"}, USER]),
        (
            [
                {"role": "system", "content": "x"},
                {"role": "developer", "content": [{"type": "text", "text": "y"}]},
                USER,
            ],
            [
                {"role": "system", "content": "x"},
                {"role": "developer", "content": [{"type": "text", "text": "y"}, {"type": "text", "text": "a\n\nb"}]},
                USER,
            ],
        ),
        ([USER, {"role": "system", "content": "z"}], [{"role": "system", "content": "a\n\nb"}, USER,
                                                      {"role": "system", "content": "z"}]),
    ],
)  # fmt: skip
def test_notes_end_the_leading_system_prompt(messages: list[Any], expected: list[Any]) -> None:
    before = [dict(message) for message in messages]
    assert with_notes(messages, ("a", "b")) == expected
    assert messages == before
    assert with_notes(messages, ()) is messages
