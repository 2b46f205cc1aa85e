"""Throughput of several workers and replicas on one Postgres, and the database's share.

    python -m bench.workers [--rounds 3] [--window 3] [--tenants 50] [--json FILE]

One worker, two workers of one `seqroute serve`, and three replicas, all on one database and free to run on any core;
the load generator and the provider keep to one. On a machine with few cores the sum is bounded by them: the last
columns show the cost of each part, as used by `bench.queueing` and docs/scaling.md. The write-ahead log and the growth
of the database are read from Postgres. Without `--tenants` all turns belong to one tenant, so all workers contend for
one row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psycopg
import uvloop

from bench.rig.gateways import seqroute
from bench.rig.load import Sample, closed, tenant_name
from bench.rig.results import machine
from bench.rig.side_by_side import Arena, Entry
from bench.rig.statistics import percentile, spread
from bench.rig.tables import print_table
from gateway.accounts import keys, tenants
from gateway.clock import now_ms
from gateway.database.database import transaction
from gateway.money import NANOUSD_PER_USD

PROCESSES = ("server", "postgres", "provider", "load")
CLIENTS = 48


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Number of `seqroute serve` processes and of workers in each."""

    name: str
    replicas: int
    workers: int


ARRANGEMENTS = (
    Arrangement("1 worker", 1, 1),
    Arrangement("2 workers", 1, 2),
    Arrangement("3 replicas", 3, 1),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one arrangement; CPU milliseconds and bytes are per turn."""

    arrangement: str
    turns_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]
    cores_used: float
    wal_bytes: float
    stored_bytes: float


def open_tenants(url: str, count: int) -> str:
    """Create tenants with budgets; return the secret of a service key for all of them."""
    at_ms = now_ms(time.time)
    with transaction(url) as connection:
        for number in range(count):
            name = tenant_name(number)
            tenants.create_tenant(
                connection, name, name, budget_nanousd=10_000 * NANOUSD_PER_USD, actor="bench", now_ms=at_ms
            )
        made = keys.create_key(connection, "key_bench", tenant_name(0), role="service", actor="bench", now_ms=at_ms)
    return made.secret


async def measure(rounds: int, window_s: float, tenant_count: int) -> list[Measured]:
    """Measure every arrangement in interleaved rounds."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder), spread=True) as arena:
            teams = {}
            for arrangement in ARRANGEMENTS:
                url = arena.fresh_database()
                team = [
                    await arena.enter(
                        f"{arrangement.name} {number}", seqroute("postgres"), workers=arrangement.workers,
                        database_url=url,
                    )
                    for number in range(arrangement.replicas)
                ]  # fmt: skip
                if tenant_count:
                    headers = {"authorization": f"Bearer {open_tenants(url, tenant_count)}"}
                    team = [
                        replace(entry, target=replace(entry.target, headers=headers, tenants=tenant_count))
                        for entry in team
                    ]
                teams[arrangement.name] = url, team
            for number in range(rounds):
                for name, (url, team) in teams.items():
                    found.append(await _round(arena, name, url, team, window_s, f"workers-{number}"))
    return found


async def _round(arena: Arena, name: str, url: str, team: Sequence[Entry], window_s: float, label: str) -> Measured:
    """Load all of a team at once, the clients divided among them."""
    async with AsyncExitStack() as held:
        for entry in team:
            await held.enter_async_context(arena.turn_of(entry))
        before = _database_bytes(url)
        samples = await asyncio.gather(
            *(
                closed(
                    entry.target, clients=CLIENTS // len(team), window_s=window_s, meter=arena.meter(entry),
                    label=f"{label}-{at}",
                )
                for at, entry in enumerate(team)
            )
        )  # fmt: skip
        after = _database_bytes(url)
    # Turns outside the window wrote too, so turns are counted in the database.
    wrote = max(after[2] - before[2], 1)
    latencies = sorted(ms for sample in samples for ms in sample.latencies_ms)
    turns = len(latencies)
    elapsed_s = max(sample.elapsed_s for sample in samples)
    cpu_s = _cpu(samples)
    return Measured(
        name, turns / elapsed_s, percentile(latencies, 0.5), percentile(latencies, 0.99),
        {who: 1000 * used / turns for who, used in cpu_s.items()}, sum(cpu_s.values()) / elapsed_s,
        (after[0] - before[0]) / wrote, (after[1] - before[1]) / wrote,
    )  # fmt: skip


def _cpu(samples: Sequence[Sample]) -> dict[str, float]:
    """CPU seconds by process: servers are added; database, provider and load are shared."""
    shared = {who: max(sample.cpu_s.get(who, 0.0) for sample in samples) for who in PROCESSES}
    return shared | {"server": sum(sample.cpu_s["server"] for sample in samples)}


def _database_bytes(url: str) -> tuple[int, int, int]:
    """Bytes of write-ahead log (whole server), bytes of this database, its decisions."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, pg_database_size(current_database()), "
            "(SELECT count(*) FROM decisions)"
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


def main() -> None:
    """Measure and print one row per arrangement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=float, default=3.0, help="seconds of a round")
    parser.add_argument("--tenants", type=int, default=0, help="number of tenants to spread the sessions over")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = uvloop.run(measure(options.rounds, options.window, options.tenants))
    print(f"{CLIENTS} clients, {len(os.sched_getaffinity(0))} core for the load, {os.cpu_count()} in all")
    heads = ["", "turns/s", "p50 ms", "p99 ms", *(f"{who} CPU ms" for who in PROCESSES), "cores used", "WAL kB", "kB"]
    rows = []
    for arrangement in ARRANGEMENTS:
        own = [round_ for round_ in found if round_.arrangement == arrangement.name]
        columns = [
            [m.turns_per_s for m in own], [m.p50_ms for m in own], [m.p99_ms for m in own],
            *([m.cpu_ms[who] for m in own] for who in PROCESSES),
            [m.cores_used for m in own], [m.wal_bytes / 1000 for m in own], [m.stored_bytes / 1000 for m in own],
        ]  # fmt: skip
        digits = (0, 1, 0, 2, 2, 2, 2, 2, 1, 1)
        rows.append([arrangement.name, *(spread(c).text(d) for c, d in zip(columns, digits, strict=True))])
    print_table("on one Postgres, per turn", heads, rows)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rounds": [asdict(m) for m in found]}, indent=1))


if __name__ == "__main__":
    main()
