"""`seqroute-train frontier`: choice of policies and sessions, report and files.

The arithmetic is in train/evaluate/frontier.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway import document
from gateway.wording import counted
from policy.checkpoint import load
from policy.exploration import GREEDY
from policy.learned import policy_from
from policy.mdp import Policy
from policy.reload import PRETRAINED, builtin_policies
from policy.rules import LAMBDA_PRESETS
from train.config import TrainConfig
from train.errors import InputError
from train.evaluate import frontier
from train.evaluate.frontier import Outcome, Sample, SessionResamples, SweepSetting
from train.evaluate.frontier_plot import draw
from train.fit import artifacts
from train.fit.network import grade
from train.fit.presets import PRESET_SHARES
from train.fit.tune import grades_by_turn
from train.log.episodes import Episodes
from train.nightly import steps
from train.nightly.nightly import Nightly, serving_policy
from train.nightly.steps import candidate_names, material
from train.replay.as_log import LOOSE_PHI

LEAST_SESSIONS = 20
LOG_SESSIONS, FOLDER_SESSIONS = 400, 60
"""Default limits of sessions to play: every policy decides one turn at a time, as it serves."""


@dataclass(frozen=True)
class Contender:
    """A policy to draw, with the presets that a gateway serving it offers."""

    policy: Policy
    presets: Mapping[str, float]


@dataclass(frozen=True)
class Wanted:
    """Options of the command.

    `tenant_id` None: all tenants. `run`: a folder of `seqroute-train fit`, whose candidates are drawn too. `data`: a
    replay folder instead of the log.
    """

    tenant_id: str | None
    run: Path | None
    sessions: int | None
    quality: float | None
    data: Path | None = None


def frontier_of(job: Nightly, config: TrainConfig, wanted: Wanted) -> dict[str, Any]:
    """Frontier of a log or a replay folder. Raises InputError when there is too little data."""
    if wanted.data is not None:
        return _of_folder(job, config, wanted, wanted.data)
    job.step("read")
    found = material(job, config)
    untouched = found.untouched
    if wanted.tenant_id is not None:
        untouched = untouched.take(np.array([t == wanted.tenant_id for t in untouched.tenant_ids], np.bool_))
    if untouched.sessions < LEAST_SESSIONS:
        raise InputError(
            f"the log: expected at least {LEAST_SESSIONS} sessions held out for evaluation, found {untouched.sessions}"
        )
    job.step("grade")
    sample = draw_sample(
        found.training, untouched, config, LOG_SESSIONS if wanted.sessions is None else wanted.sessions
    )
    policies = [_serving(job), *_candidates(wanted.run)]
    return draw_report(job, policies, sample, wanted.quality, {"tenant": wanted.tenant_id})


def _of_folder(job: Nightly, config: TrainConfig, wanted: Wanted, data: Path) -> dict[str, Any]:
    """Frontier of the shipped network and of a fit on the folder, on held-out prompts."""
    sessions = FOLDER_SESSIONS if wanted.sessions is None else wanted.sessions
    found = steps.material(job, config, data, phis=(LOOSE_PHI,), untouched_sessions=sessions)
    run = wanted.run or job.runs / "fit"
    if wanted.run is None:
        fitted = steps.fit_on(found, job, config, run)
        if "reasons" in fitted:
            raise InputError(f"{data}: {fitted['reasons'][0]}")
    first = Contender(builtin_policies(GREEDY)[PRETRAINED], LAMBDA_PRESETS)
    sample = draw_sample(found.training, found.untouched, config, sessions)
    return draw_report(job, [first, *_candidates(run)], sample, wanted.quality, {"folder": data.name})


def draw_sample(training: Episodes, untouched: Episodes, config: TrainConfig, sessions: int) -> Sample:
    """At most `sessions` held-out sessions, with grades of an independent reward model.

    Known grades stay.
    """
    played = untouched.take(np.arange(min(untouched.sessions, sessions)))
    known = played.scores.astype(np.float64)
    if np.isfinite(known[played.valid]).all():
        return Sample(played, np.nan_to_num(known), config.seed, config.ope.weight_cap)
    quality, _ = grade(training, config)
    index = np.maximum(played.model[played.valid], 0)
    predicted = quality.predict(played.state[played.valid].astype(np.float64), played.route[played.valid])
    grades = grades_by_turn(played, np.take_along_axis(predicted, index, axis=1))
    return Sample(played, grades, config.seed, config.ope.weight_cap)


def _serving(job: Nightly) -> Contender:
    """The policy that serves now, without exploration."""
    policy, note = serving_policy(job, GREEDY)
    checkpoint = job.policies.directory / str(note["policy_id"])
    named = {**LAMBDA_PRESETS, **job.policies.lambda_presets}
    return Contender(policy, load(checkpoint).recipe.lambda_presets if checkpoint.is_dir() else named)


def _candidates(run: Path | None) -> list[Contender]:
    if run is None:
        return []
    kept = artifacts.candidates(run, candidate_names(run))
    return [Contender(policy_from(loaded, GREEDY), loaded.recipe.lambda_presets) for loaded in kept]


def draw_report(
    job: Nightly, policies: list[Contender], sample: Sample, quality: float | None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Play every sweep and build the report."""
    lambdas, budgets = frontier.lambda_settings(sample.episodes), frontier.budget_settings(sample.episodes)
    total = len(sample.episodes.models) + len(policies) * (len(lambdas) + len(budgets))
    done = iter(range(1, total + 1))
    job.step("play", 0, total)

    def step() -> None:
        job.step("play", next(done), total)

    played = sample.episodes
    resampled = SessionResamples(played.lengths.astype(np.float64), played.trees, sample.seed)
    single = frontier.single_models(sample, step)
    found = []
    for contender in policies:
        over_lambda = frontier.sweep(contender.policy, lambdas, sample, step)
        over_budget = frontier.sweep(contender.policy, budgets, sample, step)
        presets = {
            name: over_lambda[0] if price == 0 else frontier.outcome(contender.policy, SweepSetting(price), sample)
            for name, price in contender.presets.items()
        }
        found.append(_policy(contender, over_lambda, over_budget, presets, quality, resampled))
    return {
        "meta": {
            **about,
            "sessions": sample.episodes.sessions,
            "turns": sample.episodes.turns,
            "seed": sample.seed,
            "resamples": frontier.RESAMPLES,
            "data": sample.episodes.digest(),
        },
        "models": [frontier.as_point(outcome, resampled) for outcome in single],
        "policies": found,
    }


def _policy(
    contender: Contender,
    over_lambda: list[Outcome],
    over_budget: list[Outcome],
    presets: Mapping[str, Outcome],
    quality: float | None,
    resampled: SessionResamples,
) -> dict[str, Any]:
    return {
        "policy": contender.policy.policy_id,
        "lambda_sweep": [frontier.as_point(outcome, resampled) for outcome in over_lambda],
        "budget_sweep": [frontier.as_point(outcome, resampled) for outcome in over_budget],
        "presets": {name: frontier.as_point(outcome, resampled) for name, outcome in presets.items()},
        "presets_by_this_sweep": frontier.presets_of(over_lambda, PRESET_SHARES) | {"best": 0.0},
        "answer": None if quality is None else frontier.budget_for(over_budget, quality, resampled),
    }


def write(report: Mapping[str, Any], folder: Path, json_file: Path | None) -> list[Path]:
    """Write the report and its plots; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    target = json_file or folder / "frontier.json"
    target.write_text(json.dumps(report, indent=1), encoding="utf-8")
    plots = draw(report, folder)
    page = folder / "frontier.html"
    page.write_text(frontier_page(report, plots), encoding="utf-8")
    return [target, *plots, page]


def frontier_page(report: Mapping[str, Any], plots: Sequence[Path]) -> str:
    """The report as one self-contained page with its plots."""
    meta = report["meta"]
    parts = [
        document.paragraph(
            f"{counted(meta['sessions'], 'session')}, {counted(meta['turns'], 'turn')}, held out; 95 % intervals."
        )
    ]
    parts += [document.paragraph(_answer(p["policy"], p["answer"])) for p in report["policies"] if p["answer"]]
    parts.append(document.drawings(plots))
    head = ("", "lambda, quality per USD", "budget, USD", "USD per session", "quality per turn", "starved")
    for title, points in _tables(report):
        parts += [document.heading(title), document.table(head, [(name, *_cells(point)) for name, point in points])]
    return document.page("seqroute frontier", "\n".join(parts))


def _cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    cost, quality = point["cost_usd"], point["quality"]
    return (
        f"{point['lambda_per_usd']:.5g}",
        "as logged" if point["budget_usd"] is None else f"{point['budget_usd']:.6g}",
        f"{cost['mean']:.6f} [{cost['low']:.6f}, {cost['high']:.6f}]",
        f"{quality['mean']:.3f} [{quality['low']:.3f}, {quality['high']:.3f}]",
        f"{point['starved_rate']['mean']:.1%}",
    )


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report as a table for a terminal, and the answer."""
    meta = report["meta"]
    lines = [f"{counted(meta['sessions'], 'session')}, {counted(meta['turns'], 'turn')}, held out; 95 % intervals"]
    head = f"{'lambda':>12}{'budget USD':>13}{'USD per session':>34}{'quality per turn':>26}{'starved':>9}"
    for title, points in _tables(report):
        width = max(len(name) for name, _ in points)
        lines += ["", title, " " * width + head, *(f"{name:<{width}}{_line(point)}" for name, point in points)]
    for policy in report["policies"]:
        if policy["answer"] is not None:
            lines += ["", _answer(policy["policy"], policy["answer"])]
    ruling = [policy for policy in report["policies"] if policy["policy"].startswith("rule:")]
    return [*lines, *(line for policy in ruling for line in ("", *_for_gateway(policy)))]


def _for_gateway(policy: Mapping[str, Any]) -> list[str]:
    """Lines for gateway.yaml with presets of this sweep, needed while a rule serves."""
    presets = ", ".join(f"{name}: {price:.3f}" for name, price in policy["presets_by_this_sweep"].items())
    return [
        f"while {policy['policy']} serves, in gateway.yaml:",
        f"policy_settings: {{lambda_presets: {{{presets}}}}}",
    ]


def _tables(report: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, Any]]]]]:
    """Tables as (title, rows with their names)."""
    found = [("budgets of the log", [(model["policy"], model) for model in report["models"]])]
    for policy in report["policies"]:
        name = policy["policy"]
        found.append((f"{name}, over lambda, budgets of the log", [("", point) for point in policy["lambda_sweep"]]))
        found.append((f"{name}, over budgets, lambda 0", [("", point) for point in policy["budget_sweep"]]))
        presets = sorted(policy["presets"].items(), key=lambda item: item[1]["cost_usd"]["mean"])
        found.append((f"{name}, its presets", [(f"auto@{preset}", point) for preset, point in presets]))
    return found


def _line(point: Mapping[str, Any]) -> str:
    cost, quality = point["cost_usd"], point["quality"]
    budget = "as logged" if point["budget_usd"] is None else f"{point['budget_usd']:.6g}"
    return (
        f"{point['lambda_per_usd']:>12.5g}{budget:>13}"
        f"{cost['mean']:>13.6f} [{cost['low']:.6f}, {cost['high']:.6f}]"
        f"{quality['mean']:>9.3f} [{quality['low']:.3f}, {quality['high']:.3f}]{point['starved_rate']['mean']:>9.1%}"
    )


def _answer(name: str, answer: Mapping[str, Any]) -> str:
    if answer["budget_usd"] is None:
        return f"{name}: quality {answer['quality']:g} is not reached with any budget of the sweep"
    high = "out of reach" if answer["high"] is None else f"{answer['high']:.6f}"
    low = "out of reach" if answer["low"] is None else f"{answer['low']:.6f}"
    return (
        f"{name}: quality {answer['quality']:g} needs {answer['budget_usd']:.6f} USD per session "
        f"(95 % {low} to {high}; reached in {answer['reached_in']:.0%} of the resamples)"
    )
