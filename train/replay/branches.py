"""Tree of a rollout (docs/rollout.md): visited states with each model's answer and its past.

A folder with `tree.parquet` beside the three files records what no composed session can: the turns after each model's
own answers. train/replay/tree.py plays policies through it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from policy.arrays import F64, I64, Bools
from train.replay.dataset import (
    CHARS_PER_TOKEN,
    FILES,
    LEAST_USD,
    DataError,
    Graded,
    numbers_of,
    of_source,
    read_table,
    require,
    words_of,
)

Before = tuple[str, ...]
Place = tuple[str, Before]
"""A state: its task and the models that answered before."""

FILE = "tree.parquet"
COLUMNS = ("task_id", "path", "visit_probability", "model", "quality", "cost_usd")


@dataclass(frozen=True)
class Branches:
    """The states of one source (N) and the answers of K models at each.

    `path` are the models that answered before, oldest first; `drawn` marks the states of each task's one session in
    prompts.parquet. NaN: no answer.
    """

    models: tuple[str, ...]
    task_id: tuple[str, ...]
    path: tuple[Before, ...]
    probability: F64  # (N,) of the state being visited
    text: tuple[str, ...]
    group: tuple[str, ...]
    quality: F64  # (N, K)
    cost_usd: F64  # (N, K)
    out_tokens: F64  # (N, K)
    drawn: Bools  # (N,)
    digest: str


def read_branches(folder: Path, graded: Graded) -> Branches | None:
    """Read the tree of one source; None when the folder has none. Raises DataError."""
    file = folder / FILE
    if not file.exists():
        return None
    table = read_table(file)
    require(table, COLUMNS)
    table = of_source(table, graded.source)
    states: dict[Place, int] = {}
    row = np.array(
        [
            states.setdefault(key, len(states))
            for key in zip(words_of(table, "task_id", ""), _paths(table), strict=True)
        ],
        np.int64,
    )
    first = np.unique(row, return_index=True)[1]
    models = tuple(sorted(set(words_of(table, "model", ""))))
    column = np.array([models.index(name) for name in words_of(table, "model", "")], np.int64)
    probability = numbers_of(table, "visit_probability", np.nan)
    if not ((probability > 0.0) & (probability <= 1.0)).all():
        raise DataError(f"{file}: visit_probability: expected more than 0 and at most 1 in every row")
    text, group = words_of(table, "text", ""), words_of(table, "group", "")
    return Branches(
        models=models,
        task_id=tuple(task for task, _ in states),
        path=tuple(path for _, path in states),
        probability=probability[first],
        text=tuple(text[i] for i in first),
        group=tuple(group[i] for i in first),
        quality=_place(table, "quality", row, column, (len(states), len(models))),
        cost_usd=_place(table, "cost_usd", row, column, (len(states), len(models))),
        out_tokens=_place(table, "out_tok", row, column, (len(states), len(models))),
        drawn=_mark_drawn(folder, graded.source, list(states)),
        digest=hashlib.sha256(file.read_bytes()).hexdigest()[:16],
    )


def states_of(branches: Branches, graded: Graded) -> tuple[Graded, I64]:
    """States relevant to `graded`'s catalogue, as prompts, and their indices in `branches`.

    Those that all its models answered and that it can reach (`reachable`), or that are drawn.
    """
    at = [branches.models.index(name) for name in graded.models if name in branches.models]
    if len(at) < len(graded.models):
        raise DataError(f"{graded.source}: {FILE}: expected answers of {', '.join(graded.models)}")
    quality, cost_usd, out_tokens = (x[:, at] for x in (branches.quality, branches.cost_usd, branches.out_tokens))
    answered = np.isfinite(quality + cost_usd).sum(axis=1) == len(at)
    tasks = {name: i for i, name in enumerate(graded.task_ids)}
    fine = [int(n) for n in np.flatnonzero(answered) if branches.task_id[n] in tasks]
    ways = reachable({(branches.task_id[n], branches.path[n]) for n in fine}, graded.models)
    kept = [n for n in fine if branches.drawn[n] or (branches.task_id[n], branches.path[n]) in ways]
    kept.sort(key=lambda n: (tasks[branches.task_id[n]], len(branches.path[n]), branches.path[n]))
    n_chars = np.array([float(len(branches.text[n])) for n in kept])
    groups = {name: i for i, name in enumerate(graded.groups)}
    found = np.array(kept, np.int64)
    states = Graded(
        source=graded.source,
        models=graded.models,
        usd_in_per_m=graded.usd_in_per_m,
        usd_out_per_m=graded.usd_out_per_m,
        task=np.array([tasks[branches.task_id[n]] for n in kept], np.int64),
        task_ids=graded.task_ids,
        turn=np.array([len(branches.path[n]) for n in kept], np.int64),
        group=np.array([groups.get(branches.group[n], 0) for n in kept], np.int64),
        groups=graded.groups,
        n_chars=n_chars,
        n_tokens=np.maximum(np.round(n_chars / CHARS_PER_TOKEN), 1.0),
        text=tuple(branches.text[n] for n in kept),
        embedding=None,
        quality=np.clip(quality[found], 0.0, 1.0),
        cost_usd=np.maximum(cost_usd[found], LEAST_USD),
        in_tokens=np.full(out_tokens[found].shape, np.nan),
        out_tokens=np.nan_to_num(out_tokens[found]),
        digest=branches.digest,
    )
    return states, found


def reachable(states: Collection[Place], models: Sequence[str]) -> set[Place]:
    """States whose path has only these models and whose prefixes all exist."""
    led = {(task, path) for task, path in states if set(path) <= set(models)}
    return {(task, path) for task, path in led if all((task, path[:j]) in led for j in range(len(path)))}


def leaf_paths(states: Graded, branches: Branches, at: I64) -> tuple[I64, I64]:
    """All paths through the trees to a leaf, with the models that lead along them.

    Rows (S, T) of `states`, -1 after the end, and the model (S, T) that leads from each to the next, -1 at the last.
    """
    place = {(branches.task_id[n], branches.path[n]): i for i, n in enumerate(at)}
    led = reachable(place, states.models)
    parents = {(task, path[:-1]) for task, path in led if path}
    leaves = [key for key in place if key in led and key not in parents]
    longest = max((len(path) + 1 for _, path in leaves), default=1)
    rows, leads = np.full((len(leaves), longest), -1, np.int64), np.full((len(leaves), longest), -1, np.int64)
    for s, (task, path) in enumerate(leaves):
        rows[s, : len(path) + 1] = [place[task, path[:j]] for j in range(len(path) + 1)]
        leads[s, : len(path)] = [states.models.index(model) for model in path]
    return rows, leads


def drawn_paths(states: Graded, branches: Branches, at: I64) -> I64:
    """Each task's session in prompts.parquet as rows (tasks, T) of `states`, -1 after the end."""
    sessions: dict[int, list[int]] = defaultdict(list)
    for i in np.flatnonzero(branches.drawn[at]):
        sessions[int(states.task[i])].append(int(i))
    rows = np.full((len(sessions), int(states.turn.max(initial=0)) + 1), -1, np.int64)
    for s, found in enumerate(sessions.values()):
        rows[s, : len(found)] = found
    return rows


def _paths(table: pa.Table) -> list[Before]:
    return [tuple(str(name) for name in value or ()) for value in table["path"].to_pylist()]


def _place(table: pa.Table, name: str, row: I64, column: I64, shape: tuple[int, int]) -> F64:
    found = np.full(shape, np.nan)
    found[row, column] = numbers_of(table, name, np.nan)
    return found


def _mark_drawn(folder: Path, source: str, states: Sequence[Place]) -> Bools:
    prompts = read_table(folder / FILES[0])
    require(prompts, ("task_id", "path"))
    prompts = of_source(prompts, source)
    told = set(zip(words_of(prompts, "task_id", ""), _paths(prompts), strict=True))
    return np.array([state in told for state in states], np.bool_)
