"""Folders of the format: what may be missing, what must not be, and what stays together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.train.replay.folders import write_folder
from train.replay.dataset import DataError, read_folder
from train.replay.richer import richer_vectors
from train.replay.split import halves


def test_prompts_by_models_without_gaps(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=10))
    assert graded.models == ("large", "medium", "small")
    assert graded.quality.shape == graded.cost_usd.shape == (10, 3)
    assert graded.usd_out_per_m.tolist() == [100.0, 10.0, 1.0]
    assert graded.text[0] == "task 0 turn 0: name a city"


def test_what_is_missing_is_made_up_for(tmp_path: Path) -> None:
    """No source, turn, group, lengths or cost: one source named after the folder, one group, cost from tokens."""
    folder = write_folder(tmp_path / "mine", tasks=8, drop=("source", "turn", "group", "n_chars", "n_tok", "cost_usd"))
    (graded,) = read_folder(folder)
    assert (graded.source, graded.groups) == ("mine", ("",))
    assert graded.n_chars[0] == len("task 0 turn 0: name a city")
    assert graded.n_tokens[0] == 7  # 26 characters
    assert graded.cost_usd[0, 2] == pytest.approx(graded.out_tokens[0, 2] * 1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drop": ("task_id",)}, "no column 'task_id'"),
        ({"drop": ("quality",)}, "no column 'quality'"),
        ({"quality": [2.0] * 24}, "quality: expected 0 to 1, found 2 to 2"),
        ({"cost_usd": [-1.0] * 24}, "cost_usd: expected 0 or more, found -1"),
        ({"model": ["huge"] * 24}, "no price for model 'huge'"),
        ({"task_id": ["other"] * 24}, "no row belongs to a prompt"),
        ({"quality": ["good"] * 24}, "column 'quality': expected numbers, found a text"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_folder(write_folder(tmp_path, tasks=8, **change))


def test_a_conversation_with_a_gap_is_left_out_whole_and_said(tmp_path: Path) -> None:
    quality: list[float | None] = [1.0] * (10 * 2 * 3)
    quality[4] = None  # the second turn of the first task
    (graded,) = read_folder(write_folder(tmp_path, tasks=10, turns=2, quality=quality))
    assert graded.prompts == 18
    assert graded.notes == ("2 of 20 prompts left out: not answered by every model",)


def test_a_model_that_answered_little_is_left_out_rather_than_the_prompts_it_did_not(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=40)
    table = pq.read_table(folder / "outcomes.parquet")
    rows = [row for row in table.to_pylist() if row["model"] != "medium" or int(row["task_id"][5:]) < 10]
    pq.write_table(table.from_pylist(rows), folder / "outcomes.parquet")
    (graded,) = read_folder(folder)
    assert graded.models == ("large", "small")
    assert graded.quality.shape == (40, 2)
    assert graded.usd_out_per_m.tolist() == [100.0, 1.0]
    assert graded.notes == ("model medium left out: it answered 10 of 40 prompts",)


def test_a_free_answer_is_billed_the_least_there_is(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=20, cost_usd=[0.0] * 60))
    assert (graded.cost_usd == 1e-9).all()


def test_turns_of_a_conversation_stand_together_in_order_and_on_one_side(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=40, turns=3))
    assert graded.turn.tolist() == [0, 1, 2] * 40
    split = halves(graded, 0)
    assert not set(graded.task[split.training]) & set(graded.task[split.test])
    assert 40 < len(split.training) < 80


def test_the_same_text_under_two_ids_is_on_one_side(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=60))
    twins = [graded.text[i // 2] for i in range(graded.prompts)]
    doubled = type(graded)(**{name: getattr(graded, name) for name in graded.__dataclass_fields__} | {"text": twins})
    fraction = halves(doubled, 0).fraction
    assert (fraction[0::2] == fraction[1::2]).all()


@pytest.mark.parametrize(
    ("content", "kind"), [("text", "text"), ("embedding", "embedding"), ("none", "lengths and group")]
)
def test_vectors_tell_the_groups_apart_whatever_a_folder_gives(tmp_path: Path, content: str, kind: str) -> None:
    (graded,) = read_folder(write_folder(tmp_path, content=content))
    seen = richer_vectors(graded, halves(graded, 0).training)
    assert seen.kind == kind
    assert seen.text.shape == (120, 256)
    assert np.isfinite(seen.text).all()
    means = [seen.text[graded.group == g].mean(axis=0) for g in (0, 1)]
    assert np.linalg.norm(means[0] - means[1]) > 0.3
