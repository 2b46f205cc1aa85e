"""Signals become one score; silence is not zero."""

from __future__ import annotations

import math

from train.config import RewardConfig
from train.log.reward import Signal, label

CONFIG = RewardConfig(weights={"thumb": 3.0, "spam": 0.0}, implicit={"regenerated": 0.2, "invalid_tool_json": 0.0})


def test_scores_of_the_turn_are_averaged_by_weight() -> None:
    found = label([Signal("u", "thumb", 1.0), Signal("judge", "score", 0.6)], [], {}, CONFIG)
    assert math.isclose(found.score, (3 * 1.0 + 0.6) / 4)
    assert found.kind == "turn"


def test_a_session_score_stands_for_turns_without_their_own() -> None:
    assert label([], [Signal("u", "score", 0.4)], {"regenerated": True}, CONFIG).kind == "session"


def test_the_worst_implicit_signal_counts_when_no_one_spoke() -> None:
    found = label([], [], {"regenerated": True, "invalid_tool_json": 1, "latency": 3}, CONFIG)
    assert (found.score, found.kind) == (0.0, "implicit")


def test_a_graded_turn_keeps_the_mark_of_its_signal() -> None:
    """Turns with a signal are all graded, the others by chance: the estimates weigh the two apart."""
    spoken = [Signal("u", "score", 0.4)]
    assert label(spoken, [], {"regenerated": True}, CONFIG).implied
    assert label([], spoken, {"regenerated": True}, CONFIG).implied
    assert not label(spoken, [], {"latency": True}, CONFIG).implied


def test_silence_is_unlabelled_not_zero() -> None:
    found = label([Signal("bot", "spam", 0.0)], [], {"regenerated": False}, CONFIG)
    assert math.isnan(found.score)
    assert found.kind == "none"
