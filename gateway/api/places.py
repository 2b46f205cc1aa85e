"""Who may start next: places of this process, given to waiting tenants in turn, and a wait that is bounded.

    request, body read --> own limit reached: 429
                       --> a place, and few are being started: starts at once
                       --> else waits in its tenant's queue, tenants take turns
                       --> cannot start within `wait_s`: 503, at once when that can be foreseen

A turn mostly waits for its provider, so how many are under way says little about the processor. What fills it is
starting them: authentication, decision, reservation. So only some are started at a time, until their call leaves; the
others wait here, where waiting costs nothing and is fair, and an answer to those refused does not wait behind them.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gateway.errors import Overloaded, RateLimited

STARTING = 16
"""Requests that are being started at once: enough for a database to commit them in groups."""
RETRY_LATER: Mapping[str, str] = MappingProxyType({"Retry-After": "1"})
LOOK_S = 0.1
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
class Place:
    """What a request under way holds."""

    tenant: str
    starting: bool = True


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: str
    until_s: float
    place: asyncio.Future[Place]


class Places:
    """Made anywhere, used in one event loop. Each place that is taken is given back once."""

    def __init__(self, limits: PlaceLimits) -> None:
        self._limits = limits
        self._under_way: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._active = 0
        self._starting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._started = 0
        self._since_s = 0.0
        self._rate = 0.0

    @property
    def active(self) -> int:
        return self._active

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def check(self, tenant: str) -> None:
        """Raise what `take` would raise at once: RateLimited, Overloaded."""
        queue = self._waiting.get(tenant, ())
        if self._under_way[tenant] + len(queue) >= self._limits.tenant:
            raise RateLimited(
                f"this tenant has {self._limits.tenant} requests under way, as many as it may; try again",
                headers=RETRY_LATER,
            )
        if self._waiting:
            ahead = (len(queue) + 1) * (len(self._waiting) + (not queue))
            rate = self._pace(asyncio.get_running_loop().time())
            if rate > 0 and ahead / rate > self._limits.wait_s * FORESEEN_SHARE:
                raise self._overloaded()

    async def take(self, tenant: str) -> Place:
        """Take a place for a request of this tenant. Raises RateLimited, Overloaded."""
        self.check(tenant)
        if not self._waiting and self._may_start():
            return self._start(tenant)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tenant, loop.time() + self._limits.wait_s, loop.create_future())
        self._waiting.setdefault(tenant, deque()).append(waiter)
        if self._timer is None:
            self._started, self._since_s, self._rate = 0, loop.time(), 0.0
            self._timer = loop.call_later(LOOK_S, self._look, loop)
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter.place.done() and not waiter.place.cancelled() and waiter.place.exception() is None:
                self.give_back(waiter.place.result())
            raise

    def started(self, place: Place) -> None:
        """Its call has left: it waits for somebody else now, and the next one may be started."""
        if place.starting:
            place.starting = False
            self._starting -= 1
            self._start_waiting()

    def give_back(self, place: Place) -> None:
        """The request is answered."""
        self._active -= 1
        self._under_way[place.tenant] -= 1
        if self._under_way[place.tenant] <= 0:
            del self._under_way[place.tenant]
        self.started(place)
        self._start_waiting()

    def _may_start(self) -> bool:
        return self._active < self._limits.process and self._starting < STARTING

    def _start(self, tenant: str) -> Place:
        self._active += 1
        self._starting += 1
        self._started += 1
        self._under_way[tenant] += 1
        return Place(tenant)

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
                waiter.place.set_result(self._start(tenant))

    # -- the wait --------------------------------------------------------------------------------------------------

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """While some wait: how many are started a second, and who has waited long enough."""
        self._timer = None
        now_s = loop.time()
        elapsed_s = now_s - self._since_s
        share = 1.0 if self._rate == 0 else -math.expm1(-elapsed_s / RATE_MEMORY_S)
        self._rate += (self._started / elapsed_s - self._rate) * share
        self._started, self._since_s = 0, now_s
        self._refuse_late(now_s)
        if self._waiting:
            self._timer = loop.call_later(LOOK_S, self._look, loop)

    def _pace(self, now_s: float) -> float:
        """Starts a second; 0 while nothing can be said yet."""
        elapsed_s = now_s - self._since_s
        if self._rate > 0 or self._timer is None or elapsed_s < LOOK_S:
            return self._rate
        return max(self._started, 1) / elapsed_s

    def _refuse_late(self, now_s: float) -> None:
        for tenant, queue in list(self._waiting.items()):
            while queue and (queue[0].until_s <= now_s or queue[0].place.done()):
                waiter = queue.popleft()
                if not waiter.place.done():
                    waiter.place.set_exception(self._overloaded())
            if not queue:
                del self._waiting[tenant]

    def _overloaded(self) -> Overloaded:
        return Overloaded("too many requests at once; try again", headers=RETRY_LATER)
