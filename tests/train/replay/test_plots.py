"""Pictures of a run: one front and one curve per catalogue, twice the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.replay.plots import draw
from train.replay.sweeps import FRONT, STARVATION


def point(figure: str, policy: str, value: float, cost: float, quality: float) -> dict[str, Any]:
    return {
        "figure": figure,
        "source": "toy data",
        "inputs": "live",
        "models": "large,small",
        "turns": 4,
        "policy": policy,
        "value": value,
        "quality": quality,
        "quality_lo": quality - 0.1,
        "quality_hi": quality + 0.1,
        "cost_usd": cost,
        "starved_rate": 0.25,
    }


POINTS = [
    point(FRONT, "fixed", 0, 0.1, 0.9),
    point(FRONT, "ours", 0.2, 0.01, 0.7),
    point(FRONT, "ours", 0.5, 0.02, 0.8),
    point(STARVATION, "ours", 0.5, 0.02, 0.8),
]


def test_each_catalogue_has_a_front_and_a_curve_in_both_formats(tmp_path: Path) -> None:
    written = draw(POINTS, tmp_path)
    assert {path.name for path in written} == {
        "toy-data-live-2-cost-quality.svg",
        "toy-data-live-2-cost-quality.png",
        "toy-data-live-2-quality-starvation.svg",
        "toy-data-live-2-quality-starvation.png",
    }
    assert all(path.stat().st_size > 1000 for path in written)


def test_the_same_points_give_the_same_picture(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in draw(POINTS, tmp_path / "a") if path.suffix == ".svg"]
    second = [path.read_bytes() for path in draw(POINTS, tmp_path / "b") if path.suffix == ".svg"]
    assert first == second
