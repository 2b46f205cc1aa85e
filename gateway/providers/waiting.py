"""Timeouts for providers that a pause of our own process does not use up."""

from __future__ import annotations

import asyncio
from types import TracebackType

GRACE_S = 0.25
"""Extra reading time after a limit, for data that already waits in the socket."""


class Patience:
    """A timeout with a grace period: `with Patience(until) as limit:`.

    It ends what the current task awaits in its block. After the process (or the loop) was suspended, every timer is
    overdue while responses already wait in their sockets. So an expired limit is postponed for a moment in which the
    loop reads. Otherwise like `asyncio.timeout_at`, whose two coroutines every call and every event of a stream would
    pay for.
    """

    def __init__(self, until: float) -> None:
        self._until = until
        self._expired = False

    def expired(self) -> bool:
        """True if this limit, and not an outer cancellation, ended the block."""
        return self._expired

    def __enter__(self) -> Patience:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._timer: asyncio.Handle
        if self._until <= loop.time():
            self._timer = loop.call_soon(self._expire)  # no grace period: only data that is ready is read
        else:
            self._timer = loop.call_at(self._until, self._last_look, loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _last_look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(loop.time() + GRACE_S, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
