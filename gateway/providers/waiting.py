"""Timeouts for providers that a pause of our own process does not use up."""

from __future__ import annotations

import asyncio
from types import TracebackType

GRACE_S = 0.25
"""Extra reading time after a limit, for data that already waits in the socket."""


class Patience:
    """A timeout with a grace period: `async with Patience(until) as limit:`.

    After the process (or the loop) was suspended, every timer is overdue while responses already wait in their sockets.
    So an expired limit is postponed for a moment in which the loop reads.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    def expired(self) -> bool:
        """True if this limit, and not an outer cancellation, ended the block."""
        return self._limit.expired()

    async def __aenter__(self) -> Patience:
        await self._limit.__aenter__()
        loop = asyncio.get_running_loop()
        if self._until <= loop.time():
            self._limit.reschedule(self._until)  # no grace period: only data that is ready is read
        else:
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
