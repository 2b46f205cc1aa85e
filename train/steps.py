"""The steps of a nightly run on their own: fit without publishing, evaluate without promoting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.settings import PolicySettings
from train.config import TrainConfig
from train.episodes import split_by_session
from train.gate import judge
from train.nightly import (
    MIN_TURNS_TO_FIT,
    Nightly,
    Progress,
    evaluate_candidates,
    evidence_from,
    fit_candidates,
    identity,
    needed_sessions,
    read_log,
)
from train.runs import RunFolder, finite


def fit(
    database_url: str,
    policies: PolicySettings,
    config: TrainConfig,
    folder: Path,
    now_ms: Callable[[], int],
    progress: Progress | None = None,
    log: Path | None = None,
) -> dict[str, Any]:
    """Read, split, fit and tune into `folder`; the same as those steps of a nightly run."""
    job = Nightly(database_url, policies, folder.parent, "", now_ms, progress=progress, log=log)
    episodes, read = read_log(job, config)
    training, _ = split_by_session(episodes, config.log.holdout_fraction, config.seed)
    if training.turns < MIN_TURNS_TO_FIT:
        reason = f"not enough data: {episodes.sessions:,} of about {needed_sessions(config):,} sessions in the log"
        return {"outcome": "not enough data", "reasons": [reason], "log": finite(read)}
    run = RunFolder(folder, identity(episodes, config))
    return {"log": finite(read), "fit": fit_candidates(job, config, run, folder.name, training)}


def evaluate(
    database_url: str,
    policies: PolicySettings,
    config: TrainConfig,
    folder: Path,
    now_ms: Callable[[], int],
    progress: Progress | None = None,
    log: Path | None = None,
) -> dict[str, Any]:
    """Evaluate what `fit` left in `folder` against what serves now; nothing is published.

    The log may have grown since; the split is by session, so what was untouched still is.
    """
    job = Nightly(database_url, policies, folder.parent, "", now_ms, progress=progress, log=log)
    episodes, read = read_log(job, config)
    training, untouched = split_by_session(episodes, config.log.holdout_fraction, config.seed)
    names = sorted(path.name for path in (folder / "candidates").iterdir())
    found = evaluate_candidates(job, config, RunFolder(folder, identity(episodes, config)), training, untouched, names)
    verdict = judge([evidence_from(item) for item in found["evidence"]], config.gate)
    return {
        "outcome": verdict.outcome,
        "candidate": verdict.candidate,
        "reasons": list(verdict.reasons),
        "log": finite(read),
        "evaluation": found,
    }
