"""A whole night: from rows of the log to the champion's row, and what happens when it is killed or run twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.config.settings import PolicySettings
from gateway.database import tables
from gateway.database.database import transaction
from gateway.policies.registry import act_on, get_policy, pin_policy, wanted_policies
from policy.checkpoint import load
from policy.learned import lengths_from
from policy.manifest import Recipe
from policy.rules import Fixed, Random
from tests.train.evaluate.test_gate import GOOD
from tests.train.log.test_episodes import a_log
from tests.train.small import SMALL, TINY
from tests.train.synthetic import NOW_MS
from train.config import GateConfig, TrainConfig
from train.evaluate.gate import GateVerdict
from train.nightly.lock import Claim, ClaimLost, Taken, claim, finish
from train.nightly.nightly import STALE_AFTER_MS, Nightly, run, with_advice
from train.nightly.publish import TRIAL_MS, publish, reject
from train.nightly.text_report import describe


def night(url: str, folder: Path, **changes: object) -> Nightly:
    job = Nightly(
        url,
        PolicySettings(directory=folder / "policies", publish="champion"),
        folder / "runs",
        "2025-10-09",
        lambda: NOW_MS,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def champion(url: str) -> str | None:
    with transaction(url, read_only=True) as connection:
        found = wanted_policies(connection).champion
    return None if found is None else found.policy_id


def run_state(url: str) -> tuple[str, int]:
    with transaction(url, read_only=True) as connection:
        row = connection.execute(sa.select(tables.nightly_runs.c.state, tables.nightly_runs.c.fence)).one()
    return row[0], row[1]


def test_a_night_learns_what_the_priors_hide_and_publishes_it_once(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=320, policy=Random())
    report = run(night(url, tmp_path), SMALL)
    assert report["outcome"] == "promote", report["reasons"]
    policy_id = champion(url)
    assert policy_id == report["candidate"]
    loaded = load(tmp_path / "policies" / str(policy_id))
    assert loaded.recipe.report["outcome"] == "promote"
    assert loaded.recipe.average_quality["large"] > 0.85
    for step in ("log", "fit", "evaluation", "gate", "report"):
        assert json.loads((tmp_path / "runs" / report["run_id"] / f"{step}.json").read_text())
    assert any("incumbent" in line for line in describe(report))
    assert lengths_from(loaded) is not None, "hard tasks have longer answers"
    assert report["fit"]["answer_lengths"]["kept"]
    assert any("large" in line and "within q90" in line for line in describe(report))

    again = run(night(url, tmp_path), SMALL)
    assert again["outcome"] == "already ran"
    assert again["reasons"] == [f"run {again['run_id']} read this date's log; --force reads it again"]
    assert champion(url) == policy_id
    assert run_state(url) == ("done", 1)


def test_too_little_data_is_a_verdict_with_its_reason(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=5)
    report = run(night(url, tmp_path), SMALL)
    assert report["reasons"] == ["not enough data: 5 of about 250 sessions in the log"]
    assert champion(url) is None
    assert run_state(url) == ("done", 1)


def test_few_sessions_are_refused_however_large_the_gain(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=40)
    report = run(night(url, tmp_path), replace(TINY, gate=GateConfig()))
    assert report["outcome"] == "not enough data"
    assert champion(url) is None
    with transaction(url, read_only=True) as connection:
        stages = connection.execute(sa.select(tables.policies.c.stage)).scalars().all()
    assert set(stages) == {"rejected"}


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.train.nightly import test_nightly as t
from tests.train.small import TINY

def die(step, done, total):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

t.run(t.night(sys.argv[1], Path(sys.argv[2]), progress=die), TINY)
"""


@pytest.mark.parametrize("stage", ["evaluate", "publish"])
def test_a_killed_run_leaves_nothing_visible_and_is_taken_up_where_it_stopped(tmp_path: Path, stage: str) -> None:
    url = a_log(tmp_path, sessions=30)
    died = subprocess.run([sys.executable, "-c", KILLED, url, str(tmp_path), stage], check=False, timeout=200)
    assert died.returncode == -signal.SIGKILL
    assert champion(url) is None
    assert run_state(url) == ("running", 1)
    assert run(night(url, tmp_path), TINY)["outcome"] == "already running"

    steps: list[str] = []
    late = night(
        url, tmp_path, now_ms=lambda: NOW_MS + STALE_AFTER_MS, progress=lambda step, done, total: steps.append(step)
    )
    report = run(late, TINY)
    assert report["outcome"] == "promote", report["reasons"]
    assert "fit" not in steps
    assert champion(url) == report["candidate"]
    assert ("evaluate" in steps) == (stage == "evaluate")


def test_a_folder_without_a_row_is_invisible_and_does_not_hinder_the_next_try(tmp_path: Path) -> None:
    # Killed between the folder and the transaction.
    url = a_log(tmp_path, sessions=30)

    def die(url: str) -> int:
        if (tmp_path / "policies").exists():
            raise KeyboardInterrupt
        return NOW_MS

    with pytest.raises(KeyboardInterrupt):
        run(night(url, tmp_path, now_ms=lambda: die(url)), TINY)
    assert champion(url) is None
    assert len(list((tmp_path / "policies").iterdir())) == 1
    report = run(night(url, tmp_path, force=True), TINY)
    assert champion(url) == report["candidate"]


def test_of_two_runs_on_a_date_one_is_effective(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=0)
    with transaction(url) as connection:
        first = claim(connection, "2025-10-09", "a", now_ms=0, stale_after_ms=100, force=False)
        second = claim(connection, "2025-10-09", "b", now_ms=99, stale_after_ms=100, force=False)
        taken_over = claim(connection, "2025-10-09", "c", now_ms=100, stale_after_ms=100, force=False)
    assert first == Claim("2025-10-09", "a", 1)
    assert second == Taken("a", "running")
    assert taken_over == Claim("2025-10-09", "a", 2)
    with transaction(url) as connection, pytest.raises(ClaimLost):
        finish(connection, Claim("2025-10-09", "a", 1), "done", 200)
    with transaction(url) as connection:
        finish(connection, Claim("2025-10-09", "a", 2), "done", 200)
        assert claim(connection, "2025-10-09", "d", now_ms=999, stale_after_ms=100, force=False) == Taken("a", "done")
        afresh = claim(connection, "2025-10-09", "d", now_ms=999, stale_after_ms=100, force=True)
    assert afresh == Claim("2025-10-09", "d", 3)


@pytest.mark.parametrize(("asked", "stage"), [("canary", "canary"), ("shadow", "shadow"), ("champion", "champion")])
def test_what_passes_the_gate_goes_where_the_settings_say(tmp_path: Path, asked: str, stage: str) -> None:
    url = a_log(tmp_path, sessions=0)
    with transaction(url) as connection:
        found = publish(connection, Recipe("new"), tmp_path, "ab", {}, stage=asked, now_ms=1)
        assert (found.stage, found.note) == (stage, "")
        assert get_policy(connection, "new").stage == stage


def test_a_pin_or_a_trial_under_way_lets_a_new_policy_wait(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=0)
    with transaction(url) as connection:
        publish(connection, Recipe("first"), tmp_path, "ab", {}, stage="canary", now_ms=0)
        second = publish(connection, Recipe("second"), tmp_path, "ab", {}, stage="canary", now_ms=1)
        assert (second.stage, second.note) == ("candidate", "the trial of first is not over")
        assert publish(connection, Recipe("third"), tmp_path, "ab", {}, stage="canary", now_ms=TRIAL_MS).note == ""
        pin_policy(connection, "rule:resolving", actor="cli", now_ms=2)
        fourth = publish(connection, Recipe("fourth"), tmp_path, "ab", {}, stage="champion", now_ms=3)
        assert (fourth.stage, fourth.note) == ("candidate", "rule:resolving is pinned")
        assert get_policy(connection, "fourth").stage == "candidate"


def at_publishing(url: str, policy_id: str, action: str) -> Callable[[str, int, int], None]:
    """Progress that does something to a policy just before the night publishes."""

    def progress(step: str, done: int, total: int) -> None:
        if step == "publish":
            with transaction(url) as connection:
                act_on(connection, policy_id, action, actor="cli", now_ms=NOW_MS)

    return progress


def test_a_policy_that_was_compared_with_another_champion_waits(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=30)
    report = run(night(url, tmp_path, progress=at_publishing(url, "rule:cheapest", "promote")), TINY)
    note = "it was compared with pretrained-1, and rule:cheapest serves now"
    assert report["published"] == {"stage": "candidate", "note": note}
    assert champion(url) == "rule:cheapest"


@pytest.mark.parametrize(("action", "stage"), [("canary", "canary"), ("rollback", "rejected")])
def test_a_waiting_policy_that_is_staged_or_rejected_during_a_night_stays_there(
    tmp_path: Path, action: str, stage: str
) -> None:
    url = a_log(tmp_path, sessions=30)
    waiting = str(run(night(url, tmp_path, progress=at_publishing(url, "rule:cheapest", "pin")), TINY)["candidate"])
    with transaction(url) as connection:
        assert get_policy(connection, waiting).stage == "candidate"
    second = night(url, tmp_path, run_date="2025-10-10", progress=at_publishing(url, waiting, action))
    report = run(replace(second, now_ms=lambda: NOW_MS + 1), TINY)
    assert waiting in report["evaluation"]["waiting"]
    with transaction(url) as connection:
        assert get_policy(connection, waiting).stage == stage


def test_an_error_after_publishing_is_shown_as_what_it_is(tmp_path: Path) -> None:
    url = a_log(tmp_path, sessions=30)
    job = night(url, tmp_path)
    (tmp_path / "runs" / f"2025-10-09-{NOW_MS % 10**8:08d}" / "report.json" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"report\.json"):
        run(job, TINY)
    assert champion(url) is not None
    assert run_state(url) == ("done", 1)


def test_a_policy_published_twice_keeps_its_stage(tmp_path: Path) -> None:
    """As by importing one file twice."""
    url = a_log(tmp_path, sessions=0)
    with transaction(url) as connection:
        publish(connection, Recipe("new"), tmp_path, "ab", {}, stage="shadow", now_ms=1)
        again = publish(connection, Recipe("new"), tmp_path, "ab", {}, stage="shadow", now_ms=2)
        assert (again.stage, again.note) == ("shadow", "it is there already")
        assert get_policy(connection, "new").staged_at_ms == 1
    with (
        pytest.raises(sa.exc.IntegrityError),
        transaction(url) as connection,
    ):  # staged while its rejection was on its way
        reject(connection, Recipe("new"), {}, now_ms=3)
    with transaction(url) as connection:
        assert get_policy(connection, "new").stage == "shadow"


def test_a_log_of_another_policy_proves_no_gain_over_the_one_that_serves(tmp_path: Path) -> None:
    """All turns by the smallest model, which is right in .55 of them: the shipped network, which hardly takes it, would
    be estimated by the reward model's guess of .5 for the others."""
    report = run(night(a_log(tmp_path, sessions=40, policy=Fixed("small")), tmp_path), TINY)
    assert report["evaluation"]["policies"]["incumbent"]["overlap"] < 0.1
    assert report["outcome"] == "keep"
    assert any("the log says little about what serves now" in reason for reason in report["reasons"])


def test_a_night_after_a_change_by_hand_says_which_part_of_the_log_covers_it() -> None:
    """By hand: 3 of 60 days are the champion's own; 100 held-out sessions of a half held out are 200."""
    config = replace(
        TrainConfig(), log=replace(TrainConfig().log, holdout_fraction=0.5), gate=GateConfig(min_sessions=100)
    )
    kept = GateVerdict("keep", None, ("network: overlap",))
    unseen, seen = (replace(GOOD, incumbent_overlap=overlap) for overlap in (0.1, 0.9))
    advised = with_advice(kept, [unseen], 3.0, config).reasons
    assert "it has served for 3.0 of 60 days" in advised[0]
    assert "set log.since_days: 3.0" in advised[0]
    assert "about 200 sessions" in advised[0]
    assert advised[1:] == kept.reasons
    assert with_advice(kept, [seen], 3.0, config) == kept
    assert with_advice(kept, [unseen], 60.0, config) == kept
    assert with_advice(kept, [unseen], None, config) == kept
