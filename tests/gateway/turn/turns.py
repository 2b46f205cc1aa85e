"""A turn as it stands before its call: caller, context, choice and hold, for tests of what comes after."""

from __future__ import annotations

from typing import Any

from gateway.accounts.auth import Caller
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.models import Deployment, Model
from gateway.catalog.tokens import PromptTokens
from gateway.config.settings import RouterSettings
from gateway.dialects.chat import ChatDialect
from gateway.ledger.records import SessionRow
from gateway.ledger.types import Balance, SessionTerms
from gateway.providers.balance import Full, LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.routing.estimates import TurnTerms, estimate
from gateway.routing.guard import Eligibility, RequestedModel
from gateway.routing.observe import Observer
from gateway.routing.router import Routed, forced
from gateway.routing.session import SessionMemory
from gateway.turn.context import Attempt, RoutingDecision, TurnContext
from gateway.turn.demand import demand_of
from gateway.turn.headers import TurnHeaders
from tests.harness.models import chat, model

LEFT = 1_000_000_000
CALLER = Caller("ten_1", "key_1", "tenant", False, None)


def session_row(balance: Balance, **changes: Any) -> SessionRow:
    fields: dict[str, Any] = {
        "tenant_id": "ten_1", "session_id": "s", "balance": balance, "state": "open", "turns": 1,
        "expected_turns": None, "memory": "{}", "last_decision_id": None, "quality_count": 0, "quality_sum": 0.0,
        "last_quality": None, "created_at_ms": 0, "updated_at_ms": 0, "tenant": Balance(LEFT, 0, 0),
    }  # fmt: skip
    return SessionRow(**(fields | changes))


def context(
    chosen: Model | None = None,
    *,
    row: SessionRow | None = None,
    tenant: Balance | None = None,
    terms: SessionTerms | None = None,
    asked: TurnHeaders | None = None,
    memory: SessionMemory | None = None,
    prompt_tokens: int = 100,
    **request: Any,
) -> TurnContext:
    subject = chosen or model()
    return TurnContext(
        caller=CALLER, chat=chat(**request), asked=asked or TurnHeaders(None, None, False, None, None),
        requested=RequestedModel(None, None), session_id="s", row=row, memory=memory or SessionMemory(),
        tenant=tenant or Balance(LEFT, 0, 0), prompt=PromptTokens(prompt_tokens, 2 * prompt_tokens),
        options=[Eligibility(subject, subject.deployments, "")], terms=terms or SessionTerms(default_nanousd=LEFT),
        idempotency=None, started_ms=1_000, dialect=ChatDialect(False),
    )  # fmt: skip


def attempt(
    subject: Model | None = None, *, chosen: Deployment | None = None, left_nanousd: int = LEFT, **of_context: Any
) -> Attempt:
    """A turn on `subject` (else `small` at 1,000 and 2,000 nano-USD a token) with its money held."""
    made = context(subject, **of_context)
    terms = TurnTerms(
        made.chat, made.memory, made.prompt, made.started_ms, available_nanousd=left_nanousd, over_budget="degrade"
    )
    found = estimate(made.options[0], terms, OutputForecast(), Breaker(lambda: 0.0, RouterSettings))
    observation = Observer().observe(
        made.chat, made.memory, made.row, made.tenant, budget_nanousd=LEFT, left_nanousd=left_nanousd,
        expected_turns=None, lambda_per_usd=1.0, at_ms=made.started_ms,
    ).with_candidates((found.view,))  # fmt: skip
    decision = forced(observation, "policy")
    taken = LoadBalancer(lambda: 0.0, RouterSettings).take(
        [chosen] if chosen else found.option.model.deployments, demand_of(made, found)
    )
    assert not isinstance(taken, Full)
    deployment, slot = taken
    balance = Balance(LEFT, found.hold_nanousd, 0)
    return Attempt(
        context=made,
        choice=RoutingDecision(observation, Routed(decision, None), found, 0.5),
        decision_id="dec_1",
        hold_id="hold_1",
        deployment=deployment,
        slot=slot,
        session=balance,
        tenant=balance,
    )
