"""The ablations' table, on a small folder of graded answers: every part has its line, and taking one away is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.ablations import learn_from, network_lines, network_variants, table
from tests.train.replay.folders import write_folder
from tests.train.replay.test_run import small_grid
from train.config import FitConfig, RelabelConfig
from train.replay.catalogue import CatalogueSetup, compose_sets, stages, studies
from train.replay.dataset import read_folder
from train.replay.grid import Cell, Grid
from train.replay.simulator import NO_CONTEXT

PARTS = {
    *("(the planner)", "quantiles of the bill: its mean", "shrinkage of predicted differences"),
    *(
        "the prompt: means of the models alone",
        "expensive answers being poor ones",
        "the plan: later money has no value",
    ),
    *("the penalty of a lost answer", "(with the shield before it)"),
}
CACHE = {"the cache, in this turn alone", "the cache, in the plan alone", "the cache, in turn and plan"}
PUBLISHED = {"(as published, safe)", "relabelled budgets: the largest alone"}
NETWORK = {
    *("(the network)", "temporal differences: the warm start alone", "the warm start: as shipped"),
    *("lambda: 0 alone is trained", "lower confidence: no margin"),
}


@pytest.fixture(scope="module")
def grid() -> Grid:
    return replace(small_grid(), turns=(8,))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, grid: Grid) -> CatalogueSetup:
    (graded,) = read_folder(write_folder(tmp_path_factory.mktemp("toy"), tasks=40, models=("large", "small")))
    return next(studies(graded, grid, (), 0))


def words(lines: list[str], kind: str) -> dict[str, list[str]]:
    """The cells of a line after its words, by these, of one kind of cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cell[1]: cell[2:] for cell in cells if cell[0] == kind}


def test_every_part_has_a_line_and_the_plan_changes_what_is_earned(study: CatalogueSetup, grid: Grid) -> None:
    lines = list(table(study, grid, None))
    budget, cache = words(lines, "budget"), words(lines, "cache")
    assert set(budget) == PARTS | PUBLISHED
    assert set(cache) == PARTS | CACHE
    whole = float(budget["(the planner)"][0])
    assert 0.0 < whole < 1.0
    assert budget["(the planner)"][1] == ""
    changes = {part: float(found[0]) for part, found in budget.items() if part in PARTS - {"(the planner)"}}
    assert changes["the plan: later money has no value"] != 0.0
    for found in (cells for part, cells in budget.items() if part in changes):
        low, high = (float(x) for x in found[1].split(" to "))
        assert low <= float(found[0]) <= high or abs(float(found[0])) < 0.05
        assert found[2].endswith("%")


def test_the_network_loses_one_part_after_the_other() -> None:
    base = FitConfig()
    found = {words: (fitting, relabelling) for words, fitting, relabelling in network_variants(base)}
    assert set(found) == NETWORK
    whole = found.pop("(the network)")
    assert whole == (base, RelabelConfig())
    # Each differs from the whole, in one of the two and in no other way than its words say.
    assert all((fitting == base) != (relabelling == whole[1]) for fitting, relabelling in found.values())
    assert found["lower confidence: no margin"][0].margin == 0.0
    assert found["lambda: 0 alone is trained"][1].lambda_zero_fraction == 1.0


def test_a_network_is_fitted_and_compared_with_the_first(study: CatalogueSetup, grid: Grid) -> None:
    tiny = FitConfig(warm_steps=0, steps=0, samples=64, residual_steps=20)
    learned = learn_from(study, grid, NO_CONTEXT)
    stage = stages(study, compose_sets(study, grid, 8), Cell(8, 0.35, "cut", NO_CONTEXT))[1]
    twice = [(words, tiny, RelabelConfig()) for words in ("first", "again")]
    first, again = network_lines(study, grid, learned, [stage], twice)
    assert words([first], "budget")["first"][1] == ""
    assert words([again], "budget")["again"][:2] == ["+0.0000", "+0.0000 to +0.0000"]
