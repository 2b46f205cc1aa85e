"""A seeded simulation of turns over the ledger, with faults: who leaves, what fails around a commit, who crashes.

    python -m tests.harness.simulator --seeds 0:10000        (a failing seed prints the command that repeats it)

Everything runs in one thread on virtual time: the real ledger and the real SQLite operations, on a database in memory,
between a simulated client and a simulated upstream that keeps its own bill. One to three gateways share the database,
which has its own clock as Postgres has; theirs are off by seconds, minutes or an hour, and step while calls are under
way. Each seed draws its own rates of faults (a swarm), and two phases: in *safety* faults are on; in *liveness* they
are off, and within a lease and two sweeps nothing may be held any more. Then the books are compared: I1 to I8 of the
ledger's contract.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from alembic import command
from sqlalchemy import Connection, text

from gateway.accounts import keys, tenants
from gateway.clock import SteadyClock
from gateway.database import sqlite_connection as db_sqlite
from gateway.database.database import Database
from gateway.errors import LedgerUnavailable, LedgerUnsure
from gateway.ledger.audit import audit
from gateway.ledger.ledger import Ledger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.types import (
    Checkpoint,
    Reserve,
    Reserved,
    SessionTerms,
    Settle,
)
from migrations.upgrade import configuration
from tests.harness.money import DECISION

T = TypeVar("T")

START_MS = 1_800_000_000_000
LEASE_MS = 30_000
SWEEP_S = 5.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        return self._now_s

    def pass_time(self, seconds: float) -> None:
        self._now_s += seconds


class _NoWait(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None and timeout > 0:
            self._loop.pass_time(timeout)
        elif not ready and timeout is None:
            raise RuntimeError("deadlock: everybody waits for something that never comes")
        return ready


@dataclass(frozen=True)
class Swarm:
    """What one seed is like."""

    sessions: int
    clients: int
    turns: int
    session_nanousd: int
    tenant_nanousd: int
    key_nanousd: int | None
    window: str | None
    leave: float
    fail_before: float
    fail_after: float
    crash: float
    overbill: float
    stall: float
    silence: float
    skews_s: tuple[float, ...]
    """How far each gateway's wall clock is off; one gateway each."""
    step: float
    """Chance of a step of a wall clock, every ten seconds and gateway."""

    @classmethod
    def draw(cls, dice: random.Random) -> Swarm:
        def rate(most: float) -> float:
            return dice.choice((0.0, dice.uniform(0, most)))

        return cls(
            sessions=dice.randint(1, 6),
            clients=dice.randint(1, 12),
            turns=dice.randint(1, 12),
            session_nanousd=dice.choice((300, 2_000, 10**9)),
            tenant_nanousd=dice.choice((500, 5_000, 10**9)),
            key_nanousd=dice.choice((None, None, 700, 10**9)),
            window=dice.choice((None, "1h", "1d")),
            leave=rate(0.5),
            fail_before=rate(0.4),
            fail_after=rate(0.4),
            crash=rate(0.3),
            overbill=rate(0.3),
            stall=rate(0.3),
            silence=rate(0.3),
            skews_s=tuple(draw_skew(dice) for _ in range(dice.randint(1, 3))),
            step=rate(0.5),
        )


def draw_skew(dice: random.Random) -> float:
    """Nothing, seconds, minutes or an hour, either way."""
    return dice.choice((0.0, 1.0, -1.0)) * dice.choice((3.0, LEASE_MS / 1000 + 1, 300.0, 3_600.0))


class SteppingClock:
    """A wall clock that is off, and that somebody sets while the process runs."""

    def __init__(self, skew_s: float) -> None:
        self.skew_s = skew_s

    def __call__(self) -> float:
        return START_MS / 1000 + asyncio.get_running_loop().time() + self.skew_s


Fate = Literal["dispatched", "acknowledged", "crashed"]


@dataclass
class Call:
    """One attempt as client and upstream know it: what was billed, and what the client was told."""

    hold_id: str
    amount_nanousd: int
    fate: Fate = "dispatched"
    billed_nanousd: int = 0
    settled_nanousd: int | None = None
    renewed_s: float = 0.0
    """When the last renewal that was confirmed was asked for."""
    lapsed: bool = False
    """Whether its lease may have run out, because a renewal came late or was never confirmed."""

    def renewed(self, asked_s: float, confirmed_s: float) -> None:
        self.lapsed |= confirmed_s - self.renewed_s >= LEASE_MS / 1000
        self.renewed_s = asked_s


@dataclass
class Replica:
    """One gateway: its ledger, its clock and the calls that it carries."""

    ledger: Ledger
    wall: SteppingClock
    carried: set[str] = field(default_factory=set)


@dataclass
class World:
    """Client history and upstream bill."""

    calls: dict[str, Call] = field(default_factory=dict)
    number: int = 0

    def new_id(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}_{self.number:06d}"


class InlineThreads:
    """Both threads of a SQLite database on one connection: each operation is a transaction, answered a moment later.

    Around a commit it fails as a database does: before (nothing happened) or after (it did, and nobody was told).
    """

    def __init__(self, connection: Any, dice: random.Random, swarm: Swarm) -> None:
        self._cursor = connection.cursor()
        self._dice = dice
        self.swarm = swarm
        self.faults = True
        self.exclusive = False

    @property
    def writer(self) -> InlineThreads:
        return self

    reader = writer

    def submit(self, run: Callable[[Any], T], **_: Any) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        stalls = self.faults and self._dice.random() < self.swarm.stall
        loop.call_later(self._dice.uniform(0, 20.0 if stalls else 0.01), self._execute, run, future)
        return future

    def _execute(self, run: Callable[[Any], T], future: asyncio.Future[T]) -> None:
        if self.faults and self._dice.random() < self.swarm.fail_before:
            self._fail(future, LedgerUnavailable("simulated: before the commit"))
            return
        self._cursor.execute("BEGIN IMMEDIATE")
        try:
            result = run(self._cursor)
        except Exception as error:  # noqa: BLE001 - it goes to the one who asked
            self._cursor.execute("ROLLBACK")
            self._fail(future, error)
            return
        self._cursor.execute("COMMIT")
        if self.faults and self._dice.random() < self.swarm.fail_after:
            self._fail(future, LedgerUnsure("simulated: after the commit"))
        elif not future.cancelled():
            asyncio.get_running_loop().call_later(self._dice.uniform(0, 0.01), _resolve, future, result)

    def _fail(self, future: asyncio.Future[Any], error: Exception) -> None:
        if not future.cancelled():
            future.set_exception(error)
            future.exception()  # a client that left does not read it; that is no defect here


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


class Simulation:
    """One seed: `run` raises AssertionError when a law is broken."""

    def __init__(self, seed: int, connection: Any) -> None:
        self.dice = random.Random(seed)
        self.swarm = Swarm.draw(self.dice)
        # In half of the seeds the sessions are one tree, in which each spends the money of those above it.
        self.tree = random.Random(seed + 2).random() < 0.5
        self.world = World()
        self.engine = db_sqlite.core_engine(connection, begin="BEGIN IMMEDIATE")
        self.threads = InlineThreads(connection, random.Random(seed + 1), self.swarm)
        self.background: set[asyncio.Task[Any]] = set()
        self.key_id: str | None = None

    def now_ms(self) -> int:
        return START_MS + int(asyncio.get_running_loop().time() * 1000)

    def replica(self, skew_s: float) -> Replica:
        """A gateway whose wall clock is off by `skew_s`; the database's is right."""
        wall = SteppingClock(skew_s)
        steady = SteadyClock(wall, asyncio.get_running_loop().time)
        backend = SqliteLedger(self.threads, self.database_clock(wall))
        return Replica(Ledger(Database("sqlite://"), clock=steady, backend=backend), wall)

    def database_clock(self, wall: SteppingClock) -> Callable[[], float]:
        """The one clock that decides, for every replica."""
        return lambda: self.now_ms() / 1000

    async def run(self) -> None:
        self._open_tenant()
        self.replicas = [self.replica(skew_s) for skew_s in self.swarm.skews_s]
        loops = [asyncio.create_task(work(one)) for one in self.replicas for work in (self._sweep_forever, self._step)]
        clients = [asyncio.create_task(self._client()) for _ in range(self.swarm.clients)]
        await asyncio.gather(*clients)
        # Liveness: faults stop; a lease and two sweeps later nothing may be held, and every bill is posted.
        self.threads.faults = False
        await asyncio.sleep(LEASE_MS / 1000 + 2 * SWEEP_S + 25)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, *self.background, return_exceptions=True)
        for one in self.replicas:
            assert one.ledger.unresolved == 0, "a bill is still waiting though the database is back"
            assert not one.ledger._undoing
            await one.ledger.close()
        self._compare_books()

    def _core(self, run: Callable[[Connection], T]) -> T:
        with self.engine.begin() as core:
            return run(core)

    def _open_tenant(self) -> None:
        def make(core: Connection) -> None:
            tenants.create_tenant(
                core,
                "acme",
                "acme",
                budget_nanousd=self.swarm.tenant_nanousd,
                window=self.swarm.window,
                actor="sim",
                now_ms=START_MS,
            )
            if self.swarm.key_nanousd is not None:
                self.key_id = keys.create_key(
                    core,
                    "key_1",
                    "acme",
                    budget_nanousd=self.swarm.key_nanousd,
                    actor="sim",
                    now_ms=START_MS,
                    entropy=self.dice.randbytes,
                ).key.key_id

        self._core(make)

    async def _sweep_forever(self, one: Replica) -> None:
        while True:
            with suppress(LedgerUnavailable):
                await one.ledger.sweep(carried=one.carried)
            await asyncio.sleep(SWEEP_S)

    async def _step(self, one: Replica) -> None:
        """Somebody sets this gateway's clock, again and again."""
        while True:
            await asyncio.sleep(10)
            if self.threads.faults and self.dice.random() < self.swarm.step:
                one.wall.skew_s += draw_skew(self.dice)

    async def _client(self) -> None:
        for _ in range(self.swarm.turns):
            turn = asyncio.create_task(self._turn(f"s{self.dice.randrange(self.swarm.sessions)}"))
            if self.dice.random() < self.swarm.leave:
                await asyncio.sleep(self.dice.uniform(0, 0.2))
                turn.cancel()
            with suppress(asyncio.CancelledError, LedgerUnavailable):
                await turn
            if self.dice.random() < 0.1:
                await asyncio.sleep(self.dice.uniform(0, 3_000))

    async def _turn(self, session_id: str) -> None:
        """The shape of the request path: hold, call, bill. A dispatched call is billed even if its client leaves."""
        one = self.dice.choice(self.replicas)
        hold_id = self.world.new_id("hold")
        asked_s = asyncio.get_running_loop().time()
        amount = self.dice.choice((0, 10, 50, 250))
        outcome = await one.ledger.reserve(
            Reserve(
                hold_id,
                self.world.new_id("att"),
                self.world.new_id("dec"),
                "acme",
                session_id,
                self.key_id,
                "small",
                amount,
                LEASE_MS,
                SessionTerms(self.swarm.session_nanousd),
                DECISION,
                checkpoint_nanousd=amount // 4,
                parent_session_id=self._parent(session_id),
            )
        )
        if not isinstance(outcome, Reserved):
            return
        call = self.world.calls[hold_id] = Call(hold_id, amount, renewed_s=asked_s)
        if self.dice.random() < self.swarm.crash / 2:
            call.fate = "crashed"
            return
        one.carried.add(hold_id)
        await self._call_upstream(one, call)

    def _parent(self, session_id: str) -> str | None:
        """The parent in a binary tree: s1 and s2 are children of s0, s3 and s4 of s1."""
        number = int(session_id[1:])
        return f"s{(number - 1) // 2}" if self.tree and number else None

    async def _call_upstream(self, one: Replica, call: Call) -> None:
        """Streams for a while; the bill grows with it. A crash stops everything here without a word."""
        loop = asyncio.get_running_loop()
        try:
            for step in range(self.dice.randint(1, 4)):
                # A process that is stopped for a while loses its leases, and finds its holds resolved when it wakes.
                silent = self.dice.random() < self.swarm.silence
                await asyncio.sleep(self.dice.uniform(20, 60) if silent else self.dice.uniform(0, 8))
                call.billed_nanousd = max(call.billed_nanousd, call.amount_nanousd * (step + 1) // 4)
                if self.dice.random() < self.swarm.crash / 4:
                    call.fate = "crashed"
                    return
                asked_s = loop.time()
                with suppress(LedgerUnavailable):
                    margin_nanousd = self.dice.choice((0, call.amount_nanousd // 2))
                    point = Checkpoint(call.hold_id, call.billed_nanousd + margin_nanousd, LEASE_MS)
                    await one.ledger.checkpoint([point])
                    call.renewed(asked_s, loop.time())
            if self.dice.random() < self.swarm.overbill:
                call.billed_nanousd = call.amount_nanousd + self.dice.randint(1, 100)
        finally:
            one.carried.discard(call.hold_id)
            if call.fate != "crashed":
                await asyncio.shield(self._spawn(self._settle(one, call)))

    async def _settle(self, one: Replica, call: Call) -> None:
        call.settled_nanousd = call.billed_nanousd
        asked_s = asyncio.get_running_loop().time()
        with suppress(LedgerUnavailable):
            await one.ledger.settle(Settle(call.hold_id, call.billed_nanousd, "reported", {"status": "completed"}))
            call.fate = "acknowledged"
            call.renewed(asked_s, asyncio.get_running_loop().time())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    def _compare_books(self) -> None:
        """Ledger against client history and upstream bill."""
        broken = self._core(lambda core: audit(core, now_ms=self.now_ms(), grace_ms=0))
        assert broken == [], "\n".join(map(str, broken))
        rows = self._core(lambda core: {row.hold_id: row for row in core.execute(text("SELECT * FROM holds"))})
        assert all(row.state != "open" for row in rows.values()), "a hold is open after its lease and two sweeps"
        for hold_id, row in rows.items():
            assert hold_id in self.world.calls or not row.posted_nanousd, f"{hold_id}: {row.posted_nanousd} for no call"
        for call in self.world.calls.values():
            row = rows[call.hold_id]
            if call.settled_nanousd is None:
                assert row.posted_nanousd <= row.amount_nanousd, f"{call}: an orphan is never billed above its hold"
                continue
            # The bill was handed to the ledger: it is posted, exactly, also when the sweeper was first.
            assert row.posted_nanousd == call.settled_nanousd, f"{call}: posted {row.posted_nanousd} as {row.state}"
            # Whose lease was renewed in time is nobody's orphan, whatever any gateway's clock says.
            renewed = call.fate == "acknowledged" and not call.lapsed
            assert not renewed or row.state == "settled", f"{call}: {row.state} though its lease was renewed in time"
        overage = self._core(
            lambda core: core.execute(text("SELECT count(*) FROM ledger_entries WHERE kind = 'overage'")).scalar_one()
        )
        if not self.swarm.overbill and not any(row.late for row in rows.values()):
            assert overage == 0, "an overage though the upstream never billed above a hold"


def template() -> Any:
    """A connection to a migrated, empty database in memory, to start every seed from."""
    connection = db_sqlite.driver.connect(":memory:", isolation_level=None)
    engine = db_sqlite.core_engine(connection, begin="BEGIN IMMEDIATE")
    with engine.begin() as core:
        command.upgrade(configuration(core), "head")
    return connection


def in_a_copy(empty: Any, work: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Run `work(connection)` in virtual time on a copy of the database `empty`."""
    connection = db_sqlite.driver.connect(":memory:", isolation_level=None)
    empty.backup(connection)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(work(connection))
    finally:
        connection.close()


def simulate(seed: int, empty: Any) -> None:
    """Run one seed on a copy of the database `empty`. Raises AssertionError."""
    in_a_copy(empty, lambda connection: Simulation(seed, connection).run())


def run_seeds(module: str, about: str, *simulations: Callable[[int, Any], None]) -> int:
    """The command line of a simulator: run the seeds that it names, and print those that fail."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:1000", help="first:last, the last not included")
    first, last = map(int, parser.parse_args().seeds.split(":"))
    empty = template()
    failed = 0
    for seed in range(first, last):
        try:
            for each in simulations:
                each(seed, empty)
        except Exception as error:  # noqa: BLE001 - every way to fail is a finding
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
            print(f"  again: python -m {module} --seeds {seed}:{seed + 1}")
    print(f"{last - first} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_seeds("tests.harness.simulator", __doc__, simulate))
