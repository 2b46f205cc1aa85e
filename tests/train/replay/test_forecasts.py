"""Coverage of the gateway's forecast of sessions' costs, as replay reports it."""

from __future__ import annotations

from typing import Any

import numpy as np

from train.replay.cell import forecast_of_costs
from train.replay.simulator import Played
from train.replay.summary import forecasts


def played(seed: int, sessions: int, times: float = 1.0) -> Played:
    source = np.random.default_rng(seed)
    costs = times * source.lognormal(-7.0, 0.5, (sessions, 1)) * source.lognormal(0.0, 0.8, (sessions, 8))
    valid = np.arange(8) < source.integers(2, 9, sessions)[:, None]
    none = np.zeros((sessions, 8), np.bool_)
    return Played(valid, np.where(valid, 0, -1), np.ones((sessions, 8)), costs * valid, none, none)


def row(forecast: Any, policy: str = "ours") -> dict[str, Any]:
    return {
        "source": "toy",
        "new_model": None,
        "ordering": "mixed",
        "policy": policy,
        "numbers": {"forecast": forecast},
    }


def test_sessions_like_those_of_the_training_half_are_covered_as_promised() -> None:
    alike = forecast_of_costs(played(1, 300), played(2, 600))
    expensive = forecast_of_costs(played(1, 300), played(2, 100, times=4.0))  # fewer than a forecast reads
    assert list(alike) == ["after 0 turns", "after 1 turns", "after 3 turns"]
    assert all(0.85 <= told["p90_coverage"] <= 0.95 and told["calibrated"] for told in alike.values())
    assert not expensive["after 0 turns"]["calibrated"]
    lines = forecasts([row(alike), row(expensive), row(alike, "ours-blind")])
    first = lines[0]
    assert (first["kind"], first["when"], first["n_cells"], first["calibrated"]) == ("forecast", "after 0 turns", 2, 1)
    assert first["sessions"] == 700
    coverage = (600 * alike["after 0 turns"]["p90_coverage"] + 100 * expensive["after 0 turns"]["p90_coverage"]) / 700
    assert abs(first["p90_coverage"] - coverage) < 1e-4


def test_without_ours_there_is_nothing_to_tell() -> None:
    assert forecasts([row({}), row({}, "random")]) == []
