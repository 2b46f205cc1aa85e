"""Every wait ends, and none of them ends what it waits for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.tasks import Deadline


def later() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_a_result_and_an_error_come_through() -> None:
    deadline, fine, broken = Deadline(60.0), later(), later()
    waits = [asyncio.create_task(deadline.wait(future)) for future in (fine, broken)]
    await asyncio.sleep(0)
    fine.set_result(7)
    broken.set_exception(LookupError("gone"))
    assert await waits[0] == 7
    with pytest.raises(LookupError, match="gone"):
        await waits[1]


async def test_what_is_there_already_is_given_at_once() -> None:
    done = later()
    done.set_result("x")
    assert await Deadline(0.0).wait(done) == "x"


async def test_a_late_answer_is_a_timeout_and_its_future_goes_on() -> None:
    deadline, late, slow = Deadline(0.01), later(), later()
    found = await asyncio.gather(deadline.wait(late), deadline.wait(slow), return_exceptions=True)
    assert [type(each) for each in found] == [TimeoutError, TimeoutError]
    assert not late.done()
    late.set_result(1)  # nobody waits any more
    slow.set_exception(LookupError("late"))  # and nobody is surprised
    await asyncio.sleep(0)


async def test_an_early_wait_that_hangs_does_not_keep_a_later_one_from_its_time() -> None:
    deadline, hanging = Deadline(0.02), later()
    first = asyncio.create_task(deadline.wait(hanging))
    for _ in range(50):
        quick = later()
        asyncio.get_running_loop().call_soon(quick.set_result, True)
        assert await deadline.wait(quick)
    second = asyncio.create_task(deadline.wait(later()))
    done, _ = await asyncio.wait({first, second}, timeout=10)
    assert len(done) == 2
    assert all(isinstance(task.exception(), TimeoutError) for task in done)


async def test_a_caller_that_is_cancelled_leaves_the_future_alone() -> None:
    deadline, future = Deadline(60.0), later()
    waiting = asyncio.create_task(deadline.wait(future))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not future.cancelled()
    future.set_result(1)


async def test_a_future_that_is_cancelled_cancels_its_wait() -> None:
    deadline, future = Deadline(60.0), later()
    waiting = asyncio.create_task(deadline.wait(future))
    await asyncio.sleep(0)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
