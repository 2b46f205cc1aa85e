"""Many budgets whose windows end at one moment, swept by two gateways at once while turns go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from gateway.accounts import tenants
from gateway.database.database import transaction
from gateway.database.tables import ledger_entries
from gateway.database.tables import tenants as tenant_rows
from gateway.ledger.leases import sweep_all
from gateway.ledger.types import Reserved
from tests.harness.auditor import assert_url_sound
from tests.harness.money import START_MS, Bench, open_bench, replica

SPENT_NANOUSD = 7
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class ResetFigures:
    """`calm_s` and `busy_s` are what turns took before the boundary and while the windows turned over."""

    resets: int
    by_each: Sequence[int]
    calm_s: Sequence[float]
    busy_s: Sequence[float]


async def reset_together(url: str, *, budgets: int, turns: int = 50) -> ResetFigures:
    """`budgets` tenants with a window that ends at the same hour, each with money spent in it."""
    async with open_bench(url) as bench, replica(url, bench.hands) as other:
        await asyncio.to_thread(_open, url, budgets)
        calm_s = await _turns(bench, turns)
        # The boundary: both replicas sweep, and clients go on.
        bench.hands.at_ms = START_MS // HOUR_MS * HOUR_MS + HOUR_MS
        one, two, busy_s = await asyncio.gather(sweep_all(bench.ledger), sweep_all(other.ledger), _turns(bench, turns))
        made = await bench.database.read(_resets)
        left = await bench.database.read(_still_spent)
    assert_url_sound(url)
    assert left == 0, f"{left} budgets still show what was spent in the window before"
    return ResetFigures(made, (one.reset, two.reset), calm_s, busy_s)


async def _turns(bench: Bench, turns: int) -> list[float]:
    took_s = []
    for number in range(turns):
        started_s = time.perf_counter()
        op, outcome = await bench.reserve(10, session=f"busy-{number % 5}")
        assert isinstance(outcome, Reserved)
        await bench.ledger.settle(bench.bill(op, 3))
        took_s.append(time.perf_counter() - started_s)
    return took_s


def _open(url: str, budgets: int) -> None:
    with transaction(url) as connection:
        for number in range(budgets):
            name = f"windowed-{number:05d}"
            tenants.create_tenant(
                connection, name, name, budget_nanousd=1_000, window="1h", actor="test", now_ms=START_MS
            )
        _spend(connection, budgets)


def _spend(connection: Connection, budgets: int) -> None:
    windowed = tenant_rows.c.tenant_id.like("windowed-%")
    connection.execute(update(tenant_rows).where(windowed).values(spent_nanousd=SPENT_NANOUSD))
    spent = [
        {
            "kind": "settle", "scope": "tenant", "amount_nanousd": SPENT_NANOUSD, "spent_delta_nanousd": SPENT_NANOUSD,
            "tenant_id": f"windowed-{number:05d}", "usage_source": "reported", "created_at_ms": START_MS,
        }
        for number in range(budgets)
    ]  # fmt: skip
    connection.execute(insert(ledger_entries), spent)


def _resets(connection: Connection) -> int:
    query = select(func.count()).select_from(ledger_entries).where(ledger_entries.c.kind == "reset")
    return int(connection.execute(query).scalar_one())


def _still_spent(connection: Connection) -> int:
    spent = tenant_rows.c.tenant_id.like("windowed-%") & (tenant_rows.c.spent_nanousd != 0)
    return int(connection.execute(select(func.count()).select_from(tenant_rows).where(spent)).scalar_one())
