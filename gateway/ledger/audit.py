"""Audit of the ledger's invariants, for `seqroute audit` and GET /admin/audit.

Each check is a query for the rows that violate an invariant; all run in one snapshot, so they hold while turns go on.
SQLite sums and sorts in memory, so what grows with the log is read block by block of an index (`blocks`): memory is
that of a block and of an account's totals for every tenant and key, however long the log is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Select,
    Subquery,
    Table,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)
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
"""Violations listed per invariant: the first few show what is wrong."""

BLOCK_ROWS = 50_000
"""Index entries read at once: some 30 MB of sums on SQLite."""

TURN_START_MS = 3_600_000
"""The longest time between a turn's start, which is its decision's time, and its first hold."""

_COLUMNS = ("granted", "reserved", "spent", "overage")
_MOVING_RESERVED = ("reserve", "release", "expire")
"""Kinds of entries whose amount is what they hold or let go; a grant's is what it grants, others' what they spend."""
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


@dataclass(frozen=True, slots=True)
class Block:
    """The rows whose key is above `after` and at most `last`; None: from the first, to the end."""

    after: tuple[str, ...] | None
    last: tuple[str, ...] | None

    def holds(self, *key: ColumnElement[Any]) -> ColumnElement[bool]:
        """The condition that these columns are in the block."""
        bounds = []
        if self.after is not None:
            bounds.append(tuple_(*key) > tuple_(*map(literal, self.after)))
        if self.last is not None:
            bounds.append(tuple_(*key) <= tuple_(*map(literal, self.last)))
        return and_(key[-1].is_not(None), *bounds)


def blocks(connection: Connection, *key: Column[Any], rows: int) -> Iterator[Block]:
    """Cut the keys of an index into blocks of at least `rows` rows that cover every key.

    Rows of one key stay together, so a block is larger only by the rows of its last key.
    """
    after: tuple[str, ...] | None = None
    while True:
        beyond = select(*key).where(Block(after, None).holds(*key)).order_by(*key).offset(rows).limit(1)
        found = connection.execute(beyond).first()
        last = None if found is None else tuple(found)
        yield Block(after, last)
        if last is None:
            return
        after = last


def audit(
    connection: Connection, *, now_ms: int | None = None, grace_ms: int | None = None, block_rows: int = BLOCK_ROWS
) -> list[Violation]:
    """All violations, at most MAX_LISTED per invariant; an empty list is a sound ledger.

    With `now_ms` and `grace_ms`, also checks that no hold is open longer than `grace_ms` (two sweeps) after its lease
    ran out, by Postgres' clock or by `now_ms` on SQLite.
    """
    listed: Counter[str] = Counter()
    found: list[Violation] = []
    checks = [
        _entries(connection, block_rows),
        _reserved_is_held(connection),
        _trees(connection),
        _decisions(connection, block_rows),
    ]
    if now_ms is not None and grace_ms is not None:
        checks.append(_no_leak(connection, ledger_now_ms(connection, now_ms), grace_ms))
    for check in checks:
        for violation in check:
            listed[violation.invariant] += 1
            if listed[violation.invariant] <= MAX_LISTED:
                found.append(violation)
    return found


# -- the entries, in blocks of sessions --------------------------------------------------------------------------------


def _entries(connection: Connection, block_rows: int) -> Iterator[Violation]:
    """I1, I2, I3: accounts and holds equal the sums of their entries."""
    e = ledger_entries.c
    of_tenants, of_keys = _Totals(), _Totals()
    seen = 0
    for block in blocks(connection, e.tenant_id, e.session_id, rows=block_rows):
        yield from _sessions(connection, block)
        within = block.holds(e.tenant_id, e.session_id)
        yield from _amounts(connection, within)
        _add(connection, within, of_tenants, of_keys)
        per_hold = _per_hold(within)
        counted, sound = connection.execute(_check_of_holds(per_hold)).one()
        seen += counted
        if not sound:
            yield from _bad_holds(connection, per_hold)
    elsewhere = e.session_id.is_(None)
    yield from _amounts(connection, elsewhere)
    _add(connection, elsewhere, of_tenants, of_keys)
    yield from _bad_holds(connection, _per_hold(elsewhere))
    if seen != connection.execute(select(func.count()).select_from(holds)).scalar_one():
        yield from _holds_without_entries(connection)
    yield from _compared(connection, "tenant", tenants, of_tenants)
    yield from _compared(connection, "key", keys, of_keys)
    holdless_turns = select(e.entry_id).where(e.scope == "turn", e.hold_id.is_(None)).limit(MAX_LISTED)
    for row in connection.execute(holdless_turns):
        yield Violation("entry: a turn's money belongs to a hold", str(row[0]), "no hold", "one")


def _amounts(connection: Connection, within: ColumnElement[bool]) -> Iterator[Violation]:
    """An entry's amount, which the API shows, is what it moves by its kind."""
    e = ledger_entries.c
    moved = case(
        (e.kind.in_(_MOVING_RESERVED), e.reserved_delta_nanousd),
        (e.kind == "grant", e.granted_delta_nanousd),
        else_=e.spent_delta_nanousd,
    )
    query = select(e.entry_id, e.amount_nanousd, func.abs(moved)).where(within)
    wrong = query.where(func.abs(e.amount_nanousd) != func.abs(moved)).limit(MAX_LISTED)
    for entry_id, amount, expected in connection.execute(wrong):
        yield Violation("entry: the amount is what it moves", str(entry_id), str(amount), str(expected))


class _Totals(dict[str, tuple[int, ...]]):
    """The summed deltas of each account, in the order of _COLUMNS."""

    def add(self, account: str, deltas: Sequence[int]) -> None:
        """Add the sums of one block."""
        before = self.get(account)
        now = tuple(map(int, deltas))
        self[account] = now if before is None else tuple(map(sum, zip(before, now, strict=True)))


def _add(connection: Connection, within: ColumnElement[bool], of_tenants: _Totals, of_keys: _Totals) -> None:
    """Add the entries of tenants and keys: those of turns, and the accounts' own."""
    e = ledger_entries.c
    sums = [func.sum(e[f"{column}_delta_nanousd"]) for column in _COLUMNS]
    query = select(e.scope, e.tenant_id, e.key_id, *sums).where(within, e.scope != "session")
    for scope, tenant_id, key_id, *deltas in connection.execute(query.group_by(e.scope, e.tenant_id, e.key_id)):
        if scope != "key":
            of_tenants.add(tenant_id, deltas)
        if key_id is not None and scope != "tenant":
            of_keys.add(key_id, deltas)


def _compared(
    connection: Connection, kind: str, table: Table, totals: Mapping[str, Sequence[int]]
) -> Iterator[Violation]:
    """I1, I2 of tenants or keys: each equals the sum of its entries and never exceeds its grant."""
    identity = table.c[f"{kind}_id"]
    amounts = [table.c[f"{column}_nanousd"] for column in _COLUMNS]
    known = set()
    for account, *held in connection.execute(select(identity, *amounts)):
        known.add(account)
        entered = totals.get(account, (0,) * len(_COLUMNS))
        yield from _differences(kind, account, held, entered)
    for account in sorted(totals.keys() - known):
        yield Violation(f"{kind}: entries belong to an account", account, "no such account", "one")


def _differences(kind: str, subject: str, held: Sequence[int], entered: Sequence[int]) -> Iterator[Violation]:
    for column, has, sums_to in zip(_COLUMNS, held, entered, strict=True):
        if has != sums_to:
            yield Violation(f"{kind}: {column} equals the sum of its entries", subject, str(has), str(sums_to))
    granted, reserved, spent, overage = held
    if reserved + spent - overage > granted:
        yield Violation(f"{kind}: never overspent", subject, str(reserved + spent - overage), f"at most {granted}")


def _sessions(connection: Connection, block: Block) -> Iterator[Violation]:
    """I1, I2 of sessions: their entries are their own and, except grants, those of every session below them."""
    e, s = ledger_entries.c, sessions.c
    belongs = or_(e.scope == "turn", e.scope == "session")
    deltas = [e[f"{column}_delta_nanousd"].label(column) for column in _COLUMNS]
    own = select(e.tenant_id, e.session_id, *deltas).where(block.holds(e.tenant_id, e.session_id), belongs)
    counted = own.union_all(_of_descendants(block, belongs)).subquery().c
    sums = (
        select(counted.tenant_id, counted.session_id, *(func.sum(counted[column]).label(column) for column in _COLUMNS))
        .group_by(counted.tenant_id, counted.session_id)
        .subquery()
    )
    same = and_(s.tenant_id == sums.c.tenant_id, s.session_id == sums.c.session_id)
    held = [s[f"{column}_nanousd"] for column in _COLUMNS]
    entered = [func.coalesce(sums.c[column], 0) for column in _COLUMNS]
    over = s.reserved_nanousd + s.spent_nanousd - s.overage_nanousd > s.granted_nanousd
    wrong = or_(over, *(has != sums_to for has, sums_to in zip(held, entered, strict=True)))
    query = (
        select(s.tenant_id, s.session_id, *held, *entered)
        .select_from(sessions.outerjoin(sums, same))
        .where(block.holds(s.tenant_id, s.session_id), wrong)
    )
    for tenant_id, session_id, *amounts in connection.execute(query):
        half = len(_COLUMNS)
        yield from _differences("session", f"{tenant_id}/{session_id}", amounts[:half], list(map(int, amounts[half:])))
    unowned = select(sums.c.tenant_id, sums.c.session_id).select_from(sums.outerjoin(sessions, same))
    for row in connection.execute(unowned.where(s.session_id.is_(None))):
        yield Violation("session: entries belong to an account", "/".join(row), "no such account", "one")


def _of_descendants(block: Block, belongs: ColumnElement[bool]) -> Select[Any]:
    """The money that sessions moved, once for each session above them in the block; a grant is the session's own."""
    e, a = ledger_entries.c, session_ancestors.c
    here = and_(a.tenant_id == e.tenant_id, a.session_id == e.session_id)
    return (
        select(
            a.tenant_id,
            a.ancestor_id,
            literal(0),
            e.reserved_delta_nanousd,
            e.spent_delta_nanousd,
            e.overage_delta_nanousd,
        )
        .select_from(session_ancestors.join(ledger_entries, here))
        .where(block.holds(a.tenant_id, a.ancestor_id), belongs)
    )


# -- holds -------------------------------------------------------------------------------------------------------------


def _per_hold(within: ColumnElement[bool]) -> Subquery:
    """Numbers and sums of the entries of each hold."""
    e = ledger_entries.c
    terminal = e.kind.in_(_TERMINAL.values())
    return (
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
        .where(within, e.hold_id.is_not(None))
        .group_by(e.hold_id)
        .subquery()
    )


def _invariants(per_hold: Subquery) -> list[tuple[str, ColumnElement[Any], ColumnElement[Any]]]:
    """I3: one reserve entry per hold, exactly one terminal entry once it is resolved, and none before; sums agree."""
    h, p = holds.c, per_hold.c
    kind = case(*((h.state == state, kind) for state, kind in _TERMINAL.items()), else_="none")
    return [
        ("one reserve entry", p.reserves, literal(1)),
        ("one terminal entry when resolved, none when open", p.terminals, case((h.state == "open", 0), else_=1)),
        ("the terminal entry's kind", func.coalesce(p.terminal, "none"), kind),
        ("reserved by its entries", p.reserved, case((h.state == "open", h.amount_nanousd), else_=0)),
        ("posted by its entries", p.spent, h.posted_nanousd),
        ("the reserve entry's amount", p.amount, h.amount_nanousd),
        ("late posts and refunds", p.lates, h.late),
    ]


def _wrong(per_hold: Subquery) -> ColumnElement[bool]:
    return or_(holds.c.hold_id.is_(None), *(found != expected for _, found, expected in _invariants(per_hold)))


def _check_of_holds(per_hold: Subquery) -> Select[int, bool]:
    """How many holds the entries name, and whether all are sound."""
    joined = per_hold.outerjoin(holds, holds.c.hold_id == per_hold.c.hold_id)
    wrong = func.coalesce(func.sum(case((_wrong(per_hold), 1), else_=0)), 0)
    return select(func.count(holds.c.hold_id), wrong == 0).select_from(joined)


def _bad_holds(connection: Connection, per_hold: Subquery) -> Iterator[Violation]:
    invariants = _invariants(per_hold)
    pairs = [column for _, found, expected in invariants for column in (found, expected)]
    query = (
        select(per_hold.c.hold_id, holds.c.hold_id, *pairs)
        .select_from(per_hold.outerjoin(holds, holds.c.hold_id == per_hold.c.hold_id))
        .where(_wrong(per_hold))
    )
    for named, known, *values in connection.execute(query):
        if known is None:
            yield Violation("hold: entries belong to a hold", named, "no such hold", "one")
            continue
        for (name, _, _), found, expected in zip(invariants, values[::2], values[1::2], strict=True):
            if found != expected:
                yield Violation(f"hold: {name}", named, str(found), str(expected))


def _holds_without_entries(connection: Connection) -> Iterator[Violation]:
    e, h = ledger_entries.c, holds.c
    entered = exists().where(e.tenant_id == h.tenant_id, e.session_id == h.session_id, e.hold_id == h.hold_id)
    for row in connection.execute(select(h.hold_id).where(~entered).limit(MAX_LISTED)):
        yield Violation("hold: one reserve entry", row[0], "0", "1")


# -- open holds and trees ----------------------------------------------------------------------------------------------


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


# -- decisions, in blocks of their ids ---------------------------------------------------------------------------------


def _decisions(connection: Connection, block_rows: int) -> Iterator[Violation]:
    """Decision log and ledger agree: a decision costs what its holds posted; every hold but a charge's has one."""
    removed_ms = connection.execute(select(func.max(log_retention.c.through_ms))).scalar()
    since_ms = 0 if removed_ms is None else removed_ms + TURN_START_MS
    for block in blocks(connection, holds.c.decision_id, rows=block_rows):
        yield from _decisions_within(connection, block, since_ms)


def _decisions_within(connection: Connection, block: Block, since_ms: int) -> Iterator[Violation]:
    h, d = holds.c, decisions.c
    posted = (
        select(h.decision_id, func.sum(h.posted_nanousd).label("posted"))
        .where(block.holds(h.decision_id))
        .group_by(h.decision_id)
        .subquery()
    )
    cost = func.coalesce(d.cost_nanousd, 0)
    query = (
        select(d.decision_id, cost, posted.c.posted)
        .select_from(decisions.outerjoin(posted, posted.c.decision_id == d.decision_id))
        .where(block.holds(d.decision_id), or_(posted.c.posted.is_(None), cost != posted.c.posted))
    )
    for decision_id, costs, found in connection.execute(query):
        if found is None:
            yield Violation("decision: has a hold", decision_id, "none", "at least one")
        if costs != (found or 0):
            yield Violation("decision: cost is what its holds posted", decision_id, str(costs), str(found or 0))
    first = holds.alias("first")
    begun_before = exists().where(first.c.decision_id == h.decision_id, first.c.created_at_ms < since_ms)
    unlogged = (
        select(h.hold_id)
        .select_from(holds.outerjoin(decisions, d.decision_id == h.decision_id))
        .where(block.holds(h.decision_id), h.created_at_ms >= since_ms, d.decision_id.is_(None))
        .where(func.substr(h.hold_id, 1, len(CHARGE_PREFIX)) != CHARGE_PREFIX, ~begun_before)
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
