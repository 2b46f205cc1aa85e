"""Evaluation of policies on held-out sessions: estimates and evidence for the gate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from policy.arrays import F64, I64
from policy.mdp import Policy
from policy.network_policy import NetworkPolicy
from train.config import TrainConfig
from train.evaluate import ope
from train.evaluate.fqe import fitted_q_evaluation, values
from train.evaluate.gate import Evidence, tails
from train.evaluate.ope import Interval, Logged
from train.evaluate.simulate import PlayedLog, play, probabilities_as_logged
from train.fit.network import tenant_weights
from train.log.episodes import Episodes

ESTIMATORS = {
    "per_decision_is": ope.per_decision_is,
    "per_decision_weighted_is": ope.per_decision_weighted_is,
    "doubly_robust": ope.doubly_robust,
}


@dataclass(frozen=True)
class Judged:
    """Estimates for one policy on the held-out sessions, per turn.

    `score` is the doubly robust estimate with the budget recomputed; `sequential` are the estimators that reweigh whole
    sessions as logged.
    """

    score: Interval
    cost_usd: Interval
    starved_rate: float
    effective_turns: float
    overlap: float
    largest_ratio: float
    sequential: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of all policies, with the evidence for the gate."""

    sessions: int
    turns: int
    behaviour: Interval
    """Mean score per turn of the log itself."""
    policies: Mapping[str, Judged]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class HeldOut:
    """The held-out sessions, and how estimates on them are bounded."""

    episodes: Episodes
    grades: F64
    """Predictions (S, T, K) of a reward model that never saw these sessions."""
    below: float
    """Probability outside an interval, on each side."""
    config: TrainConfig

    @cached_property
    def turns(self) -> F64:
        """Turns of each session, (S,)."""
        return self.episodes.lengths.astype(np.float64)

    @cached_property
    def shares(self) -> F64:
        """Weight of each session under the tenants' caps, (S,)."""
        return tenant_weights(self.episodes, self.config.log.tenant_weight_cap)

    @cached_property
    def trees(self) -> I64:
        """Number of each session's tree, (S,)."""
        return self.episodes.trees

    def by_tree(self, per_session: F64) -> F64:
        """Sums over the sessions of each tree: these are independent, sessions of one tree are not."""
        return np.asarray(np.bincount(self.trees, weights=per_session), np.float64)

    def interval(self, per_session: F64) -> Interval:
        """Mean per turn of a value known for each session, with its interval."""
        return self._interval(per_session, self.turns)

    def weighted_interval(self, per_session: F64) -> Interval:
        """The same under the tenants' caps; `per_session` is weighted by its shares already."""
        return self._interval(per_session, self.turns * self.shares)

    def _interval(self, per_session: F64, turns: F64) -> Interval:
        resamples, seed = self.config.ope.bootstrap, self.config.seed
        return ope.bootstrap(self.by_tree(per_session), resamples, self.below, seed, self.by_tree(turns))


@dataclass(frozen=True)
class Tried:
    """One policy on the held-out sessions: played, reweighed as logged, and summarized."""

    played: PlayedLog
    sequential: Mapping[str, F64]
    judged: Judged


def evaluate(
    candidates: Mapping[str, Policy],
    incumbent: Policy,
    untouched: Episodes,
    grades: F64,
    training: Episodes,
    training_grades: F64,
    tuned_scores: Mapping[str, float],
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate every candidate and the incumbent.

    The first candidate has half of the gate's error probability. `grades` (S, T, K) are predictions for the held-out
    part by a reward model that never saw it. FQE is fitted on the
    training part. `progress` is called after every pass over the sessions.
    """
    below = dict(zip(candidates, tails(config.gate, len(candidates)), strict=True))
    held_out = HeldOut(untouched, grades, min(below.values(), default=0.05), config)
    known = {"incumbent": incumbent, **candidates}
    report = progress or (lambda done, total: None)
    fitted_on = probabilities_as_logged(known, training)
    report(1, len(known) + 2)
    as_logged = probabilities_as_logged(known, untouched)
    report(2, len(known) + 2)
    tried = {}
    for done, (name, policy) in enumerate(known.items(), start=3):
        played = play(policy, untouched, grades, seed=config.seed, weight_cap=config.ope.weight_cap)
        sequential = sequential_estimates(
            as_logged[name], untouched, grades, fitted_on[name], training, training_grades, config
        )
        tried[name] = Tried(played, sequential, describe(played, sequential, held_out))
        report(done, len(known) + 2)
    networks = {name for name, policy in known.items() if isinstance(policy, NetworkPolicy)}
    evidence = tuple(
        replace(
            _evidence(name, tried, networks, replace(held_out, below=share)),
            tuned_score=tuned_scores.get(name, 0.0),
        )
        for name, share in below.items()
    )
    return Evaluation(
        sessions=untouched.sessions,
        turns=untouched.turns,
        behaviour=replace(held_out, below=0.025).interval(
            tried["incumbent"].played.logged.reward.sum(axis=1, where=untouched.valid)
        ),
        policies={name: one.judged for name, one in tried.items()},
        evidence=evidence,
    )


def _evidence(name: str, tried: Mapping[str, Tried], networks: Collection[str], held_out: HeldOut) -> Evidence:
    """Evidence against the incumbent; for a candidate that is no network also against networks."""
    others = [] if name in networks else [other for other in tried if other in networks and other != "incumbent"]
    return replace(
        compare(name, tried[name], tried["incumbent"], held_out),
        network=name in networks,
        incumbent_network="incumbent" in networks,
        over_networks={
            other: paired_gain(tried[name].played, tried[other].played, held_out)[0].low for other in others
        },
    )


def sequential_estimates(
    target: F64,
    untouched: Episodes,
    grades: F64,
    training_target: F64,
    training: Episodes,
    training_grades: F64,
    config: TrainConfig,
) -> dict[str, F64]:
    """All sequential estimates of one policy, (S,) each, without assumptions about users.

    `target` and `training_target` (S, T, K) are its probabilities at the logged states of both parts.
    """
    found = fitted_q_evaluation(training, training_grades, rewards_of(training, training_grades), training_target)
    q, v = values(found, untouched, grades, target)
    ratio = np.take_along_axis(target, untouched.action[..., None], axis=-1)[..., 0] / untouched.propensity
    ratio = np.minimum(ratio, config.ope.weight_cap)
    logged = Logged(untouched.valid, ratio, rewards_of(untouched, grades), q, v)
    estimates = {name: estimator(logged) for name, estimator in ESTIMATORS.items()}
    return estimates | {"fitted_q_evaluation": np.where(untouched.lengths > 0, v[:, 0], 0.0)}


def rewards_of(episodes: Episodes, grades: F64) -> F64:
    """Scores, (S, T), with missing ones filled by the reward model.

    Its bias is corrected by the graded turns that are like those without a grade: the ones without an implicit signal.
    """
    q = np.take_along_axis(grades, episodes.action[..., None], axis=-1)[..., 0]
    like = episodes.graded & ~episodes.implied
    error = float((episodes.reward - q)[like].mean()) if like.any() else 0.0
    return np.asarray(
        np.where(episodes.graded, episodes.reward, np.clip(q + error, 0.0, 1.0)) * episodes.valid, np.float64
    )


def describe(played: PlayedLog, sequential: Mapping[str, F64], held_out: HeldOut) -> Judged:
    """Summarize one policy with intervals."""
    episodes, weight_cap = held_out.episodes, held_out.config.ope.weight_cap
    ratio = played.logged.ratio[episodes.valid]
    return Judged(
        score=held_out.interval(played.score.sum(axis=1)),
        cost_usd=held_out.interval(played.spent_usd),
        starved_rate=float(played.starved.mean()) if len(played.starved) else 0.0,
        effective_turns=ope.effective_sample_size(ratio),
        overlap=ope.overlap(
            played.probabilities, episodes.probabilities.astype(np.float64), episodes.valid, 1.0 / weight_cap
        ),
        largest_ratio=float(ratio.max(initial=0.0)),
        sequential={name: held_out.interval(per_session) for name, per_session in sequential.items()},
    )


def compare(name: str, candidate: Tried, incumbent: Tried, held_out: HeldOut) -> Evidence:
    """Evidence for a candidate from paired sessions, weighted by tenant caps.

    Both policies saw the same users and the same random draws.
    """
    weighted_is = "per_decision_weighted_is"
    second = candidate.sequential[weighted_is] - incumbent.sequential[weighted_is]
    gain, sd = paired_gain(candidate.played, incumbent.played, held_out)
    return Evidence(
        name=name,
        sessions=held_out.episodes.sessions,
        trees=len(np.unique(held_out.trees)),
        turns=held_out.episodes.turns,
        gain=gain,
        gain_sd=sd,
        second_opinion=held_out.weighted_interval(second * held_out.shares),
        effective_turns=candidate.judged.effective_turns,
        overlap=candidate.judged.overlap,
        starved_rate=candidate.judged.starved_rate,
        incumbent_starved_rate=incumbent.judged.starved_rate,
        below=held_out.below,
        incumbent_overlap=incumbent.judged.overlap,
        graded_share=held_out.episodes.graded_share,
    )


def paired_gain(candidate: PlayedLog, incumbent: PlayedLog, held_out: HeldOut) -> tuple[Interval, float]:
    """Gain per turn, its interval and its standard deviation over trees of sessions."""
    turns = held_out.by_tree(held_out.turns * held_out.shares)
    difference = (candidate.score.sum(axis=1) - incumbent.score.sum(axis=1)) * held_out.shares
    mean_turns = max(float(turns.mean()) if len(turns) else 1.0, 1e-9)
    sd = gain_sd(candidate, incumbent, held_out) / mean_turns
    gain = held_out.weighted_interval(difference)
    return ope.widen(gain, sd, len(turns), NormalDist().inv_cdf(1.0 - held_out.below)), sd


def gain_sd(candidate: PlayedLog, incumbent: PlayedLog, held_out: HeldOut) -> float:
    """Standard deviation of the difference of a tree of sessions about the mean gain.

    The larger of the observed one and the least that the propensities imply.
    """
    untouched, shares = held_out.episodes, held_out.shares
    turns = held_out.by_tree(held_out.turns * shares)
    if not untouched.sessions:
        return float("nan")
    seen = (candidate.score.sum(axis=1) - incumbent.score.sum(axis=1)) * shares
    modelled = np.where(untouched.valid, candidate.logged.v - incumbent.logged.v, 0.0).sum(axis=1) * shares
    noise = ope.known_noise(
        candidate.probabilities,
        incumbent.probabilities,
        untouched.probabilities.astype(np.float64),
        held_out.grades,
        untouched.valid,
        held_out.config.ope.weight_cap,
    )
    noise = noise * shares**2 / max(untouched.graded_share, 1e-9)

    def variance(per_session: F64) -> float:
        values = held_out.by_tree(per_session)
        return float(np.var(values - values.sum() / max(float(turns.sum()), 1e-9) * turns))

    return float(np.sqrt(max(variance(seen), variance(modelled) + float(held_out.by_tree(noise).mean()))))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation in the form of the report."""
    return {
        "sessions": evaluation.sessions,
        "turns": evaluation.turns,
        "behaviour": ope.summary(evaluation.behaviour),
        "policies": {
            name: {
                "score": ope.summary(judged.score),
                "cost_usd_per_turn": ope.summary(judged.cost_usd),
                "starved_rate": judged.starved_rate,
                "effective_turns": judged.effective_turns,
                "overlap": judged.overlap,
                "largest_ratio": judged.largest_ratio,
                "sequential": {key: ope.summary(value) for key, value in judged.sequential.items()},
            }
            for name, judged in evaluation.policies.items()
        },
        "gain": {
            item.name: {
                **ope.summary(item.gain),
                "sd_per_session": item.gain_sd,
                "second_opinion": ope.summary(item.second_opinion),
            }
            for item in evaluation.evidence
        },
    }
