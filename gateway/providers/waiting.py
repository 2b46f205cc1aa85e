"""Waiting for a provider with a limit that a pause of our own process does not use up."""

from __future__ import annotations

import asyncio
from types import TracebackType

GRACE_S = 0.25
"""How long one reads on after a limit has passed: what waits in the socket is taken before a silence is called one."""


class Patience:
    """`async with Patience(until) as limit:` - like `asyncio.timeout_at`, but it expires only after one more look.

    After a stop of the process (or of the loop) every timer is overdue at once, while the answer has been waiting in
    the socket all the time. So the limit, when it passes, is put off for a moment in which the loop reads.
    """

    def __init__(self, until: float | None) -> None:
        self._until = until
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    def expired(self) -> bool:
        return self._limit.expired()

    async def __aenter__(self) -> Patience:
        await self._limit.__aenter__()
        loop = asyncio.get_running_loop()
        if self._until is not None and self._until <= loop.time():
            self._limit.reschedule(self._until)  # it had its last look: only what lies ready is still taken
        elif self._until is not None:
            self._timer = loop.call_at(self._until, self._last_look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _last_look(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time() + GRACE_S)
