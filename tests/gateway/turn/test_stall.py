"""Signs of an agent that goes in circles, read from its conversation."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.routing.session import SessionMemory
from gateway.turn.signals import implicit_signals
from gateway.turn.stall import STALE_CALLS, is_error, stall_signals
from tests.harness.models import chat

FILE = "the text of a file that is long enough to say something, line {}"


def step(name: str, arguments: str, result: str) -> list[dict[str, Any]]:
    """One tool call and its result."""
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": result},
    ]


def played(*steps: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "do it"}, *(message for each in steps for message in step(*each))]


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_the_same_round_of_calls_made_three_times_is_a_stall(round_: int) -> None:
    calls = [("read", f'{{"path": "{i % round_}", "line": 1}}', f"{i}") for i in range(3 * round_)]
    assert stall_signals(played(*calls)) == ("repeated_calls",)
    assert stall_signals(played(*calls[1:])) == ()
    # Spelling and order of the arguments do not matter, another value does.
    respelt = [*calls[:-1], ("read", f'{{"line":1,"path":"{(3 * round_ - 1) % round_}"}}', "x")]
    assert stall_signals(played(*respelt)) == ("repeated_calls",)
    assert stall_signals(played(*calls[:-1], ("read", '{"path": "other"}', "x"))) == ()


def test_three_errors_in_a_row_are_a_stall_and_a_success_ends_it() -> None:
    failing = [("run", f'{{"n": {i}}}', text) for i, text in enumerate(["Error: no", '{"error": "x"}', "Traceback"])]
    assert stall_signals(played(*failing)) == ("repeated_errors",)
    assert stall_signals(played(*failing, ("run", "{}", "done"))) == ()
    assert stall_signals(played(*failing[:2])) == ()


def test_results_that_were_all_seen_before_are_no_progress_and_short_ones_say_nothing() -> None:
    first = [("read", f'{{"n": {i}}}', FILE.format(i)) for i in range(4)]
    again = [("look", f'{{"n": {i}}}', FILE.format(i)) for i in range(4)]
    assert stall_signals(played(*first, *again)) == ("no_progress",)
    assert stall_signals(played(*first, *again[:3], ("look", "{}", FILE.format("new")))) == ()
    written = [("write", f'{{"n": {i}}}', "ok") for i in range(12)]
    assert stall_signals(played(*written)) == ()


@pytest.mark.parametrize("form", ["tools", "function_call", "custom"])
def test_calls_of_every_form_and_their_results_are_read(form: str) -> None:
    def made(name: str, arguments: str, result: str) -> list[dict[str, Any]]:
        called = {"name": name, "arguments": arguments}
        if form == "function_call":
            told = {"role": "assistant", "content": None, "function_call": called}
            return [told, {"role": "function", "name": name, "content": result}]
        asked, answer = step(name, arguments, result)
        if form == "custom":
            asked["tool_calls"] = [{"id": "c", "type": "custom", "custom": {"name": name, "input": arguments}}]
        return [asked, answer]

    same = [message for _ in range(3) for message in made("read", "{}", "Error: no")]
    assert stall_signals(same) == ("repeated_calls", "repeated_errors")
    different = [message for i in range(3) for message in made("read", str(i), "fine")]
    assert stall_signals(different) == ()


def test_a_context_that_grows_by_known_calls_alone_is_a_stall() -> None:
    known = [("read", f'{{"n": {i % STALE_CALLS}}}', f"{i}") for i in range(2 * STALE_CALLS)]
    assert stall_signals(played(*known)) == ("growing_context",)
    assert stall_signals(played(*known[:-1], ("read", '{"n": "a new file"}', "x"))) == ()


def test_a_conversation_without_tools_never_stalls() -> None:
    assert stall_signals([{"role": "user", "content": "again"}] * 50) == ()
    assert stall_signals([{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}, None]}] * 9) == ()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("Error: no such file", True), ("ENOENT", False), ("ValueError: x", True), ("[ERROR] x", True),
        ("exit code 1", True), ("exit code: 0", False), ('{"error": null}', False), ('{"ok": 1', False),
        ("errors: none found in 3 files", False), ("all tests passed, no error", False),
    ],
)  # fmt: skip
def test_an_error_is_told_by_its_first_words(result: str, expected: bool) -> None:
    assert is_error(result) is expected


def test_a_stall_is_logged_with_the_turn() -> None:
    asked = chat(messages=played(*[("read", "{}", "x")] * 3))
    assert implicit_signals(asked, SessionMemory(), [], "stop") == {"repeated_calls": True}
