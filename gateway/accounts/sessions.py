"""Management of sessions outside turns: show, list, open, change the budget, close."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, Row, case, func, insert, select, update

from gateway.accounts.budgets import balance_of, change_grant, checked_amount, leave_trail, lock_tenant, record_grant
from gateway.accounts.trees import raise_below
from gateway.database.tables import session_ancestors, sessions, tenants
from gateway.errors import GatewayError, InvalidRequest, NotFound, SessionPaused
from gateway.ledger.budget_headers import apply_header, set_by_hand
from gateway.ledger.records import SessionRow
from gateway.ledger.types import MAX_DEPTH, Balance, ParentRefused, SessionClosed, SessionTerms, TenantMissing
from gateway.money import usd_string

MAX_EXPECTED_TURNS = 10_000

STATES = ("open", "paused", "closed")

SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def get_session(connection: Connection, tenant_id: str, session_id: str) -> SessionRow:
    """A tenant's session. Raises NotFound, also for another tenant's session."""
    tenant = balance_of(_tenant_row(connection, tenant_id))
    row = connection.execute(_here(tenant_id, session_id)).one_or_none()
    if row is None:
        raise NotFound("session: no such session")
    found = _from_row(row, tenant)
    if found.parent_session_id is None:
        return found
    return _with_above(found, _rooms_above(connection, tenant_id, [session_id])[session_id])


def list_sessions(
    connection: Connection, tenant_id: str, *, state: str | None = None, limit: int = 100
) -> list[SessionRow]:
    """The tenant's sessions, most recently used first."""
    tenant = balance_of(_tenant_row(connection, tenant_id))
    query = (
        select(sessions).where(sessions.c.tenant_id == tenant_id).order_by(sessions.c.updated_at_ms.desc()).limit(limit)
    )
    if state is not None:
        query = query.where(sessions.c.state == state)
    found = [_from_row(row, tenant) for row in connection.execute(query)]
    children = [session.session_id for session in found if session.parent_session_id is not None]
    above = _rooms_above(connection, tenant_id, children) if children else {}
    return [_with_above(session, above.get(session.session_id)) for session in found]


def list_all_sessions(connection: Connection, *, state: str | None = None, limit: int = 100) -> list[SessionRow]:
    """The sessions of all tenants, most recently used first."""
    newest = select(sessions.c.tenant_id).order_by(sessions.c.updated_at_ms.desc()).limit(limit)
    if state is not None:
        newest = newest.where(sessions.c.state == state)
    owners = set(connection.scalars(newest))
    found = [row for owner in owners for row in list_sessions(connection, owner, state=state, limit=limit)]
    return sorted(found, key=lambda row: row.updated_at_ms, reverse=True)[:limit]


def session_tenants(connection: Connection, session_id: str) -> dict[str, str]:
    """Id -> name of the tenants that have a session of this id, by name."""
    query = (
        select(tenants.c.tenant_id, tenants.c.name)
        .join(sessions, sessions.c.tenant_id == tenants.c.tenant_id)
        .where(sessions.c.session_id == session_id)
        .order_by(tenants.c.name)
    )
    return {row.tenant_id: row.name for row in connection.execute(query)}


def change_session(
    connection: Connection,
    tenant_id: str,
    session_id: str,
    *,
    default_nanousd: int,
    max_nanousd: int | None = None,
    budget_nanousd: int | None = None,
    expected_turns: int | None = None,
    state: str | None = None,
    parent_id: str | None = None,
    by_header: SessionTerms | None = None,
    actor: str,
    now_ms: int,
) -> SessionRow:
    """Open a new session or change an existing one; `max_nanousd` is the gateway's budget limit.

    A budget below what is spent and reserved is raised to that amount: the session can spend no more. A child's is
    lowered to what the sessions above it have. `by_header`: the terms of a turn whose header asked for the budget; any
    other is set by hand and holds against headers (gateway/ledger/budget_headers.py). `parent_id`: the session above a
    new or unused one. `state="open"` reopens a closed session and resumes a paused one.
    Raises NotFound for the tenant, InvalidRequest for other arguments.
    """
    _check_terms(state, expected_turns)
    tenant = lock_tenant(connection, tenant_id)
    row = connection.execute(_here(tenant_id, session_id)).one_or_none()
    values: dict[str, Any] = {"updated_at_ms": now_ms}
    memory = "{}" if row is None else row.memory
    if by_header is not None:
        changes, values["memory"] = apply_header(memory, by_header)
        budget_nanousd = budget_nanousd if changes else None
    elif budget_nanousd is not None:
        values["memory"] = set_by_hand(memory)
    if budget_nanousd is not None:
        _check_budget(budget_nanousd, (max_nanousd, tenant.max_session_nanousd))
        values["own_limit"] = 1
    before = None if row is None else _from_row(row, balance_of(tenant))
    if before is None:
        opening = default_nanousd if budget_nanousd is None else budget_nanousd
        _open(connection, tenant, session_id, opening, actor, now_ms)
    elif budget_nanousd is not None:
        _grant(connection, tenant_id, before, budget_nanousd, actor, now_ms)
        raise_below(connection, tenant_id, session_id, actor=actor, now_ms=now_ms)
    if expected_turns is not None:
        values["expected_turns"] = expected_turns
    if state is not None:
        values["state"] = state
    connection.execute(update(sessions).where(_is(tenant_id, session_id)).values(**values))
    if parent_id is not None and (before is None or before.parent_session_id != parent_id):
        limited = before is not None or budget_nanousd is not None
        _put_below(connection, tenant_id, session_id, parent_id, limited=limited, actor=actor, now_ms=now_ms)
    after = get_session(connection, tenant_id, session_id)
    subject, was = f"{tenant_id}/{session_id}", None if before is None else _trail(before)
    leave_trail(connection, actor, "session.change", subject, was, _trail(after), now_ms)
    return after


def _check_terms(state: str | None, expected_turns: int | None) -> None:
    if state is not None and state not in STATES:
        raise InvalidRequest(f"state: expected one of {', '.join(STATES)}", param="state")
    if expected_turns is not None and not 1 <= expected_turns <= MAX_EXPECTED_TURNS:
        raise InvalidRequest(
            f"expected_turns: expected an integer from 1 to {MAX_EXPECTED_TURNS}", param="expected_turns"
        )


def _check_budget(budget_nanousd: int, given: Sequence[int | None]) -> None:
    limits = [limit for limit in given if limit is not None]
    if limits and checked_amount(budget_nanousd, "budget_usd") > min(limits):
        raise InvalidRequest(
            f"budget_usd: expected at most {usd_string(min(limits))} USD, the limit for a session of this tenant",
            param="budget_usd",
        )


def _grant(
    connection: Connection, tenant_id: str, session: SessionRow, budget_nanousd: int, actor: str, now_ms: int
) -> None:
    """Change a session's grant: not below what it uses, a child's not above what the sessions above it have."""
    now, session_id = session.balance, session.session_id
    used = now.reserved_nanousd + now.spent_nanousd
    if session.parent_session_id is not None:
        budget_nanousd = min(budget_nanousd, used + max(0, _room_above(connection, tenant_id, session_id)))
    change_grant(
        connection,
        "session",
        sessions,
        _is(tenant_id, session_id),
        now,
        max(budget_nanousd, min(now.granted_nanousd, used)),
        tenant_id=tenant_id,
        session_id=session_id,
        actor=actor,
        now_ms=now_ms,
    )


def _open(connection: Connection, tenant: Row[Any], session_id: str, granted: int, actor: str, now_ms: int) -> None:
    if tenant.max_session_nanousd is not None:
        granted = min(granted, tenant.max_session_nanousd)
    connection.execute(
        insert(sessions).values(
            tenant_id=tenant.tenant_id,
            session_id=session_id,
            granted_nanousd=granted,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
        )
    )
    record_grant(
        connection, "session", granted, tenant_id=tenant.tenant_id, session_id=session_id, actor=actor, now_ms=now_ms
    )


def _put_below(
    connection: Connection, tenant_id: str, session_id: str, parent_id: str, *, limited: bool, actor: str, now_ms: int
) -> None:
    """Put an unused session below another. `limited`: its budget is a limit of its own. Raises what parents cannot be.

    A limit is lowered to what the sessions above have left; without one the parent's budget is the session's.
    """
    a, row = session_ancestors.c, connection.execute(_here(tenant_id, session_id)).one()
    parent = connection.execute(_here(tenant_id, parent_id)).one_or_none()
    if parent is None:
        raise parent_refused("unknown")
    used = row.turns or row.reserved_nanousd or row.spent_nanousd or row.parent_session_id is not None
    below = select(a.session_id).where(a.tenant_id == tenant_id, a.ancestor_id == session_id).limit(1)
    if used or parent_id == session_id or connection.execute(below).first() is not None:
        raise parent_refused("other")
    above = connection.execute(
        select(a.ancestor_id, a.distance + 1).where(a.tenant_id == tenant_id, a.session_id == parent_id)
    ).all()
    if len(above) >= MAX_DEPTH:
        raise parent_refused("depth")
    here = {"tenant_id": tenant_id, "session_id": session_id}
    links = [(parent_id, 1), *above]
    connection.execute(
        insert(session_ancestors), [here | {"ancestor_id": name, "distance": far} for name, far in links]
    )
    values = {"parent_session_id": parent_id, "own_limit": int(limited)}
    connection.execute(update(sessions).where(_is(tenant_id, session_id)).values(**values))
    room = max(0, _room_above(connection, tenant_id, session_id))
    granted = min(row.granted_nanousd, room) if limited else parent.granted_nanousd
    where = _is(tenant_id, session_id)
    entry: dict[str, Any] = {"tenant_id": tenant_id, "session_id": session_id, "actor": actor, "now_ms": now_ms}
    change_grant(connection, "session", sessions, where, balance_of(row), granted, **entry)


def _room_above(connection: Connection, tenant_id: str, session_id: str) -> int:
    """The least that the sessions above a child have beside what they keep, in nano-USD."""
    return _rooms_above(connection, tenant_id, [session_id])[session_id][0]


def _with_above(session: SessionRow, room: tuple[int, int] | None) -> SessionRow:
    """A child with what the sessions above it have left and have not spent."""
    if room is None:
        return session
    balance = structs.replace(session.balance, above_nanousd=room[0])
    return structs.replace(session, balance=balance, above_unspent_nanousd=room[1])


def _rooms_above(connection: Connection, tenant_id: str, session_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The same for each of several children; and the least that those sessions have not spent."""
    a, s = session_ancestors.c, sessions.c

    def least_beside_kept(money: Any) -> Any:
        beside = case((money < s.kept_nanousd, 0), else_=money - s.kept_nanousd)
        return func.min(case((money < 0, money), else_=beside))

    unspent = s.granted_nanousd - s.spent_nanousd
    found = connection.execute(
        select(a.session_id, least_beside_kept(unspent - s.reserved_nanousd), least_beside_kept(unspent))
        .select_from(session_ancestors.join(sessions, (s.tenant_id == a.tenant_id) & (s.session_id == a.ancestor_id)))
        .where(a.tenant_id == tenant_id, a.session_id.in_(session_ids))
        .group_by(a.session_id)
    )
    return {row[0]: (row[1], row[2]) for row in found}


def _is(tenant_id: str, session_id: str) -> Any:
    return (sessions.c.tenant_id == tenant_id) & (sessions.c.session_id == session_id)


def _here(tenant_id: str, session_id: str) -> Any:
    return select(sessions).where(_is(tenant_id, session_id))


def _tenant_row(connection: Connection, tenant_id: str) -> Row[Any]:
    row = connection.execute(select(tenants).where(tenants.c.tenant_id == tenant_id)).one_or_none()
    if row is None:
        raise NotFound("tenant: no such tenant")
    return row


def _from_row(row: Row[Any], tenant: Balance) -> SessionRow:
    return SessionRow(
        row.tenant_id,
        row.session_id,
        balance_of(row),
        row.state,
        row.turns,
        row.expected_turns,
        row.memory,
        row.last_decision_id,
        row.quality_count,
        row.quality_sum,
        row.last_quality,
        row.created_at_ms,
        row.updated_at_ms,
        tenant,
        row.parent_session_id,
        row.own_limit,
        row.kept_nanousd,
    )


def _trail(session: SessionRow) -> dict[str, Any]:
    return {
        "granted_nanousd": session.balance.granted_nanousd,
        "spent_nanousd": session.balance.spent_nanousd,
        "state": session.state,
        "expected_turns": session.expected_turns,
    }


def named_parent(headers: Mapping[str, str]) -> str | None:
    """The session that X-Parent-Session-Id names. Raises InvalidRequest."""
    parent_id = headers.get("x-parent-session-id")
    if parent_id is not None and not SESSION_ID.fullmatch(parent_id):
        raise InvalidRequest(
            "X-Parent-Session-Id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="X-Parent-Session-Id"
        )
    return parent_id


def normalize_id(value: str) -> str:
    """A valid session id: another system's id unchanged if well formed, otherwise its hash."""
    return value if SESSION_ID.fullmatch(value) else "h:" + hashlib.sha256(value.encode()).hexdigest()[:40]


_REFUSING = {
    "closed": "this session is closed",
    "max_turns": "this session has reached its maximum number of turns",
    "parent_closed": "a session above this one is closed",
}


def session_refuses(outcome: SessionClosed | TenantMissing | ParentRefused, session_id: str) -> GatewayError:
    """The error for a session or tenant that takes no turns and no charges."""
    if isinstance(outcome, TenantMissing):
        return NotFound("tenant: no such tenant")
    if isinstance(outcome, ParentRefused):
        return parent_refused(outcome.reason)
    if outcome.reason in ("paused", "parent_paused"):
        return session_paused(session_id, above=outcome.reason == "parent_paused")
    return InvalidRequest(f"X-Session-Id: {_REFUSING[outcome.reason]}; start another", param="X-Session-Id")


def session_paused(session_id: str, *, above: bool = False, stall: Sequence[str] = ()) -> GatewayError:
    """The error for a paused session; `above`: one whose money it spends; `stall`: its signs."""
    if above:
        told = f"a session above this one is paused; resume it: GET /v1/sessions/{session_id} names its parent"
    else:
        why = f", because it goes in circles ({', '.join(stall)})" if stall else ""
        told = f'this session is paused{why}; resume it with POST /v1/sessions/{session_id} {{"state": "open"}}'
    return SessionPaused(
        told,
        headers={"x-should-retry": "false"},
        param="X-Session-Id",
        details={"stall_signals": list(stall)} if stall else None,
    )


def parent_refused(reason: str) -> GatewayError:
    """The error for a parent that a session cannot have."""
    if reason == "unknown":
        return NotFound("X-Parent-Session-Id: no such session", param="X-Parent-Session-Id")
    if reason == "depth":
        why = f"expected at most {MAX_DEPTH} sessions above one"
    else:
        why = "a session keeps the parent that its first turn named, or has none; no session is its own parent"
    return InvalidRequest(f"X-Parent-Session-Id: {why}", param="X-Parent-Session-Id")
