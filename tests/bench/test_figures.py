"""The harness' own arithmetic: percentiles, spreads, ratios, tables, slopes."""

from __future__ import annotations

import pytest

from bench.memory import slope_mib_per_10k
from bench.rig.results import Case, Run
from bench.rig.statistics import Spread, paired, percentile, spread
from bench.rig.tables import table


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    assert [percentile(values, share) for share in (0, 0.25, 0.26, 0.5, 0.99, 1)] == [10, 10, 20, 20, 40, 40]
    assert percentile(range(1, 101), 0.99) == 99


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="expected values and a share"):
        percentile(values, share)


def test_a_spread_is_median_least_and_most() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3, 1, 10)
    assert Spread(1234.5, 1, 2).text(1) == "1,234.5 (1.0-2.0)"


def test_ratios_are_taken_round_by_round() -> None:
    """A round at half speed for both leaves the ratio alone; the ratio of medians would be 2.5."""
    assert paired([200, 100, 500], [100, 50, 100]) == Spread(2, 2, 5)


def test_ratios_of_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired([1.0], [1.0, 2.0])


def test_figures_per_request_and_per_event_come_from_cpu_seconds() -> None:
    case = Case("stream", 4, 0)
    run = Run("x", case, 0, requests=50, events=10_000, elapsed_s=2.0, p50_ms=0, p99_ms=0, first_p50_ms=0,
              first_p99_ms=0, cpu_s={"server": 1.5, "postgres": 0.25, "load": 0.5})  # fmt: skip
    assert (run.requests_per_s, run.events_per_s, run.cpu_per_event_us) == (25, 5000, 150)
    assert [run.cpu_per_request_ms(who) for who in ("server", "postgres", "nobody")] == [30, 5, 0]
    assert run.busy_percent("load", "postgres") == 37.5


def test_memory_that_settles_has_no_slope() -> None:
    """It grew by 50 MiB in the first half and stands still in the second."""
    assert slope_mib_per_10k([(0, 300), (10_000, 340), (20_000, 350), (30_000, 350), (40_000, 350)]) == pytest.approx(0)
    leaking = [(turns, 300 + turns / 5_000) for turns in range(0, 50_000, 10_000)]
    assert slope_mib_per_10k(leaking) == pytest.approx(2)


def test_a_table_is_markdown_with_figures_flush_right() -> None:
    assert table(["", "ms"], [["a", "1"], ["bc", "123"]]).splitlines() == [
        "|    |  ms |",
        "|----|----:|",
        "| a  |   1 |",
        "| bc | 123 |",
    ]
