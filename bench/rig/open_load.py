"""Open load: requests at a rate, whatever became of earlier ones; refusals are counted.

    outcomes = await offered([Arrivals("calm", target, 20), Arrivals("loud", other, 1000)], seconds=5, rng=Random(1))

Times count from the moment at which a request should have been sent, so a server (or a load generator) that falls
behind is not flattered. A request takes an idle connection or opens one; `kept=False` opens one for every request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from bench.rig.load import HOST, TURNS_PER_SESSION, Exchange, Target
from bench.rig.statistics import percentile

TICK_S = 0.001
PATIENCE_S = 30.0
"""A client that waits longer has lost its request."""
MAX_CONNECTIONS = 4_000
REFUSALS = ("429", "503")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Random arrivals of one client, `per_s` on average."""

    name: str
    target: Target
    per_s: float


@dataclass(slots=True)
class Outcomes:
    """Results of a client's requests: (second of its end, milliseconds it took) of each."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)
    lost: int = 0
    other: dict[str, int] = field(default_factory=dict)

    def answered_per_s(self, from_s: float, to_s: float) -> float:
        """Answers per second that ended in this time."""
        return sum(from_s <= at_s < to_s for at_s, _ in self.answered) / (to_s - from_s)

    def answer_ms(self, share: float) -> float:
        """A percentile of the answers' times; 0 without any."""
        return _percentile(self.answered, share)

    def refusal_ms(self, share: float) -> float:
        """A percentile of the refusals' times; 0 without any."""
        return _percentile(self.refused, share)


def _percentile(ended: Sequence[tuple[float, float]], share: float) -> float:
    return percentile(sorted(ms for _, ms in ended), share) if ended else 0.0


async def offered(
    clients: Sequence[Arrivals], *, seconds: float, rng: Random, kept: bool = True, label: str = "open"
) -> dict[str, Outcomes]:
    """Offer this load for so long, then wait for what is under way; outcomes by client."""
    began_s = time.perf_counter()
    lanes = [_Lane(client, began_s, kept, label) for client in clients]
    due = sorted((at_s, number) for number, client in enumerate(clients) for at_s in _times(client.per_s, seconds, rng))
    at = 0
    while at < len(due):
        now_s = time.perf_counter() - began_s
        while at < len(due) and due[at][0] <= now_s:
            lanes[due[at][1]].send(due[at][0])
            at += 1
        await asyncio.sleep(TICK_S)
    deadline_s = time.perf_counter() + PATIENCE_S
    while any(lane.pending for lane in lanes) and time.perf_counter() < deadline_s:  # noqa: ASYNC110 - many lanes
        await asyncio.sleep(0.02)
    return {lane.client.name: lane.closed() for lane in lanes}


def _times(per_s: float, seconds: float, rng: Random) -> Iterator[float]:
    at_s = rng.expovariate(per_s)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(per_s)


class _Lane:
    """The connections and outcomes of one client."""

    def __init__(self, client: Arrivals, began_s: float, kept: bool, label: str) -> None:
        self.client = client
        self._began_s, self._kept, self._label = began_s, kept, label
        self._request: Callable[[str], bytes] = client.target.requests(stream=False)
        self._outcomes = Outcomes()
        self._idle: list[Exchange] = []
        self._due_s: dict[Exchange, float] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._sent = 0

    @property
    def pending(self) -> int:
        """Requests without an outcome."""
        return len(self._due_s) + len(self._opening)

    def send(self, due_s: float) -> None:
        """Send one request now, on an idle connection or a new one."""
        while self._idle:
            exchange = self._idle.pop()
            if exchange.is_open:
                self._ask(exchange, due_s)
                return
        if self.pending >= MAX_CONNECTIONS:
            self._outcomes.lost += 1
            return
        task = asyncio.create_task(self._open(due_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, due_s: float) -> None:
        try:
            _, exchange = await asyncio.get_running_loop().create_connection(
                lambda: Exchange(self._replied, lambda _: None), HOST, self.client.target.port
            )
        except OSError:
            self._outcomes.lost += 1
            return
        self._ask(exchange, due_s)

    def _ask(self, exchange: Exchange, due_s: float) -> None:
        self._due_s[exchange] = due_s
        self._sent += 1
        exchange.ask(self._request(f"{self._label}-{self.client.name}-{self._sent // TURNS_PER_SESSION}"))

    def _replied(self, exchange: Exchange) -> None:
        due_s = self._due_s.pop(exchange)
        ended_s = exchange.done_s - self._began_s
        ended = (ended_s, (ended_s - due_s) * 1000)
        if exchange.error is None:
            self._outcomes.answered.append(ended)
        elif (status := exchange.error.split(" ", 2)[1]) in REFUSALS:
            self._outcomes.refused.append(ended)
        elif exchange.error.startswith("HTTP/"):
            self._outcomes.other[status] = self._outcomes.other.get(status, 0) + 1
        else:
            self._outcomes.lost += 1
        if self._kept and exchange.is_open:
            self._idle.append(exchange)
        else:
            exchange.close()

    def closed(self) -> Outcomes:
        """Count what has no outcome yet as lost, and close every connection."""
        for task in self._opening:
            task.cancel()
        self._outcomes.lost += self.pending
        for exchange in (*self._idle, *self._due_s):
            exchange.close()
        return self._outcomes
