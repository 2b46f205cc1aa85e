"""Detached work is kept, waited for, and counted when it does not end."""

from __future__ import annotations

import asyncio
import gc

from gateway.tasks import Background


async def test_detached_work_outlives_its_caller_and_the_collector() -> None:
    background, done = Background(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.01)
        done.set()

    async def caller() -> None:
        background.spawn(work())
        await asyncio.sleep(60)

    calling = asyncio.create_task(caller())
    await asyncio.sleep(0)
    calling.cancel()
    gc.collect()
    assert await background.drain(5.0) == 0
    assert done.is_set()


async def test_what_does_not_end_in_time_is_counted_and_left_running() -> None:
    background = Background()
    endless = background.spawn(asyncio.sleep(60))
    background.spawn(asyncio.sleep(0))
    assert await background.drain(0.05) == 1
    assert not endless.done()
    endless.cancel()
    assert await background.drain(1.0) == 0


async def test_nothing_to_wait_for_is_no_wait() -> None:
    assert await Background().drain(60.0) == 0
