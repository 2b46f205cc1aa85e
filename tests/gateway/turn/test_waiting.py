"""Turns that wait for held money: in order, one try at a time, and never for long."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from gateway.turn.waiting import LOOK_S, HeldMoney
from tests.harness.simulator import VirtualLoop

SESSION = ("acme", "s1")


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


async def stand(
    held: HeldMoney, name: str, tries: list[tuple[str, float]], succeeds_at: int, wait_s: float = 5
) -> bool:
    """A turn that gets its money at its `succeeds_at`-th try."""
    loop = asyncio.get_running_loop()
    with held.line(SESSION, wait_s) as place:
        while await place.called():
            tries.append((name, loop.time()))
            if sum(tried == name for tried, _ in tries) >= succeeds_at:
                return True
    return False


def test_freed_money_calls_the_first_and_whoever_got_some_calls_the_next() -> None:
    async def story() -> None:
        held, tries = HeldMoney(), list[tuple[str, float]]()
        turns = [asyncio.create_task(stand(held, name, tries, 1)) for name in "abc"]
        await asyncio.sleep(0)
        assert held.waiting == 3
        held.freed(SESSION)
        assert await asyncio.gather(*turns) == [True] * 3
        assert [name for name, _ in tries] == ["a", "b", "c"]
        assert asyncio.get_running_loop().time() == 0.0
        assert held.waiting == 0

    run(story())


def test_the_first_looks_by_itself_for_what_other_replicas_free() -> None:
    async def story() -> None:
        held, tries = HeldMoney(), list[tuple[str, float]]()
        assert await stand(held, "a", tries, 3)
        assert [round(at_s / LOOK_S) for _, at_s in tries] == [1, 2, 3]

    run(story())


def test_nobody_waits_longer_than_he_may_and_the_next_is_called_then() -> None:
    async def story() -> None:
        held, tries = HeldMoney(), list[tuple[str, float]]()
        first = asyncio.create_task(stand(held, "a", tries, 10**6, wait_s=1))
        second = asyncio.create_task(stand(held, "b", tries, 10**6, wait_s=2))
        assert not await first
        assert asyncio.get_running_loop().time() == 1.0
        assert not await second
        assert asyncio.get_running_loop().time() == 2.0
        assert {name for name, at_s in tries if at_s > 1} == {"b"}
        assert {name for name, at_s in tries if at_s < 1} == {"a"}

    run(story())


def test_a_turn_that_is_cancelled_in_the_line_calls_the_next() -> None:
    async def story() -> None:
        held, tries = HeldMoney(), list[tuple[str, float]]()
        first = asyncio.create_task(stand(held, "a", tries, 10**6))
        second = asyncio.create_task(stand(held, "b", tries, 1))
        await asyncio.sleep(0)
        first.cancel()
        assert await second
        assert asyncio.get_running_loop().time() == 0.0

    run(story())


def test_money_of_a_session_comes_back_to_its_tenant_too_and_to_no_other_session() -> None:
    async def story() -> None:
        held = HeldMoney()
        with held.line(("acme", ""), 5) as tenants, held.line(("acme", "s2"), 5) as others:
            held.freed(SESSION)
            assert await tenants.called()
            assert asyncio.get_running_loop().time() == 0.0
            assert await others.called()
            assert asyncio.get_running_loop().time() == LOOK_S

    run(story())


def test_a_turn_that_waits_is_told_of_and_a_crowd_is_counted() -> None:
    async def story() -> None:
        told: list[None] = []
        held = HeldMoney(on_wait=lambda: told.append(None))
        with held.arriving(SESSION), held.arriving(SESSION):
            assert held.company(SESSION) == 2
            with held.line(SESSION, 5):
                assert len(told) == 1
        assert held.company(SESSION) == 0

    run(story())
