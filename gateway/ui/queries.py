"""Bounded queries of the dashboard; pages over a period read the hourly sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, literal, or_, select, tuple_

from gateway.accounts.sessions import STATES
from gateway.accounts.tenants import OWN_TENANTS
from gateway.database.tables import (
    audit_trail,
    baseline_hours,
    decisions,
    ledger_entries,
    refused_turns,
    sessions,
    tenants,
    usage_hours,
)
from gateway.decisions.rollups import CHOSEN, DAY_MS, HOUR_MS, HOURLY_DAYS

Usage = Sequence[Mapping[str, Any]]
SUMS = tuple(column.name for column in usage_hours.columns if not column.primary_key)
MOST_ROWS = 20
MOST_NEAR = 8
PAGE_ROWS = 50
MOST_NAMED = 100
"""Tenants whose sessions a search by the beginning of their name finds."""
MANY_FOUND = 5_000
LAST_MS = 2**62
NEAR_SHARE = 0.8
"""A session is near its budget from this spent share on."""


@dataclass(frozen=True, slots=True)
class Period:
    """A period in whole hours, of one tenant or of all (None)."""

    since_ms: int
    until_ms: int
    tenant_id: str | None

    def of(self, table: Any) -> ColumnElement[bool]:
        """The condition that selects this period in an hourly table."""
        inside = and_(table.c.hour_ms >= self.since_ms, table.c.hour_ms < self.until_ms)
        return inside if self.tenant_id is None else and_(inside, table.c.tenant_id == self.tenant_id)


def last_days(days: int, at_ms: int, tenant_id: str | None) -> Period:
    """The last days, the current hour included; longer periods begin with a day (UTC)."""
    until_ms = at_ms - at_ms % HOUR_MS + HOUR_MS
    since_ms = until_ms - days * DAY_MS
    return Period(since_ms - since_ms % DAY_MS if days >= HOURLY_DAYS else since_ms, until_ms, tenant_id)


def usage(connection: Connection, period: Period, step_ms: int) -> Usage:
    """Sums of every column of `usage_hours` by model and start of step (`at_ms`), in one scan."""
    at = (usage_hours.c.hour_ms - usage_hours.c.hour_ms % step_ms).label("at_ms")
    sums = [func.sum(usage_hours.c[name]).label(name) for name in SUMS]
    query = select(usage_hours.c.model, at, *sums).where(period.of(usage_hours)).group_by(usage_hours.c.model, at)
    return [
        {"model": row["model"], **{name: int(row[name]) for name in ("at_ms", *SUMS)}}
        for row in connection.execute(query).mappings()
    ]


def totals(found: Usage) -> dict[str, int]:
    """Sums of every column over the period."""
    return {name: sum(row[name] for row in found) for name in SUMS}


def spend_by_model(found: Usage) -> list[tuple[str, int, int]]:
    """Model, spend in nano-USD and turns, largest spend first."""
    spent: dict[str, tuple[int, int]] = {}
    for row in found:
        nanousd, turns = spent.get(row["model"], (0, 0))
        spent[row["model"]] = nanousd + row["spent_nanousd"], turns + row["turns"]
    ordered = sorted(spent.items(), key=lambda item: -item[1][0])
    return [(model, nanousd, turns) for model, (nanousd, turns) in ordered[:MOST_ROWS]]


def spend_by_tenant(connection: Connection, period: Period) -> list[tuple[str, int, int]]:
    """Tenant's id, spend in nano-USD and turns, largest spend first."""
    column, spent = usage_hours.c.tenant_id, func.sum(usage_hours.c.spent_nanousd)
    query = (
        select(column, spent, func.sum(usage_hours.c.turns))
        .where(period.of(usage_hours))
        .group_by(column)
        .order_by(spent.desc())
        .limit(MOST_ROWS)
    )
    return [(tenant_id, int(nanousd), int(turns)) for tenant_id, nanousd, turns in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Estimated cost of always using one model: predictions, scaled to the actual bills."""

    model: str
    estimated_nanousd: int
    saved_nanousd: int
    saved_share: float | None
    predicted_quality: float | None
    turns_not_comparable: int


def baselines(connection: Connection, period: Period) -> list[Baseline]:
    """Every model as a baseline, most expensive first; turns it could not serve keep their cost.

    What the gateway's own turns cost (judge, second answers) is taken from what routing saved.
    """
    columns = baseline_hours.c
    rows = {
        row.model: row
        for row in connection.execute(
            select(
                columns.model,
                func.sum(columns.turns).label("turns"),
                func.sum(columns.predicted_nanousd).label("predicted"),
                func.sum(columns.billed_nanousd).label("billed"),
                func.sum(columns.quality_turns).label("quality_turns"),
                func.sum(columns.quality_sum).label("quality_sum"),
            )
            .where(period.of(baseline_hours))
            .group_by(columns.model)
        )
    }
    chosen = rows.pop(CHOSEN, None)
    if chosen is None or chosen.predicted <= 0:
        return []
    scale, billed = int(chosen.billed) / int(chosen.predicted), int(chosen.billed)
    own_nanousd = _spent_by_own(connection, period)
    found = []
    for model, row in rows.items():
        estimated = round(int(row.predicted) * scale) + billed - int(row.billed)
        saved = estimated - billed - own_nanousd
        found.append(
            Baseline(
                model=model,
                estimated_nanousd=estimated,
                saved_nanousd=saved,
                saved_share=saved / estimated if estimated > 0 else None,
                predicted_quality=row.quality_sum / int(row.quality_turns) if row.quality_turns else None,
                turns_not_comparable=int(chosen.turns) - int(row.turns),
            )
        )
    return sorted(found, key=lambda baseline: -baseline.estimated_nanousd)


def _spent_by_own(connection: Connection, period: Period) -> int:
    spent = select(func.coalesce(func.sum(usage_hours.c.spent_nanousd), 0))
    own = usage_hours.c.tenant_id.in_(OWN_TENANTS)
    return int(connection.execute(spent.where(period.of(usage_hours), own)).scalar_one())


def find_sessions(
    connection: Connection,
    *,
    tenant_id: str | None,
    search: str = "",
    only: str = "",
    after: tuple[int, str, str] | None = None,
) -> list[Mapping[str, Any]]:
    """One page of sessions, most recently used first.

    `after` continues a page: when its last session was used, its tenant, and its id.

    `only`: "near" (most of the budget is spent), "refused" (a turn was refused for money), a state, or "" for all.
    """
    s = sessions.c
    query = _sessions(tenant_id)
    if search:
        query = query.where(_found(connection, search))
    if only == "near":
        query = query.where(_near())
    elif only == "refused":
        r = refused_turns.c
        query = query.where(exists().where(r.tenant_id == s.tenant_id, r.session_id == s.session_id))
    elif only in STATES:
        query = query.where(s.state == only)
    used_ms, *ids = after or (LAST_MS, "", "")
    # The first page has a bound, too: without one SQLite sorts every session instead of reading the index by use.
    query = query.where(s.updated_at_ms <= used_ms)
    query = query.where(or_(s.updated_at_ms < used_ms, tuple_(s.tenant_id, s.session_id) > tuple_(*ids)))
    return _rows(connection, query.order_by(s.updated_at_ms.desc(), s.tenant_id, s.session_id).limit(PAGE_ROWS))


def near_their_budget(connection: Connection, period: Period) -> list[Mapping[str, Any]]:
    """Open sessions of the period with most of their budget spent, most recently used first."""
    s = sessions.c
    query = _sessions(period.tenant_id).where(_near(), s.state == "open", s.updated_at_ms >= period.since_ms)
    return _rows(connection, query.order_by(s.updated_at_ms.desc()).limit(MOST_NEAR))


def _sessions(tenant_id: str | None) -> Select[Any]:
    """Clients' sessions with their tenant's name, which is looked up for the shown rows alone."""
    name = select(tenants.c.name).where(tenants.c.tenant_id == sessions.c.tenant_id).scalar_subquery()
    query = select(sessions, name.label("tenant_name"))
    mine = sessions.c.tenant_id.not_in(OWN_TENANTS) if tenant_id is None else sessions.c.tenant_id == tenant_id
    return query.where(mine)


def _near() -> ColumnElement[bool]:
    s = sessions.c
    return and_(s.granted_nanousd > 0, s.spent_nanousd + s.reserved_nanousd >= NEAR_SHARE * s.granted_nanousd)


def turns_of(connection: Connection, tenant_id: str, session_id: str, limit: int = 500) -> list[Mapping[str, Any]]:
    """The newest turns of a session, oldest first."""
    d = decisions.c
    query = (
        select(decisions)
        .where(d.tenant_id == tenant_id, d.session_id == session_id)
        .order_by(d.turn.desc(), d.created_at_ms.desc())
        .limit(limit)
    )
    return _rows(connection, query)[::-1]


def refused_in(connection: Connection, tenant_id: str, session_id: str) -> int:
    """Turns of a session that were refused because the budget was spent."""
    r = refused_turns.c
    query = select(func.coalesce(func.sum(r.turns), 0)).where(r.tenant_id == tenant_id, r.session_id == session_id)
    return int(connection.execute(query).scalar_one())


def newest_entries(
    connection: Connection, *, tenant_id: str | None, session_id: str | None = None, before_id: int | None = None
) -> list[Mapping[str, Any]]:
    """Ledger entries with their tenants' names, newest first."""
    e = ledger_entries.c
    named = ledger_entries.outerjoin(tenants, tenants.c.tenant_id == e.tenant_id)
    query = select(ledger_entries, tenants.c.name.label("tenant_name")).select_from(named)
    for column, value in ((e.tenant_id, tenant_id), (e.session_id, session_id)):
        if value is not None:
            query = query.where(column == value)
    if before_id is not None:
        query = query.where(e.entry_id < before_id)
    return _rows(connection, query.order_by(e.entry_id.desc()).limit(PAGE_ROWS))


def newest_changes(connection: Connection) -> list[Mapping[str, Any]]:
    """Changes of tenants, keys and sessions, newest first."""
    return _rows(connection, select(audit_trail).order_by(audit_trail.c.event_id.desc()).limit(MOST_ROWS))


def tenant_names(connection: Connection, tenant_ids: Sequence[str]) -> dict[str, str]:
    """Names of the existing tenants among these ids."""
    rows = connection.execute(select(tenants.c.tenant_id, tenants.c.name).where(tenants.c.tenant_id.in_(tenant_ids)))
    return {row.tenant_id: row.name for row in rows}


def _rows(connection: Connection, query: Select[Any]) -> list[Mapping[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _found(connection: Connection, search: str) -> ColumnElement[bool]:
    """The condition of sessions whose id begins so, and of the sessions of tenants whose name does."""
    s = sessions.c
    named = select(tenants.c.tenant_id).where(tenants.c.name.like(_like(search), escape="\\")).limit(MOST_NAMED)
    tenant_ids = connection.execute(named).scalars().all()
    if connection.dialect.name == "postgresql":
        return or_(s.session_id.like(_like(search), escape="\\"), s.tenant_id.in_(tenant_ids))
    pattern = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in search) + "*"

    def condition(session_id: ColumnElement[str], tenant_id: ColumnElement[str]) -> ColumnElement[bool]:
        return or_(session_id.op("GLOB", is_comparison=True)(pattern), tenant_id.in_(tenant_ids))

    found = condition(s.session_id, s.tenant_id)
    some = select(literal(1)).select_from(sessions).where(found).limit(MANY_FOUND).subquery()
    if connection.execute(select(func.count()).select_from(some)).scalar_one() < MANY_FOUND:
        return found
    # SQLite has no statistics: of many it would sort every one, where the newest are found sooner in order of use.
    return condition(s.session_id.concat(""), s.tenant_id.concat(""))


def _like(start: str) -> str:
    return start.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
