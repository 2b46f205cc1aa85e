"""Behaviour cloning does what the log did, where the log's reasons can be seen: in the prompt, or in the budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from policy.features import Horizon
from tests.train.replay.folders import write_folder
from tests.train.replay.test_run import small_grid
from train.log.episodes import Episodes
from train.replay.catalogue import CatalogueSetup, compose_sessions, studies
from train.replay.cloning import clone
from train.replay.dataset import read_folder
from train.replay.grid import Cell
from train.replay.ours import one_log
from train.replay.simulator import NO_CONTEXT, SessionBatch, Turn, play, turns_left

LARGE, SMALL = 0, 2
HORIZON = Horizon((0.25,))
Choose = Callable[[NDArray[np.int64], NDArray[np.floating]], NDArray[np.int64]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CatalogueSetup:
    (graded,) = read_folder(write_folder(tmp_path_factory.mktemp("data") / "toy"))
    return next(studies(graded, small_grid(), (), seed=0))


def logged(study: CatalogueSetup, prompts: NDArray[np.int64], part: int) -> tuple[Episodes, SessionBatch]:
    made = compose_sessions(study, prompts, 100, 4, ("iid",), part=part)
    return one_log(study, made, Cell(4, 0.7, "degrade", NO_CONTEXT), part)


def agreement(study: CatalogueSetup, choose: Choose) -> float:
    """How often the clone of a log that chose so does the same on the unseen half."""
    log, board = logged(study, study.halves.training, 1)
    share = log.remaining_usd / np.maximum(log.budget_usd, 1e-12)
    log.action[:] = choose(study.graded.group[np.maximum(board.sessions.rows, 0)], share)
    rule = clone(log, board, study.seen, turns_left(board.sessions, HORIZON), study.average_cost_usd).rule(study.seen)
    same = []

    def watched(turn: Turn) -> NDArray[np.int64]:
        chosen = rule(turn)
        group = study.graded.group[turn.board.sessions.rows[turn.at, turn.index]]
        free = turn.mask.all(axis=1)  # what may not be chosen cannot be imitated
        same.extend((chosen == choose(group, turn.remaining_usd / turn.budget_usd))[free].tolist())
        return chosen

    _, unseen = logged(study, study.halves.test, 2)
    play(unseen, watched, np.full(unseen.shape[0], float(log.budget_usd.max())), "degrade", HORIZON, seed=0)
    assert len(same) > 60
    return float(np.mean(same))


def test_a_log_that_chose_by_the_prompt_is_imitated(study: CatalogueSetup) -> None:
    hard = study.graded.groups.index("sums")
    assert agreement(study, lambda group, share: np.where(group == hard, LARGE, SMALL)) > 0.95


def test_a_log_that_chose_by_the_budget_is_imitated(study: CatalogueSetup) -> None:
    assert agreement(study, lambda group, share: np.where(share > 0.6, LARGE, SMALL)) > 0.85


def test_what_is_not_offered_is_not_chosen(study: CatalogueSetup) -> None:
    log, board = logged(study, study.halves.training, 1)
    log.action[:] = LARGE
    rule = clone(log, board, study.seen, turns_left(board.sessions, HORIZON), study.average_cost_usd).rule(study.seen)
    poor = play(board, rule, np.full(board.shape[0], study.average_cost_usd[SMALL] * 3), "degrade", HORIZON, seed=0)
    assert not (poor.action == LARGE).any()
