from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.config.settings import PolicySettings
from policy.reload import PRETRAINED
from tests.train.replay.folders import write_folder
from train.config import FitConfig, GateConfig, OpeConfig, PlanConfig, QualityConfig, TrainConfig
from train.errors import InputError
from train.evaluate import frontier
from train.fit.artifacts import quality_model
from train.nightly import steps
from train.nightly.frontier import Wanted, frontier_of
from train.nightly.nightly import Nightly
from train.replay import as_log as composed
from train.replay.as_log import LOOSE_PHI, composed_log

TINY = TrainConfig(
    fit=FitConfig(warm_steps=0, steps=0, samples=64, residual_steps=20),
    quality=QualityConfig(folds=2, penalties=(1.0,), landmarks=16),
    plan=PlanConfig(
        samples=8, turns=3, money_points=6, contexts_tokens=(0.0,), lambdas=(0.15,), starved_penalties=(0.0,)
    ),
    ope=OpeConfig(bootstrap=50, tuning_sessions=3),
    gate=GateConfig(min_sessions=1),
)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short sessions, and not many of anything: these tests are about what goes where."""
    monkeypatch.setattr(composed, "TURNS", 3)
    monkeypatch.setattr(composed, "TRAINING_SESSIONS", 30)
    monkeypatch.setattr(composed, "UNTOUCHED_SESSIONS", 24)
    monkeypatch.setattr(frontier, "LAMBDAS", 1)
    monkeypatch.setattr(frontier, "BUDGETS", 2)


def job(folder: Path) -> Nightly:
    return Nightly("", PolicySettings(), folder, "", lambda: 0)


@pytest.mark.usefixtures("few")
def test_the_parts_share_no_task_and_every_answer_is_graded(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    training, untouched = composed_log(data, 0, untouched_sessions=12)
    assert (training.sessions, untouched.sessions) == (30, 12)
    tasks = [set(part.task[part.valid].tolist()) for part in (training, untouched)]
    assert tasks[0]
    assert not tasks[0] & tasks[1]
    assert np.isfinite(training.scores[training.valid]).all()
    again, _ = composed_log(data, 0, untouched_sessions=12)
    assert again.digest() == training.digest()


@pytest.mark.usefixtures("few")
def test_a_loose_budget_ends_no_session(tmp_path: Path) -> None:
    _, untouched = composed_log(write_folder(tmp_path / "data"), 0, phis=(LOOSE_PHI,), untouched_sessions=12)
    assert (untouched.lengths == 3).all()


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts\.parquet"):
        composed_log(tmp_path, 0)


@pytest.mark.usefixtures("few")
def test_fit_evaluate_and_frontier_take_a_folder_and_need_no_gateway(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    fitted = steps.fit(job(tmp_path), TINY, tmp_path / "run", data)
    assert fitted["log"]["labels"] == {"known": fitted["log"]["turns"]}
    found = steps.evaluate(job(tmp_path), TINY, tmp_path / "run", data)
    assert found["evaluation"]["incumbent"]["policy_id"] == PRETRAINED
    assert set(found["evaluation"]["policies"]) == {"incumbent", *fitted["fit"]["candidates"]}
    wanted = Wanted(None, tmp_path / "run", 20, 0.5, data)
    report = frontier_of(replace(job(tmp_path), progress=lambda *at: None), TINY, wanted)
    assert report["meta"]["folder"] == "data"
    drawn = [policy["policy"] for policy in report["policies"]]
    assert drawn[0] == PRETRAINED
    assert drawn[1:] == sorted(fitted["fit"]["candidates"])
    rich = [policy["budget_sweep"][-1]["starved_rate"]["mean"] for policy in report["policies"]]
    assert rich == [0.0] * len(rich)
    training, _ = composed_log(data, 0, untouched_sessions=12)
    renamed = (*training.models[:-1], "another")  # as many, whose grades would be read as the old ones'
    with pytest.raises(InputError, match=r"quality\.npz: expected the log's models .*another"):
        quality_model(tmp_path / "run", renamed, training.state.shape[-1])


def test_a_run_without_candidates_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no candidates in"):
        steps.candidate_names(tmp_path)
