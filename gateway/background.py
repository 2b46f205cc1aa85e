"""Work that outlives its request: settlements of clients that left, releases of lost reservations."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Holds references to detached tasks (asyncio keeps none) and waits for them at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for detached work; a waiter that is cancelled leaves it running."""
        return await asyncio.shield(self.spawn(work))

    async def drain(self, timeout_s: float) -> int:
        """Wait until all detached work is done; returns how many tasks were still running at the end."""
        if not self._tasks:
            return 0
        _, pending = await asyncio.wait(self._tasks, timeout=timeout_s)
        return len(pending)
