"""Who may start next: places of this process, given to waiting tenants in turn, and a wait that is bounded.

    request, body read --> own limit reached: 429
                       --> free place, idle loop: starts at once
                       --> else waits in its tenant's queue, tenants take turns
                       --> cannot start within `wait_s`: 503, at once when that can be foreseen

A turn mostly waits for its provider, so how many are under way says little about the processor. What says it is how
late the event loop is: while its timer comes late, few requests are started at a time, and an answer to those refused
does not wait behind them.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import ClassVar

from gateway.errors import Overloaded, RateLimited

TICK_S = 0.01
LATE_S = 0.015
"""A timer that comes later than this means that the loop has as much work as it can do."""
IDLE_STARTS = 32.0
"""Starts in one tick of an idle loop: ten times what a core can do."""
BUSY_STARTS = 8.0
"""What a loop that is late for the first time may go on with: one pause is no overload."""
LEAST_STARTS = 1.0
GROWTH, SHRINK = 0.1, 0.7
RATE_MEMORY_S = 0.5
FORESEEN_SHARE = 0.5
"""Of the longest wait: who would wait longer by today's pace is refused at once, rather than after the whole wait."""


@dataclass(frozen=True, slots=True)
class PlaceLimits:
    """How many requests may be under way at once, in the process and of one tenant, and how long one may wait."""

    process: int = 512
    tenant: int = 256
    wait_s: float = 3.0


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: str
    until_s: float
    place: asyncio.Future[None]


class Places:
    """Made anywhere, used in one event loop. Each `take` that returns is followed by one `give_back`."""

    retry_later: ClassVar[dict[str, str]] = {"Retry-After": "1"}

    def __init__(self, limits: PlaceLimits) -> None:
        self._limits = limits
        self._under_way: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._active = 0
        self._starts = self._starts_left = IDLE_STARTS
        self._granted = 0
        self._rate = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    @property
    def active(self) -> int:
        return self._active

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    async def take(self, tenant: str) -> None:
        """Take a place for a request of this tenant. Raises RateLimited, Overloaded."""
        queue = self._waiting.get(tenant)
        if self._under_way[tenant] + len(queue or ()) >= self._limits.tenant:
            raise RateLimited(
                f"this tenant has {self._limits.tenant} requests under way, as many as it may; try again",
                headers=self.retry_later,
            )
        loop = asyncio.get_running_loop()
        self._keep_ticking(loop)
        if not self._waiting and self._may_start():
            self._start(tenant)
            return
        waiter = _Waiter(tenant, loop.time() + self._limits.wait_s, loop.create_future())
        self._queue(waiter)
        try:
            await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                self.give_back(tenant)
            raise

    def give_back(self, tenant: str) -> None:
        """The request that had this tenant's place is answered."""
        self._active -= 1
        self._under_way[tenant] -= 1
        if self._under_way[tenant] <= 0:
            del self._under_way[tenant]
        self._start_waiting()

    def _may_start(self) -> bool:
        if self._active >= self._limits.process or self._starts_left < 1.0:
            return False
        return asyncio.get_running_loop().time() < self._due_s + LATE_S

    def _start(self, tenant: str) -> None:
        self._active += 1
        self._under_way[tenant] += 1
        self._starts_left -= 1.0
        self._granted += 1

    def _queue(self, waiter: _Waiter) -> None:
        queue = self._waiting.get(waiter.tenant)
        tenants = len(self._waiting) + (queue is None)
        if self._rate > 0 and (len(queue or ()) + 1) * tenants / self._rate > self._limits.wait_s * FORESEEN_SHARE:
            raise self._overloaded()
        if queue is None:
            queue = self._waiting[waiter.tenant] = deque()
        queue.append(waiter)

    def _overloaded(self) -> Overloaded:
        return Overloaded("too many requests at once; try again", headers=self.retry_later)

    def _start_waiting(self) -> None:
        """Give free places to waiting tenants, one each in turn."""
        while self._waiting and self._may_start():
            tenant, queue = next(iter(self._waiting.items()))
            waiter = queue.popleft()
            if queue:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if not waiter.place.done():
                self._start(tenant)
                waiter.place.set_result(None)

    def _refuse_late(self, now_s: float) -> None:
        for tenant, queue in list(self._waiting.items()):
            while queue and (queue[0].until_s <= now_s or queue[0].place.done()):
                waiter = queue.popleft()
                if not waiter.place.done():
                    waiter.place.set_exception(self._overloaded())
            if not queue:
                del self._waiting[tenant]

    # -- how busy the loop is --------------------------------------------------------------------------------------

    def _keep_ticking(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None:
            self._due_s = loop.time() + TICK_S
            self._timer = loop.call_at(self._due_s, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now_s = loop.time()
        late_s = now_s - self._due_s
        if late_s > LATE_S:
            self._starts = max(LEAST_STARTS, min(self._starts, max(self._granted, BUSY_STARTS)) * SHRINK)
        else:
            self._starts = min(IDLE_STARTS, self._starts + GROWTH)
        # A rate, so that late ticks do not make it smaller by themselves. What was not used is kept up to one start.
        self._starts_left = min(self._starts_left, 1.0) + self._starts * (1.0 + late_s / TICK_S)
        self._due_s = now_s + TICK_S
        self._measure(late_s + TICK_S)
        self._refuse_late(now_s)
        self._start_waiting()
        if self._active or self._waiting or self._starts < IDLE_STARTS:
            self._keep_ticking(loop)

    def _measure(self, elapsed_s: float) -> None:
        """The rate of starts while some wait; unknown (0) while none do."""
        if not self._waiting:
            self._rate = 0.0
        else:
            share = 1.0 if self._rate == 0 else -math.expm1(-elapsed_s / RATE_MEMORY_S)
            self._rate += (self._granted / elapsed_s - self._rate) * share
        self._granted = 0
