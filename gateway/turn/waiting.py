"""Queues of turns that wait briefly for money held by other turns, one queue per account.

A settlement or release in this process wakes the first turn of a queue at once. If the money does not suffice, the turn
reports what it found, and the next turn with a smaller need is woken; a turn that leaves wakes the one behind it. So
released money reaches all turns that it can serve, longest wait first, without a retry by each. The first also polls,
for money released by other replicas. No turn waits longer than `WAIT_S`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_S = 5.0
"""Longer than most responses take, shorter than common client timeouts."""
LOOK_S = 0.25

Account = tuple[str, str]
"""A tenant id and a session id; "" for the tenant's own account."""


class QueuePlace:
    """One turn's place in a queue, made by `HeldMoney.line`."""

    def __init__(self, line: list[QueuePlace], wait_s: float) -> None:
        self._line = line
        self._until_s = asyncio.get_running_loop().time() + wait_s
        self._called = asyncio.Event()
        self._needs_nanousd = 0

    def call(self) -> None:
        """Wake the turn, because money may be available."""
        self._called.set()

    def short(self, needs_nanousd: int, left_nanousd: int) -> None:
        """Report a failed try; wake the next turn for which the rest suffices."""
        self._needs_nanousd = needs_nanousd
        for place in self._line[self._line.index(self) + 1 :]:
            if place._needs_nanousd <= left_nanousd:
                place.call()
                return

    async def called(self) -> bool:
        """Wait until another try may succeed; False after the longest wait."""
        loop = asyncio.get_running_loop()
        left_s = self._until_s - loop.time()
        if left_s <= 0:
            return False
        try:
            async with asyncio.timeout(min(left_s, LOOK_S) if self._line[0] is self else left_s):
                await self._called.wait()
        except TimeoutError:
            return self._until_s > loop.time()
        self._called.clear()
        return True

    def leave(self) -> None:
        """Leave the queue and wake the next turn, if any."""
        at = self._line.index(self)
        del self._line[at]
        if at < len(self._line):
            self._line[at].call()


class HeldMoney:
    """Waiting turns by account, and the number of starting turns per session."""

    def __init__(self, on_wait: Callable[[], None] = lambda: None) -> None:
        self._on_wait = on_wait
        self._lines: dict[Account, list[QueuePlace]] = {}
        self._arriving: Counter[Account] = Counter()

    @property
    def waiting(self) -> int:
        """Number of waiting turns."""
        return sum(map(len, self._lines.values()))

    @contextmanager
    def arriving(self, session: Account) -> Iterator[None]:
        """Count a turn of this session until it has reserved."""
        self._arriving[session] += 1
        try:
            yield
        finally:
            self._arriving[session] -= 1
            if not self._arriving[session]:
                del self._arriving[session]

    def company(self, session: Account) -> int:
        """Number of turns of a session that are being started and have read the same balance."""
        return self._arriving[session]

    @contextmanager
    def line(self, account: Account, wait_s: float) -> Iterator[QueuePlace]:
        """Join an account's queue, for at most `wait_s`."""
        line = self._lines.setdefault(account, [])
        place = QueuePlace(line, wait_s)
        line.append(place)
        self._on_wait()
        try:
            yield place
        finally:
            place.leave()
            if not line:
                del self._lines[account]

    def freed(self, session: Account) -> None:
        """Report money released to a session, and so to its tenant."""
        for account in (session, (session[0], "")):
            line = self._lines.get(account)
            if line:
                line[0].call()
