"""Tenants, the paying accounts: create, show, list, change, grant, with an audit trail.

Synchronous functions of a Connection, for `Database.read` and `Database.write`; the same statements on both databases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, Row, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from gateway.accounts.budgets import (
    LIMITS,
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
from gateway.config.settings import NO_LIMITS, RateQuota
from gateway.database.tables import tenants
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.types import Balance
from gateway.money import usd_string

TENANT_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
JUDGE_TENANT = "judge"
"""Tenant that pays for the gateway's own judge (gateway/turn/judge.py); clients' ids are made and begin with `ten_`."""
JUDGE_NAME = "judge~gateway"
"""Its name: clients' tenants could be called `judge` before the gateway had one."""
SECOND = "second"
"""Origin and reason of second answers, and the beginning of their sessions' ids."""
SECOND_TENANT = "second~answers"
"""Tenant that pays for second answers (gateway/turn/second_answers.py); no client's id or name may have a `~`."""
OWN_TENANTS = (JUDGE_TENANT, SECOND_TENANT)
"""Tenants of the gateway itself, which are no clients."""
TENANT_NAME = re.compile(r"[\w.:@+-]{1,128}")
"""Letters of any script, usable in a shell and a header."""
EXPECTED_NAME = "1 to 128 letters, digits or . _ : @ + - without spaces"
NAMES_LOCK_KEY = 0x5E9_0033
"""Advisory lock of transactions that give a tenant a name or an id."""
OUTAGE_MODES = ("closed", "open")
CHANGEABLE = (
    "name", "budget_nanousd", "window", "max_session_nanousd", "models", "outage", "store_text", "wrap_up", *LIMITS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tenant:
    """A paying account; `models` None allows every model, `window` None never resets the budget."""

    tenant_id: str
    name: str
    balance: Balance
    window: str | None
    reset_at_ms: int | None
    max_session_nanousd: int | None
    models: tuple[str, ...] | None
    outage: str
    store_text: bool
    created_at_ms: int
    quota: RateQuota = NO_LIMITS
    soft_budget_nanousd: int | None = None
    wrap_up: bool | None = None
    """Whether its sessions end with a last answer; None: as configured."""


def create_tenant(
    connection: Connection,
    tenant_id: str,
    name: str,
    *,
    budget_nanousd: int,
    window: str | None = None,
    max_session_nanousd: int | None = None,
    models: Sequence[str] | None = None,
    outage: str = "closed",
    store_text: bool = False,
    wrap_up: bool | None = None,
    actor: str,
    now_ms: int,
    **limits: int | None,
) -> Tenant:
    """Create a tenant; `limits` are of LIMITS.

    Raises InvalidRequest, also for a name or an id that is taken.
    """
    if actor not in OWN_TENANTS:
        refuse_own(tenant_id, "tenant_id")
    if TENANT_ID.fullmatch(tenant_id) is None and tenant_id not in OWN_TENANTS:
        raise InvalidRequest("tenant_id: expected 1 to 64 of A-Z a-z 0-9 . _ : -", param="tenant_id")
    values = _checked(
        connection,
        {
            "name": name,
            "window": window,
            "max_session_nanousd": max_session_nanousd,
            "models": models,
            "outage": outage,
            "store_text": store_text,
            "wrap_up": wrap_up,
            **limits,
        },
        now_ms,
    )
    if actor not in OWN_TENANTS:
        refuse_own(name, "name")
    checked_amount(budget_nanousd, "budget_usd")
    _refuse_taken(connection, name)
    if actor not in OWN_TENANTS:  # an older client's tenant may be called `judge`; find_client finds it
        _refuse_taken(connection, tenant_id)
    try:
        with connection.begin_nested():
            connection.execute(
                insert(tenants).values(
                    tenant_id=tenant_id, granted_nanousd=budget_nanousd, created_at_ms=now_ms, **values
                )
            )
    except IntegrityError:  # another replica was faster
        raise _name_taken(name) from None
    record_grant(connection, "tenant", budget_nanousd, tenant_id=tenant_id, actor=actor, now_ms=now_ms)
    tenant = get_tenant(connection, tenant_id)
    leave_trail(connection, actor, "tenant.create", tenant_id, None, _trail(tenant), now_ms)
    return tenant


def refuse_own(name: str, param: str) -> None:
    """Raise InvalidRequest if a client's tenant would be the gateway's own."""
    if name in (*OWN_TENANTS, JUDGE_NAME):
        raise InvalidRequest(f'{param}: "{name}" is a tenant of the gateway itself', param=param)


def ensure_own(connection: Connection, tenant_id: str, budget_nanousd: int, now_ms: int) -> None:
    """Create or update one of OWN_TENANTS with its daily budget."""
    name = JUDGE_NAME if tenant_id == JUDGE_TENANT else tenant_id
    made: dict[str, Any] = {"budget_nanousd": budget_nanousd, "actor": tenant_id, "now_ms": now_ms}
    found = ensure_tenant(connection, tenant_id, name, window="1d", **made)
    if found.balance.granted_nanousd != budget_nanousd:
        patch_tenant(connection, tenant_id, {"budget_nanousd": budget_nanousd}, actor=tenant_id, now_ms=now_ms)


def ensure_tenant(
    connection: Connection, tenant_id: str, name: str, *, budget_nanousd: int, actor: str, now_ms: int, **more: Any
) -> Tenant:
    """The tenant of this id, created when missing (`default` and OWN_TENANTS)."""
    found = find_tenant(connection, tenant_id)
    if found is not None:
        return found
    try:
        return create_tenant(
            connection, tenant_id, name, budget_nanousd=budget_nanousd, actor=actor, now_ms=now_ms, **more
        )
    except InvalidRequest:
        made_elsewhere = find_tenant(connection, tenant_id)
        if made_elsewhere is None:
            raise
        return made_elsewhere


def find_tenant(connection: Connection, tenant_id: str) -> Tenant | None:
    """A tenant by its id, or None."""
    row = connection.execute(select(tenants).where(tenants.c.tenant_id == tenant_id)).one_or_none()
    return None if row is None else tenant_from_row(row)


def find_client(connection: Connection, id_or_name: str) -> Tenant | None:
    """A client's tenant by its id or else its name, or None; never one of OWN_TENANTS."""
    for find in (find_tenant, find_tenant_by_name):
        found = find(connection, id_or_name)
        if found is not None and found.tenant_id not in OWN_TENANTS:
            return found
    return None


def find_tenant_by_name(connection: Connection, name: str) -> Tenant | None:
    """A tenant by its name, or None."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    return None if row is None else tenant_from_row(row)


def get_tenant(connection: Connection, tenant_id: str) -> Tenant:
    """A tenant by its id. Raises NotFound."""
    found = find_tenant(connection, tenant_id)
    if found is None:
        raise NotFound("tenant: no such tenant")
    return found


def list_tenants(connection: Connection, *, limit: int = 1_000) -> list[Tenant]:
    """Tenants by name."""
    return [tenant_from_row(row) for row in connection.execute(select(tenants).order_by(tenants.c.name).limit(limit))]


def patch_tenant(
    connection: Connection, tenant_id: str, changes: Mapping[str, Any], *, actor: str, now_ms: int
) -> Tenant:
    """Apply `changes` (keys of CHANGEABLE). Raises NotFound or InvalidRequest, changing nothing."""
    unknown = set(changes) - set(CHANGEABLE)
    if unknown:
        raise InvalidRequest(
            f"{min(unknown)}: cannot be changed; expected one of {', '.join(CHANGEABLE)}", param=min(unknown)
        )
    before = tenant_from_row(lock_tenant(connection, tenant_id))
    others = {name: value for name, value in changes.items() if name != "budget_nanousd"}
    values = _checked(connection, others, now_ms, ends_ms=before.reset_at_ms)
    if values.get("name", before.name) != before.name:
        if tenant_id not in OWN_TENANTS:
            refuse_own(values["name"], "name")
        _refuse_taken(connection, values["name"], by_others_than=tenant_id)
    if values:
        connection.execute(update(tenants).where(tenants.c.tenant_id == tenant_id).values(**values))
    if "budget_nanousd" in changes:
        _set_budget(connection, before, checked_amount(changes["budget_nanousd"], "budget_usd"), actor, now_ms)
    after = get_tenant(connection, tenant_id)
    leave_trail(connection, actor, "tenant.change", tenant_id, _trail(before), _trail(after), now_ms)
    return after


def grant_to_tenant(connection: Connection, tenant_id: str, change_nanousd: int, *, actor: str, now_ms: int) -> Tenant:
    """Add to the budget, or take back available money. Raises NotFound, InvalidRequest."""
    before = tenant_from_row(lock_tenant(connection, tenant_id))
    granted = before.balance.granted_nanousd
    if granted + change_nanousd < 0:
        raise InvalidRequest(
            f"budget: it is {usd_string(granted)} USD; expected to take back at most that, got "
            f"{usd_string(-change_nanousd)} USD",
            param="budget_usd",
        )
    wanted = checked_amount(granted + change_nanousd, "budget_usd")
    _set_budget(connection, before, wanted, actor, now_ms)
    after = get_tenant(connection, tenant_id)
    action = "tenant.grant" if change_nanousd >= 0 else "tenant.revoke"
    leave_trail(connection, actor, action, tenant_id, _trail(before), _trail(after), now_ms)
    return after


def tenant_from_row(row: Row[Any]) -> Tenant:
    """Read a row of `tenants`."""
    return Tenant(
        row.tenant_id,
        row.name,
        balance_of(row),
        row.window,
        row.reset_at_ms,
        row.max_session_nanousd,
        stored_models(row.models),
        row.outage,
        bool(row.store_text),
        row.created_at_ms,
        quota_of(row),
        row.soft_budget_nanousd,
        None if row.wrap_up is None else bool(row.wrap_up),
    )


def _set_budget(connection: Connection, tenant: Tenant, wanted_nanousd: int, actor: str, now_ms: int) -> None:
    change_grant(
        connection,
        "tenant",
        tenants,
        tenants.c.tenant_id == tenant.tenant_id,
        tenant.balance,
        wanted_nanousd,
        tenant_id=tenant.tenant_id,
        actor=actor,
        now_ms=now_ms,
    )


def _checked(
    connection: Connection, values: Mapping[str, Any], now_ms: int, *, ends_ms: int | None = None
) -> dict[str, Any]:
    """The validated columns of a change; `ends_ms` of the present window. Raises InvalidRequest."""
    columns: dict[str, Any] = dict(values)
    name = values.get("name")
    if "name" in values and not (
        isinstance(name, str) and (name in (*OWN_TENANTS, JUDGE_NAME) or TENANT_NAME.fullmatch(name))
    ):
        raise InvalidRequest(f"name: expected {EXPECTED_NAME}", param="name")
    if "window" in values:
        columns["reset_at_ms"] = checked_window(connection, values["window"], now_ms, ends_ms=ends_ms)
    if values.get("max_session_nanousd") is not None:
        checked_amount(values["max_session_nanousd"], "max_session_usd")
    if "models" in values:
        columns["models"] = checked_models(values["models"])
    if "outage" in values and values["outage"] not in OUTAGE_MODES:
        raise InvalidRequest('outage: expected "closed" or "open"', param="outage")
    if "store_text" in values:
        if not isinstance(values["store_text"], bool):
            raise InvalidRequest("store_text: expected true or false", param="store_text")
        columns["store_text"] = int(values["store_text"])
    if values.get("wrap_up") is not None:
        if not isinstance(values["wrap_up"], bool):
            raise InvalidRequest("wrap_up: expected true, false or null", param="wrap_up")
        columns["wrap_up"] = int(values["wrap_up"])
    return columns | checked_limits(values)


def _refuse_taken(connection: Connection, word: str, *, by_others_than: str | None = None) -> None:
    """Raise InvalidRequest if a name or id is a tenant's name or id already: callers name a tenant by either."""
    if connection.dialect.name == "postgresql":  # no index compares names with ids: one transaction at a time does
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": NAMES_LOCK_KEY})
    taken = (tenants.c.name == word) | (tenants.c.tenant_id == word)
    if by_others_than is not None:
        taken &= tenants.c.tenant_id != by_others_than
    if connection.execute(select(tenants.c.name).where(taken)).first() is not None:
        raise _name_taken(word)


def _name_taken(name: str) -> InvalidRequest:
    return InvalidRequest(f'name: the name or id "{name[:80]}" is taken by another tenant', param="name")


def _trail(tenant: Tenant) -> dict[str, Any]:
    return asdict(tenant) | {"balance": structs.asdict(tenant.balance)}
