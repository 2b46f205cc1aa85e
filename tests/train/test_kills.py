"""A nightly run killed at every boundary of a step and inside every write: never a partial policy, always a way on.

One run is made; at each step's start, and before and after every sync and rename, what lies on disk is copied. Each
copy is what a process killed at that moment leaves behind: the kernel keeps what was written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.database.database import transaction
from gateway.policies.registry import champion_of
from policy.checkpoint import load
from tests.train.log.test_episodes import a_log
from tests.train.nightly.test_nightly import night, run_state
from tests.train.small import TAUGHT
from tests.train.synthetic import NOW_MS
from train.nightly.nightly import STALE_AFTER_MS, run


@dataclass
class Deaths:
    """Copies of a folder, one for every moment at which the process could have died."""

    live: Path
    kept: Path
    moments: list[tuple[str, Path]] = field(default_factory=list)

    def here(self, name: str) -> None:
        target = self.kept / f"{len(self.moments):03d}"
        shutil.copytree(self.live, target)
        self.moments.append((name, target))

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.here(f"before {name}")
            answer = call(*arguments, **options)
            self.here(f"after {name}")
            return answer

        return called


@pytest.mark.timeout(900)
def test_a_run_killed_at_any_moment_shows_no_partial_policy_and_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    a_log(live, sessions=16)
    deaths = Deaths(live, tmp_path / "deaths")
    job = night(f"sqlite:///{live}/log.db", live, progress=lambda step, done, total: deaths.here(step))
    with monkeypatch.context() as patched:
        for name in ("fsync", "replace", "rename"):
            patched.setattr(os, name, deaths.around(name, getattr(os, name)))
        report = run(job, TAUGHT)
    assert report["outcome"] == "promote", report["reasons"]
    names = {name for name, _ in deaths.moments}
    assert {"read", "fit", "tune", "evaluate", "publish", "before fsync", "after rename"} <= names

    for name, folder in deaths.moments:
        check_nothing_partial(name, folder)
    fitted = [folder for _, folder in deaths.moments if list(folder.glob("runs/*/fit.json"))]
    assert len(fitted) > 10
    for folder in (fitted[0], fitted[-8], fitted[-3]):
        resume(folder, report["candidate"])


def check_nothing_partial(name: str, folder: Path) -> None:
    """What a gateway that looks now would serve: the rule, or the whole policy once the run is closed."""
    url = f"sqlite:///{folder}/log.db"
    with transaction(url, read_only=True) as connection:
        champion = champion_of(connection)
    if champion is None:
        assert run_state(url) == ("running", 1), name
        return
    assert run_state(url) == ("done", 1), name
    load(folder / "policies" / champion.policy_id, sha256=champion.manifest_sha256)


def resume(folder: Path, candidate: str) -> None:
    url, steps = f"sqlite:///{folder}/log.db", list[str]()
    late = night(url, folder, progress=lambda step, done, total: steps.append(step))
    report = run(replace(late, now_ms=lambda: NOW_MS + STALE_AFTER_MS), TAUGHT)
    if report["outcome"] != "already ran":
        assert report["candidate"] == candidate
        assert "fit" not in steps
    with transaction(url, read_only=True) as connection:
        champion = champion_of(connection)
    assert champion is not None
    assert champion.policy_id == candidate
    load(folder / "policies" / candidate, sha256=champion.manifest_sha256)
