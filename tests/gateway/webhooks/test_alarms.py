"""Alarms beside budgets: a session that left its forecast, a policy that was rolled back; each told once."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import pytest
from sqlalchemy import event, insert, select, update

from gateway.database.database import Database, transaction
from gateway.database.tables import policies, sessions, tenants, webhook_events
from gateway.policies.registry import reject_policy
from gateway.webhooks.alarms import FORECAST_MS, MIN_REFERENCES, NEWS_MS, Alarms, upper_cost_nanousd
from tests.gateway.webhooks.test_delivery import Receiver, database, receiver, replica

__all__ = ["database", "receiver"]
NOW_MS = 10 * NEWS_MS
HOUR_MS = 3_600_000


def session(session_id: str, spent: int, updated_at_ms: int, **more: Any) -> dict[str, Any]:
    return {
        "tenant_id": "t", "session_id": session_id, "granted_nanousd": 10**9, "spent_nanousd": spent, "turns": 3,
        "created_at_ms": 0, "updated_at_ms": updated_at_ms,
    } | more  # fmt: skip


def bodies(url: str, about: str) -> list[dict[str, Any]]:
    with transaction(url) as connection:
        found = connection.execute(select(webhook_events.c.body).where(webhook_events.c.account == about)).scalars()
        return [orjson.loads(body) for body in found]


@pytest.mark.parametrize(("spent", "told"), [(1_000, 0), (1_001, 1)])
async def test_a_running_session_that_costs_more_than_its_forecast_is_told_once(
    database: Database, database_url: str, receiver: Receiver, spent: int, told: int
) -> None:
    with transaction(database_url) as connection:
        connection.execute(update(tenants).values(granted_nanousd=10**12))
        past = [session(f"past{n}", 1_000, NOW_MS - HOUR_MS, state="closed") for n in range(MIN_REFERENCES)]
        connection.execute(insert(sessions).values([*past]))
        connection.execute(insert(sessions).values(session("now", spent, NOW_MS - 1_000)))
    first = await replica(receiver.url, database, [NOW_MS / 1000])
    second = await replica(receiver.url, database, [NOW_MS / 1000], "b")
    await asyncio.gather(first.webhooks.look(), second.webhooks.look())
    await (await replica(receiver.url, database, [NOW_MS / 1000 + 60], "c")).webhooks.look()
    found = bodies(database_url, "forecast")
    assert [(body["type"], body["session_id"], body["forecast_p99_nano_usd"]) for body in found] == [
        ("session.left_forecast", "now", 1_000)
    ] * told


async def test_an_idle_session_and_a_child_leave_no_forecast(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    with transaction(database_url) as connection:
        past = [session(f"past{n}", 1_000, NOW_MS - HOUR_MS, state="closed") for n in range(MIN_REFERENCES)]
        connection.execute(insert(sessions).values([*past]))
        connection.execute(insert(sessions).values(session("idle", 9_000, NOW_MS - HOUR_MS)))
        child = session("child", 9_000, NOW_MS, parent_session_id="idle")
        connection.execute(insert(sessions).values(child))
    await (await replica(receiver.url, database, [NOW_MS / 1000])).webhooks.look()
    assert bodies(database_url, "forecast") == []


async def test_a_rollback_is_told_once_by_two_replicas_signed_and_delivered(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    with transaction(database_url) as connection:
        for name, at_ms in (("old", NOW_MS - 2 * NEWS_MS), ("new", NOW_MS - 1_000)):
            row = {"policy_id": name, "kind": "learned", "stage": "canary", "created_at_ms": 0, "staged_at_ms": 0}
            connection.execute(insert(policies).values(row))
            reject_policy(connection, name, actor="trial", now_ms=at_ms, note="worse")
    first = await replica(receiver.url, database, [NOW_MS / 1000])
    second = await replica(receiver.url, database, [NOW_MS / 1000], "b")
    await asyncio.gather(first.webhooks.look(), second.webhooks.look())
    async with aiohttp.ClientSession() as http:
        await first.webhooks.deliver(http)
        await second.webhooks.deliver(http)
    told = [orjson.loads(body) for headers, body in receiver.got if headers["X-Seqroute-Signature"].startswith("t=")]
    assert [(body["type"], body["policy_id"], body["note"]) for body in told] == [
        ("policy.rolled_back", "new", "worse")
    ]


def test_few_finished_sessions_are_no_forecast() -> None:
    assert upper_cost_nanousd([1] * (MIN_REFERENCES - 1)) is None
    assert upper_cost_nanousd(list(range(1, 201))) == 199


def test_a_tenants_sessions_are_read_once_in_a_while(sqlite_url: str) -> None:
    alarms, statements = Alarms(), []
    with transaction(sqlite_url) as connection:
        connection.execute(insert(sessions).values(session("now", 5, NOW_MS - 1_000)))
        event.listen(connection, "before_cursor_execute", lambda *told: statements.append(told[2]))
        for later_ms in (0, 2_000, FORECAST_MS):
            alarms.find(connection, since_ms=NOW_MS, at_ms=NOW_MS + later_ms, idle_ms=HOUR_MS)
    assert sum("ORDER BY sessions.updated_at_ms DESC" in statement for statement in statements) == 2
