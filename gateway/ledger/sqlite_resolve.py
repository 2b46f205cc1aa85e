"""How a hold ends on SQLite: the laws of settle, release and the sweep, and of what is known of a call meanwhile.

The same laws are written down for Postgres in the migrations' `apply_function`; tests run one suite against both.
"""

from __future__ import annotations

import json

from gateway.database.sqlite import Cursor
from gateway.ledger import statements as sql
from gateway.ledger.records import outcome_columns, remembered
from gateway.ledger.sqlite_rows import Hold, balances, find_hold, move, require_hold, turn_entry
from gateway.ledger.types import Balance, Checkpoint, Release, Resolved, Settle, SweepHold


def settle(cursor: Cursor, op: Settle) -> Resolved:
    """The bill: the held part is spent, the rest is an overage; after the sweeper, once, what it did not post."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state in ("settled", "released") or hold.late:
        return _already(cursor, hold)
    if hold.state != "open":
        return _late(cursor, hold, op)
    held = min(op.amount_nanousd, hold.amount_nanousd)
    overage = op.amount_nanousd - held
    turn_entry(
        cursor, "settle", held, op.now_ms, hold, reserved=-hold.amount_nanousd, spent=held, source=op.usage_source
    )
    if overage:
        turn_entry(cursor, "overage", overage, op.now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = move(
        cursor,
        hold,
        op.now_ms,
        reserved=-hold.amount_nanousd,
        spent=op.amount_nanousd,
        overage=overage,
        memory=_memory_after(cursor, hold, op.session_memory),
        state="closed" if op.close_session else None,
    )
    cursor.execute(
        sql.RESOLVE_HOLD,
        {"hold": hold.hold_id, "new_state": "settled", "posted": op.amount_nanousd, "new_late": 0, "now": op.now_ms},
    )
    _close_decision(cursor, hold, op, op.amount_nanousd, session)
    return Resolved("settle", overage, session, tenant)


def _late(cursor: Cursor, hold: Hold, op: Settle) -> Resolved:
    """The sweeper was first: post what it did not, within what is left; the rest is an overage."""
    owed = max(0, op.amount_nanousd - hold.posted_nanousd)
    session, tenant = balances(cursor, hold.tenant_id, hold.session_id)
    room = [session.available_nanousd, tenant.available_nanousd]
    if hold.key_id is not None:
        room.append(Balance(*cursor.execute(sql.KEY, {"key": hold.key_id}).fetchone()[:4]).available_nanousd)
    fits = max(0, min(owed, *room))
    overage = owed - fits
    turn_entry(cursor, "late_post", fits, op.now_ms, hold, spent=fits, source=op.usage_source)
    if overage:
        turn_entry(cursor, "overage", overage, op.now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = move(
        cursor,
        hold,
        op.now_ms,
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
            "now": op.now_ms,
        },
    )
    _close_decision(cursor, hold, op, owed, session)
    return Resolved("late_post", overage, session, tenant)


def settle_again(cursor: Cursor, op: Settle) -> Resolved:
    """`settle`, for an operation that may have been committed before."""
    hold = require_hold(cursor, op.hold_id)
    overage = op.amount_nanousd - hold.amount_nanousd
    if hold.state == "settled" and hold.posted_nanousd == op.amount_nanousd:
        return Resolved("settle", max(0, overage), *balances(cursor, hold.tenant_id, hold.session_id))
    return settle(cursor, op)


def release(cursor: Cursor, op: Release) -> Resolved:
    """Give the hold back whole."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state != "open":
        return _already(cursor, hold)
    turn_entry(cursor, "release", hold.amount_nanousd, op.now_ms, hold, reserved=-hold.amount_nanousd)
    session, tenant = move(cursor, hold, op.now_ms, reserved=-hold.amount_nanousd)
    cursor.execute(
        sql.RESOLVE_HOLD, {"hold": hold.hold_id, "new_state": "released", "posted": 0, "new_late": 0, "now": op.now_ms}
    )
    _close_decision(cursor, hold, op, 0, session)
    if op.answer is None and op.drop_idempotency:
        cursor.execute(sql.DROP_OPEN_CLAIM, {"decision": hold.decision_id})
    return Resolved("release", 0, session, tenant)


def release_again(cursor: Cursor, op: Release) -> Resolved:
    """`release`, for an operation that may have been committed before."""
    hold = require_hold(cursor, op.hold_id)
    if hold.state == "released":
        return Resolved("release", 0, *balances(cursor, hold.tenant_id, hold.session_id))
    return release(cursor, op)


def sweep_hold(cursor: Cursor, op: SweepHold) -> str | None:
    """Resolve one hold whose lease ran out; None when somebody was faster or the lease was extended."""
    hold = find_hold(cursor, op.hold_id)
    if hold is None or hold.state != "open" or hold.expires_at_ms > op.now_ms:
        return None
    kind, state, posted = (
        ("orphan_post", "orphaned", hold.checkpoint_nanousd) if hold.dispatched else ("expire", "expired", 0)
    )
    source = "estimated" if hold.dispatched else "none"
    amount = posted if hold.dispatched else hold.amount_nanousd
    turn_entry(cursor, kind, amount, op.now_ms, hold, reserved=-hold.amount_nanousd, spent=posted, source=source)
    session, _ = move(cursor, hold, op.now_ms, reserved=-hold.amount_nanousd, spent=posted)
    cursor.execute(
        sql.RESOLVE_HOLD, {"hold": hold.hold_id, "new_state": state, "posted": posted, "new_late": 0, "now": op.now_ms}
    )
    cursor.execute(
        sql.LOST_DECISION,
        {"decision": hold.decision_id, "cost": posted, "source": source, "remaining": session.available_nanousd},
    )
    cursor.execute(sql.LOSE_DECISION, {"decision": hold.decision_id, "error": state, "now": op.now_ms})
    # The first answer will never come: the client's next try may run, it is not held off for a day.
    cursor.execute(sql.DROP_OPEN_CLAIM, {"decision": hold.decision_id})
    return kind


def checkpoint(cursor: Cursor, points: tuple[Checkpoint, ...]) -> None:
    for point in points:
        cursor.execute(
            sql.CHECKPOINT,
            {"hold": point.hold_id, "checkpoint": point.checkpoint_nanousd, "expires": point.expires_at_ms},
        )


def _already(cursor: Cursor, hold: Hold) -> Resolved:
    return Resolved("already", 0, *balances(cursor, hold.tenant_id, hold.session_id))


def _memory_after(cursor: Cursor, hold: Hold, news: str | None) -> str | None:
    if news is None:
        return None
    (stored,) = cursor.execute(sql.MEMORY, {"tenant": hold.tenant_id, "session": hold.session_id}).fetchone()
    return remembered(stored, news)


def _close_decision(cursor: Cursor, hold: Hold, op: Settle | Release, cost: int, session: Balance) -> None:
    outcome = outcome_columns(op.decision)
    if isinstance(op, Settle):
        outcome.setdefault("usage_source", op.usage_source)
    if "status" in outcome:
        outcome.setdefault("completed_at_ms", op.now_ms)
    names = tuple(sorted(outcome))
    cursor.execute(
        sql.settle_decision(names),
        outcome | {"the_decision": hold.decision_id, "cost": cost, "remaining": session.available_nanousd},
    )
    if op.answer is not None:
        cursor.execute(
            sql.ANSWER_CLAIM,
            {
                "decision": hold.decision_id,
                "answer_status": op.answer.status,
                "answer_headers": json.dumps(dict(op.answer.headers)),
                "answer_body": op.answer.body,
            },
        )
