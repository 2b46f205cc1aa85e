"""Queueing simulation of a fleet, calibrated on and checked against one measured worker.

    python -m bench.peers --preset full --json peers.json; python -m bench.ledger --json > ledger.json
    python -m bench.queueing --peers peers.json --ledger ledger.json [--per-s 10000] [--tenants 1000] [--stripes 1]

First one worker: from CPU of a turn at 1 and at 32 clients and latency at one client, the rates and latencies at all
other numbers of clients are simulated and compared with the measured ones. Then a fleet, in an open system: for each
arrival rate the workers and database cores that keep both below 70 %, the utilisation of the largest tenant's row, and
the latency added to the provider's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from bench.rig import results
from bench.rig.queue_simulation import Result, Simulation, Station, Visit
from bench.rig.results import Case, Run
from bench.rig.tables import print_table

VARIATION = 0.5
"""Coefficient of variation of every service time: between constant (0) and exponential (1)."""
TARGET_UTILISATION = 0.7
"""Target utilisation of workers and database: beyond it a queue's p99 grows steeply."""
LEDGER_OPERATIONS = 2
"""A turn waits for its tenant's row twice: to reserve and to settle."""
GROUP = 64
CLIENTS = 32
"""Clients of the measurement that the costs come from; in a closed system they go through the worker as one group."""
PARTS = 3
"""A turn's visits of its worker: before, between and after its two waits for the ledger."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of one turn; `alone_ms` is a lone client's wait for commits and round trips.

    `worker_ms` is the CPU among CLIENTS clients. `wake_ms` is what waking up, with cold caches, adds for each group of
    turns that the worker's loop finds ready; a turn is found ready PARTS times.
    """

    worker_ms: float
    alone_ms: float
    database_ms: float = 0.0
    wake_ms: float = 0.0

    @property
    def part_ms(self) -> float:
        """A worker's CPU for one part of one turn, without the group's waking up."""
        return max(self.worker_ms / PARTS - self.wake_ms / CLIENTS, 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """A tenant's row: a group commit takes `commit_ms`, and `each_ms` per operation."""

    commit_ms: float
    each_ms: float

    @property
    def max_turns_per_s(self) -> float:
        """Throughput with full groups."""
        return GROUP / (self.commit_ms + GROUP * self.each_ms) * 1000 / LEDGER_OPERATIONS


def costs_of(runs: Sequence[Run]) -> Costs:
    """Medians over the rounds of one contender. Raises ValueError if a case is missing."""
    busy, alone = _where(runs, Case("unary", CLIENTS, 0)), _where(runs, Case("unary", 1, 0))
    worker_ms = statistics.median(run.cpu_per_request_ms() for run in busy)
    lone_worker_ms = statistics.median(run.cpu_per_request_ms() for run in alone)
    wake_ms = max(lone_worker_ms - worker_ms, 0.0) / PARTS / (1 - 1 / CLIENTS)
    alone_ms = statistics.median(run.p50_ms - run.cpu_per_request_ms() for run in alone)
    database_ms = statistics.median(run.cpu_per_request_ms("postgres") for run in busy)
    return Costs(worker_ms, max(alone_ms, 0.0), database_ms, wake_ms)


def row_of(figures: Sequence[Mapping[str, Any]]) -> Row:
    """Derive a row's costs from `bench.ledger` on Postgres with one tenant.

    One client waits for a commit and one operation; many clients fill the groups, at GROUP operations per commit.
    Raises ValueError when one of the two is missing.
    """
    one = [f for f in figures if f["database"] == "postgres" and f["tenants"] == 1]
    alone = [f["reserve_p50_ms"] for f in one if f["clients"] == 1]
    full = [f["turns_per_s"] for f in one if f["clients"] >= GROUP]
    if not alone or not full:
        raise ValueError(f"ledger: expected Postgres with one tenant and 1 and {GROUP} clients, got {len(one)} lines")
    group_ms = GROUP * 1000 / (LEDGER_OPERATIONS * max(full))
    each_ms = max((group_ms - alone[0]) / (GROUP - 1), 0.0)
    return Row(max(alone[0] - each_ms, 0.0), each_ms)


def _where(runs: Sequence[Run], case: Case) -> list[Run]:
    found = [run for run in runs if run.case == case]
    if not found:
        raise ValueError(f"expected a measurement of {case.name}, found none")
    return found


def one_worker(costs: Costs, each_ms: float, case: Case, rng: Random) -> Result:
    """Simulate one worker and tenant: CPU in three parts, two group commits, the provider.

    Of a commit that a lone client waits for, `each_ms` is its own operation; the rest is the group's.
    """
    part, each_s = Visit("worker", costs.part_ms / 1000), min(each_ms, costs.alone_ms / LEDGER_OPERATIONS) / 1000
    commit = Visit("row", each_s)
    visits = [part, commit, Visit("provider", case.delay_ms / 1000, constant=True), part, commit, part]
    stations = [
        Station("worker", batch=GROUP, setup_s=costs.wake_ms / 1000), Station("provider", servers=None),
        Station("row", batch=GROUP, setup_s=costs.alone_ms / LEDGER_OPERATIONS / 1000 - each_s),
    ]  # fmt: skip
    simulation = Simulation(stations, lambda _: visits, rng, VARIATION)
    if case.kind == "rate":
        return simulation.arriving(case.per_s, seconds=120)
    return simulation.closed(case.clients, seconds=60)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers, database cores, and tenants of unequal size (Zipf), each with its row.

    `stripes` is the number of rows per tenant.
    """

    workers: int
    database_cores: int
    tenants: int
    stripes: int = 1


def largest_share(tenants: int) -> float:
    """Share of the largest tenant when sizes fall as 1/rank."""
    return 1 / sum(1 / rank for rank in range(1, tenants + 1))


def fleet_for(costs: Costs, per_s: float, tenants: int, stripes: int) -> Fleet:
    """The workers and cores that keep both below the target utilisation."""
    workers = math.ceil(per_s * costs.worker_ms / 1000 / TARGET_UTILISATION)
    return Fleet(workers, max(1, math.ceil(per_s * costs.database_ms / 1000 / TARGET_UTILISATION)), tenants, stripes)


def simulate(fleet: Fleet, costs: Costs, row: Row, per_s: float, rng: Random, *, turns: int = 40_000) -> Result:
    """Simulate an open system without the provider's time; the result is the added latency."""
    stations = [Station(f"worker {n}", batch=GROUP, setup_s=costs.wake_ms / 1000) for n in range(fleet.workers)]
    stations.append(Station("database", servers=fleet.database_cores))
    for tenant in range(fleet.tenants):
        for stripe in range(fleet.stripes):
            stations.append(Station(f"row {tenant} {stripe}", batch=GROUP, setup_s=row.commit_ms / 1000))
    shares = list(accumulate(largest_share(fleet.tenants) / rank for rank in range(1, fleet.tenants + 1)))

    def visits(draw: Random) -> list[Visit]:
        worker = Visit(f"worker {draw.randrange(fleet.workers)}", costs.part_ms / 1000)
        tenant = min(bisect(shares, draw.random()), fleet.tenants - 1)
        locked = Visit(f"row {tenant} {draw.randrange(fleet.stripes)}", row.each_ms / 1000)
        database = Visit("database", costs.database_ms / 1000 / LEDGER_OPERATIONS)
        return [worker, database, locked, worker, database, locked, worker]

    return Simulation(stations, visits, rng, VARIATION).arriving(per_s, seconds=turns / per_s)


def main() -> None:
    """Compare the simulation with the measurement, then print the fleet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="JSON of bench.peers with one and 32 clients")
    parser.add_argument("--ledger", type=Path, required=True, help="JSON of bench.ledger")
    parser.add_argument("--per-s", type=float, default=10_000, help="turns per second to reach")
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--stripes", type=int, default=1, help="rows per tenant")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    runs, row = results.read(options.peers), row_of(json.loads(options.ledger.read_text()))
    for contender in ("seqroute-sqlite", "seqroute-postgres"):
        ours = [run for run in runs if run.contender == contender]
        if ours:
            _compare(contender, ours, row.each_ms, options.seed)
    ours = [run for run in runs if run.contender == "seqroute-postgres"]
    _grow(costs_of(ours), row, options)


def _compare(contender: str, runs: Sequence[Run], each_ms: float, seed: int) -> None:
    costs = costs_of(runs)
    print(
        f"\n{contender}: {costs.worker_ms:.2f} ms of a worker's CPU a turn, {costs.wake_ms:.2f} ms for each group "
        f"that it finds ready; {costs.alone_ms:.2f} ms of waiting"
    )
    rows = []
    for case in dict.fromkeys(run.case for run in runs if run.case.kind != "stream"):
        measured, found = _where(runs, case), one_worker(costs, each_ms, case, Random(seed))
        columns = [
            (statistics.median(run.requests_per_s for run in measured), found.per_s, 0),
            (statistics.median(run.p50_ms for run in measured), found.p50_ms, 1),
            (statistics.median(run.p99_ms for run in measured), found.p99_ms, 1),
        ]
        cells = [f"{value:,.{digits}f}" for seen, simulated, digits in columns for value in (seen, simulated)]
        rows.append([case.name, *cells, f"{columns[0][1] / columns[0][0]:.2f}"])
    heads = ["", "turns/s", "simulated", "p50 ms", "simulated", "p99 ms", "simulated", "turns/s, simulated / measured"]
    print_table("one worker", heads, rows)


def _grow(costs: Costs, row: Row, options: argparse.Namespace) -> None:
    share = largest_share(options.tenants)
    print(
        f"\none tenant's row: a commit of {row.commit_ms:.2f} ms and {row.each_ms:.2f} ms an operation, so at most "
        f"{row.max_turns_per_s:,.0f} turns/s; the largest of {options.tenants} tenants has {share:.1%} of all"
    )
    rows = []
    for part in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        per_s = options.per_s * part
        fleet = fleet_for(costs, per_s, options.tenants, options.stripes)
        found = simulate(fleet, costs, row, per_s, Random(options.seed))
        workers = statistics.mean(busy for name, busy in found.busy.items() if name.startswith("worker"))
        hottest = max(busy for name, busy in found.busy.items() if name.startswith("row"))
        rows.append([
            f"{per_s:,.0f} turns/s", str(fleet.workers), f"{workers:.0%}", str(fleet.database_cores),
            f"{found.busy['database']:.0%}", f"{hottest:.0%}", f"{found.p50_ms:,.1f}", f"{found.p99_ms:,.1f}",
        ])  # fmt: skip
    heads = ["", "workers", "busy", "database cores", "busy", "largest tenant's row busy", "added p50 ms", "p99 ms"]
    print_table(f"a fleet, {options.stripes} row{'s' * (options.stripes > 1)} a tenant", heads, rows)


if __name__ == "__main__":
    main()
