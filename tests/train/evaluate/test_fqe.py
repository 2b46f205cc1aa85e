"""Fitted Q evaluation on two sessions of two turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.evaluate.fqe import fitted_q_evaluation, values
from train.log.episodes import Episodes, blank_episodes


def two_sessions() -> Episodes:
    episodes = blank_episodes(("a", "b"), ("t", "t"), ("m0", "m1"), ("p",), (2, 2, 2, 1, 1))
    return replace(
        episodes,
        valid=np.ones((2, 2), np.bool_),
        mask=np.ones((2, 2, 2), np.bool_),
        cost_quantiles_usd=np.ones((2, 2, 2, 15), np.float32),
        remaining_usd=np.full((2, 2), 10.0, np.float32),
        model=np.tile(np.array([0, 1], np.int32), (2, 2, 1)),
    )


def test_values_to_go_add_up_from_the_end() -> None:
    # Every first turn earns 1, every second 2, whatever is done: 3 to go at first, then 2.
    episodes, target = two_sessions(), np.full((2, 2, 2), 0.5)
    grades, rewards = np.zeros((2, 2, 2)), np.array([[1.0, 2.0], [1.0, 2.0]])
    found = fitted_q_evaluation(episodes, grades, rewards, target, penalty=1e-9)
    q, v = values(found, episodes, grades, target)
    assert q == pytest.approx(np.array([[3.0, 2.0], [3.0, 2.0]]), abs=1e-4)
    assert v == pytest.approx(q, abs=1e-4)


def test_with_a_true_reward_model_the_policy_earns_its_grades() -> None:
    # Grades are true: model 0 earns .2, model 1 earns .9. The log took model 0; the policy takes model 1.
    episodes = two_sessions()
    grades = np.tile(np.array([0.2, 0.9]), (2, 2, 1))
    target = np.tile(np.array([0.0, 1.0]), (2, 2, 1))
    found = fitted_q_evaluation(episodes, grades, np.full((2, 2), 0.2), target, penalty=1e-9)
    _, v = values(found, episodes, grades, target)
    assert v == pytest.approx(np.array([[1.8, 0.9], [1.8, 0.9]]), abs=1e-3)
