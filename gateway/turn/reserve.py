"""Reserves the worst case of an attempt, waiting briefly for money that others hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from msgspec import structs
from starlette.responses import Response

from gateway.accounts.auth import Caller
from gateway.accounts.tenants import SECOND
from gateway.catalog.live import Configuration
from gateway.catalog.models import Deployment
from gateway.clock import NewId
from gateway.decisions import log
from gateway.decisions.log import pending_row
from gateway.errors import NotFound
from gateway.http import Watch
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Refused, Reserve, Reserved, ReserveOutcome
from gateway.providers.balance import Full, LoadBalancer
from gateway.request_ids import note_decision
from gateway.routing import guard
from gateway.routing.router import POLICY_FAULT
from gateway.routing.session import SessionMemory
from gateway.turn.context import Attempt, RoutingDecision, TurnContext
from gateway.turn.decide import Decider
from gateway.turn.demand import demand_of
from gateway.turn.exhausted import exhausted
from gateway.turn.fallback import FALLBACK
from gateway.turn.funds import Shortage
from gateway.turn.idempotency import answer_or_raise
from gateway.turn.rate_limits import turn_limits
from gateway.turn.second_draw import second_chances, second_share
from gateway.turn.settle import Settlements
from gateway.turn.stream import run_until_disconnect
from gateway.turn.waiting import WAIT_S, HeldMoney
from gateway.turn.wrap_up import LastAnswer
from policy.mdp import ONLY_AFFORDABLE

RESERVE_TRIES = 4
"""Decisions of a turn that loses races for the remaining money."""


class Reservations:
    """Turns decisions into attempts with reserved money."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        decider: Decider,
        ledger: Ledger,
        leases: Leases,
        settling: Settlements,
        balancer: LoadBalancer,
        held: HeldMoney,
        new_id: NewId,
    ) -> None:
        self._configuration = configuration
        self._decider = decider
        self._ledger = ledger
        self._leases = leases
        self._settling = settling
        self._balancer = balancer
        self._held = held
        self._new_id = new_id

    def arriving(self, caller: Caller, session_id: str) -> AbstractContextManager[None]:
        """Count a turn among those that start in its session, until it has reserved."""
        return self._held.arriving((caller.tenant_id, session_id))

    def last_answer(self, closing: TurnContext) -> LastAnswer:
        """The money that a turn leaves for the session's last answer, whose context this is."""
        return self._decider.last_answer(closing)

    async def decide_and_reserve(self, context: TurnContext, watch: Watch | None) -> Attempt | Response:
        """Decide and reserve, waiting for money that others hold. Raises ClientLeft on a disconnect."""
        found = await self._try_to_reserve(context, patient=context.outage is None, redraws=False)
        if not isinstance(found, Shortage):
            return found
        if context.outage is not None or not found.held:
            raise exhausted(context, found)
        waiting = self._wait_and_reserve(context, found)
        return await (waiting if watch is None else run_until_disconnect(watch, waiting))

    async def _wait_and_reserve(self, context: TurnContext, found: Shortage) -> Attempt | Response:
        """Retry when money is released, at last for a shorter response. Raises 429, or 402 if spent."""
        account = context.session_id if found.funds.account == "session" else ""
        timeouts_s = (deployment.timeout_s for option in context.options for deployment in option.healthy)
        with self._held.line((context.caller.tenant_id, account), min(WAIT_S, *timeouts_s)) as place:
            patient = True
            while patient and found.held:
                place.short(found.least_nanousd, found.funds.left_nanousd)
                patient = await place.called()
                context = await self.refreshed(context)
                tried = await self._try_to_reserve(context, patient=patient, redraws=found.drawn)
                if not isinstance(tried, Shortage):
                    return tried
                found = tried
        raise exhausted(context, found)

    async def _try_to_reserve(
        self, context: TurnContext, *, patient: bool, redraws: bool
    ) -> Attempt | Response | Shortage:
        """Decide and reserve; after a lost race for money or room, decide again with the rest.

        `redraws`: whether a draw of this turn was lost before.
        """
        funds, policy = context.funds, self._configuration().settings.policy
        tries = RESERVE_TRIES
        while tries:
            guard.refuse_when_none(context.options, context.chat, context.prompt.estimate)
            choice = await self._decider.decide_soon(context, funds, patient=patient)
            if isinstance(choice, Shortage):
                return replace(choice, drawn=redraws)
            if redraws:
                choice = redrawn(choice)
            elif share := second_share(policy.judge, context):
                choice = structs.replace(choice, second_share=share)
            decision_id = self._new_id("dec")
            note_decision(decision_id)
            row = pending_row(
                choice.observation,
                choice.routed.decision,
                uniform=choice.uniform,
                requested_model=context.chat.model,
                endpoint=context.dialect.endpoint,
                request_text=log.stored_request(context.chat) if context.caller.store_text else None,
                shadow=choice.routed.shadow,
                now_ms=context.started_ms,
                origin=context.origin,
                exploration_floor=policy.exploration_floor if choice.observation.explore else 0.0,
                lowered_max_tokens=choice.estimate.max_tokens if choice.estimate.clamped else None,
                second_chances=second_chances(choice),
                root_session_id=context.chain.root_id if context.chain else None,
            )
            if context.second is not None:
                row |= {"propensity": context.second.probability, "reason": SECOND}
            answer = await self.reserve(context, choice, decision_id, row, choice.estimate.option.healthy)
            if isinstance(answer, Attempt):
                self._decider.executed(choice)
                return answer
            redraws = redraws or choice.routed.decision.propensity < 1.0
            if isinstance(answer, Full):
                model = choice.estimate.option.model.name
                options = guard.without_room(context.options, model, answer.wait_s)
                context = structs.replace(context, options=options)
                if model == context.requested.pinned and context.stand_in is not None:
                    context = context.at_fallback(context.stand_in)
                continue
            if isinstance(answer, Refused):
                funds, tries = funds.after(answer), tries - 1
                continue
            return answer_or_raise(answer, context.session_id)
        return replace(self._decider.shortage(context, funds), drawn=redraws)

    async def refreshed(self, context: TurnContext) -> TurnContext:
        """The context with what its accounts have now."""
        standing = await self._ledger.snapshot(context.caller.tenant_id, context.session_id)
        if standing is None:
            raise NotFound("tenant: no such tenant")
        chain = None if standing.session is None else standing.session.chain
        if standing.session is None and context.parent_session_id is not None:
            above = await self._ledger.snapshot(context.caller.tenant_id, context.parent_session_id)
            chain = None if above is None or above.session is None else above.session.as_parent
        memory = context.memory if standing.session is None else SessionMemory.from_json(standing.session.memory)
        return structs.replace(context, row=standing.session, memory=memory, tenant=standing.tenant, chain=chain)

    async def reserve(
        self,
        context: TurnContext,
        choice: RoutingDecision,
        decision_id: str,
        row: dict[str, Any] | None,
        deployments: Sequence[Deployment],
    ) -> Attempt | ReserveOutcome | Full:
        """Reserve the worst case of one attempt; `row` logs the decision (None: a further attempt)."""
        taken = self._balancer.take(deployments, demand_of(context, choice.estimate))
        if isinstance(taken, Full):
            return taken
        deployment, slot = taken
        attempt = Attempt(
            context=context,
            choice=choice,
            decision_id=decision_id,
            hold_id=self._new_id("hold"),
            deployment=deployment,
            slot=slot,
            session=context.tenant,
            tenant=context.tenant,
        )
        reserved = None
        try:
            reserved = await self._reserve_money(attempt, row)
        finally:
            if not isinstance(reserved, Reserved):
                slot.unsent()
        if not isinstance(reserved, Reserved):
            return reserved
        return structs.replace(attempt, session=reserved.session, tenant=reserved.tenant, rates=reserved.reading)

    async def _reserve_money(self, attempt: Attempt, row: dict[str, Any] | None) -> ReserveOutcome:
        """Reserve an attempt's money, and keep its lease."""
        context, estimate = attempt.context, attempt.choice.estimate
        # A turn asks for its session's budget once: it may have been set otherwise since.
        terms = context.terms if row is not None else structs.replace(context.terms, ceiling_nanousd=None)
        checkpoint_nanousd = self._settling.checkpoint_nanousd(attempt, 0)
        reserved = await (context.outage or self._ledger).reserve(
            Reserve(
                hold_id=attempt.hold_id,
                attempt_id=self._new_id("att"),
                decision_id=attempt.decision_id,
                tenant_id=context.caller.tenant_id,
                session_id=context.session_id,
                key_id=context.caller.key_id if context.caller.has_budget else None,
                model=attempt.model,
                amount_nanousd=estimate.hold_nanousd,
                ttl_ms=self._leases.ttl_ms,
                terms=terms,
                decision=row,
                idempotency=context.idempotency if row is not None else None,
                checkpoint_nanousd=checkpoint_nanousd,
                parent_session_id=context.parent_session_id,
                kept_nanousd=context.kept_nanousd if context.decides_kept and row is not None else None,
                closing=context.closing,
                limits=turn_limits(context, estimate, self._configuration().settings.general),
            )
        )
        if isinstance(reserved, Reserved) and context.outage is None:
            self._leases.take(attempt.hold_id, checkpoint_nanousd)
        return reserved


def redrawn(choice: RoutingDecision) -> RoutingDecision:
    """The decision of a turn whose earlier draw was lost, as a fallback.

    Training leaves it out: its model ran with the probability of all paths to it, also those without a lost draw.
    """
    decision = choice.routed.decision
    if decision.reason in (ONLY_AFFORDABLE, POLICY_FAULT):
        return choice
    return structs.replace(
        choice, routed=structs.replace(choice.routed, decision=structs.replace(decision, reason=FALLBACK))
    )
