"""Every route of the gateway, and the answers to what they raise."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.api.admin import Admin
from gateway.api.budget_tool import BudgetTool
from gateway.api.charges import Charges
from gateway.api.health import Health
from gateway.api.openapi import OpenApi
from gateway.api.prices_and_forecasts import PricesAndForecasts
from gateway.api.refusals import refusal
from gateway.api.resources import Views
from gateway.api.welcome import Welcome, not_found
from gateway.composition.lifespan import Gateway
from gateway.composition.services import Services
from gateway.decisions.forecasts import SessionForecasts
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.money import NANOUSD_PER_USD
from gateway.ui.actions import Actions
from gateway.ui.pages import Dashboard
from gateway.ui.sign_in import SignIn


def all_routes(gateway: Gateway) -> list[BaseRoute]:
    """Routes of tenants, operators, the dashboard and health checks, and their description."""
    services = gateway.services
    routes: list[BaseRoute] = [
        *_tenant_routes(gateway),
        *Admin(
            configuration=services.current,
            database=services.database,
            authenticator=services.authenticator,
            policies=services.policies,
            clock=services.clock,
            new_id=services.new_id,
        ).routes(),
        *_dashboard(services, gateway.forecasts).routes(),
        Route("/", Welcome(version("seqroute")).root, methods=["GET"]),
        *_health_routes(Health(services.lifecycle, services.metrics, lambda: _refresh_metrics(gateway))),
    ]
    described = OpenApi(version("seqroute"), routes)
    routes += [Route(f"{prefix}/openapi.json", described.openapi, methods=["GET"]) for prefix in ("/v1", "")]
    return routes


def _tenant_routes(gateway: Gateway) -> list[BaseRoute]:
    """Routes for tenants, with and without `/v1`."""
    services = gateway.services
    current, database, authenticator = services.current, services.database, services.authenticator
    endpoints, dry_runs = gateway.endpoints, gateway.dry_runs
    views = Views(
        configuration=current,
        database=database,
        authenticator=authenticator,
        metrics=services.metrics,
        clock=services.clock,
        new_id=services.new_id,
    )
    prices_and_forecasts = PricesAndForecasts(
        configuration=current,
        database=database,
        authenticator=authenticator,
        clock=services.clock,
        forecasts=gateway.forecasts,
    )
    charges = Charges(
        configuration=current,
        database=database,
        ledger=services.ledger,
        authenticator=authenticator,
        new_id=services.new_id,
    )
    tool = BudgetTool(configuration=current, database=database, authenticator=authenticator)
    table: list[tuple[str, Callable[[Request], Any], str]] = [
        ("/chat/completions", endpoints.chat, "POST"),
        ("/messages", endpoints.messages, "POST"),
        ("/messages/count_tokens", endpoints.count_tokens, "POST"),
        ("/responses", endpoints.responses, "POST"),
        ("/responses/compact", endpoints.compact, "POST"),
        ("/responses/{response_id}", endpoints.response, "GET"),
        ("/responses/{response_id}", endpoints.delete_response, "DELETE"),
        ("/responses/{response_id}/cancel", endpoints.cancel_response, "POST"),
        ("/responses/{response_id}/input_items", endpoints.response_items, "GET"),
        ("/completions", endpoints.completions, "POST"),
        ("/embeddings", endpoints.embeddings, "POST"),
        ("/moderations", endpoints.moderations, "POST"),
        ("/route", dry_runs.route, "POST"),
        ("/feedback", views.feedback, "POST"),
        ("/router/outcomes", views.feedback, "POST"),
        ("/prices", prices_and_forecasts.prices, "GET"),
        ("/forecast", prices_and_forecasts.forecast, "POST"),
        ("/tools/check_budget", tool.definition, "GET"),
        ("/tools/check_budget", tool.call, "POST"),
        ("/models", views.models, "GET"),
        ("/models/{model_id:path}", views.model, "GET"),
        ("/sessions", views.sessions, "GET"),
        ("/sessions/{session_id}", views.session, "GET"),
        ("/sessions/{session_id}", views.change_session, "POST"),
        ("/sessions/{session_id}/charges", charges.charge, "POST"),
        ("/decisions/{decision_id}", views.decision, "GET"),
    ]
    return [Route(prefix + path, endpoint, methods=[verb]) for prefix in ("/v1", "") for path, endpoint, verb in table]


def _health_routes(health: Health) -> list[BaseRoute]:
    """Health routes, with and without `/v1`; those below `/health` match LiteLLM's proxy."""
    table = (
        *((path, health.livez) for path in ("/livez", "/health", "/health/liveliness", "/health/liveness")),
        *((path, health.readyz) for path in ("/readyz", "/health/readiness")),
        ("/metrics", health.metrics),
    )
    return [Route(prefix + path, endpoint) for prefix in ("/v1", "") for path, endpoint in table]


def _dashboard(services: Services, forecasts: SessionForecasts) -> Dashboard:
    master_key = services.settings.general.master_key
    assert master_key is not None, "the caller provides a master key"
    actions = Actions(
        configuration=services.current,
        database=services.database,
        authenticator=services.authenticator,
        policies=services.policies,
        clock=services.clock,
        new_id=services.new_id,
    )
    return Dashboard(
        configuration=services.current,
        database=services.database,
        authenticator=services.authenticator,
        policies=services.policies,
        forecasts=forecasts,
        actions=actions,
        sign_in=SignIn(master_key, services.clock),
        clock=services.clock,
    )


def _refresh_metrics(gateway: Gateway) -> None:
    """Set the gauges that are read when Prometheus asks."""
    services = gateway.services
    metrics = services.metrics
    metrics.live_holds.set(services.leases.count)
    metrics.own_turns_queue.labels("judge").set(gateway.judge.waiting)
    metrics.own_turns_queue.labels("second").set(gateway.second_answers.waiting)
    metrics.price_change.clear()
    for name, dated in reversed(services.current().catalog.coming):
        metrics.price_change.labels(name).set(dated.valid_from_ms / 1000)
    metrics.unresolved.set(services.ledger.unresolved)
    metrics.exploration_today.set(gateway.exploring.today.extra_nanousd / NANOUSD_PER_USD)
    metrics.exploring.set(gateway.exploring.allows())


def error_handlers() -> dict[Any, Any]:
    """The answers to errors that a route raises, each in its path's dialect."""
    return {GatewayError: _answer_error, HTTPException: _answer_http_error, Exception: _answer_crash}


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    _count(request, error)
    return refusal(request.url.path, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refused = MethodNotAllowed("this route does not support that method", headers=dict(error.headers or {}))
        _count(request, refused)
        return refusal(request.url.path, refused)
    _count(request, NotFound(""))
    return not_found(request.url.path)


async def _answer_crash(request: Request, error: Exception) -> Response:
    """An unexpected exception: the client gets a plain 500, the log the traceback."""
    refused = InternalError()
    _count(request, refused)
    return refusal(request.url.path, refused)


def _count(request: Request, error: GatewayError) -> None:
    request.app.state.parts.services.metrics.count_refusal(error.code)
