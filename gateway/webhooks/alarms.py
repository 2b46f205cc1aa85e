"""Events beside budgets: a session that left its forecast, a policy that was rolled back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from gateway.database.tables import policy_events, sessions
from gateway.money import usd_string
from gateway.webhooks.crossings import LOOK_BACK_MS
from gateway.webhooks.outbox import WebhookEvent

NEWS_MS = 86_400_000
"""A rollback before the last day is no news to a target that was configured since."""
MIN_REFERENCES = 20
MAX_REFERENCES = 400
FORECAST_MS = 300_000
MAX_TENANTS = 10_000
FORECAST_SHARE = 0.99
"""A session leaves its forecast when it costs more than the finished ones did in this share of cases."""


class Alarms:
    """Finds the events.

    A tenant's forecast reads all its sessions, so it is kept for FORECAST_MS.
    """

    def __init__(self) -> None:
        self._upper_nanousd: dict[str, tuple[int, int | None]] = {}

    def find(self, connection: Connection, *, since_ms: int, at_ms: int, idle_ms: int) -> list[WebhookEvent]:
        """The events since `since_ms`, told or not; reads only."""
        earliest_ms = max(since_ms - LOOK_BACK_MS, at_ms - idle_ms)
        left = _left_forecast(connection, earliest_ms, lambda t: self._upper(connection, t, at_ms, idle_ms))
        return [*left, *_rolled_back(connection, max(since_ms - LOOK_BACK_MS, at_ms - NEWS_MS))]

    def _upper(self, connection: Connection, tenant_id: str, at_ms: int, idle_ms: int) -> int | None:
        until_ms, upper_nanousd = self._upper_nanousd.get(tenant_id, (0, None))
        if at_ms >= until_ms:
            if len(self._upper_nanousd) >= MAX_TENANTS:
                self._upper_nanousd.clear()
            upper_nanousd = _upper_of(connection, tenant_id, at_ms - idle_ms)
            self._upper_nanousd[tenant_id] = (at_ms + FORECAST_MS, upper_nanousd)
        return upper_nanousd


def upper_cost_nanousd(costs_nanousd: Sequence[int]) -> int | None:
    """The cost that the next session exceeds in 1 - FORECAST_SHARE of cases; None: too few."""
    if len(costs_nanousd) < MIN_REFERENCES:
        return None
    ordered = sorted(costs_nanousd)
    return ordered[min(len(ordered), math.ceil(FORECAST_SHARE * (len(ordered) + 1))) - 1]


def _left_forecast(connection: Connection, since_ms: int, upper_of: Callable[[str], int | None]) -> list[WebhookEvent]:
    """Open sessions that were used since, and have spent more than the forecast of their tenant's sessions."""
    s = sessions.c
    running = connection.execute(
        select(s.tenant_id, s.session_id, s.spent_nanousd, s.turns)
        .where(s.updated_at_ms >= since_ms, s.state != "closed", s.spent_nanousd > 0)
        .where(s.parent_session_id.is_(None))
    ).all()
    most = {tenant_id: upper_of(tenant_id) for tenant_id in {row.tenant_id for row in running}}
    events = []
    for row in running:
        upper_nanousd = most[row.tenant_id]
        if upper_nanousd is None or row.spent_nanousd <= upper_nanousd:
            continue
        body = {
            "type": "session.left_forecast",
            "session_id": row.session_id,
            "tenant_id": row.tenant_id,
            "turns": row.turns,
            "spent_nano_usd": row.spent_nanousd,
            "spent_usd": usd_string(row.spent_nanousd),
            "forecast_p99_nano_usd": upper_nanousd,
            "forecast_p99_usd": usd_string(upper_nanousd),
        }
        events.append(WebhookEvent("forecast", f"{row.tenant_id}/{row.session_id}", 99, body))
    return events


def _upper_of(connection: Connection, tenant_id: str, idle_before_ms: int) -> int | None:
    """The forecast of a whole session, from the tenant's newest ones that are closed or idle."""
    s = sessions.c
    finished = (
        select(s.spent_nanousd)
        .where(s.tenant_id == tenant_id, s.turns > 0, s.parent_session_id.is_(None))
        .where((s.state == "closed") | (s.updated_at_ms < idle_before_ms))
        .order_by(s.updated_at_ms.desc())
        .limit(MAX_REFERENCES)
    )
    return upper_cost_nanousd(list(connection.execute(finished).scalars()))


def _rolled_back(connection: Connection, since_ms: int) -> list[WebhookEvent]:
    e = policy_events.c
    found = connection.execute(
        select(policy_events).where(e.action == "rollback", e.created_at_ms >= since_ms)
    ).mappings()
    return [
        WebhookEvent(
            "policy",
            row["policy_id"],
            row["event_id"],
            {
                "type": "policy.rolled_back",
                "policy_id": row["policy_id"],
                "actor": row["actor"],
                "note": row["note"],
                "rolled_back_at_ms": row["created_at_ms"],
            },
        )
        for row in found
    ]
