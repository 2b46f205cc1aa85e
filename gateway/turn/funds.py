"""The money that a turn can spend, and the account that limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, structs

from gateway.ledger.types import Refused, RefusingAccount

Payer = RefusingAccount | Literal["request"]
"""The limit that binds a turn: an account, or the request's own maximum (X-Route-Max-USD)."""


class AvailableFunds(Struct, frozen=True):
    """The amount that a turn can spend, now and after others' releases; the limiting account."""

    left_nanousd: int
    account: Payer
    unspent_nanousd: int
    overdrawn_nanousd: int = 0
    """The account's deficit, after a bill above its hold or a lowered budget."""
    shared_nanousd: int | None = None
    """The amount of which one turn holds a share; None: `left_nanousd`. A request's own limit is not shared."""

    @property
    def remainder_nanousd(self) -> int:
        """The account's balance, possibly negative."""
        return self.left_nanousd - self.overdrawn_nanousd

    @property
    def contended(self) -> bool:
        """True if concurrent turns hold money that this one could spend."""
        return self.unspent_nanousd > self.left_nanousd

    def after(self, refused: Refused) -> AvailableFunds:
        """The funds as found by a refused reservation."""
        free_nanousd = refused.free_nanousd
        if free_nanousd >= self.left_nanousd:
            return self
        unspent_nanousd = min(self.unspent_nanousd, free_nanousd + refused.balance.reserved_nanousd)
        return funds_of(free_nanousd, refused.account, unspent_nanousd)

    def undisturbed(self) -> AvailableFunds:
        """The funds if others released all their holds."""
        return structs.replace(self, left_nanousd=self.unspent_nanousd)

    def all_held(self) -> AvailableFunds:
        """The funds if others held everything."""
        return structs.replace(self, left_nanousd=0)


def funds_of(remainder_nanousd: int, account: Payer, unspent_nanousd: int) -> AvailableFunds:
    """The funds of an account with this remainder, of which this much is not spent."""
    left_nanousd = max(0, remainder_nanousd)
    return AvailableFunds(left_nanousd, account, max(left_nanousd, unspent_nanousd), max(0, -remainder_nanousd))


@dataclass(frozen=True, slots=True)
class Shortage:
    """No model is affordable now. `held`: one would be if others released their holds.

    `least_nanousd`: the need of the cheapest model; while money is held, for a response that is not truncated.
    `busy_s`: seconds until an affordable model, now at its deployments' limits, has room; 0: there is none.
    `drawn`: whether a draw of the turn was lost to another turn before.
    """

    funds: AvailableFunds
    least_nanousd: int
    held: bool
    busy_s: int = 0
    drawn: bool = False
