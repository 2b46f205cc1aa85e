"""The whole benchmark on a small folder: complete, deterministic, and blind to what it must not see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.replay.folders import write_folder
from train.__main__ import run_command
from train.replay import cells
from train.replay.cells import Grid, narrowed
from train.replay.run import Options, run

BASELINES = {"weakest", "strongest", "best-fixed", "random", "threshold", "tuned-lambda", "pacing", "re-solving"}


def small_grid() -> Grid:
    grid = narrowed(cells.quick(), turns=("4",), phis=("0.35",), base_contexts=("8000",))
    return replace(grid, training_sessions=15, test_sessions=15, resamples=20)


def report(folder: Path) -> dict[str, Any]:
    return run(Options((folder,), small_grid()))


@pytest.mark.parametrize("content", ["text", "embedding", "none"])
def test_every_policy_is_reported_in_every_cell_and_ordering(tmp_path: Path, content: str) -> None:
    found = report(write_folder(tmp_path, content=content))
    by_cell: dict[tuple[Any, ...], set[str]] = {}
    for row in found["rows"]:
        key = tuple(row[name] for name in ("models", "mode", "base_context", "ordering"))
        by_cell.setdefault(key, set()).add(row["policy"])
    assert len(by_cell) == 2 * 3 * 6  # catalogue and pair; cut, degrade and cache; five orderings and all together
    assert all(policies >= BASELINES for policies in by_cell.values())


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    assert json.dumps(report(folder)) == json.dumps(report(folder))


def test_the_command_writes_the_file_and_names_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["replay", "--data", str(tmp_path / "nothing"), "--json", str(out)]
    assert run_command(arguments) == 2
    assert "prompts.parquet: not found" in capsys.readouterr().err
    arguments = ["replay", "--data", str(write_folder(tmp_path / "toy", tasks=40)), "--json", str(out)]
    arguments += ["--turns", "2", "--phi", ".5", "--mode", "cut", "--ordering", "iid", "--base-context", "1500"]
    assert run_command([*arguments, "--policies", "weakest,strongest"]) == 0
    assert {row["policy"] for row in json.loads(out.read_text())["rows"]} == {"weakest", "strongest"}


def test_an_option_outside_of_what_there_is_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path)
    start = ["replay", "--data", str(folder), "--json", str(tmp_path / "out.json")]
    for option, word in (("--mode", "cap"), ("--turns", "many"), ("--phi", "x"), ("--preset", "slow")):
        assert run_command([*start, option, word]) == 2
        assert f"{option}: expected" in capsys.readouterr().err
    assert run_command([*start, "--models", "small,huge"]) == 2
    assert "no model 'huge'; there are large, medium, small" in capsys.readouterr().err
