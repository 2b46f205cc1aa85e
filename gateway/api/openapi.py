"""`GET /openapi.json`: a description generated from the served routes.

Paths, methods and summaries come from the routes, bodies from `BODIES`, filters from `FILTERS`. A route without
an entry in `BODIES` takes any JSON object.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.accounts import sessions as session_accounts
from gateway.api.admin import MAX_ROWS
from gateway.api.admission import MACHINES
from gateway.api.resources import MAX_LISTED_SESSIONS
from gateway.http import json_response

Schema = Mapping[str, Any]
_TEXT: Schema = {"type": "string"}
_ERROR: Mapping[str, Any] = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_USD: Schema = {
    "type": ["string", "number"], "pattern": r"^\d{1,6}(\.\d{1,9})?$", "minimum": 0, "maximum": 999_999,
    "description": "a decimal amount in USD",
}  # fmt: skip
_DURATION: Schema = {"type": "string", "pattern": "^[1-9][0-9]{0,2}(s|m|h|d|w)$"}
_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_NUMBER: Schema = {"type": "number"}
_NAMES: Schema = {"type": ["array", "null"], "items": _TEXT}
_LIMITS: Mapping[str, Schema] = {
    name: {"type": ["integer", "null"], "minimum": 1}
    for name in ("rpm", "tpm", "parallel", "rpm_limit", "tpm_limit", "max_parallel_requests")
} | {"soft_budget_usd": _USD}
_TENANT: Mapping[str, Schema] = {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9._:@+-]{1,128}$"}, "budget_usd": _USD,
    "budget_duration": _DURATION, "max_session_usd": _USD, "models": _NAMES,
    "outage": {"enum": ["closed", "open"]}, "store_text": {"type": "boolean"},
    "wrap_up": {"type": ["boolean", "null"]}, **_LIMITS,
}  # fmt: skip
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {"type": ["string", "array", "null"]},
    },
}


def _object(properties: Mapping[str, Schema], *required: str, closed: bool = True) -> Schema:
    made: dict[str, Any] = {"type": "object", "properties": dict(properties), "additionalProperties": not closed}
    return made | ({"required": list(required)} if required else {})


_KEY_CHANGES = _object(
    {"expires": {"type": ["string", "number", "null"]}, "budget_usd": _USD, "budget_duration": _DURATION, **_LIMITS}
)
BODIES: Mapping[str, Schema] = {
    "POST /chat/completions": _object(
        {
            "model": _TEXT,
            "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
            "stream": {"type": "boolean"},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "max_tokens": {"type": "integer", "minimum": 1},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "n": {"type": "integer", "minimum": 1, "maximum": 8},
            "tools": {"type": "array", "items": {"type": "object"}},
        },
        "model",
        "messages",
        closed=False,
    ),
    "POST /route": _object(
        {"model": _TEXT, "messages": {"type": "array", "minItems": 1, "items": _MESSAGE}}, "model", "messages",
        closed=False,
    ),
    "POST /responses": _object(
        {"model": _TEXT, "input": {"type": ["string", "array"]}, "stream": {"type": "boolean"}}, "model", closed=False
    ),
    "POST /messages": _object(
        {
            "model": _TEXT,
            "max_tokens": {"type": "integer", "minimum": 1},
            "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
            "stream": {"type": "boolean"},
        },
        "model",
        "max_tokens",
        "messages",
        closed=False,
    ),
    "POST /completions": _object({"model": _TEXT, "prompt": {"type": ["string", "array"]}}, "model", closed=False),
    "POST /embeddings": _object(
        {"model": _TEXT, "input": {"type": ["string", "array"]}, "encoding_format": {"enum": ["float", "base64"]}},
        "model",
        "input",
        closed=False,
    ),
    "POST /moderations": _object({"model": _TEXT, "input": {"type": ["string", "array"]}}, "input", closed=False),
    "POST /feedback": _object(
        {
            "decision_id": _TEXT, "completion_id": _TEXT, "session_id": _TEXT, "name": _TEXT, "comment": _TEXT,
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
        closed=False,
    ),
    "POST /sessions/{session_id}": _object(
        {
            "budget_usd": _USD,
            "expected_turns": {"type": "integer", "minimum": 1, "maximum": 10_000},
            "state": {"enum": ["open", "paused", "closed"]},
        },
        closed=False,
    ),
    "POST /tools/check_budget": _object({"session_id": _TEXT}),
    "POST /sessions/{session_id}/charges": _object(
        {
            "action": {"enum": ["charge", "reserve", "settle", "release"]}, "charge_id": _TEXT, "amount_usd": _USD,
            "name": _TEXT, "expires_in_seconds": {"type": "integer", "minimum": 1, "maximum": 86_400},
        },
        closed=False,
    ),
    "POST /admin/tenants": _object(_TENANT, "name", "budget_usd"),
    "PATCH /admin/tenants/{tenant_id}": _object(_TENANT),
    "POST /admin/keys": _object(
        {
            "tenant_id": _ID, "role": {"enum": ["tenant", "service", "admin", "read-only"]}, "models": _NAMES,
            "expires": {"type": ["string", "number", "null"]}, "budget_usd": _USD, "budget_duration": _DURATION,
            **_LIMITS,
        },
        "tenant_id",
    ),
    "POST /admin/keys/{key_id}": _KEY_CHANGES,
    "PATCH /admin/keys/{key_id}": _KEY_CHANGES,
    "POST /admin/keys/revoke": _object({"id": _ID, "key": _TEXT}),
    "POST /admin/keys/rotate": _object(
        {"id": _ID, "key": _TEXT, "grace_seconds": {"type": "integer", "minimum": 0}}
    ),
}  # fmt: skip
"""Request bodies by method and path, without `/v1`."""


def _limit(most: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": most}


FILTERS: Mapping[str, Mapping[str, Schema]] = {
    "GET /sessions": {"state": {"enum": [*session_accounts.STATES]}, "limit": _limit(MAX_LISTED_SESSIONS)},
    "GET /admin/tenants": {"limit": _limit(MAX_ROWS)},
    "GET /admin/keys": {"tenant": _ID, "limit": _limit(MAX_ROWS)},
    "GET /admin/ledger": {
        "session": _ID, "tenant": _ID, "hold": _ID, "limit": _limit(MAX_ROWS), "order": {"enum": ["asc", "desc"]},
        "after": {"type": "integer", "minimum": 0},
    },
}  # fmt: skip
"""Query parameters by method and path, without `/v1`; these routes refuse any other."""

ERROR: Schema = _object(
    {
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]}, "code": _TEXT},
            "message", "type", "param", "code", closed=False,
        )
    },
    "error",
)  # fmt: skip


def describe(routes: Iterable[BaseRoute], version: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the API routes, without the dashboard."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path.startswith("/ui"):
            continue
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(method, path, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "seqroute",
            "version": version,
            "description": "An OpenAI-compatible gateway that plans a session's budget. Amounts appear twice: "
            "`..._nano_usd` as an integer, `..._usd` as a decimal string.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
        "security": [{"key": []}],
    }


def _operation(method: str, path: str, route: Route) -> dict[str, Any]:
    bare = path.removeprefix("/v1") or "/"
    summary = (inspect.getdoc(route.endpoint) or "").partition("\n")[0]
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}_{path}").strip("_"),
        "responses": {
            "2XX": {"description": "done"},
            "4XX": {"description": "refused", "content": _ERROR},
            "5XX": {"description": "unavailable", "content": _ERROR},
        },
    }
    if summary:
        made["summary"] = summary
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", path)
    ]
    filters = FILTERS.get(f"{method} {bare}", {})
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in filters.items()]
    if parameters:
        made["parameters"] = parameters
    if method in ("POST", "PATCH", "PUT"):
        schema = BODIES.get(f"{method} {bare}", {"type": "object"})
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if path in MACHINES:
        made["security"] = []
    return made


class OpenApi:
    """Serves the description of `routes`, to which more may be added until the first request."""

    def __init__(self, version: str, routes: Sequence[BaseRoute]) -> None:
        self._version = version
        self._routes = routes

    @cached_property
    def _document(self) -> dict[str, Any]:
        return describe(self._routes, self._version)

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI description of this gateway."""
        return json_response(self._document)
