"""Lines that the gateway adds to a turn's system prompt: what is left, and how to end.

They go to the provider only: the client's messages, their digests and the session's memory stay as they were sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.accounts.remaining import budget_sentence, turns_left
from gateway.catalog.models import Deployment, Model
from gateway.money import FEMTOUSD_PER_USD, NANOUSD_PER_USD
from gateway.turn.context import TurnContext

_INSTRUCTIONS = ("system", "developer")
FEMTOUSD_PER_NANOUSD = FEMTOUSD_PER_USD // NANOUSD_PER_USD
_ANTHROPIC = re.compile(r"anthropic/|claude-")
_BETA = "anthropic-beta"
_TASK_BUDGETS = "task-budgets-2026-03-13"
"""The beta without which Anthropic refuses a task budget."""
MIN_TASK_TOKENS = 20_000
"""Anthropic refuses a smaller `task_budget.total`."""


def system_message(text: str) -> dict[str, Any]:
    """A system message of its own."""
    return {"role": "system", "content": text}


def with_notes(messages: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """The messages with the notes at the end of the system prompt, or as one when there is none."""
    if not notes:
        return messages
    text = "\n\n".join(notes)
    leading = 0
    while leading < len(messages) and messages[leading]["role"] in _INSTRUCTIONS:
        leading += 1
    if not leading:
        return [system_message(text), *messages]
    last = messages[leading - 1]
    content = last.get("content") or ""
    longer = [*content, {"type": "text", "text": text}] if isinstance(content, list) else f"{content}\n\n{text}"
    return [*messages[: leading - 1], {**last, "content": longer}, *messages[leading:]]


def budget_note(context: TurnContext) -> str:
    """The line that says what this turn and those after it may spend, in dollars and turns."""
    left_nanousd, row = context.funds_of_accounts.left_nanousd, context.row
    done = 0 if row is None else row.turns
    spent_nanousd = 0 if row is None else row.balance.spent_nanousd
    expected = context.asked.expected_turns or (None if row is None else row.expected_turns)
    turns = turns_left(done, spent_nanousd, left_nanousd, (expected, context.terms.max_turns))
    return budget_sentence(left_nanousd, context.budget_nanousd, done, turns)


def task_budget(context: TurnContext, model: Model, deployment: Deployment) -> dict[str, Any] | None:
    """The rest as Anthropic's task budget: tokens at the model's output price, its highest.

    None where the client did not ask for it, for a model that has none, and for less than Anthropic's minimum.
    """
    has_one = "task_budget" in model.capabilities and _ANTHROPIC.match(deployment.litellm_model) is not None
    if context.asked.budget_visible != "task_budget" or not has_one:
        return None
    per_token_femtousd = model.prices.at(context.prompt.estimate).output_femtousd
    if per_token_femtousd <= 0:
        return None
    total = context.budget_nanousd * FEMTOUSD_PER_NANOUSD // per_token_femtousd
    remaining = context.funds_of_accounts.left_nanousd * FEMTOUSD_PER_NANOUSD // per_token_femtousd
    if total < MIN_TASK_TOKENS:
        return None
    return {"type": "tokens", "total": total, "remaining": min(remaining, total)}


def with_task_budgets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a call with a task budget: its beta, added to the operator's."""
    others = {name: value for name, value in headers.items() if name.lower() != _BETA}
    stated = [value for name, value in headers.items() if name.lower() == _BETA]
    betas = [beta.strip() for value in stated for beta in value.split(",")]
    return others | {_BETA: ",".join(dict.fromkeys(filter(None, (*betas, _TASK_BUDGETS))))}
