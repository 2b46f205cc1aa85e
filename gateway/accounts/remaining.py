"""The rest of a session in dollars and turns, for its model, its agent and its client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.money import usd_string
from gateway.wording import counted


@dataclass(frozen=True, slots=True)
class TurnsLeft:
    """A number of turns; `known`: by a limit or a hint, otherwise by the cost so far."""

    turns: int
    known: bool

    @property
    def text(self) -> str:
        """The end of a sentence about what is left."""
        turns = counted(self.turns, "turn")
        if self.known:
            return f"and {turns} including this one"
        return f"enough for about {turns} at the cost so far"


def turns_left(done: int, spent_nanousd: int, left_nanousd: int, most_turns: Iterable[int | None]) -> TurnsLeft | None:
    """The turns left after `done`, by the least of `most_turns`, else by the cost so far."""
    limits = [most - done for most in most_turns if most is not None]
    if limits:
        return TurnsLeft(max(1, min(limits)), known=True)
    if done and spent_nanousd:
        return TurnsLeft(max(0, left_nanousd) * done // spent_nanousd, known=False)
    return None


def budget_sentence(left_nanousd: int, budget_nanousd: int, done: int, turns: TurnsLeft | None) -> str:
    """One line for a model."""
    left, budget = usd_string(left_nanousd), usd_string(budget_nanousd)
    rest = f"and this is turn {done + 1}" if turns is None else turns.text
    return f"Budget of this session: {left} USD of {budget} USD are left, {rest}."
