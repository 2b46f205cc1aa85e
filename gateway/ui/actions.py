"""Changes that an admin may make from the dashboard.

Each returns the address to show next, or a new key, which has a page of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.accounts import keys, sessions, tenants
from gateway.accounts.auth import Authenticator
from gateway.accounts.keys import NewKey
from gateway.catalog.live import Configuration
from gateway.clock import Clock, NewId, now_ms
from gateway.database.database import Database
from gateway.errors import InvalidRequest
from gateway.money import MoneyError, nanousd_from_usd
from gateway.policies import registry
from gateway.policies.registry import PolicyRegistry
from gateway.ui.sign_in import Viewer

Form = Mapping[str, str]


class Actions:
    """Changes of tenants, keys, sessions and policies."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        authenticator: Authenticator,
        policies: PolicyRegistry,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator
        self._policies = policies
        self._clock = clock
        self._new_id = new_id

    async def create_tenant(self, viewer: Viewer, form: Form) -> str:
        """Create a tenant and show it."""
        made = await self._database.write(
            lambda c: tenants.create_tenant(
                c,
                self._new_id("ten"),
                form.get("name", ""),
                budget_nanousd=_usd(form, "budget_usd") or 0,
                max_session_nanousd=_usd(form, "max_session_usd", optional=True),
                window=form.get("window") or None,
                actor=viewer.key_id,
                now_ms=now_ms(self._clock),
            )
        )
        return f"/ui/tenants/{made.tenant_id}"

    async def set_budget(self, viewer: Viewer, form: Form) -> str:
        """Set a tenant's budget."""
        tenant_id, changes = form.get("tenant_id", ""), {"budget_nanousd": _usd(form, "budget_usd")}
        await self._database.write(
            lambda c: tenants.patch_tenant(c, tenant_id, changes, actor=viewer.key_id, now_ms=now_ms(self._clock))
        )
        self._authenticator.forget()
        return f"/ui/tenants/{tenant_id}"

    async def create_key(self, viewer: Viewer, form: Form) -> NewKey:
        """Create a key, whose secret is shown once."""
        return await self._database.write(
            lambda c: keys.create_key(
                c, self._new_id("key"), form.get("tenant_id", ""), role=form.get("role", "tenant"),
                actor=viewer.key_id, now_ms=now_ms(self._clock),
            )
        )  # fmt: skip

    async def revoke_key(self, viewer: Viewer, form: Form) -> str:
        """Revoke a key; other replicas follow within seconds."""
        revoked = await self._database.write(
            lambda c: keys.revoke_key(c, form.get("key_id", ""), actor=viewer.key_id, now_ms=now_ms(self._clock))
        )
        self._authenticator.forget()
        return f"/ui/tenants/{revoked.tenant_id}"

    async def set_session_budget(self, viewer: Viewer, form: Form) -> str:
        """Set a session's budget, or close or reopen it."""
        tenant_id, session_id = form.get("tenant_id", ""), form.get("session_id", "")
        settings = self._configuration().settings.session
        await self._database.write(
            lambda c: sessions.change_session(
                c, tenant_id, session_id, default_nanousd=settings.default_budget_nanousd,
                max_nanousd=settings.max_budget_nanousd, budget_nanousd=_usd(form, "budget_usd", optional=True),
                state=form.get("state") or None, actor=viewer.key_id, now_ms=now_ms(self._clock),
            )
        )  # fmt: skip
        return f"/ui/sessions/{tenant_id}/{session_id}"

    async def act_on_policy(self, viewer: Viewer, form: Form) -> str:
        """Promote, pin or roll back a policy. Raises InvalidRequest, NotFound."""
        policy_id, action = form.get("policy_id", ""), form.get("action", "")
        if action not in registry.ACTIONS:
            raise InvalidRequest(f"action: expected one of {', '.join(registry.ACTIONS)}", param="action")
        await self._policies.act_on(policy_id, action, actor=viewer.key_id, now_ms=now_ms(self._clock))
        return "/ui/policies"


def _usd(form: Form, name: str, *, optional: bool = False) -> int | None:
    value = form.get(name, "")
    if optional and not value:
        return None
    try:
        return nanousd_from_usd(value)
    except MoneyError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from error
