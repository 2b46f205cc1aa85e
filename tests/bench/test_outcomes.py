"""What outcomes tell of the next turn, where they tell everything and where they tell nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.outcomes import OUTCOMES, PLACE, explained, predictions, read, table

TASKS, LENGTH = 60, 4


def folder(path: Path, reward: Callable[[int, int], float]) -> Path:
    """Sessions of four turns on each task; `reward(task, turn)`."""
    rows = [
        (f"t{task}", turn, "one", reward(task, turn), 100 * (turn + 1))
        for task in range(TASKS)
        for turn in range(LENGTH)
    ]
    columns = zip(("task_id", "turn", "model", "reward", "ctx_tok"), map(list, zip(*rows, strict=True)), strict=True)
    pq.write_table(pa.table(dict(columns)), path / "turns.parquet")
    texts = {"task_id": [f"t{task}" for task in range(TASKS)], "text": ["the same words"] * TASKS}
    pq.write_table(pa.table(texts), path / "prompts.parquet")
    return path


def test_where_a_session_goes_on_as_it_began_its_outcomes_tell_the_later_turns(tmp_path: Path) -> None:
    good = np.random.default_rng(0).random(TASKS) < 0.5
    turns = read(folder(tmp_path, lambda task, turn: float(good[task])), 0)
    later = turns.half & (turns.turn > 0)
    assert explained(turns, predictions(turns, PLACE), later) < 0.2
    assert explained(turns, predictions(turns, PLACE + OUTCOMES), later) > 0.8


def test_a_session_begins_without_outcomes_and_each_has_its_own(tmp_path: Path) -> None:
    turns = read(folder(tmp_path, lambda task, turn: turn / 4), 0)
    known, last, mean = (turns.states[:LENGTH, -17:][:, at] for at in (9, 10, 12))
    assert known.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert last.tolist() == [0.0, 0.0, 0.25, 0.5]
    assert mean == pytest.approx([0.0, 0.0, 0.125, 0.25])
    assert len(list(table(turns))) == 3
