"""Evaluation of the serving policy on the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from policy.rules import ReSolving
from tests.train.log.test_episodes import a_log, read
from train.config import OpeConfig, TrainConfig
from train.evaluate.evaluate import evaluate


def test_without_candidates_the_incumbent_alone_is_evaluated(tmp_path: Path) -> None:
    episodes = read(a_log(tmp_path, sessions=12))[0]
    grades = np.full(episodes.mask.shape, 0.5)
    config = TrainConfig(ope=OpeConfig(bootstrap=50))
    found = evaluate({}, ReSolving(), episodes, grades, episodes, grades, {}, config)
    assert (list(found.policies), found.evidence, found.sessions) == (["incumbent"], (), episodes.sessions)
