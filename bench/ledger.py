"""Throughput and latency of reserve and settle on SQLite and on Postgres.

    python -m bench.ledger [--turns N] [--clients N] [--json]

A turn consists of the ledger's work for one request: a reservation with its decision row (2 kB of features) and the
dispatch mark, and the bill with its outcome and session memory. Every counted turn was acknowledged after its fsync.
Postgres is that of the tests, with fsync and synchronous_commit on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from sqlalchemy import Connection

from gateway.accounts import tenants
from gateway.database.database import Database
from gateway.dialects.message_digests import MessageDigests
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Reserve, Reserved, SessionTerms, Settle
from gateway.routing import session as sessions
from migrations.upgrade import upgrade
from tests.harness.auditor import assert_url_sound
from tests.harness.postgres import PostgresServer, TestDatabases

FAR_NANOUSD = 10**15
FEATURES = bytes(range(256)) * 4
SESSIONS_PER_TENANT = 20
MEMORY = sessions.memory_update(
    explores=True,
    model="small",
    digests=MessageDigests([{"role": "user", "content": "What is the capital of France?"}]),
    prompt_tokens=900,
    output_tokens=200,
    failed=False,
    regenerated=False,
    tool_error=False,
    at_ms=2,
)


@dataclass(frozen=True)
class Figures:
    """Throughput in turns per second, and latencies of reserve and settle in milliseconds."""

    database: str
    tenants: int
    clients: int
    turns: int
    turns_per_s: float
    reserve_p50_ms: float
    reserve_p99_ms: float
    settle_p50_ms: float
    settle_p99_ms: float


def percentile(values: list[float], level: float) -> float:
    """A percentile of seconds, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * level))] * 1000


async def measure(url: str, name: str, *, payers: int, clients: int, turns: int) -> Figures:
    """Run turns of concurrent clients against one database, then audit it."""
    database = Database(url, serving=True)
    await database.start()
    ledger = Ledger(database, clock=time.time)
    await ledger.start()

    def open_tenants(connection: Connection) -> None:
        for n in range(payers):
            tenants.create_tenant(
                connection,
                f"{name}-{payers}-{n}",
                f"{name}-{payers}-{n}",
                budget_nanousd=FAR_NANOUSD,
                actor="bench",
                now_ms=1,
            )

    await database.write(open_tenants)
    numbers = count()
    reserve_s: list[float] = []
    settle_s: list[float] = []

    async def client(work: Iterator[int]) -> None:
        for n in work:
            tenant = f"{name}-{payers}-{n % payers}"
            hold_id = f"hold_{name}_{payers}_{next(numbers):012d}"
            started_s = time.perf_counter()
            outcome = await ledger.reserve(
                Reserve(
                    hold_id,
                    f"att_{hold_id}",
                    f"dec_{hold_id}",
                    tenant,
                    f"s{n // payers % SESSIONS_PER_TENANT}",
                    None,
                    "small",
                    1_000,
                    10**12,
                    SessionTerms(FAR_NANOUSD // 1000),
                    decision_row(),
                    checkpoint_nanousd=100,
                )
            )
            reserved_s = time.perf_counter()
            assert isinstance(outcome, Reserved)
            await ledger.settle(
                Settle(
                    hold_id,
                    500,
                    "reported",
                    {
                        "status": "completed",
                        "finish_reason": "stop",
                        "input_tokens": 900,
                        "output_tokens": 200,
                        "latency_ms": 800,
                    },
                    session_memory=MEMORY,
                )
            )
            reserve_s.append(reserved_s - started_s)
            settle_s.append(time.perf_counter() - reserved_s)

    async def run(amount: int) -> float:
        work = iter(range(amount))
        started_s = time.perf_counter()
        await asyncio.gather(*(client(work) for _ in range(clients)))
        return time.perf_counter() - started_s

    await run(min(turns, 300))  # sessions exist, statements are compiled, connections are open
    reserve_s.clear()
    settle_s.clear()
    elapsed_s = await run(turns)
    await ledger.close()
    await database.close()
    assert_url_sound(url)
    return Figures(
        name.rstrip("0123456789"),
        payers,
        clients,
        turns,
        round(turns / elapsed_s, 1),
        *(round(percentile(values, level), 2) for values in (reserve_s, settle_s) for level in (0.5, 0.99)),
    )


def decision_row() -> dict[str, object]:
    """A decision row of realistic size."""
    return {
        "requested_model": "auto",
        "feature_version": 1,
        "features": FEATURES,
        "candidate_features": FEATURES,
        "candidates": json.dumps([{"model": f"model-{n}", "feasible": True, "probability": 0.25} for n in range(4)]),
        "lambda_per_usd": 0.1,
        "action": 0,
        "propensity": 0.25,
        "uniform": 0.7,
        "policy_id": "resolving",
        "reason": "policy",
    }


def main() -> None:
    """Measure both databases with several numbers of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures: list[Figures] = []

    def take(url: str, name: str, payers: int, clients: int) -> None:
        turns = arguments.turns // (10 if clients == 1 else 1)
        figures.append(asyncio.run(measure(url, name, payers=payers, clients=clients, turns=turns)))
        if not arguments.json:
            print(_line(figures[-1]), flush=True)

    if not arguments.json:
        turns = f"{arguments.turns} turns per line, a tenth of it for one client"
        print(f"Python {platform.python_version()}, {turns}; turns acknowledged durably")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        url = f"sqlite:///{folder}/bench.db"
        upgrade(url)
        for clients in (1, arguments.clients, 4 * arguments.clients):
            take(url, f"sqlite{clients}", 1, clients)
    server = PostgresServer()
    try:
        server.start()
        databases = TestDatabases(server.url("postgres"), upgrade)
        for payers in (1, 50):
            for clients in (1, arguments.clients, 4 * arguments.clients):
                take(databases.create()[1], "postgres", payers, clients)
    finally:
        server.destroy()
    if arguments.json:
        json.dump([asdict(line) for line in figures], sys.stdout, indent=1)


def _line(f: Figures) -> str:
    return (
        f"{f.database:10} {f.tenants:3} tenants {f.clients:3} clients: {f.turns_per_s:8.0f} turns/s   "
        f"reserve p50 {f.reserve_p50_ms:6.2f} p99 {f.reserve_p99_ms:6.2f} ms   "
        f"settle p50 {f.settle_p50_ms:6.2f} p99 {f.settle_p99_ms:6.2f} ms"
    )


if __name__ == "__main__":
    main()
