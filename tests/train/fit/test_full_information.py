"""Where every model was asked, every grade and every bill is learned from, and none is imagined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy.features import CANDIDATE_DIM, STATE_DIM
from policy.mdp import COST_LEVELS
from policy.rules import Cheapest
from train.config import QualityConfig, TrainConfig
from train.evaluate.simulate import play
from train.fit.network import grade
from train.fit.reward_model import folds_of
from train.fit.tune import grades_by_turn, predictions_by_turn
from train.log.episodes import Episodes, blank_episodes

CONFIG = TrainConfig(quality=QualityConfig(folds=3, penalties=(10.0,)))


def asked_everywhere(sessions: int = 30, tasks: int = 12) -> Episodes:
    """Two turns a session, two models; the tasks return in other sessions. Model 0 always served."""
    generator = np.random.default_rng(0)
    names = [str(i) for i in range(sessions)]
    shape = (sessions, 2, 2, STATE_DIM, CANDIDATE_DIM)
    blank = blank_episodes(names, ["t"] * sessions, ("cheap", "costly"), ("p",), shape)
    task = generator.integers(0, tasks, (sessions, 2))
    of_task = generator.standard_normal((tasks, STATE_DIM)).astype(np.float32)
    scores = generator.random((tasks, 2)).astype(np.float32)[task]
    bills_usd = np.tile(np.array([0.001, 0.01], np.float32), (sessions, 2, 1))
    return replace(
        blank,
        valid=np.ones((sessions, 2), np.bool_),
        state=of_task[task],
        mask=np.ones((sessions, 2, 2), np.bool_),
        offered=np.ones((sessions, 2, 2), np.bool_),
        model=np.tile(np.array([0, 1], np.int32), (sessions, 2, 1)),
        probabilities=np.full((sessions, 2, 2), 0.5, np.float32),
        propensity=np.full((sessions, 2), 0.5, np.float32),
        cost_quantiles_usd=np.tile(bills_usd[..., None], len(COST_LEVELS)),
        reward=scores[..., 0],
        cost_usd=bills_usd[..., 0],
        remaining_usd=np.ones((sessions, 2), np.float32),
        budget_usd=np.ones((sessions, 2), np.float32),
        scores=scores,
        bills_usd=bills_usd,
        task=task.astype(np.int64),
    )


def test_what_is_known_is_the_logged_action_and_whatever_else_was_asked() -> None:
    blank = blank_episodes(("s",), ("t",), ("a", "b", "c"), ("p",), (1, 1, 3, 1, 1))
    scores = np.array([[[np.nan, np.nan, 0.7]]], np.float32)
    one = replace(blank, scores=scores, reward=np.array([[0.2]], np.float32), cost_usd=np.array([[3.0]], np.float32))
    assert one.known_scores()[0, 0] == pytest.approx([0.2, np.nan, 0.7], nan_ok=True)
    assert one.known_bills_usd()[0, 0] == pytest.approx([3.0, np.nan, np.nan], nan_ok=True)
    ungraded = replace(one, reward=np.array([[np.nan]], np.float32))
    assert ungraded.known_scores()[0, 0] == pytest.approx([np.nan, np.nan, 0.7], nan_ok=True)


def test_a_task_has_one_fold_in_whatever_session_it_stands() -> None:
    episodes = asked_everywhere()
    folds = folds_of(episodes, 3, 0)
    for task in range(12):
        assert len(set(folds[episodes.task == task])) <= 1
    own = replace(episodes, task=np.full_like(episodes.task, -1))
    assert (folds_of(own, 3, 0)[:, 0] == folds_of(own, 3, 0)[:, 1]).all()


def test_a_grade_out_of_fold_has_not_seen_its_task_in_any_session() -> None:
    episodes = asked_everywhere(sessions=120, tasks=40)
    model, before = grade(episodes, CONFIG)
    out_of_fold = seen = 0.0
    for task in (4, 7, 9, 12, 20):
        there = episodes.task == task
        turned = np.where(there[..., None], 1.0 - episodes.scores, episodes.scores).astype(np.float32)
        other_model, after = grade(replace(episodes, scores=turned, reward=turned[..., 0]), CONFIG)
        mine, states = there[episodes.valid], episodes.state[there]
        out_of_fold += float(np.abs(after - before)[mine].mean())
        route = np.zeros(len(states), np.int64)
        seen += float(np.abs(other_model.predict(states, route) - model.predict(states, route)).mean())
    # Turning a task's grades round moves what is said of it by a model that saw it. Out of fold only the slopes, which
    # all folds share, can move.
    assert seen > 0.5
    assert out_of_fold < 0.1 * seen


def test_a_policy_pays_the_real_bills_and_earns_the_real_grades() -> None:
    episodes = asked_everywhere()
    costly_was_logged = replace(episodes, action=np.ones_like(episodes.action), reward=episodes.scores[..., 1])
    grades = grades_by_turn(costly_was_logged, np.zeros((episodes.turns, 2)))
    played = play(Cheapest(), costly_was_logged, grades, seed=0, weight_cap=100.0)
    assert played.cost_usd == pytest.approx(np.full((30, 2), 0.001))
    assert played.score == pytest.approx(episodes.scores[..., 0])


def test_plans_are_made_of_predictions_even_where_the_answers_are_known() -> None:
    episodes = asked_everywhere()
    guessed = np.full((episodes.turns, 2), 0.25)
    assert (predictions_by_turn(episodes, guessed)[episodes.valid] == 0.25).all()
    assert grades_by_turn(episodes, guessed)[episodes.valid] == pytest.approx(episodes.scores[episodes.valid])
