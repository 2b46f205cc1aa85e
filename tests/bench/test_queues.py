"""The simulation against what queueing theory knows in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest

from bench.rig.queue_simulation import Simulation, Station, Visit


def simulation(
    stations: Sequence[Station], visits: Sequence[Visit], *, variation: float = 1.0, seed: int = 1
) -> Simulation:
    return Simulation(stations, lambda rng: visits, Random(seed), variation)


def test_one_exponential_server_waits_as_the_formula_says() -> None:
    """M/M/1 at 70 %: mean 10 ms / (1 - 0.7) = 33.3 ms, and the time in the system is exponential."""
    found = simulation([Station("s")], [Visit("s", 0.01)]).arriving(70, seconds=4_000)
    assert found.mean_ms == pytest.approx(33.3, rel=0.05)
    assert found.p50_ms == pytest.approx(33.3 * math.log(2), rel=0.05)
    assert found.p99_ms == pytest.approx(33.3 * math.log(100), rel=0.1)
    assert found.busy["s"] == pytest.approx(0.7, rel=0.02)
    assert found.per_s == pytest.approx(70, rel=0.02)


def test_constant_service_waits_half_as_long() -> None:
    """M/D/1 at 70 %: 10 ms + 10 ms * 0.7 / (2 * 0.3) = 21.7 ms."""
    found = simulation([Station("s")], [Visit("s", 0.01)], variation=0).arriving(70, seconds=2_000)
    assert found.mean_ms == pytest.approx(21.67, rel=0.05)


def test_two_servers_wait_as_erlang_says() -> None:
    """M/M/2 with each at 70 %: C = 0.5765, so the mean is 10 ms * (1 + C / (2 * 0.3)) = 19.6 ms."""
    found = simulation([Station("s", servers=2)], [Visit("s", 0.01)]).arriving(140, seconds=2_000)
    assert found.mean_ms == pytest.approx(19.6, rel=0.05)


def test_a_closed_system_is_bounded_by_its_slowest_station_and_by_its_clients() -> None:
    """Without variation: 4 clients at 10 ms + 2 ms give 100/s; one client gives 1 / 12 ms."""
    stations, visits = [Station("slow"), Station("fast")], [Visit("slow", 0.01), Visit("fast", 0.002)]
    assert simulation(stations, visits, variation=0).closed(4, seconds=100).per_s == pytest.approx(100, rel=0.01)
    alone = simulation(stations, visits, variation=0).closed(1, seconds=100)
    assert alone.per_s == pytest.approx(1 / 0.012, rel=0.01)
    assert alone.p50_ms == pytest.approx(12)


def test_a_delay_makes_nobody_wait() -> None:
    found = simulation([Station("d", servers=None)], [Visit("d", 0.02)], variation=0).arriving(1_000, seconds=20)
    assert found.p99_ms == pytest.approx(20)
    assert found.busy == {}


def test_a_group_shares_its_setup() -> None:
    """Alone: 9 + 1 ms. Sixteen clients in groups of at most sixteen: 16 / (9 + 16 ms) = 640/s."""
    line, visit = Station("line", batch=16, setup_s=0.009), [Visit("line", 0.001)]
    assert simulation([line], visit, variation=0).closed(1, seconds=50).per_s == pytest.approx(100, rel=0.01)
    assert simulation([line], visit, variation=0).closed(16, seconds=50).per_s == pytest.approx(640, rel=0.02)


def test_the_same_seed_gives_the_same_result() -> None:
    def run(seed: int) -> float:
        return simulation([Station("s")], [Visit("s", 0.01)], seed=seed).arriving(50, seconds=20).mean_ms

    assert run(3) == run(3)
    assert run(3) != run(4)
