"""Who may start: fair between tenants, bounded in number and time; in virtual time, on a processor that gets busy."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from gateway.api.places import STARTING, PlaceLimits, Places
from gateway.errors import GatewayError, Overloaded, RateLimited
from tests.harness.simulator import VirtualLoop

T = TypeVar("T")
TURN_S = 0.003
"""Processor time of one turn, of which there is one core: 333 turns a second and no more."""
REFUSAL_S = 0.0001
PROVIDER_S = 0.3


def simulated(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def test_waiting_tenants_take_turns_and_a_tenants_own_requests_keep_their_order() -> None:
    async def play() -> list[str]:
        places, started = Places(PlaceLimits(process=2, tenant=20, wait_s=10)), []

        async def turn(tenant: str, name: str) -> None:
            place = await places.take(tenant)
            started.append(name)
            await asyncio.sleep(0.1)
            places.give_back(place)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(turn("loud", f"loud{number}"))
            for tenant in ("b", "c"):
                group.create_task(turn(tenant, tenant))
        assert (places.active, places.waiting) == (0, 0)
        return started

    assert simulated(play()) == ["loud0", "loud1", "loud2", "b", "c", "loud3", "loud4", "loud5"]


def test_a_tenants_own_limit_is_429_at_once_and_nobody_elses() -> None:
    async def play() -> None:
        places = Places(PlaceLimits(process=10, tenant=2))
        first, _ = await places.take("a"), await places.take("a")
        with pytest.raises(RateLimited) as refused:
            await places.take("a")
        assert refused.value.headers["Retry-After"] == "1"
        await places.take("b")
        places.give_back(first)
        await places.take("a")

    simulated(play())


def test_a_wait_ends_in_503_when_its_time_is_up() -> None:
    async def play() -> float:
        places, loop = Places(PlaceLimits(process=1, tenant=1, wait_s=0.5)), asyncio.get_running_loop()
        first = await places.take("a")
        began_s = loop.time()
        with pytest.raises(Overloaded) as refused:
            await places.take("b")
        assert refused.value.headers["Retry-After"] == "1"
        places.give_back(first)
        await places.take("b")
        return loop.time() - began_s

    assert 0.5 <= simulated(play()) < 0.65


def test_who_leaves_while_waiting_leaves_no_place_behind() -> None:
    async def play() -> tuple[int, int]:
        places = Places(PlaceLimits(process=1, tenant=5))
        first = await places.take("a")
        leaving = [asyncio.create_task(places.take("b")) for _ in range(3)]
        await asyncio.sleep(0)
        leaving[0].cancel()
        places.give_back(first)  # reaches the second, which leaves before it can notice
        leaving[1].cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert leaving[2].done()
        assert leaving[2].exception() is None
        return places.active, places.waiting

    assert simulated(play()) == (1, 0)


@dataclass
class Seen:
    """What clients of one tenant saw, in seconds."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


async def offered(per_s: dict[str, float], seconds: float, places: Places) -> dict[str, Seen]:
    """An open loop of clients: they come whether or not the others are through."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    seen = {tenant: Seen() for tenant in per_s}

    async def turn(tenant: str, came_s: float) -> None:
        try:
            place = await places.take(tenant)
        except GatewayError:
            loop.pass_time(REFUSAL_S)
            seen[tenant].refused.append(loop.time() - came_s)
            return
        for _ in range(4):  # between its steps others have theirs
            loop.pass_time(TURN_S / 8)
            await asyncio.sleep(0)
        places.started(place)
        await asyncio.sleep(PROVIDER_S)
        loop.pass_time(TURN_S / 2)
        places.give_back(place)
        seen[tenant].answered.append(loop.time() - came_s)

    arrivals = sorted(
        (number / rate, tenant) for tenant, rate in per_s.items() for number in range(int(seconds * rate))
    )
    async with asyncio.TaskGroup() as group:
        for at_s, tenant in arrivals:
            if at_s > loop.time():
                await asyncio.sleep(at_s - loop.time())
            group.create_task(turn(tenant, at_s))
    return seen


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.95 * len(seconds))]


def test_ten_times_the_load_costs_a_tenth_of_the_answers_at_most_and_refusals_are_quick() -> None:
    async def play() -> Seen:
        places = Places(PlaceLimits(process=512, tenant=512, wait_s=2.0))
        return (await offered({"a": 3333}, 20.0, places))["a"]

    seen = simulated(play())
    # 60,000 refusals of .1 ms are a third of the core by themselves.
    possible = (20.0 - len(seen.refused) * REFUSAL_S) / TURN_S
    assert len(seen.answered) >= 0.9 * possible
    assert max(seen.answered) < PROVIDER_S + 2.0 + 0.5
    assert sorted(seen.refused)[int(0.98 * len(seen.refused))] < 0.1


def test_a_tenant_of_fifty_times_the_load_hardly_slows_the_others_and_takes_no_answer_from_them() -> None:
    calm = {"a": 20.0, "b": 20.0, "c": 20.0}

    async def play(per_s: dict[str, float]) -> dict[str, Seen]:
        return await offered(per_s, 20.0, Places(PlaceLimits(process=512, tenant=256, wait_s=2.0)))

    alone, crowded = simulated(play(calm)), simulated(play(calm | {"loud": 1000.0}))
    for tenant in calm:
        assert not crowded[tenant].refused
        assert p95(crowded[tenant].answered) < 1.75 * p95(alone[tenant].answered)
    assert len(crowded["loud"].answered) > 3000


def test_only_some_are_started_at_a_time_and_the_next_when_a_call_has_left() -> None:
    async def play() -> None:
        places = Places(PlaceLimits())
        taken = [await places.take("a") for _ in range(STARTING)]
        waiting = asyncio.create_task(places.take("b"))
        await asyncio.sleep(0)
        assert not waiting.done()
        places.started(taken[0])
        places.started(taken[0])  # a second attempt's call frees nothing more
        later = asyncio.create_task(places.take("b"))
        await asyncio.sleep(0)
        assert waiting.done()
        assert not later.done()
        places.give_back(taken[1])
        await later
        assert places.active == STARTING + 1

    simulated(play())


def test_one_pause_of_the_loop_refuses_nobody() -> None:
    async def play() -> Seen:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(2.0, loop.pass_time, 0.5)
        return (await offered({"a": 150.0}, 5.0, Places(PlaceLimits())))["a"]

    seen = simulated(play())
    assert (len(seen.answered), seen.refused) == (750, [])


def test_a_slow_start_is_no_pace_by_which_a_crowd_is_refused() -> None:
    """Before the connections are made one or two may start; a moment later the whole crowd does, in good time."""

    async def play() -> int:
        places = Places(PlaceLimits(process=512, tenant=512, wait_s=3.0))
        connected = asyncio.Event()

        async def turn(number: int) -> None:
            await asyncio.sleep(number * 0.001)
            place = await places.take("a")
            await (connected.wait() if number else asyncio.sleep(0.05))
            places.started(place)
            await asyncio.sleep(PROVIDER_S)
            places.give_back(place)

        async with asyncio.TaskGroup() as group:
            turns = [group.create_task(turn(number)) for number in range(300)]
            await asyncio.sleep(0.4)
            connected.set()
        return len(turns)

    assert simulated(play()) == 300
