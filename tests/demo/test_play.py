"""The whole demo, small: real processes, real SDK, real training, and a gate told to let anything pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo import results
from demo.play import gate_words, parse
from demo.results import PolicyRow
from demo.stage import ROOT

LENIENT = """
fit: {warm_steps: 0, steps: 0, samples: 64, residual_steps: 20}
quality: {landmarks: 64}
plan: {samples: 16, turns: 4}
ope: {bootstrap: 50}
gate:
  {min_sessions: 1, min_gain: -9.0, min_ess: 0.0, min_ess_fraction: 0.0, min_overlap: 0.0, max_starved_increase: 1.0}
"""


def test_the_demo_learns_reloads_compares_and_its_books_agree_with_the_providers(tmp_path: Path) -> None:
    training = tmp_path / "training.yaml"
    training.write_text(LENIENT)
    folder = tmp_path / "demo"
    arguments = ["--sessions", "30", "--held-out", "3", "--turns", "4", "--budget-usd", "0.006", "--latency-scale", "0"]
    finished = subprocess.run(
        [sys.executable, "-m", "demo.play", *arguments, "--training", str(training), "--folder", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, said
    assert "\x1b" not in said, "no colours and no progress bar in a pipe"
    passes = {label: results.read_pass(folder / "seqroute.db", label) for label in ("learn", "before", "after")}
    assert [p.sessions for p in passes.values()] == [30, 3, 3]
    assert all(p.answered == p.graded > 0 for p in passes.values())
    champion = results.trained_policies(folder / "seqroute.db")[0]
    assert champion.stage == "champion"
    assert passes["after"].policies == (champion.policy_id,)
    assert passes["before"].policies == ("pretrained-1",)
    totals = results.ledger_totals(folder / "seqroute.db")
    assert f"ledger settled {totals['settled'] / 10**9:.9f} USD" in said
    assert f"provider billed {totals['settled'] / 10**9:.9f} USD" in said


def test_a_folder_that_is_not_the_demos_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    finished = subprocess.run(
        [sys.executable, "-m", "demo.play", "--folder", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1
    assert "expected an empty folder" in finished.stderr


def test_the_gates_words_say_each_reason_once_and_where_every_policy_stands() -> None:
    reasons = ("gain +0.1 per turn",)
    assert gate_words([PolicyRow("a", "champion", reasons), PolicyRow("b", "rejected", reasons)]) == [
        "gain +0.1 per turn", "a is champion", "b is rejected",
    ]  # fmt: skip
    assert gate_words([]) == ["no policy was written"]


@pytest.mark.parametrize("arguments", [["--sessions", "0"], ["--turns", "-1"], ["--surprise"]])
def test_options_that_make_no_sense_end_before_anything_starts(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
