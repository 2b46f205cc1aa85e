"""The gate on fully graded sessions: exact gains, the default rule where nothing surely beats it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from train.config import GateConfig
from train.replay.gating import Gate, exact, verdict
from train.replay.report import Resampled
from train.replay.world import Played

SESSIONS, TURNS = 100, 4


def gate() -> Gate:
    rows = np.arange(SESSIONS * TURNS).reshape(SESSIONS, TURNS)
    board: Any = SimpleNamespace(sessions=SimpleNamespace(rows=rows))
    return Gate(board, np.arange(rows.size), Resampled(rows.size, 200, 0), GateConfig(min_sessions=100))


def earning(right: int, cut: int = 0) -> Played:
    """Every session answers its first `right` turns well; the first `cut` sessions starve."""
    shape = (SESSIONS, TURNS)
    quality = np.broadcast_to(np.arange(TURNS) < right, shape).astype(np.float64)
    starved = np.zeros(shape, np.bool_)
    starved[:cut, -1] = True
    yes = np.ones(shape, np.bool_)
    return Played(yes, np.zeros(shape, np.int64), quality, np.zeros(shape), starved, ~yes)


def test_a_gain_is_the_mean_difference_on_the_same_turns() -> None:
    found = exact(gate(), "better", earning(1), earning(3), 1)
    assert found.gain.mean == pytest.approx(0.5)
    assert found.gain.low < 0.5 < found.gain.high
    assert (found.tuned_score, found.effective_turns) == (0.75, 400.0)


def test_of_those_that_surely_beat_the_default_rule_the_best_serves() -> None:
    found = verdict(gate(), earning(1), {"good": earning(2), "better": earning(3)})
    assert (found.outcome, found.candidate) == ("promote", "better")


def test_the_default_rule_stays_where_nothing_beats_it() -> None:
    found = verdict(gate(), earning(2), {"same": earning(2), "worse": earning(1)})
    assert (found.outcome, found.candidate) == ("keep", None)


def test_what_starves_more_sessions_does_not_serve() -> None:
    assert verdict(gate(), earning(1), {"greedy": earning(3, cut=3)}).candidate is None
