"""Single steps of a nightly run: fit without publishing, evaluate without promoting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policy.exploration import GREEDY
from policy.mdp import Policy
from policy.reload import PRETRAINED, builtin_policies
from train.config import TrainConfig
from train.errors import InputError
from train.evaluate.gate import judge
from train.log.episodes import Episodes, split_by_tree
from train.nightly.nightly import (
    MIN_TURNS_TO_FIT,
    Nightly,
    evaluate_candidates,
    evidence_from,
    fit_candidates,
    needed_sessions,
    read_log,
)
from train.replay.as_log import composed_log, log_summary
from train.run_folder import RunFolder, finite


@dataclass(frozen=True)
class Material:
    """Training and held-out episodes. `incumbent` None: the policy that serves."""

    training: Episodes
    untouched: Episodes
    read: Mapping[str, Any]
    incumbent: Policy | None = None

    @property
    def identity(self) -> str:
        """Digest of both parts."""
        return f"{self.training.digest()}-{self.untouched.digest()}"


def material(job: Nightly, config: TrainConfig, data: Path | None = None, **composing: Any) -> Material:
    """Load and split the data: the log by session, or a replay folder by prompt.

    With a replay folder the shipped network is the incumbent; `composing` goes to `composed_log`.
    """
    if data is None:
        episodes, read = read_log(job, config)
        training, untouched = split_by_tree(episodes, config.log.holdout_fraction, config.seed)
        return Material(training, untouched, finite(read))
    job.step("compose")
    training, untouched = composed_log(data, config.seed, **composing)
    return Material(training, untouched, log_summary(training, untouched), builtin_policies(GREEDY)[PRETRAINED])


def fit(job: Nightly, config: TrainConfig, folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Read, split, fit and tune into `folder`, like those steps of a nightly run."""
    return fit_on(material(job, config, data), job, config, folder)


def fit_on(found: Material, job: Nightly, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Fit and tune on prepared data."""
    if found.training.turns < MIN_TURNS_TO_FIT:
        sessions = found.training.sessions + found.untouched.sessions
        reason = f"not enough data: {sessions:,} of about {needed_sessions(config):,} sessions in the log"
        return {"outcome": "not enough data", "reasons": [reason], "log": found.read}
    run = RunFolder(folder, f"{found.identity}-{config.digest()}-{config.seed}")
    return {"log": found.read, "fit": fit_candidates(job, config, run, folder.name, found.training)}


def evaluate(job: Nightly, config: TrainConfig, folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Evaluate what `fit` left in `folder` against what serves now; nothing is published.

    The log may have grown since. The split is by session, so held-out sessions are still held out.
    """
    found = material(job, config, data)
    names = candidate_names(folder)
    run = RunFolder(folder, f"{found.identity}-{config.digest()}-{config.seed}")
    known = None if found.incumbent is None else (found.incumbent, {"policy_id": found.incumbent.policy_id})
    evaluation = evaluate_candidates(job, config, run, found.training, found.untouched, names, against=known)
    verdict = judge([evidence_from(item) for item in evaluation["evidence"]], config.gate)
    return {
        "outcome": verdict.outcome,
        "candidate": verdict.candidate,
        "reasons": list(verdict.reasons),
        "log": found.read,
        "evaluation": evaluation,
    }


def candidate_names(folder: Path) -> list[str]:
    """The policies that `fit` left. Raises InputError when there are none."""
    kept = folder / "candidates"
    names = sorted(path.name for path in kept.iterdir()) if kept.is_dir() else []
    if not names:
        raise InputError(f"--run: expected a folder that `seqroute-train fit` wrote, found no candidates in {folder}")
    return names
