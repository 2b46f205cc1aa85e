"""Predictive value of earlier outcomes: `python -m bench.outcomes --data FOLDER`.

Composed sessions have no intermediate grades. A folder with `turns.parquet` (task_id, turn, model, reward, ctx_tok)
beside `prompts.parquet` holds interactive sessions with every turn graded. The nightly reward model is fitted on the
turns of half of the tasks and predicts the other half: from prompt and model only, with the session's position and
length, and with its grades so far. Prints shares of explained variance, over all turns and over those after the first.
Deterministic given data and seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from policy.features import SESSION_FEATURES, STATE_DIM, TEXT_SCALE
from policy.text import STATS_DIM, TEXT_DIM, embed, stats
from train.config import QualityConfig
from train.fit.reward_model import fit_quality
from train.replay.split import hash_fraction

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PLACE = ("turn", "first_turn", "log_tokens_so_far", "log_input_tokens")
OUTCOMES = ("last_quality_known", "last_quality", "mean_quality_known", "mean_quality")
SEEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prompt and model", ()),
    ("and place and length of the session", PLACE),
    ("and its outcomes so far", PLACE + OUTCOMES),
)


@dataclass(frozen=True)
class Turns:
    """Graded turns (N) of interactive sessions; `states` is (N, STATE_DIM), as encoded features."""

    states: F64
    model: I64
    models: tuple[str, ...]
    reward: F64
    turn: I64
    half: NDArray[np.bool_]
    """True for the tasks of the predicted half."""
    fold: I64


def main() -> None:
    """Print the table of explained variance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| known | explained, all turns | explained, later turns |\n|---|--:|--:|")
    for line in table(read(options.data, options.seed)):
        print(line, flush=True)


def table(turns: Turns) -> Iterator[str]:
    """Markdown lines, one for each of SEEN."""
    for words, columns in SEEN:
        predicted = predictions(turns, columns)
        later = turns.half & (turns.turn > 0)
        yield f"| {words} | {explained(turns, predicted, turns.half):.3f} | {explained(turns, predicted, later):.3f} |"


def predictions(turns: Turns, columns: Sequence[str]) -> F64:
    """Predicted reward of every turn, (N,), by a model of the first half and these features."""
    states = turns.states.copy()
    for at, name in enumerate(SESSION_FEATURES):
        if name not in columns:
            states[:, TEXT_DIM + STATS_DIM + at] = 0.0
    learn = ~turns.half
    model, _ = fit_quality(
        states[learn],
        turns.model[learn],
        turns.reward[learn],
        turns.fold[learn],
        np.full(len(turns.models), 0.5),
        QualityConfig(),
    )
    return np.asarray(model.predict(states, np.zeros(len(states), np.int64))[np.arange(len(states)), turns.model])


def explained(turns: Turns, predicted: F64, rows: NDArray[np.bool_]) -> float:
    """Explained variance relative to each model's mean on the fitted half."""
    learn = ~turns.half
    means = np.array([turns.reward[learn & (turns.model == k)].mean() for k in range(len(turns.models))])
    error = float(((turns.reward - predicted)[rows] ** 2).sum())
    return 1.0 - error / float(((turns.reward - means[turns.model])[rows] ** 2).sum())


def read(folder: Path, seed: int) -> Turns:
    """Read the turns of a folder, by session. Raises FileNotFoundError."""
    prompts = pq.read_table(folder / "prompts.parquet", columns=["task_id", "text"]).to_pydict()
    text = {str(task): str(words or "") for task, words in zip(prompts["task_id"], prompts["text"], strict=True)}
    graded = pq.read_table(folder / "turns.parquet")
    found = graded.sort_by([("task_id", "ascending"), ("model", "ascending"), ("turn", "ascending")]).to_pydict()
    task, names = [str(name) for name in found["task_id"]], [str(name) for name in found["model"]]
    reward, tokens = [float(x) for x in found["reward"]], [float(x) for x in found["ctx_tok"]]
    models = tuple(sorted(set(names)))
    shown = {name: np.concatenate([embed(words) * TEXT_SCALE, stats(words)]) for name, words in text.items()}
    states, before = np.zeros((len(task), STATE_DIM)), list[float]()
    session = [SESSION_FEATURES.index(name) + TEXT_DIM + STATS_DIM for name in PLACE + OUTCOMES]
    for row in range(len(task)):
        if row == 0 or (task[row], names[row]) != (task[row - 1], names[row - 1]):
            before = []
        known = float(bool(before))
        states[row, : TEXT_DIM + STATS_DIM] = shown[task[row]]
        states[row, session] = (
            np.log1p(len(before)) / 3.0,
            1.0 - known,
            np.log1p(tokens[row] if before else 0.0) / 12.0,
            np.log1p(tokens[row]) / 12.0,
            known,
            before[-1] if before else 0.0,
            known,
            float(np.mean(before)) if before else 0.0,
        )
        before.append(reward[row])
    places = {name: hash_fraction(seed, "task", name) for name in set(task)}
    return Turns(
        states=states,
        model=np.array([models.index(name) for name in names], np.int64),
        models=models,
        reward=np.array(reward, np.float64),
        turn=np.array(found["turn"], np.int64),
        half=np.array([places[name] >= 0.5 for name in task]),
        fold=np.array([int(places[name] * 10) for name in task], np.int64),
    )


if __name__ == "__main__":
    main()
