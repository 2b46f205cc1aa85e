"""A seeded simulation of the request path itself: the real handler and ledger, a fake provider, virtual time.

    python -m tests.harness.turn_simulator --seeds 0:1000     (a failing seed prints the command that repeats it)

Everything of `gateway.turn` down to the SQLite statements is real; provider, tokenizer and authentication are not.
Each seed draws its own rates (a swarm): commits that fail before or after, providers that refuse, break, stall or
report nothing, clients that leave, and a handler that is cancelled at its n-th await. After the faults come a lease
and two sweeps of peace; then nothing may be held, running or unposted, and the books of client, provider and ledger
are compared. `at_every_await` cancels one and the same turn at each of its awaits in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import text
from starlette.requests import Request

from gateway import db_sqlite, tenants
from gateway.audit import audit
from gateway.auth import Authenticator, Caller
from gateway.background import Background
from gateway.breaker import Breaker
from gateway.configuration import Configuration
from gateway.db import Database
from gateway.errors import GatewayError, LedgerUnavailable
from gateway.exploring import ExplorationBudget
from gateway.faults import BrokenFault, ConnectFault, FailedFault, TimeoutFault
from gateway.forecast import OutputForecast
from gateway.health import Metrics
from gateway.http import error_response
from gateway.leases import Leases
from gateway.ledger import Ledger
from gateway.ledger_sqlite import SqliteLedger
from gateway.observe import Observer
from gateway.outage import OutageBooks
from gateway.replies import Reply
from gateway.router import Router
from gateway.settings import RouterSettings, SessionSettings, Settings
from gateway.settling import Settling
from gateway.tokens import PromptTokens, TokenCounter
from gateway.turn import Turns
from gateway.upstream import Call, Upstream
from gateway.usage import Usage
from tests.harness.models import catalog, deployment, model
from tests.harness.simulator import LEASE_MS, START_MS, SWEEP_S, InlineThreads, Swarm, VirtualLoop, template

T = TypeVar("T")

PROMPT_TOKENS = 10
PROMPT_NANOUSD, OUTPUT_NANOUSD = 1_000, 2_000


@dataclass(frozen=True, slots=True)
class TurnSwarm:
    """What one seed is like; the ledger's own faults come from `Swarm`."""

    clients: int
    turns: int
    tenant_nanousd: int
    cancel: float
    leave: float
    refuse: float
    break_: float
    silent_usage: float
    stall: float

    @classmethod
    def draw(cls, dice: random.Random) -> TurnSwarm:
        def rate(most: float) -> float:
            return dice.choice((0.0, dice.uniform(0, most)))

        return cls(
            clients=dice.randint(1, 8),
            turns=dice.randint(1, 6),
            tenant_nanousd=dice.choice((10**6, 10**7, 10**10)),
            cancel=rate(0.6),
            leave=rate(0.5),
            refuse=rate(0.4),
            break_=rate(0.4),
            silent_usage=rate(0.5),
            stall=rate(0.2),
        )


@dataclass(slots=True)
class Attempt:
    """One call in the provider's books."""

    tag: str
    output_tokens: int = 0
    accepted: bool = False
    reported: bool = False
    finished: bool = False
    open: bool = True

    @property
    def billed_nanousd(self) -> int:
        return PROMPT_TOKENS * PROMPT_NANOUSD + self.output_tokens * OUTPUT_NANOUSD if self.accepted else 0


@dataclass(slots=True)
class Seen:
    """One turn as its client saw it."""

    tag: str
    stream: bool = False
    status: int | None = None
    body: bytes = b""
    ended: bool = False
    steps: int = 0

    @property
    def acknowledged(self) -> bool:
        return self.status == 200 and self.ended and (not self.stream or b"data: [DONE]" in self.body)


class SimulatedProvider:
    """Answers in virtual time, and keeps the books."""

    def __init__(self, dice: random.Random, swarm: TurnSwarm) -> None:
        self._dice = dice
        self._swarm = swarm
        self.faults = True
        self.bill: list[Attempt] = []

    def _fault(self, rate: float) -> bool:
        return self.faults and self._dice.random() < rate

    async def complete(self, call: Call) -> Reply:
        attempt = await self._accept(call)
        try:
            await self._generate(attempt, call)
            broken = self._fault(self._swarm.break_)
            if broken:
                raise self._dice.choice((BrokenFault("cut short"), TimeoutFault("no answer in time")))
            usage = self._usage(attempt)
            message = {"role": "assistant", "content": "w " * attempt.output_tokens}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            return Reply(body, usage, "stop", "small")
        finally:
            attempt.open = False

    async def open_stream(self, call: Call) -> SimulatedStream:
        return SimulatedStream(self, await self._accept(call), call)

    async def _accept(self, call: Call) -> Attempt:
        attempt = Attempt(str(call.messages[-1]["content"]))
        self.bill.append(attempt)
        try:
            await asyncio.sleep(self._dice.uniform(0, 0.5))
            if self._fault(self._swarm.refuse):
                raise self._dice.choice((ConnectFault("refused"), FailedFault("500", status=500)))
        except BaseException:
            attempt.open = False
            raise
        attempt.accepted = True
        return attempt

    async def _generate(self, attempt: Attempt, call: Call) -> None:
        for _ in range(self._dice.randint(1, 8)):
            await self.pause()
            attempt.output_tokens = min(attempt.output_tokens + self._dice.randint(1, 9), call.max_tokens or 10**6)

    async def pause(self) -> None:
        stalls = self._fault(self._swarm.stall)
        await asyncio.sleep(self._dice.uniform(20, 90) if stalls else self._dice.uniform(0, 2))

    def more(self) -> int:
        return self._dice.randint(1, 9)

    def breaks(self) -> bool:
        return self._fault(self._swarm.break_ / 8)

    def _usage(self, attempt: Attempt) -> Usage | None:
        attempt.finished = True
        attempt.reported = not self._fault(self._swarm.silent_usage)
        return Usage(PROMPT_TOKENS, attempt.output_tokens) if attempt.reported else None

    usage_of = _usage


class SimulatedStream:
    """What `gateway.streaming.StreamPump` reads."""

    def __init__(self, provider: SimulatedProvider, attempt: Attempt, call: Call) -> None:
        self._provider, self._attempt, self._call = provider, attempt, call
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self._chunks()

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        attempt = self._attempt
        for _ in range(self._provider.more()):
            await self._provider.pause()
            grown = min(attempt.output_tokens + self._provider.more(), self._call.max_tokens or 10**6)
            words, attempt.output_tokens = "w " * (grown - attempt.output_tokens), grown
            yield {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": None}]}
            if self._provider.breaks():
                raise BrokenFault("reset in mid-stream")
        self.finish_reason = "stop"
        self.usage = self._provider.usage_of(attempt)
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    async def aclose(self) -> None:
        self._attempt.open = False


class SimulatedTokens:
    async def count(self, messages: Any, params: Any) -> PromptTokens:
        await asyncio.sleep(0)
        return PromptTokens(PROMPT_TOKENS, 2 * PROMPT_TOKENS)

    async def count_generated(self, generated: str) -> int:
        await asyncio.sleep(0)
        return len(generated.split())


class SimulatedKeys:
    async def caller(self, headers: Any) -> Caller:
        await asyncio.sleep(0)
        return Caller("acme", "key_1", "tenant", False, None, store_text=True)


class TurnSimulation:
    """One seed: `run` raises AssertionError when a law is broken."""

    def __init__(self, seed: int, connection: Any, swarm: TurnSwarm | None = None, faults: bool = True) -> None:
        self.dice = random.Random(seed)
        self.swarm = swarm or TurnSwarm.draw(self.dice)
        self.engine = db_sqlite.core_engine(connection, begin="BEGIN IMMEDIATE")
        self.threads = InlineThreads(connection, random.Random(seed + 1), Swarm.draw(self.dice))
        self.threads.faults = faults
        self.provider = SimulatedProvider(random.Random(seed + 2), self.swarm)
        self.provider.faults = faults
        self.seen: list[Seen] = []
        self._numbers = iter(range(10**9))

    def clock(self) -> float:
        return START_MS / 1000 + asyncio.get_running_loop().time()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers):06d}"

    def start(self) -> None:
        """Everything between the request and the statements, as `gateway.app.assemble` puts it together."""
        small = model(deployments=(deployment("small#0"), deployment("small#1")))
        settings = Settings(models=(), router=RouterSettings(num_retries=1), session=SessionSettings(10**9, 10**10))
        configuration = Configuration(settings, catalog(small))
        self.ledger = Ledger(Database("sqlite://"), clock=self.clock, backend=SqliteLedger(self.threads))
        self.leases = Leases(self.ledger, self.clock, ttl_s=LEASE_MS / 1000)
        self.background = Background()
        metrics, forecast = Metrics(), OutputForecast()
        tokens = cast(TokenCounter, SimulatedTokens())
        unused: Any = None
        self.turns = Turns(
            configuration=lambda: configuration,
            ledger=self.ledger,
            outage=OutageBooks(unused, cap_nanousd=0, clock=self.clock, new_id=self.new_id),
            authenticator=cast(Authenticator, SimulatedKeys()),
            router=Router(lambda: settings.policy, unused, unused, monotonic=self.clock, on_fault=lambda: None),
            observer=Observer(),
            upstream=cast(Upstream, self.provider),
            tokens=tokens,
            forecast=forecast,
            breaker=Breaker(self.clock, lambda: settings.router),
            leases=self.leases,
            settling=Settling(
                ledger=self.ledger, leases=self.leases, tokens=tokens, forecast=forecast, metrics=metrics,
                clock=self.clock,
            ),
            exploring=ExplorationBudget(lambda: settings.policy.exploration_nanousd_per_day, self.clock),
            background=self.background,
            metrics=metrics,
            clock=self.clock,
            new_id=self.new_id,
            uniform=self.dice.random,
        )  # fmt: skip
        with self.engine.begin() as core:
            tenants.create_tenant(
                core, "acme", "acme", budget_nanousd=self.swarm.tenant_nanousd, actor="sim", now_ms=START_MS
            )

    async def run(self) -> None:
        self.start()
        loops = [asyncio.create_task(self.leases.run()), asyncio.create_task(self.sweep_for_ever())]
        await asyncio.gather(*(self._client(number) for number in range(self.swarm.clients)))
        await self.rest(loops)

    async def rest(self, loops: list[asyncio.Task[None]]) -> None:
        """Liveness: faults stop, and after a lease and two sweeps nothing is held, running or unposted."""
        self.threads.faults = self.provider.faults = False
        assert await self.background.drain(1_000) == 0, "a settlement never ended"
        await asyncio.sleep(LEASE_MS / 1000 + 2 * SWEEP_S + 25)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        assert self.leases.count == 0, "a lease is kept for a call that ended"
        assert (self.ledger.unresolved, self.ledger.undoing) == (0, 0)
        await self.ledger.close()
        self._compare_books()

    async def sweep_for_ever(self) -> None:
        while True:
            with suppress(LedgerUnavailable):
                await self.ledger.sweep(int(self.clock() * 1000))
            await asyncio.sleep(SWEEP_S)

    async def _client(self, number: int) -> None:
        for turn in range(self.swarm.turns):
            await self.turn(
                f"{number}-{turn}",
                session=f"s{self.dice.randrange(4)}",
                stream=self.dice.random() < 0.6,
                cancel_at=self.dice.randint(1, 60) if self.dice.random() < self.swarm.cancel else None,
                leave_after_s=self.dice.uniform(0, 8) if self.dice.random() < self.swarm.leave else None,
                key=f"key-{self.dice.randrange(3)}" if self.dice.random() < 0.3 else None,
            )

    async def turn(
        self,
        tag: str,
        *,
        session: str = "s",
        stream: bool,
        cancel_at: int | None = None,
        leave_after_s: float | None = None,
        key: str | None = None,
    ) -> Seen:
        """One request, from its first byte to its last; its handler is cancelled at await `cancel_at`."""
        seen = Seen(tag, stream)
        self.seen.append(seen)
        left = asyncio.Event()
        body = json.dumps({"model": "small", "messages": [{"role": "user", "content": tag}], "stream": stream}).encode()
        headers = [(b"x-session-id", session.encode()), (b"content-type", b"application/json")]
        if key is not None:
            headers.append((b"idempotency-key", f"{key}-{tag}".encode()))
        arriving = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if arriving:
                return arriving.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            if left.is_set():
                return
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            else:
                seen.body += message.get("body", b"")
                seen.ended = not message.get("more_body", False)

        async def handle() -> None:
            scope: Any = {
                "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
                "headers": headers,
            }  # fmt: skip
            try:
                answer = await self.turns.chat(Request(scope, receive))
            except GatewayError as error:
                answer = error_response(error)
            await answer(scope, receive, send)

        task: asyncio.Task[None] = asyncio.create_task(_interrupted(handle(), cancel_at, lambda: task.cancel(), seen))
        if leave_after_s is not None:
            asyncio.get_running_loop().call_later(leave_after_s, left.set)
        with suppress(asyncio.CancelledError):
            await task
        left.set()
        return seen

    def _compare_books(self) -> None:
        with self.engine.begin() as core:
            broken = audit(core, now_ms=int(self.clock() * 1000), grace_ms=0)
            query = "SELECT h.*, d.request_text FROM holds h JOIN decisions d USING (decision_id)"
            held: dict[str, list[Any]] = {}
            for row in core.execute(text(query)):
                held.setdefault(json.loads(row.request_text)[-1]["content"], []).append(row)
        assert broken == [], "\n".join(map(str, broken))
        called: dict[str, list[Attempt]] = {}
        for attempt in self.provider.bill:
            assert not attempt.open, f"{attempt}: still open at the provider"
            called.setdefault(attempt.tag, []).append(attempt)
        for tag, attempts in called.items():
            holds = held.get(tag, [])
            assert len(attempts) <= sum(row.dispatched for row in holds), f"{tag}: called without a reservation"
            posted = sum(row.posted_nanousd for row in holds)
            billed = sum(attempt.billed_nanousd for attempt in attempts)
            assert posted or not billed, f"{tag}: billed {billed}, nothing posted"
            assert billed <= sum(row.amount_nanousd for row in holds), f"{tag}: billed {billed}, more than was held"
        for tag, holds in held.items():
            posted = sum(row.posted_nanousd for row in holds)
            # A database that is silent for a whole lease lets the sweeper come before the release.
            assert tag in called or posted == 0 or self.threads.swarm.stall, f"{tag}: {posted} posted for no call"
        for seen in self.seen:
            if not seen.acknowledged:
                continue
            holds, attempts = held[seen.tag], called[seen.tag]
            last = attempts[-1]
            assert last.finished, f"{seen.tag}: acknowledged, and the provider never finished"
            if last.reported and len(attempts) == 1 and {row.state for row in holds} == {"settled"}:
                posted = sum(row.posted_nanousd for row in holds)
                assert posted == last.billed_nanousd, f"{seen.tag}: posted {posted}, billed {last.billed_nanousd}"


@types.coroutine
def _interrupted(
    work: Coroutine[Any, Any, T], at: int | None, interrupt: Callable[[], object], seen: Seen
) -> Generator[Any, Any, T]:
    """Runs `work`, and calls `interrupt` when it suspends for the `at`-th time: the cancellation meets that await."""
    error: BaseException | None = None
    value: Any = None
    while True:
        try:
            waited_for = work.throw(error) if error is not None else work.send(value)
        except StopIteration as done:
            result: T = done.value
            return result
        seen.steps += 1
        if seen.steps == at:
            interrupt()
        try:
            value, error = (yield waited_for), None
        except BaseException as thrown:  # noqa: BLE001 - whatever reaches the task belongs to the work
            error = thrown


def simulate_turns(seed: int, empty: Any) -> None:
    """Run one seed on a copy of the database `empty`. Raises AssertionError."""
    _with_copy(empty, lambda connection: TurnSimulation(seed, connection).run())


def at_every_await(empty: Any, *, stream: bool, victim: str | None = None) -> int:
    """One turn, cancelled at its first await, then at its second, and so on to its last; answers how many.

    `victim`: a task of the turn's own instead of its handler, by the name of its coroutine ("StreamPump._run").
    """
    calm = TurnSwarm(1, 1, 10**10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    async def once(connection: Any, at: int, met: Seen) -> None:
        simulation = TurnSimulation(7, connection, calm, faults=False)
        simulation.start()
        if victim is not None:
            asyncio.get_running_loop().set_task_factory(_hunting(victim, at, met))
        loops = [asyncio.create_task(simulation.leases.run()), asyncio.create_task(simulation.sweep_for_ever())]
        seen = await simulation.turn("only", stream=stream, cancel_at=at if victim is None else None)
        if victim is None:
            met.steps = seen.steps
        await simulation.rest(loops)

    for at in range(1, 10_000):
        met = Seen(victim or "handler")
        _with_copy(empty, partial(once, at=at, met=met))
        if met.steps < at:
            return at - 1
    raise AssertionError("a turn without an end")


def _hunting(victim: str, at: int, met: Seen) -> Callable[..., asyncio.Task[Any]]:
    """A task factory that interrupts the tasks of one coroutine at their `at`-th await."""

    def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        if getattr(work, "__qualname__", "") != victim:
            return asyncio.Task(work, loop=loop, **more)
        hunted: list[asyncio.Task[Any]] = []
        task = asyncio.Task(_interrupted(work, at, lambda: hunted[0].cancel(), met), loop=loop, **more)
        hunted.append(task)
        return task

    return make


def _with_copy(empty: Any, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    connection = db_sqlite.driver.connect(":memory:", isolation_level=None)
    empty.backup(connection)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(work(connection))
    finally:
        connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:1000", help="first:last, the last not included")
    first, last = map(int, parser.parse_args().seeds.split(":"))
    empty = template()
    failed = 0
    for seed in range(first, last):
        try:
            simulate_turns(seed, empty)
        except Exception as error:  # noqa: BLE001 - every way to fail is a finding
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
            print(f"  again: python -m tests.harness.turn_simulator --seeds {seed}:{seed + 1}")
    print(f"{last - first} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
