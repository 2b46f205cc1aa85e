"""The questions, their checkers, and the solver that reads them."""

from __future__ import annotations

from random import Random

import pytest

from demo.answers import answer_text, chance_of_right
from demo.conversations import make_conversation
from demo.models import KINDS, MODELS
from demo.solver import Message, Unsolvable, solve
from demo.tasks import INSTRUCTIONS, Task, final_answer, grade


def test_solver_and_generator_agree_on_every_question() -> None:
    """Two computations that share no code reach the same answer on 1,600 questions of all kinds."""
    kinds = set()
    for index in range(200):
        conversation = make_conversation(5, "learn", index, 8)
        messages = [Message("system", INSTRUCTIONS)]
        for turn, task in enumerate(conversation.tasks):
            messages.append(Message("user", conversation.user_message(turn)))
            solution = solve(messages)
            assert (solution.kind, grade(task, f"Answer: {solution.answer}")) == (task.kind, 1.0), task.prompt
            messages.append(Message("assistant", f"Answer: {solution.answer}"))
            kinds.add(task.kind)
    assert kinds == set(KINDS)


def test_a_slip_is_never_right_and_often_earns_nothing() -> None:
    scores = []
    for index in range(60):
        conversation = make_conversation(6, "learn", index, 4)
        messages = [Message("user", conversation.user_message(0))]
        slip = solve(messages).slip(Random(index))
        scores.append(grade(conversation.tasks[0], f"Answer: {slip}"))
    assert max(scores) < 1.0
    assert sum(scores) / len(scores) < 0.15


def test_the_text_shows_how_difficult_a_question_is_though_not_exactly() -> None:
    pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for index in range(100):
        conversation = make_conversation(9, "learn", index, 8)
        messages: list[Message] = []
        for turn, task in enumerate(conversation.tasks):
            messages.append(Message("user", conversation.user_message(turn)))
            solution = solve(messages)
            messages.append(Message("assistant", f"Answer: {solution.answer}"))
            pairs[task.kind].append((task.difficulty, solution.difficulty))
    for kind, seen in pairs.items():
        easy = [shown for aimed, shown in seen if aimed < 0.35]
        hard = [shown for aimed, shown in seen if aimed > 0.65]
        assert sum(hard) / len(hard) > sum(easy) / len(easy) + 0.35, kind
        assert any(abs(aimed - shown) > 0.05 for aimed, shown in seen), kind


def test_the_same_arguments_give_the_same_conversation_and_splits_differ() -> None:
    assert make_conversation(1, "learn", 4, 6) == make_conversation(1, "learn", 4, 6)
    assert make_conversation(1, "learn", 4, 6).tasks != make_conversation(1, "held-out", 4, 6).tasks
    assert make_conversation(1, "learn", 4, 6).tasks != make_conversation(2, "learn", 4, 6).tasks


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Adding up.\nAnswer: 1204", 1.0),
        ("Answer: 1,204.", 1.0),
        ("Answer: 12\nNo, wait.\nAnswer: 1204", 1.0),
        ("Answer: 1204\nNo, wait.\nAnswer: 12", 0.0),
        ("The result is 1204", 0.0),
        ("Answer: 1204 crates", 0.0),
        ("Answer:", 0.0),
        ("", 0.0),
    ],
)
def test_a_number_counts_only_on_the_last_answer_line(answer: str, score: float) -> None:
    assert grade(Task("story", "", "1204", "number", 0.5), answer) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('Answer: {"item": "oak board", "quantity": 12}', 1.0),
        ('Answer: {"quantity": 12, "item": "oak board"}', 1.0),
        ('Answer: {"item": "oak board", "quantity": "12"}', 0.5),
        ('Answer: {"item": "oak board", "quantity": 12, "extra": 1}', 0.5),
        ('Answer: {"item": "oak board", "quantity": true}', 0.5),
        ('Answer: {"item": "oak board", "quantity": 12', 0.0),
        ("Answer: [1]", 0.0),
    ],
)
def test_json_earns_the_share_of_keys_that_are_right(answer: str, score: float) -> None:
    assert grade(Task("format", "", '{"item": "oak board", "quantity": 12}', "json", 0.5), answer) == score


def test_a_wrong_earlier_answer_leads_a_later_one_astray() -> None:
    """A story that begins from the assistant's own answer inherits its mistake."""
    asked = "Question 2. A depot holds as many bales as your answer to question 1. A truck brings 5 more bales. "
    asked += "How many bales are there in the end?"

    def continued(first_answer: str) -> list[Message]:
        first = Message("user", "Question 1. Compute 20 + 20.")
        return [first, Message("assistant", f"Answer: {first_answer}"), Message("user", asked)]

    assert solve(continued("40")).answer == "45"
    assert solve(continued("41")).answer == "46"
    with pytest.raises(Unsolvable, match="question 1 has no numeric answer"):
        solve(continued("unknown"))


def test_updates_to_the_table_count_from_the_turn_they_are_made() -> None:
    table = "| item | city | stock | price |\n|---|---|---|---|\n| oak board | Lyon | 10 | 4 |"
    asked = "Question {}. {}In the inventory table, what is the stock of oak board?"
    messages = [Message("user", f"{table}\n\n{asked.format(1, '')}")]
    assert solve(messages).answer == "10"
    update = "Update to the table: the stock of oak board is now 77. "
    messages += [Message("assistant", "Answer: 10"), Message("user", asked.format(2, update))]
    assert solve(messages).answer == "77"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello there",
        "Compute ((((1.",
        "Compute 9999999 * 9999999 * 9999999.",
        "What does this Python program print?\n```python\nimport os\nprint(os)\n```",
        "What does this Python program print?\n```python\nfor i in range(999999999):\n    a = 1\nprint(a)\n```",
        "What does this Python program print?\n```python\nprint(" + "1+" * 5000 + "1)\n```",
        "what is the stock of oak board?",
    ],
)
def test_what_cannot_be_worked_out_is_refused_by_name(text: str) -> None:
    with pytest.raises(Unsolvable):
        solve([Message("user", text)])


def test_dearer_general_models_are_right_more_often_and_the_coder_codes() -> None:
    """By hand: at difficulty = ability, P(right) is half of the ceiling .96."""
    by_name = {model.name: model for model in MODELS}
    for kind in KINDS:
        nano, large = by_name["sim-nano"], by_name["sim-large"]
        assert chance_of_right(nano, kind, nano.ability[kind]) == pytest.approx(0.48)
        assert chance_of_right(large, kind, 0.9) > chance_of_right(nano, kind, 0.9) + 0.5
    assert chance_of_right(by_name["sim-coder"], "code", 0.8) > chance_of_right(by_name["sim-mid"], "code", 0.8) + 0.5


def test_answers_are_a_function_of_seed_model_and_question() -> None:
    message = [Message("user", make_conversation(3, "learn", 0, 4).user_message(0))]
    answers = {(m.name, seed): answer_text(m, seed, message) for m in MODELS for seed in (1, 2)}
    again = {(m.name, seed): answer_text(m, seed, message) for m in MODELS for seed in (1, 2)}
    assert answers == again
    assert len(set(answers.values())) == len(answers)
    assert all(final_answer(text) for text in answers.values())
