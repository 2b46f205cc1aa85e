"""Coverage of forecasts on held-back sessions, as the nightly report prints it."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.decisions.session_forecast import MIN_SESSIONS
from train.evaluate.session_costs import coverage_lines, forecast_coverage
from train.log.episodes import Episodes, blank_episodes
from train.nightly.page import page
from train.nightly.text_report import describe


def drawn(sessions: int, seed: int, *, tenant: str = "t", times: float = 1.0) -> Episodes:
    """Sessions of 2 to 10 turns, each at a level of its own, with a heavy tail."""
    source = np.random.default_rng(seed)
    names = tuple(f"s{seed}-{i}" for i in range(sessions))
    episodes = blank_episodes(names, (tenant,) * sessions, ("m",), ("p",), (sessions, 10, 1, 1, 1))
    lengths = source.integers(2, 11, sessions)
    episodes.valid[:] = np.arange(10) < lengths[:, None]
    level = source.lognormal(-7.0, 0.5, (sessions, 1))
    episodes.cost_usd[:] = times * level * source.lognormal(0.0, 0.8, (sessions, 10))
    return episodes


def test_a_calibrated_forecast_covers_nine_in_ten_and_says_so() -> None:
    found = forecast_coverage(drawn(400, 1), drawn(600, 2))
    assert list(found) == ["after 0 turns", "after 1 turns", "after 3 turns"]
    for row in found.values():
        assert row["calibrated"] is True
        assert 0.85 <= row["p90_coverage"] <= 0.95
    assert found["after 0 turns"]["sessions"] == 600
    report = {"date": "2026-11-30", "outcome": "keep", "session_costs": found}
    assert any("P90 covers" in line for line in describe(report))
    assert f"{found['after 1 turns']['p90_coverage']:.1%}" in page(report)
    assert len(coverage_lines(found)) == 3


def test_sessions_that_cost_more_are_told_as_not_calibrated_until_they_are_the_references() -> None:
    few, many = (
        forecast_coverage(drawn(400, 1), drawn(number, 2, times=4.0))["after 0 turns"] for number in (100, 800)
    )
    assert (few["calibrated"], many["calibrated"]) == (False, True)
    assert few["p90_coverage"] < 0.8


@pytest.mark.parametrize(("tenant", "forecast"), [("t", 50), ("another", 50 - MIN_SESSIONS)])
def test_a_tenant_is_forecast_from_its_own_sessions_alone(tenant: str, forecast: int) -> None:
    found = forecast_coverage(drawn(50, 1), drawn(50, 2, tenant=tenant))
    assert found["after 0 turns"]["sessions"] == forecast
