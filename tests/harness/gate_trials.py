"""Simulated nights of the gate: how often would a policy that is no better, or worse, have been promoted?

Two actions, 5 to 7 turns a session; the candidate takes the other action than the incumbent on three turns of ten. The
reward model is off by .1 a turn. The evidence is made by the code that makes it at night.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig, OpeConfig, TrainConfig
from train.evaluate.evaluate import HeldOut, Tried, compare, describe
from train.evaluate.gate import Evidence, judge, tails
from train.evaluate.simulate import PlayedLog, turnwise
from train.log.episodes import Episodes, blank_episodes

F64 = NDArray[np.float64]
CONFIG = TrainConfig(ope=OpeConfig(bootstrap=200), gate=GateConfig())


HALF = tails(GateConfig(), 2)[0]
SECOND = 0.05


@dataclass(frozen=True)
class Half:
    """Half of the turns: the second action's probability, the judge's sample, and whether its answers can be graded."""

    floor: float
    sample: float
    gradable: bool = True


def promoted_of(
    nights: int, *, sessions: int, floor: float, gain: float, below: float = HALF, graded: float = 1.0
) -> int:
    """How many of so many nights end with a promotion."""
    verdicts = [
        a_night(seed, sessions=sessions, floor=floor, gain=gain, below=below, graded=graded) for seed in range(nights)
    ]
    return verdicts.count("promote")


def a_night(
    seed: int,
    *,
    sessions: int,
    floor: float,
    gain: float,
    below: float = HALF,
    quality: float = 0.8,
    graded: float = 1.0,
) -> str:
    """The gate's verdict on a candidate that is better by `gain` per turn than the incumbent, which was logged.

    `below` is the error probability that the candidate has of the gate's, `graded` the share of graded turns.
    """
    generator = np.random.default_rng(seed)
    episodes = a_log(generator, sessions, floor)
    shape = episodes.valid.shape
    apart = generator.random(shape) < 0.3
    truth = np.stack([np.full(shape, quality), np.where(apart, quality + gain / 0.3, quality)], axis=-1)
    action = (generator.random(shape) < floor).astype(np.int32)
    chance = np.take_along_axis(truth, action[..., None], axis=-1)[..., 0]
    episodes.action[:] = action
    episodes.propensity[:] = np.where(action == 1, floor, 1.0 - floor)
    episodes.reward[:] = np.where(episodes.valid, generator.random(shape) < chance, np.nan)
    if graded < 1.0:
        episodes.reward[generator.random(shape) >= graded] = np.nan
    grades = np.clip(truth + 0.1 * generator.standard_normal(truth.shape), 0.0, 1.0)
    evidence = evidence_of(episodes, apart.astype(np.int64), grades, below)
    return judge([evidence, evidence], CONFIG.gate).outcome


def an_uneven_night(
    seed: int, halves: tuple[Half, Half], *, sessions: int, over_time: bool, predicted: float
) -> Evidence:
    """The gate's evidence for "always b" against "always a", of which neither is better, from an uneven log.

    Exploration and the share of graded answers differ between two halves: of the sessions (`over_time`), else of the
    turns. Of the turns that can be graded a share SECOND has a second answer, and then both are graded. The reward
    model predicts the same of both actions everywhere.
    """
    generator = np.random.default_rng(seed)
    episodes = a_log(generator, sessions, 0.0)
    shape = episodes.valid.shape
    late = np.broadcast_to(np.arange(sessions)[:, None] % 2 == 1, shape) if over_time else generator.random(shape) < 0.5
    floor, sample, gradable = (
        np.where(late, getattr(halves[1], name), getattr(halves[0], name)) for name in ("floor", "sample", "gradable")
    )
    action = (generator.random(shape) < floor).astype(np.int32)
    twice = (generator.random(shape) < SECOND) & gradable & episodes.valid
    known = twice | (generator.random(shape) < sample) & gradable & episodes.valid
    episodes.policy[:] = late
    episodes.action[:] = action
    episodes.probabilities[:] = np.stack([1.0 - floor, floor], axis=-1)
    episodes.propensity[:] = np.where(action == 1, floor, 1.0 - floor)
    episodes.reward[:] = np.where(known, generator.random(shape) < 0.7, np.nan)
    second = np.where(twice, generator.random(shape) < 0.7, np.nan)
    np.put_along_axis(episodes.scores, 1 - action[..., None], second[..., None].astype(np.float32), axis=-1)
    return evidence_of(episodes, np.ones(shape, np.int64), np.full((*shape, 2), predicted), HALF)


def a_night_without_feedback(seed: int, spoken: float) -> Evidence:
    """Evidence for a candidate that is worse by .045 per turn, where implicit signals tell of poor answers only.

    On three turns of ten it takes the second action, whose answers are edited in 40 % (score .35); other answers are
    regenerated in 10 % (.2), and all the rest are worth .9. A share `spoken` of the turns has feedback. The reward
    model predicts what the signals say.
    """
    generator = np.random.default_rng(seed)
    episodes = a_log(generator, 1_500, 0.2)
    shape = episodes.valid.shape
    apart = generator.random(shape) < 0.3
    episodes.action[:] = generator.random(shape) < 0.2
    episodes.propensity[:] = np.where(episodes.action == 1, 0.2, 0.8)
    other = (episodes.action == 1) & apart
    episodes.implied[:] = episodes.valid & (generator.random(shape) < np.where(other, 0.4, 0.1))
    truth = np.where(episodes.implied, np.where(other, 0.35, 0.2), 0.9)
    graded = episodes.implied | episodes.valid & (generator.random(shape) < spoken)
    episodes.reward[:] = np.where(graded, truth, np.nan)
    grades = np.stack([np.full(shape, 0.2), np.where(apart, 0.35, 0.2)], axis=-1)
    return evidence_of(episodes, apart.astype(np.int64), grades, HALF)


def evidence_of(episodes: Episodes, choice: NDArray[np.int64], grades: F64, below: float) -> Evidence:
    """Evidence for a policy with these actions against one that always takes the first."""
    incumbent = played(episodes, np.zeros_like(choice), grades)
    candidate = played(episodes, choice, grades)
    held_out = HeldOut(episodes, grades, below, CONFIG)
    nothing = {"per_decision_weighted_is": np.zeros(episodes.sessions)}
    new, old = (Tried(p, nothing, describe(p, {}, held_out)) for p in (candidate, incumbent))
    return compare("new", new, old, held_out)


def a_log(generator: np.random.Generator, sessions: int, floor: float) -> Episodes:
    episodes = blank_episodes(
        [f"s{i}" for i in range(sessions)], [f"t{i % 4}" for i in range(sessions)], ("a", "b"), ("p",),
        (sessions, 7, 2, 1, 1),
    )  # fmt: skip
    episodes.valid[:] = np.arange(7) < generator.integers(5, 8, sessions)[:, None]
    episodes.model[:] = (0, 1)
    episodes.probabilities[:] = (1.0 - floor, floor)
    episodes.mask[:] = episodes.offered[:] = True
    return episodes


def played(episodes: Episodes, choice: NDArray[np.int64], grades: F64) -> PlayedLog:
    probabilities = np.eye(2)[choice]
    logged = turnwise(episodes, probabilities, episodes.valid, grades, CONFIG.ope.weight_cap)
    score = np.where(episodes.valid, logged.v + logged.ratio * (logged.reward - logged.q), 0.0)
    nothing = np.zeros(episodes.valid.shape)
    starved = np.zeros(episodes.sessions, np.bool_)
    return PlayedLog(probabilities, score, logged, nothing, starved, nothing.sum(axis=1))
