"""Who may start: fair between tenants, bounded in number and time; in virtual time, on a processor that gets busy."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from gateway.api.admission import patience_s
from gateway.api.slots import STANDING_SHARE, STARTING, STARTING_IN_A_CROWD, SlotLimits, Slots
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
        slots, started = Slots(SlotLimits(process=2, tenant=20, wait_s=10)), []

        async def turn(tenant: str, name: str) -> None:
            slot = await slots.take(tenant)
            started.append(name)
            await asyncio.sleep(0.1)
            slots.give_back(slot)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(turn("loud", f"loud{number}"))
            for tenant in ("b", "c"):
                group.create_task(turn(tenant, tenant))
        assert (slots.active, slots.waiting) == (0, 0)
        return started

    assert simulated(play()) == ["loud0", "loud1", "loud2", "b", "c", "loud3", "loud4", "loud5"]


def test_requests_let_through_at_one_moment_are_counted_before_they_take_their_places() -> None:
    async def play() -> list[bool]:
        slots = Slots(SlotLimits(process=10, tenant=4))
        await slots.take("a")
        at_once = [slots.foresee("a") is None for _ in range(5)]
        await asyncio.sleep(0.01)  # none of them came
        return [*at_once, slots.foresee("a") is None, slots.foresee("b") is None]

    assert simulated(play()) == [True, True, True, False, False, True, True]


def test_a_tenants_own_limit_is_429_at_once_and_nobody_elses() -> None:
    async def play() -> None:
        slots = Slots(SlotLimits(process=10, tenant=2))
        first, _ = await slots.take("a"), await slots.take("a")
        with pytest.raises(RateLimited) as refused:
            await slots.take("a")
        assert refused.value.headers["Retry-After"] == "1"
        await slots.take("b")
        slots.give_back(first)
        await slots.take("a")

    simulated(play())


def test_a_wait_ends_in_503_when_its_time_is_up() -> None:
    async def play() -> float:
        slots, loop = Slots(SlotLimits(process=1, tenant=1, wait_s=0.5)), asyncio.get_running_loop()
        first = await slots.take("a")
        began_s = loop.time()
        with pytest.raises(Overloaded) as refused:
            await slots.take("b")
        assert refused.value.headers["Retry-After"] == "1"
        slots.give_back(first)
        await slots.take("b")
        return loop.time() - began_s

    assert 0.5 <= simulated(play()) < 0.65


def test_who_leaves_while_waiting_leaves_no_place_behind() -> None:
    async def play() -> tuple[int, int]:
        slots = Slots(SlotLimits(process=1, tenant=5))
        first = await slots.take("a")
        leaving = [asyncio.create_task(slots.take("b")) for _ in range(3)]
        await asyncio.sleep(0)
        leaving[0].cancel()
        slots.give_back(first)  # reaches the second, which leaves before it can notice
        leaving[1].cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        assert leaving[2].done()
        assert leaving[2].exception() is None
        return slots.active, slots.waiting

    assert simulated(play()) == (1, 0)


@dataclass
class Seen:
    """What clients of one tenant saw, in seconds."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


async def offered(per_s: dict[str, float], seconds: float, slots: Slots) -> dict[str, Seen]:
    """An open loop of clients: they come whether or not the others are through."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    seen = {tenant: Seen() for tenant in per_s}

    async def turn(tenant: str, came_s: float) -> None:
        try:
            slot = await slots.take(tenant)
        except GatewayError:
            loop.pass_time(REFUSAL_S)
            seen[tenant].refused.append(loop.time() - came_s)
            return
        for _ in range(4):  # between its steps others have theirs
            loop.pass_time(TURN_S / 8)
            await asyncio.sleep(0)
        slots.started(slot)
        await asyncio.sleep(PROVIDER_S)
        loop.pass_time(TURN_S / 2)
        slots.give_back(slot)
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


def quantile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(share * len(seconds))]


def test_ten_times_the_load_costs_a_tenth_of_the_answers_at_most_and_refusals_are_quick() -> None:
    async def play() -> Seen:
        slots = Slots(SlotLimits(process=512, tenant=512, wait_s=2.0))
        return (await offered({"a": 3333}, 20.0, slots))["a"]

    seen = simulated(play())
    # 60,000 refusals of .1 ms are a third of the core by themselves.
    possible = (20.0 - len(seen.refused) * REFUSAL_S) / TURN_S
    assert len(seen.answered) >= 0.9 * possible
    assert max(seen.answered) < PROVIDER_S + 2.0 + 0.5
    assert quantile(seen.refused, 0.98) < 0.1
    # Once the queue stands, nobody who is answered waits for long.
    assert quantile(seen.answered, 0.5) < PROVIDER_S + 2.0 * STANDING_SHARE + 0.2


def test_a_burst_may_wait_for_longer_than_a_queue_that_stands() -> None:
    async def play() -> Seen:
        return (await offered({"a": 3333}, 0.1, Slots(SlotLimits(512, 512, wait_s=3.0))))["a"]

    burst = simulated(play())
    assert (len(burst.answered), burst.refused) == (333, [])
    assert max(burst.answered) > PROVIDER_S + 3.0 * STANDING_SHARE + 0.3


def test_a_request_waits_for_half_of_its_client_s_time_at_most() -> None:
    async def play() -> list[float]:
        slots, loop = Slots(SlotLimits(process=1, tenant=50, wait_s=5.0)), asyncio.get_running_loop()
        await slots.take("a")
        waited = []
        for patience in (1.0, 4.0, 600.0):
            began_s = loop.time()
            with pytest.raises(Overloaded):
                await slots.take("b", patience)
            waited.append(loop.time() - began_s)
        return waited

    short, longer, longest = simulated(play())
    assert 0.5 <= short < 0.65
    assert 2.0 <= longer < 2.15
    assert 5.0 <= longest < 5.15


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-stainless-read-timeout": "20"}, 20.0), ({"x-stainless-timeout": "7.5"}, 7.5), ({}, math.inf),
        ({"x-stainless-read-timeout": "None", "x-stainless-timeout": "9"}, 9.0),
        ({"x-stainless-timeout": "-1"}, math.inf), ({"x-stainless-timeout": "nan"}, math.inf),
    ],
)  # fmt: skip
def test_the_sdks_say_how_long_they_wait(headers: dict[str, str], seconds: float) -> None:
    assert patience_s(headers) == seconds


@pytest.mark.parametrize("turn_s", [0.003, 0.005])
def test_a_tenant_of_fifty_times_the_load_hardly_slows_the_others_and_takes_no_answer_from_them(
    monkeypatch: pytest.MonkeyPatch, turn_s: float
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TURN_S", turn_s)
    calm = {"a": 10.0, "b": 10.0, "c": 10.0}

    async def play(per_s: dict[str, float]) -> dict[str, Seen]:
        return await offered(per_s, 15.0, Slots(SlotLimits(process=512, tenant=256, wait_s=3.0)))

    alone, crowded = simulated(play(calm)), simulated(play(calm | {"loud": 500.0}))
    assert not [tenant for tenant in calm if crowded[tenant].refused]
    before, beside = ([took for tenant in calm for took in seen[tenant].answered] for seen in (alone, crowded))
    assert quantile(beside, 0.99) < 1.5 * quantile(before, 0.99)
    assert len(crowded["loud"].answered) > 0.75 * 15.0 / turn_s


def test_only_some_are_started_at_a_time_and_the_next_when_a_call_has_left() -> None:
    async def play() -> None:
        slots = Slots(SlotLimits())
        taken = [await slots.take("a") for _ in range(STARTING)]
        waiting = asyncio.create_task(slots.take("b"))
        await asyncio.sleep(0)
        assert not waiting.done()
        slots.started(taken[0])
        slots.started(taken[0])  # a second attempt's call frees nothing more
        later = asyncio.create_task(slots.take("b"))
        await asyncio.sleep(0)
        assert waiting.done()
        assert not later.done()
        slots.give_back(taken[1])
        await later
        assert slots.active == STARTING + 1

    simulated(play())


def test_fewer_start_at_a_time_while_a_crowd_waits() -> None:
    async def play() -> None:
        slots = Slots(SlotLimits())
        taken = [await slots.take("a") for _ in range(STARTING)]
        waiting = [asyncio.create_task(slots.take("a")) for _ in range(STARTING_IN_A_CROWD + 1)]
        await asyncio.sleep(0)
        *freed, last = taken[: STARTING - STARTING_IN_A_CROWD + 1]
        for slot in freed:
            slots.started(slot)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        slots.started(last)
        await asyncio.sleep(0)
        assert all(task.done() for task in waiting)
        assert slots.waiting == 0

    simulated(play())


def test_one_pause_of_the_loop_refuses_nobody() -> None:
    async def play() -> Seen:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(2.0, loop.pass_time, 0.5)
        return (await offered({"a": 150.0}, 5.0, Slots(SlotLimits())))["a"]

    seen = simulated(play())
    assert (len(seen.answered), seen.refused) == (750, [])


def test_a_slow_start_is_no_pace_by_which_a_crowd_is_refused() -> None:
    """Before the connections are made one or two may start; a moment later the whole crowd does, in good time."""

    async def play() -> int:
        slots = Slots(SlotLimits(process=512, tenant=512, wait_s=3.0))
        connected = asyncio.Event()

        async def turn(number: int) -> None:
            await asyncio.sleep(number * 0.001)
            slot = await slots.take("a")
            await (connected.wait() if number else asyncio.sleep(0.05))
            slots.started(slot)
            await asyncio.sleep(PROVIDER_S)
            slots.give_back(slot)

        async with asyncio.TaskGroup() as group:
            turns = [group.create_task(turn(number)) for number in range(300)]
            await asyncio.sleep(0.4)
            connected.set()
        return len(turns)

    assert simulated(play()) == 300


def test_sixty_four_first_requests_are_served_by_a_worker_that_takes_a_second_to_start() -> None:
    async def play() -> int:
        slots, connected = Slots(SlotLimits()), asyncio.Event()

        async def turn(number: int) -> None:
            await asyncio.sleep(number * 0.02)
            slot = await slots.take("a")
            await (connected.wait() if number else asyncio.sleep(0.4))
            slots.started(slot)
            await asyncio.sleep(PROVIDER_S)
            slots.give_back(slot)

        async with asyncio.TaskGroup() as group:
            turns = [group.create_task(turn(number)) for number in range(64)]
            await asyncio.sleep(1.3)
            connected.set()
        return len(turns)

    assert simulated(play()) == 64


@pytest.mark.parametrize("paused_s", [0.5, 1.0, 2.0])
def test_sixty_four_clients_that_wait_for_their_answers_are_never_refused(paused_s: float) -> None:
    """They keep the processor busy, so that a queue stands; a pause of the machine is not its pace."""

    async def play() -> tuple[int, int]:
        slots, loop = Slots(SlotLimits()), asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        answered = refused = 0
        for at_s in (0.05, 3.0, 6.0):
            loop.call_later(at_s, loop.pass_time, paused_s)

        async def client() -> None:
            nonlocal answered, refused
            while loop.time() < 12.0:
                try:
                    slot = await slots.take("a")
                except Overloaded:
                    refused += 1
                    await asyncio.sleep(0.1)
                    continue
                for _ in range(4):
                    loop.pass_time(TURN_S / 8)
                    await asyncio.sleep(0)
                slots.started(slot)
                await asyncio.sleep(0.1)
                loop.pass_time(TURN_S / 2)
                slots.give_back(slot)
                answered += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(client())
        return answered, refused

    answered, refused = simulated(play())
    assert answered > 1000
    assert refused == 0
