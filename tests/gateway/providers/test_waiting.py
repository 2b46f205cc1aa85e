"""A limit that passes while the process stands still, and an answer that has been waiting all the time."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.providers.waiting import Patience


class StoppedClock(asyncio.SelectorEventLoop):
    """A loop whose clock can jump, as it does over a SIGSTOP."""

    jumped_s = 0.0

    def time(self) -> float:
        return super().time() + self.jumped_s


async def read_after_a_stop(data_waits: bool) -> bytes:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StoppedClock)
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        if data_waits:
            loop.call_soon(theirs.send, b"said long ago")
        loop.call_soon(setattr, loop, "jumped_s", 3600.0)
        with Patience(loop.time() + 5.0):
            return await reader.read(100)
    finally:
        writer.close()
        theirs.close()


def test_what_waits_in_the_socket_is_read_before_a_silence_is_called_one() -> None:
    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        assert runner.run(read_after_a_stop(data_waits=True)) == b"said long ago"


def test_a_silence_is_one_also_after_a_stop() -> None:
    with asyncio.Runner(loop_factory=StoppedClock) as runner, pytest.raises(TimeoutError):
        runner.run(read_after_a_stop(data_waits=False))


async def test_a_limit_that_has_passed_already_gets_no_second_look() -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(TimeoutError), Patience(begun - 1.0) as limit:
        await asyncio.Event().wait()
    assert limit.expired()
