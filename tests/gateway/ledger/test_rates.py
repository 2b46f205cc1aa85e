"""Rate limits: no minute admits more than the limit, over replicas, and what is refused holds nothing."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import RateQuota
from gateway.ledger.rates import (
    WINDOW_S,
    AccountLimits,
    Counted,
    Limited,
    TurnLimits,
    counted,
    duration,
    exceeded,
    limited,
    tokens_to_count,
    wait_for_room,
)
from gateway.ledger.types import Refused, Release, Reserved
from tests.harness.money import START_MS, Bench, open_bench, race, replica

MINUTE_MS = 60_000


def under(tokens: int = 0, *, tenant: RateQuota | None = None, key: RateQuota | None = None) -> TurnLimits:
    accounts = [AccountLimits("tenant", "acme", tenant)] if tenant else []
    accounts += [AccountLimits("key", "key_9", key)] if key else []
    return TurnLimits(tuple(accounts), "key_9", tokens)


async def tries(bench: Bench, limits: TurnLimits, many: int) -> list[object]:
    return [(await bench.reserve(1, limits=limits))[1] for _ in range(many)]


async def test_the_turn_above_the_limit_is_refused_before_any_money(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=100) as bench:
        limits = under(tenant=RateQuota(rpm=2))
        first, second, third = await tries(bench, limits, 3)
        assert isinstance(first, Reserved)
        assert isinstance(second, Reserved)
        assert first.reading is not None
        assert second.reading is not None
        assert (first.reading.remaining_requests, second.reading.remaining_requests) == (1, 0)
        assert isinstance(third, Limited)
        assert (third.account, third.resource, third.limit, third.retry_after_s) == ("tenant", "requests", 2, WINDOW_S)
        assert (await bench.show()).balance.reserved_nanousd == 2
        # Nothing is counted of a turn for which there is no money.
        _, poor = await bench.reserve(99, limits=under(tenant=RateQuota(rpm=3)))
        assert isinstance(poor, Refused)
        _, fits = await bench.reserve(1, limits=under(tenant=RateQuota(rpm=3)))
        assert isinstance(fits, Reserved)


async def test_room_comes_back_when_the_refusal_said(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        limits = under(tenant=RateQuota(rpm=2))
        await bench.held(1, limits=limits)
        bench.hands.at_ms += 20_000
        await bench.held(1, limits=limits)
        bench.hands.at_ms += 15_000
        _, refused = await bench.reserve(1, limits=limits)
        assert isinstance(refused, Limited)
        assert refused.retry_after_s == WINDOW_S - 35
        bench.hands.at_ms += refused.retry_after_s * 1000 - 1000
        assert isinstance((await bench.reserve(1, limits=limits))[1], Limited)
        bench.hands.at_ms += 1000
        assert isinstance((await bench.reserve(1, limits=limits))[1], Reserved)
        assert isinstance((await bench.reserve(1, limits=limits))[1], Limited)


async def test_tokens_are_corrected_to_the_bill(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        quota = RateQuota(tpm=1_000)
        small = await bench.held(10, limits=under(800, tenant=quota))
        assert isinstance((await bench.reserve(10, limits=under(300, tenant=quota)))[1], Limited)
        await bench.ledger.settle(bench.bill(small, 5, tokens=100))
        large = await bench.held(10, limits=under(300, tenant=quota))
        bench.hands.at_ms += 30_000
        # More than foreseen counts when it is known: it leaves the window later than the turn's beginning.
        await bench.ledger.settle(bench.bill(large, 5, tokens=900))
        _, refused = await bench.reserve(10, limits=under(100, tenant=quota))
        assert isinstance(refused, Limited)
        assert (refused.resource, refused.reading.remaining_tokens) == ("tokens", 0)
        bench.hands.at_ms += WINDOW_S * 1000 - 30_000
        _, admitted = await bench.reserve(10, limits=under(400, tenant=quota))
        assert isinstance(admitted, Reserved)
        assert admitted.reading is not None
        assert admitted.reading.remaining_tokens == 0


async def test_a_released_turn_gives_its_tokens_back_and_stays_a_request(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        quota = RateQuota(rpm=3, tpm=1_000)
        op = await bench.held(10, limits=under(900, tenant=quota))
        await bench.ledger.release(Release(op.hold_id))
        again = bench.asking(10, decision=op.decision_id, limits=under(900, tenant=quota))
        assert isinstance(await bench.ledger.reserve(again), Reserved)  # a further attempt of the same turn
        _, admitted = await bench.reserve(10, limits=under(100, tenant=quota))
        assert isinstance(admitted, Reserved)
        assert admitted.reading is not None
        assert (admitted.reading.remaining_requests, admitted.reading.remaining_tokens) == (1, 0)


async def test_turns_under_way_are_counted_until_their_hold_ends(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        limits = under(tenant=RateQuota(parallel=2), key=RateQuota(parallel=3))
        outcomes = await race(*(bench.reserve(1, session=f"s{n}", limits=limits) for n in range(8)))
        held = [op for op, outcome in outcomes if isinstance(outcome, Reserved)]
        refused = [outcome for _, outcome in outcomes if isinstance(outcome, Limited)]
        assert len(held) == 2
        assert {(each.account, each.resource, each.retry_after_s) for each in refused} == {("tenant", "parallel", 1)}
        await bench.ledger.settle(bench.bill(held[0], 1))
        await bench.ledger.release(Release(held[1].hold_id))
        for _ in range(2):
            await bench.held(1, limits=limits)
        assert isinstance((await bench.reserve(1, limits=limits))[1], Limited)
        # A process that died does not keep its places until it returns.
        await bench.sweep(bench.hands.at_ms + MINUTE_MS)
        assert isinstance((await bench.reserve(1, limits=limits))[1], Reserved)


async def test_a_key_is_limited_within_its_tenant_and_over_tenants(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.tenant("other")
        limits = under(tenant=RateQuota(rpm=10), key=RateQuota(rpm=2))
        await bench.held(1, limits=limits)
        elsewhere = TurnLimits((AccountLimits("tenant", "other", RateQuota(rpm=10)), limits.accounts[1]), "key_9", 0)
        await bench.held(1, tenant="other", limits=elsewhere)
        for tenant, each in (("acme", limits), ("other", elsewhere)):
            _, refused = await bench.reserve(1, tenant=tenant, limits=each)
            assert isinstance(refused, Limited)
            assert refused.account == "key"
        _, admitted = await bench.reserve(1, limits=under(tenant=RateQuota(rpm=10)))
        assert isinstance(admitted, Reserved)
        assert admitted.reading is not None
        assert admitted.reading.remaining_requests == 8


@pytest.mark.parametrize("seed", range(4))
async def test_no_minute_admits_more_than_the_limit_whatever_the_order(database_url: str, seed: int) -> None:
    """Random turns, sizes, bills and pauses, on Postgres through two replicas at once."""
    draw = random.Random(seed)
    quota = RateQuota(rpm=draw.randint(1, 8), tpm=draw.randint(50, 400))
    admitted: list[tuple[int, int]] = []
    refused = 0
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_bench(database_url))
        benches = [first]
        if database_url.startswith("postgresql"):
            benches.append(await stack.enter_async_context(replica(database_url, first.hands)))
        for _ in range(40):
            first.hands.at_ms += draw.choice((0, 1, 999, 1_000, 7_321, 20_000, 59_999, 60_000))
            at_ms = first.hands.at_ms
            sizes = [draw.randint(1, 120) for _ in range(draw.randint(1, 4))]
            outcomes = await race(
                *(
                    draw.choice(benches).reserve(1, session=f"s{n}", limits=under(size, tenant=quota))
                    for n, size in enumerate(sizes)
                )
            )
            for (op, outcome), size in zip(outcomes, sizes, strict=True):
                if isinstance(outcome, Limited):
                    refused += 1
                    continue
                assert isinstance(outcome, Reserved)
                admitted.append((at_ms, size))
                await draw.choice(benches).ledger.settle(first.bill(op, 1, tokens=size))
    assert admitted
    assert refused
    for start_ms, _ in admitted:
        window = [size for at_ms, size in admitted if start_ms <= at_ms < start_ms + MINUTE_MS]
        assert len(window) <= (quota.rpm or 0)
        assert sum(window) <= (quota.tpm or 0)


async def test_replicas_that_race_admit_exactly_the_limit(postgres_url: str) -> None:
    async with open_bench(postgres_url) as one, replica(postgres_url, one.hands) as two:
        limits = under(tenant=RateQuota(rpm=25), key=RateQuota(rpm=40))
        outcomes = await race(*((one, two)[n % 2].reserve(1, session=f"s{n}", limits=limits) for n in range(120)))
        assert sum(isinstance(outcome, Reserved) for _, outcome in outcomes) == 25


def test_a_refusal_names_the_tightest_wait() -> None:
    account = AccountLimits("tenant", "acme", RateQuota(tpm=100))
    turn = TurnLimits((account,), "key_9", 50)
    seconds = [(10, 1, 40), (20, 1, 30), (30, 1, 30)]
    assert exceeded(account.quota, counted(seconds), 0, 50) == "tokens"
    assert limited(turn, account, "tokens", seconds, 40).retry_after_s == 20 + WINDOW_S - 40
    assert limited(replace(turn, tokens=101), account, "tokens", seconds, 40).never


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 50)), max_size=20),
    st.integers(1, 200),
)
def test_after_the_wait_there_is_room(seconds: list[tuple[int, int]], excess: int) -> None:
    now_s = 60
    wait_s = wait_for_room(seconds, excess, now_s)
    left = sum(amount for second, amount in seconds if second > now_s + wait_s - WINDOW_S)
    total = sum(amount for _, amount in seconds)
    assert 1 <= wait_s <= WINDOW_S
    assert total - left >= min(excess, total)


@given(st.integers(0, 10**6), st.floats(0, 10**6), st.integers(1, 10**6))
def test_only_a_prompt_beyond_the_limit_can_never_be_admitted(prompt: int, answer: float, tpm: int) -> None:
    tokens = tokens_to_count(prompt, answer, [RateQuota(tpm=tpm), RateQuota(rpm=1)])
    assert (exceeded(RateQuota(tpm=tpm), Counted(0, 0, None), 0, tokens) is None) == (prompt <= tpm)


def test_durations_are_written_as_openai_writes_them() -> None:
    assert [duration(seconds) for seconds in (0, 59, 61, 120)] == ["0s", "59s", "1m1s", "2m0s"]


def test_the_test_clock_begins_on_a_whole_second() -> None:
    assert START_MS % 1000 == 0
