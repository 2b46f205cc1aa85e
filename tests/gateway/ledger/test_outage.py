"""The database goes away in every way it can: 503 with Retry-After in bounded time, one outcome, and back by itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import psycopg
import pytest
from sqlalchemy.engine import make_url

from gateway.errors import LedgerUnavailable
from gateway.ledger.postgres_batches import MAX_PER_QUEUE
from gateway.ledger.records import UnknownHold
from gateway.ledger.types import Balance, Reserved
from migrations.upgrade import upgrade
from tests.harness.faultproxy import FaultProxy, Way
from tests.harness.money import START_MS, TTL_MS, Bench, open_bench, start_bench, stop_bench, until
from tests.harness.postgres import PostgresServer

T = TypeVar("T")
ANSWER_S = 10.0


@pytest.fixture
async def proxied(postgres_url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A fault-injecting proxy before the database, and the URL that leads through it."""
    url = make_url(postgres_url)
    assert url.port is not None
    async with FaultProxy("127.0.0.1", url.port) as proxy:
        yield proxy, url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """A bound for a hang, far above what is expected: the test is about an end, not about speed."""
    return await asyncio.wait_for(awaitable, seconds)


async def until_it_works(attempt: Callable[[], Awaitable[T]], seconds: float = 5.0) -> T:
    """The gateway recovers by itself: try until it answers, at most as long as the contract allows."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await attempt()
            except LedgerUnavailable:
                await asyncio.sleep(0.05)


async def test_a_stopped_database_is_503_and_recovery_needs_no_restart(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    async with open_bench(url) as bench:
        held = await bench.held(100)
        postgres_server.stop()
        with pytest.raises(LedgerUnavailable) as refused:
            await within(ANSWER_S, bench.reserve(100))
        assert refused.value.headers["Retry-After"].isdigit()
        for question in (bench.session("s1"), bench.show(), bench.sweep(START_MS)):
            with pytest.raises(LedgerUnavailable):
                await within(ANSWER_S, question)
        # The bill that met the outage is kept, and posted exactly when the database is back.
        with pytest.raises(LedgerUnavailable):
            await within(ANSWER_S, bench.ledger.settle(bench.bill(held, 40)))
        assert bench.ledger.unresolved == 1
        postgres_server.start()
        await until_it_works(lambda: bench.reserve(7))
        await until(lambda: bench.ledger.unresolved == 0, seconds=5)
        assert (await bench.show()).balance == Balance(10**12, 7, 40)


async def test_a_database_that_is_down_at_the_start_is_waited_for(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    postgres_server.stop()
    bench = await start_bench(url, own_clock=True)
    try:
        with pytest.raises(LedgerUnavailable):
            await within(ANSWER_S, bench.tenant("acme"))
        with pytest.raises(LedgerUnavailable):
            await within(ANSWER_S, bench.reserve(1))
        postgres_server.start()
        await until_it_works(lambda: bench.tenant("acme"))
        assert isinstance((await until_it_works(lambda: bench.reserve(1)))[1], Reserved)
    finally:
        await stop_bench(bench)


async def test_a_crash_of_the_database_loses_no_acknowledged_turn(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    async with open_bench(url) as bench:
        acknowledged: list[int] = []
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                with suppress(LedgerUnavailable):
                    op, outcome = await bench.reserve(10, session=f"s{number}", dispatch=3)
                    assert isinstance(outcome, Reserved)
                    await bench.ledger.settle(bench.bill(op, number + 1))
                    acknowledged.append(number + 1)
                await asyncio.sleep(0.001)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for _ in range(3):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(postgres_server.stop)
            await asyncio.to_thread(postgres_server.start)
        await until_it_works(lambda: bench.reserve(0))
        stop.set()
        await within(60, asyncio.gather(*clients))
        await until(lambda: bench.ledger.unresolved == 0, seconds=10)
        await bench.sweep(START_MS + TTL_MS)
        # What was acknowledged is there to the last nano; what was not may be there too, but never twice.
        spent = (await bench.show()).balance.spent_nanousd
        assert spent >= sum(acknowledged) > 0


async def test_a_frozen_database_is_503_in_bounded_time_and_then_answers_again(postgres_server: PostgresServer) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    async with open_bench(url) as bench:
        await bench.held(100)
        postgres_server.freeze()
        try:
            with pytest.raises(LedgerUnavailable):
                await within(2 * ANSWER_S, bench.reserve(100, session="frozen"))
        finally:
            postgres_server.thaw()
        await until_it_works(lambda: bench.reserve(100))
        await bench.sweep(START_MS + TTL_MS)
        assert (await bench.show()).balance.reserved_nanousd == 0


async def test_a_locked_tenant_is_503_and_the_others_do_not_notice(postgres_url: str) -> None:
    async with open_bench(postgres_url) as bench:
        await bench.tenant("locked")
        await bench.held(1)
        with psycopg.connect(postgres_url) as blocker:
            blocker.execute("SELECT * FROM tenants WHERE tenant_id = 'locked' FOR UPDATE")
            stuck = [asyncio.create_task(bench.reserve(1, tenant="locked")) for _ in range(MAX_PER_QUEUE + 60)]
            await asyncio.sleep(0)
            outcomes = [await within(1, bench.reserve(1, session=f"s{n}")) for n in range(50)]
            assert all(isinstance(outcome, Reserved) for _, outcome in outcomes)
            refused = await within(ANSWER_S, asyncio.gather(*stuck, return_exceptions=True))
            assert {type(answer) for answer in refused} == {LedgerUnavailable}
        assert isinstance((await until_it_works(lambda: bench.reserve(1, tenant="locked")))[1], Reserved)


async def test_a_locked_session_takes_no_other_tenant_down_with_it(postgres_url: str) -> None:
    async with open_bench(postgres_url) as bench:
        names = [f"t{n}" for n in range(12)]
        for name in names:
            await bench.tenant(name)
        await bench.held(1)
        with psycopg.connect(postgres_url) as blocker:
            blocker.execute("SELECT * FROM sessions WHERE tenant_id = 'acme' FOR UPDATE")
            asked = [bench.reserve(1), *(bench.reserve(1, tenant=name) for name in names)]
            answers = await within(2 * ANSWER_S, asyncio.gather(*asked, return_exceptions=True))
            assert isinstance(answers[0], LedgerUnavailable)
            assert all(isinstance(answer, tuple) and isinstance(answer[1], Reserved) for answer in answers[1:])


async def test_a_schema_that_is_not_migrated_is_an_outage_not_a_crash(postgres_server: PostgresServer) -> None:
    bench = await start_bench(postgres_server.url("postgres"))
    try:
        with pytest.raises(LedgerUnavailable):
            await within(ANSWER_S, bench.reserve(1))
    finally:
        await stop_bench(bench)


async def test_a_server_that_became_a_standby_is_503_and_its_promotion_brings_service_back(
    postgres_server: PostgresServer,
) -> None:
    """A failover: the address leads to a server that may only be read. No balance of it decides anything."""
    url = postgres_server.url("postgres")
    upgrade(url)

    def become(mode: str) -> None:
        with psycopg.connect(url, autocommit=True) as operator:
            operator.execute(f"ALTER SYSTEM SET default_transaction_read_only = {mode}")
            operator.execute("SELECT pg_reload_conf()")

    async with open_bench(url) as bench:
        held = await bench.held(100)
        await asyncio.to_thread(become, "on")

        async def refused() -> bool:
            try:
                await within(ANSWER_S, bench.reserve(1))
            except LedgerUnavailable as error:
                return error.headers["Retry-After"].isdigit()
            return False

        async with asyncio.timeout(ANSWER_S):
            while not await refused():  # noqa: ASYNC110 - the reload of a server has no event here
                await asyncio.sleep(0.02)
        before = (await bench.show()).balance
        with pytest.raises(LedgerUnavailable):
            await within(ANSWER_S, bench.ledger.settle(bench.bill(held, 40)))
        await asyncio.to_thread(become, "off")
        await until_it_works(lambda: bench.reserve(7), seconds=ANSWER_S)
        await until(lambda: bench.ledger.unresolved == 0, seconds=ANSWER_S)
        balance = (await bench.show()).balance
        assert balance.spent_nanousd == 40
        assert balance.reserved_nanousd == before.reserved_nanousd - 100 + 7


# -- ambiguous commits --------------------------------------------------------------------------------------------


def once(direction: Way, marker: bytes) -> Callable[[Way, bytes], bool]:
    """Cut the connection at the first group: before the server sees it, or when its answer (the commit) comes back."""
    armed = done = False

    def loses(way: Way, data: bytes) -> bool:
        nonlocal armed, done
        armed = armed or (way == "request" and marker in data)
        if way != direction or not armed or done:
            return False
        done = True
        return True

    return loses


@pytest.mark.parametrize("direction", ["request", "reply"])
async def test_a_connection_that_dies_around_commit_leaves_exactly_one_outcome(
    proxied: tuple[FaultProxy, str], postgres_url: str, direction: Way
) -> None:
    proxy, url = proxied
    async with open_bench(url, budget_nanousd=1_000, clock_url=postgres_url) as bench:
        proxy.loses = once(direction, b"seqroute_apply")
        op, reserved = await within(ANSWER_S, bench.reserve(600, ceiling=800))
        assert reserved == Reserved(0, Balance(800, 600, 0), Balance(1_000, 600, 0))
        proxy.loses = once(direction, b"seqroute_apply")
        settled = await within(ANSWER_S, bench.ledger.settle(bench.bill(op, 700)))
        assert (settled.kind, settled.overage_nanousd, settled.session) == ("settle", 100, Balance(800, 0, 700, 100))
        other = await bench.held(50)
        proxy.loses = once(direction, b"seqroute_apply")
        released = await within(ANSWER_S, bench.ledger.release(bench.back(other)))
        assert released.kind == "release"


async def test_a_thousand_ambiguous_commits_double_nothing(proxied: tuple[FaultProxy, str], postgres_url: str) -> None:
    proxy, url = proxied
    dice = random.Random(20_260_418)

    def loses(way: Way, data: bytes) -> bool:
        return dice.random() < 0.06

    async with open_bench(url, clock_url=postgres_url) as bench:
        await bench.held(0)
        proxy.loses = loses
        billed: list[int] = []

        async def client(number: int) -> None:
            for turn in range(20):
                try:
                    op, outcome = await bench.reserve(10, session=f"s{number}", dispatch=5)
                except LedgerUnavailable:
                    continue
                assert isinstance(outcome, Reserved)
                billed.append(turn + 1)
                with suppress(LedgerUnavailable):
                    assert (await bench.ledger.settle(bench.bill(op, turn + 1))).kind == "settle"

        await within(120, asyncio.gather(*(client(number) for number in range(25))))
        proxy.heal()
        # What may have been committed without anybody hearing of it is released; no estimate of it is ever posted.
        await until(lambda: bench.ledger.unresolved == 0, seconds=20)
        await until_it_works(lambda: bench.sweep(START_MS + TTL_MS))
        assert (await bench.show()).balance == Balance(
            10**12, 0, sum(billed), sum(max(0, bill - 10) for bill in billed)
        )


async def test_a_wrong_hold_among_good_ones_is_told_so_in_a_group(postgres_url: str) -> None:
    async with open_bench(postgres_url) as bench:
        ops = [await bench.held(10) for _ in range(10)]
        answers = await asyncio.gather(
            *(bench.ledger.settle(bench.bill(op, 1)) for op in (*ops, bench.asking(1))), return_exceptions=True
        )
        assert isinstance(answers[-1], UnknownHold)
        assert (await bench.show()).balance.spent_nanousd == 10


async def test_a_restarted_gateway_settles_holds_it_does_not_remember(postgres_url: str) -> None:
    async with open_bench(postgres_url) as bench:
        ops = [await bench.held(10, session=f"s{n}") for n in range(10)]
        fresh: Bench = await start_bench(postgres_url, hands=bench.hands)
        try:
            answers = await asyncio.gather(*(fresh.ledger.settle(fresh.bill(op, 3)) for op in ops))
            assert {answer.kind for answer in answers} == {"settle"}
        finally:
            await stop_bench(fresh)
