from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.train.rollout.scenes import MODELS, plan, task
from train.rollout.tree import State, continued_models, conversation, planned_answers, spine, visit_probability


def test_a_tree_has_every_model_at_every_state_and_so_many_branches() -> None:
    """K = 3 models, n branches, 3 turns: 3 (1 + n + n^2)."""
    three_turns = task("t", "1", "2", "3")
    assert [planned_answers(plan(n), three_turns) for n in (1, 2, 3)] == [9, 21, 39]
    assert planned_answers(plan(3, depth=2), three_turns) == 12


def test_branches_are_drawn_alike_in_every_run_and_not_after_the_last_turn() -> None:
    root = State(task("t", "1", "2"))
    drawn = continued_models(plan(2), root)
    assert drawn == continued_models(plan(2), root)
    assert len(set(drawn)) == 2
    assert set(drawn) < set(MODELS)
    assert continued_models(plan(2), root.after("a")) == ()


def test_every_branch_is_drawn_as_often_as_its_probability_says() -> None:
    """1,200 tasks, one of three models each: 400 times expected, 16.3 is the standard deviation."""
    firsts = [continued_models(plan(1), State(task(f"t{i}", "1", "2")))[0] for i in range(1200)]
    assert all(abs(firsts.count(model) - 400) < 65 for model in MODELS)
    assert [visit_probability(plan(1), turn) for turn in (0, 1, 2)] == pytest.approx([1, 1 / 3, 1 / 9])
    assert visit_probability(plan(3), 2) == 1.0


def test_the_spine_follows_the_first_drawn_branches_to_the_last_turn() -> None:
    states = spine(plan(2), task("t", "1", "2", "3"))
    assert [state.turn for state in states] == [0, 1, 2]
    assert all(later.path[:-1] == earlier.path for earlier, later in pairwise(states))
    assert states[1].path[0] == continued_models(plan(2), states[0])[0]


def test_names_differ_for_every_state_and_answer_and_stay_in_every_run() -> None:
    root = State(task("t", "1", "2"))
    names = {root.name(), root.name("a"), root.name("b"), root.after("a").name(), root.after("a").name("a")}
    assert len(names) == 5
    assert root.after("a").name("b") == State(task("t", "other words"), ("a",)).name("b")


def test_the_identity_changes_with_tasks_and_plan() -> None:
    tasks = (task("t", "1"),)
    same = plan().identity(tasks)
    assert same == plan().identity((task("t", "1"),))
    others = [
        plan().identity((task("t", "2"),)), plan(2).identity(tasks), plan(depth=3).identity(tasks),
        plan(seed=2).identity(tasks), replace(plan(), judge="a").identity(tasks),
        plan().identity((task("t", "1", check={"exact": "x"}),)),
    ]  # fmt: skip
    assert len({same, *others}) == 7


def test_the_system_message_is_said_once() -> None:
    spoken = replace(task("t", "1"), system="be brief")
    first = conversation(spoken, [], "hello")
    assert [m["role"] for m in first] == ["system", "user"]
    later = conversation(spoken, [*first, {"role": "assistant", "content": "hi"}], "more")
    assert [m["role"] for m in later] == ["system", "user", "assistant", "user"]
