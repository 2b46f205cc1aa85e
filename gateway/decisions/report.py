"""Report of spend, savings, and sessions that ran out of money.

Everything is read from the ledger and the decision log, in one pass. Savings are estimates of
`gateway/decisions/savings.py`, over the turns that clients sent for the gateway to route; what a pinned model answered
is no saving, and what the judge and second answers cost counts against them. Exploration is in the bills. The
gateway's own turns are in the money, and not among the turns and sessions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Row, Select, case, func, select

from gateway.accounts.auth import OWN_ORIGINS
from gateway.accounts.tenants import OWN_TENANTS
from gateway.database.tables import (
    decisions,
    exploration_days,
    feedback,
    ledger_entries,
    refused_turns,
    sessions,
    tenants,
)
from gateway.decisions.log import answered_by
from gateway.decisions.refused_turns import NO_SESSION
from gateway.decisions.savings import FrontPoint, Jackknife, Rival, RoutedTurn, Savings, SavingsTally
from gateway.ledger.types import SPENDING_KINDS
from gateway.money import usd_string

CHUNK_ROWS = 1_000
DAY_MS = 86_400_000


@dataclass(slots=True)
class _ModelTally:
    turns: int = 0
    spent_nanousd: int = 0
    scored: int = 0
    score_sum: float = 0.0


@dataclass(slots=True)
class _Log:
    """Sums gathered in one pass over the decision log."""

    models: dict[str, _ModelTally] = field(default_factory=lambda: defaultdict(_ModelTally))
    days: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    turns: int = 0
    estimated_turns: int = 0
    pinned_turns: int = 0
    lowered_turns: int = 0
    own_nanousd: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bills of the gateway's own turns, by origin."""
    sessions: set[tuple[str, str]] = field(default_factory=set)
    savings: SavingsTally = field(default_factory=SavingsTally)


def report(connection: Connection, *, tenant_id: str | None = None, since_ms: int | None = None) -> dict[str, Any]:
    """The report as JSON, over turns and sessions begun since `since_ms`."""
    log = _read_log(connection, tenant_id, since_ms)
    begun = select(func.count()).select_from(sessions).where(sessions.c.tenant_id.not_in(OWN_TENANTS))
    opened = _count(connection, _scoped(begun, sessions, tenant_id, since_ms))
    found = log.savings.result()
    return {
        "tenant": tenant_id,
        "since_ms": since_ms,
        "sessions": opened,
        "sessions_with_turns": len(log.sessions),
        **out_of_money(connection, tenant_id, since_ms),
        "turns": log.turns,
        "estimated_turns": log.estimated_turns,
        "pinned_turns": log.pinned_turns,
        "turns_with_lowered_max_tokens": log.lowered_turns,
        **_money("spent", _spent(connection, tenant_id, since_ms)),
        **_money("overage", _overage(connection, tenant_id, since_ms)),
        **_money("judge", log.own_nanousd["judge"]),
        **_money("second_answers", log.own_nanousd["second"]),
        **({} if tenant_id is not None else _exploration(connection, since_ms)),
        "tenants": _tenant_rows(connection, tenant_id),
        "models": _model_rows(log),
        "days": [
            {"day": datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date().isoformat(), **_money("spent", nanousd)}
            for day, nanousd in sorted(log.days.items())
        ],
        **savings_rows(found, sum(log.own_nanousd.values())),
    }


def out_of_money(connection: Connection, tenant_id: str | None, since_ms: int | None) -> dict[str, int]:
    """Sessions with a turn that was refused because the money was spent, and all such turns."""
    row = refused_turns.c
    each = select(row.tenant_id, row.session_id, func.sum(row.turns).label("turns"))
    if tenant_id is not None:
        each = each.where(row.tenant_id == tenant_id)
    if since_ms is not None:
        each = each.where(row.last_at_ms >= since_ms)
    found = each.group_by(row.tenant_id, row.session_id).subquery()
    stored = func.count(case((found.c.session_id != NO_SESSION, 1)))
    counted, turns = connection.execute(select(stored, func.coalesce(func.sum(found.c.turns), 0))).one()
    return {"bankrupt_sessions": int(counted), "refused_turns": int(turns)}


def savings_rows(found: Savings, own_nanousd: int = 0) -> dict[str, Any]:
    """The savings as JSON: every model alone, the rivals by name, and the front over lambda."""
    named = {"always the strongest": found.strongest, "best fixed": found.best_fixed, "cheapest": found.cheapest}
    models = {rival.name: rival for rival in found.models}
    rivals = [
        {"rival": name, "model": model} | _rival_row(models[model], own_nanousd)
        for name, model in named.items()
        if model is not None
    ]
    if found.tuned is not None:
        tuned = {"rival": "tuned lambda", "model": None, "lambda_per_usd": found.tuned_lambda_per_usd}
        rivals.append(tuned | _rival_row(found.tuned, own_nanousd))
    return {
        "routed_turns": found.turns,
        **_money("routed", found.billed_nanousd),
        **_money("own_turns", own_nanousd),
        "predicted_quality": found.quality,
        "rivals": rivals,
        "baselines": [{"always": rival.name} | _rival_row(rival, own_nanousd) for rival in found.models],
        "front": [_point(point) for point in found.front],
        "today": None if found.today is None else _point(found.today),
    }


def _rival_row(rival: Rival, own_nanousd: int) -> dict[str, Any]:
    """A rival; the gateway's own turns belong to routing, so their bills are taken from what routing saved."""
    saved = round(rival.saved.value) - own_nanousd
    estimated = rival.estimated_nanousd
    charged = own_nanousd / estimated if estimated > 0 else 0.0
    return {
        **_money("estimated", estimated),
        **_money("saved", saved),
        **_saved_interval_usd(rival.saved, own_nanousd),
        "saved_share": rival.saved_share.value - charged if estimated > 0 else None,
        "saved_share_low": None if rival.saved_share.low is None else rival.saved_share.low - charged,
        "saved_share_high": None if rival.saved_share.high is None else rival.saved_share.high - charged,
        "predicted_quality": rival.quality,
        "turns_not_comparable": rival.turns_not_comparable,
    }


def _saved_interval_usd(estimate: Jackknife, less_nanousd: int) -> dict[str, str | None]:
    ends = {"low": estimate.low, "high": estimate.high}
    return {
        f"saved_{end}_usd": None if value is None else usd_string(round(value) - less_nanousd)
        for end, value in ends.items()
    }


def _point(point: FrontPoint) -> dict[str, Any]:
    return {
        "lambda_per_usd": point.lambda_per_usd,
        **{
            f"{name}{end}": value
            for name, estimate in (("cost_usd", point.cost_usd), ("quality", point.quality))
            for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
        },
    }


def newest_turns(
    connection: Connection, *, tenant_id: str | None, since_ms: int, limit: int
) -> tuple[list[RoutedTurn], int, bool]:
    """The newest routed turns, the bills of own turns among them, and whether those are all."""
    query = _scoped(_turns_query(), decisions, tenant_id, since_ms)
    rows = connection.execute(query.order_by(decisions.c.created_at_ms.desc()).limit(limit)).all()
    scores = _scores_of(connection, [row.decision_id for row in rows])
    own_nanousd = sum(row.cost_nanousd for row in rows if row.origin in OWN_ORIGINS.values())
    return _routed(rows, [orjson.loads(row.candidates) for row in rows], scores), own_nanousd, len(rows) < limit


def _turns_query() -> Select[Any]:
    row = decisions.c
    return select(
        row.decision_id, row.tenant_id, row.session_id, row.model, row.reason, row.origin, row.cost_nanousd,
        row.usage_source, row.candidates, row.propensity, row.lowered_max_tokens, row.created_at_ms,
    ).where(row.cost_nanousd.is_not(None))  # fmt: skip


def _read_log(connection: Connection, tenant_id: str | None, since_ms: int | None) -> _Log:
    log = _Log()
    query = _scoped(_turns_query(), decisions, tenant_id, since_ms)
    scores = _scores(connection, tenant_id, since_ms)
    for rows in connection.execution_options(yield_per=CHUNK_ROWS).execute(query).partitions(CHUNK_ROWS):
        candidates = [orjson.loads(row.candidates) for row in rows]
        for row, each in zip(rows, candidates, strict=True):
            _tally(log, row, each, scores.get(row.decision_id))
        log.savings.add(_routed(rows, candidates, scores))
    return log


def _routed(rows: Any, candidates: list[Any], scores: Mapping[str, float]) -> list[RoutedTurn]:
    """The client's turns among these rows that the gateway routed."""
    return [
        RoutedTurn(
            row.tenant_id, row.session_id, row.model, row.cost_nanousd, row.propensity, each,
            scores.get(row.decision_id), row.created_at_ms,
        )
        for row, each in zip(rows, candidates, strict=True)
        if row.origin is None and row.reason != "pinned"
    ]  # fmt: skip


def _tally(log: _Log, row: Row[Any], candidates: list[Mapping[str, Any]], score: float | None) -> None:
    log.days[row.created_at_ms // DAY_MS] += row.cost_nanousd
    tally = log.models[answered_by(row.model, candidates)[0]]
    tally.spent_nanousd += row.cost_nanousd
    if row.origin in OWN_ORIGINS.values():
        log.own_nanousd[row.origin] += row.cost_nanousd
        return
    log.turns += 1
    log.sessions.add((row.tenant_id, row.session_id))
    log.estimated_turns += row.usage_source == "estimated"
    log.pinned_turns += row.reason == "pinned"
    log.lowered_turns += row.lowered_max_tokens is not None
    tally.turns += 1
    if score is not None:
        tally.scored += 1
        tally.score_sum += score


def _model_rows(log: _Log) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "turns": tally.turns,
            **_money("spent", tally.spent_nanousd),
            "scored_turns": tally.scored,
            "mean_score": tally.score_sum / tally.scored if tally.scored else None,
        }
        for name, tally in sorted(log.models.items(), key=lambda item: -item[1].spent_nanousd)
    ]


def _tenant_rows(connection: Connection, tenant_id: str | None) -> list[dict[str, Any]]:
    query = select(tenants).order_by(tenants.c.name)
    if tenant_id is not None:
        query = query.where(tenants.c.tenant_id == tenant_id)
    return [
        {
            "tenant": row.name,
            "tenant_id": row.tenant_id,
            **_money("budget", row.granted_nanousd),
            **_money("spent", row.spent_nanousd),
            **_money("reserved", row.reserved_nanousd),
            **_money("remaining", row.granted_nanousd - row.spent_nanousd - row.reserved_nanousd),
        }
        for row in connection.execute(query)
    ]


def _scores(connection: Connection, tenant_id: str | None, since_ms: int | None) -> Mapping[str, float]:
    """Mean score of each scored decision."""
    query = select(feedback.c.decision_id, func.avg(feedback.c.score)).where(feedback.c.decision_id != "")
    rows = connection.execute(_scoped(query, feedback, tenant_id, since_ms).group_by(feedback.c.decision_id))
    return {decision_id: float(score) for decision_id, score in rows}


def _scores_of(connection: Connection, decision_ids: list[str]) -> Mapping[str, float]:
    """Mean score of each of these decisions that has one."""
    found: dict[str, float] = {}
    row = feedback.c
    for start in range(0, len(decision_ids), CHUNK_ROWS):
        some = decision_ids[start : start + CHUNK_ROWS]
        query = select(row.decision_id, func.avg(row.score)).where(row.decision_id.in_(some)).group_by(row.decision_id)
        found |= {decision_id: float(score) for decision_id, score in connection.execute(query)}
    return found


def _spent(connection: Connection, tenant_id: str | None, since_ms: int | None) -> int:
    """Charges in this period by ledger entries, which a window reset does not hide."""
    query = select(func.coalesce(func.sum(ledger_entries.c.spent_delta_nanousd), 0)).where(
        ledger_entries.c.kind.in_(SPENDING_KINDS), ledger_entries.c.hold_id.is_not(None)
    )
    return _count(connection, _scoped(query, ledger_entries, tenant_id, since_ms))


def _overage(connection: Connection, tenant_id: str | None, since_ms: int | None) -> int:
    query = select(func.coalesce(func.sum(ledger_entries.c.amount_nanousd), 0)).where(
        ledger_entries.c.kind == "overage"
    )
    return _count(connection, _scoped(query, ledger_entries, tenant_id, since_ms))


def _exploration(connection: Connection, since_ms: int | None) -> dict[str, Any]:
    """Expected cost of exploration since then, over all tenants, in whole UTC days."""
    days = exploration_days.c
    query = select(func.coalesce(func.sum(days.extra_nanousd), 0), func.coalesce(func.sum(days.quality_given_up), 0.0))
    if since_ms is not None:
        query = query.where(days.day >= datetime.fromtimestamp(since_ms / 1000, UTC).date().isoformat())
    extra_nanousd, quality = connection.execute(query).one()
    return {**_money("exploration", int(extra_nanousd)), "exploration_quality_given_up": float(quality)}


def _scoped(query: Select[Any], table: Any, tenant_id: str | None, since_ms: int | None) -> Select[Any]:
    if tenant_id is not None:
        query = query.where(table.c.tenant_id == tenant_id)
    return query if since_ms is None else query.where(table.c.created_at_ms >= since_ms)


def _count(connection: Connection, query: Select[Any]) -> int:
    return int(connection.execute(query).scalar_one())


def _money(name: str, nanousd: int) -> dict[str, Any]:
    return {f"{name}_nano_usd": nanousd, f"{name}_usd": usd_string(nanousd)}
