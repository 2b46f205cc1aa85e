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
    """What a turn can spend, the account that leaves it no more, and whether parallel turns spend from it too."""

    left_nanousd: int
    account: Payer
    contended: bool
    overdrawn_nanousd: int = 0
    """How far below zero that account is, after a bill above its hold or a lowered budget."""

    @property
    def remainder_nanousd(self) -> int:
        """What the account has left as its books say it, below zero too."""
        return self.left_nanousd - self.overdrawn_nanousd

    def after(self, refused: Refused) -> AvailableFunds:
        """The budget as a refused reservation found it."""
        contended = self.contended or refused.pending
        if refused.balance.available_nanousd >= self.left_nanousd:
            return replace(self, contended=contended)
        return _funds(refused.balance.available_nanousd, refused.account, contended)


def _funds(remainder_nanousd: int, account: Payer, contended: bool) -> AvailableFunds:
    return AvailableFunds(available([remainder_nanousd]), account, contended, max(0, -remainder_nanousd))


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
        # Only the account that binds counts: another session's hold on a rich tenant takes nothing from this turn.
        binding = self.tenant if account == "tenant" else None if self.row is None else self.row.balance
        most = self.asked.max_cost_nanousd
        if most is not None and most < min(session, tenant):
            return _funds(most, "request", False)
        return _funds(min(session, tenant), account, binding is not None and binding.reserved_nanousd > 0)


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


def exhausted(scene: TurnContext, funds: AvailableFunds, least_nanousd: int) -> GatewayError:
    """402: says how much is left, where, what the cheapest way would need, and how to raise it.

    While others spend from it also when to ask again: turns under way hold money that comes back with their bills.
    """
    if scene.outage is not None:
        return LedgerUnavailable(
            "the ledger is unavailable, and what may be spent without it is used up", headers={"Retry-After": "5"}
        )
    kind, how = _EXHAUSTED[funds.account]
    return kind(
        f"the {funds.account}'s budget has {usd_string(funds.remainder_nanousd)} USD left; the cheapest capable model "
        f"needs {usd_string(least_nanousd)} USD for this turn; {how}",
        headers={"x-should-retry": "false"} | ({"Retry-After": "1"} if funds.contended else {}),
        details={
            "session_id": scene.session_id,
            "remaining_nano_usd": funds.remainder_nanousd,
            "remaining_usd": usd_string(funds.remainder_nanousd),
            "needed_nano_usd": least_nanousd,
            "needed_usd": usd_string(least_nanousd),
        },
    )


def billed(report: TurnReport, bill: Settlement) -> Billed:
    """A settled answer as dialects show it."""
    return Billed(bill.usage, bill.usage_source == "estimated", report.as_object())
