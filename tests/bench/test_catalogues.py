"""The table by catalogue: means over cells and seeds, and the rows that do not count."""

from __future__ import annotations

from typing import Any

import pytest

from bench.catalogues import at_equal_starvation, by_catalogue, difference, over_all, rows_of

CELL = {"source": "toy", "models": "a,b", "turns": 8, "phi": 0.2, "mode": "cut", "base_context": 0}
PRICES = {"cached_price": 1.0, "write_price": 1.0}


def row(policy: str, quality: float, **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "inputs": "live",
        "budget": "phi",
        "new_model": None,
        "ordering": "mixed",
        "served": "network",
    }
    found |= {"policy": policy, "quality": quality, "training_quality": quality, "starved_rate": 0.0}
    found |= {"diff_vs_best_tuned": quality - 0.7, "diff_lo": quality - 0.75, "diff_hi": quality - 0.65}
    return CELL | PRICES | found | other


def output(seed: int, network: float, ours: float) -> dict[str, Any]:
    rows = [
        row("ours", ours, starved_rate=0.02),
        row("ours-network", network),
        row("ours-ungated", 0.7),
        row("ours-calibrated", 0.72, starved_rate=0.01),
        row("safe-tuned", 0.71),
        row("best-fixed", 0.6),
        row("threshold", 0.66),
        row("published-safe", 0.5),
    ]
    not_counted = [row("ours", 0.1, inputs="richer"), row("ours", 0.1, new_model="c"), row("ours", 0.1, ordering="iid")]
    return {"meta": {"seed": seed}, "rows": rows + not_counted}


ROWS = rows_of([output(0, 0.80, 0.74), output(1, 0.72, 0.60)])


def test_a_catalogue_s_line_is_the_mean_over_its_seeds() -> None:
    # ours (.74 + .60) / 2, network (.80 + .72) / 2, the usual choice .66; the tuned rule is .70.
    [line] = by_catalogue(ROWS)
    assert line[:3] == ["toy, 2 models, budget", "2", "67.00, 2.0 %"]
    assert line[3:] == ["2 of 2", "76.00", "70.00", "66.00", "", "-3.00", "+6.00", "1 / 0, 0 / 1"]


def test_calibrated_policies_are_compared_with_rules_that_starve_as_little() -> None:
    assert list(at_equal_starvation(ROWS)) == [["toy, 2 models, budget", "72.00, 1.0 %", "71.00, 0.0 %", "+1.00"]]


def test_the_differences_over_all_cells_have_the_range_over_seeds() -> None:
    lines = {line[0]: line[1:] for line in over_all(ROWS)}
    assert lines["network - `ours`"] == ["+9.00 (+6.00 to +12.00)", ""]
    assert lines["`ours` - usual"] == ["+1.00 (-6.00 to +8.00)", ""]
    assert lines["planner - blind"] == ["", ""]


def test_cells_count_alike_whatever_seed_they_are_of() -> None:
    more = [*ROWS, {**row("ours", 0.90, phi=0.5), "seed": 0}, {**row("ours-network", 0.94, phi=0.5), "seed": 0}]
    # Differences of .06 and .04 on seed 0, of .12 on seed 1.
    assert difference(more, "ours-network", ("ours",)) == pytest.approx(100 * (0.06 + 0.04 + 0.12) / 3)
