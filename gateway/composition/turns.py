"""Composes a gateway's objects: they prepare, decide, call and settle its turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gateway.api.admission import call_left
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cost import Settlement
from gateway.composition.lifespan import Gateway
from gateway.composition.services import Services
from gateway.config.settings import Settings
from gateway.decisions.forecasts import SessionForecasts
from gateway.providers.balance import LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.routing.conversations import Conversations
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.turn.call import ProviderCalls
from gateway.turn.context import Attempt
from gateway.turn.decide import Decider, Estimator
from gateway.turn.deliver import Delivery
from gateway.turn.dry_run import DryRuns
from gateway.turn.endpoints import Endpoints
from gateway.turn.follow_up import FollowUps
from gateway.turn.judge import Judge
from gateway.turn.prepare import Preparation
from gateway.turn.reserve import Reservations
from gateway.turn.retry import RetryBudget
from gateway.turn.second_answers import SecondAnswers
from gateway.turn.settle import Listeners, Settlements
from gateway.turn.stall_rule import StallRule
from gateway.turn.turn import Turns
from gateway.turn.waiting import HeldMoney
from gateway.webhooks.delivery import Webhooks

if TYPE_CHECKING:
    from gateway.turn.tracing import TurnTracing


@dataclass(frozen=True, slots=True)
class _Routing:
    """What chooses a turn's model and deployment, and learns from how it ended."""

    router: Router
    exploring: ExplorationBudget
    answer_lengths: OutputForecast
    breaker: Breaker
    balancer: LoadBalancer
    held: HeldMoney
    decider: Decider


def compose(services: Services) -> Gateway:
    """Create every object of a turn; nothing starts yet."""
    current, database, clock = services.current, services.database, services.clock
    routing = _routing(services)
    judge = Judge(
        lambda: current().settings.policy.judge,
        database=database,
        metrics=services.metrics,
        clock=clock,
        new_id=services.new_id,
    )
    second_answers = SecondAnswers(current, database=database, metrics=services.metrics, clock=clock)
    tracing = _tracing(services.settings)
    settling = _settlements(services, routing, judge, second_answers, tracing)
    preparation = _preparation(services, routing)
    turns = _turns(services, routing, preparation, settling)
    forecasts = SessionForecasts(
        configuration=current, database=database, clock=clock, lambda_presets=routing.router.presets
    )
    return Gateway(
        services=services,
        turns=turns,
        endpoints=Endpoints(
            turns,
            configuration=current,
            authenticator=services.authenticator,
            database=database,
            tokens=services.tokens,
            clock=clock,
            on_refusal=services.metrics.count_refusal,
        ),
        dry_runs=DryRuns(
            configuration=current,
            authenticator=services.authenticator,
            preparation=preparation,
            decider=routing.decider,
            forecasts=forecasts,
        ),
        forecasts=forecasts,
        exploring=routing.exploring,
        judge=judge,
        second_answers=second_answers,
        webhooks=_webhooks(services),
        send_spans=(lambda: None) if tracing is None else tracing.close,
    )


def _routing(services: Services) -> _Routing:
    current, metrics, steady = services.current, services.metrics, services.steady
    router = Router(
        lambda: current().settings.policy,
        services.policies.rule,
        services.policies.lineup,
        monotonic=time.perf_counter,
        on_fault=metrics.policy_faults.inc,
    )
    exploring = ExplorationBudget(
        lambda: current().settings.policy.exploration_nanousd_per_day,
        services.clock,
        lambda: current().settings.policy.exploration_quota,
    )
    answer_lengths = OutputForecast()
    breaker = Breaker(steady, lambda: current().settings.router)
    held = HeldMoney(on_wait=call_left)
    decider = Decider(
        estimator=Estimator(configuration=current, forecast=answer_lengths, breaker=breaker, held=held),
        observer=Observer(services.text_space),
        router=router,
        exploring=exploring,
        metrics=metrics,
        clock=steady,
        uniform=services.uniform,
    )
    balancer = LoadBalancer(steady, lambda: current().settings.router)
    return _Routing(router, exploring, answer_lengths, breaker, balancer, held, decider)


def _settlements(
    services: Services, routing: _Routing, judge: Judge, second_answers: SecondAnswers, tracing: TurnTracing | None
) -> Settlements:
    def on_end(attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None) -> None:
        routing.decider.settled(attempt, columns, bill)
        if tracing is not None:
            tracing.turn_ended(attempt, columns, bill)

    def on_answer(attempt: Attempt, text: str) -> None:
        judge.offer(attempt, text, paired=second_answers.offer(attempt, text))

    return Settlements(
        ledger=services.ledger,
        leases=services.leases,
        tokens=services.tokens,
        forecast=routing.answer_lengths,
        metrics=services.metrics,
        clock=services.steady,
        listeners=Listeners(
            on_freed=lambda tenant_id, session_id: routing.held.freed((tenant_id, session_id)),
            on_end=on_end,
            on_answer=on_answer,
        ),
    )


def _preparation(services: Services, routing: _Routing) -> Preparation:
    return Preparation(
        configuration=services.current,
        ledger=services.ledger,
        outage=services.outage,
        tokens=services.tokens,
        breaker=routing.breaker,
        balancer=routing.balancer,
        conversations=Conversations(services.ledger, services.database, clock=services.clock, new_id=services.new_id),
        clock=services.steady,
    )


def _turns(services: Services, routing: _Routing, preparation: Preparation, settling: Settlements) -> Turns:
    current = services.current
    reservations = Reservations(
        configuration=current,
        decider=routing.decider,
        ledger=services.ledger,
        leases=services.leases,
        settling=settling,
        balancer=routing.balancer,
        held=routing.held,
        new_id=services.new_id,
    )
    return Turns(
        configuration=current,
        authenticator=services.authenticator,
        preparation=preparation,
        stall_rule=StallRule(
            configuration=current, database=services.database, clock=services.clock, new_id=services.new_id
        ),
        reservations=reservations,
        calls=_calls(services, routing, reservations, settling),
        delivery=Delivery(
            configuration=current,
            settling=settling,
            leases=services.leases,
            background=services.background,
            refused=services.refused,
            clock=services.steady,
        ),
        background=services.background,
    )


def _calls(services: Services, routing: _Routing, reservations: Reservations, settling: Settlements) -> ProviderCalls:
    return ProviderCalls(
        configuration=services.current,
        upstream=services.upstream,
        breaker=routing.breaker,
        reservations=reservations,
        follow_ups=FollowUps(
            configuration=services.current,
            breaker=routing.breaker,
            balancer=routing.balancer,
            decider=routing.decider,
            reservations=reservations,
            budget=RetryBudget(services.steady),
            uniform=services.uniform,
        ),
        settling=settling,
        background=services.background,
        clock=services.steady,
    )


def _webhooks(services: Services) -> Webhooks:
    current, metrics = services.current, services.metrics
    return Webhooks(
        lambda: current().settings.general.webhooks,
        database=services.database,
        clock=services.clock,
        uniform=services.uniform,
        new_id=services.new_id,
        on_sent=lambda outcome: metrics.webhooks.labels(outcome).inc(),
        on_queue=metrics.webhook_queue.set,
        idle_timeout_s=lambda: current().settings.session.idle_timeout_s,
    )


def _tracing(settings: Settings) -> TurnTracing | None:
    if not settings.general.tracing:
        return None
    from gateway.turn.tracing import from_environment  # noqa: PLC0415 - OpenTelemetry is an extra

    return from_environment(version("seqroute"))
