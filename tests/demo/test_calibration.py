"""The demo's world is one in which routing matters: measured on its own conversations, without a gateway."""

from __future__ import annotations

import pytest

from demo.answers import answer_text
from demo.billing import PrefixCache, Usage, cost_nanousd, cut, pieces, prompt_pieces
from demo.conversations import make_conversation
from demo.models import KINDS, MODELS, SimulatedModel
from demo.play import parse
from demo.player import MAX_TOKENS
from demo.solver import Message
from demo.tasks import INSTRUCTIONS, grade

SESSIONS = 60


def play(model: SimulatedModel) -> tuple[dict[str, list[float]], float]:
    """One model on every turn, money no object: its scores by kind, and USD per session."""
    options = parse([])
    cache, spent_nanousd = PrefixCache(lambda: 0.0), 0
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in range(SESSIONS):
        conversation = make_conversation(options.seed, "calibration", index, options.turns)
        messages = [Message("system", INSTRUCTIONS)]
        for turn, task in enumerate(conversation.tasks):
            messages.append(Message("user", conversation.user_message(turn)))
            tokens = prompt_pieces(messages)
            answer, _ = cut(answer_text(model, options.seed, messages), MAX_TOKENS)
            usage = Usage(len(tokens), cache.look_up(model.name, tokens), len(pieces(answer)))
            spent_nanousd += cost_nanousd(model, usage)
            scores[task.kind].append(grade(task, answer))
            messages.append(Message("assistant", answer))
    return scores, spent_nanousd / 1e9 / SESSIONS


def mean(scores: dict[str, list[float]]) -> float:
    everything = [score for of_kind in scores.values() for score in of_kind]
    return sum(everything) / len(everything)


@pytest.fixture(scope="module")
def played() -> dict[str, tuple[dict[str, list[float]], float]]:
    return {model.name: play(model) for model in MODELS}


def test_the_weakest_is_right_half_of_the_time_and_the_strongest_nearly_always(
    played: dict[str, tuple[dict[str, list[float]], float]],
) -> None:
    assert 0.42 < mean(played["sim-nano"][0]) < 0.60
    assert 0.90 < mean(played["sim-large"][0]) < 0.97


def test_the_average_budget_buys_the_strongest_for_less_than_every_turn_and_the_middle_one_for_all(
    played: dict[str, tuple[dict[str, list[float]], float]],
) -> None:
    budget_usd = parse([]).budget_usd
    assert played["sim-large"][1] > 1.3 * budget_usd
    assert played["sim-mid"][1] < budget_usd
    assert played["sim-large"][1] > 50 * played["sim-nano"][1]


def test_no_cheaper_model_is_best_at_everything_so_the_kind_of_question_matters(
    played: dict[str, tuple[dict[str, list[float]], float]],
) -> None:
    def at(name: str, kind: str) -> float:
        scores = played[name][0][kind]
        return sum(scores) / len(scores)

    assert at("sim-coder", "code") > at("sim-mid", "code") + 0.2
    assert at("sim-coder", "format") > at("sim-mid", "format") + 0.1
    assert at("sim-mid", "story") > at("sim-coder", "story") + 0.2
    assert at("sim-mini", "arithmetic") > at("sim-mid", "arithmetic")
