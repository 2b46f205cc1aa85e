"""Reservations on SQLite, and the start of a budget window that a reservation may cause.

Each function reads, decides, and only then writes, so a refusal changes nothing. `migrations/sql/apply.sql` has the
same rules for Postgres; one test suite runs against both.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import structs

from gateway.database.sqlite_connection import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.budget_headers import apply_header
from gateway.ledger.records import decision_row
from gateway.ledger.sqlite_limits import count, over_limit
from gateway.ledger.sqlite_rows import balances, entry, find_hold
from gateway.ledger.sqlite_trees import Link, attach, links_of, move_ancestors, refusal
from gateway.ledger.types import (
    Balance,
    BodyMismatch,
    IdempotencyClaim,
    InFlight,
    ParentRefused,
    Refused,
    Replay,
    Reserve,
    Reserved,
    ReserveOutcome,
    ResetWindow,
    SessionClosed,
    TenantMissing,
    free_nanousd,
    kept_from_now_on,
)
from gateway.ledger.windows import next_reset_ms


def reserve(cursor: Cursor, op: Reserve, now_ms: int) -> ReserveOutcome:
    """Hold the amount on session, key and tenant if all can pay, and log the pending decision."""
    claimed = _claimed(cursor, op.tenant_id, op.idempotency, now_ms)
    if claimed is not None:
        return claimed
    tenant = cursor.execute(sql.TENANT, {"tenant": op.tenant_id}).fetchone()
    if tenant is not None and tenant[sql.RESET_AT] is not None and tenant[sql.RESET_AT] <= now_ms:
        # A turn at the boundary starts the new window itself rather than waiting for the sweeper.
        reset_window(cursor, ResetWindow(op.tenant_id, None), now_ms)
        tenant = cursor.execute(sql.TENANT, {"tenant": op.tenant_id}).fetchone()
    if tenant is None:
        return TenantMissing(op.tenant_id)
    session = cursor.execute(sql.SESSION, {"tenant": op.tenant_id, "session": op.session_id}).fetchone()
    if session is not None and (op.decision is not None or op.repeatable):
        if session[sql.STATE] != "open":
            return SessionClosed(session[sql.STATE])
        if op.terms.max_turns is not None and session[sql.TURNS] >= op.terms.max_turns:
            return SessionClosed("max_turns")
    if op.limits is not None and op.decision is not None:
        over = over_limit(cursor, op.limits, now_ms // 1000)
        if over is not None:
            return over
    op, memory = _with_header_applied(cursor, op)
    above = links_of(cursor, op, session)
    if isinstance(above, ParentRefused):
        return above
    old = Balance(*session[:4]) if session is not None else Balance(0, 0, 0)
    if above:
        own_limit = session is not None and bool(session[sql.OWN_LIMIT])
        granted = granted_to_child(op, old if session is not None else None, own_limit, above, tenant[sql.MAX_SESSION])
    else:
        granted = granted_under(op, old if session is not None else None, tenant[sql.MAX_SESSION])
    before = Balance(granted, old.reserved_nanousd, old.spent_nanousd, old.overage_nanousd)
    kept = 0 if op.closing else kept_from_now_on(0 if session is None else session[sql.KEPT], op.kept_nanousd)
    if free_nanousd(before.available_nanousd, kept) < op.amount_nanousd:
        return Refused("session", before, before.reserved_nanousd > 0, kept)
    refused = refusal(above, op.amount_nanousd, op.decision is not None or op.repeatable)
    if refused is not None:
        return refused
    key_id = op.key_id
    if key_id is not None:
        key = _key_account(cursor, op, now_ms)
        if key is None:
            key_id = None
        elif free_nanousd(key.available_nanousd, kept) < op.amount_nanousd:
            return Refused("key", key, key.reserved_nanousd > 0, kept)
    tenant_before = Balance(*tenant[:4])
    if free_nanousd(tenant_before.available_nanousd, kept) < op.amount_nanousd:
        return Refused("tenant", tenant_before, tenant_before.reserved_nanousd > 0, kept)
    return _hold(cursor, op, now_ms, key_id, session, memory, before, old.granted_nanousd, tenant_before)


def reserve_again(cursor: Cursor, op: Reserve, now_ms: int) -> ReserveOutcome:
    """Reserve, unless the operation is committed already: an attempt keeps its answer."""
    hold = find_hold(cursor, op.hold_id)
    if hold is None or hold.attempt_id != op.attempt_id:
        return reserve(cursor, op, now_ms)
    turn = cursor.execute(sql.DECISION_TURN, {"decision": op.decision_id}).fetchone()
    session, tenant = balances(cursor, op.tenant_id, op.session_id)
    return Reserved(turn[0] if turn else 0, session, tenant)


def granted_under(op: Reserve, session: Balance | None, max_session_nanousd: int | None) -> int:
    """Session grant in nano-USD: as requested, at most the tenant's limit, at least its use."""
    wanted = op.terms.ceiling_nanousd
    if session is None and wanted is None:
        wanted = op.terms.default_nanousd
    if wanted is None:
        assert session is not None
        return session.granted_nanousd
    if max_session_nanousd is not None:
        wanted = min(wanted, max_session_nanousd)
    if session is None:
        return wanted
    used = session.reserved_nanousd + session.spent_nanousd
    return max(wanted, min(session.granted_nanousd, used))


def granted_to_child(
    op: Reserve, session: Balance | None, own_limit: bool, above: list[Link], max_session_nanousd: int | None
) -> int:
    """Grant of a child in nano-USD: its own limit, else its parent's budget.

    A limit is at most what the sessions above have left; one that was granted before is not cut again when its client
    repeats it.
    """
    parents = above[0].balance.granted_nanousd
    if op.terms.ceiling_nanousd is None:
        if session is None:
            return parents
        return session.granted_nanousd if own_limit else max(session.granted_nanousd, parents)
    used = 0 if session is None else session.reserved_nanousd + session.spent_nanousd
    before = session.granted_nanousd if session is not None and own_limit else 0
    room = max(0, min(link.free_nanousd for link in above))
    wanted = min(granted_under(op, session, max_session_nanousd), max(before, used + room))
    return max(wanted, 0 if session is None else min(session.granted_nanousd, used))


def _with_header_applied(cursor: Cursor, op: Reserve) -> tuple[Reserve, str | None]:
    """The operation without a ceiling that changes nothing, and the session's memory of it; None: as it is."""
    if op.terms.ceiling_nanousd is None:
        return op, None
    stored = cursor.execute(sql.MEMORY, {"tenant": op.tenant_id, "session": op.session_id}).fetchone()
    changes, memory = apply_header("{}" if stored is None else stored[0], op.terms)
    terms = op.terms if changes else structs.replace(op.terms, ceiling_nanousd=None)
    return structs.replace(op, terms=terms), memory


def _key_account(cursor: Cursor, op: Reserve, now_ms: int) -> Balance | None:
    """The key's own account; None when only its tenant's budget limits it."""
    row = cursor.execute(sql.KEY, {"key": op.key_id}).fetchone()
    if row is None or not row[4]:
        return None
    if row[5] is not None and row[5] <= now_ms:
        reset_window(cursor, ResetWindow(op.tenant_id, op.key_id), now_ms)
        row = cursor.execute(sql.KEY, {"key": op.key_id}).fetchone()
    return Balance(*row[:4])


def _hold(
    cursor: Cursor,
    op: Reserve,
    now_ms: int,
    key_id: str | None,
    session: Any,
    memory: str | None,
    before: Balance,
    old_granted: int,
    tenant: Balance,
) -> Reserved:
    """Hold an amount that every account has: the session's entries, hold and decision, then all balances."""
    place = {"tenant": op.tenant_id, "session": op.session_id}
    if session is None:
        _open_session(cursor, op, before.granted_nanousd, now_ms)
    if before.granted_nanousd != old_granted or session is None:
        _enter_grant(cursor, op, before.granted_nanousd - old_granted, now_ms)
    _enter_hold(cursor, op, key_id, now_ms)
    turn = _turn_of(cursor, op, session, before, now_ms)
    new_turn = op.decision is not None
    cursor.execute(
        sql.RESERVE_ON_SESSION,
        place
        | {
            "granted": before.granted_nanousd,
            "amount": op.amount_nanousd,
            "new_turns": int(new_turn),
            "now": now_ms,
            "decision": op.decision_id if new_turn else None,
            "expected": op.terms.expected_turns,
            "own_limit": None if op.terms.ceiling_nanousd is None else 1,
            "kept": kept_from_now_on(0 if session is None else session[sql.KEPT], op.kept_nanousd),
            "memory": memory,
        },
    )
    held = {"reserved": op.amount_nanousd, "spent": 0, "overage": 0}
    rest = None
    if op.parent_session_id is not None or (session is not None and session[sql.PARENT] is not None):
        rest = move_ancestors(cursor, place, held, now_ms)
    if key_id is not None:
        cursor.execute(sql.MOVE_KEY, {"key": key_id} | held)
    cursor.execute(sql.MOVE_TENANT, {"tenant": op.tenant_id} | held)
    if op.idempotency is not None:
        _claim(cursor, op, op.idempotency, now_ms)
    reading = None if op.limits is None else count(cursor, op.limits, int(new_turn), now_ms // 1000)
    after = structs.replace(_with(before, reserved=op.amount_nanousd), above_nanousd=rest)
    return Reserved(turn, after, _with(tenant, reserved=op.amount_nanousd), reading)


def _turn_of(cursor: Cursor, op: Reserve, session: Any, before: Balance, now_ms: int) -> int:
    """The number of the attempt's turn; a new one gets its decision's row."""
    turn: int = session[sql.TURNS] if session is not None else 0
    if op.decision is None:
        known = cursor.execute(sql.DECISION_TURN, {"decision": op.decision_id}).fetchone()
        return known[0] if known else turn
    row = decision_row(op) | {
        "turn": turn,
        "previous_decision_id": session[sql.LAST_DECISION] if session is not None else None,
        "session_budget_nanousd": before.granted_nanousd,
        "remaining_before_nanousd": before.available_nanousd,
        "created_at_ms": now_ms,
    }
    cursor.execute(sql.ADD_DECISION, row)
    return turn


def _enter_grant(cursor: Cursor, op: Reserve, change: int, now_ms: int) -> None:
    """Enter what the client's limit changes in the session's grant."""
    entry(
        cursor,
        "grant",
        change,
        now_ms,
        op.tenant_id,
        scope="session",
        session_id=op.session_id,
        granted=change,
        actor="client",
    )


def _enter_hold(cursor: Cursor, op: Reserve, key_id: str | None, now_ms: int) -> None:
    """Enter the reservation and its open hold."""
    entry(
        cursor,
        "reserve",
        op.amount_nanousd,
        now_ms,
        op.tenant_id,
        session_id=op.session_id,
        key_id=key_id,
        reserved=op.amount_nanousd,
        hold=op.hold_id,
        attempt=op.attempt_id,
        decision=op.decision_id,
        model=op.model,
    )
    cursor.execute(sql.ADD_HOLD, _hold_row(op, key_id, now_ms))


def _open_session(cursor: Cursor, op: Reserve, granted_nanousd: int, now_ms: int) -> None:
    """Open the turn's session, below its parent if it names one."""
    cursor.execute(
        sql.OPEN_SESSION,
        {
            "tenant_id": op.tenant_id,
            "session_id": op.session_id,
            "granted_nanousd": granted_nanousd,
            "expected_turns": op.terms.expected_turns,
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
            "parent_session_id": op.parent_session_id,
            "own_limit": int(op.parent_session_id is None or op.terms.ceiling_nanousd is not None),
        },
    )
    if op.parent_session_id is not None:
        attach(cursor, op.tenant_id, op.session_id, op.parent_session_id)


def _hold_row(op: Reserve, key_id: str | None, now_ms: int) -> dict[str, Any]:
    """The row of an open hold."""
    return {
        "hold_id": op.hold_id,
        "tenant_id": op.tenant_id,
        "session_id": op.session_id,
        "key_id": key_id,
        "decision_id": op.decision_id,
        "attempt_id": op.attempt_id,
        "model": op.model,
        "amount_nanousd": op.amount_nanousd,
        "state": "open",
        "dispatched": int(op.checkpoint_nanousd is not None),
        "checkpoint_nanousd": min(op.checkpoint_nanousd or 0, op.amount_nanousd),
        "expires_at_ms": now_ms + op.ttl_ms,
        "created_at_ms": now_ms,
        "limited": None if op.limits is None else op.limits.mask,
        "limit_key_id": None if op.limits is None else op.limits.key_id,
        "limit_tokens": None if op.limits is None else op.limits.tokens,
    }


def _claim(cursor: Cursor, op: Reserve, claim: IdempotencyClaim, now_ms: int) -> None:
    """Claim the turn's idempotency key."""
    cursor.execute(
        sql.MAKE_CLAIM,
        {
            "tenant_id": op.tenant_id,
            "idempotency_key": claim.key,
            "body_sha256": claim.body_sha256,
            "decision_id": op.decision_id,
            "created_at_ms": now_ms,
            "expires_at_ms": now_ms + claim.kept_ms,
        },
    )


def reset_window(cursor: Cursor, op: ResetWindow, now_ms: int) -> bool:
    """Reset spent and overage to zero, keeping reservations; True when this call did it."""
    if op.key_id is None:
        row = cursor.execute(sql.RESET_TENANT, {"tenant": op.tenant_id}).fetchone()
    else:
        row = cursor.execute(sql.RESET_KEY, {"key": op.key_id}).fetchone()
    if row is None or row[4] is None or row[5] is None or row[5] > now_ms:
        return False
    _, _, spent, overage, window, old = row
    new = next_reset_ms(window, now_ms)
    if op.key_id is None:
        cursor.execute(sql.NEXT_TENANT_WINDOW, {"tenant": op.tenant_id, "old": old, "new": new, "now": now_ms})
    else:
        cursor.execute(sql.NEXT_KEY_WINDOW, {"key": op.key_id, "old": old, "new": new, "now": now_ms})
    entry(
        cursor,
        "reset",
        spent,
        now_ms,
        op.tenant_id,
        scope="tenant" if op.key_id is None else "key",
        key_id=op.key_id,
        spent=-spent,
        overage=-overage,
        actor="sweeper",
    )
    return True


def _claimed(
    cursor: Cursor, tenant_id: str, claim: IdempotencyClaim | None, now_ms: int
) -> Replay | InFlight | BodyMismatch | None:
    if claim is None:
        return None
    row = cursor.execute(sql.CLAIM, {"tenant": tenant_id, "claim": claim.key}).fetchone()
    if row is None:
        return None
    if row[5] <= now_ms:
        cursor.execute(sql.DROP_CLAIM, {"tenant": tenant_id, "claim": claim.key})
        return None
    return claim_from_row(row, claim.body_sha256)


def claim_from_row(row: Any, body_sha256: bytes) -> Replay | InFlight | BodyMismatch:
    """Read a row of sql.CLAIM."""
    if bytes(row[0]) != body_sha256:
        return BodyMismatch(row[1])
    if row[2] is None:
        return InFlight(row[1])
    return Replay(row[2], json.loads(row[3]), bytes(row[4]))


def _with(balance: Balance, *, reserved: int) -> Balance:
    return Balance(
        balance.granted_nanousd, balance.reserved_nanousd + reserved, balance.spent_nanousd, balance.overage_nanousd
    )
