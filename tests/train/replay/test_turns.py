"""Several numbers of turns in one run: what is learned once is played in cells of every length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from policy.planned import Planner
from tests.train.replay.folders import write_folder
from tests.train.replay.test_run import small_grid
from train.fit.presets import learn_horizon
from train.fit.value_table import settings_of
from train.replay.catalogue import compose_sets, studies
from train.replay.dataset import read_folder
from train.replay.grid import Cell, full, narrow, newcomer_cells
from train.replay.ours import REHEARSALS, learn, learned_turns
from train.replay.run import contest
from train.replay.simulator import NO_CONTEXT


def test_what_is_learned_once_expects_in_every_cell_the_sessions_of_that_cell(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=60, models=("large", "small")))
    grid = replace(small_grid(), turns=(2, 6), contexts=())
    study = next(studies(graded, grid, (), 0))
    learned = learn(study, grid, learned_turns(grid))
    judging = [rehearsal.judging for rehearsal in learned.planners[NO_CONTEXT].rehearsals]
    sets = {turns: compose_sets(study, grid, turns, judging) for turns in grid.turns}
    for turns in grid.turns:
        played = contest(study, sets, Cell(turns, 0.35, "cut", NO_CONTEXT), learned, grid)
        known = learn_horizon(sets[turns].training.sessions.lengths)
        curves = [played.planners.curve, *(rehearsal.curve for rehearsal in played.planners.rehearsals)]
        policies = [policy for curve in curves for _, policy in curve]
        assert len(policies) == len(settings_of(grid.training.plan)) * (1 + REHEARSALS)
        assert all(isinstance(policy, Planner) and policy.horizon == known for policy in policies)
        assert played.learned.horizon == played.training.horizon == known
        assert {stage.board.shape[1] for stage in (*played.gate, played.training, played.test)} == {turns}


@pytest.mark.parametrize(("turns", "learned"), [((8,), 8), ((8, 8), 8), ((8, 4), None), ((None,), None)])
def test_the_log_has_sessions_as_long_as_those_to_be_played(turns: tuple[int | None, ...], learned: int | None) -> None:
    assert learned_turns(replace(full(), turns=turns)) == learned


def test_newcomers_join_under_the_budgets_that_are_played() -> None:
    assert [cell.phi for cell in newcomer_cells(full())] == [0.05, 0.15, 0.2, 0.35, 0.5, 0.7]
    assert [cell.phi for cell in newcomer_cells(narrow(full(), phis=("0.35", "0.6")))] == [0.35]
    assert [cell.phi for cell in newcomer_cells(narrow(full(), phis=("0.6",)))] == [0.6]
    assert {(cell.turns, cell.mode, cell.context) for cell in newcomer_cells(full())} == {(8, "cut", NO_CONTEXT)}
