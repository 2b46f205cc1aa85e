"""Seeded discrete-event simulation of queues: stations, and turns that visit them.

    Station("worker", servers=1)                        first come, first served; as many at once as it has servers
    Station("provider", servers=None)                   no queue: a delay
    Station("row", servers=1, batch=64, setup_s=0.8e-3)    serves waiting turns as a group: a commit with its fsync

A turn is a list of visits, (station, mean seconds). Times are gamma-distributed with a given coefficient of variation:
1 is exponential (the textbook's M/M/1, against which tests/bench/test_queues.py checks this file), 0 is constant.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random

from bench.rig.statistics import percentile


@dataclass(frozen=True, slots=True)
class Station:
    """A queue; `servers` None is unlimited, a group of `batch` takes `setup_s` and their sum."""

    name: str
    servers: int | None = 1
    batch: int = 1
    setup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Visit:
    """Mean service time of a turn at a station, without waiting."""

    station: str
    mean_s: float
    constant: bool = False
    """Whether it is always the mean."""


@dataclass(frozen=True, slots=True)
class Result:
    """Throughput, latency, and utilisation by station (those with limited servers)."""

    per_s: float
    p50_ms: float
    p99_ms: float
    mean_ms: float
    busy: Mapping[str, float]


class _Turn:
    __slots__ = ("at", "since_s", "visits")

    def __init__(self, visits: Sequence[Visit], since_s: float) -> None:
        self.visits, self.since_s, self.at = visits, since_s, 0


class _Place:
    """State of a station."""

    __slots__ = ("busy_s", "free", "station", "waiting")

    def __init__(self, station: Station) -> None:
        self.station = station
        self.free = station.servers
        self.waiting: deque[_Turn] = deque()
        self.busy_s = 0.0


class Simulation:
    """One run; `visits` returns the path of the next turn and may draw from the generator."""

    def __init__(
        self, stations: Sequence[Station], visits: Callable[[Random], Sequence[Visit]], rng: Random, variation: float
    ) -> None:
        self._places = {station.name: _Place(station) for station in stations}
        self._visits, self._rng, self._variation = visits, rng, variation
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now_s = 0.0
        self._warm_s = 0.0
        self._latencies_ms: list[float] = []
        self._after: Callable[[], None] | None = None

    def arriving(self, per_s: float, *, seconds: float) -> Result:
        """Simulate an open system: turns arrive at random, `per_s` on average."""

        def arrive() -> None:
            self._start()
            self._later(self._rng.expovariate(per_s), arrive)

        arrive()
        return self._run(seconds)

    def closed(self, clients: int, *, seconds: float) -> Result:
        """Simulate a closed system: each client starts a turn when its last one ends."""
        self._after = self._start
        for _ in range(clients):
            self._start()
        return self._run(seconds)

    def _run(self, seconds: float) -> Result:
        """Run and evaluate, leaving out the first fifth of the time, when queues fill."""
        self._warm_s = seconds / 5
        while self._events and self._events[0][0] <= seconds:
            self._now_s, _, happen = heapq.heappop(self._events)
            happen()
        found = sorted(self._latencies_ms) or [0.0]
        measured_s = seconds - self._warm_s
        busy = {
            name: place.busy_s / (measured_s * place.station.servers)
            for name, place in self._places.items()
            if place.station.servers is not None
        }
        return Result(
            len(self._latencies_ms) / measured_s, percentile(found, 0.5), percentile(found, 0.99),
            sum(found) / len(found), busy,
        )  # fmt: skip

    def _later(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + delay_s, next(self._numbers), happen))

    def _start(self) -> None:
        self._arrive(_Turn(self._visits(self._rng), self._now_s))

    def _arrive(self, turn: _Turn) -> None:
        if turn.at == len(turn.visits):
            if self._now_s >= self._warm_s:
                self._latencies_ms.append((self._now_s - turn.since_s) * 1000)
            if self._after is not None:
                self._after()
            return
        place = self._places[turn.visits[turn.at].station]
        place.waiting.append(turn)
        self._serve(place)

    def _serve(self, place: _Place) -> None:
        while place.waiting and (place.free is None or place.free > 0):
            group = [place.waiting.popleft() for _ in range(min(len(place.waiting), place.station.batch))]
            took_s = place.station.setup_s + sum(self._draw(turn.visits[turn.at]) for turn in group)
            if place.free is not None:
                place.free -= 1
            ends_s = self._now_s + took_s
            place.busy_s += max(0.0, ends_s - max(self._now_s, self._warm_s))
            self._later(took_s, partial(self._leave, place, group))

    def _leave(self, place: _Place, group: Sequence[_Turn]) -> None:
        # The server is free when the whole group has moved on: a turn that returns at once joins the next group.
        for turn in group:
            turn.at += 1
            self._arrive(turn)
        if place.free is not None:
            place.free += 1
        self._serve(place)

    def _draw(self, visit: Visit) -> float:
        if self._variation == 0 or visit.mean_s == 0 or visit.constant:
            return visit.mean_s
        shape = 1 / self._variation**2
        return self._rng.gammavariate(shape, visit.mean_s / shape)
