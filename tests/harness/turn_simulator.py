"""A seeded simulation of the request path itself: the real handler and ledger, a fake provider, virtual time.

    python -m tests.harness.turn_simulator --seeds 0:1000     (a failing seed prints the command that repeats it)

Everything of `gateway.turn.turn` down to the SQLite statements is real; provider, tokenizer and authentication are not.
Each seed draws its own rates (a swarm): commits that fail before or after, providers that refuse, break, stall or
report nothing, clients that leave, and a handler that is cancelled at its n-th await. After the faults come a lease
and two sweeps of peace; then nothing may be held, running or unposted, and the books of client, provider and ledger
are compared. `at_every_await` cancels one and the same turn at each of its awaits in turn.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import text
from starlette.requests import Request

from gateway.accounts import tenants
from gateway.accounts.auth import Authenticator
from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.live import Configuration
from gateway.catalog.tokens import TokenCounter
from gateway.clock import SteadyClock
from gateway.config.settings import LimitSettings, RateQuota, RouterSettings, SessionSettings, Settings
from gateway.database import sqlite_connection as db_sqlite
from gateway.database.database import Database
from gateway.decisions.refused_turns import RefusedTurns
from gateway.errors import GatewayError, LedgerUnavailable, http_status
from gateway.http import json_response
from gateway.ledger.audit import audit
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.sqlite import SqliteLedger
from gateway.metrics import Metrics
from gateway.providers.balance import Demand, LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.providers.providers import Upstream
from gateway.routing.conversations import Conversations
from gateway.routing.exploration import ExplorationBudget
from gateway.routing.observe import Observer
from gateway.routing.router import Router
from gateway.tasks import Background
from gateway.turn.call import ProviderCalls
from gateway.turn.decide import Decider, Estimator
from gateway.turn.deliver import Delivery
from gateway.turn.endpoints import read_chat
from gateway.turn.follow_up import FollowUps
from gateway.turn.prepare import Preparation
from gateway.turn.reserve import Reservations
from gateway.turn.retry import RetryBudget
from gateway.turn.settle import Listeners, Settlements
from gateway.turn.stall_rule import StallRule
from gateway.turn.turn import Turns
from gateway.turn.waiting import WAIT_S, HeldMoney
from policy.reload import CheckpointRef, LoadedPolicy, ServingPolicies
from policy.rules import Cheapest
from tests.harness.models import catalog, deployment, model
from tests.harness.simulated_provider import Attempt, SimulatedKeys, SimulatedProvider, SimulatedTokens, TurnSwarm
from tests.harness.simulator import (
    LEASE_MS,
    START_MS,
    SWEEP_S,
    InlineThreads,
    SteppingClock,
    Swarm,
    draw_skew,
    in_a_copy,
    run_seeds,
)

T = TypeVar("T")
CLOSING_TOKENS = 256
"""What a session keeps the money for, at least: the answer of a closing turn."""
CROWD_NEEDS_NANOUSD = 3_600_000
"""A little more than a turn of the simulated model holds for an answer of its likely length."""


@dataclass(slots=True)
class Seen:
    """One turn as its client saw it."""

    tag: str
    stream: bool = False
    status: int | None = None
    body: bytes = b""
    ended: bool = False
    steps: int = 0
    seconds: float = 0.0
    session: str = "s"
    finish: str | None = None
    """What `x-seqroute-finish` said."""
    max_tokens: int | None = None
    """The limit of its answer, where the money set it."""

    @property
    def acknowledged(self) -> bool:
        return self.status == 200 and self.ended and (not self.stream or b"data: [DONE]" in self.body)


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
        self.clock_dice = random.Random(seed + 3)
        self.fallback = False
        """True if another model answers for one that fails."""
        self.seen: list[Seen] = []
        self._numbers = iter(range(10**9))

    def clock(self) -> float:
        return self.steady()

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self._numbers):06d}"

    def start(self) -> None:
        """Everything between the request and the statements, as `gateway.composition.turns` puts it together."""
        small = model(deployments=(deployment("small#0"), deployment("small#1")))
        models = [small, model("spare")] if self.fallback else [small]
        fallbacks = {"small": ("spare",)} if self.fallback else {}
        session = SessionSettings(self.swarm.session_nanousd, 10**10, wrap_up=self.swarm.wrap_up)
        settings = Settings(models=(), router=RouterSettings(num_retries=1, fallbacks=fallbacks), session=session)
        configuration = Configuration(settings, catalog(*models))
        self.wall = SteppingClock(draw_skew(self.clock_dice))
        self.steady = SteadyClock(self.wall, asyncio.get_running_loop().time)
        self.ledger = Ledger(Database("sqlite://"), clock=self.clock, backend=SqliteLedger(self.threads, self.clock))
        self.leases = Leases(self.ledger, self.clock, ttl_s=LEASE_MS / 1000)
        self.background = Background()
        self.balancers: list[LoadBalancer] = []
        self.waiting = [HeldMoney() for _ in range(self.swarm.replicas)]
        self.replicas = [self._replica(settings, configuration, held) for held in self.waiting]
        with self.engine.begin() as core:
            tenants.create_tenant(
                core, "acme", "acme", budget_nanousd=self.swarm.tenant_nanousd, actor="sim", now_ms=START_MS
            )

    def _replica(self, settings: Settings, configuration: Configuration, held: HeldMoney) -> Turns:
        metrics, forecast = Metrics(), OutputForecast()
        tokens = cast(TokenCounter, SimulatedTokens())
        unused: Any = None
        cheapest = LoadedPolicy(Cheapest(), CheckpointRef("rule:cheapest"), {})
        conversations = Conversations(self.ledger, unused, clock=self.clock, new_id=self.new_id)
        breaker = Breaker(self.clock, lambda: settings.router)
        balancer = LoadBalancer(self.clock, lambda: settings.router)
        self.balancers.append(balancer)
        settling = Settlements(
            ledger=self.ledger, leases=self.leases, tokens=tokens, forecast=forecast, metrics=metrics,
            clock=self.clock, listeners=Listeners(lambda tenant_id, session_id: held.freed((tenant_id, session_id))),
        )  # fmt: skip
        decider = Decider(
            estimator=Estimator(configuration=lambda: configuration, forecast=forecast, breaker=breaker, held=held),
            observer=Observer(),
            router=Router(
                lambda: settings.policy, cheapest, lambda: ServingPolicies(cheapest), monotonic=self.clock,
                on_fault=lambda: None,
            ),
            exploring=ExplorationBudget(lambda: settings.policy.exploration_nanousd_per_day, self.clock),
            metrics=metrics, clock=self.clock, uniform=self.dice.random,
        )  # fmt: skip
        reservations = Reservations(
            configuration=lambda: configuration, decider=decider, ledger=self.ledger, leases=self.leases,
            settling=settling, balancer=balancer, held=held, new_id=self.new_id,
        )  # fmt: skip
        return Turns(
            configuration=lambda: configuration,
            authenticator=cast(Authenticator, SimulatedKeys()),
            preparation=Preparation(
                configuration=lambda: configuration, ledger=self.ledger, tokens=tokens, breaker=breaker,
                balancer=balancer, outage=OfflineLedger(unused, cap_nanousd=0, clock=self.clock, new_id=self.new_id),
                conversations=conversations, clock=self.clock,
            ),
            stall_rule=StallRule(
                configuration=lambda: configuration, database=unused, clock=self.clock, new_id=self.new_id
            ),
            reservations=reservations,
            calls=ProviderCalls(
                configuration=lambda: configuration, upstream=cast(Upstream, self.provider), breaker=breaker,
                reservations=reservations, settling=settling, background=self.background, clock=self.clock,
                follow_ups=FollowUps(
                    configuration=lambda: configuration, breaker=breaker, balancer=balancer, decider=decider,
                    reservations=reservations, budget=RetryBudget(self.clock), uniform=self.dice.random,
                ),
            ),
            delivery=Delivery(
                configuration=lambda: configuration, settling=settling, leases=self.leases,
                background=self.background, refused=RefusedTurns(self.clock), clock=self.clock,
            ),
            background=self.background,
        )  # fmt: skip

    async def run(self) -> None:
        self.start()
        loops = [asyncio.create_task(work) for work in (self.leases.run(), self.sweep_forever(), self.set_the_clock())]
        await asyncio.gather(*(self._client(number) for number in range(self.swarm.clients)))
        await self.rest(loops)

    async def crowd(self, stream: bool) -> None:
        """One turn of every client at once, in one session, by whichever replica."""
        self.start()
        loops = [asyncio.create_task(work) for work in (self.leases.run(), self.sweep_forever())]
        await asyncio.gather(*(self.turn(f"{number}", stream=stream) for number in range(self.swarm.clients)))
        await self.rest(loops)

    async def endings(self) -> None:
        """Agents and sub-agents at once in one tree, each until its session has ended."""
        self.start()
        loops = [asyncio.create_task(work) for work in (self.leases.run(), self.sweep_forever())]
        first = await self.turn("root-0", stream=False)
        assert first.status == 200

        async def agent(number: int) -> None:
            session, parent = (f"child-{number}", "s") if number % 3 == 2 else ("s", None)
            for turn in range(1, 1_000):
                streams = self.dice.random() < 0.5
                seen = await self.turn(f"{number}-{turn}", stream=streams, session=session, parent=parent)
                if seen.status not in (200, 429):
                    assert seen.status == 402, seen
                    return
                await asyncio.sleep(self.dice.uniform(0, 0.5))
            raise AssertionError("a session without an end")

        await asyncio.gather(*(agent(number) for number in range(self.swarm.clients)))
        await self.rest(loops)

    async def rest(self, loops: list[asyncio.Task[None]]) -> None:
        """Liveness: faults stop, and after a lease and two sweeps nothing is held, running or unposted."""
        self.threads.faults = self.provider.faults = False
        assert await self.background.drain(1_000) == 0, "a settlement never ended"
        await asyncio.sleep(LEASE_MS / 1000 + 2 * SWEEP_S + 25)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        assert [held.waiting for held in self.waiting] == [0] * self.swarm.replicas, "a turn still waits for money"
        idle = [deployment(f"small#{number}", limits=RateQuota(parallel=1)) for number in range(2)]
        kept = [balancer for balancer in self.balancers if balancer.with_room(idle, Demand("sim", 0)) != idle]
        assert not kept, "a deployment's place is kept for a call that ended"
        assert self.leases.count == 0, "a lease is kept for a call that ended"
        assert (self.ledger.unresolved, self.ledger._undoing) == (0, set())
        await self.ledger.close()
        self._compare_books()

    async def sweep_forever(self) -> None:
        while True:
            with suppress(LedgerUnavailable):
                await self.ledger.sweep(carried=self.leases.carried)
            await asyncio.sleep(SWEEP_S)

    async def set_the_clock(self) -> None:
        """The wall clock steps while turns are under way; nothing may notice."""
        while True:
            await asyncio.sleep(self.clock_dice.uniform(0, 10))
            self.wall.skew_s += draw_skew(self.clock_dice)

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
        parent: str | None = None,
    ) -> Seen:
        """One request, from its first byte to its last; its handler is cancelled at await `cancel_at`."""
        seen = Seen(tag, stream, session=session)
        self.seen.append(seen)
        turns = self.dice.choice(self.replicas)
        started_s = asyncio.get_running_loop().time()
        left = asyncio.Event()
        body = json.dumps({"model": "small", "messages": [{"role": "user", "content": tag}], "stream": stream}).encode()
        headers = [(b"x-session-id", session.encode()), (b"content-type", b"application/json")]
        if key is not None:
            headers.append((b"idempotency-key", f"{key}-{tag}".encode()))
        if parent is not None:
            headers.append((b"x-parent-session-id", parent.encode()))
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
                told = dict(message["headers"])
                seen.finish = told.get(b"x-seqroute-finish", b"").decode() or None
                seen.max_tokens = int(told.get(b"x-seqroute-max-tokens", b"0")) or None
            else:
                seen.body += message.get("body", b"")
                seen.ended = not message.get("more_body", False)

        async def handle() -> None:
            scope: Any = {
                "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
                "headers": headers,
            }  # fmt: skip
            try:
                answer = await turns.serve(Request(scope, receive), lambda body, _: read_chat(body, LimitSettings()))
            except GatewayError as error:
                answer = json_response(error.as_body(), http_status(error), error.headers)
            await answer(scope, receive, send)

        task: asyncio.Task[None] = asyncio.create_task(_interrupted(handle(), cancel_at, lambda: task.cancel(), seen))
        if leave_after_s is not None:
            asyncio.get_running_loop().call_later(leave_after_s, left.set)
        with suppress(asyncio.CancelledError):
            await task
        left.set()
        seen.seconds = asyncio.get_running_loop().time() - started_s
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
            assert tag in called or posted == 0, f"{tag}: {posted} posted for no call"
        for seen in self.seen:
            if not seen.acknowledged:
                continue
            holds, attempts = held[seen.tag], called[seen.tag]
            last = attempts[-1]
            assert last.finished, f"{seen.tag}: acknowledged, and the provider never finished"
            if last.reported and len(attempts) == 1 and {row.state for row in holds} == {"settled"}:
                posted = sum(row.posted_nanousd for row in holds)
                assert posted == last.billed_nanousd, f"{seen.tag}: posted {posted}, billed {last.billed_nanousd}"


async def _interrupted(work: Coroutine[Any, Any, T], at: int | None, interrupt: Callable[[], object], seen: Seen) -> T:
    """Runs `work`, and calls `interrupt` when it suspends for the `at`-th time: the cancellation meets that await."""
    return await _stepped(work, at, interrupt, seen)


@types.coroutine
def _stepped(
    work: Coroutine[Any, Any, T], at: int | None, interrupt: Callable[[], object], seen: Seen
) -> Generator[Any, Any, T]:
    """The steps of `_interrupted`: since Python 3.12 a task takes no generator."""
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
    in_a_copy(empty, lambda connection: TurnSimulation(seed, connection).run())


def calm() -> TurnSwarm:
    """One turn and nothing that goes wrong."""
    return TurnSwarm(1, 1, 10**10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def simulate_crowd(seed: int, empty: Any) -> None:
    """Many turns at once in a session that affords a few of them at a time, and no faults. Raises AssertionError.

    Quick answers: all are served in time, since what each spends is little. Slow ones: as many as the session holds
    are served, and all others are told 429 after the wait. Never 402: nothing is spent.
    """
    dice = random.Random(seed)
    affords, quick = dice.randint(1, 4), dice.random() < 0.5
    swarm = replace(
        calm(),
        clients=dice.randint(2, 24),
        replicas=dice.choice((1, 1, 2, 3)),
        session_nanousd=affords * CROWD_NEEDS_NANOUSD,
        pause_s=0.01 if quick else 40.0,
    )
    stream = dice.random() < 0.5

    async def run(connection: Any) -> None:
        simulation = TurnSimulation(seed, connection, swarm, faults=False)
        await simulation.crowd(stream)
        statuses = [seen.status for seen in simulation.seen]
        if quick:
            assert statuses == [200] * swarm.clients, statuses
        waited_s = [seen.seconds for seen in simulation.seen if seen.status == 429]
        assert statuses.count(200) + len(waited_s) == swarm.clients, statuses
        assert all(WAIT_S - 0.5 < seconds < WAIT_S + 0.5 for seconds in waited_s), waited_s
        assert statuses.count(200) >= min(affords, swarm.clients)

    in_a_copy(empty, run)


def simulate_endings(seed: int, empty: Any) -> None:
    """Turns at once, of a session and of sub-agents that spend its money, until all is spent; and no faults.

    Whatever comes together with it, the session's last answer is a closing one. Raises AssertionError.
    """
    dice = random.Random(seed)
    swarm = replace(
        calm(),
        clients=dice.randint(1, 8),
        replicas=dice.choice((1, 2, 3)),
        session_nanousd=dice.randint(15, 40) * CROWD_NEEDS_NANOUSD // 10,
        pause_s=dice.choice((0.01, 0.2)),
        wrap_up=True,
    )

    async def run(connection: Any) -> None:
        simulation = TurnSimulation(seed, connection, swarm, faults=False)
        await simulation.endings()
        last = [seen for seen in simulation.seen if seen.session == "s" and seen.finish == "wrap-up"]
        assert last, "the session ended without a last answer"
        # No stump of an answer: what was kept for it was still there.
        assert max(seen.max_tokens or CLOSING_TOKENS for seen in last) >= CLOSING_TOKENS, last

    in_a_copy(empty, run)


def at_every_await(empty: Any, *, stream: bool, victim: str | None = None, refusals: int = 0) -> int:
    """One turn, cancelled at its first await, then at its second, and so on to its last; answers how many.

    `victim`: a task of the turn's own instead of its handler, by the name of its coroutine ("StreamPump._run").
    `refusals`: that many calls fail, and the model has a fallback.
    """

    async def once(connection: Any, at: int, met: Seen) -> None:
        simulation = TurnSimulation(7, connection, calm(), faults=False)
        simulation.provider.refusals, simulation.fallback = refusals, refusals > 0
        simulation.start()
        if victim is not None:
            asyncio.get_running_loop().set_task_factory(_hunting(victim, at, met))
        loops = [asyncio.create_task(simulation.leases.run()), asyncio.create_task(simulation.sweep_forever())]
        seen = await simulation.turn("only", stream=stream, cancel_at=at if victim is None else None)
        if victim is None:
            met.steps = seen.steps
        await simulation.rest(loops)
        if met.steps < at:
            assert seen.acknowledged, seen
            assert len(simulation.provider.bill) == refusals + 1

    for at in range(1, 10_000):
        met = Seen(victim or "handler")
        in_a_copy(empty, partial(once, at=at, met=met))
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


if __name__ == "__main__":
    simulations = (simulate_turns, simulate_crowd, simulate_endings)
    sys.exit(run_seeds("tests.harness.turn_simulator", __doc__, *simulations))
