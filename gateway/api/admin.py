"""Routes of operators below `/admin`: tenants, keys, ledger, policies, audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.accounts import keys, tenants
from gateway.accounts.auth import Authenticator, Caller
from gateway.accounts.budgets import refuse_unknown_models
from gateway.accounts.fields import describe_entry, describe_key, describe_tenant, read_usd
from gateway.accounts.keys import Key
from gateway.catalog.live import Configuration
from gateway.clock import Clock, NewId, now_ms
from gateway.config.settings import Settings
from gateway.database.database import Database
from gateway.database.tables import ledger_entries
from gateway.dialects.request import parse_object
from gateway.errors import InvalidRequest, NotFound
from gateway.http import header_map, json_response, query_limit, query_values, read_body, refuse_unknown
from gateway.ledger import audit
from gateway.policies import registry as policies
from gateway.policies import trials
from gateway.policies.registry import PolicyRegistry

MAX_ROWS = 10_000
Handler = Callable[[Request, Caller], Awaitable[object]]
_TENANT_FIELDS: Mapping[str, str] = {
    "name": "name", "budget_usd": "budget_nanousd", "budget_duration": "window",
    "max_session_usd": "max_session_nanousd", "models": "models", "outage": "outage", "store_text": "store_text",
    "wrap_up": "wrap_up",
}  # fmt: skip
_LIMIT_FIELDS: Mapping[str, str] = {
    "rpm": "rpm", "rpm_limit": "rpm", "tpm": "tpm", "tpm_limit": "tpm", "parallel": "parallel",
    "max_parallel_requests": "parallel", "soft_budget_usd": "soft_budget_nanousd",
}  # fmt: skip
"""LiteLLM's names are understood beside ours."""
_BUDGET_FIELDS = frozenset({"budget_usd", "budget_duration"})
_KEY_FIELDS = frozenset({"tenant_id", "role", "models", "expires"}) | _BUDGET_FIELDS | frozenset(_LIMIT_FIELDS)
_ALL_TENANT_FIELDS = frozenset(_TENANT_FIELDS) | frozenset(_LIMIT_FIELDS)


class Admin:
    """Admin routes. Every route goes through `_guarded`, which requires an admin key."""

    def __init__(
        self, *, configuration: Callable[[], Configuration], database: Database, authenticator: Authenticator,
        policies: PolicyRegistry, clock: Clock, new_id: NewId,
    ) -> None:  # fmt: skip
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator
        self._policies = policies
        self._clock = clock
        self._new_id = new_id

    def routes(self) -> list[BaseRoute]:
        """All routes, with and without `/v1`."""
        table: list[tuple[str, str, Handler]] = [
            ("POST", "/admin/tenants", self.create_tenant),
            ("GET", "/admin/tenants", self.list_tenants),
            ("GET", "/admin/tenants/{tenant_id}", self.show_tenant),
            ("PATCH", "/admin/tenants/{tenant_id}", self.change_tenant),
            ("POST", "/admin/keys", self.create_key),
            ("GET", "/admin/keys", self.list_keys),
            ("POST", "/admin/keys/revoke", self.revoke_key),
            ("POST", "/admin/keys/rotate", self.rotate_key),
            ("POST", "/admin/keys/{key_id}", self.change_key),
            ("PATCH", "/admin/keys/{key_id}", self.change_key),
            ("GET", "/admin/ledger", self.ledger),
            ("GET", "/admin/audit", self.audit),
            ("GET", "/admin/policies", self.list_policies),
            ("POST", "/admin/policies/rollback", self.roll_back),
            ("GET", "/admin/policies/{policy_id}", self.show_policy),
            ("POST", "/admin/policies/{policy_id}/{action}", self.act_on_policy),
        ]
        return [
            Route(prefix + path, self._guarded(handler), methods=[verb])
            for prefix in ("", "/v1")
            for verb, path, handler in table
        ]

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            caller = await self._authenticator.admin(header_map(request))
            return json_response(await handler(request, caller))

        return endpoint

    @property
    def _settings(self) -> Settings:
        return self._configuration().settings

    async def _fields(self, request: Request, allowed: frozenset[str]) -> dict[str, Any]:
        fields = parse_object(await read_body(request, self._settings.limits), self._settings.limits)
        refuse_unknown(fields, allowed)
        for name, value in fields.items():
            if isinstance(value, str) and "\0" in value:
                raise InvalidRequest(f"{name}: expected text without NUL", param=name)
        refuse_unknown_models(fields.get("models"), self._configuration().catalog.names)
        return fields

    # -- tenants and keys ------------------------------------------------------------------------------------------

    async def create_tenant(self, request: Request, caller: Caller) -> object:
        """`POST /admin/tenants`: create a tenant with its budget."""
        fields = await self._fields(request, _ALL_TENANT_FIELDS)
        if fields.get("name") is None or fields.get("budget_usd") is None:
            missing = "name" if fields.get("name") is None else "budget_usd"
            raise InvalidRequest(f"{missing}: expected this field, got none", param=missing)
        values = {name: value for name, value in _columns(fields).items() if value is not None}
        made = await self._database.write(
            lambda c: tenants.create_tenant(
                c, self._new_id("ten"), actor=caller.key_id, now_ms=now_ms(self._clock), **values
            )
        )
        return describe_tenant(made)

    async def list_tenants(self, request: Request, caller: Caller) -> object:
        """`GET /admin/tenants?limit=`: all tenants."""
        limit = query_limit(query_values(request, "limit"), 1000, MAX_ROWS)
        found = await self._database.read(lambda c: tenants.list_tenants(c, limit=limit))
        return {"data": [describe_tenant(tenant) for tenant in found]}

    async def show_tenant(self, request: Request, caller: Caller) -> object:
        """`GET /admin/tenants/{id}`: one tenant, by its id or name."""
        wanted = request.path_params["tenant_id"]
        return describe_tenant(await self._database.read(lambda c: tenants.get_tenant(c, _tenant_id(c, wanted))))

    async def change_tenant(self, request: Request, caller: Caller) -> object:
        """`PATCH /admin/tenants/{id}`: change the given fields of the tenant of this id or name."""
        changes = _columns(await self._fields(request, _ALL_TENANT_FIELDS))
        wanted = request.path_params["tenant_id"]
        after = await self._database.write(
            lambda c: tenants.patch_tenant(
                c, _tenant_id(c, wanted), changes, actor=caller.key_id, now_ms=now_ms(self._clock)
            )
        )
        self._authenticator.forget()
        return describe_tenant(after)

    async def create_key(self, request: Request, caller: Caller) -> object:
        """`POST /admin/keys`: create a key; its secret is returned only here."""
        fields = await self._fields(request, _KEY_FIELDS)
        tenant_id = fields.get("tenant_id")
        if not isinstance(tenant_id, str):
            raise InvalidRequest("tenant_id: expected a string", param="tenant_id")
        role = fields.get("role")
        made = await self._database.write(
            lambda c: keys.create_key(
                c,
                self._new_id("key"),
                _tenant_id(c, tenant_id),
                role="tenant" if role is None else role,
                models=fields.get("models"),
                expires_at_ms=_time_ms(fields.get("expires")),
                budget_nanousd=read_usd(fields, "budget_usd"),
                window=fields.get("budget_duration"),
                actor=caller.key_id,
                now_ms=now_ms(self._clock),
                **_limits(fields),
            )
        )
        return describe_key(made.key) | {"key": made.secret}

    async def list_keys(self, request: Request, caller: Caller) -> object:
        """`GET /admin/keys?tenant=&limit=`: keys without secrets."""
        asked = query_values(request, "tenant", "limit")
        tenant, limit = asked.get("tenant"), query_limit(asked, 1000, MAX_ROWS)
        found = await self._database.read(
            lambda c: keys.list_keys(c, tenant_id=None if tenant is None else _tenant_id(c, tenant), limit=limit)
        )
        return {"data": [describe_key(key) for key in found]}

    async def change_key(self, request: Request, caller: Caller) -> object:
        """`PATCH /admin/keys/{id}`: change a key's budget, limits and expiry; null removes each."""
        known = _BUDGET_FIELDS | frozenset(_LIMIT_FIELDS) | {"expires"}
        fields = await self._fields(request, known)
        if not fields:
            raise InvalidRequest(f"body: expected at least one of {', '.join(sorted(known))}")
        key_id = request.path_params["key_id"]
        budget = {column: value for column, value in _columns(fields).items() if column in ("budget_nanousd", "window")}
        others: dict[str, Any] = _limits(fields)
        if "expires" in fields:
            others["expires_at_ms"] = _time_ms(fields["expires"])
        by: dict[str, Any] = {"actor": caller.key_id, "now_ms": now_ms(self._clock)}

        def change(connection: Connection) -> Key:
            if budget:
                keys.set_key_budget(connection, key_id, **budget, **by)
            return keys.change_key(connection, key_id, others, **by) if others else keys.get_key(connection, key_id)

        changed = await self._database.write(change)
        self._authenticator.forget()
        return describe_key(changed)

    async def revoke_key(self, request: Request, caller: Caller) -> object:
        """`POST /admin/keys/revoke`: revoke a key on every replica."""
        fields = await self._fields(request, frozenset({"id", "key"}))

        def revoke(connection: Connection) -> Key:
            key_id = _key_id(connection, fields)
            return keys.revoke_key(connection, key_id, actor=caller.key_id, now_ms=now_ms(self._clock))

        revoked = await self._database.write(revoke)
        self._authenticator.forget()
        return describe_key(revoked)

    async def rotate_key(self, request: Request, caller: Caller) -> object:
        """`POST /admin/keys/rotate`: a new secret; the old one works for `grace_seconds`."""
        fields = await self._fields(request, frozenset({"id", "key", "grace_seconds"}))
        grace_s = fields.get("grace_seconds", 0)
        if isinstance(grace_s, bool) or not isinstance(grace_s, int) or not 0 <= grace_s <= 30 * 86400:
            raise InvalidRequest("grace_seconds: expected an integer from 0 to 2592000", param="grace_seconds")
        made = await self._database.write(
            lambda c: keys.rotate_key(
                c,
                _key_id(c, fields),
                actor=caller.key_id,
                now_ms=now_ms(self._clock),
                grace_ms=grace_s * 1000,
            )
        )
        self._authenticator.forget()
        return describe_key(made.key) | {"key": made.secret}

    # -- the ledger ------------------------------------------------------------------------------------------------

    async def ledger(self, request: Request, caller: Caller) -> object:
        """`GET /admin/ledger`: entries, oldest first, or newest first with `order=desc`.

        Filters: `session`, `tenant` (its id or name), `hold`. `next_cursor` is the `after` of the next page; null on
        the last page.
        """
        filters = ("session", "tenant", "hold")
        asked = query_values(request, *filters, "limit", "after", "order")
        limit, order = query_limit(asked, 1000, MAX_ROWS), asked.get("order", "asc")
        entry_id = ledger_entries.c.entry_id
        if order not in ("asc", "desc"):
            raise InvalidRequest("order: expected asc or desc", param="order")
        query = select(ledger_entries).order_by(entry_id if order == "asc" else entry_id.desc()).limit(limit + 1)
        after = asked.get("after")
        if after is not None:
            if not (after.isascii() and after.isdigit() and len(after) <= 18):
                raise InvalidRequest("after: expected the next_cursor of another response", param="after")
            query = query.where(entry_id > int(after) if order == "asc" else entry_id < int(after))
        wanted = {name: asked[name] for name in filters if name in asked}

        def read(connection: Connection) -> Sequence[RowMapping]:
            found = dict(wanted)
            if "tenant" in found:
                found["tenant"] = _tenant_id(connection, found["tenant"])
            clauses = (ledger_entries.c[f"{name}_id"] == value for name, value in found.items())
            return connection.execute(query.where(*clauses)).mappings().all()

        rows = await self._database.read(read)
        more = len(rows) > limit
        return {
            "data": [describe_entry(row) for row in rows[:limit]],
            "next_cursor": str(rows[limit - 1]["entry_id"]) if more else None,
        }

    async def audit(self, request: Request, caller: Caller) -> object:
        """`GET /admin/audit`: check every invariant of the ledger."""
        violations = await self._database.read(audit.audit)
        return {"ok": not violations, "violations": [str(violation) for violation in violations]}

    # -- policies --------------------------------------------------------------------------------------------------

    async def list_policies(self, request: Request, caller: Caller) -> object:
        """`GET /admin/policies`: published policies, the serving one, and load problems."""
        rows = await self._database.read(policies.list_policies)
        lineup = self._policies.lineup()
        return {
            "data": [policies.describe(row) for row in rows],
            "serving": lineup.champion.policy.policy_id,
            "problems": list(self._policies.problems),
        }

    async def show_policy(self, request: Request, caller: Caller) -> object:
        """`GET /admin/policies/{id}`: with the gate's report, trial state and history."""
        policy_id = request.path_params["policy_id"]
        return await self._database.read(
            lambda c: trials.describe_policy(c, policy_id, self._settings.policy, now_ms(self._clock))
        )

    async def act_on_policy(self, request: Request, caller: Caller) -> object:
        """`POST /admin/policies/{id}/{action}`: promote, shadow, canary, pin, unpin or rollback."""
        policy_id, action = request.path_params["policy_id"], request.path_params["action"]
        if action not in policies.ACTIONS:
            raise NotFound("no such route")
        staged = await self._policies.act_on(policy_id, action, actor=caller.key_id, now_ms=now_ms(self._clock))
        if action == "rollback":
            return {"champion": None if staged is None else policies.describe(staged)}
        assert staged is not None
        return policies.describe(staged)

    async def roll_back(self, request: Request, caller: Caller) -> object:
        """`POST /admin/policies/rollback`: reinstate the previous champion, or the shipped network."""
        serving = await self._database.write(
            lambda c: policies.roll_back(c, actor=caller.key_id, now_ms=now_ms(self._clock))
        )
        await self._policies.refresh()
        return {"champion": None if serving is None else policies.describe(serving)}


def _tenant_id(connection: Connection, id_or_name: str) -> str:
    """The id of the tenant with this id or name. Raises NotFound."""
    found = tenants.find_client(connection, id_or_name)
    return (tenants.get_tenant(connection, id_or_name) if found is None else found).tenant_id


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The API's fields under the tables' column names, with amounts parsed."""
    values = {}
    for name, column in _TENANT_FIELDS.items():
        if name in fields:
            values[column] = read_usd(fields, name) if name.endswith("_usd") else fields[name]
    return values | _limits(fields)


def _limits(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The limits among the API's fields under the tables' names. Raises InvalidRequest for one given twice."""
    values: dict[str, Any] = {}
    for name, column in _LIMIT_FIELDS.items():
        if name in fields:
            value = read_usd(fields, name) if name.endswith("_usd") else fields[name]
            if values.get(column, value) != value:
                raise InvalidRequest(f"{name}: expected one value, got two under two names", param=name)
            values[column] = value
    return values


def _time_ms(value: object) -> int | None:
    """An expiry as ISO 8601 text or Unix seconds."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11:
            return int(value * 1000)
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest("expires: expected an ISO 8601 time or Unix seconds", param="expires")


def _key_id(connection: Connection, fields: Mapping[str, Any]) -> str:
    """Id of the key given as `{"id"}` or `{"key"}`."""
    key_id, secret = fields.get("id"), fields.get("key")
    if isinstance(key_id, str) and secret is None:
        return key_id
    if isinstance(secret, str) and key_id is None:
        return keys.find_key_id(connection, secret)
    raise InvalidRequest("id: expected either id or key", param="id")
