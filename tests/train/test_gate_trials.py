"""The gate over many simulated nights: how often a policy that is no better, or worse, would have been promoted.

Two actions, 5 to 7 turns a session; the candidate takes the other action than the incumbent on three turns of ten. The
reward model is off by .1 a turn. The evidence is made by the code that makes it at night.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from train.config import GateConfig, OpeConfig, TrainConfig
from train.episodes import Episodes, blank_episodes
from train.evaluate import compare, describe
from train.gate import judge, tail
from train.hindsight import Played
from train.ope import Interval, Logged, known_noise, widened

F64 = NDArray[np.float64]
CONFIG = TrainConfig(ope=OpeConfig(bootstrap=200), gate=GateConfig())


def a_night(seed: int, *, sessions: int, floor: float, gain: float, quality: float = 0.8) -> str:
    """The gate's verdict on a candidate that is better by `gain` per turn than the incumbent, which was logged."""
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
    grades = np.clip(truth + 0.1 * generator.standard_normal(truth.shape), 0.0, 1.0)
    incumbent = played(episodes, np.zeros(shape, np.int64), grades)
    candidate = played(episodes, apart.astype(np.int64), grades)
    below, turns = tail(CONFIG.gate, 2), episodes.lengths.astype(np.float64)
    nothing = {"per_decision_weighted_is": np.zeros(sessions)}
    new, old = (describe(p, {}, episodes, turns, below, CONFIG) for p in (candidate, incumbent))
    evidence = compare(
        "new", candidate, incumbent, nothing, nothing, new, old, episodes, grades, turns, below, CONFIG
    )  # fmt: skip
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


def played(episodes: Episodes, choice: NDArray[np.int64], grades: F64) -> Played:
    probabilities = np.eye(2)[choice]
    at = episodes.action[..., None]
    ratio = np.take_along_axis(probabilities, at, axis=-1)[..., 0] / episodes.propensity
    q, v = np.take_along_axis(grades, at, axis=-1)[..., 0], (probabilities * grades).sum(axis=-1)
    reward = np.nan_to_num(episodes.reward).astype(np.float64)
    score = np.where(episodes.valid, v + ratio * (reward - q), 0.0)
    nothing = np.zeros(episodes.valid.shape)
    logged = Logged(episodes.valid, ratio, reward, q, v)
    starved = np.zeros(episodes.sessions, np.bool_)
    return Played(probabilities, score, logged, nothing, starved, nothing.sum(axis=1))


@pytest.mark.parametrize(("sessions", "floor"), [(150, 0.05), (300, 0.02), (300, 0.3)])
@pytest.mark.parametrize("gain", [0.0, -0.05])
def test_of_200_policies_that_are_no_better_or_worse_by_five_points_at_most_five_percent_are_promoted(
    sessions: int, floor: float, gain: float
) -> None:
    promoted = [a_night(seed, sessions=sessions, floor=floor, gain=gain) == "promote" for seed in range(200)]
    assert sum(promoted) <= (10 if gain == 0.0 else 2)


def test_a_policy_that_is_better_by_eight_points_is_promoted_where_the_log_explored() -> None:
    promoted = [a_night(seed, sessions=300, floor=0.3, gain=0.08) == "promote" for seed in range(40)]
    assert sum(promoted) >= 36


def test_the_noise_of_the_log_follows_from_its_propensities() -> None:
    # The candidate takes b (mu .1), the incumbent a (mu .9), q .5: .9 (0 - 1/.9)^2 .25 + .1 (10)^2 .25 = .2778 + 2.5.
    one = np.array([[[0.0, 1.0]]])
    other, behaviour = np.array([[[1.0, 0.0]]]), np.array([[[0.9, 0.1]]])
    valid, grades = np.array([[True]]), np.full((1, 1, 2), 0.5)
    assert known_noise(one, other, behaviour, grades, valid, 100.0) == pytest.approx([0.25 / 0.9 + 2.5])
    assert known_noise(one, other, behaviour, grades, valid, 5.0) == pytest.approx([0.25 / 0.9 + 0.1 * 25 * 0.25])
    assert known_noise(one, one, behaviour, grades, valid, 100.0) == pytest.approx([0.0])


def test_an_interval_is_widened_only_where_the_known_noise_reaches_further() -> None:
    # 2 * 1 / sqrt(4) = 1 to both sides of the mean.
    assert widened(Interval(0.0, -0.5, 3.0), 1.0, 4, 2.0) == Interval(0.0, -1.0, 3.0)
