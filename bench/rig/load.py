"""Fast load generator: raw asyncio protocols on uvloop with pre-rendered requests.

`closed` keeps clients busy, each with one connection and one request at a time; `arriving` sends at a rate, whatever
comes back. Both measure one window on a warm server; requests running at its end are finished without being counted, so
that the next run starts on an idle server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import cast
from zlib import crc32

HOST = "127.0.0.1"
TURNS_PER_SESSION = 8
DRAIN_S = 60.0
WARM_S = 60.0
PROMPT = "What is the capital of France, and what was it before? "

Meter = Callable[[], Mapping[str, float]]
"""Cumulative CPU seconds by name, read at both ends of a window."""


class RunFailed(Exception):
    """A server's answers cannot be measured: another status, a cut stream, silence."""


@dataclass(frozen=True, slots=True)
class Target:
    """Port, headers and model of the requests.

    `sessions`: name a session in every request; `tenants`: the number of tenants to name as payers.
    """

    port: int
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    sessions: bool = False
    tenants: int = 0

    def requests(self, *, stream: bool, prompt_chars: int = len(PROMPT)) -> Callable[[str], bytes]:
        """A function from a session id to the bytes of one request."""
        prompt = (PROMPT * (prompt_chars // len(PROMPT) + 1))[:prompt_chars]
        asked: dict[str, object] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(asked).encode()
        lines = [f"POST {self.path} HTTP/1.1", f"host: {HOST}:{self.port}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in self.headers.items())]
        head, rest = "\r\n".join(lines).encode(), b"\r\n\r\n" + body
        if not self.sessions:
            return lambda session: head + rest

        def named(session: str) -> bytes:
            name = session.encode()
            payer = b"\r\nx-tenant-id: " + tenant_name(crc32(name) % self.tenants).encode() if self.tenants else b""
            return head + b"\r\nx-session-id: " + name + payer + rest

        return named


def tenant_name(number: int) -> str:
    """Name of a benchmark tenant."""
    return f"bench-{number}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: ascending latencies, times to a stream's first event, CPU seconds by name."""

    latencies_ms: tuple[float, ...]
    first_ms: tuple[float, ...]
    events: int
    elapsed_s: float
    cpu_s: Mapping[str, float]

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return len(self.latencies_ms) / self.elapsed_s

    @property
    def events_per_s(self) -> float:
        """Stream events per second."""
        return self.events / self.elapsed_s


class Exchange(asyncio.Protocol):
    """One keep-alive connection.

    `began` is called at a stream's first event, `replied` when an answer is complete or failed.
    """

    def __init__(self, replied: Callable[[Exchange], None], began: Callable[[Exchange], None]) -> None:
        self._replied, self._began = replied, began
        self.sent_s = self.first_s = self.done_s = 0.0
        self.events = 0
        self.error: str | None = None
        self._busy = False
        self._head: bytes | None = b""
        self._left = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail a running exchange."""
        if self._busy:
            self._finish(f"the connection ended within an answer ({error or 'closed by the server'})")

    def ask(self, request: bytes) -> None:
        """Send one request."""
        if self._transport.is_closing():
            self._finish("the server closed a connection that was kept alive")
            return
        self._busy = True
        self._head, self._tail, self.events, self.first_s, self.error = b"", b"", 0, 0.0, None
        self.sent_s = time.perf_counter()
        self._transport.write(request)

    @property
    def is_open(self) -> bool:
        """True while another request can be sent."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Abort the connection."""
        self._busy = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count events and detect the end of the answer."""
        if self._head is not None:
            self._head += data
            head, separator, data = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head = None
            self._begin(head.lower(), data)
        text = self._tail + data
        # The tail is shorter than the pattern, so nothing is counted twice.
        found = text.count(b"data: {")
        if found:
            self.events += found
            if not self.first_s:
                self.first_s = time.perf_counter()
                self._began(self)
        self._tail = text[-6:]
        if self._left >= 0:
            self._left -= len(data)
            complete = self._left <= 0
        else:
            complete = text.endswith(b"\r\n0\r\n\r\n")
        if complete:
            self._finish(self.error)

    def _begin(self, head: bytes, body: bytes) -> None:
        if b" 200" not in head[:13]:
            line = head.split(b"\r\n", 1)[0].decode()
            self.error = f"{line}: {body[:200]!r}"
        at = head.find(b"\r\ncontent-length:")
        self._left = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else -1

    def _finish(self, error: str | None) -> None:
        self._busy = False
        self.error = error
        self.done_s = time.perf_counter()
        self._replied(self)


class _Run:
    """Counts within the window."""

    def __init__(self, meter: Meter, window_s: float, expect_events: int) -> None:
        self._meter, self._window_s, self._expect_events = meter, window_s, expect_events
        self.latencies_ms: list[float] = []
        self.first_ms: list[float] = []
        self.error: str | None = None
        self.measuring = self.over = False
        self.broke, self.drained = asyncio.Event(), asyncio.Event()

    def take(self, exchange: Exchange) -> None:
        if exchange.error is None and exchange.events < self._expect_events:
            exchange.error = f"a stream of {exchange.events} events, expected at least {self._expect_events}"
        if exchange.error is not None:
            self.fail(exchange.error)
        elif self.measuring:
            self.latencies_ms.append((exchange.done_s - exchange.sent_s) * 1000)

    def begin(self, exchange: Exchange) -> None:
        if self.measuring:
            self.first_ms.append((exchange.first_s - exchange.sent_s) * 1000)

    def fail(self, error: str) -> None:
        self.error = self.error or error
        self.over = True
        self.broke.set()

    async def measure(self, warm: Callable[[], bool], events: Callable[[], int]) -> Sample:
        """Wait until the server is warm, then for the window. Raises RunFailed."""
        deadline_s = time.perf_counter() + WARM_S
        while not warm() and not self.over:
            if time.perf_counter() > deadline_s:
                self.error = f"not every client had an answer within {WARM_S:.0f} s"
                break
            await asyncio.sleep(0.02)
        started_s, events_before, before = time.perf_counter(), events(), self._meter()
        self.measuring = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.broke.wait(), self._window_s)
        self.measuring, self.over = False, True
        elapsed_s, after = time.perf_counter() - started_s, self._meter()
        seen = events() - events_before
        if self.error is None:
            try:
                await asyncio.wait_for(self.drained.wait(), DRAIN_S)
            except TimeoutError:
                self.error = f"answers were still missing {DRAIN_S:.0f} s after the end"
        if self.error is None and not self.latencies_ms and not seen:
            self.error = f"no answer within {elapsed_s:.1f} s"
        if self.error is not None:
            raise RunFailed(self.error)
        used = {name: after[name] - before[name] for name in after}
        return Sample(tuple(sorted(self.latencies_ms)), tuple(sorted(self.first_ms)), seen, elapsed_s, used)


async def closed(
    target: Target, *, clients: int, window_s: float, meter: Meter, stream_events: int = 0, stagger_s: float = 0.0,
    label: str = "bench", prompt_chars: int = len(PROMPT),
) -> Sample:  # fmt: skip
    """Measure `clients` connections that each send a request as soon as the last is answered.

    `stream_events`: request streams of at least this many events. `stagger_s` spreads the clients' first requests over
    that time, the length of a paced stream, so that streams begin and end evenly. Raises RunFailed.
    """
    loop = asyncio.get_running_loop()
    request = target.requests(stream=stream_events > 0, prompt_chars=prompt_chars)
    run = _Run(meter, window_s, stream_events)
    turns = count()
    answered: set[Exchange] = set()
    idle = 0
    past_events = 0

    def replied(exchange: Exchange) -> None:
        nonlocal idle, past_events
        run.take(exchange)
        answered.add(exchange)
        past_events += exchange.events
        exchange.events = 0
        if run.over:
            idle += 1
            if idle == clients:
                run.drained.set()
            return
        exchange.ask(request(f"{label}-{next(turns) // TURNS_PER_SESSION}"))

    exchanges = [await _connected(target.port, replied, run.begin) for _ in range(clients)]
    for number, exchange in enumerate(exchanges):
        first = request(f"{label}-{next(turns) // TURNS_PER_SESSION}")
        loop.call_later(stagger_s * number / clients, exchange.ask, first)
    try:
        return await run.measure(
            warm=lambda: sum(e in answered or e.events > 0 for e in exchanges) == clients,
            events=lambda: past_events + sum(e.events for e in exchanges),
        )
    finally:
        for exchange in exchanges:
            exchange.close()


async def arriving(
    target: Target, *, per_s: float, window_s: float, meter: Meter, rng: Random, connections: int = 64,
    label: str = "rate",
) -> Sample:  # fmt: skip
    """Measure requests that arrive at random, `per_s` on average.

    Latency includes the wait for a free connection. Raises RunFailed, also when the server falls behind by more than
    the connections and a second of arrivals.
    """
    loop = asyncio.get_running_loop()
    request = target.requests(stream=False)
    run = _Run(meter, window_s, 0)
    turns = count()
    waiting: deque[float] = deque()
    free: list[Exchange] = []
    asked_s: dict[Exchange, float] = {}
    enough = False

    def send(exchange: Exchange, since_s: float) -> None:
        asked_s[exchange] = since_s
        exchange.ask(request(f"{label}-{next(turns) // TURNS_PER_SESSION}"))

    def replied(exchange: Exchange) -> None:
        nonlocal enough
        exchange.sent_s = asked_s.pop(exchange, exchange.sent_s)
        run.take(exchange)
        enough = True
        if waiting and not run.over:
            send(exchange, waiting.popleft())
        else:
            free.append(exchange)
        if run.over and not asked_s:
            run.drained.set()

    def arrive() -> None:
        if run.over:
            if not asked_s:
                run.drained.set()
            return
        loop.call_later(rng.expovariate(per_s), arrive)
        if free:
            send(free.pop(), time.perf_counter())
        elif len(waiting) > per_s:
            run.fail(f"it fell behind {per_s:.0f} requests/s")
        else:
            waiting.append(time.perf_counter())

    exchanges = [await _connected(target.port, replied, run.begin) for _ in range(connections)]
    free.extend(exchanges)
    arrive()
    try:
        return await run.measure(warm=lambda: enough, events=lambda: 0)
    finally:
        for exchange in exchanges:
            exchange.close()


async def _connected(port: int, replied: Callable[[Exchange], None], began: Callable[[Exchange], None]) -> Exchange:
    loop = asyncio.get_running_loop()
    try:
        _, exchange = await loop.create_connection(lambda: Exchange(replied, began), HOST, port)
    except OSError as error:
        raise RunFailed(f"no connection to port {port}: {error}") from error
    return exchange


async def set_pace(port: int, *, delay_ms: float, gap_ms: float, chunks: int) -> None:
    """Set the fake provider's timing from the next request on. Raises RunFailed."""
    reader, writer = await asyncio.open_connection(HOST, port)
    body = json.dumps({"delay_ms": delay_ms, "gap_ms": gap_ms, "chunks": chunks}).encode()
    writer.write(b"POST /__pace HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    line = await reader.readline()
    writer.close()
    if b" 200" not in line:
        raise RunFailed(f"the provider refused its pace: {line!r}")
