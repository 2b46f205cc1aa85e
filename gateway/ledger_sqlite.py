"""The ledger's operations on SQLite: plain functions of a cursor, run in groups by the writer thread.

Each function reads, decides, and only then writes, so a refusal leaves nothing behind.
The same laws are written down for Postgres in the migrations' `apply_function`; tests run one suite against both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from gateway import ledger_statements as sql
from gateway.db_sqlite import Cursor, SqliteDatabase
from gateway.errors import LedgerUnavailable
from gateway.ledger_records import (
    SESSION_FACTS,
    SessionRow,
    Standing,
    UnknownHold,
    decision_row,
    outcome_columns,
)
from gateway.operations import (
    Balance,
    BodyMismatch,
    Checkpoint,
    IdempotencyClaim,
    InFlight,
    MarkDispatched,
    Refused,
    Release,
    Replay,
    Reserve,
    Reserved,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    SessionClosed,
    Settle,
    SweepHold,
    TenantMissing,
)
from gateway.windows import next_reset_ms


@dataclass(frozen=True, slots=True)
class _Hold:
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


def reserve(cursor: Cursor, op: Reserve) -> ReserveOutcome:
    """Check session, key and tenant, then hold the amount on all of them and log the pending decision."""
    claimed = _claimed(cursor, op.tenant_id, op.idempotency, op.now_ms, op.decision_id)
    if claimed is not None:
        return claimed
    tenant = cursor.execute(sql.TENANT, {"tenant": op.tenant_id}).fetchone()
    if tenant is not None and tenant[5] is not None and tenant[5] <= op.now_ms:
        # A turn at the boundary does not wait for the sweeper to start the new window.
        reset_window(cursor, ResetWindow(op.tenant_id, None, op.now_ms))
        tenant = cursor.execute(sql.TENANT, {"tenant": op.tenant_id}).fetchone()
    if tenant is None:
        return TenantMissing(op.tenant_id)
    session = cursor.execute(sql.SESSION, {"tenant": op.tenant_id, "session": op.session_id}).fetchone()
    if session is not None and op.decision is not None:
        if session[4] == "closed":
            return SessionClosed("closed")
        if op.terms.max_turns is not None and session[5] >= op.terms.max_turns:
            return SessionClosed("max_turns")
    old = Balance(*session[:4]) if session is not None else Balance(0, 0, 0)
    granted = granted_under(op, old if session is not None else None, tenant[4])
    before = Balance(granted, old.reserved_nanousd, old.spent_nanousd, old.overage_nanousd)
    if before.available_nanousd < op.amount_nanousd:
        return Refused("session", before, before.reserved_nanousd > 0)
    key_id = op.key_id
    if key_id is not None:
        key = _key_account(cursor, op)
        if key is None:
            key_id = None
        elif key.available_nanousd < op.amount_nanousd:
            return Refused("key", key, key.reserved_nanousd > 0)
    tenant_before = Balance(*tenant[:4])
    if tenant_before.available_nanousd < op.amount_nanousd:
        return Refused("tenant", tenant_before, tenant_before.reserved_nanousd > 0)
    return _hold(cursor, op, key_id, session, before, old.granted_nanousd, tenant_before)


def reserve_again(cursor: Cursor, op: Reserve) -> ReserveOutcome:
    """`reserve`, for an operation that may have been committed before: the same attempt gets the same answer."""
    hold = _find_hold(cursor, op.hold_id)
    if hold is None or hold.attempt_id != op.attempt_id:
        return reserve(cursor, op)
    turn = cursor.execute(sql.DECISION_TURN, {"decision": op.decision_id}).fetchone()
    session, tenant = _balances(cursor, op.tenant_id, op.session_id)
    return Reserved(turn[0] if turn else 0, session, tenant)


def granted_under(op: Reserve, session: Balance | None, max_session_nanousd: int | None) -> int:
    """The session's ceiling with this turn: as asked, within the tenant's, never below what is spent and reserved."""
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


def _key_account(cursor: Cursor, op: Reserve) -> Balance | None:
    """The key's own account; None when it spends its tenant's money freely."""
    row = cursor.execute(sql.KEY, {"key": op.key_id}).fetchone()
    if row is None or not row[4]:
        return None
    if row[5] is not None and row[5] <= op.now_ms:
        reset_window(cursor, ResetWindow(op.tenant_id, op.key_id, op.now_ms))
        row = cursor.execute(sql.KEY, {"key": op.key_id}).fetchone()
    return Balance(*row[:4])


def _hold(
    cursor: Cursor, op: Reserve, key_id: str | None, session: Any, before: Balance, old_granted: int, tenant: Balance
) -> Reserved:
    turn: int = session[5] if session is not None else 0
    place = {"tenant": op.tenant_id, "session": op.session_id}
    if session is None:
        cursor.execute(
            sql.OPEN_SESSION,
            {
                "tenant_id": op.tenant_id,
                "session_id": op.session_id,
                "granted_nanousd": before.granted_nanousd,
                "expected_turns": op.terms.expected_turns,
                "created_at_ms": op.now_ms,
                "updated_at_ms": op.now_ms,
            },
        )
    if before.granted_nanousd != old_granted or session is None:
        change = before.granted_nanousd - old_granted
        _entry(
            cursor,
            "grant",
            change,
            op.now_ms,
            op.tenant_id,
            scope="session",
            session_id=op.session_id,
            granted=change,
            actor="client",
        )
    _entry(
        cursor,
        "reserve",
        op.amount_nanousd,
        op.now_ms,
        op.tenant_id,
        session_id=op.session_id,
        key_id=key_id,
        reserved=op.amount_nanousd,
        hold=op.hold_id,
        attempt=op.attempt_id,
        decision=op.decision_id,
        model=op.model,
    )
    cursor.execute(
        sql.ADD_HOLD,
        {
            "hold_id": op.hold_id,
            "tenant_id": op.tenant_id,
            "session_id": op.session_id,
            "key_id": key_id,
            "decision_id": op.decision_id,
            "attempt_id": op.attempt_id,
            "model": op.model,
            "amount_nanousd": op.amount_nanousd,
            "state": "open",
            "expires_at_ms": op.expires_at_ms,
            "created_at_ms": op.now_ms,
        },
    )
    new_turn = op.decision is not None
    if new_turn:
        row = decision_row(op)
        row["turn"] = turn
        row["previous_decision_id"] = session[7] if session is not None else None
        row["session_budget_nanousd"] = before.granted_nanousd
        row["remaining_before_nanousd"] = before.available_nanousd
        cursor.execute(sql.ADD_DECISION, row)
    else:
        known = cursor.execute(sql.DECISION_TURN, {"decision": op.decision_id}).fetchone()
        turn = known[0] if known else turn
    cursor.execute(
        sql.RESERVE_ON_SESSION,
        place
        | {
            "granted": before.granted_nanousd,
            "amount": op.amount_nanousd,
            "new_turns": int(new_turn),
            "now": op.now_ms,
            "decision": op.decision_id if new_turn else None,
            "expected": op.terms.expected_turns,
        },
    )
    if key_id is not None:
        cursor.execute(sql.MOVE_KEY, {"key": key_id, "reserved": op.amount_nanousd, "spent": 0, "overage": 0})
    cursor.execute(sql.MOVE_TENANT, {"tenant": op.tenant_id, "reserved": op.amount_nanousd, "spent": 0, "overage": 0})
    if op.idempotency is not None:
        cursor.execute(
            sql.MAKE_CLAIM,
            {
                "tenant_id": op.tenant_id,
                "idempotency_key": op.idempotency.key,
                "body_sha256": op.idempotency.body_sha256,
                "decision_id": op.decision_id,
                "created_at_ms": op.now_ms,
                "expires_at_ms": op.idempotency.expires_at_ms,
            },
        )
    return Reserved(turn, _with(before, reserved=op.amount_nanousd), _with(tenant, reserved=op.amount_nanousd))


def settle(cursor: Cursor, op: Settle) -> Resolved:
    """The bill: the held part is spent, the rest is an overage; after the sweeper, once, what it did not post."""
    hold = _require_hold(cursor, op.hold_id)
    if hold.state in ("settled", "released") or hold.late:
        return _already(cursor, hold)
    if hold.state != "open":
        return _late(cursor, hold, op)
    held = min(op.amount_nanousd, hold.amount_nanousd)
    overage = op.amount_nanousd - held
    _turn_entry(
        cursor, "settle", held, op.now_ms, hold, reserved=-hold.amount_nanousd, spent=held, source=op.usage_source
    )
    if overage:
        _turn_entry(cursor, "overage", overage, op.now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = _move(
        cursor,
        hold,
        op.now_ms,
        reserved=-hold.amount_nanousd,
        spent=op.amount_nanousd,
        overage=overage,
        memory=op.session_memory,
        state="closed" if op.close_session else None,
    )
    cursor.execute(
        sql.RESOLVE_HOLD,
        {"hold": hold.hold_id, "new_state": "settled", "posted": op.amount_nanousd, "new_late": 0, "now": op.now_ms},
    )
    _close_decision(cursor, hold, op, op.amount_nanousd, session)
    return Resolved("settle", overage, session, tenant)


def _late(cursor: Cursor, hold: _Hold, op: Settle) -> Resolved:
    """The sweeper was first: post what it did not, within what is left; the rest is an overage."""
    owed = max(0, op.amount_nanousd - hold.posted_nanousd)
    session, tenant = _balances(cursor, hold.tenant_id, hold.session_id)
    room = [session.available_nanousd, tenant.available_nanousd]
    if hold.key_id is not None:
        room.append(Balance(*cursor.execute(sql.KEY, {"key": hold.key_id}).fetchone()[:4]).available_nanousd)
    fits = max(0, min(owed, *room))
    overage = owed - fits
    _turn_entry(cursor, "late_post", fits, op.now_ms, hold, spent=fits, source=op.usage_source)
    if overage:
        _turn_entry(cursor, "overage", overage, op.now_ms, hold, spent=overage, overage=overage, source=op.usage_source)
    session, tenant = _move(
        cursor,
        hold,
        op.now_ms,
        spent=owed,
        overage=overage,
        memory=op.session_memory,
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
    hold = _require_hold(cursor, op.hold_id)
    overage = op.amount_nanousd - hold.amount_nanousd
    if hold.state == "settled" and hold.posted_nanousd == op.amount_nanousd:
        return Resolved("settle", max(0, overage), *_balances(cursor, hold.tenant_id, hold.session_id))
    return settle(cursor, op)


def release(cursor: Cursor, op: Release) -> Resolved:
    """Give the hold back whole."""
    hold = _require_hold(cursor, op.hold_id)
    if hold.state != "open":
        return _already(cursor, hold)
    _turn_entry(cursor, "release", hold.amount_nanousd, op.now_ms, hold, reserved=-hold.amount_nanousd)
    session, tenant = _move(cursor, hold, op.now_ms, reserved=-hold.amount_nanousd)
    cursor.execute(
        sql.RESOLVE_HOLD, {"hold": hold.hold_id, "new_state": "released", "posted": 0, "new_late": 0, "now": op.now_ms}
    )
    _close_decision(cursor, hold, op, 0, session)
    if op.answer is None and op.drop_idempotency:
        cursor.execute(sql.DROP_OPEN_CLAIM, {"decision": hold.decision_id})
    return Resolved("release", 0, session, tenant)


def release_again(cursor: Cursor, op: Release) -> Resolved:
    """`release`, for an operation that may have been committed before."""
    hold = _require_hold(cursor, op.hold_id)
    if hold.state == "released":
        return Resolved("release", 0, *_balances(cursor, hold.tenant_id, hold.session_id))
    return release(cursor, op)


def sweep_hold(cursor: Cursor, op: SweepHold) -> str | None:
    """Resolve one hold whose lease ran out; None when somebody was faster or the lease was extended."""
    hold = _find_hold(cursor, op.hold_id)
    if hold is None or hold.state != "open" or hold.expires_at_ms > op.now_ms:
        return None
    kind, state, posted = (
        ("orphan_post", "orphaned", hold.checkpoint_nanousd) if hold.dispatched else ("expire", "expired", 0)
    )
    source = "estimated" if hold.dispatched else "none"
    amount = posted if hold.dispatched else hold.amount_nanousd
    _turn_entry(cursor, kind, amount, op.now_ms, hold, reserved=-hold.amount_nanousd, spent=posted, source=source)
    session, _ = _move(cursor, hold, op.now_ms, reserved=-hold.amount_nanousd, spent=posted)
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


def mark_dispatched(cursor: Cursor, op: MarkDispatched) -> bool:
    """False when the hold is no longer open."""
    cursor.execute(sql.MARK, {"hold": op.hold_id, "checkpoint": op.checkpoint_nanousd})
    return cursor.rowcount == 1


def checkpoint(cursor: Cursor, points: tuple[Checkpoint, ...]) -> None:
    for point in points:
        cursor.execute(
            sql.CHECKPOINT,
            {"hold": point.hold_id, "checkpoint": point.checkpoint_nanousd, "expires": point.expires_at_ms},
        )


def reset_window(cursor: Cursor, op: ResetWindow) -> bool:
    """Spent and overage start again at zero; what is reserved stays reserved. True when this call did it."""
    if op.key_id is None:
        row = cursor.execute(sql.RESET_TENANT, {"tenant": op.tenant_id}).fetchone()
    else:
        row = cursor.execute(sql.RESET_KEY, {"key": op.key_id}).fetchone()
    if row is None or row[4] is None or row[5] is None or row[5] > op.now_ms:
        return False
    _, _, spent, overage, window, old = row
    new = next_reset_ms(window, op.now_ms)
    if op.key_id is None:
        cursor.execute(sql.NEXT_TENANT_WINDOW, {"tenant": op.tenant_id, "old": old, "new": new})
    else:
        cursor.execute(sql.NEXT_KEY_WINDOW, {"key": op.key_id, "old": old, "new": new})
    _entry(
        cursor,
        "reset",
        spent,
        op.now_ms,
        op.tenant_id,
        scope="tenant" if op.key_id is None else "key",
        key_id=op.key_id,
        spent=-spent,
        overage=-overage,
        actor="sweeper",
    )
    return True


def standing(cursor: Cursor, tenant_id: str, session_id: str) -> Standing | None:
    row = cursor.execute(sql.STANDING, {"tenant": tenant_id, "session": session_id}).fetchone()
    return None if row is None else standing_from_row(tenant_id, row)


def standing_from_row(tenant_id: str, row: Any) -> Standing:
    """`row` in the order of sql.STANDING."""
    tenant = Balance(*row[:4])
    if row[4] is None:
        return Standing(tenant, None)
    told = dict(zip(SESSION_FACTS, row[9:], strict=True))
    return Standing(tenant, SessionRow(tenant_id, row[4], Balance(*row[5:9]), **told, tenant=tenant))


def claim_state(
    cursor: Cursor, tenant_id: str, key: str, body_sha256: bytes, now_ms: int
) -> Replay | InFlight | BodyMismatch | None:
    """What is known about an idempotency key; None when it is free."""
    row = cursor.execute(sql.CLAIM, {"tenant": tenant_id, "claim": key}).fetchone()
    if row is None or row[5] <= now_ms:
        return None
    return claim_from_row(row, body_sha256)


def claim_from_row(row: Any, body_sha256: bytes) -> Replay | InFlight | BodyMismatch:
    """`row` in the order of sql.CLAIM."""
    if bytes(row[0]) != body_sha256:
        return BodyMismatch(row[1])
    if row[2] is None:
        return InFlight(row[1])
    return Replay(row[2], json.loads(row[3]), bytes(row[4]))


def find_due(cursor: Cursor, now_ms: int, limit: int) -> tuple[list[str], list[ResetWindow]]:
    """Holds whose lease ran out, and windows that ended."""
    bounds = {"now": now_ms, "most": limit}
    late = [row[0] for row in cursor.execute(sql.DUE_HOLDS, bounds).fetchall()]
    resets = [ResetWindow(row[0], None, now_ms) for row in cursor.execute(sql.DUE_TENANTS, bounds).fetchall()]
    resets += [ResetWindow(row[0], row[1], now_ms) for row in cursor.execute(sql.DUE_KEYS, bounds).fetchall()]
    return late, resets


def tidy(cursor: Cursor, now_ms: int, before_ms: int) -> tuple[int, int]:
    """Close decisions that were abandoned between two attempts, and forget idempotency rows past their day."""
    cursor.execute(sql.ABANDON, {"now": now_ms, "before": before_ms})
    abandoned = cursor.rowcount
    cursor.execute(sql.FORGET, {"now": now_ms, "before": before_ms})
    return abandoned, cursor.rowcount


def _claimed(
    cursor: Cursor, tenant_id: str, claim: IdempotencyClaim | None, now_ms: int, decision_id: str
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


def _find_hold(cursor: Cursor, hold_id: str) -> _Hold | None:
    row = cursor.execute(sql.HOLD, {"hold": hold_id}).fetchone()
    return None if row is None else _Hold(hold_id, *row)


def _require_hold(cursor: Cursor, hold_id: str) -> _Hold:
    hold = _find_hold(cursor, hold_id)
    if hold is None:
        raise UnknownHold(hold_id)
    return hold


def _balances(cursor: Cursor, tenant_id: str, session_id: str) -> tuple[Balance, Balance]:
    session = cursor.execute(sql.SESSION, {"tenant": tenant_id, "session": session_id}).fetchone()
    tenant = cursor.execute(sql.TENANT, {"tenant": tenant_id}).fetchone()
    return Balance(*session[:4]), Balance(*tenant[:4])


def _already(cursor: Cursor, hold: _Hold) -> Resolved:
    return Resolved("already", 0, *_balances(cursor, hold.tenant_id, hold.session_id))


def _move(
    cursor: Cursor,
    hold: _Hold,
    now_ms: int,
    *,
    reserved: int = 0,
    spent: int = 0,
    overage: int = 0,
    memory: str | None = None,
    state: str | None = None,
) -> tuple[Balance, Balance]:
    """Add the same deltas to session, key and tenant; answer the new balances of session and tenant."""
    deltas = {"reserved": reserved, "spent": spent, "overage": overage}
    place = {"tenant": hold.tenant_id, "session": hold.session_id}
    (session,) = cursor.execute(
        sql.MOVE_SESSION, deltas | place | {"now": now_ms, "memory": memory, "state": state}
    ).fetchall()
    if hold.key_id is not None:
        cursor.execute(sql.MOVE_KEY, deltas | {"key": hold.key_id})
    (tenant,) = cursor.execute(sql.MOVE_TENANT, deltas | {"tenant": hold.tenant_id}).fetchall()
    return Balance(*session), Balance(*tenant)


def _close_decision(cursor: Cursor, hold: _Hold, op: Settle | Release, cost: int, session: Balance) -> None:
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


def _turn_entry(
    cursor: Cursor,
    kind: str,
    amount: int,
    now_ms: int,
    hold: _Hold,
    *,
    reserved: int = 0,
    spent: int = 0,
    overage: int = 0,
    source: str = "none",
) -> None:
    _entry(
        cursor,
        kind,
        amount,
        now_ms,
        hold.tenant_id,
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


def _entry(
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


def _with(balance: Balance, *, reserved: int) -> Balance:
    return Balance(
        balance.granted_nanousd, balance.reserved_nanousd + reserved, balance.spent_nanousd, balance.overage_nanousd
    )


class SqliteLedger:
    """Submits operations to the database's writer thread; the futures complete after the group's fsync."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        return self._database.writer.submit(lambda c: reserve(c, op), careful=lambda c: reserve_again(c, op))

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = settle_again if again else settle
        return self._database.writer.submit(lambda c: run(c, op), must=True)

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        run = release_again if again else release
        return self._database.writer.submit(lambda c: run(c, op), must=True)

    def mark_dispatched(self, op: MarkDispatched) -> asyncio.Future[bool]:
        return self._database.writer.submit(lambda c: mark_dispatched(c, op), soft=True)

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        return self._database.writer.submit(lambda c: checkpoint(c, points), soft=True)

    def sweep_hold(self, op: SweepHold) -> asyncio.Future[str | None]:
        return self._database.writer.submit(lambda c: sweep_hold(c, op))

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        return self._database.writer.submit(lambda c: reset_window(c, op))

    def standing(self, tenant_id: str, session_id: str) -> asyncio.Future[Standing | None]:
        return self._database.reader.submit(lambda c: standing(c, tenant_id, session_id))

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes, now_ms: int
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        return self._database.reader.submit(lambda c: claim_state(c, tenant_id, key, body_sha256, now_ms))

    async def due(self, now_ms: int, limit: int) -> tuple[list[str], list[ResetWindow]]:
        return await asyncio.shield(self._database.reader.submit(lambda c: find_due(c, now_ms, limit)))

    async def tidy(self, now_ms: int, before_ms: int) -> tuple[int, int]:
        return await asyncio.shield(self._database.writer.submit(lambda c: tidy(c, now_ms, before_ms)))

    async def start(self) -> None:
        """Nothing of its own: the database's threads serve it."""

    async def close(self) -> None:
        """Wait until everything submitted before is committed."""
        with contextlib.suppress(LedgerUnavailable):
            await self._database.writer.submit(lambda _: None, must=True)
