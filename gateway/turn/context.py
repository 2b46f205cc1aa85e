"""A turn as it comes together: the scene before the decision, the choice, and the attempt whose money is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gateway.accounts.auth import Caller
from gateway.catalog.cost import Settlement
from gateway.catalog.models import Deployment
from gateway.catalog.tokens import PromptTokens
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect
from gateway.dialects.request import ChatRequest
from gateway.errors import (
    GatewayError,
    LedgerUnavailable,
    RateLimited,
    RequestBudgetExceeded,
    SessionBudgetExceeded,
    TenantBudgetExceeded,
)
from gateway.ledger.ledger import SessionRow
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.types import AccountKind, Balance, IdempotencyClaim, Refused, Resolved, SessionTerms
from gateway.money import usd_string
from gateway.providers.parameters import told
from gateway.routing import guard
from gateway.routing import session as sessions
from gateway.routing.estimates import Estimate, available
from gateway.routing.router import Routed
from gateway.turn.headers import TurnHeaders, TurnReport
from policy.features import expected_cost_usd
from policy.mdp import Observation

# A key's own budget is the operator's to raise, as its tenant's is; clients know these two codes.
Payer = AccountKind | Literal["request"]
"""What leaves a turn no more money: an account, or the request's own limit (X-Route-Max-USD)."""
_EXHAUSTED: Mapping[Payer, tuple[type[GatewayError], str]] = {
    "session": (SessionBudgetExceeded, "raise it with X-Session-Budget-USD or POST /v1/sessions/{id}"),
    "tenant": (TenantBudgetExceeded, "ask the operator to raise the tenant's budget"),
    "key": (TenantBudgetExceeded, "ask the operator to raise the key's budget"),
    "request": (RequestBudgetExceeded, "raise X-Route-Max-USD"),
}


@dataclass(frozen=True, slots=True)
class AvailableFunds:
    """What a turn can spend now and once everything that others hold came back, and the account that leaves no more."""

    left_nanousd: int
    account: Payer
    unspent_nanousd: int
    overdrawn_nanousd: int = 0
    """How far below zero that account is, after a bill above its hold or a lowered budget."""

    @property
    def remainder_nanousd(self) -> int:
        """What the account has left as its books say it, below zero too."""
        return self.left_nanousd - self.overdrawn_nanousd

    @property
    def contended(self) -> bool:
        """Whether turns under way hold money that this one could spend."""
        return self.unspent_nanousd > self.left_nanousd

    def after(self, refused: Refused) -> AvailableFunds:
        """What a refused reservation found to be left."""
        found = refused.balance
        if found.available_nanousd >= self.left_nanousd:
            return self
        unspent_nanousd = min(self.unspent_nanousd, found.available_nanousd + found.reserved_nanousd)
        return _funds(found.available_nanousd, refused.account, unspent_nanousd)

    def undisturbed(self) -> AvailableFunds:
        """The same once everything that others hold came back."""
        return replace(self, left_nanousd=self.unspent_nanousd)

    def all_held(self) -> AvailableFunds:
        """The same while others hold everything."""
        return replace(self, left_nanousd=0)


def _funds(remainder_nanousd: int, account: Payer, unspent_nanousd: int) -> AvailableFunds:
    left_nanousd = available([remainder_nanousd])
    return AvailableFunds(left_nanousd, account, max(left_nanousd, unspent_nanousd), max(0, -remainder_nanousd))


@dataclass(frozen=True, slots=True)
class Shortage:
    """No model is affordable now. `held`: one would be, if what others hold came back.

    `least_nanousd`: what the cheapest way needs; while money is held, for an answer that is not cut short.
    """

    funds: AvailableFunds
    least_nanousd: int
    held: bool


@dataclass(frozen=True, slots=True)
class TurnContext:
    """A turn before its decision: who asks what, in which session, and which models may answer."""

    caller: Caller
    chat: ChatRequest
    asked: TurnHeaders
    wish: guard.RequestedModel
    session_id: str
    row: SessionRow | None
    memory: sessions.SessionMemory
    tenant: Balance
    prompt: PromptTokens
    options: list[guard.Eligibility]
    terms: SessionTerms
    idempotency: IdempotencyClaim | None
    started_ms: int
    dialect: Dialect
    """How the client reads its answer."""
    outage: OfflineLedger | None = None
    """Where this turn's money is kept when the ledger is unavailable and its tenant is served all the same."""

    @property
    def explores(self) -> bool:
        """Whether this session lets its turns be left to chance: what its client said last."""
        return self.memory.explores if self.asked.explore is None else self.asked.explore

    @property
    def budget_nanousd(self) -> int:
        """The session's ceiling as this turn's header sets it."""
        if self.terms.ceiling_nanousd is not None:
            return self.terms.ceiling_nanousd
        return self.terms.default_nanousd if self.row is None else self.row.balance.granted_nanousd

    @property
    def session_left_nanousd(self) -> int:
        """What the session has left under that ceiling."""
        if self.row is None:
            return self.budget_nanousd
        return self.budget_nanousd - self.row.balance.reserved_nanousd - self.row.balance.spent_nanousd

    @property
    def funds(self) -> AvailableFunds:
        """What this turn can spend by the last read; the reservation is the authority."""
        session, tenant = self.session_left_nanousd, self.tenant.available_nanousd
        account: AccountKind = "tenant" if tenant < session else "session"
        held_nanousd = 0 if self.row is None else self.row.balance.reserved_nanousd
        # The least of both: another session's hold on a rich tenant takes nothing from this turn.
        unspent_nanousd = min(session + held_nanousd, tenant + self.tenant.reserved_nanousd)
        most = self.asked.max_cost_nanousd
        if most is not None and most < min(session, tenant):
            return _funds(most, "request", most)
        if most is not None:
            unspent_nanousd = min(unspent_nanousd, most)
        return _funds(min(session, tenant), account, unspent_nanousd)


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """A decision with what it was made of; `estimate` is the chosen model's."""

    observation: Observation
    routed: Routed
    estimate: Estimate
    uniform: float

    @property
    def expected_usd(self) -> float:
        """What the chosen model's cost law expected of this turn."""
        quantiles = self.observation.candidates[self.routed.decision.action].cost_quantiles_usd
        return float(expected_cost_usd(np.asarray(quantiles)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A turn whose money is reserved: one attempt on one deployment under one hold."""

    scene: TurnContext
    choice: RoutingDecision
    decision_id: str
    hold_id: str
    deployment: Deployment
    session: Balance
    tenant: Balance
    sent_ms: int = 0
    """When this attempt was dispatched."""
    dropped: tuple[str, ...] = ()
    """The client's parameters that this deployment is not sent."""
    first_byte_ms: int | None = None

    @property
    def model(self) -> str:
        """The catalogue's name of the chosen model."""
        return self.choice.estimate.view.name

    def identity(self, created_s: float) -> AnswerIdentity:
        """What a dialect writes at the head of the answer."""
        return AnswerIdentity(self.decision_id, self.model, created_s, self.scene.prompt.estimate)

    def report(self, bill: Settlement | None = None) -> TurnReport:
        """What the client may be told: at a stream's start without a bill, with the balances of the reservation."""
        estimate, decision = self.choice.estimate, self.choice.routed.decision
        return TurnReport(
            decision_id=self.decision_id,
            session_id=self.scene.session_id,
            model=self.model,
            policy_id=decision.policy_id,
            reason=decision.reason,
            reserved_nanousd=estimate.hold_nanousd,
            max_tokens=estimate.max_tokens if estimate.clamped else None,
            dropped=told((*self.scene.chat.dropped, *self.dropped)),
            cost_nanousd=None if bill is None else bill.amount_nanousd,
            usage_source=None if bill is None else bill.usage_source,
            session=self.session if bill is None else None,
            tenant=self.tenant if bill is None else None,
        )


def settled(report: TurnReport, resolved: Resolved | None) -> TurnReport:
    """The report with the balances after the settlement; None: the ledger is still posting it."""
    return report if resolved is None else replace(report, session=resolved.session, tenant=resolved.tenant)


def exhausted(scene: TurnContext, shortage: Shortage) -> GatewayError:
    """Say how much is left, where, and what the cheapest way would need: 402 when it is spent, with how to raise it.

    429 when turns under way only hold it: it comes back with their bills, so asking again helps.
    """
    funds, least_nanousd = shortage.funds, shortage.least_nanousd
    if scene.outage is not None:
        return LedgerUnavailable(
            "the ledger is unavailable, and what may be spent without it is used up", headers={"Retry-After": "5"}
        )
    details = {
        "session_id": scene.session_id,
        "remaining_nano_usd": funds.remainder_nanousd,
        "remaining_usd": usd_string(funds.remainder_nanousd),
        "needed_nano_usd": least_nanousd,
        "needed_usd": usd_string(least_nanousd),
    }
    found = (
        f"the {funds.account}'s budget has {usd_string(funds.remainder_nanousd)} USD left; the cheapest capable model "
        f"needs {usd_string(least_nanousd)} USD for this turn"
    )
    if shortage.held:
        held = usd_string(funds.unspent_nanousd - funds.left_nanousd)
        return RateLimited(
            f"{found}; other turns hold {held} USD until they are billed; try again",
            headers={"Retry-After": "1"},
            details=details,
        )
    kind, how = _EXHAUSTED[funds.account]
    return kind(f"{found}; {how}", headers={"x-should-retry": "false"}, details=details)


def billed(report: TurnReport, bill: Settlement) -> Billed:
    """A settled answer as dialects show it."""
    return Billed(bill.usage, bill.usage_source == "estimated", report.as_object())
