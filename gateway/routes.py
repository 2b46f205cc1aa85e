"""The routes of tenants and of health checks, and the answers to what they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.api.budget_tool import BudgetTool
from gateway.api.charges import Charges
from gateway.api.health import Health
from gateway.api.planning import Planning
from gateway.api.refusals import refusal
from gateway.api.resources import Views
from gateway.api.welcome import not_found
from gateway.errors import GatewayError, InternalError, MethodNotAllowed, NotFound
from gateway.turn.dry_run import DryRuns
from gateway.turn.endpoints import Endpoints


def tenant_routes(
    dry_runs: DryRuns, endpoints: Endpoints, views: Views, planning: Planning, charges: Charges, tool: BudgetTool
) -> list[BaseRoute]:
    """Routes for tenants, with and without `/v1`."""
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
        ("/prices", planning.prices, "GET"),
        ("/forecast", planning.forecast, "POST"),
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


def health_routes(health: Health) -> list[BaseRoute]:
    """Health routes; those below `/health` match LiteLLM's proxy."""
    return [
        *(Route(path, health.livez) for path in ("/livez", "/health", "/health/liveliness", "/health/liveness")),
        *(Route(path, health.readyz) for path in ("/readyz", "/health/readiness")),
        Route("/metrics", health.metrics),
    ]


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
        refused = MethodNotAllowed("this route does not take that method", headers=dict(error.headers or {}))
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
    request.app.state.parts.metrics.count_refusal(error.code)
