"""The nightly run: read log, split, relabel and fit, evaluate off-policy, gate, publish.

Pure in (log, config, key) up to publishing. Each step's result is in runs/<run_id>/<step>.json; a run that died resumes
where it stopped if log and config are still the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sqlalchemy as sa

from gateway.config.settings import PolicySettings
from gateway.database.database import transaction
from policy.checkpoint import Loaded, load
from policy.exploration import Exploration
from policy.learned import policy_from
from policy.manifest import CheckpointError
from policy.mdp import Policy
from policy.reload import PRETRAINED, builtin_policies
from policy.text import TEXT_VERSION, space_number
from train.config import TrainConfig
from train.evaluate.evaluate import as_json, evaluate
from train.evaluate.gate import Evidence, GateVerdict, judge
from train.evaluate.ope import Interval
from train.evaluate.session_costs import forecast_coverage
from train.fit import artifacts
from train.fit.answer_lengths import fit_answer_lengths, lengths_of
from train.fit.network import Fitted, fit, grade
from train.fit.tune import grades_by_turn, propose
from train.log.episodes import Episodes, split_by_tree
from train.log.read import LogReport, read_episodes
from train.log.source import DatabaseLog, Log, ParquetLog
from train.nightly.drift import health
from train.nightly.lock import Claim, ClaimLost, Taken, claim, finish
from train.nightly.page import page
from train.nightly.prompt_caches import cache_calibration
from train.nightly.publish import (
    Publication,
    champion_since_ms,
    publish,
    reject,
    serving_champion,
    stage_of,
    waiting_policies,
    with_report,
    write_folder,
)
from train.progress import Progress
from train.run_folder import RunFolder, finite

STALE_AFTER_MS = 2 * 3_600_000
"""A run that has not ended after two hours is presumed dead: training takes minutes."""
MS_PER_DAY = 86_400_000
MIN_TURNS_TO_FIT = 40
MOST_WAITING = 2
"""Every further candidate widens the intervals of all."""


@dataclass(frozen=True)
class Nightly:
    """Environment of a run: all but its data, config and key."""

    database_url: str
    policies: PolicySettings
    runs: Path
    run_date: str
    now_ms: Callable[[], int]
    force: bool = False
    log: Path | str | None = None
    """The folder or `s3://` URL of an export to read instead of the database's own log."""
    progress: Progress | None = None
    text_version: str = TEXT_VERSION
    """The gateway's text: turns with another are read without theirs, and policies of another do not serve."""
    clock_s: Callable[[], float] = field(default=time.monotonic)

    def step(self, name: str, done: int = 0, total: int = 0) -> None:
        """Report progress of a step to `progress`, if set."""
        if self.progress is not None:
            self.progress(name, done, total)


def run(job: Nightly, config: TrainConfig) -> dict[str, Any]:
    """Run one night. Returns the report, which is also in runs/<run_id>/report.json."""
    held = _claim(job)
    if isinstance(held, Taken):
        done = held.state == "done"
        return {
            "outcome": "already " + ("ran" if done else "running"),
            "reasons": [f"run {held.run_id} {'read' if done else 'reads'} this date's log; --force reads it again"],
            "run_id": held.run_id,
            "date": job.run_date,
        }
    try:
        report = _run_claimed(job, config, held)
    except ClaimLost:
        raise
    except BaseException:
        # The run may be closed already, by this process or by one that took it over: the error is the one to show.
        with contextlib.suppress(ClaimLost), transaction(job.database_url) as connection:
            finish(connection, held, "failed", job.now_ms())
        raise
    return report


def _run_claimed(job: Nightly, config: TrainConfig, held: Claim) -> dict[str, Any]:
    began_s = job.clock_s()
    job.step("read")
    folder = RunFolder(job.runs / held.run_id, f"{held.run_id}-{config.digest()}-{config.seed}")
    # The gateway keeps logging: a resumed run reads the log up to its own start.
    begun = folder.read("begun") or {"now_ms": job.now_ms()}
    folder.write("begun", begun)
    then = replace(job, now_ms=lambda: int(begun["now_ms"]))
    episodes, log = read_log(then, config)
    training, untouched = split_by_tree(episodes, config.log.holdout_fraction, config.seed)
    del episodes
    sizes = {"training_sessions": training.sessions, "untouched_sessions": untouched.sessions}
    folder.write("log", finite(log) | sizes)
    if training.turns < MIN_TURNS_TO_FIT or not untouched.turns:
        verdict, evaluation, fitting = too_little(log.sessions, config), {}, {}
    else:
        fitting = folder.read("fit") or fit_candidates(job, config, folder, held.run_id, training)
        evaluation = folder.read("evaluation") or evaluate_candidates(
            job, config, folder, training, untouched, fitting["candidates"], waiting_candidates(job)
        )
        evidence = [evidence_from(item) for item in evaluation["evidence"]]
        verdict = with_advice(judge(evidence, config.gate), evidence, champion_days(then), config)
    folder.write("gate", finite(verdict))
    report: dict[str, Any] = finite(
        {
            "run_id": held.run_id,
            "date": job.run_date,
            "outcome": verdict.outcome,
            "candidate": verdict.candidate,
            "reasons": list(verdict.reasons),
            "log": finite(log),
            "health": read_health(then),
            "session_costs": forecast_coverage(training, untouched),
            "prompt_caches": cache_calibration(untouched),
            **sizes,
            "fit": fitting,
            "evaluation": evaluation,
            "config": asdict(config),
            "seconds": round(job.clock_s() - began_s, 1),
        }
    )
    published = close(job, folder, held, verdict, report, fitting)
    if published is not None:
        report["published"] = finite(asdict(published))
    folder.write("report", report)
    folder.write_text("report.html", page(report))
    return report


def read_log(job: Nightly, config: TrainConfig) -> tuple[Episodes, LogReport]:
    """Read the run's log into episodes."""
    with opened_log(job) as log:
        return read_episodes(log, config, now_ms=job.now_ms(), text_space=space_number(job.text_version))


def read_health(job: Nightly) -> dict[str, Any]:
    """Findings of the drift monitor for the report."""
    with opened_log(job) as log:
        return health(log, job.now_ms())


@contextlib.contextmanager
def opened_log(job: Nightly) -> Iterator[Log]:
    """Open the log of this run: an export's, or the database's in one snapshot."""
    if job.log is not None:
        yield ParquetLog(job.log)
        return
    with transaction(job.database_url, read_only=True) as connection:
        yield DatabaseLog(connection)


def fit_candidates(
    job: Nightly, config: TrainConfig, folder: RunFolder, run_id: str, training: Episodes
) -> dict[str, Any]:
    """Fit the network on the training part, tune the rules, keep the candidates in the folder."""
    job.step("grade")
    fitted: Fitted = fit(
        training, config, jax.random.key(config.seed), lambda done, total: job.step("fit", done, total)
    )
    job.step("tune")
    tuned, tried = propose(fitted, training, grades_by_turn(training, fitted.grades), config, run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    job.step("lengths")
    lengths, of_lengths = fit_answer_lengths(lengths_of(training), training.models, config.seed)
    shared: dict[str, Mapping[str, Any]] = {} if lengths is None else {"lengths": lengths.arrays()}
    kept = [
        (
            replace(with_report(item.recipe, {"tuned_score": item.score}), text_version=job.text_version),
            {**item.params, **(shared if item.recipe.models else {})},
        )
        for item in tuned
    ]
    artifacts.keep(folder.path, kept, fitted.quality, training.models)
    result = {
        "candidates": [item.recipe.policy_id for item in tuned],
        "tuning": tried,
        "lambda_presets": dict(tuned[0].recipe.lambda_presets),
        "hazard": list(tuned[0].recipe.horizon.hazard),
        "quality_model": {
            "out_of_fold_error": fitted.quality.out_of_fold_error,
            "slope": dict(zip(training.models, fitted.quality.slope[:, 1].tolist(), strict=True)),
            "mean_quality": dict(zip(training.models, fitted.quality.means.tolist(), strict=True)),
            "graded_turns": dict(zip(training.models, fitted.quality.rows.tolist(), strict=True)),
        },
        "curve": list(fitted.curve),
        "residual": fitted.residual,
        "answer_lengths": of_lengths,
    }
    folder.write("fit", result)
    return result


def evaluate_candidates(
    job: Nightly,
    config: TrainConfig,
    folder: RunFolder,
    training: Episodes,
    untouched: Episodes,
    names: list[str],
    waiting: Sequence[Loaded] = (),
    against: tuple[Policy, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate the candidates off-policy against the serving policy on held-out sessions.

    `waiting` are policies of earlier nights, or of operators, that are waiting to serve; they may have been fitted on
    sessions held out here, so one of them is chosen only where no new candidate passes. `against` replaces the serving
    policy, with a note on it.
    """
    job.step("evaluate")
    exploration = Exploration(floor=job.policies.exploration_floor)
    kept = [*artifacts.candidates(folder.path, names), *waiting]
    candidates = {loaded.recipe.policy_id: policy_from(loaded, exploration) for loaded in kept}
    tuned_scores = {item.recipe.policy_id: float(item.recipe.report.get("tuned_score", 0.0)) for item in kept}
    incumbent, note = against or serving_policy(job, exploration)
    quality = artifacts.quality_model(folder.path, training.models, training.state.shape[-1])
    played = untouched.take(np.arange(min(untouched.sessions, config.ope.max_sessions)))
    index = np.maximum(played.model[played.valid], 0)
    predicted = quality.predict(played.state[played.valid].astype(np.float64), played.route[played.valid])
    grades = grades_by_turn(played, np.take_along_axis(predicted, index, axis=1))
    fitted_on = training.take(np.arange(min(training.sessions, config.ope.fqe_sessions)))
    found = evaluate(
        candidates,
        incumbent,
        played,
        grades,
        fitted_on,
        grades_by_turn(fitted_on, grade(fitted_on, config)[1]),
        tuned_scores,
        config,
        lambda done, total: job.step("evaluate", done, total),
    )
    result = as_json(found) | {
        "incumbent": note,
        "evidence": finite(found.evidence),
        "waiting": [item.recipe.policy_id for item in waiting],
    }
    folder.write("evaluation", result)
    return result


def with_advice(
    verdict: GateVerdict, evidence: Sequence[Evidence], served_days: float | None, config: TrainConfig
) -> GateVerdict:
    """The verdict, with advice where the log says little about the champion.

    The champion has served for `served_days`. A log with only its own turns covers it; the gate's other conditions
    stay.
    """
    least, days = config.gate.min_overlap, config.log.since_days
    if verdict.outcome == "promote" or served_days is None or served_days >= days:
        return verdict
    if all(item.incumbent_overlap >= least for item in evidence):
        return verdict
    needed = needed_sessions(config)
    advice = (
        f"most of the log is older than the policy that serves: it has served for {served_days:.1f} of {days:g} days; "
        f"once it has answered about {needed:,} sessions, set log.since_days: {max(served_days, 0.1):.1f} to judge it "
        "by its own turns (a day more with each day), or wait until most of the log is its own"
    )
    return replace(verdict, reasons=(advice, *verdict.reasons))


def champion_days(job: Nightly) -> float | None:
    """Days since the champion was put in service; None without a champion."""
    with transaction(job.database_url, read_only=True) as connection:
        since_ms = champion_since_ms(connection)
    return None if since_ms is None else max(0.0, (job.now_ms() - since_ms) / MS_PER_DAY)


def waiting_candidates(job: Nightly) -> list[Loaded]:
    """The newest policies on the stage `candidate` whose checkpoints verify."""
    with transaction(job.database_url, read_only=True) as connection:
        found = waiting_policies(connection, MOST_WAITING)
    kept = []
    for policy_id, sha256 in found:
        with contextlib.suppress(CheckpointError):
            kept.append(load(job.policies.directory / policy_id, sha256=sha256, text_version=job.text_version))
    return kept


def serving_policy(job: Nightly, exploration: Exploration) -> tuple[Policy, dict[str, Any]]:
    """The incumbent: the champion, or the shipped network if none is set or it fails to load."""
    builtin = builtin_policies(exploration)
    with transaction(job.database_url, read_only=True) as connection:
        champion = serving_champion(connection)
    if champion is None:
        return builtin[PRETRAINED], {"policy_id": PRETRAINED}
    policy_id, sha256 = champion
    if policy_id in builtin:
        return builtin[policy_id], {"policy_id": policy_id}
    try:
        loaded = load(job.policies.directory / policy_id, sha256=sha256, text_version=job.text_version)
        return policy_from(loaded, exploration), {"policy_id": policy_id}
    except CheckpointError as error:
        note = {"champion": policy_id, "note": f"{policy_id} does not serve: {error}"}
        return builtin[PRETRAINED], {"policy_id": PRETRAINED} | note


def close(
    job: Nightly,
    folder: RunFolder,
    held: Claim,
    verdict: GateVerdict,
    report: Mapping[str, Any],
    fitting: Mapping[str, Any],
) -> Publication | None:
    """Close the run and, by the verdict, publish a policy in the same transaction.

    A waiting policy that was staged or rejected during the run keeps its stage. Where another champion serves than the
    candidates were compared with, the one that passed waits for the next night.
    """
    job.step("publish")
    short = {key: report[key] for key in ("outcome", "reasons", "run_id", "date")} | {
        "gain": report["evaluation"].get("gain", {})
    }
    loaded = artifacts.candidates(folder.path, fitting.get("candidates", []))
    waiting = report["evaluation"].get("waiting", [])
    loaded += [load(job.policies.directory / name) for name in waiting]
    chosen = next((item for item in loaded if item.recipe.policy_id == verdict.candidate), None)
    sha256 = ""
    if chosen is not None:
        sha256 = write_folder(job.policies.directory, with_report(chosen.recipe, short), chosen.params)
    published = None
    with transaction(job.database_url) as connection:
        finish(connection, held, "done", job.now_ms())
        hindrance = other_champion(connection, report["evaluation"].get("incumbent", {}))
        for item in loaded:
            policy_id = item.recipe.policy_id
            standing = stage_of(connection, policy_id) if policy_id in waiting else "candidate"
            if standing != "candidate":
                if item is chosen:
                    published = Publication(standing or "removed", "its stage was changed during the run")
            elif item is chosen:
                published = publish(
                    connection, item.recipe, job.policies.directory / policy_id, sha256, short,
                    stage=job.policies.publish, now_ms=job.now_ms(), hindrance=hindrance,
                )  # fmt: skip
            else:
                reject(connection, item.recipe, short, now_ms=job.now_ms())
    return published


def other_champion(connection: sa.Connection, incumbent: Mapping[str, Any]) -> str:
    """Reason not to publish where another champion serves than the night's incumbent; "" if not."""
    compared = incumbent.get("champion", incumbent.get("policy_id", PRETRAINED))
    serving = (serving_champion(connection) or (PRETRAINED, None))[0]
    return "" if serving == compared else f"it was compared with {compared}, and {serving} serves now"


def too_little(sessions: int, config: TrainConfig) -> GateVerdict:
    """The verdict for a log with too few sessions."""
    reason = f"not enough data: {sessions:,} of about {needed_sessions(config):,} sessions in the log"
    return GateVerdict("not enough data", None, (reason,))


def needed_sessions(config: TrainConfig) -> int:
    """Sessions in the log for the held-out part to reach the gate's minimum."""
    return int(np.ceil(config.gate.min_sessions / config.log.holdout_fraction))


def evidence_from(item: Mapping[str, Any]) -> Evidence:
    """Evidence read back from evaluation.json."""
    values = dict(item)
    for name in ("gain", "second_opinion"):
        values[name] = Interval(**values[name])
    return Evidence(**values)


def _claim(job: Nightly) -> Claim | Taken:
    run_id = f"{job.run_date}-{job.now_ms() % 10**8:08d}"
    with transaction(job.database_url) as connection:
        return claim(
            connection, job.run_date, run_id, now_ms=job.now_ms(), stale_after_ms=STALE_AFTER_MS, force=job.force
        )
