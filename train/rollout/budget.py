"""The hard cap: a tenant of the gateway's ledger for one rollout, and a key that spends from it and nothing else.

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
"""A key that a killed rollout leaves behind dies by itself."""


class GatewayRefused(InputError):
    """The gateway did not do what it was asked; the message has its words."""


@dataclass(frozen=True, slots=True)
class Purse:
    """Whose money it is, and the key to it."""

    tenant_id: str
    key: str


@contextlib.asynccontextmanager
async def open_purse(admin: httpx.AsyncClient, name: str, max_usd: str, now_s: float) -> AsyncIterator[Purse]:
    """A tenant called `name` with exactly `max_usd`, made or found again; its key is revoked at the end."""
    terms = {"budget_usd": max_usd, "max_session_usd": max_usd}
    tenants = await asked(admin, "GET", "/admin/tenants?limit=10000")
    found = next((tenant["id"] for tenant in tenants["data"] if tenant["name"] == name), None)
    if found is None:
        found = (await asked(admin, "POST", "/admin/tenants", {"name": name, **terms}))["id"]
    else:
        await asked(admin, "PATCH", f"/admin/tenants/{found}", terms)
    made = await asked(admin, "POST", "/admin/keys", {"tenant_id": found, "expires": now_s + KEY_LIVES_S})
    try:
        yield Purse(found, made["key"])
    finally:
        with contextlib.suppress(GatewayRefused):
            await asked(admin, "POST", "/admin/keys/revoke", {"id": made["id"]})


async def spent_nanousd(admin: httpx.AsyncClient, purse: Purse) -> int:
    """What the ledger has settled for this rollout, all its runs together."""
    return int((await asked(admin, "GET", f"/admin/tenants/{purse.tenant_id}"))["spent_nano_usd"])


async def asked(
    admin: httpx.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An admin route's answer. Raises GatewayRefused."""
    try:
        response = await admin.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise GatewayRefused(f"{method} {path}: the gateway does not answer") from error
    if response.status_code != 200:
        raise GatewayRefused(f"{method} {path}: {message_of(response)}")
    answer: dict[str, Any] = response.json()
    return answer


def message_of(response: httpx.Response) -> str:
    """What an error says, in one line."""
    try:
        return f"{response.status_code} {response.json()['error']['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
