"""The budget, the cache and the two modes by hand; and one rule told in both ways plays the same sessions alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from policy import rules as served_rules
from policy.arrays import F32
from policy.features import Horizon
from policy.mdp import COST_LEVELS, Observation
from policy.quality import QualityModel
from tests.train.replay.folders import write_folder
from train.replay import baselines
from train.replay.compose import Sessions, compose, group_difficulty
from train.replay.dataset import read_folder
from train.replay.predict import predict
from train.replay.richer import richer_bills, richer_vectors
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT, Context, Mode, Played, SessionBatch, make_board, play
from train.replay.split import halves

HORIZON = Horizon((0.25,))


def board(costs: list[list[float]], context: Context = NO_CONTEXT) -> SessionBatch:
    """One session whose turns cost exactly this on each model and are all answered well. Turns x models."""
    cost = np.array([costs])
    s, t, k = cost.shape
    return SessionBatch(
        sessions=Sessions(np.zeros((s, t), np.int64), np.full(s, t), np.zeros(s, np.int64)),
        models=tuple("abc"[:k]),
        quality=np.ones(cost.shape),
        cost_usd=cost,
        predicted=np.ones(cost.shape),
        cost_quantiles_usd=np.repeat(cost[..., None], len(COST_LEVELS), axis=-1),
        floor_usd=cost * 0.1,
        output_tokens=np.full(cost.shape, 50.0),
        prompt_tokens=np.full((s, t), 100.0),
        average=np.ones(k),
        usd_in_per_m=np.arange(1.0, k + 1.0),
        usd_out_per_m=np.ones(k),
        context=context,
    )


def played(it: SessionBatch, budget_usd: float, mode: Mode = "cut", model: int = 0) -> Played:
    return play(it, baselines.fixed(model), np.array([budget_usd]), mode, HORIZON, seed=0)


def test_an_answer_costlier_than_what_is_left_is_cut_and_takes_the_money() -> None:
    found = played(board([[3.0], [3.0], [3.0]]), budget_usd=4.0)
    assert found.quality.tolist() == [[1.0, 0.0, 0.0]]
    assert found.cost_usd.tolist() == [[3.0, 1.0, 0.0]]
    assert found.cut.tolist() == [[False, True, False]]
    assert found.unanswered.tolist() == [[False, False, True]]
    assert found.starved.tolist() == [True]
    assert found.bankrupt.tolist() == [True]


def test_an_answer_that_costs_what_is_left_is_whole() -> None:
    found = played(board([[2.0], [2.0]]), budget_usd=4.0)
    assert found.quality.tolist() == [[1.0, 1.0]]
    assert not found.starved.any()


def test_cut_at_the_last_turn_is_starved_and_not_bankrupt() -> None:
    found = played(board([[2.0], [3.0]]), budget_usd=4.0)
    assert (found.starved.tolist(), found.bankrupt.tolist()) == ([True], [False])


def test_degrade_lets_a_cheaper_model_answer_where_cut_would_cut() -> None:
    it = board([[1.0, 5.0], [1.0, 5.0]])
    assert played(it, budget_usd=7.0, mode="cut", model=1).action.tolist() == [[1, 1]]
    found = played(it, budget_usd=7.0, mode="degrade", model=1)
    assert found.action.tolist() == [[1, 0]]
    assert not found.starved.any()


def test_degrade_clamps_when_no_likely_bill_fits() -> None:
    found = played(board([[2.0, 5.0]]), budget_usd=1.0, mode="degrade")
    assert (found.cut.tolist(), found.unanswered.tolist()) == ([[True]], [[False]])


def test_a_growing_context_is_read_warm_by_the_model_that_served_last() -> None:
    """2,000 tokens at first and 500 more a turn, at 1 USD per million: cold 2,000; then 2,000 warm at a tenth + 500."""
    it = board([[1.0, 1.0]] * 2, context=Context(2000, 500, 0.1))
    assert it.context_usd(0, np.array([-1])).tolist() == [[pytest.approx(0.002), pytest.approx(0.004)]]
    assert it.context_usd(1, np.array([0])).tolist() == [[pytest.approx(0.0007), pytest.approx(0.005)]]


def test_a_short_context_is_never_warm() -> None:
    it = board([[1.0]] * 2, context=Context(500, 500, 0.1))
    assert it.context_usd(1, np.array([0])).tolist() == [[pytest.approx(0.001)]]


def test_switches_count_changes_between_answered_turns() -> None:
    action = np.array([[0, 1, -1, 1, 0]])
    blank = np.zeros(action.shape)
    no = np.zeros(action.shape, np.bool_)
    assert Played(~no, action, blank, blank, no, no).switches.tolist() == [2.0]


class Known:
    """The board's own predictions as a served rule's quality model: looked up by what a turn's text is."""

    def __init__(self, texts: F32, quality: NDArray[np.float64]) -> None:
        self._quality = {text.tobytes(): row for text, row in zip(texts, quality, strict=True)}

    def predict(self, observation: Observation) -> F32:
        return np.asarray(self._quality[observation.text.tobytes()], np.float32)

    def average(self, observation: Observation) -> F32:
        return self.predict(observation)


@pytest.mark.parametrize("mode", ["cut", "degrade"])
@pytest.mark.parametrize("context", [NO_CONTEXT, Context(4000, 250, 0.1)])
def test_the_served_object_and_the_vectorised_rule_play_alike(tmp_path: Path, mode: Mode, context: Context) -> None:
    (graded,) = read_folder(write_folder(tmp_path))
    split = halves(graded, 0)
    seen = richer_vectors(graded, split.training)
    predictions = predict(graded, seen, richer_bills(graded, seen, split.training, 0), split.training, 0)
    difficulty = group_difficulty(graded, split.training, 2)
    generator = np.random.default_rng(0)
    sessions = compose(graded, split.test, difficulty, sessions=40, turns=6, generator=generator)
    it = make_board(graded, predictions, sessions, context)
    budget = np.full(40, 6 * predictions.average_cost_usd[0] * 0.3)
    quality: QualityModel = Known(seen.text, predictions.quality)
    pairs = (
        (served_rules.TunedLambda(50.0, quality, 1.0, HORIZON), served_rules.TunedLambda(50.0, reserve=1.0)),
        (served_rules.Pacing(1.5, quality, 1.0, HORIZON), served_rules.Pacing(1.5, reserve=1.0)),
    )
    for policy, baseline in pairs:
        one = play(it, as_rule(policy, seen), budget, mode, HORIZON, 3)
        other = play(it, baselines.played(baseline), budget, mode, HORIZON, 3)
        assert len(np.unique(one.action)) > 1
        assert one.action.tolist() == other.action.tolist()
        assert one.cost_usd.tolist() == other.cost_usd.tolist()


def test_efforts_of_one_model_share_its_prompt_cache() -> None:
    three = replace(board([[1.0, 1.0, 1.0]]), models=("gpt#low", "gpt#high", "other"), usd_in_per_m=np.ones(3))
    three = three.within(Context(8_000, 250, 0.1))
    cold, warm = 8_250e-6, (800 + 250) * 1e-6
    found = three.context_usd(1, np.array([0, 1, 2, -1]))
    assert found == pytest.approx(
        np.array([[warm, warm, cold], [warm, warm, cold], [cold, cold, warm], [cold, cold, cold]])
    )
