"""Detached tasks and cheap timeouts.

`asyncio.timeout` around `asyncio.shield` needs a timer and a cancel scope per wait. All waits of a `Deadline` have the
same length, so they expire in the order they began, and one timer watches the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Detached tasks: references to them (asyncio keeps none), and a wait at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start detached work."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run detached work and wait for it; a cancelled waiter leaves it running."""
        task = self.spawn(work)
        waiter: asyncio.Future[None] = task.get_loop().create_future()
        task.add_done_callback(partial(_wake, waiter))
        await waiter
        return task.result()

    async def drain(self, timeout_s: float) -> int:
        """Wait for all detached work; return the number of tasks still running at the timeout."""
        if not self._tasks:
            return 0
        _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
        return len(pending)


class Deadline:
    """Waits for futures of one event loop with a common timeout, never cancelling one."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[T]) -> T:
        """The future's result or exception. Raises TimeoutError when late; the future goes on."""
        if future.done():
            return future.result()
        loop = future.get_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(partial(_wake, waiter))
        self._drop_answered()
        self._waiting.append((loop.time() + self.timeout_s, waiter))
        if self._timer is None:
            self._timer = loop.call_at(self._waiting[0][0], self._expire, loop)
        await waiter
        return future.result()

    def _drop_answered(self) -> None:
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= now_s):
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        self._timer = loop.call_at(self._waiting[0][0], self._expire, loop) if self._waiting else None


def _wake(waiter: asyncio.Future[None], future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # read, so that a late error is not logged as unhandled
    if not waiter.done():
        waiter.set_result(None)
