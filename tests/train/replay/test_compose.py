"""How sessions are composed: lengths, orders, conversations, and who was told how long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.replay.folders import write_folder
from train.replay.compose import ORDERINGS, Sessions, compose, group_difficulty
from train.replay.dataset import Graded, read_folder

EASY, HARD = 0, 1  # cities, sums


def composed(graded: Graded, turns: int | None, *orderings: str, sessions: int = 100) -> Sessions:
    everything = np.arange(graded.prompts)
    return compose(
        graded,
        everything,
        np.array([0.1, 0.9]),
        sessions=sessions,
        turns=turns,
        generator=np.random.default_rng(0),
        orderings=orderings or ORDERINGS,
    )


@pytest.fixture
def graded(tmp_path: Path) -> Graded:
    return read_folder(write_folder(tmp_path))[0]


def test_orderings_are_mixed_in_equal_shares(graded: Graded) -> None:
    assert np.bincount(composed(graded, 4).ordering).tolist() == [20] * 5


def test_orders_are_what_they_are_called(graded: Graded) -> None:
    def hard_by_turn(ordering: str) -> list[float]:
        sessions = composed(graded, 8, ordering, sessions=200)
        return list((graded.group[sessions.rows] == HARD).mean(axis=0))

    easy_first, hard_first, burst = (hard_by_turn(name) for name in ("easy-first", "hard-first", "late-burst"))
    assert easy_first[0] < 0.2 < 0.8 < easy_first[-1]
    assert hard_first[0] > 0.8 > 0.2 > hard_first[-1]
    assert max(burst[:6]) < 0.3 < 0.9 < min(burst[6:])
    assert all(0.3 < share < 0.7 for share in hard_by_turn("iid"))
    topic = graded.group[composed(graded, 8, "by-topic").rows]
    assert (topic == topic[:, :1]).all()


def test_no_prompt_twice_in_a_session_as_long_as_there_are_enough(graded: Graded) -> None:
    rows = composed(graded, 12, "iid").rows
    assert all(len(set(row)) == 12 for row in rows.tolist())


def test_random_lengths_run_from_two_to_sixteen_and_half_are_declared(graded: Graded) -> None:
    sessions = composed(graded, None, sessions=1000)
    assert (sessions.lengths.min(), sessions.lengths.max()) == (2, 16)
    told = sessions.declared > 0
    assert 0.45 < told.mean() < 0.55
    assert (sessions.declared[told] == sessions.lengths[told]).all()


def test_conversations_stay_whole_and_in_order(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path, tasks=30, turns=2))
    for ordering in ORDERINGS:
        rows = composed(graded, 6, ordering, sessions=20).rows
        assert (graded.turn[rows] == [0, 1] * 3).all()
        assert (graded.task[rows[:, 0::2]] == graded.task[rows[:, 1::2]]).all()


def test_difficulty_is_how_often_the_weak_model_fails_in_the_training_half(graded: Graded) -> None:
    rows = np.flatnonzero(np.arange(graded.prompts) < 60)
    small = graded.models.index("small")
    found = group_difficulty(graded, rows, small)
    by_hand = [1.0 - graded.quality[[i for i in rows if graded.group[i] == g], small].mean() for g in (EASY, HARD)]
    assert found.tolist() == pytest.approx(by_hand)
    assert found[HARD] > 0.7 > 0.3 > found[EASY]
