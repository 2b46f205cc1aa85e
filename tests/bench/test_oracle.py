"""The oracles by hand: four runs, two tasks, two models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.oracle import best_single, plain, read_runs, reproducible, table

# Model 0 always solves task 0 and never task 1; model 1 solves task 1 in its first two runs alone.
RUNS = np.array([[[1.0, 0.0], [0.0, 1.0]]] * 2 + [[[1.0, 0.0], [0.0, 0.0]]] * 2)


def test_luck_counts_for_the_plain_oracle_and_not_for_the_reproducible_one() -> None:
    assert best_single(RUNS).tolist() == [1.0, 0.0]
    assert plain(RUNS).tolist() == [1.0, 0.5]
    # Chosen by runs 0 and 1, model 1 fails task 1 in runs 2 and 3; chosen by these, a tie goes to model 0: fails too.
    assert reproducible(RUNS).tolist() == [1.0, 0.0]
    # Where the runs agree, nothing was luck.
    assert reproducible(RUNS[[0, 0, 1, 1]]).tolist() == [1.0, 1.0]
    assert [line.split("|")[2].strip() for line in table(RUNS, 0)] == ["0.500", "0.750", "0.500"]


def test_runs_are_read_by_name_and_incomplete_ones_left_out(tmp_path: Path) -> None:
    rows = [(f"task-{n}", f"model-{m}", r, RUNS[r, n, m]) for r in range(4) for n in range(2) for m in range(2)]
    rows += [("task-0", "lost", 0, 1.0)]
    columns = dict(
        zip(("task_id", "model", "run", "quality"), map(list, zip(*reversed(rows), strict=True)), strict=True)
    )
    pq.write_table(pa.table(columns), tmp_path / "runs.parquet")
    assert read_runs(tmp_path) == pytest.approx(RUNS)
