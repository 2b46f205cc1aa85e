"""The data of a turn: context before the decision, the decision, and the reserved attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct, structs

from gateway.accounts.auth import Caller
from gateway.catalog.cost import Settlement
from gateway.catalog.efforts import SCALE
from gateway.catalog.models import Deployment
from gateway.catalog.tokens import PromptTokens
from gateway.decisions.failures import FailedAttempt
from gateway.dialects.dialect import AnswerIdentity, Billed, Dialect
from gateway.dialects.request import ChatRequest
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.rates import RateReading
from gateway.ledger.records import Chain, SessionRow
from gateway.ledger.types import (
    Balance,
    IdempotencyClaim,
    RefusingAccount,
    Resolved,
    SessionTerms,
    free_nanousd,
)
from gateway.providers.balance import Slot
from gateway.providers.parameters import header_names
from gateway.routing import guard
from gateway.routing import session as sessions
from gateway.routing.conversations import Place
from gateway.routing.estimates import Estimate
from gateway.routing.router import Routed
from gateway.turn.fallback import FALLBACK
from gateway.turn.funds import AvailableFunds, funds_of
from gateway.turn.headers import TurnHeaders, TurnReport
from gateway.turn.wrap_up import WRAP_UP
from policy.mdp import Observation

ORIGINS: Mapping[str, str] = {"embedding": "embed", "moderation": "moderate"}
"""Origins of rows that contain no decision and are excluded from training, by the request's mode."""


class Second(NamedTuple):
    """The model that answers a turn once more, unseen, and the probability of the pair."""

    model: str
    action: str
    """The model's name, or that of one of its efforts."""
    probability: float


class TurnContext(Struct, frozen=True):
    """A turn before its decision: caller, request, session, and eligible models."""

    caller: Caller
    chat: ChatRequest
    asked: TurnHeaders
    requested: guard.RequestedModel
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
    """The format of the response."""
    outage: OfflineLedger | None = None
    """The ledger of this turn when it is served during a database outage."""
    notes: tuple[str, ...] = ()
    """Lines that the system prompt gets for this turn only; `prompt` counts them."""
    parent_session_id: str | None = None
    """The parent of a session that this turn opens."""
    chain: Chain | None = None
    """Limits from the sessions above, of a session that has a parent."""
    kept_nanousd: int = 0
    """Amount that this turn leaves for the session's last answer."""
    growth_femtousd: int = 0
    """What each token of a long answer adds to that amount."""
    decides_kept: bool = False
    """True if this turn sets the amount that the session keeps; False leaves what an earlier turn kept."""
    closing: bool = False
    """True if this turn is the session's last answer (gateway.turn.wrap_up)."""
    fallback: bool = False
    """The requested model cannot be called at all: its fallback is."""
    stand_in: guard.Eligibility | None = None
    """The fallback of a requested model, in case another turn takes the model's last free place."""
    place: Place | None = None
    """Place of a conversation without an id among the known ones; None when the client names its session."""
    second: Second | None = None
    """The drawn pair of a second answer, which is logged with its probability."""

    @property
    def origin(self) -> str | None:
        """The origin of the turn's row; None: a client's turn of a conversation."""
        return ORIGINS.get(self.chat.mode, self.caller.origin)

    @property
    def explores(self) -> bool:
        """True if exploration is on for this session, by its client's last header."""
        return self.memory.explores if self.asked.explore is None else self.asked.explore

    @property
    def budget_nanousd(self) -> int:
        """The session's ceiling, including this turn's header; as the ledger will grant it."""
        row, chain = self.row, self.chain
        ceiling = self.terms.ceiling_nanousd if self.memory.budget.changed_by(self.terms) else None
        if row is None:
            if chain is None:
                return self.terms.default_nanousd if ceiling is None else ceiling
            return chain.granted_nanousd if ceiling is None else min(ceiling, max(0, chain.available_nanousd))
        granted, used = row.balance.granted_nanousd, row.balance.reserved_nanousd + row.balance.spent_nanousd
        if ceiling is None:
            return granted if chain is None or row.own_limit else max(granted, chain.granted_nanousd)
        if chain is not None:
            before = granted if row.own_limit else 0
            ceiling = min(ceiling, max(before, used + max(0, chain.available_nanousd)))
        return max(ceiling, min(granted, used))

    @property
    def session_left_nanousd(self) -> int:
        """The session's remaining amount under that ceiling."""
        if self.row is None:
            return self.budget_nanousd
        return self.budget_nanousd - self.row.balance.reserved_nanousd - self.row.balance.spent_nanousd

    def at_fallback(self, found: guard.Eligibility) -> TurnContext:
        """The turn at a fallback of the requested model."""
        action = found.model.action
        return structs.replace(
            self,
            requested=guard.RequestedModel(pinned=found.model.name, preset=None),
            options=[found if option.model.action == action else option for option in self.options],
            fallback=True,
            stand_in=None,
        )

    def with_ended_hold(self, held_nanousd: int, billed_nanousd: int) -> TurnContext:
        """The turn as its accounts will be when one of its holds is released and billed."""

        def ended(balance: Balance) -> Balance:
            return structs.replace(
                balance,
                reserved_nanousd=balance.reserved_nanousd - held_nanousd,
                spent_nanousd=balance.spent_nanousd + billed_nanousd,
            )

        row = None if self.row is None else structs.replace(self.row, balance=ended(self.row.balance))
        return structs.replace(self, row=row, tenant=ended(self.tenant))

    @property
    def funds(self) -> AvailableFunds:
        """The funds at the last read, within the request's limit; the reservation has the final say."""
        accounts, most = self.funds_of_accounts, self.asked.max_cost_nanousd
        if most is None:
            return accounts
        if most < accounts.remainder_nanousd:
            return structs.replace(funds_of(most, "request", most), shared_nanousd=accounts.left_nanousd)
        return structs.replace(
            accounts, unspent_nanousd=max(accounts.left_nanousd, min(accounts.unspent_nanousd, most))
        )

    @property
    def funds_of_accounts(self) -> AvailableFunds:
        """The funds of session and tenant at the last read."""
        session, tenant = self.session_left_nanousd, self.tenant.available_nanousd
        account: RefusingAccount = "session"
        held_nanousd = 0 if self.row is None else self.row.balance.reserved_nanousd
        # The least of all: another session's hold on a rich tenant takes nothing from this turn.
        unspent_nanousd = min(session + held_nanousd, tenant + self.tenant.reserved_nanousd)
        if self.chain is not None:
            unspent_nanousd = min(unspent_nanousd, self.chain.unspent_nanousd)
            if self.chain.available_nanousd < session:
                session, account = self.chain.available_nanousd, "parent"
        if tenant < session:
            account = "tenant"
        left_nanousd = free_nanousd(min(session, tenant), self.kept_nanousd)
        return funds_of(left_nanousd, account, free_nanousd(unspent_nanousd, self.kept_nanousd))


class RoutingDecision(Struct, frozen=True):
    """A decision with its inputs; `estimate` is the chosen model's."""

    observation: Observation
    routed: Routed
    estimate: Estimate
    uniform: float
    second_share: float = 0.0
    """Probability that another model answers the turn once more (gateway/turn/second_answers.py)."""

    @property
    def fallback_columns(self) -> dict[str, str | int | float]:
        """The columns of the logged decision that say who answered instead of the drawn model."""
        decision = self.routed.decision
        if decision.reason != FALLBACK:
            return {}
        return {"model": self.estimate.view.name, "action": decision.action, "propensity": 1.0, "reason": FALLBACK}

    @property
    def expected_usd(self) -> float:
        """The expected cost of the turn on the chosen model."""
        return self.observation.means_usd[self.routed.decision.action]


class Attempt(Struct, frozen=True):
    """A turn with reserved money: one attempt at one deployment under one hold."""

    context: TurnContext
    choice: RoutingDecision
    decision_id: str
    hold_id: str
    deployment: Deployment
    slot: Slot
    """The call's place at the deployment."""
    session: Balance
    tenant: Balance
    sent_ms: int = 0
    """When this attempt was dispatched."""
    dropped: tuple[str, ...] = ()
    """The client's parameters that are not sent to this deployment, in the client's words."""
    first_byte_ms: int | None = None
    rates: RateReading | None = None
    """What was left of the rate limits when the turn was admitted."""
    failures: tuple[FailedAttempt, ...] = ()
    """The failed attempts of this turn, the present one included once it has failed."""
    earlier_nanousd: int = 0
    """The bills of the turn's earlier attempts."""

    @property
    def model(self) -> str:
        """The catalogue's name of the chosen model."""
        return self.choice.estimate.option.model.name

    @property
    def effort(self) -> str | None:
        """The effort sent to a model with several: the client's own, else the chosen one.

        None if none was sent, or the client sets its reasoning in other words.
        """
        chosen, asked = self.choice.estimate.option.model.effort, self.context.chat.effort
        sent = chosen if asked is None else asked
        return sent if chosen and sent in SCALE else None

    @property
    def raises_budget(self) -> bool:
        """True if the reservation raised the budget of a known session."""
        row = self.context.row if self.context.outage is None else None
        return row is not None and self.session.granted_nanousd > row.balance.granted_nanousd

    def identity(self, created_s: float) -> AnswerIdentity:
        """The facts that a dialect needs before the first token."""
        return AnswerIdentity(self.decision_id, self.model, created_s, self.context.prompt.estimate)

    @property
    def _granted_less(self) -> int | None:
        """The session's budget, when it is less than what its client asked for."""
        asked, granted = self.context.terms.ceiling_nanousd, self.session.granted_nanousd
        return granted if asked is not None and granted < asked and self.context.outage is None else None

    @property
    def _lowered_max_tokens(self) -> int | None:
        """The limit of the answer where it is below the client's: for money, or as the model's own maximum."""
        estimate, asked = self.choice.estimate, self.context.chat.max_tokens or 0
        lowered = estimate.clamped or estimate.max_tokens < asked
        return estimate.max_tokens if lowered else None

    def report(self, bill: Settlement | None = None, settled: Resolved | None = None) -> TurnReport:
        """The report for the client; without a bill, at a stream's start, with reservation balances.

        After the settlement with the balances that it left, unless the ledger is still posting it.
        """
        estimate, decision = self.choice.estimate, self.choice.routed.decision
        balances = self if bill is None else settled
        return TurnReport(
            decision_id=self.decision_id,
            session_id=self.context.session_id,
            model=self.model,
            effort=self.effort,
            policy_id=decision.policy_id,
            reason=decision.reason,
            reserved_nanousd=estimate.hold_nanousd,
            max_tokens=self._lowered_max_tokens,
            dropped=header_names((*self.context.chat.dropped, *self.dropped)),
            finish=WRAP_UP if self.context.closing else None,
            cost_nanousd=None if bill is None else self.earlier_nanousd + bill.amount_nanousd,
            usage_source=None if bill is None else bill.usage_source,
            session=None if balances is None else balances.session,
            tenant=None if balances is None else balances.tenant,
            budget_nanousd=self._granted_less,
            rates=self.rates,
            tenant_soft_nanousd=self.context.caller.tenant_soft_nanousd,
            key_over_soft=self.context.caller.key_over_soft,
        )


def billed(context: TurnContext, report: TurnReport, bill: Settlement) -> Billed:
    """A settled response for rendering by a dialect.

    Its usage includes the remaining budget only on request, and never under an `Idempotency-Key`: the stored copy is
    made before the settlement, and a repeated answer is the same to the byte.
    """
    with_budget = context.asked.budget_visible is not None and context.idempotency is None
    return Billed(bill.usage, bill.usage_source == "estimated", report.as_object, with_budget)
