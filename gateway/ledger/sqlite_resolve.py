"""Resolution of holds on SQLite: settle, release, sweep and checkpoint.

`migrations/sql/apply.sql` has the same rules for Postgres; one test suite runs against both.
"""

from __future__ import annotations

import json

from gateway.database.sqlite_connection import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.records import merge_memory, outcome_columns
from gateway.ledger.sqlite_beginnings import leave_beginning
from gateway.ledger.sqlite_limits import recount
from gateway.ledger.sqlite_rows import Hold, balances, entry, find_hold, move, require_hold, turn_entry
from gateway.ledger.sqlite_trees import links
from gateway.ledger.types import Balance, Checkpoint, Release, Resolved, Settle


def settle(cursor: Cursor, op: Settle, now_ms: int) -> Resolved:
    """Post a bill, the excess as overage; after the sweeper, post the difference once."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state in ("settled", "released") or hold.late:
        return _already(cursor, hold)
    if hold.state != "open":
        return _late(cursor, hold, op, now_ms)
    recount(cursor, hold, op.tokens, now_ms // 1000)
    held = min(op.amount_nanousd, hold.amount_nanousd)
    overage = op.amount_nanousd - held
    turn_entry(cursor, "settle", held, now_ms, hold, reserved=-hold.amount_nanousd, spent=held, source=op.usage_source)
    if overage:
        turn_entry(cursor, "overage", overage, now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = move(
        cursor,
        hold,
        now_ms,
        reserved=-hold.amount_nanousd,
        spent=op.amount_nanousd,
        overage=overage,
        memory=_memory_after(cursor, hold, op.session_memory),
        state="closed" if op.close_session else None,
    )
    cursor.execute(
        sql.RESOLVE_HOLD,
        {"hold": hold.hold_id, "new_state": "settled", "posted": op.amount_nanousd, "new_late": 0, "now": now_ms},
    )
    _close_decision(cursor, hold, op, op.amount_nanousd, session, now_ms)
    return Resolved("settle", overage, session, tenant)


def _late(cursor: Cursor, hold: Hold, op: Settle, now_ms: int) -> Resolved:
    """Post what the sweeper did not, within the funds left; the rest is an overage.

    A reported bill below the sweeper's estimate returns the difference; another estimate does not.
    """
    excess = hold.posted_nanousd - op.amount_nanousd
    if excess > 0 and op.usage_source == "reported":
        return _refund(cursor, hold, op, excess, now_ms)
    owed = max(0, -excess)
    session, tenant = balances(cursor, hold.tenant_id, hold.session_id)
    # What is spent already may take what is kept for a last answer: it is no overage.
    above = links(cursor, hold.tenant_id, hold.session_id)
    room = [session.available_nanousd, tenant.available_nanousd, *(link.balance.available_nanousd for link in above)]
    if hold.key_id is not None:
        room.append(Balance(*cursor.execute(sql.KEY, {"key": hold.key_id}).fetchone()[:4]).available_nanousd)
    fits = max(0, min(owed, *room))
    overage = owed - fits
    turn_entry(cursor, "late_post", fits, now_ms, hold, spent=fits, source=op.usage_source)
    if overage:
        turn_entry(cursor, "overage", overage, now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = move(
        cursor,
        hold,
        now_ms,
        spent=owed,
        overage=overage,
        memory=_memory_after(cursor, hold, op.session_memory),
        state="closed" if op.close_session else None,
    )
    cursor.execute(
        sql.RESOLVE_HOLD,
        {
            "hold": hold.hold_id,
            "new_state": hold.state,
            "posted": hold.posted_nanousd + owed,
            "new_late": 1,
            "now": now_ms,
        },
    )
    _close_decision(cursor, hold, op, owed, session, now_ms)
    return Resolved("late_post", overage, session, tenant)


def _refund(cursor: Cursor, hold: Hold, op: Settle | Release, excess: int, now_ms: int) -> Resolved:
    """Return what the sweeper posted beyond the bill to every account whose window still counts it."""
    source = op.usage_source if isinstance(op, Settle) else "none"
    tenant_counts = _still_counted(cursor, hold, sql.LAST_TENANT_RESET, {"tenant": hold.tenant_id})
    key_counts = hold.key_id is None or _still_counted(cursor, hold, sql.LAST_KEY_RESET, {"key": hold.key_id})
    if tenant_counts and key_counts:
        turn_entry(cursor, "refund", excess, now_ms, hold, spent=-excess, source=source)
    else:
        turn_entry(cursor, "refund", excess, now_ms, hold, scope="session", spent=-excess, source=source)
        if tenant_counts:
            entry(cursor, "refund", excess, now_ms, hold.tenant_id, scope="tenant", spent=-excess, source=source)
        if hold.key_id is not None and key_counts:
            entry(
                cursor, "refund", excess, now_ms, hold.tenant_id, scope="key", key_id=hold.key_id, spent=-excess,
                source=source,
            )  # fmt: skip
    session, tenant = move(
        cursor,
        hold,
        now_ms,
        spent=-excess,
        memory=_memory_after(cursor, hold, op.session_memory) if isinstance(op, Settle) else None,
        state="closed" if isinstance(op, Settle) and op.close_session else None,
        tenant=tenant_counts,
        key=key_counts,
    )
    posted = hold.posted_nanousd - excess
    cursor.execute(
        sql.RESOLVE_HOLD,
        {"hold": hold.hold_id, "new_state": hold.state, "posted": posted, "new_late": 1, "now": now_ms},
    )
    _close_decision(cursor, hold, op, -excess, session, now_ms)
    return Resolved("refund", 0, session, tenant)


def _still_counted(cursor: Cursor, hold: Hold, last_reset: str, of: dict[str, str]) -> bool:
    """True when an account is still in the window in which the sweeper posted this hold."""
    (reset_ms,) = cursor.execute(last_reset, of).fetchone()
    assert hold.resolved_at_ms is not None
    return reset_ms is None or reset_ms < hold.resolved_at_ms


def settle_again(cursor: Cursor, op: Settle, now_ms: int) -> Resolved:
    """Settle, unless the operation is committed already."""
    hold = require_hold(cursor, op.hold_id)
    overage = op.amount_nanousd - hold.amount_nanousd
    if hold.state == "settled" and hold.posted_nanousd == op.amount_nanousd:
        return Resolved("settle", max(0, overage), *balances(cursor, hold.tenant_id, hold.session_id))
    return settle(cursor, op, now_ms)


def release(cursor: Cursor, op: Release, now_ms: int) -> Resolved:
    """Give a hold back in full; after the sweeper, return what it posted, once."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state == "orphaned" and not hold.late and hold.posted_nanousd:
        return _refund(cursor, hold, op, hold.posted_nanousd, now_ms)
    if hold.state != "open":
        return _already(cursor, hold)
    recount(cursor, hold, 0, now_ms // 1000)
    turn_entry(cursor, "release", hold.amount_nanousd, now_ms, hold, reserved=-hold.amount_nanousd)
    session, tenant = move(cursor, hold, now_ms, reserved=-hold.amount_nanousd)
    cursor.execute(
        sql.RESOLVE_HOLD, {"hold": hold.hold_id, "new_state": "released", "posted": 0, "new_late": 0, "now": now_ms}
    )
    _close_decision(cursor, hold, op, 0, session, now_ms)
    if op.drop_idempotency:
        cursor.execute(sql.DROP_OPEN_CLAIM, {"decision": hold.decision_id})
    return Resolved("release", 0, session, tenant)


def release_again(cursor: Cursor, op: Release, now_ms: int) -> Resolved:
    """Release, unless the operation is committed already."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state == "released":
        return Resolved("release", 0, *balances(cursor, hold.tenant_id, hold.session_id))
    return release(cursor, op, now_ms)


def sweep_hold(cursor: Cursor, hold_id: str, lease_ms: int, now_ms: int) -> str | None:
    """Resolve a hold whose lease still ends at `lease_ms`; None when there is no such hold."""
    hold = find_hold(cursor, hold_id)
    if hold is None or hold.state != "open" or hold.expires_at_ms != lease_ms:
        return None
    kind, state, posted = (
        ("orphan_post", "orphaned", hold.checkpoint_nanousd) if hold.dispatched else ("expire", "expired", 0)
    )
    source = "estimated" if hold.dispatched else "none"
    amount = posted if hold.dispatched else hold.amount_nanousd
    turn_entry(cursor, kind, amount, now_ms, hold, reserved=-hold.amount_nanousd, spent=posted, source=source)
    session, _ = move(cursor, hold, now_ms, reserved=-hold.amount_nanousd, spent=posted)
    cursor.execute(
        sql.RESOLVE_HOLD, {"hold": hold.hold_id, "new_state": state, "posted": posted, "new_late": 0, "now": now_ms}
    )
    cursor.execute(
        sql.CHARGE_LOST_DECISION,
        {"decision": hold.decision_id, "cost": posted, "source": source, "remaining": session.available_nanousd},
    )
    cursor.execute(sql.ORPHAN_DECISION, {"decision": hold.decision_id, "error": state, "now": now_ms})
    # The first request will never answer: let the client's next try run instead of blocking it for a day.
    cursor.execute(sql.DROP_OPEN_CLAIM, {"decision": hold.decision_id})
    return kind


def checkpoint(cursor: Cursor, points: tuple[Checkpoint, ...], now_ms: int) -> None:
    """Raise the checkpoints and extend the leases of open holds."""
    for point in points:
        cursor.execute(
            sql.CHECKPOINT,
            {"hold": point.hold_id, "checkpoint": point.checkpoint_nanousd, "expires": now_ms + point.ttl_ms},
        )


def _already(cursor: Cursor, hold: Hold) -> Resolved:
    return Resolved("already", 0, *balances(cursor, hold.tenant_id, hold.session_id))


def _memory_after(cursor: Cursor, hold: Hold, update: str | None) -> str | None:
    if update is None:
        return None
    (stored,) = cursor.execute(sql.MEMORY, {"tenant": hold.tenant_id, "session": hold.session_id}).fetchone()
    return merge_memory(stored, update)


def _close_decision(cursor: Cursor, hold: Hold, op: Settle | Release, cost: int, session: Balance, now_ms: int) -> None:
    outcome = outcome_columns(op.decision)
    if isinstance(op, Settle):
        outcome.setdefault("usage_source", op.usage_source)
    if "status" in outcome:
        outcome["completed_at_ms"] = now_ms
    names = tuple(sorted(outcome))
    cursor.execute(
        sql.settle_decision(names),
        outcome | {"the_decision": hold.decision_id, "cost": cost, "remaining": session.available_nanousd},
    )
    if op.beginning is not None:
        leave_beginning(cursor, hold.tenant_id, hold.session_id, op.beginning, now_ms)
    if isinstance(op, Settle) and op.answer is not None:
        cursor.execute(
            sql.ANSWER_CLAIM,
            {
                "decision": hold.decision_id,
                "answer_status": op.answer.status,
                "answer_headers": json.dumps(dict(op.answer.headers)),
                "answer_body": op.answer.body,
            },
        )
