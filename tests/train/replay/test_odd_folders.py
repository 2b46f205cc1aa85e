"""Folders that no one here has seen: each plays, or says what is wrong and where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.replay.folders import write_folder
from tests.train.replay.test_run import small_grid
from train.replay.catalogue import studies
from train.replay.dataset import DataError, Graded, read_folder
from train.replay.grid import MOST_MODELS, THINNED_MODELS, catalogues, quick
from train.replay.run import Options, read_sources, run
from train.replay.split import halves

ALL_TEN = np.arange(10)
"""Prompts of a folder of ten tasks."""
Columns = dict[str, Any]
Change = Callable[[Columns], Columns]


def changed(folder: Path, name: str, change: Change) -> Path:
    """The folder with some columns of one file put in place of, or beside, its own."""
    path = folder / f"{name}.parquet"
    columns = pq.read_table(path).to_pydict()
    pq.write_table(pa.table(columns | change(columns)), path)
    return folder


def without(folder: Path, name: str, *columns: str) -> Path:
    path = folder / f"{name}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(list(columns)), path)
    return folder


def report(*folders: Path, **changes: Any) -> dict[str, Any]:
    grid = replace(small_grid(), turns=(2,), modes=("cut",), orderings=("iid",), contexts=())
    found = run(replace(Options(folders, grid), **changes))
    json.dumps(found, allow_nan=False)
    return found


def column(name: str, of: Callable[[Columns], Any]) -> Change:
    return lambda columns: {name: of(columns)}


def every(name: str, value: Any) -> Change:
    return lambda columns: {name: [value] * len(next(iter(columns.values())))}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("outcomes", column("quality", lambda of: [int(x) for x in of["quality"]])),
        ("outcomes", column("quality", lambda of: [bool(x) for x in of["quality"]])),
        ("outcomes", column("quality", lambda of: pa.array(np.array(of["quality"], np.float16)))),
        ("outcomes", every("in_tok", None)),
        ("outcomes", column("cost_usd", lambda of: pa.array(of["cost_usd"]).cast(pa.float32()))),
        ("outcomes", every("cost_kind", "reported")),
        ("outcomes", every("n_calls", 3)),
        ("outcomes", every("source", None)),
        ("prompts", every("source", None)),
        ("prompts", every("difficulty", {"hard": 1})),
        ("prompts", column("task_id", lambda of: pa.array(of["task_id"]).dictionary_encode())),
        ("models", every("source", None)),
        ("models", every("price_note", "list price")),
    ],
)
def test_types_and_columns_that_others_write_are_read_alike(tmp_path: Path, file: str, change: Change) -> None:
    plain = read_folder(write_folder(tmp_path / "toy", tasks=10))[0]
    again = read_folder(changed(tmp_path / "toy", file, change))[0]
    assert (again.source, again.models, again.task_ids, again.text) == ("toy", *same(plain))
    assert again.quality.tolist() == plain.quality.tolist()
    assert again.cost_usd == pytest.approx(plain.cost_usd)


def same(graded: Graded) -> tuple[Any, ...]:
    return graded.models, graded.task_ids, graded.text


def test_numbers_as_names_of_tasks_are_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=10)
    for name in ("prompts", "outcomes"):
        changed(folder, name, column("task_id", lambda of: [int(task[5:]) for task in of["task_id"]]))
    assert read_folder(folder)[0].task_ids == tuple(str(task) for task in range(10))


def test_answers_that_name_no_turn_belong_to_the_one_that_there_is(tmp_path: Path) -> None:
    folder = changed(write_folder(tmp_path, tasks=10), "prompts", every("turn", 1))
    assert read_folder(without(folder, "outcomes", "turn"))[0].prompts == 10


def test_prices_of_more_models_and_of_one_twice_are_no_matter_and_other_files_neither(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=10)
    names, prices = ["large", "medium", "small", "small", "huge"], [100.0, 10.0, 1.0, 7.0, None]
    table = {"model": names, "usd_in_per_m": [0.0] * 5, "usd_out_per_m": prices}
    pq.write_table(pa.table(table), folder / "models.parquet")
    (folder / "turns.parquet").write_bytes(b"of some other program")
    graded = read_folder(folder)[0]
    assert graded.models == ("large", "medium", "small")
    assert graded.usd_out_per_m.tolist() == [100.0, 10.0, 1.0]


def test_prompts_that_lack_text_or_embedding_have_what_they_have(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=12, content="embedding")
    changed(folder, "prompts", column("text", lambda of: ["hello", *[None] * 11]))
    changed(folder, "prompts", column("embedding", lambda of: [None, [], *of["embedding"][2:]]))
    graded = read_folder(folder)[0]
    assert graded.text[:2] == ("hello", "")
    assert graded.embedding is not None
    assert graded.embedding.shape == (12, 8)
    assert (graded.embedding[:2] == 0.0).all()
    assert (graded.embedding[2:] != 0.0).any(axis=1).all()


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("outcomes", every("quality", None), r"outcomes.parquet: quality: expected numbers from 0 to 1, found none"),
        ("outcomes", every("quality", "good"), r"outcomes.parquet: column 'quality': expected numbers, found a text"),
        ("outcomes", every("cost_usd", -1.0), r"outcomes.parquet: cost_usd: expected 0 or more, found -1"),
        ("outcomes", every("turn", 1), r"no row belongs .*task_id 'task-0', turn 0; task_id 'task-0', turn 1"),
        ("prompts", column("task_id", lambda of: ["one"] * 10), r"prompts.parquet: 9 rows repeat a task_id and turn"),
        ("prompts", every("embedding", [float("nan")]), r"prompts.parquet: embedding: expected finite numbers"),
        ("prompts", column("embedding", lambda of: [[1.0], *[[1.0, 2.0]] * 9]), r"expected one length, found \[1, 2\]"),
        ("models", every("usd_in_per_m", -1.0), r"models.parquet: usd_in_per_m: expected numbers from 0, or null"),
        (
            "models",
            every("usd_out_per_m", math.inf),
            r"models.parquet: usd_out_per_m: expected numbers from 0, or null",
        ),
        ("models", column("model", lambda of: ["a", "b", "c"]), r"toy: no price for model 'large'.* there are a, b, c"),
    ],
)
def test_what_cannot_be_played_is_named_with_its_file(tmp_path: Path, file: str, change: Change, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_folder(changed(write_folder(tmp_path, tasks=10), file, change))


def test_a_model_without_a_list_price_has_that_of_its_bills(tmp_path: Path) -> None:
    """The toy bills only the answers, at 100, 10 and 1 USD per million tokens."""
    folder = changed(write_folder(tmp_path, tasks=10), "models", every("usd_out_per_m", None))
    graded = read_folder(folder)[0]
    assert graded.notes[0].startswith("model large has no list price")
    assert graded.with_prices(ALL_TEN).usd_out_per_m.tolist() == pytest.approx([100.0, 10.0, 1.0])


def test_a_missing_list_price_is_that_of_the_training_half_s_bills_alone(tmp_path: Path) -> None:
    """Every answer costs a cent, but for one: in whichever half it lies, the other's prices do not know of it."""
    bills = [0.01] * 30
    bills[0] = 5.0  # of the model large
    folder = write_folder(tmp_path, tasks=10, out_tok=[100] * 30, cost_usd=bills)
    graded = read_folder(changed(folder, "models", every("usd_out_per_m", None)))[0]
    assert graded.with_prices(ALL_TEN[:1]).usd_out_per_m.tolist() == pytest.approx([50_000.0, 100.0, 100.0])
    assert graded.with_prices(ALL_TEN[1:]).usd_out_per_m.tolist() == pytest.approx([100.0] * 3)
    training = halves(graded, 0).training
    paid_usd = 0.01 * len(training) + (4.99 if 0 in training else 0.0)
    study = next(studies(graded, quick(), (), 0, inputs="richer"))
    assert study.graded.usd_out_per_m[0] == pytest.approx(paid_usd / (100e-6 * len(training)))


def test_without_tokens_a_bill_is_priced_as_a_thousand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=10, drop=("in_tok", "out_tok"), cost_usd=[0.05, 0.002, 0.001] * 10)
    changed(folder, "models", every("usd_in_per_m", None))
    graded = read_folder(changed(folder, "models", every("usd_out_per_m", None)))[0].with_prices(ALL_TEN)
    assert graded.usd_in_per_m.tolist() == graded.usd_out_per_m.tolist() == pytest.approx([50.0, 2.0, 1.0])


def test_a_price_of_answers_alone_leaves_the_rest_of_the_bill_to_the_prompt(tmp_path: Path) -> None:
    """1,000 tokens read, one written at 300 USD per million: of 1,800 micro-dollars 1,500 pay for the prompt."""
    folder = write_folder(tmp_path, tasks=10, in_tok=[1000] * 30, out_tok=[1] * 30, cost_usd=[1800e-6] * 30)
    changed(folder, "models", every("usd_out_per_m", 300.0))
    graded = read_folder(changed(folder, "models", every("usd_in_per_m", None)))[0].with_prices(ALL_TEN)
    assert graded.usd_in_per_m.tolist() == pytest.approx([1.5] * 3)


def test_a_model_without_price_or_bill_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tasks=10, drop=("cost_usd",))
    changed(folder, "models", every("usd_out_per_m", None))
    with pytest.raises(DataError, match="expected cost_usd, or in_tok and out_tok with prices"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["prompts", "outcomes", "models"])
def test_a_file_without_rows_is_named(tmp_path: Path, name: str) -> None:
    path = write_folder(tmp_path, tasks=10) / f"{name}.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=f"{name}.parquet: expected rows, found none"):
        read_folder(tmp_path)


def test_fewer_than_four_tasks_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="toy: 3 tasks were answered by every model, need 4"):
        read_folder(write_folder(tmp_path, tasks=3, turns=2))


@pytest.mark.parametrize("text", [None, "the same for all"])
def test_a_handful_of_tasks_and_prompts_of_one_text_are_dealt_out_to_either_side(
    tmp_path: Path, text: str | None
) -> None:
    tasks = 4 if text is None else 40
    folder = write_folder(tmp_path, tasks=tasks, models=("large", "small"))
    changed(folder, "prompts", every("text", text))
    split = halves(read_folder(folder)[0], 0)
    assert len(split.training) == len(split.test) == tasks / 2
    assert {row["policy"] for row in report(folder)["rows"]} >= {"ours", "published-safe"}


def test_of_many_models_the_front_is_played_and_the_pair_of_its_ends(tmp_path: Path) -> None:
    graded = read_folder(write_folder(tmp_path))[0]
    names = tuple(f"m{k:02d}" for k in range(12))
    assert len(names) > MOST_MODELS
    quality = np.tile(np.linspace(0.2, 0.9, 12), (graded.prompts, 1))
    cost = np.tile(np.geomspace(1e-5, 1e-2, 12), (graded.prompts, 1))
    quality[:, 5] = 0.1  # costlier than the ones before and worse: not on the front
    ones = np.ones(12)
    twelve = replace(graded, models=names, quality=quality, cost_usd=cost, usd_in_per_m=ones, usd_out_per_m=ones)
    many, pair = catalogues(replace(twelve, in_tokens=cost, out_tokens=cost), np.arange(60), ())
    assert len(many.models) == THINNED_MODELS
    assert "m05" not in many.models
    assert pair.models == ("m00", "m11")


def test_a_folder_of_two_odd_sources_is_played_whole(tmp_path: Path) -> None:
    """Three models, some free, one answer missing; and two of equal cost with one group and two turns a task."""
    first = write_folder(tmp_path / "first", tasks=60, seed=1)
    changed(first, "outcomes", column("cost_usd", lambda of: [0.0, *of["cost_usd"][1:]]))
    changed(first, "outcomes", column("quality", lambda of: [*of["quality"][:-1], None]))
    second = write_folder(tmp_path / "second", tasks=40, turns=2, seed=2, models=("large", "small"))
    changed(second, "outcomes", every("cost_usd", 1e-4))
    changed(second, "prompts", every("group", "all"))
    both = tmp_path / "both"
    both.mkdir()
    for name in ("prompts", "outcomes", "models"):
        tables = []
        for source, folder in (("a", first), ("b", second)):
            tables.append(pq.read_table(changed(folder, name, every("source", source)) / f"{name}.parquet"))
        pq.write_table(pa.concat_tables(tables), both / f"{name}.parquet")
    found = report(both)
    assert [(s["source"], s["prompts"], len(s["models"])) for s in found["meta"]["sources"]] == [
        ("a", 59, 3),
        ("b", 80, 2),
    ]
    assert {row["source"] for row in found["rows"]} == {"a", "b"}
    narrow = report(both, policies=("ours",), models=("small", "large"))
    assert {(row["source"], row["models"]) for row in narrow["rows"]} == {("a", "small,large"), ("b", "small,large")}


def test_rows_of_newcomers_that_were_not_asked_for_leave_no_gap_in_the_output(tmp_path: Path) -> None:
    found = report(write_folder(tmp_path, tasks=40), policies=("ours", "ours-trained"))
    assert {row["policy"] for row in found["rows"]} == {"ours", "ours-trained"}
    assert not [line for line in found["summary"] if line["kind"] == "newcomer"]


def test_one_source_of_several_folders_stays_apart(tmp_path: Path) -> None:
    one, other = (write_folder(tmp_path / name, tasks=10, seed=seed) for seed, name in enumerate(("new", "old")))
    assert [source.graded.source for source in read_sources([one, other, one])] == ["toy (new)", "toy (old)"]
    third = write_folder(tmp_path / "again" / "new", tasks=10)
    with pytest.raises(DataError, match=r"toy \(new\): two folders of this name hold the same source"):
        read_sources([one, third])
