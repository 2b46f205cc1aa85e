"""Simulated nights of the gate: how often would a policy that is no better, or worse, have been promoted?

Two actions, 5 to 7 turns a session; the candidate takes the other action than the incumbent on three turns of ten. The
reward model is off by .1 a turn. The evidence is made by the code that makes it at night.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig, OpeConfig, TrainConfig
from train.evaluate.evaluate import HeldOut, Tried, compare, describe
from train.evaluate.gate import judge, tails
from train.evaluate.simulate import PlayedLog, of_seconds, turnwise
from train.log.episodes import Episodes, blank_episodes

F64 = NDArray[np.float64]
CONFIG = TrainConfig(ope=OpeConfig(bootstrap=200), gate=GateConfig())


HALF = tails(GateConfig(), 2)[0]


def promoted_of(
    nights: int, *, sessions: int, floor: float, gain: float, below: float = HALF, second: float = 0.0
) -> int:
    """How many of so many nights end with a promotion."""
    verdicts = [
        a_night(seed, sessions=sessions, floor=floor, gain=gain, below=below, second=second) for seed in range(nights)
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
    second: float = 0.0,
) -> str:
    """The gate's verdict on a candidate that is better by `gain` per turn than the incumbent, which was logged.

    `below` is the error probability that the candidate has of the gate's, `second` the share of second answers.
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
    if second:
        episodes.second[:] = second * (1.0 - episodes.probabilities)
        other = np.take_along_axis(truth, 1 - action[..., None], axis=-1)[..., 0]
        scores = np.where(generator.random(shape) < second, generator.random(shape) < other, np.nan)
        np.put_along_axis(episodes.scores, 1 - action[..., None], scores[..., None].astype(np.float32), axis=-1)
    grades = np.clip(truth + 0.1 * generator.standard_normal(truth.shape), 0.0, 1.0)
    incumbent = played(episodes, np.zeros(shape, np.int64), grades)
    candidate = played(episodes, apart.astype(np.int64), grades)
    held_out = HeldOut(episodes, grades, below, CONFIG)
    nothing = {"per_decision_weighted_is": np.zeros(sessions)}
    new, old = (Tried(p, nothing, describe(p, {}, held_out)) for p in (candidate, incumbent))
    evidence = compare("new", new, old, held_out)
    return judge([evidence, evidence], CONFIG.gate).outcome


def a_log(generator: np.random.Generator, sessions: int, floor: float) -> Episodes:
    episodes = blank_episodes(
        [f"s{i}" for i in range(sessions)], [f"t{i % 4}" for i in range(sessions)], ("a", "b"), ("p",),
        (sessions, 7, 2, 1, 1),
    )  # fmt: skip
    episodes.valid[:] = np.arange(7) < generator.integers(5, 8, sessions)[:, None]
    episodes.probabilities[:] = (1.0 - floor, floor)
    episodes.mask[:] = episodes.offered[:] = True
    return episodes


def played(episodes: Episodes, choice: NDArray[np.int64], grades: F64) -> PlayedLog:
    probabilities = np.eye(2)[choice]
    logged = turnwise(episodes, probabilities, episodes.valid, grades, CONFIG.ope.weight_cap)
    corrected = logged.ratio * (logged.reward - logged.q)
    corrected += of_seconds(episodes, probabilities, grades, CONFIG.ope.weight_cap)
    score = np.where(episodes.valid, logged.v + corrected, 0.0)
    nothing = np.zeros(episodes.valid.shape)
    starved = np.zeros(episodes.sessions, np.bool_)
    return PlayedLog(probabilities, score, logged, nothing, starved, nothing.sum(axis=1))
