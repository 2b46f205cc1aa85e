"""The hard cap of a rollout: a tenant of the gateway's ledger and a key that spends from it.

Whatever the rollout does wrong, the ledger refuses to reserve beyond the tenant's budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from train.errors import InputError

KEY_LIVES_S = 7 * 86400
"""The key of a killed rollout expires."""


class GatewayRefused(InputError):
    """The gateway refused a request; the message quotes it."""


@dataclass(frozen=True, slots=True)
class RolloutAccount:
    """The rollout's tenant and its key."""

    tenant_id: str
    key: str


@contextlib.asynccontextmanager
async def open_account(
    admin: httpx.AsyncClient, name: str, max_usd: str, now_s: float
) -> AsyncIterator[RolloutAccount]:
    """Create or find the tenant `name` with budget `max_usd`; its key is revoked at the end."""
    terms = {"budget_usd": max_usd, "max_session_usd": max_usd}
    tenants = await call_admin(admin, "GET", "/admin/tenants?limit=10000")
    found = next((tenant["id"] for tenant in tenants["data"] if tenant["name"] == name), None)
    if found is None:
        found = (await call_admin(admin, "POST", "/admin/tenants", {"name": name, **terms}))["id"]
    else:
        await call_admin(admin, "PATCH", f"/admin/tenants/{found}", terms)
    made = await call_admin(admin, "POST", "/admin/keys", {"tenant_id": found, "expires": now_s + KEY_LIVES_S})
    try:
        yield RolloutAccount(found, made["key"])
    finally:
        with contextlib.suppress(GatewayRefused):
            await call_admin(admin, "POST", "/admin/keys/revoke", {"id": made["id"]})


async def spent_nanousd(admin: httpx.AsyncClient, account: RolloutAccount) -> int:
    """Amount that the ledger has settled for this rollout over all its runs."""
    return int((await call_admin(admin, "GET", f"/admin/tenants/{account.tenant_id}"))["spent_nano_usd"])


async def call_admin(
    admin: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Call an admin route. Raises GatewayRefused."""
    try:
        response = await admin.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise GatewayRefused(f"{method} {path}: the gateway cannot be reached; check that it runs") from error
    if response.status_code != 200:
        raise GatewayRefused(f"{method} {path}: {message_of(response)}")
    answer: dict[str, Any] = response.json()
    return answer


def message_of(response: httpx.Response) -> str:
    """An error response in one line."""
    try:
        return f"{response.status_code} {response.json()['error']['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
