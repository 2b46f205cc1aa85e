from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gateway.catalog.models import Model
from gateway.catalog.prices import Prices
from tests.train.rollout.scenes import MODELS, plan, task
from train.rollout.output import session_of, write_folder
from train.rollout.tree import GradedAnswer, ModelAnswer, PlayedTree, RolloutPlan, State, Visited, continued_models

CATALOG = {
    name: Model(name, "chat", Prices(input_femtousd=million, output_femtousd=2 * million, cached_input_femtousd=100),
                1000, 100, frozenset(), 0.5, ())
    for name, million in (("a", 10**9), ("b", 2 * 10**9), ("c", 10**10))
}  # fmt: skip
"""1, 2 and 10 USD per million input tokens, twice that for output."""


def grown(name: str, a_plan: RolloutPlan, missing: tuple[str, ...] | None = None) -> PlayedTree:
    """A whole tree of two turns: 100 tokens in, 10 out; `c` is right. `missing`: the path where `b` gave no answer."""
    tree = PlayedTree(task(name, "first?", "second?"))
    root = State(tree.task)
    for state in (root, *(root.after(model) for model in continued_models(a_plan, root))):
        answered = [m for m in MODELS if not (state.path == missing and m == "b")]
        graded = {m: GradedAnswer(ModelAnswer(m, 100, 60, 10, 50_000, "stop"), float(m == "c"), "") for m in answered}
        tree.visited.append(Visited(state, tree.task.turns[state.turn].user, graded))
    return tree


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def test_the_folder_has_one_session_a_task_with_every_model_graded_and_the_tree_beside_it(tmp_path: Path) -> None:
    written = write_folder(tmp_path, "mine", [grown("t1", plan(3)), grown("t2", plan(3))], plan(3), CATALOG)
    assert (written.tasks, written.turns, written.answers, written.left_out) == (2, 4, 24, 0)
    prompts = rows(tmp_path, "prompts")
    assert [(p["task_id"], p["turn"], p["text"]) for p in prompts[:2]] == [("t1", 0, "first?"), ("t1", 1, "second?")]
    assert prompts[0]["n_chars"] == 6
    assert prompts[1]["path"] == [continued_models(plan(3), State(grown("t1", plan(3)).task))[0]]
    outcomes = rows(tmp_path, "outcomes")
    assert len({(o["task_id"], o["turn"], o["model"]) for o in outcomes}) == len(outcomes) == 2 * 2 * 3
    assert {o["quality"] for o in outcomes if o["model"] == "c"} == {1.0}


def test_costs_are_list_price_without_cache_and_the_bill_stands_beside_them(tmp_path: Path) -> None:
    """`b`: 100 tokens at 2 USD and 10 at 4 USD per million are 0.00024 USD."""
    write_folder(tmp_path, "mine", [grown("t1", plan(1))], plan(1), CATALOG)
    (row, *_) = [o for o in rows(tmp_path, "outcomes") if o["model"] == "b"]
    assert row["cost_usd"] == pytest.approx(0.00024, abs=1e-15)
    assert (row["billed_usd"], row["cached_tok"], row["cost_kind"]) == (0.00005, 60, "tokens*price")
    (model, *_) = rows(tmp_path, "models")
    assert (model["usd_in_per_m"], model["usd_out_per_m"]) == pytest.approx((1.0, 2.0))


def test_the_tree_says_where_every_answer_stands_and_how_likely_it_was_visited(tmp_path: Path) -> None:
    write_folder(tmp_path, "mine", [grown("t1", plan(2))], plan(2), CATALOG)
    tree = rows(tmp_path, "tree")
    roots = [row for row in tree if row["turn"] == 0]
    later = [row for row in tree if row["turn"] == 1]
    assert (len(roots), len(later)) == (3, 6)
    assert {(row["parent"], row["visit_probability"]) for row in roots} == {(None, 1.0)}
    assert {row["parent"] for row in later} == {roots[0]["state"]}
    assert [row["visit_probability"] for row in later] == pytest.approx([2 / 3] * 6)
    assert {tuple(row["path"]) for row in later} == {(m,) for m in continued_models(plan(2), State(task("t1", "", "")))}


def test_a_session_ends_before_a_turn_at_which_an_answer_is_missing(tmp_path: Path) -> None:
    drawn = continued_models(plan(1), State(task("t1", "", "")))
    assert len(session_of(grown("t1", plan(1), missing=drawn), plan(1))) == 1
    assert len(session_of(grown("t1", plan(1)), plan(1))) == 2
    assert session_of(grown("t1", plan(1), missing=()), plan(1)) == []


def test_a_tree_that_the_money_did_not_finish_is_left_out(tmp_path: Path) -> None:
    unfinished = grown("t2", plan(1))
    unfinished.whole = False
    written = write_folder(tmp_path, "mine", [grown("t1", plan(1)), unfinished], plan(1), CATALOG)
    assert (written.tasks, written.left_out) == (1, 1)
    assert {row["task_id"] for row in rows(tmp_path, "tree")} == {"t1"}
    write_folder(tmp_path, "mine", [unfinished], plan(1), CATALOG)
    assert rows(tmp_path, "prompts") == []
