"""Lines that the gateway adds to a turn's system prompt: what is left, and how to end.

They go to the provider only: the client's messages, their digests and the session's memory stay as they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.money import usd_string
from gateway.turn.context import TurnContext

_INSTRUCTIONS = ("system", "developer")


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
    funds = context.funds_of_accounts
    left, budget = usd_string(funds.left_nanousd), usd_string(context.budget_nanousd)
    return f"Budget of this session: {left} USD of {budget} USD are left, {_turns_left(context, funds.left_nanousd)}."


def _turns_left(context: TurnContext, left_nanousd: int) -> str:
    row = context.row
    done = 0 if row is None else row.turns
    spent_nanousd = 0 if row is None else row.balance.spent_nanousd
    expected = context.asked.expected_turns or (None if row is None else row.expected_turns)
    limits = [most - done for most in (expected, context.terms.max_turns) if most is not None]
    if limits:
        return f"and {_counted(max(1, min(limits)))} including this one"
    if done and spent_nanousd:
        return f"enough for about {_counted(left_nanousd * done // spent_nanousd)} at the cost so far"
    return f"and this is turn {done + 1}"


def _counted(turns: int) -> str:
    return "1 turn" if turns == 1 else f"{turns} turns"
