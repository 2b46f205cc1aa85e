from __future__ import annotations

import pytest

from train.rollout.prompts import OVER, judge_messages, read_score, read_user, user_messages


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It is right.\nScore: 8", 0.8),
        ("Score: 2 at first sight, but\n**Score:** 7.5/10", 0.75),
        ("score = 0", 0.0),
        ("Score: 11", None),
        ("I would give it an eight.", None),
        ("", None),
    ],
)
def test_the_last_score_of_a_judgement_counts(text: str, score: float | None) -> None:
    assert read_score(text) == score


def test_a_judge_sees_rubric_conversation_and_answer_and_no_system_message() -> None:
    said = [{"role": "system", "content": "SECRET"}, {"role": "user", "content": "two plus two?"}]
    system, asked = judge_messages("is it a number?", said, "four")
    assert "Score: N" in system["content"]
    assert all(part in asked["content"] for part in ("is it a number?", "two plus two?", "<answer>\nfour\n</answer>"))
    assert "SECRET" not in asked["content"]


def test_the_user_model_says_the_next_line_or_that_it_is_over() -> None:
    system, _ = user_messages("a hurried cook", [{"role": "assistant", "content": "Boil it."}])
    assert "a hurried cook" in system["content"]
    assert OVER in system["content"]
    assert read_user("  How long? ") == "How long?"
    assert read_user(f"Thanks!\n{OVER}") is None
    assert read_user("  ") is None
