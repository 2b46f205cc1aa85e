"""Trees of sessions: who spent what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, insert, literal, select, update

from gateway.accounts.budgets import balance_of
from gateway.accounts.fields import balance_fields, money_fields
from gateway.database.tables import ledger_entries, session_ancestors, sessions
from gateway.ledger.records import SessionRow

MAX_LISTED = 1_000
"""Sessions below one that are listed, the oldest first."""
_BATCH = 1_000


def describe_tree(connection: Connection, session: SessionRow) -> dict[str, Any]:
    """The sessions below a session with what each spent, and what they and it spent together.

    `spent` of a session contains what the sessions below it spend; `own_spent` is its own turns and charges.
    """
    a, s = session_ancestors.c, sessions.c
    below = connection.execute(
        select(sessions)
        .select_from(session_ancestors.join(sessions, (s.tenant_id == a.tenant_id) & (s.session_id == a.session_id)))
        .where(a.tenant_id == session.tenant_id, a.ancestor_id == session.session_id)
        .order_by(a.distance, s.created_at_ms, s.session_id)
        .limit(MAX_LISTED + 1)
    ).all()
    by_parent: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for row in below[:MAX_LISTED]:
        by_parent[row.parent_session_id].append(row)
    whole = len(below) <= MAX_LISTED
    spent_nanousd = session.balance.spent_nanousd
    own = spent_nanousd - sum(row.spent_nanousd for row in by_parent[session.session_id])
    return {
        "parent_session_id": session.parent_session_id,
        **money_fields("own_spent", own if whole else None),
        **money_fields("tree_spent", spent_nanousd),
        **money_fields("tree_reserved", session.balance.reserved_nanousd),
        "children": [_node(row, by_parent, whole) for row in by_parent[session.session_id]],
        "children_complete": whole,
    }


def raise_below(connection: Connection, tenant_id: str, session_id: str, *, actor: str, now_ms: int) -> None:
    """Raise the budgets below that are the parent's; the caller holds the tenant's lock.

    Written by many rows a statement: a row at a time would keep every other writer waiting. One statement for the whole
    tree is quadratic in it by SQLite's plan, and by that of a Postgres without statistics.
    """
    a, s = session_ancestors.c, sessions.c
    here = (s.tenant_id == tenant_id) & (s.session_id == session_id)
    budgets: dict[str, int] = {session_id: connection.execute(select(s.granted_nanousd).where(here)).scalar_one()}
    raised: defaultdict[int, list[str]] = defaultdict(list)
    below = (
        select(s.session_id, s.parent_session_id, s.granted_nanousd)
        .select_from(session_ancestors.join(sessions, (s.tenant_id == a.tenant_id) & (s.session_id == a.session_id)))
        .where(a.tenant_id == tenant_id, a.ancestor_id == session_id, s.own_limit == 0)
        .order_by(a.distance)
    )
    for child, parent, granted in connection.execute(below).all():
        if parent not in budgets:  # below one with a limit of its own
            continue
        budgets[child] = max(granted, budgets[parent])
        if budgets[child] > granted:
            raised[budgets[child]].append(child)
    for budget, names in raised.items():
        for first in range(0, len(names), _BATCH):
            its = (s.tenant_id == tenant_id) & s.session_id.in_(names[first : first + _BATCH])
            change = budget - s.granted_nanousd
            entry = {
                "kind": literal("grant"),
                "scope": literal("session"),
                "amount_nanousd": change,
                "granted_delta_nanousd": change,
                "tenant_id": s.tenant_id,
                "session_id": s.session_id,
                "actor": literal(actor),
                "created_at_ms": literal(now_ms, BigInteger),
            }
            connection.execute(insert(ledger_entries).from_select(list(entry), select(*entry.values()).where(its)))
            connection.execute(update(sessions).where(its).values(granted_nanousd=budget))


def tree_rows(children: Sequence[Mapping[str, Any]], depth: int = 0) -> list[dict[str, Any]]:
    """The sessions of a tree in reading order, each with its `depth`."""
    rows: list[dict[str, Any]] = []
    for node in children:
        rows += [{**node, "depth": depth}, *tree_rows(node["children"], depth + 1)]
    return rows


def _node(row: Row[Any], by_parent: Mapping[str, list[Row[Any]]], whole: bool) -> dict[str, Any]:
    children = by_parent.get(row.session_id, [])
    own = row.spent_nanousd - sum(child.spent_nanousd for child in children)
    return {
        "session_id": row.session_id,
        "state": row.state,
        "turns": row.turns,
        **balance_fields(balance_of(row)),
        **money_fields("own_spent", own if whole else None),
        "children": [_node(child, by_parent, whole) for child in children],
    }
