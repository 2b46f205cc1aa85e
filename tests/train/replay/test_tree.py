"""Policies followed through the trees of rollouts whose truth is known: who answers after `a` is worse by .4."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policy.features import DEFAULT_HORIZON
from policy.rules import ReSolving
from tests.train.replay.test_run import small_grid
from tests.train.rollout.scenes import MODELS, plan, task
from tests.train.rollout.test_output import CATALOG
from train.replay.branches import FILE, Branches, leaf_paths, read_branches, states_of
from train.replay.catalogue import CatalogueSetup, studies
from train.replay.dataset import DataError, read_folder
from train.replay.run import Options, run
from train.replay.simulator import Played, SessionBatch
from train.replay.tree import Ways, beside, build_trees, in_trees, lines, tree_rows
from train.rollout import tree as rollout
from train.rollout.output import write_folder

GRADES = {"a": 0.5, "b": 0.6, "c": 0.9}
HARM = 0.4
TURNS = 3


def grown(name: str, branches: int) -> rollout.PlayedTree:
    tree = rollout.PlayedTree(task(name, f"{name} asks", "and then?", "and after that?"))
    waiting = [rollout.State(tree.task)]
    while waiting:
        state = waiting.pop()
        lost = HARM if state.path[-1:] == ("a",) else 0.0
        graded = {
            m: rollout.GradedAnswer(rollout.ModelAnswer("", 100, 0, 10, 1, "stop"), GRADES[m] - lost, "")
            for m in MODELS
        }
        tree.visited.append(rollout.Visited(state, tree.task.turns[state.turn].user, graded))
        waiting += [state.after(m) for m in rollout.continued_models(plan(branches), state)]
    return tree


def written(folder: Path, branches: int, tasks: int = 40) -> Path:
    write_folder(folder, "mine", [grown(f"t{i}", branches) for i in range(tasks)], plan(branches), CATALOG)
    return folder


def read(folder: Path) -> tuple[CatalogueSetup, Branches]:
    (graded,) = read_folder(folder)
    found = read_branches(folder, graded)
    assert found is not None
    return next(studies(graded, small_grid(), (), seed=0)), found


def of_kind(rows: list[dict[str, Any]], kind: str, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind and all(row[k] == v for k, v in wanted.items())]


@pytest.mark.parametrize("branches", [3, 2, 1])
def test_a_policy_is_followed_after_its_own_answers_however_few_were_continued(tmp_path: Path, branches: int) -> None:
    """`a` always: .5, .1, .1. `c` always: .9 three times. In composed sessions every past is anybody's."""
    study, found = read(written(tmp_path, branches, tasks=80))
    rows = tree_rows(study, found, ReSolving(), DEFAULT_HORIZON, resamples=50)
    for name, value in (("only a", 0.7 / 3), ("only b", 0.6), ("only c", 0.9)):
        (row,) = of_kind(rows, "policy", policy=name, phi=3.0)
        assert row["quality"] == pytest.approx(value, abs=1e-5)
        assert (row["quality_lo"], row["quality_hi"]) == pytest.approx((value, value), abs=1e-5)
        expected = GRADES[name[-1]] - HARM * 2 / 3 / 3  # of the later two turns of three a third follow `a`
        assert row["composed"] == pytest.approx(expected, abs=0.06)
        assert row["diff"] == pytest.approx(row["quality"] - row["composed"], abs=2e-6)


def test_how_a_turn_fares_after_each_models_answer_is_told(tmp_path: Path) -> None:
    """All models' mean is 2/3; after `a` .4 less. After `b` it is 2/3, after the others half of the time .4 less."""
    study, found = read(written(tmp_path, 3))
    rows = tree_rows(study, found, ReSolving(), DEFAULT_HORIZON, resamples=50)
    told = {row["model"]: row for row in of_kind(rows, "after")}
    assert told["a"]["diff"] == pytest.approx(-0.4, abs=1e-5)
    assert told["b"]["diff"] == told["c"]["diff"] == pytest.approx(0.2, abs=1e-5)


def test_what_replay_learns_from_is_seen_alike_in_the_trees(tmp_path: Path) -> None:
    """So that a policy learned in composed sessions is the same policy in the tree."""
    study, found = read(written(tmp_path, 2))
    states, at = states_of(found, study.graded)
    trees = build_trees(states, found, at, study.seed)
    assert trees is not None
    drawn = np.flatnonzero(found.drawn[at])
    assert states.task[drawn].tolist() == study.graded.task.tolist()
    assert trees.seen.text[drawn] == pytest.approx(study.seen.text, abs=1e-6)
    assert trees.composed.predicted == pytest.approx(study.predictions.quality[study.halves.test].reshape(-1, TURNS, 3))


def test_after_a_lost_answer_the_turns_that_would_have_followed_count_as_failures() -> None:
    """Two ways share the first state, whose answer is cut: the first way stands for it, two turns of nothing follow."""
    cut = np.array([[True, False, False]] * 2)
    no = np.zeros((2, 3), np.bool_)
    played = Played(~no, np.zeros((2, 3), np.int64), np.array([[0.0, 1.0, 1.0]] * 2), np.zeros((2, 3)), cut, no)
    leads = np.array([[0, 0, -1], [0, 1, -1]])
    counted = np.array([[True, True, True], [False, False, True]])
    ways = Ways(cast(SessionBatch, None), np.array([0, 0]), leads, counted, np.array([[1.0, 2.0, 4.0]] * 2))
    found = in_trees(ways, played, tasks=1)
    assert found.weights.tolist() == [[1.0, 1.0, 1.0]]
    assert found.grades.tolist() == [[0.0, 0.0, 0.0]]


def test_states_weigh_what_they_stand_for_and_only_the_policys_own_count() -> None:
    """It chooses 0, then 1. The state after (0) stands for 2; of those that stand for 4 the one after (0, 1) is its."""
    action = np.array([[0, 1, 0], [0, 1, 0]])
    quality = np.array([[0.5, 0.25, 1.0], [0.5, 0.25, 0.75]])
    no = np.zeros((2, 3), np.bool_)
    played = Played(~no, action, quality, np.zeros((2, 3)), no, no)
    leads = np.array([[0, 0, -1], [0, 1, -1]])
    counted = np.array([[True, True, True], [False, False, True]])
    ways = Ways(cast(SessionBatch, None), np.array([0, 0]), leads, counted, np.array([[1.0, 2.0, 4.0]] * 2))
    found = in_trees(ways, played, tasks=1)
    assert found.weights.tolist() == [[1.0, 2.0, 4.0]]
    assert found.grades.tolist() == [[0.5, 0.5, 3.0]]
    row = beside(found, found, np.ones((3, 1), np.int64))
    assert row["quality"] == pytest.approx((0.5 * 1 + 0.25 * 2 + 0.75 * 4) / 7)


def test_a_way_that_was_never_visited_has_no_value_instead_of_a_guess(tmp_path: Path) -> None:
    study, found = read(written(tmp_path, 1, tasks=6))
    rows = of_kind(tree_rows(study, found, ReSolving(), DEFAULT_HORIZON, resamples=20), "policy")
    unknown = [row for row in rows if row["quality"] is None]
    assert unknown
    assert all(row["diff"] is None and row["effective"] == 0.0 and row["composed"] is not None for row in unknown)


def test_models_out_of_the_catalogue_lead_nowhere(tmp_path: Path) -> None:
    study, found = read(written(tmp_path, 3, tasks=8))
    pair = study.graded.with_models(("b", "c"))
    states, at = states_of(found, pair)
    rows, leads = leaf_paths(states, found, at)
    assert rows.shape == (8 * 4, TURNS)  # of three models there would be nine ways a task
    assert set(np.unique(leads)) == {-1, 0, 1}
    assert states.quality[states.turn == 0] == pytest.approx(np.array([[0.6, 0.9]] * 8))


def test_the_whole_command_says_what_the_trees_say(tmp_path: Path) -> None:
    found = run(Options((written(tmp_path, 3, tasks=24),), small_grid(), models=("a", "c")))
    names = {row["policy"] for row in of_kind(found["tree"], "policy", models="a,c")}
    assert names == {"only a", "only c", "gateway-default", "planner"}
    assert {row["source"] for row in found["tree"]} == {"mine"}
    told = list(lines(found["tree"]))
    assert "mine: grade of a turn after a's answer, against after another's: -0.400 (-0.400 to -0.400)" in told
    assert any("only a: composed 0.4" in line and ", in the trees 0.233: -0." in line for line in told)


def test_a_tree_that_lacks_a_column_or_a_probability_is_refused_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path, 1, tasks=6)
    (graded,) = read_folder(folder)
    whole = pq.read_table(folder / FILE)
    pq.write_table(whole.drop_columns(["path"]), folder / FILE)
    with pytest.raises(DataError, match=r"tree\.parquet: no column 'path'"):
        read_branches(folder, graded)
    at = whole.column_names.index("visit_probability")
    pq.write_table(whole.set_column(at, "visit_probability", pa.array([0.0] * whole.num_rows)), folder / FILE)
    with pytest.raises(DataError, match="visit_probability"):
        read_branches(folder, graded)


def test_a_folder_without_a_tree_is_replayed_as_before(tmp_path: Path) -> None:
    folder = written(tmp_path, 1, tasks=6)
    (graded,) = read_folder(folder)
    (folder / FILE).unlink()
    assert read_branches(folder, graded) is None
