"""Audit of the ledger's invariants, for `seqroute audit` and GET /admin/audit.

Each check queries for the rows that violate an invariant, reading the entries once for all invariants of a kind of
account. All run in one snapshot, so they hold while turns go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import ne
from typing import Any

from sqlalchemy import Connection, Select, Table, and_, case, exists, func, literal, or_, select
from sqlalchemy.sql.elements import ColumnElement

from gateway.database.database import ledger_now_ms
from gateway.database.tables import (
    decisions,
    holds,
    keys,
    ledger_entries,
    log_retention,
    session_ancestors,
    sessions,
    tenants,
)
from gateway.ledger.records import CHARGE_PREFIX

MAX_LISTED = 50
"""Rows listed per query: the first few show what is wrong."""

TURN_START_MS = 3_600_000
"""The longest time between a turn's start, which is its decision's time, and its first hold."""

_COLUMNS = ("granted", "reserved", "spent", "overage")
_TERMINAL = {"settled": "settle", "released": "release", "expired": "expire", "orphaned": "orphan_post"}


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated invariant; `subject` names the row."""

    invariant: str
    subject: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.subject}: found {self.found}, expected {self.expected}"


def audit(connection: Connection, *, now_ms: int | None = None, grace_ms: int | None = None) -> list[Violation]:
    """Violations of at most MAX_LISTED rows per query; an empty list is a sound ledger.

    With `now_ms` and `grace_ms`, also checks that no hold is open longer than `grace_ms` (two sweeps) after its lease
    ran out, by Postgres' clock or by `now_ms` on SQLite.
    """
    found: list[Violation] = []
    for check in (_accounts, _holds, _reserved_is_held, _trees, _decisions):
        found.extend(check(connection))
    if now_ms is not None and grace_ms is not None:
        found.extend(_no_leak(connection, ledger_now_ms(connection, now_ms), grace_ms))
    return found


def _accounts(connection: Connection) -> Iterator[Violation]:
    """I1, I2: each account equals the sum of its entries and never exceeds its grant.

    A session's entries are its own and, but for grants, those of every session below it.
    """
    e = ledger_entries.c
    turn = e.scope == "turn"
    places: list[tuple[str, Table, list[str], ColumnElement[bool]]] = [
        ("tenant", tenants, ["tenant_id"], or_(turn, e.scope == "tenant")),
        ("session", sessions, ["tenant_id", "session_id"], or_(turn, e.scope == "session")),
        ("key", keys, ["key_id"], or_(and_(turn, e.key_id.is_not(None)), e.scope == "key")),
    ]
    for kind, table, identity, belongs in places:
        deltas = select(*(e[name] for name in identity), *(e[f"{column}_delta_nanousd"] for column in _COLUMNS))
        of_all = deltas.where(belongs)
        counted = (of_all.union_all(_of_descendants(belongs)) if kind == "session" else of_all).subquery().c
        sums = (
            select(
                *(counted[name] for name in identity),
                *(func.sum(counted[f"{column}_delta_nanousd"]).label(column) for column in _COLUMNS),
            )
            .group_by(*(counted[name] for name in identity))
            .subquery()
        )
        joined = table.outerjoin(sums, and_(*(table.c[name] == sums.c[name] for name in identity)))
        found = [table.c[f"{column}_nanousd"] for column in _COLUMNS]
        expected = [func.coalesce(sums.c[column], 0) for column in _COLUMNS]
        over = table.c.reserved_nanousd + table.c.spent_nanousd - table.c.overage_nanousd
        query = (
            select(*(table.c[name] for name in identity), *found, *expected)
            .select_from(joined)
            .where(or_(over > table.c.granted_nanousd, *map(ne, found, expected)))
            .limit(MAX_LISTED)
        )
        for row in connection.execute(query):
            subject, amounts = "/".join(row[: len(identity)]), row[len(identity) :]
            for column, held, entered in zip(_COLUMNS, amounts, amounts[len(_COLUMNS) :], strict=False):
                if held != entered:
                    yield Violation(f"{kind}: {column} equals the sum of its entries", subject, str(held), str(entered))
            granted, reserved, spent, overage = amounts[: len(_COLUMNS)]
            if reserved + spent - overage > granted:
                total = str(reserved + spent - overage)
                yield Violation(f"{kind}: never overspent", subject, total, f"at most {granted}")
        unowned = select(*(sums.c[name] for name in identity)).select_from(
            sums.outerjoin(table, and_(*(table.c[name] == sums.c[name] for name in identity)))
        )
        for row in connection.execute(unowned.where(table.c[identity[-1]].is_(None)).limit(MAX_LISTED)):
            yield Violation(f"{kind}: entries belong to an account", "/".join(map(str, row)), "no such account", "one")


def _of_descendants(belongs: ColumnElement[bool]) -> Select[Any]:
    """The money that sessions moved, once for each session above them; a grant is the session's own."""
    e, a = ledger_entries.c, session_ancestors.c
    here = and_(a.tenant_id == e.tenant_id, a.session_id == e.session_id)
    return (
        select(
            e.tenant_id,
            a.ancestor_id,
            literal(0),
            e.reserved_delta_nanousd,
            e.spent_delta_nanousd,
            e.overage_delta_nanousd,
        )
        .select_from(ledger_entries.join(session_ancestors, here))
        .where(belongs)
    )


def _holds(connection: Connection) -> Iterator[Violation]:
    """I3: one reserve entry per hold, exactly one terminal entry once it is resolved, and none before; sums agree."""
    e, h = ledger_entries.c, holds.c
    terminal = e.kind.in_(_TERMINAL.values())
    per_hold = (
        select(
            e.hold_id.label("hold_id"),
            func.sum(case((e.kind == "reserve", 1), else_=0)).label("reserves"),
            func.sum(case((terminal, 1), else_=0)).label("terminals"),
            func.max(case((terminal, e.kind))).label("terminal"),
            func.sum(e.reserved_delta_nanousd).label("reserved"),
            func.sum(e.spent_delta_nanousd).label("spent"),
            func.sum(case((e.kind == "reserve", e.amount_nanousd), else_=0)).label("amount"),
            func.sum(case((e.kind.in_(("late_post", "refund")), 1), else_=0)).label("lates"),
        )
        .where(e.hold_id.is_not(None))
        .group_by(e.hold_id)
        .subquery()
    )
    p = per_hold.c
    wanted_kind = case(*((h.state == state, kind) for state, kind in _TERMINAL.items()), else_="none")
    invariants: list[tuple[str, ColumnElement[int] | ColumnElement[str], ColumnElement[int] | ColumnElement[str]]] = [
        ("one reserve entry", func.coalesce(p.reserves, 0), literal(1)),
        (
            "one terminal entry when resolved, none when open",
            func.coalesce(p.terminals, 0),
            case((h.state == "open", 0), else_=1),
        ),
        ("the terminal entry's kind", func.coalesce(p.terminal, "none"), wanted_kind),
        ("reserved by its entries", func.coalesce(p.reserved, 0), case((h.state == "open", h.amount_nanousd), else_=0)),
        ("posted by its entries", func.coalesce(p.spent, 0), h.posted_nanousd),
        ("the reserve entry's amount", func.coalesce(p.amount, 0), h.amount_nanousd),
        ("late posts and refunds", func.coalesce(p.lates, 0), h.late),
    ]
    joined = holds.outerjoin(per_hold, p.hold_id == h.hold_id)
    pairs = [value for _, found, expected in invariants for value in (found, expected)]
    broken = or_(*(found != expected for _, found, expected in invariants))
    query = select(h.hold_id, *pairs).select_from(joined).where(broken).limit(MAX_LISTED)
    for hold_id, *values in connection.execute(query):
        for (name, _, _), is_found, is_expected in zip(invariants, values[::2], values[1::2], strict=True):
            if is_found != is_expected:
                yield Violation(f"hold: {name}", hold_id, str(is_found), str(is_expected))
    orphans = (
        select(p.hold_id).select_from(per_hold.outerjoin(holds, p.hold_id == h.hold_id)).where(h.hold_id.is_(None))
    )
    for row in connection.execute(orphans.limit(MAX_LISTED)):
        yield Violation("hold: entries belong to a hold", row[0], "no such hold", "one")
    holdless_turns = select(e.entry_id).where(e.scope == "turn", e.hold_id.is_(None)).limit(MAX_LISTED)
    for row in connection.execute(holdless_turns):
        yield Violation("entry: a turn's money belongs to a hold", str(row[0]), "no hold", "one")


def _reserved_is_held(connection: Connection) -> Iterator[Violation]:
    """Each account's reserved amount equals the sum of its open holds, a session's with those below it."""
    h, a = holds.c, session_ancestors.c
    below = select(h.tenant_id, a.ancestor_id, h.amount_nanousd).select_from(
        holds.join(session_ancestors, and_(a.tenant_id == h.tenant_id, a.session_id == h.session_id))
    )
    for kind, table, identity in (
        ("tenant", tenants, ["tenant_id"]),
        ("session", sessions, ["tenant_id", "session_id"]),
        ("key", keys, ["key_id"]),
    ):
        own = select(*(h[name] for name in identity), h.amount_nanousd).where(h.state == "open")
        open_holds = (own.union_all(below.where(h.state == "open")) if kind == "session" else own).subquery().c
        sums = (
            select(*(open_holds[name] for name in identity), func.sum(open_holds.amount_nanousd).label("held"))
            .group_by(*(open_holds[name] for name in identity))
            .subquery()
        )
        held = func.coalesce(sums.c.held, 0)
        query = (
            select(*(table.c[name] for name in identity), table.c.reserved_nanousd, held)
            .select_from(table.outerjoin(sums, and_(*(table.c[name] == sums.c[name] for name in identity))))
            .where(table.c.reserved_nanousd != held)
            .limit(MAX_LISTED)
        )
        for row in connection.execute(query):
            yield Violation(f"{kind}: reserved equals its open holds", "/".join(row[:-2]), str(row[-2]), str(row[-1]))


def _trees(connection: Connection) -> Iterator[Violation]:
    """Every child has its parent, and the sessions above its parent, above it."""
    s, a, up = sessions.c, session_ancestors.c, session_ancestors.alias("up").c
    known = and_(a.tenant_id == s.tenant_id, a.session_id == s.session_id)
    first = select(s.tenant_id, s.session_id).where(
        s.parent_session_id.is_not(None),
        ~exists().where(known, a.distance == 1, a.ancestor_id == s.parent_session_id),
    )
    above_parent = select(s.tenant_id, s.session_id).where(
        up.tenant_id == s.tenant_id,
        up.session_id == s.parent_session_id,
        ~exists().where(known, a.distance == up.distance + 1, a.ancestor_id == up.ancestor_id),
    )
    orphaned = select(a.tenant_id, a.session_id).where(
        ~exists().where(s.tenant_id == a.tenant_id, s.session_id == a.ancestor_id)
    )
    for query in (first, above_parent, orphaned):
        for row in connection.execute(query.limit(MAX_LISTED)):
            yield Violation("session: the sessions above it are those above its parent", "/".join(row), "not", "all")


def _decisions(connection: Connection) -> Iterator[Violation]:
    """Decision log and ledger agree: a decision costs what its holds posted; every hold but a charge's has one."""
    h, d = holds.c, decisions.c
    posted = (
        select(h.decision_id, func.sum(h.posted_nanousd).label("posted"), func.count().label("holds"))
        .group_by(h.decision_id)
        .subquery()
    )
    joined = decisions.outerjoin(posted, posted.c.decision_id == d.decision_id)
    cost = func.coalesce(d.cost_nanousd, 0)
    query = select(d.decision_id, cost, func.coalesce(posted.c.posted, 0)).select_from(joined)
    for row in connection.execute(query.where(cost != func.coalesce(posted.c.posted, 0)).limit(MAX_LISTED)):
        yield Violation("decision: cost is what its holds posted", row[0], str(row[1]), str(row[2]))
    without = select(d.decision_id).select_from(joined).where(posted.c.holds.is_(None)).limit(MAX_LISTED)
    for row in connection.execute(without):
        yield Violation("decision: has a hold", row[0], "none", "at least one")
    removed_ms = connection.execute(select(func.max(log_retention.c.through_ms))).scalar()
    since_ms = 0 if removed_ms is None else removed_ms + TURN_START_MS
    first = holds.alias("first")
    begun_before = exists().where(first.c.decision_id == h.decision_id, first.c.created_at_ms < since_ms)
    unlogged = (
        select(h.hold_id)
        .select_from(holds.outerjoin(decisions, d.decision_id == h.decision_id))
        .where(d.decision_id.is_(None), func.substr(h.hold_id, 1, len(CHARGE_PREFIX)) != CHARGE_PREFIX)
        .where(h.created_at_ms >= since_ms, ~begun_before)
        .limit(MAX_LISTED)
    )
    for row in connection.execute(unlogged):
        yield Violation("hold: belongs to a logged decision", row[0], "no decision", "one")


def _no_leak(connection: Connection, now_ms: int, grace_ms: int) -> Iterator[Violation]:
    """I4: no hold stays open after its lease and two sweeps."""
    h = holds.c
    query = (
        select(h.hold_id, h.expires_at_ms)
        .where(h.state == "open", h.expires_at_ms < now_ms - grace_ms)
        .limit(MAX_LISTED)
    )
    for row in connection.execute(query):
        yield Violation(
            "hold: resolved after its lease", row[0], f"open {now_ms - row[1]} ms after it", f"at most {grace_ms} ms"
        )
