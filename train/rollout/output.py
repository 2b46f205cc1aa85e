"""Output of a rollout: a replay folder, and the complete trees.

`prompts`, `outcomes` and `models` (.parquet) are what `seqroute-train replay --data` reads: one session per task, drawn
uniformly, with every model graded at each of its turns. `tree.parquet` has every graded answer of every state:
true switching inside a session, with the probability of each visit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.catalog.cost import bill_nanousd
from gateway.catalog.models import Model
from gateway.catalog.usage import Usage
from gateway.money import FEMTOUSD_PER_USD, NANOUSD_PER_USD
from train.rollout.tree import ModelAnswer, PlayedTree, RolloutPlan, State, Visited, spine, visit_probability

COST_KIND = "tokens*price"
CHARACTERS_PER_TOKEN = 4


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(columns)


PROMPTS = _schema(
    source=pa.string(), task_id=pa.string(), turn=pa.int64(), group=pa.string(), n_chars=pa.int64(),
    n_tok=pa.int64(), text=pa.string(), path=pa.list_(pa.string()),
)  # fmt: skip
OUTCOMES = _schema(
    source=pa.string(), task_id=pa.string(), turn=pa.int64(), model=pa.string(),
    quality=pa.float32(), in_tok=pa.int64(), out_tok=pa.int64(), n_calls=pa.int64(),
    cost_usd=pa.float64(), cost_kind=pa.string(), billed_usd=pa.float64(), cached_tok=pa.int64(),
)  # fmt: skip
MODELS = _schema(
    source=pa.string(), model=pa.string(), usd_in_per_m=pa.float64(), usd_out_per_m=pa.float64(),
    price_note=pa.string(), usd_cached_in_per_m=pa.float64(),
)  # fmt: skip
TREE = _schema(
    source=pa.string(), task_id=pa.string(), group=pa.string(), turn=pa.int64(), state=pa.string(),
    parent=pa.string(), path=pa.list_(pa.string()), visit_probability=pa.float64(), text=pa.string(),
    model=pa.string(), quality=pa.float32(), note=pa.string(), in_tok=pa.int64(),
    cached_tok=pa.int64(), out_tok=pa.int64(), cost_usd=pa.float64(), billed_usd=pa.float64(),
    finish_reason=pa.string(),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """Counts of what was written and left out."""

    tasks: int
    turns: int
    answers: int
    left_out: int


def write_folder(
    folder: Path, source: str, trees: Sequence[PlayedTree], plan: RolloutPlan, catalog: Mapping[str, Model]
) -> Written:
    """Write the four files atomically.

    Trees that the money did not finish are left out, since what they lack depends on its cost.
    """
    whole = [tree for tree in trees if tree.whole and tree.visited]
    priced = {name: catalog[name] for name in plan.models}
    prompts: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []
    for tree in whole:
        for visited in session_of(tree, plan):
            prompts.append(_prompt(source, visited))
            outcomes += [_outcome(source, visited, model, priced[model]) for model in plan.models]
    branches = [
        _branch(source, visited, model, plan, priced[model])
        for tree in whole
        for visited in sorted(tree.visited, key=lambda v: (v.state.turn, v.state.path))
        for model in plan.models
        if model in visited.graded
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, schema in (
        ("models", [_model(source, model) for model in priced.values()], MODELS),
        ("prompts", prompts, PROMPTS),
        ("outcomes", outcomes, OUTCOMES),
        ("tree", branches, TREE),
    ):
        partial = folder / f".{name}.parquet.partial"
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
        partial.replace(folder / f"{name}.parquet")
    sessions = {row["task_id"] for row in prompts}
    return Written(len(sessions), len(prompts), len(branches), len(trees) - len(sessions))


def session_of(tree: PlayedTree, plan: RolloutPlan) -> list[Visited]:
    """Turns of the task's one drawn session, up to the first missing answer."""
    seen = {visited.state.path: visited for visited in tree.visited}
    turns = []
    for state in spine(plan, tree.task):
        visited = seen.get(state.path)
        if visited is None or len(visited.graded) < len(plan.models):
            break
        turns.append(visited)
    return turns


def cold_cost_usd(answer: ModelAnswer, model: Model) -> float:
    """Cost of the call at list price without cache hits, which depend on the order of play."""
    return bill_nanousd(model.prices, Usage(answer.input_tokens, answer.output_tokens)) / NANOUSD_PER_USD


def _prompt(source: str, visited: Visited) -> dict[str, Any]:
    state = visited.state
    characters = len(visited.user)
    return _place(source, state) | {
        "group": state.task.group,
        "n_chars": characters,
        "n_tok": max(1, round(characters / CHARACTERS_PER_TOKEN)),
        "text": visited.user,
        "path": list(state.path),
    }


def _outcome(source: str, visited: Visited, name: str, model: Model) -> dict[str, Any]:
    row = _place(source, visited.state) | {"model": name, "n_calls": 1, "cost_kind": COST_KIND}
    return row | _measure(visited, name, model)


def _branch(source: str, visited: Visited, name: str, plan: RolloutPlan, model: Model) -> dict[str, Any]:
    state, graded = visited.state, visited.graded[name]
    return _place(source, state) | _measure(visited, name, model) | {
        "group": state.task.group,
        "state": state.name(),
        "parent": State(state.task, state.path[:-1]).name() if state.path else None,
        "path": list(state.path),
        "visit_probability": visit_probability(plan, state.turn),
        "text": visited.user,
        "model": name,
        "note": graded.note,
        "finish_reason": graded.answer.finish_reason,
    }  # fmt: skip


def _place(source: str, state: State) -> dict[str, Any]:
    return {"source": source, "task_id": state.task.task_id, "turn": state.turn}


def _measure(visited: Visited, name: str, model: Model) -> dict[str, Any]:
    graded = visited.graded[name]
    return {
        "quality": graded.score,
        "in_tok": graded.answer.input_tokens,
        "cached_tok": graded.answer.cached_tokens,
        "out_tok": graded.answer.output_tokens,
        "cost_usd": cold_cost_usd(graded.answer, model),
        "billed_usd": graded.answer.billed_nanousd / NANOUSD_PER_USD,
    }


def _model(source: str, model: Model) -> dict[str, Any]:
    rates = model.prices.at(0)
    per_million = FEMTOUSD_PER_USD / 1_000_000
    return {
        "source": source,
        "model": model.name,
        "usd_in_per_m": rates.input_femtousd / per_million,
        "usd_out_per_m": rates.output_femtousd / per_million,
        "usd_cached_in_per_m": rates.cached_input_femtousd / per_million,
        "price_note": "of the gateway's configuration",
    }
