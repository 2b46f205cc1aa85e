"""A started ledger over a database, and operations with only the numbers that a test is about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
from sqlalchemy import Connection

from gateway.accounts import keys, tenants
from gateway.catalog.usage import UsageSource
from gateway.database.database import Database
from gateway.ledger.ledger import Ledger
from gateway.ledger.rates import TurnLimits
from gateway.ledger.records import SessionRow
from gateway.ledger.types import (
    IdempotencyClaim,
    Refused,
    Release,
    Reserve,
    Reserved,
    ReserveOutcome,
    SessionTerms,
    Settle,
    Swept,
)
from tests.harness.auditor import assert_ledger_sound

START_MS = 1_800_000_000_000
"""2027-01-15T08:00:00Z: any fixed moment."""
TTL_MS = 60_000
FAR_NANOUSD = 10**12


class Hands:
    """Clock and ids that a test moves and reads. Databases that follow it have the same time."""

    def __init__(self, at_ms: int = START_MS) -> None:
        self._at_ms = at_ms
        self.numbers: Any = count(1)
        self._followers: list[str] = []

    @property
    def at_ms(self) -> int:
        return self._at_ms

    @at_ms.setter
    def at_ms(self, at_ms: int) -> None:
        self._at_ms = at_ms
        for url in self._followers:
            with suppress(psycopg.OperationalError):  # a stopped database has no clock to set
                set_database_clock(url, at_ms)

    def lead(self, url: str) -> None:
        """Make a Postgres database's own clock follow this one."""
        if url.startswith("postgresql") and url not in self._followers:
            self._followers.append(url)
            set_database_clock(url, self._at_ms)

    def clock(self) -> float:
        return self.at_ms / 1000

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{next(self.numbers):06d}"


@dataclass
class Bench:
    """A ledger with one tenant `acme`, and short words for its operations."""

    database: Database
    ledger: Ledger
    hands: Hands

    async def tenant(self, tenant_id: str, budget_nanousd: int = FAR_NANOUSD, **more: Any) -> tenants.Tenant:
        def make(connection: Connection) -> tenants.Tenant:
            return tenants.create_tenant(
                connection,
                tenant_id,
                tenant_id,
                budget_nanousd=budget_nanousd,
                actor="test",
                now_ms=self.hands.at_ms,
                **more,
            )

        return await self.database.write(make)

    async def show(self, tenant_id: str = "acme") -> tenants.Tenant:
        return await self.database.read(lambda connection: tenants.get_tenant(connection, tenant_id))

    async def session(self, session_id: str, *, tenant: str = "acme") -> SessionRow | None:
        """A session as a turn reads it; None before its first turn."""
        found = await self.ledger.snapshot(tenant, session_id)
        return None if found is None else found.session

    async def key(self, tenant_id: str = "acme", **more: Any) -> keys.Key:
        def make(connection: Connection) -> keys.Key:
            key_id = self.hands.new_id("key")
            return keys.create_key(connection, key_id, tenant_id, actor="test", now_ms=self.hands.at_ms, **more).key

        return await self.database.write(make)

    def asking(
        self,
        amount_nanousd: int,
        *,
        session: str = "s1",
        tenant: str = "acme",
        ceiling: int | None = None,
        share: int | None = None,
        times_by_hand: int = 0,
        default: int = FAR_NANOUSD,
        key: str | None = None,
        ttl_ms: int = TTL_MS,
        decision: str | None = None,
        claim: IdempotencyClaim | None = None,
        max_turns: int | None = None,
        dispatch: int | None = None,
        row: Mapping[str, Any] | None = None,
        limits: TurnLimits | None = None,
        parent: str | None = None,
        kept: int | None = None,
        closing: bool = False,
    ) -> Reserve:
        """`decision`: the id of an earlier decision that this is a further attempt of; `dispatch`: the checkpoint."""
        return Reserve(
            hold_id=self.hands.new_id("hold"),
            attempt_id=self.hands.new_id("att"),
            decision_id=decision or self.hands.new_id("dec"),
            tenant_id=tenant,
            session_id=session,
            key_id=key,
            model="small",
            amount_nanousd=amount_nanousd,
            ttl_ms=ttl_ms,
            terms=SessionTerms(
                default_nanousd=default,
                ceiling_nanousd=ceiling,
                max_turns=max_turns,
                share_percent=share,
                times_by_hand=times_by_hand,
            ),
            decision=None if decision is not None else DECISION | dict(row or {}),
            idempotency=claim,
            checkpoint_nanousd=dispatch,
            limits=limits,
            parent_session_id=parent,
            kept_nanousd=kept,
            closing=closing,
        )

    async def reserve(self, amount_nanousd: int, **more: Any) -> tuple[Reserve, ReserveOutcome]:
        op = self.asking(amount_nanousd, **more)
        return op, await self.ledger.reserve(op)

    async def held(self, amount_nanousd: int, **more: Any) -> Reserve:
        """A reservation that must succeed."""
        op, outcome = await self.reserve(amount_nanousd, **more)
        assert isinstance(outcome, Reserved), outcome
        return op

    def bill(self, op: Reserve, amount_nanousd: int, source: UsageSource = "reported", **more: Any) -> Settle:
        decision = {"status": "completed", "finish_reason": "stop"} | dict(more.pop("decision", {}))
        return Settle(op.hold_id, amount_nanousd, source, decision=decision, **more)

    def back(self, op: Reserve, *, drop: bool = True) -> Release:
        return Release(op.hold_id, decision={"status": "failed"}, drop_idempotency=drop)

    async def sweep(self, at_ms: int) -> Swept:
        """What the sweeper does when it is that late."""
        self.hands.at_ms = at_ms
        return await self.ledger.sweep()


DECISION: dict[str, Any] = {
    "requested_model": "auto",
    "feature_version": 1,
    "features": b"\x00\x01\xff\x80",
    "candidate_features": b"\x00" * 8,
    "candidates": "[]",
    "lambda_per_usd": 0.1,
    "action": 0,
    "propensity": 0.25,
    "uniform": 0.7,
    "policy_id": "resolving",
    "reason": "policy",
}


@asynccontextmanager
async def open_bench(
    url: str, *, budget_nanousd: int = FAR_NANOUSD, audit: bool = True, serving: bool = False, **database: Any
) -> AsyncIterator[Bench]:
    """A started bench; when the test is through, every invariant of the ledger is checked over its database."""
    bench = await start_bench(url, serving=serving, **database)
    try:
        await bench.tenant("acme", budget_nanousd)
        yield bench
        if audit:
            await assert_ledger_sound(bench.database, at_ms=bench.hands.at_ms)
    finally:
        await stop_bench(bench)


@asynccontextmanager
async def replica(url: str, hands: Hands) -> AsyncIterator[Bench]:
    """Another gateway's ledger on a database that has its tenant already, with the clock and ids of `hands`."""
    bench = await start_bench(url, hands=hands)
    try:
        yield bench
    finally:
        await stop_bench(bench)


def set_database_clock(url: str, at_ms: int) -> None:
    """Set the clock that the ledger's functions on Postgres read; nothing else there knows of it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION seqroute_now_ms() RETURNS bigint LANGUAGE sql VOLATILE"
            f" AS $$ SELECT {int(at_ms)}::bigint $$"
        )


async def start_bench(
    url: str, *, serving: bool = False, hands: Hands | None = None, own_clock: bool = False,
    clock_url: str | None = None, **database: Any,
) -> Bench:  # fmt: skip
    """`own_clock`: Postgres keeps its own time instead of the hands'. `clock_url`: where to set it, past any proxy."""
    hands = hands or Hands()
    if not own_clock:
        hands.lead(clock_url or url)
    opened = Database(url, serving=serving, **database)
    await opened.start()
    ledger = Ledger(opened, clock=hands.clock)
    await ledger.start()
    return Bench(opened, ledger, hands)


async def stop_bench(bench: Bench) -> None:
    await bench.ledger.close()
    await bench.database.close()


async def until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait for something that happens in the background; TimeoutError when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the thing waited for knows nothing of this test
            await asyncio.sleep(0.02)


async def race(*coroutines: Any) -> list[Any]:
    return list(await asyncio.gather(*coroutines))


def admitted(outcomes: list[tuple[Reserve, ReserveOutcome]]) -> list[Reserve]:
    assert all(isinstance(outcome, Reserved | Refused) for _, outcome in outcomes)
    return [op for op, outcome in outcomes if isinstance(outcome, Reserved)]
