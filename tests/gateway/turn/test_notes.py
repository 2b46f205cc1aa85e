"""Lines added to the system prompt of a turn: where they stand."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.accounts.remaining import budget_sentence, turns_left
from gateway.ledger.types import SessionTerms
from gateway.turn.headers import TurnHeaders
from gateway.turn.notes import MIN_TASK_TOKENS, task_budget, with_notes, with_task_budgets
from tests.gateway.turn.turns import LEFT, context
from tests.harness.models import deployment, model, prices

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


def test_the_turns_left_come_from_the_limits_else_from_the_cost_so_far() -> None:
    known = turns_left(2, 50, 100, (10, None, 8))
    assert known is not None
    assert (known.turns, known.known) == (6, True)
    by_cost = turns_left(2, 50, 100, (None,))
    assert by_cost is not None
    assert (by_cost.turns, by_cost.known) == (4, False)
    assert turns_left(0, 0, 100, ()) is None
    assert budget_sentence(5 * 10**8, 10**9, 0, None) == (
        "Budget of this session: 0.5 USD of 1 USD are left, and this is turn 1."
    )


def test_a_task_budget_is_what_is_left_at_the_chosen_model_s_output_price() -> None:
    claude = deployment("claude#0", litellm_model="anthropic/claude-opus-4-8")
    able = model("claude", prices(1.0, 2.0), deployments=(claude,), capabilities=frozenset({"task_budget"}))
    wanted = TurnHeaders(None, None, False, None, None, budget_visible="task_budget")
    found = task_budget(context(able, asked=wanted), able, claude)
    assert found == {"type": "tokens", "total": LEFT // 2_000, "remaining": LEFT // 2_000}
    # Not asked for, not known by the model, not Anthropic's own API, or less than Anthropic takes: the line remains.
    assert task_budget(context(able), able, claude) is None
    assert task_budget(context(able, asked=wanted), model("claude"), claude) is None
    assert task_budget(context(able, asked=wanted), able, deployment("other#0")) is None
    poor = SessionTerms(default_nanousd=MIN_TASK_TOKENS * 2_000 - 1)
    assert task_budget(context(able, asked=wanted, terms=poor), able, claude) is None


def test_a_task_budget_s_beta_is_sent_beside_the_operator_s() -> None:
    own = "task-budgets-2026-03-13"
    assert with_task_budgets({"x-team": "a"}) == {"x-team": "a", "anthropic-beta": own}
    assert with_task_budgets({"Anthropic-Beta": "context-1m, x"}) == {"anthropic-beta": f"context-1m,x,{own}"}
    assert with_task_budgets({"anthropic-beta": own}) == {"anthropic-beta": own}
