"""The clocks of `bench.turn`: what they are put on exists, and what they measure adds up."""

from __future__ import annotations

import asyncio
import importlib
from functools import reduce
from typing import Any

import pytest

from bench.rig.profiled_serve import PHASES, AllClocks, Clocks


@pytest.mark.parametrize(("module", "path", "phase"), PHASES)
def test_a_clock_is_put_on_a_function_that_is_there(module: str, path: str, phase: str) -> None:
    owner: Any = importlib.import_module(module)
    assert callable(reduce(getattr, path.split("."), owner)), phase


def spin(rounds: int = 20_000) -> int:
    return sum(range(rounds))


def uncalibrated() -> tuple[AllClocks, Clocks]:
    clocks = AllClocks([])
    clocks.own.inner_s = clocks.own.outer_s = 0.0
    return clocks, clocks.own


def test_the_inner_function_s_time_is_its_own() -> None:
    clocks, own = uncalibrated()
    inner = clocks.clocked(lambda: spin(200_000), "inner")
    clocks.clocked(lambda: (spin(), inner()), "outer")()
    assert own.calls == {"outer": 1, "inner": 1}
    assert own.seconds["inner"] > own.seconds["outer"] > 0.0


async def test_a_coroutine_s_clock_stands_while_it_waits_for_others() -> None:
    clocks, own = uncalibrated()

    async def waits() -> int:
        await asyncio.sleep(0.0)
        return spin()

    async def works() -> None:
        spin(400_000)

    waiting = asyncio.create_task(clocks.clocked(waits, "waits")())
    await asyncio.gather(waiting, works())
    assert waiting.result() == spin()
    assert own.seconds["waits"] > 0.0
    assert "works" not in own.seconds
    assert own.running == []


async def test_an_error_and_a_cancellation_pass_through_a_clock() -> None:
    clocks, own = uncalibrated()

    async def fails() -> None:
        await asyncio.sleep(0.0)
        raise LookupError("gone")

    async def hangs() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="gone"):
        await clocks.clocked(fails, "fails")()
    hanging = asyncio.create_task(clocks.clocked(hangs, "hangs")())
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert own.running == []
