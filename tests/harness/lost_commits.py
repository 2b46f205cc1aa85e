"""Answers lost around a COMMIT: the ledger must find out by itself whether each operation happened, and do it once."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from gateway.database.database import transaction
from gateway.database.tables import holds, ledger_entries, tenants
from gateway.errors import LedgerUnavailable
from gateway.ledger.types import Reserved
from tests.harness.auditor import assert_url_sound
from tests.harness.faultproxy import FaultProxy
from tests.harness.money import start_bench, stop_bench

HOLD_NANOUSD, BILL_NANOUSD = 1_000, 700


@dataclass(frozen=True, slots=True)
class AmbiguityFigures:
    lost_answers: int
    reserved: int
    settled: int
    unconfirmed: int
    doubled: int

    def as_line(self) -> str:
        return (
            f"{self.lost_answers} connections cut after the server had the request, {self.reserved} reservations and "
            f"{self.settled} settlements confirmed, {self.unconfirmed} not confirmed to their callers, "
            f"settled twice: {self.doubled}, lost: 0"
        )


async def ambiguous_commits(url: str, *, seed: int, wanted: int, at_once: int = 16) -> AmbiguityFigures:
    """Reserve and settle through a proxy that loses answers, until `wanted` were lost; then count the books."""
    server = make_url(url)
    assert server.host is not None
    assert server.port is not None
    confirmed: list[str] = []
    counts = {"reserved": 0, "unconfirmed": 0}
    async with FaultProxy(server.host, server.port, seed=seed) as proxy:
        through = server.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        bench = await start_bench(through, clock_url=url)  # not through the proxy, which waits for this loop
        await bench.tenant("acme")
        bench.hands.at_ms = int(time.time() * 1000)

        async def turns(draw: random.Random) -> None:
            while proxy.lost_answers < wanted:
                try:
                    op, outcome = await bench.reserve(HOLD_NANOUSD, session=f"s{draw.randrange(50)}")
                    if not isinstance(outcome, Reserved):
                        continue
                    counts["reserved"] += 1
                    await bench.ledger.settle(bench.bill(op, BILL_NANOUSD))
                    confirmed.append(op.hold_id)
                except LedgerUnavailable:
                    counts["unconfirmed"] += 1

        proxy.lose_answers = 0.2
        draw = random.Random(seed)
        await asyncio.gather(*(turns(random.Random(draw.random())) for _ in range(at_once)))
        proxy.heal()
        async with asyncio.timeout(60):
            while bench.ledger.unresolved or bench.ledger._undoing:  # noqa: ASYNC110 - the ledger's own repeating
                await asyncio.sleep(0.05)
        await stop_bench(bench)
    assert_url_sound(url)
    with transaction(url, read_only=True) as connection:
        settled = set(connection.execute(select(holds.c.hold_id).where(holds.c.state == "settled")).scalars())
        per_hold = (
            select(func.count().label("entries"))
            .where(ledger_entries.c.kind.in_(("settle", "late_post")))
            .group_by(ledger_entries.c.hold_id)
            .subquery()
        )
        doubled = connection.execute(
            select(func.count()).select_from(per_hold).where(per_hold.c.entries > 1)
        ).scalar_one()
        spent = connection.execute(select(tenants.c.spent_nanousd).where(tenants.c.tenant_id == "acme")).scalar_one()
    lost = set(confirmed) - settled
    assert not lost, f"{len(lost)} confirmed settlements are not in the ledger"
    assert doubled == 0
    assert spent == BILL_NANOUSD * len(settled)
    return AmbiguityFigures(proxy.lost_answers, counts["reserved"], len(confirmed), counts["unconfirmed"], int(doubled))
