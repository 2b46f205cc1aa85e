"""From measurements to the parameters of the simulation, with numbers worked by hand."""

from __future__ import annotations

from random import Random

import pytest

from bench.queueing import Costs, Fleet, Row, costs_of, fleet_for, largest_share, one_worker, row_of, simulate
from bench.rig.results import Case, Run


def run(clients: int, *, p50_ms: float, cpu_s: float, number: int = 0) -> Run:
    return Run("x", Case("unary", clients, 0), number, requests=100, events=0, elapsed_s=1, p50_ms=p50_ms, p99_ms=0,
               first_p50_ms=0, first_p99_ms=0, cpu_s={"server": cpu_s, "postgres": cpu_s / 2})  # fmt: skip


def test_costs_are_the_cpu_under_load_and_the_waiting_alone() -> None:
    """200 ms for 100 requests are 2 ms; alone a turn took 7 ms, 4 of them CPU.

    Alone each of three parts wakes the worker for 4/3 ms, among 32 it shares that: 2/3 ms = wake * (1 - 1/32).
    """
    costs = costs_of([run(32, p50_ms=60, cpu_s=0.2), run(1, p50_ms=7, cpu_s=0.4)])
    assert (costs.worker_ms, costs.alone_ms, costs.database_ms) == (2, 3, 1)
    assert costs.wake_ms == pytest.approx(64 / 93)
    assert costs.part_ms + costs.wake_ms == pytest.approx(4 / 3)


def test_costs_need_both_ends() -> None:
    with pytest.raises(ValueError, match="expected a measurement of 1 client"):
        costs_of([run(32, p50_ms=60, cpu_s=0.2)])


def test_a_rows_parameters_come_from_one_client_and_from_full_groups() -> None:
    """Alone 1.25 ms an operation. 1,250 turns/s are 2,500 operations, so a group of 64 takes 25.6 ms: 24.35 / 63."""
    line = {"database": "postgres", "tenants": 1}
    alone = {**line, "clients": 1, "turns_per_s": 300, "reserve_p50_ms": 1.25}
    full = {**line, "clients": 64, "turns_per_s": 1_250, "reserve_p50_ms": 20}
    row = row_of([alone, full])
    assert row.each_ms == pytest.approx(0.3865, abs=1e-4)
    assert row.commit_ms == pytest.approx(0.8635, abs=1e-4)
    assert row.max_turns_per_s == pytest.approx(1_250)
    with pytest.raises(ValueError, match="expected Postgres with one tenant"):
        row_of([alone])


def test_one_worker_saturates_at_its_cpu() -> None:
    """3 ms a turn are 333/s, however many clients wait; with 2 ms of waiting one client gets 1 / 5 ms."""
    costs = Costs(worker_ms=3, alone_ms=2)
    assert one_worker(costs, 0.1, Case("unary", 32, 20), Random(1)).per_s == pytest.approx(333, rel=0.03)
    assert one_worker(costs, 0.1, Case("unary", 1, 0), Random(1)).per_s == pytest.approx(200, rel=0.02)


def test_a_lone_client_pays_for_every_wake_up_and_a_crowd_shares_them() -> None:
    """Alone 3 * (0.5 + 0.5) + 2 ms are 200/s; 32 clients in one group come near 3 * 0.5 ms, 667/s."""
    costs = Costs(worker_ms=1.5 + 1.5 / 32, alone_ms=2, wake_ms=0.5)
    assert one_worker(costs, 0, Case("unary", 1, 0), Random(1)).per_s == pytest.approx(200, rel=0.02)
    assert 550 < one_worker(costs, 0, Case("unary", 32, 0), Random(1)).per_s < 667


def test_the_largest_of_three_tenants_has_six_elevenths() -> None:
    assert largest_share(3) == pytest.approx(6 / 11)


def test_a_fleet_keeps_workers_and_database_below_seventy_per_cent() -> None:
    """2 ms at 1,000/s are 2 cores, over 0.7 are 2.86; 0.5 ms of the database are 0.71."""
    assert fleet_for(Costs(2, 1, 0.5), 1_000, tenants=10, stripes=2) == Fleet(3, 1, 10, 2)


def test_stripes_relieve_the_row_of_the_largest_tenant() -> None:
    """One tenant, 400 turns/s, 2 operations of 1 ms and a commit: more than one row can carry, half of it on two."""
    costs, row = Costs(1, 0, 0.1), Row(commit_ms=1.0, each_ms=1.4)
    one = simulate(Fleet(2, 1, 1), costs, row, 400, Random(1), turns=4_000)
    two = simulate(Fleet(2, 1, 1, stripes=2), costs, row, 400, Random(1), turns=4_000)
    assert one.busy["row 0 0"] > 0.98
    assert two.busy["row 0 0"] < 0.9
    assert two.p99_ms < one.p99_ms / 4
