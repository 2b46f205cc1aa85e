"""Fitting is a pure function of (episodes, config, key), and learns what the synthetic world hides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tests.train.log.test_episodes import a_log, read
from tests.train.small import TAUGHT
from train.fit.network import fit, grade
from train.fit.presets import calibrate_presets, learn_horizon


def test_same_data_config_and_key_give_identical_parameters_and_the_loss_falls(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=60))
    first, again = (fit(episodes, TAUGHT, jax.random.key(0)) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first.network.layers), jax.tree.leaves(again.network.layers), strict=True):
        assert np.array_equal(a, b)
        assert np.isfinite(a).all()
    other = fit(episodes, TAUGHT, jax.random.key(1))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first.network.layers), jax.tree.leaves(other.network.layers), strict=True)
    )
    assert first.curve == again.curve
    warm = [point["warm/curves/loss"] for point in first.curve if "warm/curves/loss" in point]
    assert warm[-1] < 0.5 * warm[0]


def test_a_model_that_the_log_hardly_asked_serves_with_a_wider_margin(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=60))
    large = episodes.models.index("large")
    shown = np.take_along_axis(episodes.model, episodes.action[..., None], axis=-1)[..., 0]
    unasked = replace(episodes, reward=np.where(shown == large, np.nan, episodes.reward).astype(np.float32))
    plain, blind = (grade(each, TAUGHT)[0].deviation for each in (episodes, unasked))
    assert blind[large] > 1.5 * plain[large]
    assert blind[-1] >= blind[:-1].max() - 1e-9


def test_the_horizon_is_the_share_that_ends_at_each_turn() -> None:
    # 10 sessions of 2 turns: no one ends at the first of 10, all at the second; 5 prior sessions end with 1/6.
    horizon = learn_horizon(np.full(10, 2))
    assert np.allclose(horizon.hazard, [(0 + 5 / 6) / 15, (10 + 5 / 6) / 15])


def test_presets_are_ordered_and_best_is_free(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=20))
    grades = np.tile(np.array([0.5, 0.6, 0.9]), (*episodes.valid.shape, 1))
    presets = calibrate_presets(episodes, grades)
    assert presets["best"] == 0.0 < presets["balanced"] <= presets["cheap"]
