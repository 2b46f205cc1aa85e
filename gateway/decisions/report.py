"""Report of spend, sessions, bankruptcies, and estimated savings against baselines.

Everything is read from the ledger and the decision log. A baseline ("always this model") is an estimate: the predicted
costs of its model are summed over the logged turns and scaled by the ratio of bills to predictions for the models that
answered. Turns that a baseline's model could not have served keep their actual cost. Quality is compared only where
scores exist, and only for actual answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Select, func, select

from gateway.database.tables import decisions, exploration_days, feedback, ledger_entries, sessions, tenants
from gateway.decisions.log import answered_by, at_effort, with_effort
from gateway.ledger.types import SPENDING_KINDS
from gateway.money import usd_string

CHUNK_ROWS = 1_000


@dataclass(slots=True)
class _ModelTally:
    turns: int = 0
    spent_nanousd: int = 0
    scores: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Baseline:
    turns: int = 0
    predicted_nanousd: int = 0
    billed_nanousd: int = 0
    quality_sum: float = 0.0
    quality_turns: int = 0


@dataclass(slots=True)
class _Log:
    """Sums gathered in one pass over the decision log."""

    models: dict[str, _ModelTally] = field(default_factory=lambda: defaultdict(_ModelTally))
    baselines: dict[str, _Baseline] = field(default_factory=lambda: defaultdict(_Baseline))
    answered_turns: int = 0
    billed_nanousd: int = 0
    predicted_nanousd: int = 0
    estimated_turns: int = 0
    last: dict[tuple[str, str], tuple[int, int | None, int | None]] = field(default_factory=dict)


def report(connection: Connection, *, tenant_id: str | None = None, since_ms: int | None = None) -> dict[str, Any]:
    """The report as JSON, over turns and sessions begun since `since_ms`."""
    log = _read_log(connection, tenant_id, since_ms)
    spent_nanousd = _spent(connection, tenant_id, since_ms)
    opened = _count(connection, _scoped(select(func.count()).select_from(sessions), sessions, tenant_id, since_ms))
    bankrupt = sum(1 for _, remaining, cheapest in log.last.values() if _is_bankrupt(remaining, cheapest))
    return {
        "tenant": tenant_id,
        "since_ms": since_ms,
        "sessions": opened,
        "sessions_with_turns": len(log.last),
        "bankrupt_sessions": bankrupt,
        "turns": log.answered_turns,
        "estimated_turns": log.estimated_turns,
        **_money("spent", spent_nanousd),
        **_money("overage", _overage(connection, tenant_id, since_ms)),
        **({} if tenant_id is not None else _exploration(connection, since_ms)),
        "tenants": _tenant_rows(connection, tenant_id),
        "models": _model_rows(log),
        "baselines": _baseline_rows(log),
    }


def _read_log(connection: Connection, tenant_id: str | None, since_ms: int | None) -> _Log:
    log = _Log()
    row = decisions.c
    query = select(
        row.decision_id, row.tenant_id, row.session_id, row.turn, row.model, row.cost_nanousd, row.usage_source,
        row.candidates, row.remaining_after_nanousd,
    ).where(row.cost_nanousd.is_not(None))  # fmt: skip
    query = _scoped(query, decisions, tenant_id, since_ms)
    scores = _scores(connection, tenant_id, since_ms)
    for found in connection.execution_options(yield_per=CHUNK_ROWS).execute(query):
        _tally(log, found, scores.get(found.decision_id))
    return log


def _tally(log: _Log, row: Any, score: float | None) -> None:
    candidates: list[Mapping[str, Any]] = orjson.loads(row.candidates)
    log.answered_turns += 1
    log.billed_nanousd += row.cost_nanousd
    log.estimated_turns += row.usage_source == "estimated"
    tally = log.models[answered_by(row.model, candidates)[0]]
    tally.turns += 1
    tally.spent_nanousd += row.cost_nanousd
    if score is not None:
        tally.scores.append(score)
    by_name = {candidate["model"]: candidate for candidate in candidates}
    chosen = by_name.get(row.model)
    if chosen is not None:
        log.predicted_nanousd += chosen["cost_nano_usd"]
    for candidate in by_name.values():
        own = with_effort(candidate)
        baseline = log.baselines[at_effort(own["model"], own["effort"])]
        baseline.turns += 1
        baseline.predicted_nanousd += candidate["cost_nano_usd"]
        baseline.billed_nanousd += row.cost_nanousd
        if candidate.get("quality") is not None:
            baseline.quality_sum += candidate["quality"]
            baseline.quality_turns += 1
    # Least cost of a next turn like this one: with less money left, the session cannot continue.
    cheapest = min((candidate["cost_nano_usd"] for candidate in candidates), default=None)
    key = (row.tenant_id, row.session_id)
    if key not in log.last or log.last[key][0] < row.turn:
        log.last[key] = (row.turn, row.remaining_after_nanousd, cheapest)


def _is_bankrupt(remaining_nanousd: int | None, cheapest_nanousd: int | None) -> bool:
    return remaining_nanousd is not None and cheapest_nanousd is not None and remaining_nanousd < cheapest_nanousd


def _model_rows(log: _Log) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "turns": tally.turns,
            **_money("spent", tally.spent_nanousd),
            "scored_turns": len(tally.scores),
            "mean_score": sum(tally.scores) / len(tally.scores) if tally.scores else None,
        }
        for name, tally in sorted(log.models.items(), key=lambda item: -item[1].spent_nanousd)
    ]


def _baseline_rows(log: _Log) -> list[dict[str, Any]]:
    if log.predicted_nanousd <= 0:
        return []
    scale = log.billed_nanousd / log.predicted_nanousd
    rows = []
    for name, baseline in log.baselines.items():
        missing = log.answered_turns - baseline.turns
        # Turns without this model among the candidates keep their actual cost.
        estimate = round(baseline.predicted_nanousd * scale) + log.billed_nanousd - baseline.billed_nanousd
        rows.append(
            {
                "always": name,
                **_money("estimated", estimate),
                **_money("saved", estimate - log.billed_nanousd),
                "saved_share": (estimate - log.billed_nanousd) / estimate if estimate > 0 else None,
                "predicted_quality": baseline.quality_sum / baseline.quality_turns if baseline.quality_turns else None,
                "turns_not_comparable": missing,
            }
        )
    return sorted(rows, key=lambda row: -int(row["estimated_nano_usd"]))


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
