"""JSON of tenants, keys, sessions and ledger entries, for the API and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_FLOOR
from typing import Any

from gateway.accounts.keys import Key
from gateway.accounts.tenants import Tenant
from gateway.config.settings import RateQuota
from gateway.errors import InvalidRequest
from gateway.ledger.records import SessionRow
from gateway.ledger.types import Balance
from gateway.money import MoneyError, nanousd_from_usd, usd_string


def money_fields(name: str, nanousd: int | None) -> dict[str, Any]:
    """An amount as both `<name>_nano_usd` (integer) and `<name>_usd` (decimal string)."""
    return {f"{name}_nano_usd": nanousd, f"{name}_usd": None if nanousd is None else usd_string(nanousd)}


def balance_fields(balance: Balance) -> dict[str, Any]:
    """An account's budget, spent, reserved and remaining amounts."""
    return {
        **money_fields("budget", balance.granted_nanousd),
        **money_fields("spent", balance.spent_nanousd),
        **money_fields("reserved", balance.reserved_nanousd),
        **money_fields("remaining", balance.spendable_nanousd),
    }


def spend_control_fields(reached: bool) -> dict[str, Any]:
    """The end of the money in the words of Anthropic's sessions and of Codex."""
    return {"stop_reason": "budget_reached" if reached else None, "spend_control": {"reached": reached}}


def limit_fields(quota: RateQuota, soft_budget_nanousd: int | None) -> dict[str, Any]:
    """Rate limits and the soft budget; None where there is none of its own."""
    limits = {"rpm": quota.rpm, "tpm": quota.tpm, "parallel": quota.parallel}
    return {**limits, **money_fields("soft_budget", soft_budget_nanousd)}


def describe_tenant(tenant: Tenant) -> dict[str, Any]:
    """A tenant with its money."""
    return {
        "id": tenant.tenant_id,
        "name": tenant.name,
        **balance_fields(tenant.balance),
        "budget_duration": tenant.window,
        "reset_at_ms": tenant.reset_at_ms,
        **money_fields("max_session", tenant.max_session_nanousd),
        "models": tenant.models,
        **limit_fields(tenant.quota, tenant.soft_budget_nanousd),
        "outage": tenant.outage,
        "store_text": tenant.store_text,
        "wrap_up": tenant.wrap_up,
        "created_at_ms": tenant.created_at_ms,
    }


def describe_key(key: Key) -> dict[str, Any]:
    """A key without its secret; money fields are None when it has no own budget."""
    balance = key.balance
    return {
        "id": key.key_id,
        "key_prefix": key.key_prefix,
        "tenant_id": key.tenant_id,
        "role": key.role,
        "models": key.models,
        **money_fields("budget", None if balance is None else balance.granted_nanousd),
        **money_fields("spent", None if balance is None else balance.spent_nanousd),
        **money_fields("remaining", None if balance is None else balance.available_nanousd),
        "budget_duration": key.window,
        "reset_at_ms": key.reset_at_ms,
        **limit_fields(key.quota, key.soft_budget_nanousd),
        "expires_at_ms": key.expires_at_ms,
        "previous_secret_until_ms": key.previous_until_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "created_at_ms": key.created_at_ms,
    }


def describe_session(session: SessionRow) -> dict[str, Any]:
    """A session with its money."""
    return {
        "session_id": session.session_id,
        "tenant_id": session.tenant_id,
        "parent_session_id": session.parent_session_id,
        "state": session.state,
        "turns": session.turns,
        "expected_turns": session.expected_turns,
        **balance_fields(session.balance),
        **money_fields("own_remaining", session.balance.available_nanousd),
        **money_fields("above_remaining", session.balance.above_nanousd),
        **money_fields("kept", session.kept_nanousd),
        **spend_control_fields(session.budget_reached),
        "stall_signals": session.stall,
        "created_at_ms": session.created_at_ms,
        "updated_at_ms": session.updated_at_ms,
    }


def describe_entry(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A ledger entry by the API's field names."""
    return {
        "entry_id": row["entry_id"],
        "hold_id": row["hold_id"],
        "attempt_id": row["attempt_id"],
        "kind": row["kind"],
        "scope": row["scope"],
        **money_fields("amount", row["amount_nanousd"]),
        "session_id": row["session_id"],
        "tenant_id": row["tenant_id"],
        "decision_id": row["decision_id"],
        "model": row["model"],
        "usage_source": row["usage_source"],
        "actor": row["actor"],
        "created_at": datetime.fromtimestamp(row["created_at_ms"] / 1000, UTC).isoformat(),
    }


def read_usd(fields: Mapping[str, Any], name: str, *, rounding: str = ROUND_FLOOR) -> int | None:
    """A decimal USD amount of a JSON body in nano-USD, or None. Raises InvalidRequest."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidRequest(f"{name}: expected a decimal amount", param=name)
    try:
        return nanousd_from_usd(value, rounding=rounding)
    except MoneyError as error:
        raise InvalidRequest(f"{name}: {error}", param=name) from error
