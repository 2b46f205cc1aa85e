"""The gate on fully graded sessions: exact gains, the default rule where nothing surely beats it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from train.config import GateConfig
from train.replay.gate import Gate, Trial, evidence, trial, verdict
from train.replay.simulator import Played
from train.replay.statistics import Resampled

SESSIONS, TURNS = 100, 4


def gate(**changes: float) -> Gate:
    rows = SESSIONS * TURNS
    return Gate(np.arange(rows), Resampled(rows, 200, 0), GateConfig(min_sessions=100, **changes))


def earning(right: int, cut: int = 0) -> Trial:
    """Every session answers its first `right` turns well; the first `cut` sessions starve."""
    quality = np.tile(np.arange(TURNS) < right, SESSIONS).astype(np.float64)
    return Trial(np.arange(SESSIONS * TURNS), quality, np.arange(SESSIONS) < cut)


def test_a_gain_is_the_mean_difference_on_the_same_turns() -> None:
    [found] = evidence(gate(), earning(1), {"better": earning(3)})
    assert found.gain.mean == pytest.approx(0.5)
    assert found.gain.low < 0.5 < found.gain.high
    assert (found.tuned_score, found.effective_turns) == (0.75, 400.0)


def test_candidates_that_do_the_same_do_not_widen_one_anothers_interval_and_others_do() -> None:
    generator = np.random.default_rng(0)

    def noisy() -> Trial:
        return Trial(np.arange(SESSIONS * TURNS), generator.random(SESSIONS * TURNS), np.zeros(SESSIONS, np.bool_))

    incumbent, candidate, others = noisy(), noisy(), [noisy() for _ in range(7)]
    [alone] = evidence(gate(), incumbent, {"candidate": candidate})
    same = evidence(gate(), incumbent, {str(i): candidate for i in range(8)})
    beside = evidence(gate(), incumbent, {"candidate": candidate} | {str(i): o for i, o in enumerate(others)})
    assert same[0].gain.low == pytest.approx(alone.gain.low)
    assert beside[0].gain.mean == alone.gain.mean
    assert beside[0].gain.low < alone.gain.low


def test_of_those_that_surely_beat_the_default_rule_the_best_serves() -> None:
    found = verdict(gate(), earning(1), {"good": earning(2), "better": earning(3)})
    assert (found.outcome, found.candidate) == ("promote", "better")


def test_the_default_rule_stays_where_nothing_beats_it() -> None:
    found = verdict(gate(), earning(2), {"same": earning(2), "worse": earning(1)})
    assert (found.outcome, found.candidate) == ("keep", None)


def test_what_starves_more_sessions_does_not_serve_where_nothing_pays_for_that() -> None:
    assert verdict(gate(starved_worth=1e9), earning(1), {"greedy": earning(3, cut=3)}).candidate is None


def test_a_trial_is_all_rehearsals_together() -> None:
    def stage(rows: list[list[int]]) -> Any:
        return SimpleNamespace(board=SimpleNamespace(sessions=SimpleNamespace(rows=np.array(rows))))

    def played(quality: list[list[float]], cut: list[list[bool]], valid: list[list[bool]]) -> Played:
        shape = np.shape(quality)
        none = np.zeros(shape, np.bool_)
        return Played(
            np.array(valid), np.zeros(shape, np.int64), np.array(quality), np.zeros(shape), np.array(cut), none
        )

    first = played([[1.0, 0.0], [0.5, 0.5]], [[False, True], [False, False]], [[True, True], [True, True]])
    second = played([[0.25, 0.0]], [[False, False]], [[True, False]])
    found = trial([stage([[3, 4], [5, 6]]), stage([[9, -1]])], [first, second])
    assert found.prompt.tolist() == [3, 4, 5, 6, 9]
    assert found.quality.tolist() == [1.0, 0.0, 0.5, 0.5, 0.25]
    assert found.starved.tolist() == [True, False, False]
