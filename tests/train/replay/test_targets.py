"""The figures that the benchmark is for, from rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from train.replay.targets import aims, cost_at, figures, lines


def row(policy: str, quality: float, **changes: Any) -> dict[str, Any]:
    made = {
        "source": "toy",
        "models": "a,b",
        "new_model": None,
        "turns": 8,
        "phi": 0.2,
        "budget": "phi",
        "mode": "cut",
        "base_context": 0,
        "cached_price": 1.0,
        "write_price": 1.0,
        "ordering": "mixed",
        "policy": policy,
        "served": None,
        "quality": quality,
        "diff_vs_best_tuned": quality - 0.6,
        "diff_hi": quality - 0.58,
        "starved_rate": 0.02,
        "unanswered_rate": 0.0,
        "switches": 0.5,
    }
    return made | changes


def point(policy: str, cost_usd: float, quality: float, bankrupt_rate: float = 0.0) -> dict[str, Any]:
    return {
        "source": "toy",
        "models": "a,b",
        "figure": "cost-quality",
        "policy": policy,
        "cost_usd": cost_usd,
        "quality": quality,
        "bankrupt_rate": bankrupt_rate,
    }


def test_ours_is_compared_in_the_cells_that_both_played() -> None:
    rows = [row("ours", 0.62), row("published-safe", 0.57), row("ours", 0.9, phi=0.5), row("strongest", 0.3)]
    found = figures(rows, [])
    assert found["ours_vs_published"] == pytest.approx(0.05)
    assert found["ours_vs_strongest"] == pytest.approx(0.32)
    assert found["ours_vs_tuned"] == pytest.approx((0.02 + 0.3) / 2)
    assert found["cache_vs_blind"] is None
    assert found["ours_below_tuned"] == 0.0


def test_the_network_s_figures_are_its_share_of_the_cells_and_its_gains() -> None:
    """In one of two cells the network decides, and .58 - .6 and .62 - .6 are its gains over the planner."""
    rows = [
        *(row("ours", 0.58, served="network"), row("ours", 0.6, phi=0.5, served="planner")),
        *(row("ours-network", 0.58), row("ours-network", 0.62, phi=0.5)),
        *(row("ours-ungated", 0.6), row("ours-ungated", 0.6, phi=0.5)),
        *(row("ours-calibrated", 0.57), row("safe-tuned", 0.55)),
        *(row("ours-pretrained", 0.57), row("gateway-default", 0.56)),
    ]
    found = figures(rows, [])
    assert found["network_share"] == 0.5
    assert found["network_vs_planner"] == pytest.approx(0.0)
    assert found["network_vs_tuned"] == pytest.approx(0.0)
    assert found["calibrated_vs_safe"] == pytest.approx(0.02)
    assert found["cold_vs_default"] == pytest.approx(0.01)
    assert found["ours_vs_usual"] is None


def test_what_a_user_would_run_otherwise_is_chosen_by_the_training_half() -> None:
    rows = [
        row("ours", 0.6),
        row("best-fixed", 0.55, training_quality=0.5),
        row("threshold", 0.5, training_quality=0.58),
        row("published-safe", 0.59, training_quality=0.4),
    ]
    assert figures(rows, [])["ours_vs_usual"] == pytest.approx(0.1)


def test_a_cell_wholly_below_its_baseline_is_counted() -> None:
    assert figures([row("ours", 0.55), row("ours", 0.59, phi=0.5)], [])["ours_below_tuned"] == 1.0


def test_the_cache_is_worth_what_the_planner_gains_over_itself_blind() -> None:
    cache = {"budget": "warm-mid", "phi": 1.1}
    found = figures([row("ours-ungated", 0.9, **cache), row("ours-blind", 0.85, **cache)], [])
    assert found["cache_vs_blind"] == pytest.approx(0.05)
    assert found["cache_switches"] == 0.5
    assert found["planner_vs_tuned"] is None


def test_a_front_is_read_between_its_points() -> None:
    cost, quality = np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.5, 0.7])
    assert cost_at(cost, quality, 0.8) == pytest.approx(2.5)
    assert cost_at(cost, quality, 0.4) == pytest.approx(1.0)
    assert cost_at(cost, quality, 0.95) is None


def test_saving_and_area_are_compared_with_the_published_method_where_it_is_safe() -> None:
    """The strongest costs 10 at .8. The planner reaches .8 at 4, the published rule safely at 8 (at 2 it is bankrupt).

    Areas over costs in units of 10: the planner's 4 at .8 is .6 * .8; the best other one's 2 at .8 is .8 * .8.
    """
    points = [
        *(point("fixed", 1.0, 0.4), point("fixed", 10.0, 0.8), point("ours-ungated", 4.0, 0.8)),
        *(point("published", 8.0, 0.8), point("published", 2.0, 0.8, bankrupt_rate=0.2)),
    ]
    found = figures([], points)
    assert found["saving_vs_published"] == pytest.approx(0.6 - 0.2)
    assert found["area_vs_baselines"] == pytest.approx(0.48 - 0.64)


def test_a_newcomer_without_a_gap_weighs_nothing() -> None:
    rows = []
    for source, absent, added, trained in (("one", 0.5, 0.58, 0.6), ("two", 0.7, 0.6, 0.69)):
        for policy, quality in (("ours-not-offered", absent), ("ours", added), ("ours-trained", trained)):
            rows.append(row(policy, quality, source=source, new_model="b"))
    assert figures(rows, [])["newcomer_lost"] == pytest.approx(0.2)


def test_each_aim_is_told_with_its_verdict_and_the_sources_that_miss_it() -> None:
    rows = [row("ours", 0.7, source="good"), row("ours", 0.5, source="poor"), row("published-safe", 0.5, source="poor")]
    text = list(lines(aims(rows, [])))
    assert any(line.startswith("missed") and "poor 1" in line and "below the best tuned" in line for line in text)
    assert any(line.startswith("-") and "cache" in line for line in text)
