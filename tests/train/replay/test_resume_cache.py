"""A run that is cut short goes on where it was; processes side by side change no byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.replay.folders import write_folder
from tests.train.replay.test_run import small_grid
from train.replay import run as replay
from train.replay.grid import Grid
from train.replay.inputs import Inputs
from train.replay.parallel import Tell
from train.replay.resume_cache import ResumeCache, part_name
from train.replay.run import CatalogueOutput, Options


def tiny_grid() -> Grid:
    return replace(small_grid(), turns=(2,), contexts=(), modes=("cut",), orderings=("iid",))


def options(folder: Path, **changes: Any) -> Options:
    return replace(Options((folder,), tiny_grid()), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("toy"), tasks=40)


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    """The output of a run in one go, in this process."""
    return json.dumps(replay.run(options(folder)), allow_nan=False)


def test_two_processes_write_the_same_bytes_as_none(folder: Path, whole: str) -> None:
    heard: list[tuple[str, int, int]] = []
    beside = replay.run(options(folder, workers=2, progress=lambda *step: heard.append(step)))
    assert json.dumps(beside, allow_nan=False) == whole
    done = [step[1] for step in heard]
    assert done == sorted(done)
    assert done[-1] == heard[-1][2] == 2 * replay.steps(tiny_grid())


def test_what_was_finished_before_a_run_was_cut_short_is_not_played_again(
    folder: Path, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, play, numbers = tmp_path / "parts", replay.play_catalogue, list[int]()

    def failing_at_the_second(source: Any, inputs: Inputs, number: int, chosen: Options, tell: Tell) -> CatalogueOutput:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return play(source, inputs, number, chosen, tell)

    monkeypatch.setattr(replay, "play_catalogue", failing_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        replay.run(options(folder, kept=kept))
    assert len(list(kept.glob("*.json"))) == 1
    resumed = replay.run(options(folder, kept=kept))
    assert numbers == [0, 1, 1]
    assert json.dumps(resumed) == whole


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"policies": ("ours",)}, {"models": ("large", "small")}, {"preset": "full"}, {"inputs": ("richer",)}],
)
def test_parts_of_other_options_are_not_taken_up(folder: Path, change: dict[str, Any]) -> None:
    assert part_name(replay.settings(options(folder, **change))) != part_name(replay.settings(options(folder)))


def test_a_part_is_found_by_all_that_it_depends_on_and_half_a_file_is_none(tmp_path: Path) -> None:
    kept = ResumeCache(tmp_path / "parts")
    name = part_name({"seed": 0})
    assert name == part_name({"seed": 0}) != part_name({"seed": 1})
    assert kept.find(name) is None
    kept.keep(name, {"rows": [{"quality": 0.1 + 0.2}], "points": []})
    assert kept.find(name) == {"rows": [{"quality": 0.30000000000000004}], "points": []}
    (tmp_path / "parts" / f"{name}.json").write_text('{"rows": [')
    assert kept.find(name) is None
    kept.clear()
    assert not (tmp_path / "parts").exists()
