"""Hourly sums of the ledger and the decision log, for pages that cover months.

Each settled turn is counted once, in the hour of its bill. The sums follow the ledger by entry id, some seconds
behind, so that an entry committed late is not missed. Every replica may run this: the first to advance the progress
row wins, the other's transaction changes nothing. Hours of past weeks are joined into days, each in the row of its
first hour, so that a page over months reads few rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from sqlalchemy import Connection, Table, and_, delete, func, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gateway.accounts.tenants import OWN_TENANTS
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.database.tables import baseline_hours, decisions, ledger_entries, rollup_progress, usage_hours
from gateway.decisions import log
from gateway.decisions.savings import could_serve
from gateway.errors import LedgerUnavailable
from gateway.ledger.types import SPENDING_KINDS
from policy.mdp import ONLY_AFFORDABLE

_log = logging.getLogger("seqroute.decisions")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HOURLY_DAYS = 8
"""Full days for which hours are kept apart."""
LAG_MS = 10_000
"""Delay behind the clock, longer than any ledger transaction stays open."""
BATCH_ROWS = 2_000
CHOSEN = ""
"""The name in `baseline_hours` of the predictions for the models that answered."""

_Key = tuple[int, str, str]


async def follow_forever(database: Database, clock: Clock, *, ready: Callable[[], bool], interval_s: float) -> None:
    """Add newly settled turns to the sums until cancelled, and once a day join old hours."""
    joined_day = -1
    while True:
        await asyncio.sleep(interval_s)
        if not ready():
            continue
        try:
            read = BATCH_ROWS
            while read == BATCH_ROWS:
                read = await database.write(lambda c: advance(c, now_ms(clock)))
            if now_ms(clock) // DAY_MS != joined_day:
                while await database.write(lambda c: join_hours(c, now_ms(clock))):
                    pass
                joined_day = now_ms(clock) // DAY_MS
        except LedgerUnavailable:
            _log.warning("hourly sums not updated: the database is unavailable")


def advance(connection: Connection, at_ms: int) -> int:
    """Add one batch of ledger entries to the sums; return the number of entries read."""
    through = connection.execute(select(rollup_progress.c.through_entry_id)).scalar_one_or_none()
    if through is None:
        connection.execute(insert(rollup_progress).values(id=1, through_entry_id=0))
        through = 0
    e, d = ledger_entries.c, decisions.c
    rows = connection.execute(
        select(
            e.entry_id, e.kind, e.amount_nanousd, e.tenant_id, e.created_at_ms, e.usage_source, e.model,
            d.decision_id, d.model.label("action"), d.reason, d.finish_reason, d.input_tokens, d.cached_tokens,
            d.output_tokens, d.candidates, d.lowered_max_tokens,
        )
        .select_from(ledger_entries.outerjoin(decisions, d.decision_id == e.decision_id))
        .where(e.entry_id > through, e.created_at_ms <= at_ms - LAG_MS, e.kind.in_(SPENDING_KINDS))
        .order_by(e.entry_id)
        .limit(BATCH_ROWS)
    ).all()  # fmt: skip
    if not rows:
        return 0
    moved = connection.execute(
        update(rollup_progress)
        .where(and_(rollup_progress.c.id == 1, rollup_progress.c.through_entry_id == through))
        .values(through_entry_id=rows[-1].entry_id)
    )
    if moved.rowcount != 1:
        return 0
    usage: dict[_Key, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    baselines: dict[_Key, dict[str, float]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        _tally(usage, baselines, row)
    _add(connection, usage_hours, usage)
    _add(connection, baseline_hours, baselines)
    return len(rows)


def join_hours(connection: Connection, at_ms: int) -> bool:
    """Add up the hours of one old day in the row of its first hour; False: no day was left."""
    before_ms = at_ms - at_ms % DAY_MS - HOURLY_DAYS * DAY_MS
    # Replicas take turns: two of them would add the same hours twice.
    connection.execute(select(rollup_progress.c.id).with_for_update())
    hours = [each.c.hour_ms for each in (usage_hours, baseline_hours)]
    found = [
        connection.execute(select(func.min(hour)).where(hour < before_ms, hour % DAY_MS != 0)).scalar()
        for hour in hours
    ]
    if not any(found):
        return False
    hour_ms = min(filter(None, found))
    day_ms = hour_ms - hour_ms % DAY_MS
    for table in (usage_hours, baseline_hours):
        later = and_(table.c.hour_ms > day_ms, table.c.hour_ms < day_ms + DAY_MS)
        names = [column.name for column in table.columns if not column.primary_key]
        sums = [func.sum(table.c[name]) for name in names]
        summed = select(literal(day_ms), table.c.tenant_id, table.c.model, *sums).where(later)
        rows = connection.execute(summed.group_by(table.c.tenant_id, table.c.model))
        _add(connection, table, {tuple(row[:3]): dict(zip(names, row[3:], strict=True)) for row in rows})
        connection.execute(delete(table).where(later))
    return True


def _tally(usage: dict[_Key, dict[str, int]], baselines: dict[_Key, dict[str, float]], row: Any) -> None:
    hour_ms = row.created_at_ms - row.created_at_ms % HOUR_MS
    candidates: list[Mapping[str, Any]] = orjson.loads(row.candidates or "[]")
    model = log.answered_by(row.action, candidates)[0] if row.action else row.model
    sums = usage[hour_ms, row.tenant_id, model or "unknown"]
    sums["spent_nanousd"] += -row.amount_nanousd if row.kind == "refund" else row.amount_nanousd
    if row.kind not in ("settle", "orphan_post"):
        return  # the turn itself was counted with its first bill
    if row.tenant_id in OWN_TENANTS:
        return  # no client's turn
    sums["turns"] += 1
    sums["estimated_turns"] += row.usage_source == "estimated"
    if row.decision_id is None:
        return
    sums["input_tokens"] += row.input_tokens or 0
    sums["cached_tokens"] += row.cached_tokens or 0
    sums["output_tokens"] += row.output_tokens or 0
    sums["forced_turns"] += row.reason == ONLY_AFFORDABLE
    sums["cut_turns"] += row.finish_reason == "length"
    sums["lowered_turns"] += row.lowered_max_tokens is not None
    for candidate in candidates:
        if not could_serve(candidate):
            continue
        name = log.action_name(candidate)
        _tally_baseline(baselines[hour_ms, row.tenant_id, name], candidate, row.amount_nanousd)
        if candidate["model"] == row.action:
            _tally_baseline(baselines[hour_ms, row.tenant_id, CHOSEN], candidate, row.amount_nanousd)


def _tally_baseline(sums: dict[str, float], candidate: Mapping[str, Any], billed_nanousd: int) -> None:
    sums["turns"] += 1
    sums["predicted_nanousd"] += candidate["cost_nano_usd"]
    sums["billed_nanousd"] += billed_nanousd
    if candidate.get("quality") is not None:
        sums["quality_turns"] += 1
        sums["quality_sum"] += candidate["quality"]


def _add(connection: Connection, table: Table, sums: Mapping[_Key, Mapping[str, float]]) -> None:
    """Insert the rows, or add to existing ones."""
    if not sums:
        return
    names = [column.name for column in table.columns if not column.primary_key]
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table)
    statement = statement.on_conflict_do_update(
        index_elements=["hour_ms", "tenant_id", "model"],
        set_={name: table.c[name] + statement.excluded[name] for name in names},
    )
    rows = [
        {"hour_ms": hour_ms, "tenant_id": tenant_id, "model": model, **{name: values.get(name, 0) for name in names}}
        for (hour_ms, tenant_id, model), values in sums.items()
    ]
    connection.execute(statement, rows)
