"""A late exact bill below the sweeper's estimate: the difference is given back, by an entry of its own, once."""

from __future__ import annotations

import pytest

from gateway.accounts.keys import get_key
from gateway.catalog.usage import UsageSource
from gateway.ledger.types import Balance
from tests.harness.ledger_rows import list_entries
from tests.harness.money import START_MS, TTL_MS, Bench, open_bench

DAY_MS = 24 * 3600 * 1000


async def entries(bench: Bench, kind: str) -> list[tuple[str, int]]:
    found = await bench.database.read(list_entries)
    return [(entry.scope, entry.amount_nanousd) for entry in found if entry.kind == kind]


async def test_what_was_posted_beyond_the_exact_bill_comes_back(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        key = await bench.key(budget_nanousd=700)
        op = await bench.held(600, ceiling=1_000, dispatch=100, key=key.key_id)
        await bench.sweep(START_MS + TTL_MS)
        late = await bench.ledger.settle(bench.bill(op, 30))
        assert (late.kind, late.overage_nanousd, late.session) == ("refund", 0, Balance(1_000, 0, 30))
        assert late.tenant.spent_nanousd == 30
        assert await entries(bench, "refund") == [("turn", 70)]
        charged = await bench.database.read(lambda connection: get_key(connection, key.key_id))
        assert charged.balance == Balance(700, 0, 30)
        assert (await bench.ledger.settle(bench.bill(op, 10))).kind == "already"
        assert (await bench.ledger.settle(bench.bill(op, 500))).kind == "already"


async def test_a_call_that_cost_nothing_after_all_gives_the_whole_estimate_back(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000, dispatch=100)
        await bench.sweep(START_MS + TTL_MS)
        late = await bench.ledger.release(bench.back(op))
        assert (late.kind, late.session) == ("refund", Balance(1_000, 0, 0))
        assert (await bench.ledger.release(bench.back(op))).kind == "already"


@pytest.mark.parametrize(("source", "spent_nanousd"), [("reported", 30), ("estimated", 100)])
async def test_only_what_the_provider_reported_is_better_than_the_sweeper_s_estimate(
    database_url: str, source: UsageSource, spent_nanousd: int
) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(600, ceiling=1_000, dispatch=100)
        await bench.sweep(START_MS + TTL_MS)
        late = await bench.ledger.settle(bench.bill(op, 30, source))
        assert late.session == Balance(1_000, 0, spent_nanousd)


async def test_a_window_that_began_anew_is_not_given_what_the_one_before_spent(database_url: str) -> None:
    """Else a tenant could spend the same money in two windows; its session, which has no window, gets it back."""
    async with open_bench(database_url) as bench:
        await bench.tenant("daily", 1_000, window="1d")
        monthly = await bench.key("daily", budget_nanousd=900, window="1mo")
        op = await bench.held(600, tenant="daily", ceiling=1_000, dispatch=400, key=monthly.key_id)
        await bench.sweep(START_MS + DAY_MS)
        other = await bench.held(500, tenant="daily", session="other")
        await bench.ledger.settle(bench.bill(other, 500))
        late = await bench.ledger.settle(bench.bill(op, 100))
        assert (late.kind, late.session) == ("refund", Balance(1_000, 0, 100))
        assert late.tenant == Balance(1_000, 0, 500)
        charged = await bench.database.read(lambda connection: get_key(connection, monthly.key_id))
        assert charged.balance == Balance(900, 0, 100)
        assert await entries(bench, "refund") == [("session", 300), ("key", 300)]


async def test_a_key_s_window_that_began_anew_is_not_given_it_either(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        daily = await bench.key(budget_nanousd=900, window="1d")
        op = await bench.held(600, ceiling=1_000, dispatch=400, key=daily.key_id)
        await bench.sweep(START_MS + DAY_MS)
        assert (await bench.ledger.settle(bench.bill(op, 100))).kind == "refund"
        charged = await bench.database.read(lambda connection: get_key(connection, daily.key_id))
        assert charged.balance == Balance(900, 0, 0)
        assert (await bench.show()).balance.spent_nanousd == 100
        assert await entries(bench, "refund") == [("session", 300), ("tenant", 300)]
