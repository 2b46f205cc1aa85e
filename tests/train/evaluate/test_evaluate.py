"""Evaluation of the serving policy on the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy.rules import ReSolving
from tests.harness import gate_trials
from tests.train.log.test_episodes import a_log, read
from train.config import OpeConfig, TrainConfig
from train.evaluate.evaluate import evaluate


def test_without_candidates_the_incumbent_alone_is_evaluated(tmp_path: Path) -> None:
    episodes = read(a_log(tmp_path, sessions=12))[0]
    grades = np.full(episodes.mask.shape, 0.5)
    config = TrainConfig(ope=OpeConfig(bootstrap=50))
    found = evaluate({}, ReSolving(), episodes, grades, episodes, grades, {}, config)
    assert (list(found.policies), found.evidence, found.sessions) == (["incumbent"], (), episodes.sessions)


def test_copies_of_sessions_in_their_trees_make_no_gain_more_certain() -> None:
    """As trees of their own, the copies would narrow the interval to .71 of its width."""
    generator = np.random.default_rng(1)
    episodes = gate_trials.a_log(generator, 60, 0.3)
    shape = episodes.valid.shape
    episodes.action[:] = generator.random(shape) < 0.3
    episodes.propensity[:] = np.where(episodes.action == 1, 0.3, 0.7)
    episodes.reward[:] = np.where(episodes.valid, generator.random(shape) < 0.6, np.nan)
    copied = episodes.take(np.repeat(np.arange(60), 2))
    apart = replace(copied, root_ids=tuple(f"{name}-{i}" for i, name in enumerate(copied.session_ids)))
    once, together, alone = (
        gate_trials.evidence_of(log, np.ones(log.valid.shape, np.int64), np.full((*log.valid.shape, 2), 0.6), 0.05)
        for log in (episodes, copied, apart)
    )
    assert (once.trees, together.trees, alone.trees, together.sessions) == (60, 60, 120, 120)
    assert together.gain.mean == pytest.approx(once.gain.mean)
    assert together.gain_sd == pytest.approx(once.gain_sd)
    width, others = once.gain.high - once.gain.low, alone.gain.high - alone.gain.low
    assert together.gain.high - together.gain.low == pytest.approx(width)
    assert others == pytest.approx(width / 2**0.5, rel=0.15)
