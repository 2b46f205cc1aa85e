"""A client may leave at any moment. Whatever it was waiting for runs to its end, and nothing stays held for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from gateway.errors import LedgerUnavailable
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Balance, IdempotencyClaim, Reserved
from tests.harness.money import Bench, open_bench, until


async def cancelled_after(steps: int, turn: Coroutine[Any, Any, None]) -> bool:
    """Cancel a task after it was resumed `steps` times; False when it had ended before."""
    task = asyncio.create_task(turn)
    for _ in range(steps):
        await asyncio.sleep(0)
        if task.done():
            await task
            return False
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return True


async def nothing_held(bench: Bench, *, but_nanousd: int = 0) -> None:
    """The releases run in the background; wait for them."""
    await until(lambda: not bench.ledger._undoing, seconds=10)
    assert (await bench.show()).balance.reserved_nanousd == but_nanousd


async def test_a_cancelled_reservation_is_released_at_every_await(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        for steps in range(1, 400, 7):
            holder: list[object] = []

            async def turn(holder: list[object] = holder) -> None:
                holder.append(await bench.reserve(10))

            if not await cancelled_after(steps, turn()):
                break
        await nothing_held(bench, but_nanousd=10 if holder else 0)


async def test_a_cancelled_bill_is_posted_all_the_same(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        ops = [await bench.held(10) for _ in range(30)]

        async def settle(n: int) -> None:
            await bench.ledger.settle(bench.bill(ops[n], 4))

        for n in range(len(ops)):
            await cancelled_after(n % 10 + 1, settle(n))
        await bench.ledger.settle(bench.bill(await bench.held(0), 0))  # a tenant's operations keep their order
        await nothing_held(bench)
        assert (await bench.show()).balance == Balance(10**12, 0, 30 * 4)


async def test_two_hundred_cancelled_turns_leave_money_for_everyone_else(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        claims = [IdempotencyClaim(f"k{n}", b"\xaa" * 32, 10**6) for n in range(200)]
        tasks = [asyncio.create_task(bench.reserve(50, ceiling=1_000, claim=claim)) for claim in claims]
        await asyncio.sleep(0.002)
        for task in tasks:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        kept = sum(isinstance(answer, tuple) and isinstance(answer[1], Reserved) for answer in answers)
        await nothing_held(bench, but_nanousd=kept * 50)
        again = await asyncio.gather(*(bench.reserve(50) for _ in range(200)))
        assert sum(isinstance(outcome, Reserved) for _, outcome in again) == 20 - kept
        # The claims of those who left are free; a retry with the same key may run.
        for answer, claim in zip(answers, claims, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                assert await bench.ledger.idempotent("acme", claim.key, claim.body_sha256) is None


async def test_an_answer_that_comes_too_late_is_undone(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        hasty = Ledger(bench.database, clock=bench.hands.clock, answer_timeout_s=0.0)
        await hasty.start()
        with pytest.raises(LedgerUnavailable) as error:
            await hasty.reserve(bench.asking(10))
        assert error.value.headers["Retry-After"]
        await hasty.close()
        await nothing_held(bench)


async def test_a_cancelled_write_commits_or_not_but_never_half(database_url: str) -> None:
    async with open_bench(database_url) as bench:

        async def make(name: str) -> None:
            await bench.tenant(name, 5)

        for steps in range(1, 12):
            await cancelled_after(steps, make(f"t{steps}"))
        await bench.tenant("last", 5)


async def test_closing_waits_for_what_is_under_way(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(10)
        task = asyncio.create_task(bench.ledger.settle(bench.bill(op, 3)))
        await asyncio.sleep(0)
        task.cancel()
        await bench.ledger.close()
        await nothing_held(bench)
        assert (await bench.show()).balance.spent_nanousd == 3
