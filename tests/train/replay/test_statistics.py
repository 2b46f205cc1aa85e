"""Intervals, differences and summaries by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from train.replay.compose import Sessions
from train.replay.simulator import Played
from train.replay.statistics import CellEntry, Resampled, best_on_test, best_tuned, entropy_bits, rows
from train.replay.summary import hypervolume, newcomers, over_cells


def outcome(quality: list[list[float]], action: list[list[int]] | None = None) -> Played:
    value = np.array(quality)
    no = np.zeros(value.shape, np.bool_)
    actions = np.zeros(value.shape, np.int64) if action is None else np.array(action)
    return Played(~no, actions, value, np.ones(value.shape), no, no)


def test_a_task_that_is_drawn_twice_counts_twice() -> None:
    """With every resample's weights known: the mean of (1, 0, 0) is the first task's share of the draws."""
    resampled = Resampled(3, 200, seed=0)
    means = resampled.means(np.array([0, 1, 2]), np.array([[1.0], [0.0], [0.0]]))[:, 0]
    assert set(np.round(means * 3)) <= {0.0, 1.0, 2.0, 3.0}
    assert means.mean() == pytest.approx(1 / 3, abs=0.05)
    assert means.std() == pytest.approx(np.sqrt(3 * (1 / 3) * (2 / 3)) / 3, abs=0.03)


def test_the_best_tuned_baseline_is_chosen_on_the_training_half() -> None:
    entries = [
        CellEntry("a", outcome([[0.9]]), training_quality=0.5, baseline=True),
        CellEntry("b", outcome([[0.4]]), training_quality=0.8, baseline=True),
        CellEntry("ours", outcome([[1.0]]), training_quality=0.99),
    ]
    assert entries[best_tuned(entries)].policy == "b"
    assert entries[best_on_test(entries)].policy == "a"


def test_rows_hold_means_paired_differences_and_conduct() -> None:
    sessions = Sessions(np.array([[0, 1], [1, 0]]), np.zeros(2, np.int64), np.array([0, 1]))
    entries = [
        CellEntry("b", outcome([[0.5, 0.5], [0.0, 0.5]]), training_quality=0.8, baseline=True),
        CellEntry("ours", outcome([[1.0, 0.5], [0.5, 0.5]], [[0, 1], [1, 1]])),
    ]
    found = rows(entries, sessions, np.array([0, 1]), Resampled(2, 100, 0), 1, {"source": "toy"})
    assert [(row["ordering"], row["policy"]) for row in found] == [
        (ordering, policy) for ordering in ("mixed", "iid", "by-topic") for policy in ("b", "ours")
    ]
    mixed = found[1]
    assert (mixed["quality"], mixed["diff_vs_best_tuned"], mixed["best_tuned"]) == (0.625, 0.25, "b")
    assert (mixed["cost_usd"], mixed["switches"], mixed["strong_share"]) == (2.0, 0.5, 0.75)
    assert mixed["entropy_bits"] == pytest.approx(0.811278)
    assert mixed["diff_lo"] <= 0.25 <= mixed["diff_hi"]
    assert (found[0]["diff_vs_best_tuned"], found[0]["diff_lo"], found[0]["diff_hi"]) == (0.0, 0.0, 0.0)


def test_the_entropy_of_the_choices_by_hand() -> None:
    assert entropy_bits(np.array([2, 2, 2])) == 0.0
    assert entropy_bits(np.array([0, 1, 2, 3])) == pytest.approx(2.0)
    assert entropy_bits(np.array([0, 1, 1, 1])) == pytest.approx(0.25 * 2 + 0.75 * np.log2(4 / 3))
    assert entropy_bits(np.array([], np.int64)) == 0.0  # no turn was answered


def test_the_area_under_a_front_by_hand() -> None:
    """.5 from cost .2, .8 from .5; what costs more and is worse adds nothing: .3 x .5 + .5 x .8."""
    area = hypervolume(np.array([0.5, 0.2, 0.7]), np.array([0.8, 0.5, 0.6]))
    assert area == pytest.approx(0.15 + 0.4)
    assert hypervolume(np.array([2.0]), np.array([0.9])) == 0.0


def line(policy: str, quality: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    row = {
        "source": "toy",
        "models": "a,b,c",
        "new_model": None,
        "ordering": "mixed",
        "budget": "phi",
        "policy": policy,
        "quality": quality,
        "diff_vs_best_tuned": (low + high) / 2,
        "diff_lo": low,
        "diff_hi": high,
        "diff_vs_best_on_test": 0.0,
        "starved_rate": 0.0,
        "bankrupt_rate": 0.0,
        "switches": 1.0,
    }
    return row | changes


def test_a_summary_counts_cells_wholly_below_and_wholly_above() -> None:
    cells = [line("ours", 0.5, -0.03, -0.01), line("ours", 0.6, 0.01, 0.03), line("ours", 0.7, -0.01, 0.01)]
    found = next(item for item in over_cells(cells) if item["source"] == "toy")
    assert (found["n_cells"], found["below"], found["above"]) == (3, 1, 1)
    assert (found["quality"], found["diff_vs_best_tuned"], found["worst_diff"]) == (0.6, 0.0, -0.02)


def test_a_newcomer_wins_a_share_of_the_gap() -> None:
    rows_of = [
        line(policy, quality, 0.0, 0.0, new_model="b")
        for policy, quality in (("ours-not-offered", 0.5), ("ours", 0.65), ("ours-trained", 0.7))
    ]
    (found,) = newcomers(rows_of)
    assert (found["gap"], found["won"]) == (pytest.approx(0.2), pytest.approx(0.75))
