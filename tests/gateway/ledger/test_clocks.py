"""Whose clock decides: gateways that are off by seconds, minutes or an hour, and clocks that step under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Connection, text

from gateway.accounts import tenants
from gateway.clock import SteadyClock
from gateway.database.database import Database
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Balance, IdempotencyClaim, InFlight, Refused, Reserve
from tests.harness.money import START_MS, TTL_MS, Bench, Hands, open_bench, replica, start_bench, stop_bench

HOUR_MS = 3_600_000
SKEWS_MS = [sign * skew for skew in (3_000, TTL_MS, HOUR_MS) for sign in (1, -1)]
SHA = b"\xaa" * 32


@asynccontextmanager
async def skewed(url: str, skew_ms: int) -> AsyncIterator[Bench]:
    """Another gateway on the same Postgres, whose own clock is off."""
    hands = Hands(START_MS + skew_ms)
    hands.numbers = count(1_000)
    bench = await start_bench(url, hands=hands, own_clock=True)
    try:
        yield bench
    finally:
        await stop_bench(bench)


class Wall:
    """A machine's clock: what has passed, and how far somebody set it off."""

    def __init__(self) -> None:
        self.passed_ms = 0
        self.set_off_ms = 0

    def elapsed(self) -> float:
        return self.passed_ms / 1000

    def __call__(self) -> float:
        return (START_MS + self.passed_ms + self.set_off_ms) / 1000


async def orphans(bench: Bench) -> int:
    query = text("SELECT count(*) FROM ledger_entries WHERE kind IN ('expire', 'orphan_post')")
    return int(await bench.database.read(lambda c: c.execute(query).scalar_one()))


# -- several gateways on one Postgres -------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
async def test_a_gateway_that_is_off_posts_no_live_call_as_an_orphan(postgres_url: str, skew_ms: int) -> None:
    async with open_bench(postgres_url) as right, skewed(postgres_url, skew_ms) as off:
        of_right = await right.held(600, ceiling=1_000, dispatch=100)
        of_off = await off.held(300, session="s2", ceiling=1_000, dispatch=100)
        for bench in (off, right):
            await bench.ledger.sweep()
        assert isinstance((await off.reserve(500))[1], Refused)
        assert (await right.ledger.settle(right.bill(of_right, 600))).kind == "settle"
        assert (await off.ledger.settle(off.bill(of_off, 20))).kind == "settle"
        assert await orphans(right) == 0


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
async def test_a_lease_runs_for_its_time_whoever_took_it_and_whoever_sweeps(postgres_url: str, skew_ms: int) -> None:
    async with open_bench(postgres_url) as right, skewed(postgres_url, skew_ms) as off:
        await right.held(600, dispatch=100)
        await off.held(600, dispatch=100)
        right.hands.at_ms = START_MS + TTL_MS - 1
        assert (await off.ledger.sweep()).orphaned == 0
        assert (await right.ledger.sweep()).orphaned == 0
        right.hands.at_ms = START_MS + TTL_MS
        assert (await off.ledger.sweep()).orphaned + (await right.ledger.sweep()).orphaned == 2


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
async def test_a_gateway_that_is_off_begins_no_window_anew_and_ends_none_late(postgres_url: str, skew_ms: int) -> None:
    boundary_ms = START_MS // HOUR_MS * HOUR_MS + HOUR_MS
    async with open_bench(postgres_url) as right, skewed(postgres_url, skew_ms) as off:
        await off.tenant("hourly", 1_000, window="1h")
        assert (await right.show("hourly")).reset_at_ms == boundary_ms
        await right.ledger.settle(right.bill(await right.held(900, tenant="hourly"), 900))
        assert (await off.ledger.sweep()).reset == 0
        assert isinstance((await off.reserve(200, tenant="hourly"))[1], Refused)
        right.hands.at_ms = boundary_ms
        await off.held(200, tenant="hourly")
        assert (await right.show("hourly")).balance == Balance(1_000, 200, 0)

        def rewindow(connection: Connection) -> tenants.Tenant:
            at_ms = off.hands.at_ms
            return tenants.patch_tenant(connection, "hourly", {"window": "2h"}, actor="test", now_ms=at_ms)

        changed = await off.database.write(rewindow)
        assert changed.reset_at_ms == (boundary_ms // (2 * HOUR_MS) + 1) * 2 * HOUR_MS


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
async def test_an_idempotency_key_is_kept_for_its_time_by_all_gateways(postgres_url: str, skew_ms: int) -> None:
    claim = IdempotencyClaim("k", SHA, 2_000)
    async with open_bench(postgres_url) as right, skewed(postgres_url, skew_ms) as off:
        first = await off.held(100, claim=claim)
        await off.ledger.sweep()
        assert (await right.reserve(100, claim=claim))[1] == InFlight(first.decision_id)
        assert await off.ledger.idempotent("acme", "k", SHA) == InFlight(first.decision_id)
        right.hands.at_ms = START_MS + 2_000
        assert await off.ledger.idempotent("acme", "k", SHA) is None
        second = await right.held(100, claim=claim)
        assert await off.ledger.idempotent("acme", "k", SHA) == InFlight(second.decision_id)


async def test_gateways_whose_clocks_run_apart_never_spend_money_twice(postgres_url: str) -> None:
    """One is an hour ahead, one an hour behind; all turns are live, and each posts its exact bill at last."""
    async with (
        open_bench(postgres_url, budget_nanousd=2_500) as right,
        skewed(postgres_url, HOUR_MS) as ahead,
        skewed(postgres_url, -HOUR_MS) as behind,
    ):
        ahead.hands.numbers, behind.hands.numbers = count(2_000), count(3_000)
        live: list[Any] = []
        for bench in (right, ahead, behind) * 40:
            op, outcome = await bench.reserve(500, session=f"s{len(live)}", dispatch=50)
            if not isinstance(outcome, Refused):
                live.append((bench, op))
            await ahead.ledger.sweep()
        assert len(live) == 5
        for bench, op in live:
            assert (await bench.ledger.settle(bench.bill(op, 500))).kind == "settle"
        assert (await right.show()).balance == Balance(2_500, 0, 2_500)


# -- the clock of the database itself ---------------------------------------------------------------------------------


@dataclass
class Sweeper:
    """A gateway that keeps the leases of its calls and sweeps, with elapsed time that only the test moves."""

    bench: Bench
    elapsed: Wall
    leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.bench.ledger, self.elapsed.elapsed, ttl_s=TTL_MS / 1000)

    async def carries(self, amount_nanousd: int, **more: Any) -> Reserve:
        op = await self.bench.held(amount_nanousd, dispatch=100, **more)
        self.leases.take(op.hold_id, 100)
        return op

    async def sweep(self) -> int:
        swept = await self.bench.ledger.sweep(carried=self.leases.carried, watch=self.leases.watch)
        return swept.orphaned + swept.expired


async def pass_time(seconds: int, one: Sweeper, *, of: Sequence[Sweeper], every_s: int = 10) -> int:
    """Let time pass for the database and all gateways; they renew and sweep; the number of holds swept."""
    swept = 0
    for _ in range(0, seconds, every_s):
        one.bench.hands.at_ms += every_s * 1_000
        one.elapsed.passed_ms += every_s * 1_000
        for gateway in of:
            await gateway.leases.beat()
        for gateway in of:
            swept += await gateway.sweep()
    return swept


@pytest.mark.parametrize("step_ms", SKEWS_MS)
async def test_a_step_of_the_database_s_clock_ends_no_live_call_of_another_gateway(
    postgres_url: str, step_ms: int
) -> None:
    wall = Wall()
    async with open_bench(postgres_url, budget_nanousd=1_000) as bench, replica(postgres_url, bench.hands) as other:
        one, two = Sweeper(bench, wall), Sweeper(other, wall)
        live = await one.carries(600)
        assert await pass_time(20, one, of=[one, two]) == 0
        bench.hands.at_ms += step_ms
        assert await two.sweep() == 0
        assert await pass_time(2 * TTL_MS // 1000, one, of=[one, two]) == 0
        assert isinstance((await other.reserve(500))[1], Refused)
        assert (await bench.ledger.settle(bench.bill(live, 600))).kind == "settle"
        assert (await bench.show()).balance == Balance(1_000, 0, 600)


@pytest.mark.parametrize("step_ms", [0, *SKEWS_MS])
async def test_a_dead_call_is_resolved_within_its_lease_and_two_sweeps_of_elapsed_time(
    postgres_url: str, step_ms: int
) -> None:
    """After a step back by more than a lease: within a lease of the step."""
    wall = Wall()
    async with open_bench(postgres_url) as bench, replica(postgres_url, bench.hands) as other:
        one, two = Sweeper(bench, wall), Sweeper(other, wall)
        await one.carries(600)
        assert await pass_time(20, one, of=[one, two]) == 0
        bench.hands.at_ms += step_ms
        late_s = min(-step_ms, TTL_MS) // 1000 if step_ms < 0 else 0
        assert await pass_time(TTL_MS // 1000 + late_s + 10, one, of=[two]) == 1


@pytest.mark.parametrize("step_ms", SKEWS_MS)
async def test_a_gateway_that_starts_after_the_step_looks_twice(postgres_url: str, step_ms: int) -> None:
    wall = Wall()
    async with open_bench(postgres_url) as bench:
        one = Sweeper(bench, wall)
        live, lost = await one.carries(600), await bench.held(300, dispatch=100)
        bench.hands.at_ms += TTL_MS + step_ms
        async with replica(postgres_url, bench.hands) as other:
            fresh = Sweeper(other, wall)
            assert await fresh.sweep() == 0
            assert await pass_time(2 * TTL_MS // 1000, one, of=[one, fresh]) == 1
        assert (await bench.ledger.settle(bench.bill(live, 60))).kind == "settle"
        assert (await bench.ledger.settle(bench.bill(lost, 60))).kind == "refund"


# -- the process that still carries a call ---------------------------------------------------------------------------


async def test_the_sweeper_leaves_the_holds_that_its_own_process_carries(database_url: str) -> None:
    """An outage kept their leases from being renewed; the process knows better than its leases."""
    async with open_bench(database_url) as bench:
        carried, lost = await bench.held(600, dispatch=100), await bench.held(600, dispatch=100)
        bench.hands.at_ms = START_MS + TTL_MS
        assert (await bench.ledger.sweep(1, carried={carried.hold_id})).orphaned == 1
        assert (await bench.ledger.settle(bench.bill(carried, 30))).kind == "settle"
        assert (await bench.ledger.settle(bench.bill(lost, 30))).kind == "refund"


# -- one process on SQLite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_ms", SKEWS_MS)
async def test_a_step_of_the_clock_ages_no_lease_window_or_key(sqlite_url: str, step_ms: int) -> None:
    wall = Wall()
    claim = IdempotencyClaim("k", SHA, 5_000)
    async with open_bench(sqlite_url) as bench:
        ledger = Ledger(bench.database, clock=SteadyClock(wall, wall.elapsed))
        await bench.tenant("hourly", 1_000, window="1h")
        op = bench.asking(600, tenant="hourly", dispatch=100, claim=claim)
        await ledger.reserve(op)
        wall.set_off_ms = step_ms
        swept = await ledger.sweep()
        assert (swept.orphaned, swept.reset, swept.forgotten) == (0, 0, 0)
        assert await ledger.idempotent("hourly", "k", SHA) == InFlight(op.decision_id)
        wall.passed_ms = TTL_MS - 1
        assert (await ledger.sweep()).orphaned == 0
        assert await ledger.idempotent("hourly", "k", SHA) is None
        wall.set_off_ms = 0
        wall.passed_ms = TTL_MS
        assert (await ledger.sweep()).orphaned == 1
        bench.hands.at_ms = START_MS + HOUR_MS


@pytest.mark.parametrize("step_ms", SKEWS_MS)
async def test_what_a_process_left_behind_is_resolved_however_the_clock_moved_until_the_next(
    sqlite_url: str, step_ms: int
) -> None:
    first = await start_bench(sqlite_url, serving=True, hands=Hands(START_MS))
    await first.tenant("acme", 1_000)
    await first.held(600, dispatch=100)
    await stop_bench(first)
    second = await start_bench(sqlite_url, serving=True, hands=Hands(START_MS + step_ms))
    try:
        assert (await second.ledger.sweep()).orphaned == 1
        second.hands.numbers = count(100)
        live = await second.held(600, dispatch=100)
        assert (await second.ledger.sweep()).orphaned == 0
        assert (await second.ledger.settle(second.bill(live, 7))).session.spent_nanousd == 107
    finally:
        await stop_bench(second)


async def test_beside_a_serving_process_no_lease_is_ended(sqlite_url: str) -> None:
    """Only who serves the file alone knows that nobody carries its calls."""
    async with open_bench(sqlite_url) as bench:
        await bench.held(600, dispatch=100)
        another = Database(sqlite_url)
        await another.start()
        ledger = Ledger(another, clock=bench.hands.clock)
        await ledger.start()
        assert (await ledger.sweep()).orphaned == 0
        await ledger.close()
        await another.close()


def test_a_steady_clock_starts_at_the_wall_and_goes_on_with_elapsed_time() -> None:
    wall = Wall()
    steady = SteadyClock(wall, wall.elapsed)
    wall.set_off_ms, wall.passed_ms = -HOUR_MS, 1_500
    assert steady() == (START_MS + 1_500) / 1000
