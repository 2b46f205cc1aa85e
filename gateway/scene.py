"""A turn as it comes together: the scene before the decision, the choice, and the attempt whose money is held."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway import guard, sessions
from gateway.auth import Caller
from gateway.catalog import Deployment
from gateway.chat import ChatRequest
from gateway.cost import Settlement
from gateway.errors import GatewayError, SessionBudgetExceeded, TenantBudgetExceeded
from gateway.estimates import Estimate, available
from gateway.headers import TurnHeaders, TurnReport
from gateway.ledger import SessionRow
from gateway.money import usd_string
from gateway.operations import Balance, IdempotencyClaim, Resolved, SessionTerms
from gateway.router import Routed
from gateway.tokens import PromptTokens
from policy.features import Encoded
from policy.mdp import Observation


@dataclass(frozen=True, slots=True)
class Scene:
    """A turn before its decision: who asks what, in which session, and which models may answer."""

    caller: Caller
    chat: ChatRequest
    asked: TurnHeaders
    wish: guard.Wish
    session_id: str
    row: SessionRow | None
    memory: sessions.SessionMemory
    tenant: Balance
    prompt: PromptTokens
    options: list[guard.Option]
    terms: SessionTerms
    idempotency: IdempotencyClaim | None
    started_ms: int

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
    def left_nanousd(self) -> int:
        """What this turn can spend by the last read; the reservation is the authority."""
        return available([self.session_left_nanousd, self.tenant.available_nanousd])

    @property
    def contended(self) -> bool:
        """Whether turns under way hold money of this session or tenant by the last read."""
        return self.tenant.reserved_nanousd > 0 or (self.row is not None and self.row.balance.reserved_nanousd > 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """A decision with what it was made of; `estimate` is the chosen model's."""

    observation: Observation
    encoded: Encoded
    routed: Routed
    estimate: Estimate
    uniform: float


@dataclass(frozen=True, slots=True)
class Bound:
    """A turn whose money is reserved: one attempt on one deployment under one hold."""

    scene: Scene
    choice: Choice
    decision_id: str
    hold_id: str
    deployment: Deployment
    session: Balance
    tenant: Balance
    first_byte_ms: int | None = None

    @property
    def model(self) -> str:
        """The catalogue's name of the chosen model."""
        return self.choice.estimate.view.name

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
            cost_nanousd=None if bill is None else bill.amount_nanousd,
            usage_source=None if bill is None else bill.usage_source,
            session=self.session if bill is None else None,
            tenant=self.tenant if bill is None else None,
        )


def settled(report: TurnReport, resolved: Resolved | None) -> TurnReport:
    """The report with the balances after the settlement; None: the ledger is still posting it."""
    return report if resolved is None else replace(report, session=resolved.session, tenant=resolved.tenant)


def exhausted(scene: Scene, left_nanousd: int, least_nanousd: int, *, contended: bool) -> GatewayError:
    """402: says how much is left, where, what the cheapest way would need, and how to raise it.

    With `contended` also when to ask again: turns under way hold money that comes back with their bills.
    """
    kind: type[GatewayError] = SessionBudgetExceeded
    whose, how = "session", "raise it with X-Session-Budget-USD or POST /v1/sessions/{id}"
    if scene.tenant.available_nanousd < scene.session_left_nanousd:
        kind, whose, how = TenantBudgetExceeded, "tenant", "ask the operator to raise the tenant's budget"
    return kind(
        f"the {whose}'s budget has {usd_string(left_nanousd)} USD left; the cheapest capable model needs "
        f"{usd_string(least_nanousd)} USD for this turn; {how}",
        headers={"x-should-retry": "false"} | ({"Retry-After": "1"} if contended else {}),
        details={
            "session_id": scene.session_id,
            "remaining_nano_usd": left_nanousd,
            "remaining_usd": usd_string(left_nanousd),
            "needed_nano_usd": least_nanousd,
            "needed_usd": usd_string(least_nanousd),
        },
    )
