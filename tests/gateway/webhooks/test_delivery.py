"""Webhooks: one message for each crossing over replicas and restarts, signed, delivered to a real receiver."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from sqlalchemy import insert, select, update

from gateway.accounts.keys import set_key_budget
from gateway.accounts.tenants import grant_to_tenant
from gateway.config.settings import WebhookSettings
from gateway.config.values import Secret
from gateway.database.database import Database, transaction
from gateway.database.tables import keys, sessions, tenants, webhook_events
from gateway.decisions.refused_turns import RefusedTurns
from gateway.money import MAX_NANOUSD
from gateway.webhooks.delivery import CLAIM_MS, MAX_ATTEMPTS, Webhooks, claim, pause_s
from tests.harness.money import open_bench
from tests.harness.receiver import receiving

SECRET = Secret("whsec-4fT9kQ2mZ7")


@dataclass
class Receiver:
    """An HTTP server that answers what it is told to and keeps what it got."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def hook(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    async with receiving("POST", "/hook", made.hook) as url:
        made.url = url + "/hook"
        yield made


@dataclass
class Replica:
    webhooks: Webhooks
    sent: list[str]
    queued: list[int]


async def replica(url: str, database: Database, now: list[float], prefix: str = "a") -> Replica:
    numbers = itertools.count()
    sent: list[str] = []
    queued: list[int] = []
    webhooks = Webhooks(
        lambda: (WebhookSettings(url, SECRET),), database=database, clock=lambda: now[0], uniform=lambda: 1.0,
        new_id=lambda kind: f"{kind}_{prefix}{next(numbers)}", on_sent=sent.append, on_queue=queued.append,
    )  # fmt: skip
    return Replica(webhooks, sent, queued)


def spend(url: str, tenant: int, session: int) -> None:
    with transaction(url) as connection:
        connection.execute(update(tenants).values(spent_nanousd=tenant))
        connection.execute(update(sessions).values(spent_nanousd=session, updated_at_ms=1_000_000))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    with transaction(database_url) as connection:
        connection.execute(insert(tenants).values(tenant_id="t", name="acme", granted_nanousd=1_000, created_at_ms=0))
        connection.execute(
            insert(sessions).values(
                tenant_id="t", session_id="s", granted_nanousd=100, created_at_ms=0, updated_at_ms=1_000_000
            )
        )
    opened = Database(database_url)
    await opened.start()
    yield opened
    await opened.close()


async def test_each_crossing_is_told_once_by_two_replicas_and_after_a_restart(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    now = [1_000.0]
    first, second = await replica(receiver.url, database, now), await replica(receiver.url, database, now, "b")
    spend(database_url, 10, 49)
    assert await first.webhooks.look() == 0
    spend(database_url, 10, 85)
    assert await first.webhooks.look() + await second.webhooks.look() == 2
    restarted = await replica(receiver.url, database, now, "c")
    assert await restarted.webhooks.look() == 0
    async with aiohttp.ClientSession() as http:
        assert await first.webhooks.deliver(http) + await second.webhooks.deliver(http) == 2
        assert await second.webhooks.deliver(http) == 0
    told = sorted(web_body(body)["threshold_percent"] for _, body in receiver.got)
    assert told == [50, 80]
    spend(database_url, 1_000, 85)  # the tenant reaches all four thresholds at once
    assert await second.webhooks.look() == 4


async def test_a_key_s_crossings_are_told_once_by_two_replicas_and_after_a_restart(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    now = [1_000.0]
    with transaction(database_url) as connection:
        for name, has_budget, revoked_at_ms in (("own", 1, None), ("tenant-s", 0, None), ("gone", 1, 5)):
            connection.execute(
                insert(keys).values(
                    key_id=name, tenant_id="t", key_sha256=name.encode().ljust(32), key_prefix="sk-", created_at_ms=0,
                    granted_nanousd=100, spent_nanousd=96, has_budget=has_budget, revoked_at_ms=revoked_at_ms,
                )
            )  # fmt: skip
    first, second = await replica(receiver.url, database, now), await replica(receiver.url, database, now, "b")
    assert await first.webhooks.look() + await second.webhooks.look() == 3
    assert await (await replica(receiver.url, database, now, "c")).webhooks.look() == 0
    async with aiohttp.ClientSession() as http:
        assert await second.webhooks.deliver(http) + await first.webhooks.deliver(http) == 3
    told = [web_body(body) for _, body in receiver.got]
    assert sorted(each["threshold_percent"] for each in told) == [50, 80, 95]
    assert {(each["account"], each["account_id"], each["tenant_id"]) for each in told} == {("key", "own", "t")}
    with transaction(database_url) as connection:
        connection.execute(update(keys).where(keys.c.key_id == "own").values(spent_nanousd=100))
    assert await second.webhooks.look() == 1


async def test_a_raised_budget_makes_room_for_a_new_crossing(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    subject = await replica(receiver.url, database, [1_000.0])
    spend(database_url, 0, 60)
    assert await subject.webhooks.look() == 1
    with transaction(database_url) as connection:
        connection.execute(update(sessions).values(granted_nanousd=200))
    assert await subject.webhooks.look() == 0
    spend(database_url, 0, 100)
    assert await subject.webhooks.look() == 1


async def test_a_budget_that_is_as_good_as_none_does_not_end_the_looks(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    one = await replica(receiver.url, database, [1_000.0])
    with transaction(database_url) as connection:
        connection.execute(update(tenants).values(granted_nanousd=MAX_NANOUSD))
    spend(database_url, 10, 49)
    assert await one.webhooks.look() == 0
    spend(database_url, MAX_NANOUSD // 2, 50)
    assert await one.webhooks.look() == 2


async def test_messages_are_signed_over_their_time_and_body(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    subject = await replica(receiver.url, database, [1_234.0])
    spend(database_url, 0, 50)
    await subject.webhooks.look()
    async with aiohttp.ClientSession() as http:
        await subject.webhooks.deliver(http)
    ((headers, body),) = receiver.got
    expected = hmac.new(SECRET.reveal().encode(), b"1234." + body, hashlib.sha256).hexdigest()
    assert headers["X-Seqroute-Signature"] == f"t=1234,v1={expected}"
    assert headers["X-Seqroute-Event-Id"] == web_body(body)["id"]
    assert SECRET.reveal().encode() not in body


async def test_a_receiver_that_fails_is_tried_again_later_and_given_up_in_the_end(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    now = [1_000.0]
    subject = await replica(receiver.url, database, now)
    receiver.statuses = [500, 302] + [503] * 20
    spend(database_url, 0, 50)
    await subject.webhooks.look()
    async with aiohttp.ClientSession() as http:
        for attempt in range(MAX_ATTEMPTS):
            assert await subject.webhooks.deliver(http) == 0
            assert await subject.webhooks.deliver(http) == 0  # not due yet: nothing is sent
            assert len(receiver.got) == attempt + 1
            now[0] += pause_s(attempt, 1.0)
        await subject.webhooks.deliver(http)
    assert len(receiver.got) == MAX_ATTEMPTS
    assert subject.queued == [1] * (2 * MAX_ATTEMPTS - 2) + [0] * 3
    with transaction(database_url) as connection:
        (row,) = connection.execute(select(webhook_events)).mappings().all()
        assert (row["accepted"], row["done_at_ms"] is not None) == (0, True)


async def test_a_message_whose_sender_died_is_due_again(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    now = [1_000.0]
    subject = await replica(receiver.url, database, now)
    spend(database_url, 0, 50)
    await subject.webhooks.look()
    with transaction(database_url) as connection:
        assert len(claim(connection, 1_000_000)) == 1  # and its process dies here
    async with aiohttp.ClientSession() as http:
        assert await subject.webhooks.deliver(http) == 0
        now[0] += CLAIM_MS / 1000
        assert await subject.webhooks.deliver(http) == 1


def web_body(body: bytes) -> dict[str, Any]:
    made: dict[str, Any] = orjson.loads(body)
    return made


async def test_a_soft_budget_is_told_once_and_again_when_it_is_moved(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    now = [1_000.0]
    first, second = await replica(receiver.url, database, now), await replica(receiver.url, database, now, "b")

    def soften(nanousd: int) -> None:
        with transaction(database_url) as connection:
            connection.execute(update(tenants).values(soft_budget_nanousd=nanousd))

    soften(300)
    spend(database_url, 299, 0)
    assert await first.webhooks.look() == 0
    spend(database_url, 300, 0)
    assert await first.webhooks.look() + await second.webhooks.look() == 1
    soften(310)
    spend(database_url, 320, 0)
    assert await second.webhooks.look() == 1
    async with aiohttp.ClientSession() as http:
        assert await first.webhooks.deliver(http) == 2
    told = [web_body(body) for _, body in receiver.got]
    assert [(body["type"], body["account"], body["soft_budget_nano_usd"]) for body in told] == [
        ("budget.soft_limit", "tenant", 300),
        ("budget.soft_limit", "tenant", 310),
    ]


async def test_a_threshold_that_stays_crossed_is_not_told_again_when_a_budget_changes(
    database_url: str, receiver: Receiver
) -> None:
    """By what the ledger says was spent when the budget changed, with sub-agents and whatever came after it."""
    async with open_bench(database_url, budget_nanousd=1_000) as bench:
        now = [bench.hands.clock()]
        subject = await replica(receiver.url, bench.database, now)

        async def spent(nanousd: int, session: str = "s1", **terms: Any) -> None:
            op = await bench.held(nanousd, session=session, **terms)
            await bench.ledger.settle(bench.bill(op, nanousd))

        async def told(account: str) -> list[int]:
            now[0] += 1
            receiver.got.clear()
            await subject.webhooks.look()
            async with aiohttp.ClientSession() as http:
                await subject.webhooks.deliver(http)
            bodies = [web_body(body) for _, body in receiver.got]
            return sorted(body["threshold_percent"] for body in bodies if body["account"] == account)

        async def grant(nanousd: int) -> None:
            await bench.database.write(
                lambda c: grant_to_tenant(c, "acme", nanousd, actor="test", now_ms=bench.hands.at_ms)
            )

        await spent(50, ceiling=100)
        assert await told("session") == [50]
        await spent(32)  # 82 %, and no look before the budget is raised
        await spent(1, ceiling=110)  # 75 %
        assert await told("session") == []
        await spent(6)
        assert await told("session") == [80]
        await spent(1, ceiling=178)  # of which 89 were spent, the half
        assert await told("session") == []
        await spent(1, ceiling=300)  # 30 %
        await spent(70, session="child", parent="s1")
        await spent(1, ceiling=310)  # of which 161 were spent: the child had brought it above the half again
        assert await told("session") == [50]
        await spent(700, session="other", ceiling=700)  # 862 of the tenant's 1,000
        assert await told("tenant") == [50, 80]
        await grant(-50)
        assert await told("tenant") == []
        await grant(-50)
        assert await told("tenant") == [95]
        key = (await bench.key(budget_nanousd=40)).key_id
        await spent(30, session="keyed", key=key, ceiling=1_000)
        assert await told("key") == [50]
        await bench.database.write(lambda c: set_key_budget(c, key, 50, actor="test", now_ms=bench.hands.at_ms))
        assert await told("key") == []


async def told_by(replicas: Sequence[Replica], receiver: Receiver) -> list[Any]:
    """What the receiver gets when each of these gateways looks and delivers."""
    receiver.got.clear()
    for one in replicas:
        await one.webhooks.look()
        async with aiohttp.ClientSession() as http:
            await one.webhooks.deliver(http)
    return [web_body(body) for _, body in receiver.got]


async def test_a_session_whose_turn_is_refused_for_money_has_reached_its_budget_once_for_each_budget(
    database_url: str, receiver: Receiver
) -> None:
    async with open_bench(database_url, budget_nanousd=10_000) as bench:
        now, refused = [bench.hands.clock()], RefusedTurns(bench.hands.clock)
        subject, other = [await replica(receiver.url, bench.database, now, prefix) for prefix in "ab"]

        async def spent(nanousd: int, ceiling: int) -> None:
            op = await bench.held(nanousd, session="s1", ceiling=ceiling)
            await bench.ledger.settle(bench.bill(op, nanousd))

        async def told(refusals: int, code: str = "session_budget_exceeded") -> list[tuple[str, object]]:
            for _ in range(refusals):
                refused.add("acme", "s1", code)
            await refused.share(bench.database)
            now[0] += 1
            bodies = await told_by((subject, other), receiver)
            return [(body["type"], body.get("threshold_percent")) for body in bodies if body["account"] == "session"]

        await spent(91, ceiling=100)
        assert await told(0) == [("budget.threshold", 50), ("budget.threshold", 80)]
        assert await told(1, "tenant_budget_exceeded") == []
        assert await told(2) == [("budget.reached", None)]
        assert await told(1) == []
        bench.hands.at_ms += 1
        await spent(1, ceiling=110)
        assert await told(0) == []  # the refusals were before the raise
        assert await told(1) == [("budget.reached", None)]
        await spent(18, ceiling=110)
        assert ("budget.reached", None) not in await told(1)  # the threshold of 100 % says it


async def test_a_tenant_and_a_key_that_refuse_a_turn_have_reached_their_budget(
    database_url: str, receiver: Receiver
) -> None:
    async with open_bench(database_url, budget_nanousd=100) as bench:
        now, refused = [bench.hands.clock()], RefusedTurns(bench.hands.clock)
        subject, other = [await replica(receiver.url, bench.database, now, prefix) for prefix in "ab"]
        key, acme = ("key", (await bench.key(budget_nanousd=90)).key_id), ("tenant", "acme")

        async def told(*refusing: tuple[str, str]) -> list[tuple[str, str]]:
            for account in refusing:
                refused.add("acme", "", "tenant_budget_exceeded", account)
            await refused.share(bench.database)
            now[0] += 1
            return [(body["type"], body["account"]) for body in await told_by((subject, other), receiver)]

        assert await told(key) == [("budget.reached", "key")]
        assert await told(acme, key) == [("budget.reached", "tenant")]
        assert await told(acme) == []
        bench.hands.at_ms += 1
        await bench.database.write(lambda c: grant_to_tenant(c, "acme", 1, actor="test", now_ms=bench.hands.at_ms))
        assert await told() == []  # the refusals were before the raise
        assert await told(acme) == [("budget.reached", "tenant")]
