"""Composition root: creates every object and route and passes each object to its users."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gateway.accounts.auth import Authenticator
from gateway.accounts.jwt import TokenVerifier, key_reader
from gateway.api.admin import Admin
from gateway.api.admission import Admission, Bodies, call_left
from gateway.api.budget_tool import BudgetTool
from gateway.api.charges import Charges
from gateway.api.health import Health, Lifecycle
from gateway.api.openapi import OpenApi
from gateway.api.places import PlaceLimits, Places
from gateway.api.planning import Planning
from gateway.api.resources import Views
from gateway.api.welcome import Welcome
from gateway.catalog import build as catalog
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cost import Settlement
from gateway.catalog.live import Configuration, LiveConfiguration
from gateway.catalog.models import Catalog
from gateway.catalog.tokens import TokenCounter
from gateway.clock import Clock, Entropy, NewId, SteadyClock, Uniform, elapsed_s, time_ordered_ids
from gateway.config.master_key import with_stored_master_key
from gateway.config.settings import Settings
from gateway.database.database import Database
from gateway.decisions.forecasts import SessionForecasts
from gateway.decisions.refused_turns import RefusedTurns
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.lifespan import Gateway, running
from gateway.metrics import Metrics
from gateway.money import NANOUSD_PER_USD
from gateway.policies.registry import PolicyRegistry
from gateway.providers.balance import LoadBalancer
from gateway.providers.call import Lane
from gateway.providers.cooldown import Breaker
from gateway.providers.providers import Upstream
from gateway.routes import error_handlers, health_routes, tenant_routes
from gateway.routing.conversations import Conversations
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.routing.text_space import text_space
from gateway.tasks import Background
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
from gateway.ui.actions import Actions
from gateway.ui.pages import Dashboard
from gateway.ui.sign_in import SignIn
from gateway.webhooks.delivery import Webhooks

if TYPE_CHECKING:
    from gateway.turn.tracing import TurnTracing

MAX_LARGE_BODIES = 8
"""Largest request bodies held in memory at once; the limit is on their total size."""
COLLECTOR_THRESHOLDS = (20_000, 20, 20)


def from_environment() -> ASGIApp:
    """Build the gateway of the file in SEQROUTE_CONFIG; the factory for uvicorn."""
    settings, models = catalog.load(Path(os.environ.get("SEQROUTE_CONFIG", "gateway.yaml")), os.environ)
    app = build(with_stored_master_key(settings).settings, models, environ=os.environ)
    app_parts(app).on_started = tune_garbage_collection
    return app


def tune_garbage_collection() -> None:
    """Exclude the objects made at start from garbage collection, and collect less often.

    LiteLLM and JAX are some 400,000 objects; a full collection over them blocks all turns for a quarter of a second.
    Most objects of a turn are freed by reference counting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def build(
    settings: Settings,
    models: Catalog,
    *,
    environ: Mapping[str, str] | None = None,
    upstream: Upstream | None = None,
    clock: Clock = time.time,
    uniform: Uniform | None = None,
    new_id: NewId | None = None,
) -> ASGIApp:
    """Build the gateway; `settings.general.master_key` must be set."""
    entropy = Entropy()
    parts, routes = assemble(
        settings,
        models,
        environ=environ or {},
        upstream=upstream or Upstream(),
        clock=clock,
        uniform=uniform or entropy.uniform,
        new_id=new_id or time_ordered_ids(clock, entropy.bytes),
    )
    app = Starlette(
        routes=routes,
        lifespan=lambda _: running(parts),
        exception_handlers=error_handlers(),
    )
    app.router.redirect_slashes = False  # a path with a trailing slash is a 404 like any other
    app.state.parts = parts
    direct = {("POST", prefix + "/chat/completions"): parts.endpoints.chat for prefix in ("/v1", "")}
    limits = settings.limits
    places = Places(PlaceLimits(limits.parallel_requests, limits.tenant_parallel_requests, limits.admission_wait_s))
    parts.metrics.running.set_function(lambda: places.active)
    parts.metrics.waiting.set_function(lambda: places.waiting)
    admission = Admission(
        app,
        parts.lifecycle,
        places,
        Bodies(MAX_LARGE_BODIES * limits.body_bytes),
        parts.authenticator.known_tenant,
        direct,
        cors_origins=settings.general.cors_origins,
        on_refusal=parts.metrics.count_refusal,
    )
    parts.shedding = admission.shedding()
    return admission


def assemble(
    settings: Settings,
    models: Catalog,
    *,
    environ: Mapping[str, str],
    upstream: Upstream,
    clock: Clock,
    uniform: Uniform,
    new_id: NewId,
) -> tuple[Gateway, list[BaseRoute]]:
    """Create every object and route without starting anything."""
    assert settings.general.master_key is not None, "the caller provides a master key"
    metrics, lifecycle, background = Metrics(), Lifecycle(), Background()

    def on_call(lane: Lane) -> None:
        metrics.upstream_calls.labels(lane).inc()
        call_left()

    upstream.on_call = on_call
    tokens = TokenCounter()
    database = Database(settings.general.database_url.reveal(), serving=True)
    steady = SteadyClock(clock)
    ledger = Ledger(database, clock=steady)
    outage = OfflineLedger(
        settings.policy.directory / "outage",
        cap_nanousd=settings.limits.outage_cap_nanousd,
        clock=steady,
        new_id=new_id,
    )
    leases = Leases(ledger, steady, ttl_s=settings.timings.hold_ttl_s)
    signed = settings.general.jwt
    verifier = None if signed is None else TokenVerifier(signed, key_reader(signed.jwks), clock, elapsed_s)
    authenticator = Authenticator(database, settings.general.master_key, clock, new_id, tokens=verifier)
    space = text_space(settings.policy.text)
    policies = PolicyRegistry(settings.policy, database, space.version)

    configuration = LiveConfiguration(Configuration(settings, models), environ, clock)

    def current() -> Configuration:
        return configuration.current

    router = Router(
        lambda: current().settings.policy,
        policies.rule,
        policies.lineup,
        monotonic=time.perf_counter,
        on_fault=metrics.policy_faults.inc,
    )
    refused = RefusedTurns(clock)
    exploring = ExplorationBudget(
        lambda: current().settings.policy.exploration_nanousd_per_day,
        clock,
        lambda: current().settings.policy.exploration_quota,
    )
    forecast = OutputForecast()
    judge = Judge(
        lambda: current().settings.policy.judge, database=database, metrics=metrics, clock=clock, new_id=new_id
    )
    second_answers = SecondAnswers(current, database=database, metrics=metrics, clock=clock)

    def on_answer(attempt: Attempt, text: str) -> None:
        judge.offer(attempt, text, paired=second_answers.offer(attempt, text))

    webhooks = Webhooks(
        lambda: current().settings.general.webhooks,
        database=database,
        clock=clock,
        uniform=uniform,
        new_id=new_id,
        on_sent=lambda outcome: metrics.webhooks.labels(outcome).inc(),
        on_queue=metrics.webhook_queue.set,
        idle_timeout_s=lambda: current().settings.session.idle_timeout_s,
    )
    held = HeldMoney(on_wait=call_left)
    tracing = _tracing(settings)

    def on_end(attempt: Attempt, columns: Mapping[str, Any], bill: Settlement | None) -> None:
        decider.settled(attempt, columns, bill)
        if tracing is not None:
            tracing.turn_ended(attempt, columns, bill)

    settling = Settlements(
        ledger=ledger,
        leases=leases,
        tokens=tokens,
        forecast=forecast,
        metrics=metrics,
        clock=steady,
        listeners=Listeners(
            on_freed=lambda tenant_id, session_id: held.freed((tenant_id, session_id)),
            on_end=on_end,
            on_answer=on_answer,
        ),
    )
    breaker = Breaker(steady, lambda: current().settings.router)
    balancer = LoadBalancer(steady, lambda: current().settings.router)
    decider = Decider(
        estimator=Estimator(configuration=current, forecast=forecast, breaker=breaker, held=held),
        observer=Observer(space),
        router=router,
        exploring=exploring,
        metrics=metrics,
        clock=steady,
        uniform=uniform,
    )
    reservations = Reservations(
        configuration=current,
        decider=decider,
        ledger=ledger,
        leases=leases,
        settling=settling,
        balancer=balancer,
        held=held,
        new_id=new_id,
    )
    forecasts = SessionForecasts(configuration=current, database=database, clock=clock, lambda_presets=router.presets)
    preparation = Preparation(
        configuration=current,
        ledger=ledger,
        outage=outage,
        tokens=tokens,
        breaker=breaker,
        balancer=balancer,
        conversations=Conversations(ledger, database, clock=clock, new_id=new_id),
        clock=steady,
    )
    dry_runs = DryRuns(
        configuration=current,
        authenticator=authenticator,
        preparation=preparation,
        decider=decider,
        forecasts=forecasts,
    )
    turns = Turns(
        configuration=current,
        authenticator=authenticator,
        preparation=preparation,
        stall_rule=StallRule(configuration=current, database=database, clock=clock, new_id=new_id),
        reservations=reservations,
        calls=ProviderCalls(
            configuration=current,
            upstream=upstream,
            breaker=breaker,
            reservations=reservations,
            follow_ups=FollowUps(
                configuration=current,
                breaker=breaker,
                balancer=balancer,
                decider=decider,
                reservations=reservations,
                budget=RetryBudget(steady),
                uniform=uniform,
            ),
            settling=settling,
            background=background,
            clock=steady,
        ),
        delivery=Delivery(
            configuration=current,
            settling=settling,
            leases=leases,
            background=background,
            refused=refused,
            clock=steady,
        ),
        background=background,
    )
    endpoints = Endpoints(
        turns,
        configuration=current,
        authenticator=authenticator,
        database=database,
        tokens=tokens,
        clock=clock,
        on_refusal=metrics.count_refusal,
    )
    parts = Gateway(
        settings=settings,
        configuration=configuration,
        database=database,
        ledger=ledger,
        outage=outage,
        upstream=upstream,
        authenticator=authenticator,
        turns=turns,
        endpoints=endpoints,
        leases=leases,
        background=background,
        policies=policies,
        exploring=exploring,
        refused=refused,
        judge=judge,
        second_answers=second_answers,
        webhooks=webhooks,
        lifecycle=lifecycle,
        metrics=metrics,
        tokens=tokens,
        send_spans=(lambda: None) if tracing is None else tracing.close,
        clock=clock,
        uniform=uniform,
    )
    return parts, _routes(parts, dry_runs, forecasts, new_id)


def _routes(parts: Gateway, dry_runs: DryRuns, forecasts: SessionForecasts, new_id: NewId) -> list[BaseRoute]:
    """Every route, with the objects that only routes use."""
    master_key = parts.settings.general.master_key
    assert master_key is not None, "the caller provides a master key"

    def current() -> Configuration:
        return parts.configuration.current

    views = Views(
        configuration=current,
        database=parts.database,
        authenticator=parts.authenticator,
        metrics=parts.metrics,
        clock=parts.clock,
        new_id=new_id,
    )
    admin = Admin(
        configuration=current,
        database=parts.database,
        authenticator=parts.authenticator,
        policies=parts.policies,
        clock=parts.clock,
        new_id=new_id,
    )

    planning = Planning(
        configuration=current,
        database=parts.database,
        authenticator=parts.authenticator,
        clock=parts.clock,
        forecasts=forecasts,
    )
    charges = Charges(
        configuration=current,
        database=parts.database,
        ledger=parts.ledger,
        authenticator=parts.authenticator,
        new_id=new_id,
    )
    tool = BudgetTool(configuration=current, database=parts.database, authenticator=parts.authenticator)
    dashboard = Dashboard(
        configuration=current,
        database=parts.database,
        authenticator=parts.authenticator,
        policies=parts.policies,
        forecasts=forecasts,
        actions=Actions(
            configuration=current,
            database=parts.database,
            authenticator=parts.authenticator,
            policies=parts.policies,
            clock=parts.clock,
            new_id=new_id,
        ),
        sign_in=SignIn(master_key, parts.clock),
        clock=parts.clock,
    )

    def refresh(target: Metrics) -> None:
        target.live_holds.set(parts.leases.count)
        target.own_turns_queue.labels("judge").set(parts.judge.waiting)
        target.own_turns_queue.labels("second").set(parts.second_answers.waiting)
        target.price_change.clear()
        for name, dated in reversed(current().catalog.coming):
            target.price_change.labels(name).set(dated.valid_from_ms / 1000)
        target.unresolved.set(parts.ledger.unresolved)
        target.exploration_today.set(parts.exploring.today.extra_nanousd / NANOUSD_PER_USD)
        target.exploring.set(parts.exploring.allows())

    routes: list[BaseRoute] = [
        *tenant_routes(dry_runs, parts.endpoints, views, planning, charges, tool),
        *admin.routes(),
        *dashboard.routes(),
        Route("/", Welcome(version("seqroute")).root, methods=["GET"]),
        *health_routes(Health(parts.lifecycle, parts.metrics, refresh)),
    ]
    routes.append(Route("/openapi.json", OpenApi(version("seqroute"), routes).openapi, methods=["GET"]))
    return routes


def _tracing(settings: Settings) -> TurnTracing | None:
    if not settings.general.tracing:
        return None
    from gateway.turn.tracing import from_environment  # noqa: PLC0415 - OpenTelemetry is an extra

    return from_environment(version("seqroute"))


def app_parts(app: ASGIApp) -> Gateway:
    """The parts of a gateway from `build`, for tests and embedding programs."""
    assert isinstance(app, Admission)
    assert isinstance(app.app, Starlette)
    state: Mapping[str, Any] = app.app.state._state
    found = state["parts"]
    assert isinstance(found, Gateway)
    return found
