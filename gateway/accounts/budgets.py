"""Operations common to tenant, key and session accounts: locking, grants, audit trail.

All are synchronous functions of a Connection, for `Database.read` and `Database.write`. The lock order of the ledger
holds: a tenant's row is locked before any account of that tenant is changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from gateway.config.settings import RateQuota
from gateway.database.database import ledger_now_ms
from gateway.database.tables import audit_trail, ledger_entries, tenants
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.types import AccountKind, Balance
from gateway.ledger.windows import next_reset_ms, parse_window
from gateway.money import MAX_NANOUSD, usd_string
from gateway.wording import did_you_mean


def balance_of(row: Row[Any]) -> Balance:
    """The balance in an account's row."""
    return Balance(row.granted_nanousd, row.reserved_nanousd, row.spent_nanousd, row.overage_nanousd)


def lock_tenant(connection: Connection, tenant_id: str) -> Row[Any]:
    """Lock and return the tenant's row until the transaction ends. Raises NotFound."""
    row = connection.execute(select(tenants).where(tenants.c.tenant_id == tenant_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("tenant: no such tenant")
    return row


def checked_amount(amount_nanousd: object, param: str) -> int:
    """Check a budget in nano-USD. Raises InvalidRequest."""
    if isinstance(amount_nanousd, bool) or not isinstance(amount_nanousd, int):
        raise InvalidRequest(f"{param}: expected an amount of USD", param=param)
    if not 0 <= amount_nanousd <= MAX_NANOUSD:
        raise InvalidRequest(f"{param}: expected an amount from 0 to {usd_string(MAX_NANOUSD)} USD", param=param)
    return amount_nanousd


def quota_of(row: Row[Any]) -> RateQuota:
    """The rate limits of a tenant's or a key's own."""
    return RateQuota(row.rpm, row.tpm, row.parallel)


def checked_limits(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns for the limits in `values` (of LIMITS). Raises InvalidRequest."""
    columns: dict[str, Any] = {}
    for name in RATE_LIMITS:
        if name in values:
            value = values[name]
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RATE
            ):
                raise InvalidRequest(f"{name}: expected an integer from 1 to {MAX_RATE}, or null", param=name)
            columns[name] = value
    if "soft_budget_nanousd" in values:
        soft = values["soft_budget_nanousd"]
        columns["soft_budget_nanousd"] = None if soft is None else checked_amount(soft, "soft_budget_usd")
    return columns


MAX_WINDOW_CHARS = 16
RATE_LIMITS = ("rpm", "tpm", "parallel")
LIMITS = (*RATE_LIMITS, "soft_budget_nanousd")
"""What a tenant or key can be limited by beside its budget; null: by the configuration's default, or not at all."""
MAX_RATE = 10**12


def checked_window(connection: Connection, window: object, now_ms: int, *, ends_ms: int | None = None) -> int | None:
    """End of a window's first period by the ledger's clock, or None. Raises InvalidRequest.

    `ends_ms`: the end of the window before. One that has passed stays: what it spent is still to be reset.
    """
    if window is None:
        return None
    try:
        if not isinstance(window, str) or len(window) > MAX_WINDOW_CHARS:
            raise ValueError
        parse_window(window)
    except ValueError:
        raise InvalidRequest(
            'budget_duration: expected a window like "12h", "30d" or "1mo"', param="budget_duration"
        ) from None
    at_ms = ledger_now_ms(connection, now_ms)
    return ends_ms if ends_ms is not None and ends_ms <= at_ms else next_reset_ms(window, at_ms)


def checked_models(models: object) -> str | None:
    """An allow-list of models as stored JSON; None allows every model. Raises InvalidRequest."""
    if models is None:
        return None
    names: list[object] = list(models) if isinstance(models, list | tuple) else [None]
    if not all(isinstance(name, str) and 0 < len(name) <= 256 and "\0" not in name for name in names):
        raise InvalidRequest("models: expected a list of model names", param="models")
    return json.dumps(names)


def refuse_unknown_models(models: object, known: Collection[str]) -> None:
    """Raise InvalidRequest for an allow-list with a name unknown to the configuration."""
    for name in models if isinstance(models, list | tuple) else ():
        if isinstance(name, str) and name not in known:
            hint = did_you_mean(name, known) or f"known: {', '.join(sorted(known)[:20])}"
            raise InvalidRequest(
                f'models: expected models of the configuration, got "{name[:80]}"; {hint}', param="models"
            )


def stored_models(text: str | None) -> tuple[str, ...] | None:
    """An allow-list from its stored JSON; None allows every model."""
    return None if text is None else tuple(json.loads(text))


def change_grant(
    connection: Connection,
    kind: AccountKind,
    table: Table,
    here: ColumnElement[bool],
    now: Balance,
    wanted_nanousd: int,
    *,
    tenant_id: str,
    session_id: str | None = None,
    key_id: str | None = None,
    actor: str,
    now_ms: int,
) -> Balance:
    """Set an account's grant and record the entry; the caller holds the tenant's lock.

    Raises InvalidRequest for less than what is spent and reserved.
    """
    used = now.reserved_nanousd + now.spent_nanousd
    if wanted_nanousd < now.granted_nanousd and wanted_nanousd < used:
        raise InvalidRequest(
            f"budget: {usd_string(used)} USD of this {kind}'s budget are spent or reserved; expected at least "
            f"that, got {usd_string(wanted_nanousd)} USD",
            param="budget_usd",
        )
    change = wanted_nanousd - now.granted_nanousd
    if change == 0:
        return now
    connection.execute(update(table).where(here).values(granted_nanousd=wanted_nanousd))
    record_grant(
        connection, kind, change, tenant_id=tenant_id, session_id=session_id, key_id=key_id, actor=actor, now_ms=now_ms
    )
    return Balance(wanted_nanousd, now.reserved_nanousd, now.spent_nanousd, now.overage_nanousd)


def record_grant(
    connection: Connection,
    kind: AccountKind,
    change_nanousd: int,
    *,
    tenant_id: str,
    session_id: str | None = None,
    key_id: str | None = None,
    actor: str,
    now_ms: int,
) -> None:
    """Write the ledger entry of a grant; the caller changes the account in the same transaction."""
    connection.execute(
        insert(ledger_entries).values(
            kind="grant",
            scope=kind,
            amount_nanousd=change_nanousd,
            granted_delta_nanousd=change_nanousd,
            tenant_id=tenant_id,
            session_id=session_id,
            key_id=key_id,
            actor=actor,
            created_at_ms=now_ms,
        )
    )


def leave_trail(
    connection: Connection,
    actor: str,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    now_ms: int,
) -> None:
    """Record an administrative change in the audit trail."""
    connection.execute(
        insert(audit_trail).values(
            actor=actor[:64],
            action=action,
            subject=subject[:200],
            before=None if before is None else json.dumps(before),
            after=None if after is None else json.dumps(after),
            created_at_ms=now_ms,
        )
    )
