"""Fitting is a pure function of (episodes, config, key), and learns what the synthetic world hides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from tests.train.log.test_episodes import a_log, read
from train.config import FitConfig, TrainConfig
from train.fit.network import fit, padded_rows
from train.fit.presets import calibrate_presets, learn_horizon

TINY = TrainConfig(fit=FitConfig(steps=100, batch_size=32, hidden=16, joint=16, members=2))


def test_same_data_config_and_key_give_identical_parameters(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=20))
    first, again = (fit(episodes, TINY, jax.random.key(0)) for _ in range(2))
    other = fit(episodes, TINY, jax.random.key(1))
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert any(
        not np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(other.params), strict=True)
    )
    assert first.curve == again.curve
    assert first.curve[-1]["step"] == 100


def test_the_loss_falls_and_every_parameter_stays_finite(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=40))
    fitted = fit(episodes, replace(TINY, fit=replace(TINY.fit, steps=300)), jax.random.key(0))
    assert fitted.curve[-1]["critic/loss"] < fitted.curve[0]["critic/loss"]
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(fitted.params))


def test_logs_of_about_a_size_have_one_shape_and_grow_by_a_quarter_at_most() -> None:
    assert [padded_rows(n) for n in (1, 1_024, 1_025, 4_097)] == [1_024, 1_024, 2_048, 5_120]
    # 2^18 / 4 = 65,536: seven of them hold 450,000.
    assert padded_rows(450_000) == 458_752


def test_the_horizon_is_the_share_that_ends_at_each_turn() -> None:
    # 10 sessions of 2 turns: nobody ends at the first of 10, all at the second; 5 prior sessions end with 1/6.
    horizon = learn_horizon(np.full(10, 2))
    assert np.allclose(horizon.hazard, [(0 + 5 / 6) / 15, (10 + 5 / 6) / 15])


def test_presets_are_ordered_and_best_is_free(tmp_path: Path) -> None:
    episodes, _ = read(a_log(tmp_path, sessions=20))
    grades = np.tile(np.array([0.5, 0.6, 0.9]), (*episodes.valid.shape, 1))
    presets = calibrate_presets(episodes, grades)
    assert presets["best"] == 0.0 < presets["balanced"] <= presets["cheap"]
