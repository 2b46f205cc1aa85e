"""Turns that wait for money which others only hold: for a short time, in order, one line for each account.

A bill or a release in this process calls the first of a line at once. Who is still short says what it found, and the
next that this is enough for is called; a turn that leaves the line calls the one behind it. So freed money reaches all
whom it can serve, longest wait first, without a try by each of them. The first also looks by itself now and then, for
what other replicas free; its finds go down the line in the same way. No turn waits for longer than `WAIT_S`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_S = 5.0
"""Longer than most answers of a crowd take, shorter than a client's patience."""
LOOK_S = 0.25

Account = tuple[str, str]
"""A tenant's id and a session's; "" for what the whole tenant shares."""


class Place:
    """One turn's place in a line. Made by `HeldMoney.line`."""

    def __init__(self, line: list[Place], wait_s: float) -> None:
        self._line = line
        self._until_s = asyncio.get_running_loop().time() + wait_s
        self._called = asyncio.Event()
        self._needs_nanousd = 0

    def call(self) -> None:
        """Money may be free now."""
        self._called.set()

    def short(self, needs_nanousd: int, left_nanousd: int) -> None:
        """This turn needs more than it found to be left, which may be enough for one behind it."""
        self._needs_nanousd = needs_nanousd
        for place in self._line[self._line.index(self) + 1 :]:
            if place._needs_nanousd <= left_nanousd:
                place.call()
                return

    async def called(self) -> bool:
        """Wait until it is worth another try; False once this turn has waited long enough."""
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
        """Make way; the one behind, if any, may find what this turn left."""
        at = self._line.index(self)
        del self._line[at]
        if at < len(self._line):
            self._line[at].call()


class HeldMoney:
    """Who waits for money, and how many turns of a session come at once. `on_wait` is told of each that waits."""

    def __init__(self, on_wait: Callable[[], None] = lambda: None) -> None:
        self._on_wait = on_wait
        self._lines: dict[Account, list[Place]] = {}
        self._arriving: Counter[Account] = Counter()

    @property
    def waiting(self) -> int:
        """How many turns wait, over all accounts."""
        return sum(map(len, self._lines.values()))

    @contextmanager
    def arriving(self, session: Account) -> Iterator[None]:
        """A turn of this session is on its way to its reservation."""
        self._arriving[session] += 1
        try:
            yield
        finally:
            self._arriving[session] -= 1
            if not self._arriving[session]:
                del self._arriving[session]

    def company(self, session: Account) -> int:
        """How many turns of a session are on their way: they have all read the same balance."""
        return self._arriving[session]

    @contextmanager
    def line(self, account: Account, wait_s: float) -> Iterator[Place]:
        """Stand in an account's line, at most for `wait_s`."""
        line = self._lines.setdefault(account, [])
        place = Place(line, wait_s)
        line.append(place)
        self._on_wait()
        try:
            yield place
        finally:
            place.leave()
            if not line:
                del self._lines[account]

    def freed(self, session: Account) -> None:
        """Money came back to a session, and so to its tenant."""
        for account in (session, (session[0], "")):
            line = self._lines.get(account)
            if line:
                line[0].call()
