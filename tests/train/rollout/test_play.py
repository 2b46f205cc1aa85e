"""The walk through a tree, against a gateway out of a function; the money and the processes: test_run.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.train.rollout.scenes import MODELS, completion, gateway, plan, task, walk
from train.rollout.journal import Journal
from train.rollout.play import play
from train.rollout.prompts import OVER
from train.rollout.tree import PlayedTree, RolloutPlan, continued_models, planned_answers


async def played(
    folder: Path, tasks: list[Any], a_plan: RolloutPlan, answer: Any
) -> tuple[list[PlayedTree], list[Any]]:
    """The trees, and (model, messages) of every call that was made."""
    calls: list[Any] = []

    def heard(request: httpx.Request, body: dict[str, Any]) -> httpx.Response:
        calls.append((body["model"], body["messages"]))
        said = answer(body["model"], body["messages"])
        return said if isinstance(said, httpx.Response) else completion(body["model"], said)

    with Journal(folder, "x") as journal:
        async with gateway(heard) as http:
            trees = await play(tasks, walk(folder, http, a_plan, journal))
    return trees, calls


def skilled(model: str, messages: list[dict[str, str]]) -> str:
    """`a` is always right, the others only at first; each says who it is."""
    right = model == "a" or len(messages) == 1
    return f"{'good' if right else 'bad'} {model}"


async def test_every_model_is_asked_and_graded_at_every_state_with_the_words_of_its_own_past(tmp_path: Path) -> None:
    two_turns = task("t", "one", "two")
    (tree,), calls = await played(tmp_path, [two_turns], plan(3), skilled)
    assert len(calls) == planned_answers(plan(3), two_turns) == 12
    assert Counter(model for model, _ in calls) == dict.fromkeys(MODELS, 4)
    assert tree.whole
    assert {v.state.path for v in tree.visited} == {(), ("a",), ("b",), ("c",)}
    for visited in tree.visited:
        scores = {model: graded.score for model, graded in visited.graded.items()}
        assert scores == ({"a": 1.0, "b": 1.0, "c": 1.0} if not visited.state.path else {"a": 1.0, "b": 0.0, "c": 0.0})
    histories = {messages[1]["content"] for _, messages in calls if len(messages) == 3}
    assert histories == {"good a", "good b", "good c"}
    assert all(messages[-1]["content"] == ("two" if len(messages) == 3 else "one") for _, messages in calls)


async def test_one_branch_goes_on_with_the_drawn_model_alone(tmp_path: Path) -> None:
    (tree,), calls = await played(tmp_path, [task("t", "one", "two", "three")], plan(1), skilled)
    assert len(calls) == 9
    by_turn = sorted(tree.visited, key=lambda v: v.state.turn)
    assert [v.state.path[-1:] for v in by_turn[1:]] == [continued_models(plan(1), v.state) for v in by_turn[:-1]]


async def test_a_second_walk_pays_for_nothing_and_sees_the_same(tmp_path: Path) -> None:
    tasks = [task(f"t{i}", "one", "two") for i in range(3)]
    first, _ = await played(tmp_path, tasks, plan(2), skilled)
    again, calls = await played(tmp_path, tasks, plan(2), skilled)
    assert calls == []

    def content(trees: list[PlayedTree]) -> Any:
        return {
            (v.state.name(m), g.score, g.answer.text) for t in trees for v in t.visited for m, g in v.graded.items()
        }

    assert content(again) == content(first)


async def test_where_a_walk_stopped_the_next_one_goes_on(tmp_path: Path) -> None:
    """The money ends after five answers; every answer is asked for once over both runs, but the refused one."""
    tasks = [task(f"t{i}", "one", "two") for i in range(2)]
    answered = 0

    def poor(model: str, messages: list[dict[str, str]]) -> Any:
        nonlocal answered
        answered += 1
        return skilled(model, messages) if answered <= 5 else httpx.Response(402, json={"error": {"message": "no"}})

    stopped, first = await played(tmp_path, tasks, plan(1), poor)
    assert [tree.whole for tree in stopped].count(False) >= 1
    assert sum(len(v.graded) for tree in stopped for v in tree.visited) == 5
    trees, second = await played(tmp_path, tasks, plan(1), skilled)
    assert all(tree.whole for tree in trees)
    assert len(second) == 12 - 5
    assert 5 < len(first) <= 5 + 4


async def test_an_answer_that_fails_is_missing_and_nothing_grows_from_it(tmp_path: Path) -> None:
    a_task = task("t", "one", "two")

    def failing(model: str, messages: list[dict[str, str]]) -> Any:
        return httpx.Response(400, json={"error": {"message": "no"}}) if model == "b" else skilled(model, messages)

    (tree,), _ = await played(tmp_path, [a_task], plan(3), failing)
    assert tree.whole
    assert {v.state.path for v in tree.visited} == {(), ("a",), ("c",)}
    assert tree.failed == 3
    assert all(set(v.graded) == {"a", "c"} for v in tree.visited)


async def test_a_judge_grades_what_no_checker_can_and_is_asked_again_until_it_names_a_score(tmp_path: Path) -> None:
    judged = 0

    def answer(model: str, messages: list[dict[str, str]]) -> str:
        nonlocal judged
        if model != "judge":
            return f"hello from {model}"
        judged += 1
        return "hm" if judged == 1 else "Score: 9" if "from a" in messages[-1]["content"] else "Score: 4"

    tasks = [task("t", "greet me", check={"judge": "friendly?"})]
    (tree,), calls = await played(tmp_path, tasks, plan(1, judge="judge"), answer)
    assert {model: g.score for model, g in tree.visited[0].graded.items()} == {"a": 0.9, "b": 0.4, "c": 0.4}
    assert len(calls) == 3 + 4
    assert tree.failed == 0


async def test_beyond_its_own_turns_a_user_model_speaks_until_it_is_done(tmp_path: Path) -> None:
    def answer(model: str, messages: list[dict[str, str]]) -> str:
        if model != "user":
            return f"good {model}"
        return "and then?" if messages[-1]["content"].count("<user>") == 1 else OVER

    lively = task("t", "one", persona="curious", check={"regex": "^good"})
    (tree,), calls = await played(tmp_path, [lively], plan(1, depth=4, user="user"), answer)
    assert sorted((v.state.turn, v.user) for v in tree.visited) == [(0, "one"), (1, "and then?")]
    assert Counter(model == "user" for model, _ in calls) == {False: 6, True: 2}
    assert tree.whole
