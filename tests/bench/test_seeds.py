"""The table over seeds: hand-worked numbers, and outputs that do not belong together."""

from __future__ import annotations

from typing import Any

import pytest

from bench.seeds import table


def output(seed: int, found: float | None, **meta: Any) -> dict[str, Any]:
    line = {"kind": "aim", "source": "all", "figure": "gain", "aim": "at least 0.01", "words": "ours - best tuned"}
    same = {"grid": {}, "preset": "quick", "catalogue": [], "policies": [], "versions": {}, "sources": []}
    richer = line | {"inputs": "richer", "found": 0.5}
    return {
        "meta": {"seed": seed, "inputs": ["live", "richer"]} | same | meta,
        "summary": [{"kind": "front", "inputs": "live"}, line | {"inputs": "live", "found": found}, richer],
    }


def test_each_seed_the_mean_and_the_spread_of_a_figure() -> None:
    assert list(table([output(0, 0.01), output(1, 0.02), output(2, -0.0001)])) == [
        "| figure | aim | seed 0 | seed 1 | seed 2 | mean | sd |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| ours - best tuned | at least 0.01 | 0.01 | 0.02 | -0.0001 | 0.01 | 0.0101 |",
    ]


def test_a_figure_that_a_run_says_nothing_of_is_left_out_of_the_mean() -> None:
    assert list(table([output(0, None), output(1, 0.02)]))[2].endswith("|  | 0.02 | 0.02 |  |")


def test_outputs_that_differ_in_more_than_the_seed_or_lack_the_source_are_refused() -> None:
    with pytest.raises(ValueError, match=r"other values of meta\.preset"):
        list(table([output(0, 0.01), output(1, 0.02, preset="full")]))
    with pytest.raises(ValueError, match="one of all; found 'toy'"):
        list(table([output(0, 0.01)], "toy"))
