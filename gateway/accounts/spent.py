"""Accounts whose money has ended: their names, errors and remedies in messages."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import (
    GatewayError,
    KeyBudgetExceeded,
    ParentBudgetExceeded,
    SessionBudgetExceeded,
    TenantBudgetExceeded,
)
from gateway.ledger.types import RefusingAccount


@dataclass(frozen=True, slots=True)
class SpentAccount:
    """An account without money for what was asked."""

    name: str
    error: type[GatewayError]
    remedy: str


def spent_account(account: RefusingAccount, session_id: str) -> SpentAccount:
    """The account that refuses money to this session."""
    if account == "session":
        raising = f"raise it with X-Session-Budget-USD or POST /v1/sessions/{session_id}"
        return SpentAccount("session", SessionBudgetExceeded, raising)
    if account == "parent":
        raising = f"GET /v1/sessions/{session_id} names the parent; raise its budget"
        return SpentAccount("parent session", ParentBudgetExceeded, raising)
    error = KeyBudgetExceeded if account == "key" else TenantBudgetExceeded
    return SpentAccount(account, error, f"ask the operator to raise the {account}'s budget")
