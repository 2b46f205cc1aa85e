"""API keys: random, stored as SHA-256, shown once; each has a tenant and may have a budget."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from gateway.accounts.budgets import (
    balance_of,
    change_grant,
    checked_amount,
    checked_limits,
    checked_models,
    checked_window,
    leave_trail,
    lock_tenant,
    quota_of,
    record_grant,
    stored_models,
)
from gateway.accounts.tenants import Tenant, get_tenant
from gateway.config.settings import NO_LIMITS, RateQuota
from gateway.database.tables import keys
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.types import Balance

ROLES = ("tenant", "service", "admin", "read-only")
PREFIX = "sk-"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret; `balance` is None when it has no own budget."""

    key_id: str
    key_prefix: str
    tenant_id: str
    role: str
    models: tuple[str, ...] | None
    balance: Balance | None
    window: str | None
    reset_at_ms: int | None
    expires_at_ms: int | None
    revoked_at_ms: int | None
    created_at_ms: int
    quota: RateQuota = NO_LIMITS
    soft_budget_nanousd: int | None = None
    previous_until_ms: int | None = None
    """End of the grace period of the secret before the last rotation; None: it has none."""

    @property
    def over_soft_budget(self) -> bool:
        """True once the soft budget is spent."""
        soft = self.soft_budget_nanousd
        return soft is not None and self.balance is not None and self.balance.spent_nanousd >= soft

    def usable(self, now_ms: int) -> bool:
        """True when the key is neither revoked nor expired."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key with its secret, which is shown once and not stored."""

    key: Key
    secret: str

    def __repr__(self) -> str:
        return f"NewKey({self.key.key_id})"


class Unchanged(Enum):
    """Marker for a value that a change keeps."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """A key with its tenant; the caller must check `key.usable`."""

    key: Key
    tenant: Tenant


def key_digest(secret: str) -> bytes:
    """SHA-256 of a key, as stored (keys are random, so a slow hash would add nothing)."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def create_key(
    connection: Connection,
    key_id: str,
    tenant_id: str,
    *,
    role: str = "tenant",
    models: Sequence[str] | None = None,
    expires_at_ms: int | None = None,
    budget_nanousd: int | None = None,
    window: str | None = None,
    actor: str,
    now_ms: int,
    entropy: Callable[[int], bytes] = os.urandom,
    **limits: int | None,
) -> NewKey:
    """Create a key; `limits` are those of `gateway.accounts.budgets.LIMITS`.

    Raises NotFound for the tenant, InvalidRequest for other arguments.
    """
    if role not in ROLES:
        raise InvalidRequest(f"role: expected one of {', '.join(ROLES)}", param="role")
    _checked_expiry(expires_at_ms, now_ms)
    if window is not None and budget_nanousd is None:
        raise InvalidRequest("budget_duration: a window needs a budget", param="budget_duration")
    if budget_nanousd is not None:
        checked_amount(budget_nanousd, "budget_usd")
    columns = checked_limits(limits)
    _refuse_soft_without_budget(columns.get("soft_budget_nanousd"), budget_nanousd is not None)
    reset_at_ms = checked_window(connection, window, now_ms)
    lock_tenant(connection, tenant_id)
    secret = new_secret(entropy)
    connection.execute(
        insert(keys).values(
            key_id=key_id,
            key_sha256=key_digest(secret),
            key_prefix=secret[:8],
            tenant_id=tenant_id,
            role=role,
            models=checked_models(models),
            has_budget=int(budget_nanousd is not None),
            granted_nanousd=budget_nanousd or 0,
            window=window,
            reset_at_ms=reset_at_ms,
            expires_at_ms=expires_at_ms,
            created_at_ms=now_ms,
            **columns,
        )
    )
    if budget_nanousd:
        record_grant(connection, "key", budget_nanousd, tenant_id=tenant_id, key_id=key_id, actor=actor, now_ms=now_ms)
    key = get_key(connection, key_id)
    leave_trail(connection, actor, "key.create", key_id, None, _trail(key), now_ms)
    return NewKey(key, secret)


def rotate_key(
    connection: Connection,
    key_id: str,
    *,
    actor: str,
    now_ms: int,
    grace_ms: int = 0,
    entropy: Callable[[int], bytes] = os.urandom,
) -> NewKey:
    """Replace a key's secret, keeping id, account and rights; the old one ends after `grace_ms`.

    Until then both are the same key, with one budget and one set of limits; of several rotations only the last secret
    has a grace period. Raises NotFound, and InvalidRequest for a revoked key.
    """
    lock_tenant(connection, _row(connection, key_id).tenant_id)
    row = _row(connection, key_id)
    if row.revoked_at_ms is not None:
        raise InvalidRequest("key: it is revoked; create a new one", param="id")
    secret = new_secret(entropy)
    connection.execute(
        update(keys)
        .where(keys.c.key_id == key_id)
        .values(
            key_sha256=key_digest(secret),
            key_prefix=secret[:8],
            previous_sha256=row.key_sha256 if grace_ms > 0 else None,
            previous_until_ms=now_ms + grace_ms if grace_ms > 0 else None,
        )
    )
    leave_trail(
        connection, actor, "key.rotate", key_id, {"key_prefix": row.key_prefix}, {"key_prefix": secret[:8]}, now_ms
    )
    return NewKey(get_key(connection, key_id), secret)


def revoke_key(connection: Connection, key_id: str, *, actor: str, now_ms: int) -> Key:
    """Revoke a key; running calls still settle, and repeating is no error. Raises NotFound."""
    before = get_key(connection, key_id)
    if before.revoked_at_ms is not None:
        return before
    return _changed(connection, "key.revoke", before, {"revoked_at_ms": now_ms}, actor, now_ms)


def set_key_budget(
    connection: Connection,
    key_id: str,
    budget_nanousd: int | Unchanged | None = UNCHANGED,
    *,
    window: str | Unchanged | None = UNCHANGED,
    actor: str,
    now_ms: int,
) -> Key:
    """Set or change a key's own budget, or remove it (None).

    Raises NotFound for the key, and InvalidRequest for a budget below what is spent and reserved or a window without a
    budget.
    """
    row = _row(connection, key_id)
    lock_tenant(connection, row.tenant_id)
    before = get_key(connection, key_id)
    if isinstance(budget_nanousd, Unchanged):
        budget_nanousd = None if before.balance is None else before.balance.granted_nanousd
    if isinstance(window, Unchanged):
        window = before.window if budget_nanousd is not None else None
    if window is not None and budget_nanousd is None:
        raise InvalidRequest("budget_duration: a window needs a budget", param="budget_duration")
    if budget_nanousd is not None:
        checked_amount(budget_nanousd, "budget_usd")
        change_grant(
            connection,
            "key",
            keys,
            keys.c.key_id == key_id,
            balance_of(_row(connection, key_id)),
            budget_nanousd,
            tenant_id=row.tenant_id,
            key_id=key_id,
            actor=actor,
            now_ms=now_ms,
        )
    values: dict[str, Any] = {"has_budget": int(budget_nanousd is not None)}
    if window != before.window:
        ends_ms = checked_window(connection, window, now_ms, ends_ms=before.reset_at_ms)
        values |= {"window": window, "reset_at_ms": ends_ms}
    return _changed(connection, "key.budget", before, values, actor, now_ms)


def change_key(connection: Connection, key_id: str, changes: Mapping[str, Any], *, actor: str, now_ms: int) -> Key:
    """Change limits (`budgets.LIMITS`) and `expires_at_ms`. Raises NotFound, InvalidRequest."""
    row = _row(connection, key_id)
    lock_tenant(connection, row.tenant_id)
    before = get_key(connection, key_id)
    values = checked_limits(changes)
    _refuse_soft_without_budget(values.get("soft_budget_nanousd"), before.balance is not None)
    if "expires_at_ms" in changes:
        values["expires_at_ms"] = _checked_expiry(changes["expires_at_ms"], now_ms)
    return _changed(connection, "key.change", before, values, actor, now_ms)


def _changed(
    connection: Connection, event: str, before: Key, values: Mapping[str, Any], actor: str, now_ms: int
) -> Key:
    """The key with other values in its row, which the trail tells of."""
    if values:
        connection.execute(update(keys).where(keys.c.key_id == before.key_id).values(**values))
    after = get_key(connection, before.key_id)
    leave_trail(connection, actor, event, before.key_id, _trail(before), _trail(after), now_ms)
    return after


def lookup_key(connection: Connection, key_sha256: bytes) -> KeyOwner | None:
    """The owner of a key by its SHA-256, usable or not; None when unknown.

    A secret in its grace period gives the same key, with the end of that period as its expiry.
    """
    row = connection.execute(
        select(keys).where((keys.c.key_sha256 == key_sha256) | (keys.c.previous_sha256 == key_sha256))
    ).one_or_none()
    if row is None:
        return None
    key, tenant = key_from_row(row), get_tenant(connection, row.tenant_id)
    if hmac.compare_digest(bytes(row.key_sha256), key_sha256):
        return KeyOwner(key, tenant)
    if not hmac.compare_digest(bytes(row.previous_sha256), key_sha256):
        return None
    ends_ms = min(end for end in (row.previous_until_ms, row.expires_at_ms) if end is not None)
    return KeyOwner(replace(key, expires_at_ms=ends_ms), tenant)


def find_key_id(connection: Connection, secret: str) -> str:
    """The id of a key by its secret, to revoke a leaked one. Raises NotFound."""
    owner = lookup_key(connection, key_digest(secret))
    if owner is None:
        raise NotFound("key: no such key")
    return owner.key.key_id


def get_key(connection: Connection, key_id: str) -> Key:
    """A key by its id. Raises NotFound."""
    return key_from_row(_row(connection, key_id))


def list_keys(connection: Connection, *, tenant_id: str | None = None, limit: int = 1_000) -> list[Key]:
    """Keys, oldest first."""
    query = select(keys).order_by(keys.c.created_at_ms, keys.c.key_id).limit(limit)
    if tenant_id is not None:
        query = query.where(keys.c.tenant_id == tenant_id)
    return [key_from_row(row) for row in connection.execute(query)]


def new_secret(entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A fresh secret: `sk-` and 256 random bits in URL-safe base64."""
    return PREFIX + base64.urlsafe_b64encode(entropy(SECRET_BYTES)).rstrip(b"=").decode()


def key_from_row(row: Row[Any]) -> Key:
    """Read a row of `keys`."""
    return Key(
        row.key_id,
        row.key_prefix,
        row.tenant_id,
        row.role,
        stored_models(row.models),
        balance_of(row) if row.has_budget else None,
        row.window,
        row.reset_at_ms,
        row.expires_at_ms,
        row.revoked_at_ms,
        row.created_at_ms,
        quota_of(row),
        row.soft_budget_nanousd,
        row.previous_until_ms,
    )


def _checked_expiry(expires_at_ms: int | None, now_ms: int) -> int | None:
    if expires_at_ms is not None and expires_at_ms <= now_ms:
        raise InvalidRequest("expires: expected a time in the future", param="expires")
    return expires_at_ms


def _refuse_soft_without_budget(soft_budget_nanousd: int | None, has_budget: bool) -> None:
    """Refuse a soft budget for a key without a budget: its spending is counted for its tenant only."""
    if soft_budget_nanousd is not None and not has_budget:
        raise InvalidRequest("soft_budget_usd: a key's soft budget needs a budget_usd", param="soft_budget_usd")


def _row(connection: Connection, key_id: str) -> Row[Any]:
    row = connection.execute(select(keys).where(keys.c.key_id == key_id)).one_or_none()
    if row is None:
        raise NotFound("key: no such key")
    return row


def _trail(key: Key) -> dict[str, Any]:
    return {
        "tenant_id": key.tenant_id,
        "role": key.role,
        "models": key.models,
        "window": key.window,
        "granted_nanousd": None if key.balance is None else key.balance.granted_nanousd,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "rpm": key.quota.rpm,
        "tpm": key.quota.tpm,
        "parallel": key.quota.parallel,
        "soft_budget_nanousd": key.soft_budget_nanousd,
    }
