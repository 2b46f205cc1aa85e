"""Headers of turns beside a session's budget that was set by hand.

Agents send the same X-Session-Budget-USD with every turn, so a header is a change only if the session has not seen its
value. The rule is applied in the transaction that grants; on Postgres by `seqroute_budget_header`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import orjson
from msgspec import Struct

from gateway.ledger.types import SessionTerms

MAX_ASKED = 16
"""Values of headers that a session remembers, the last used ones."""


@dataclass(frozen=True, slots=True)
class BudgetHeaders:
    """The values that headers asked for, and whether the budget in force was set by hand."""

    asked: tuple[str, ...] = ()
    """The values, the last one at the end (`SessionTerms.asked`)."""
    by_hand: bool = False
    times_by_hand: int = 0
    """How often the budget was set by hand: a turn that came before the last time changes nothing."""

    def changed_by(self, terms: SessionTerms) -> bool:
        """True if the ceiling of a turn on these terms is in force."""
        if terms.ceiling_nanousd is None or terms.times_by_hand != self.times_by_hand:
            return False
        return not self.by_hand or terms.asked not in self.asked


class _Memory(Struct):
    """The part of a session's memory that is read here."""

    budget: BudgetHeaders = BudgetHeaders()


_MEMORY = msgspec.json.Decoder(_Memory)


def budget_headers(memory: str) -> BudgetHeaders:
    """Read them from a session's memory (JSON)."""
    return _MEMORY.decode(memory).budget


def apply_header(memory: str, terms: SessionTerms) -> tuple[bool, str]:
    """True if a turn's header changes the budget, and the session's memory after it."""
    known = budget_headers(memory)
    changes = known.changed_by(terms)
    asked = (*(value for value in known.asked if value != terms.asked), terms.asked)[-MAX_ASKED:]
    after = replace(known, asked=asked, by_hand=known.by_hand and not changes)
    return changes, memory if after == known else _with(memory, after)


def set_by_hand(memory: str) -> str:
    """The session's memory after its budget was set otherwise than by a header."""
    known = budget_headers(memory)
    return _with(memory, replace(known, by_hand=True, times_by_hand=known.times_by_hand + 1))


def _with(memory: str, budget: BudgetHeaders) -> str:
    return orjson.dumps(orjson.loads(memory) | {"budget": budget}).decode()
