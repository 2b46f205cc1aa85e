"""Today's Postgres ledger beside one whose rules are Python over loaded rows (decision 11).

    python -m bench.ledger_rules [--turns N] [--rounds N]

The other design loads the rows of a group of operations, applies the rules to them in Python, and writes them back,
with SQLAlchemy Core statements that SQLite understands too. What stands here is the least of it: one tenant and its
sessions, no keys, no parents, no limits, no idempotency, no repeated operations, no memory. What it reaches is an
upper bound for the whole. Both write the same rows for the same turns; 16 clients share one tenant, directly and with a
round trip of 2 ms to the database. The rounds alternate, and the median of each is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, create_engine, insert, select, tuple_, update
from sqlalchemy.engine import make_url

from bench.ledger import FAR_NANOUSD, SESSIONS_PER_TENANT, decision_row, percentile
from gateway.accounts.tenants import create_tenant
from gateway.database.database import Database
from gateway.database.postgres import connect_arguments, database_now_ms
from gateway.database.tables import decisions, holds, ledger_entries, sessions, tenants
from gateway.ledger.ledger import Ledger
from gateway.ledger.records import decision_row as stored_decision
from gateway.ledger.types import Reserve, SessionTerms, Settle
from migrations.upgrade import upgrade
from tests.harness.auditor import assert_url_sound
from tests.harness.faultproxy import FaultProxy
from tests.harness.postgres import PostgresServer, TestDatabases

TENANT = "tenant"
CLIENTS = 16
MAX_GROUP = 64
"""Operations of one transaction, as in gateway/ledger/postgres_batches.py."""
ONE_WAY_S = 0.001

Operation = Reserve | Settle
Apply = Callable[[Operation], Awaitable[object]]


@dataclass(frozen=True)
class Money:
    """The moving part of an account."""

    granted_nanousd: int
    reserved_nanousd: int
    spent_nanousd: int

    @property
    def free_nanousd(self) -> int:
        """The money that can still be reserved."""
        return self.granted_nanousd - self.reserved_nanousd - self.spent_nanousd


class FoldedLedger:
    """Load a group's rows, apply the operations in Python, write the rows, commit; one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[tuple[Operation, asyncio.Future[object]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def apply(self, op: Operation) -> asyncio.Future[object]:
        """The operation's future; it completes after the commit of its group."""
        future: asyncio.Future[object] = self._loop.create_future()
        self._waiting.put((op, future))
        return future

    def close(self) -> None:
        """Stop the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < MAX_GROUP and not self._waiting.empty():
                following = self._waiting.get()
                assert following is not None  # closed only when nothing waits
                group.append(following)
            with self._engine.begin() as connection:
                _apply_group(connection, [op for op, _ in group])
            self._loop.call_soon_threadsafe(_complete, [future for _, future in group])


def _complete(futures: Sequence[asyncio.Future[object]]) -> None:
    for future in futures:
        future.set_result(None)


_LOCK_TENANT = select(tenants).where(tenants.c.tenant_id == TENANT).with_for_update()
_LOAD_HOLDS = select(holds).where(holds.c.hold_id.in_(bindparam("holds", expanding=True)))
_LOAD_SESSIONS = select(sessions).where(
    tuple_(sessions.c.tenant_id, sessions.c.session_id).in_(bindparam("sessions", expanding=True))
)
_MONEY: dict[str, Any] = {"reserved_nanousd": bindparam("reserved"), "spent_nanousd": bindparam("spent")}
_WRITE_TENANT = update(tenants).where(tenants.c.tenant_id == TENANT).values(_MONEY)
_WRITE_SESSIONS = (
    update(sessions)
    .where(sessions.c.tenant_id == TENANT, sessions.c.session_id == bindparam("session"))
    .values(_MONEY | {"turns": bindparam("new_turns"), "last_decision_id": bindparam("decision")})
)
_WRITE_HOLDS = (
    update(holds)
    .where(holds.c.hold_id == bindparam("hold"))
    .values(state="settled", posted_nanousd=bindparam("posted"), resolved_at_ms=bindparam("now"))
)
_WRITE_OUTCOMES = (
    update(decisions)
    .where(decisions.c.decision_id == bindparam("decision"))
    .values(
        status=bindparam("new_status"),
        finish_reason=bindparam("finish"),
        cost_nanousd=bindparam("cost"),
        remaining_after_nanousd=bindparam("remaining"),
        completed_at_ms=bindparam("now"),
    )
)


def _apply_group(connection: Connection, ops: Sequence[Operation]) -> None:
    reserves = [op for op in ops if isinstance(op, Reserve)]
    settles = [op for op in ops if isinstance(op, Settle)]
    payer = connection.execute(_LOCK_TENANT).one()
    tenant = Money(payer.granted_nanousd, payer.reserved_nanousd, payer.spent_nanousd)
    now_ms = database_now_ms(connection)
    held = {}
    if settles:
        opened = connection.execute(_LOAD_HOLDS, {"holds": [op.hold_id for op in settles]})
        held = {row.hold_id: row for row in opened}
    named = {op.session_id for op in reserves} | {row.session_id for row in held.values()}
    loaded = connection.execute(_LOAD_SESSIONS, {"sessions": [(TENANT, name) for name in named]})
    facts = {row.session_id: row for row in loaded}
    funds = {name: Money(row.granted_nanousd, row.reserved_nanousd, row.spent_nanousd) for name, row in facts.items()}
    turns = {name: row.turns for name, row in facts.items()}
    last = {name: row.last_decision_id for name, row in facts.items()}
    new_sessions: list[dict[str, Any]] = []
    new_holds: list[dict[str, Any]] = []
    new_decisions: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []

    for op in reserves:
        name, amount = op.session_id, op.amount_nanousd
        if name not in funds:
            granted = op.terms.default_nanousd
            assert granted is not None
            funds[name], turns[name], last[name] = Money(granted, 0, 0), 0, None
            new_sessions.append(
                {
                    "tenant_id": TENANT,
                    "session_id": name,
                    "granted_nanousd": granted,
                    "created_at_ms": now_ms,
                    "updated_at_ms": now_ms,
                }
            )
            entries.append(_entry("grant", name, now_ms, amount=granted, granted=granted, scope="session"))
        assert min(tenant.free_nanousd, funds[name].free_nanousd) >= amount
        before = funds[name].free_nanousd
        tenant = replace(tenant, reserved_nanousd=tenant.reserved_nanousd + amount)
        funds[name] = replace(funds[name], reserved_nanousd=funds[name].reserved_nanousd + amount)
        turns[name] += 1
        new_holds.append(
            {
                "hold_id": op.hold_id,
                "tenant_id": TENANT,
                "session_id": name,
                "decision_id": op.decision_id,
                "attempt_id": op.attempt_id,
                "model": op.model,
                "amount_nanousd": amount,
                "state": "open",
                "dispatched": 1,
                "checkpoint_nanousd": op.checkpoint_nanousd,
                "expires_at_ms": now_ms + op.ttl_ms,
                "created_at_ms": now_ms,
            }
        )
        entries.append(
            _entry("reserve", name, now_ms, amount=amount, reserved=amount, hold=op.hold_id, attempt=op.attempt_id)
        )
        new_decisions.append(
            stored_decision(op)
            | {
                "turn": turns[name],
                "previous_decision_id": last[name],
                "session_budget_nanousd": funds[name].granted_nanousd,
                "remaining_before_nanousd": before,
                "reserved_nanousd": amount,
                "created_at_ms": now_ms,
            }
        )
        last[name] = op.decision_id

    for end in settles:
        hold, bill = held[end.hold_id], end.amount_nanousd
        assert hold.state == "open"
        name, amount = hold.session_id, hold.amount_nanousd
        tenant = _settled(tenant, amount, bill)
        funds[name] = _settled(funds[name], amount, bill)
        entries.append(
            _entry("settle", name, now_ms, amount=bill, reserved=-amount, spent=bill, hold=end.hold_id)
            | {"usage_source": end.usage_source, "attempt_id": hold.attempt_id}
        )
        ended.append({"hold": end.hold_id, "posted": bill, "now": now_ms})
        outcomes.append(
            {
                "decision": hold.decision_id,
                "new_status": "completed",
                "finish": "stop",
                "cost": bill,
                "remaining": funds[name].free_nanousd,
                "now": now_ms,
            }
        )

    for table, rows in (
        (sessions, new_sessions),
        (holds, new_holds),
        (decisions, new_decisions),
        (ledger_entries, entries),
    ):
        if rows:
            connection.execute(insert(table), rows)
    connection.execute(_WRITE_TENANT, {"reserved": tenant.reserved_nanousd, "spent": tenant.spent_nanousd})
    written = [
        {
            "session": name,
            "reserved": money.reserved_nanousd,
            "spent": money.spent_nanousd,
            "new_turns": turns[name],
            "decision": last[name],
        }
        for name, money in funds.items()
    ]
    connection.execute(_WRITE_SESSIONS, written)
    if settles:
        connection.execute(_WRITE_HOLDS, ended)
        connection.execute(_WRITE_OUTCOMES, outcomes)


def _settled(money: Money, amount_nanousd: int, bill_nanousd: int) -> Money:
    return replace(
        money,
        reserved_nanousd=money.reserved_nanousd - amount_nanousd,
        spent_nanousd=money.spent_nanousd + bill_nanousd,
    )


def _entry(
    kind: str,
    session_id: str,
    now_ms: int,
    *,
    amount: int,
    granted: int = 0,
    reserved: int = 0,
    spent: int = 0,
    scope: str = "turn",
    hold: str | None = None,
    attempt: str | None = None,
) -> dict[str, Any]:
    return {
        "kind": kind,
        "scope": scope,
        "amount_nanousd": amount,
        "granted_delta_nanousd": granted,
        "reserved_delta_nanousd": reserved,
        "spent_delta_nanousd": spent,
        "tenant_id": TENANT,
        "session_id": session_id,
        "hold_id": hold,
        "attempt_id": attempt,
        "usage_source": "none",
        "created_at_ms": now_ms,
    }


@dataclass(frozen=True)
class Speed:
    """Turns per second, and the 99th percentile of an operation in milliseconds."""

    turns_per_s: float
    p99_ms: float


async def _drive(apply: Apply, turns: int) -> Speed:
    numbers, latencies_s = count(), []

    async def timed(op: Operation) -> None:
        started_s = time.perf_counter()
        await apply(op)
        latencies_s.append(time.perf_counter() - started_s)

    async def client(amount: int) -> None:
        for _ in range(amount):
            n = next(numbers)
            hold_id = f"hold_{n:012d}"
            await timed(
                Reserve(
                    hold_id,
                    f"att_{hold_id}",
                    f"dec_{hold_id}",
                    TENANT,
                    f"s{n % SESSIONS_PER_TENANT}",
                    None,
                    "small",
                    1_000,
                    10**9,
                    SessionTerms(FAR_NANOUSD // 1000),
                    decision_row(),
                    checkpoint_nanousd=100,
                )
            )
            await timed(Settle(hold_id, 500, "reported", {"status": "completed", "finish_reason": "stop"}))

    await asyncio.gather(*(client(10) for _ in range(CLIENTS)))
    latencies_s.clear()
    started_s = time.perf_counter()
    await asyncio.gather(*(client(turns // CLIENTS) for _ in range(CLIENTS)))
    return Speed(turns / (time.perf_counter() - started_s), percentile(latencies_s, 0.99))


async def measure_today(url: str, turns: int) -> Speed:
    """The gateway's ledger."""
    database = Database(url, serving=True)
    await database.start()
    ledger = Ledger(database, clock=time.time)
    await ledger.start()

    async def apply(op: Operation) -> object:
        return await (ledger.reserve(op) if isinstance(op, Reserve) else ledger.settle(op))

    speed = await _drive(apply, turns)
    await ledger.close()
    await database.close()
    return speed


async def measure_folded(url: str, turns: int) -> Speed:
    """The other design."""
    engine = create_engine(make_url(url), pool_size=1, max_overflow=0, connect_args=connect_arguments())
    ledger = FoldedLedger(engine)
    speed = await _drive(ledger.apply, turns)
    ledger.close()
    engine.dispose()
    return speed


async def measure(databases: TestDatabases, port: int, design: str, turns: int, *, far: bool) -> Speed:
    """One design on a database of its own, which is audited afterwards."""
    url = databases.create()[1]
    engine = create_engine(url)
    with engine.begin() as connection:
        create_tenant(connection, TENANT, TENANT, budget_nanousd=FAR_NANOUSD, actor="bench", now_ms=1)
    engine.dispose()
    run = {"today": measure_today, "folded": measure_folded}[design]
    if far:
        async with FaultProxy("127.0.0.1", port) as proxy:
            proxy.latency_s = ONE_WAY_S
            speed = await run(make_url(url).set(port=proxy.port).render_as_string(hide_password=False), turns)
    else:
        speed = await run(url, turns)
    assert_url_sound(url)
    return speed


def main() -> None:
    """Print both designs, near and far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    server = PostgresServer()
    try:
        server.start()
        databases = TestDatabases(server.url("postgres"), upgrade)
        for far in (False, True):
            speeds: dict[str, list[Speed]] = {"today": [], "folded": []}
            for _ in range(arguments.rounds):
                for design, measured in speeds.items():
                    measured.append(asyncio.run(measure(databases, server.port, design, arguments.turns, far=far)))
            for design, measured in speeds.items():
                middle = statistics.median(speed.turns_per_s for speed in measured)
                p99_ms = statistics.median(speed.p99_ms for speed in measured)
                where = "round trip of 2 ms" if far else "same machine"
                print(f"{where:18} {design:6} {middle:7.0f} turns/s   p99 {p99_ms:6.1f} ms", flush=True)
    finally:
        server.destroy()


if __name__ == "__main__":
    main()
