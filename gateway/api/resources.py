"""Models, sessions, decisions and feedback of the caller's own tenant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts import sessions as session_accounts
from gateway.accounts.auth import Authenticator, Caller
from gateway.accounts.fields import describe_session, money_fields, read_usd
from gateway.accounts.sessions import MAX_EXPECTED_TURNS, SESSION_ID
from gateway.accounts.trees import describe_tree
from gateway.catalog.live import Configuration
from gateway.catalog.models import Catalog, Model
from gateway.clock import Clock, NewId, now_ms
from gateway.config.settings import PRESETS, Settings
from gateway.database.database import Database
from gateway.decisions import feedback
from gateway.decisions import log as decisions
from gateway.dialects.request import parse_object
from gateway.errors import InvalidRequest, ModelNotFound, NotFound
from gateway.http import header_map, json_response, query_limit, query_values, read_body, refuse_unknown
from gateway.ledger.records import SessionRow
from gateway.metrics import Metrics
from gateway.routing.guard import AUTO

MAX_LISTED_SESSIONS = 1_000
_SESSION_FIELDS = frozenset({"budget_usd", "expected_turns", "state"})


class Views:
    """Routes of a tenant's own resources."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        authenticator: Authenticator,
        metrics: Metrics,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator
        self._metrics = metrics
        self._clock = clock
        self._new_id = new_id
        self._since_s = now_ms(clock) // 1000

    @property
    def _settings(self) -> Settings:
        return self._configuration().settings

    def _catalog(self) -> Catalog:
        return self._configuration().catalog

    async def models(self, request: Request) -> Response:
        """`GET /models`: the models and aliases that this key may use, plus `auto`."""
        caller = await self._authenticator.reader(header_map(request))
        catalog = self._catalog()
        listed = {model.name: model for model in self._served(caller)}
        names = [AUTO, *(f"{AUTO}@{preset}" for preset in PRESETS)]
        data = [self._auto(name, caller) for name in names]
        data += [self._listed(model, name) for name, model in listed.items()]
        for alias, name in catalog.aliases.items():
            if name in listed and alias not in catalog.hidden_aliases:
                data.append(self._listed(listed[name], alias))
        return json_response(_as_anthropic(data) if _speaks_anthropic(request) else {"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """`GET /models/{id}`: one model or alias."""
        caller = await self._authenticator.reader(header_map(request))
        name = request.path_params["model_id"]
        if name == AUTO or name in (f"{AUTO}@{preset}" for preset in PRESETS):
            found = self._auto(name, caller)
        else:
            model = self._catalog().resolve(name)
            if model is None or not self._may_use(caller, model):
                raise ModelNotFound("model: no such model, or this key may not use it", param="model")
            found = self._listed(model, name)
        return json_response(_anthropic_model(found) if _speaks_anthropic(request) else found)

    def _served(self, caller: Caller) -> list[Model]:
        return [model for model in self._catalog().served if self._may_use(caller, model)]

    def _auto(self, name: str, caller: Caller) -> dict[str, Any]:
        """What `auto` can do: the most of what the models behind it can."""
        models = [model for model in self._served(caller) if model.mode == "chat"]
        limits: dict[str, Any] = {}
        if models:
            limits = {
                "max_input_tokens": max(model.max_input_tokens for model in models),
                "max_output_tokens": max(model.max_output_tokens for model in models),
                "capabilities": sorted({each for model in models for each in model.possible_capabilities}),
            }
        return self._model(name, "seqroute") | limits

    def _listed(self, model: Model, name: str) -> dict[str, Any]:
        rates = model.prices.at(0)
        return self._model(name, model.deployments[0].litellm_model.partition("/")[0]) | {
            "max_input_tokens": model.max_input_tokens,
            "max_output_tokens": model.max_output_tokens,
            "capabilities": sorted(model.possible_capabilities),
            "input_usd_per_million_tokens": rates.input_femtousd / 1e9,
            "output_usd_per_million_tokens": rates.output_femtousd / 1e9,
        }

    def _model(self, name: str, owner: str) -> dict[str, Any]:
        """`created` is when this gateway started: no provider tells when a model was made."""
        return {"id": name, "object": "model", "created": self._since_s, "owned_by": owner}

    def _may_use(self, caller: Caller, model: Model) -> bool:
        lists = map(self._catalog().resolve_all, (caller.key_models, caller.tenant_models))
        return all(allowed is None or model.name in allowed for allowed in lists)

    async def sessions(self, request: Request) -> Response:
        """`GET /sessions?state=&limit=`: the tenant's sessions, most recently used first."""
        caller = await self._authenticator.reader(header_map(request))
        asked = query_values(request, "state", "limit")
        limit, state = query_limit(asked, 100, MAX_LISTED_SESSIONS), asked.get("state")
        if state not in (None, *session_accounts.STATES):
            raise InvalidRequest(f"state: expected one of {', '.join(session_accounts.STATES)}", param="state")
        found = await self._database.read(
            lambda c: session_accounts.list_sessions(c, caller.tenant_id, state=state, limit=limit)
        )
        return json_response({"object": "list", "data": [describe_session(session) for session in found]})

    async def session(self, request: Request) -> Response:
        """`GET /sessions/{id}`: one session with its balances and the sessions below it."""
        caller = await self._authenticator.reader(header_map(request))
        session_id = request.path_params["session_id"]

        def read(connection: Connection) -> dict[str, Any]:
            found = session_accounts.get_session(connection, caller.tenant_id, session_id)
            return describe_session(found) | describe_tree(connection, found)

        return json_response(await self._database.read(read))

    async def change_session(self, request: Request) -> Response:
        """`POST /sessions/{id}`: open it, change its budget or turns, pause, resume or close it."""
        headers = header_map(request)
        caller = await self._authenticator.caller(headers)
        parent_id = session_accounts.named_parent(headers)
        fields = parse_object(await read_body(request, self._settings.limits), self._settings.limits)
        refuse_unknown(fields, _SESSION_FIELDS)
        session = self._settings.session
        most = caller.max_session_nanousd if caller.max_session_nanousd is not None else session.max_budget_nanousd
        budget = read_usd(fields, "budget_usd")
        expected_turns = _expected_turns(fields.get("expected_turns"))
        state = fields.get("state")
        if state not in (None, *session_accounts.STATES):
            raise InvalidRequest(f"state: expected one of {', '.join(session_accounts.STATES)}", param="state")
        session_id = request.path_params["session_id"]
        if not SESSION_ID.fullmatch(session_id):
            raise InvalidRequest("session_id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="session_id")

        def change(connection: Connection) -> SessionRow:
            return session_accounts.change_session(
                connection,
                caller.tenant_id,
                session_id,
                default_nanousd=min(session.default_budget_nanousd, most),
                max_nanousd=most,
                budget_nanousd=budget,
                expected_turns=expected_turns,
                state=state,
                parent_id=parent_id,
                actor=caller.key_id,
                now_ms=now_ms(self._clock),
            )

        changed = await self._database.write(change)
        told = describe_session(changed)
        if budget is not None and changed.balance.granted_nanousd != budget:
            told |= money_fields("asked_budget", budget) | {"budget_clamped": True}
        return json_response(told)

    async def decision(self, request: Request) -> Response:
        """`GET /decisions/{id}`: the explanation of a model choice."""
        caller = await self._authenticator.reader(header_map(request))
        decision_id = request.path_params["decision_id"]
        tenant_id = None if caller.is_admin else caller.tenant_id
        row = await self._database.read(lambda c: decisions.find(c, decision_id, tenant_id))
        if row is None:
            raise NotFound("decision: no such decision")
        return json_response(decisions.explain(row, whole=caller.is_admin))

    async def feedback(self, request: Request) -> Response:
        """`POST /feedback`: one quality signal, stored once."""
        caller = await self._authenticator.caller(header_map(request))
        fields = parse_object(await read_body(request, self._settings.limits), self._settings.limits)
        signal = feedback.read_signal(fields, caller.key_id)
        made = self._new_id("fb")
        stored = await self._database.write(
            lambda c: feedback.store(c, signal, caller.tenant_id, made, now_ms(self._clock))
        )
        if stored.new and stored.predicted_quality is not None and signal.score is not None:
            self._metrics.quality_error.observe(signal.score - stored.predicted_quality)
        return json_response(
            {
                "feedback_id": stored.feedback_id,
                "decision_id": stored.decision_id,
                "session_id": stored.session_id,
                "name": signal.name,
                "score": signal.score,
                "stored": stored.new,
            }
        )


def _speaks_anthropic(request: Request) -> bool:
    """Whether the client uses Anthropic's API: its clients send an API version."""
    return "anthropic-version" in request.headers


def _as_anthropic(listed: list[dict[str, Any]]) -> dict[str, Any]:
    """The list of models in Anthropic's format, on one page."""
    data = [_anthropic_model(model) for model in listed]
    return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


def _anthropic_model(listed: Mapping[str, Any]) -> dict[str, Any]:
    limits = {"max_input_tokens": listed.get("max_input_tokens"), "max_tokens": listed.get("max_output_tokens")}
    name = listed["id"]
    created_at = datetime.fromtimestamp(listed["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": created_at, **limits}


def _expected_turns(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_EXPECTED_TURNS:
        raise InvalidRequest(
            f"expected_turns: expected an integer from 1 to {MAX_EXPECTED_TURNS}", param="expected_turns"
        )
    return value
