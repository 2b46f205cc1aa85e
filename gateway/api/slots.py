"""Concurrency slots of a process, assigned to tenants in turn, with a bounded wait.

    request, body read --> tenant's limit reached: 429
                       --> a free slot, and few requests are starting: starts at once
                       --> else waits in its tenant's queue; tenants take turns
                       --> cannot start in time: 503, at once when foreseeable

A turn mostly waits for its provider, so the number of running turns says little about CPU load. Starting them costs
CPU time: authentication, decision, reservation. So only a few start at a time, until their call is sent; the others
wait here, cheaply and fairly, and refusals are not delayed by them.

In time means: a burst may wait for `wait_s`. A queue that has not been empty for a second is no burst: a new request is
then refused unless it can start within a tenth of `wait_s`, because a longer queue delays every answer and adds none.
The forecast never refuses the first FEW waiting requests: it is wrong in a process's first second and after a pause of
the machine. A client that says how long it waits for its answer waits here for at most half of that.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gateway.errors import Overloaded, RateLimited

STARTING = 32
"""Requests that may start concurrently. Those that start together are decided and committed together: a turn takes an
eighth more CPU time with half as many."""
STARTING_IN_A_CROWD = 16
"""The same while more than that wait: a refusal waits for the turns that start."""
STARTING_BESIDE_OTHERS = 4
"""The same for one tenant while others have requests too."""
FEW = 48
"""Waiting requests that only the end of their wait refuses. With the starting ones they are at least 64: that many
clients with one request each see no error after a pause of the machine."""
RETRY_LATER: Mapping[str, str] = MappingProxyType({"Retry-After": "1"})
UPDATE_S = 0.1
"""Time between updates of the start rate."""
RATE_MEMORY_S = 0.5
"""Time constant of the start rate's moving average."""
FORESEEN_SHARE = 0.5
"""Share of the longest wait: a request expected to wait longer at the current rate is refused at once."""
STANDING_S = 1.0
STANDING_SHARE = 0.1
"""The same share once the queue has not been empty for STANDING_S."""
PATIENCE_SHARE = 0.5
"""Share of the time that a client gives its request, for which it may wait to start."""
WATCHED_SHARE = 1 / 6
"""Share of the longest wait for which the rate is watched before it refuses a request. A process that has just started
opens its connections first, so its first tenths of a second do not predict the next ones."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """Limits of concurrent requests, per process and per tenant, and of the wait for a slot."""

    process: int = 512
    tenant: int = 256
    wait_s: float = 3.0


@dataclass(slots=True, eq=False)
class RunningSlot:
    """The slot of a running request."""

    tenant: str
    starting: bool = True


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: str
    until_s: float
    slot: asyncio.Future[RunningSlot]


class Slots:
    """The slots of one event loop. Each slot that is taken must be given back once."""

    def __init__(self, limits: SlotLimits) -> None:
        self._limits = limits
        self._active_of: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._in_line = 0
        """Requests that wait, of all tenants."""
        self._active = 0
        self._starting = 0
        self._starting_of: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._started = 0
        """Requests started since `_updated_at_s`."""
        self._updated_at_s = 0.0
        self._watched_since_s = 0.0
        self._waiting_since_s = 0.0
        """When the queue was empty last."""
        self._rate = 0.0
        self._let_through: Counter[str] = Counter()
        self._let_through_at_s = -math.inf
        self._tenant_full = RateLimited(
            f"this tenant has {limits.tenant} concurrent requests, its limit; try again", headers=RETRY_LATER
        )
        self._too_late = _overloaded()

    @property
    def active(self) -> int:
        """Requests that hold a slot."""
        return self._active

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._in_line

    @property
    def is_crowded(self) -> bool:
        """False while `check` refuses no one."""
        return bool(self._waiting) or self._active >= self._limits.tenant

    def check(self, tenant: str, patience_s: float = math.inf) -> None:
        """Raise the errors that `take` would raise at once: RateLimited, Overloaded."""
        error = self._refusal(tenant, patience_s, 0, asyncio.get_running_loop().time())
        if error is not None:
            raise type(error)(error.message, headers=error.headers)

    def foresee(self, tenant: str, patience_s: float = math.inf) -> RateLimited | Overloaded | None:
        """The error that `take` would raise after all requests let through at this moment.

        Always the same object, so write it and do not raise it. None lets the request through.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s != self._let_through_at_s:
            self._let_through_at_s = now_s
            self._let_through.clear()
        error = self._refusal(tenant, patience_s, self._let_through[tenant], now_s)
        if error is None:
            self._let_through[tenant] += 1
        return error

    def _refusal(self, tenant: str, patience_s: float, coming: int, now_s: float) -> RateLimited | Overloaded | None:
        queue = self._waiting.get(tenant, ())
        if self._active_of[tenant] + len(queue) + coming >= self._limits.tenant:
            return self._tenant_full
        if self._waiting:
            ahead = (len(queue) + coming + 1) * (len(self._waiting) + (not queue))
            if ahead <= FEW:
                return None
            standing = now_s - self._waiting_since_s > STANDING_S
            longest_s = self._limits.wait_s * (STANDING_SHARE if standing else FORESEEN_SHARE)
            rate = self._pace(now_s)
            if rate > 0 and ahead / rate > min(longest_s, patience_s * PATIENCE_SHARE):
                return self._too_late
        return None

    async def take(self, tenant: str, patience_s: float = math.inf) -> RunningSlot:
        """Take a slot; the client waits `patience_s` for its answer. Raises as `check`."""
        self.check(tenant, patience_s)
        if tenant not in self._waiting and not self._is_full() and self._may_start(tenant):
            return self._start(tenant)
        loop = asyncio.get_running_loop()
        wait_s = min(self._limits.wait_s, patience_s * PATIENCE_SHARE)
        waiter = _Waiter(tenant, loop.time() + wait_s, loop.create_future())
        if not self._waiting:
            self._waiting_since_s = loop.time()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        self._in_line += 1
        if self._timer is None:
            self._started, self._updated_at_s, self._rate = 0, loop.time(), 0.0
            self._watched_since_s = self._updated_at_s
            self._timer = loop.call_later(UPDATE_S, self._update, loop)
        try:
            return await waiter.slot
        except asyncio.CancelledError:
            if waiter.slot.done() and not waiter.slot.cancelled() and waiter.slot.exception() is None:
                self.give_back(waiter.slot.result())
            raise

    def started(self, slot: RunningSlot) -> None:
        """Report that the request's call was sent, so that the next request may start."""
        if slot.starting:
            slot.starting = False
            self._starting -= 1
            self._starting_of[slot.tenant] -= 1
            if not self._starting_of[slot.tenant]:
                del self._starting_of[slot.tenant]
            self._start_waiting()

    def give_back(self, slot: RunningSlot) -> None:
        """Return the slot of a finished request."""
        self._active -= 1
        self._active_of[slot.tenant] -= 1
        if self._active_of[slot.tenant] <= 0:
            del self._active_of[slot.tenant]
        self.started(slot)
        self._start_waiting()

    def _is_full(self) -> bool:
        most = STARTING if self._in_line <= STARTING_IN_A_CROWD else STARTING_IN_A_CROWD
        return self._active >= self._limits.process or self._starting >= most

    def _may_start(self, tenant: str) -> bool:
        """Whether one more of this tenant's requests may start while the process is not full."""
        others = len(self._active_of) - (tenant in self._active_of) + len(self._waiting) - (tenant in self._waiting)
        return self._starting_of[tenant] < (STARTING_BESIDE_OTHERS if others else STARTING)

    def _start(self, tenant: str) -> RunningSlot:
        self._active += 1
        self._starting += 1
        self._starting_of[tenant] += 1
        self._started += 1
        self._active_of[tenant] += 1
        return RunningSlot(tenant)

    def _start_waiting(self) -> None:
        """Assign free slots to waiting tenants, one each in turn."""
        while self._waiting and not self._is_full():
            tenant = next((tenant for tenant in self._waiting if self._may_start(tenant)), None)
            if tenant is None:
                return
            queue = self._waiting[tenant]
            waiter = queue.popleft()
            self._in_line -= 1
            if queue:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if not waiter.slot.done():
                waiter.slot.set_result(self._start(tenant))

    # -- the wait --------------------------------------------------------------------------------------------------

    def _update(self, loop: asyncio.AbstractEventLoop) -> None:
        """Update the start rate and refuse expired waiters, while there are any."""
        self._timer = None
        now_s = loop.time()
        elapsed_s = now_s - self._updated_at_s
        share = 1.0 if self._rate == 0 else -math.expm1(-elapsed_s / RATE_MEMORY_S)
        self._rate += (self._started / elapsed_s - self._rate) * share
        self._started, self._updated_at_s = 0, now_s
        self._refuse_late(now_s)
        if self._waiting:
            self._timer = loop.call_later(UPDATE_S, self._update, loop)

    def _pace(self, now_s: float) -> float:
        """Starts per second; 0 while unknown."""
        if now_s - self._watched_since_s < self._limits.wait_s * WATCHED_SHARE:
            return 0.0
        elapsed_s = now_s - self._updated_at_s
        if self._rate > 0 or self._timer is None or elapsed_s < UPDATE_S:
            return self._rate
        return max(self._started, 1) / elapsed_s

    def _refuse_late(self, now_s: float) -> None:
        for tenant, queue in list(self._waiting.items()):
            staying = deque(waiter for waiter in queue if waiter.until_s > now_s and not waiter.slot.done())
            for waiter in queue:
                if waiter.until_s <= now_s and not waiter.slot.done():
                    waiter.slot.set_exception(_overloaded())
            self._in_line -= len(queue) - len(staying)
            if staying:
                self._waiting[tenant] = staying
            else:
                del self._waiting[tenant]


def _overloaded() -> Overloaded:
    return Overloaded("too many requests at once; try again", headers=RETRY_LATER)
