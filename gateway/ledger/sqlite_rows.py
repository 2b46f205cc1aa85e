"""Row access of the ledger on SQLite: holds, balances, entries."""

from __future__ import annotations

from msgspec import Struct

from gateway.database.sqlite_connection import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.records import UnknownHold
from gateway.ledger.sqlite_trees import chain_of, move_ancestors
from gateway.ledger.types import Balance


class Hold(Struct, frozen=True):
    """One row of `holds`."""

    hold_id: str
    tenant_id: str
    session_id: str
    key_id: str | None
    decision_id: str
    attempt_id: str
    model: str
    amount_nanousd: int
    state: str
    dispatched: int
    checkpoint_nanousd: int
    posted_nanousd: int
    late: int
    expires_at_ms: int
    resolved_at_ms: int | None
    created_at_ms: int
    limited: int | None
    limit_key_id: str | None
    limit_tokens: int | None


def find_hold(cursor: Cursor, hold_id: str) -> Hold | None:
    """A hold by its id, or None."""
    row = cursor.execute(sql.HOLD, {"hold": hold_id}).fetchone()
    return None if row is None else Hold(hold_id, *row)


def require_hold(cursor: Cursor, hold_id: str) -> Hold:
    """A hold by its id. Raises UnknownHold."""
    hold = find_hold(cursor, hold_id)
    if hold is None:
        raise UnknownHold(hold_id)
    return hold


def balances(cursor: Cursor, tenant_id: str, session_id: str) -> tuple[Balance, Balance]:
    """Balances of the session and of the tenant."""
    session = cursor.execute(sql.SESSION, {"tenant": tenant_id, "session": session_id}).fetchone()
    tenant = cursor.execute(sql.TENANT, {"tenant": tenant_id}).fetchone()
    above = None if session[sql.PARENT] is None else chain_of(cursor, tenant_id, session_id).available_nanousd
    return Balance(session[0], session[1], session[2], session[3], above), Balance(*tenant[:4])


def move(
    cursor: Cursor,
    hold: Hold,
    now_ms: int,
    *,
    reserved: int = 0,
    spent: int = 0,
    overage: int = 0,
    memory: str | None = None,
    state: str | None = None,
    tenant: bool = True,
    key: bool = True,
) -> tuple[Balance, Balance]:
    """Add deltas (nano-USD) to session, those above it, key and tenant; return two balances.

    The balances are the session's and the tenant's. `tenant` and `key` are False to leave these accounts out.
    """
    deltas = {"reserved": reserved, "spent": spent, "overage": overage}
    place = {"tenant": hold.tenant_id, "session": hold.session_id}
    (session,) = cursor.execute(
        sql.MOVE_SESSION, deltas | place | {"now": now_ms, "memory": memory, "state": state}
    ).fetchall()
    above = None if session[4] is None else move_ancestors(cursor, place, deltas, now_ms)
    if hold.key_id is not None and key:
        cursor.execute(sql.MOVE_KEY, deltas | {"key": hold.key_id})
    if not tenant:
        return balances(cursor, hold.tenant_id, hold.session_id)
    (moved,) = cursor.execute(sql.MOVE_TENANT, deltas | {"tenant": hold.tenant_id}).fetchall()
    return Balance(session[0], session[1], session[2], session[3], above), Balance(*moved)


def turn_entry(
    cursor: Cursor,
    kind: str,
    amount: int,
    now_ms: int,
    hold: Hold,
    *,
    scope: str = "turn",
    reserved: int = 0,
    spent: int = 0,
    overage: int = 0,
    source: str = "none",
) -> None:
    """Append a ledger entry for a hold, on its session, tenant and key; amounts in nano-USD."""
    entry(
        cursor,
        kind,
        amount,
        now_ms,
        hold.tenant_id,
        scope=scope,
        session_id=hold.session_id,
        key_id=hold.key_id,
        reserved=reserved,
        spent=spent,
        overage=overage,
        hold=hold.hold_id,
        attempt=hold.attempt_id,
        decision=hold.decision_id,
        model=hold.model,
        source=source,
    )


def entry(
    cursor: Cursor,
    kind: str,
    amount: int,
    now_ms: int,
    tenant_id: str,
    *,
    scope: str = "turn",
    session_id: str | None = None,
    key_id: str | None = None,
    granted: int = 0,
    reserved: int = 0,
    spent: int = 0,
    overage: int = 0,
    hold: str | None = None,
    attempt: str | None = None,
    decision: str | None = None,
    model: str | None = None,
    source: str = "none",
    actor: str | None = None,
) -> None:
    """Append a ledger entry; amounts and deltas in nano-USD."""
    cursor.execute(
        sql.ADD_ENTRY,
        {
            "kind": kind,
            "scope": scope,
            "amount_nanousd": amount,
            "granted_delta_nanousd": granted,
            "reserved_delta_nanousd": reserved,
            "spent_delta_nanousd": spent,
            "overage_delta_nanousd": overage,
            "tenant_id": tenant_id,
            "session_id": session_id,
            "key_id": key_id,
            "hold_id": hold,
            "attempt_id": attempt,
            "decision_id": decision,
            "model": model,
            "usage_source": source,
            "actor": actor,
            "created_at_ms": now_ms,
        },
    )
