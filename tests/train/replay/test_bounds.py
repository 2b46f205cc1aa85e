"""Planning and the knapsack against brute force and by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from policy.features import Horizon
from policy.mdp import COST_LEVELS
from train.replay.bounds import knapsack, known_quality, plan, planned_rule
from train.replay.compose import Sessions
from train.replay.simulator import NO_CONTEXT, Context, SessionBatch, play

HORIZON = Horizon((0.25,))


def random_board(seed: int, sessions: int = 6, turns: int = 4, context: Context = NO_CONTEXT) -> SessionBatch:
    generator = np.random.default_rng(seed)
    shape = (sessions, turns, 3)
    cost = generator.integers(1, 9, shape).astype(float)
    return SessionBatch(
        sessions=Sessions(np.zeros(shape[:2], np.int64), np.full(sessions, turns), np.zeros(sessions, np.int64)),
        models=("a", "b", "c"),
        quality=generator.random(shape),
        cost_usd=cost,
        predicted=generator.random(shape),
        cost_quantiles_usd=np.repeat(cost[..., None], len(COST_LEVELS), axis=-1),
        floor_usd=cost,
        output_tokens=np.full(cost.shape, 50.0),
        prompt_tokens=np.full(shape[:2], 100.0),
        average=np.full(3, 0.5),
        usd_in_per_m=np.array([1000.0, 2000.0, 3000.0]),
        usd_out_per_m=np.ones(3),
        context=context,
    )


def brute_force(board: SessionBatch, i: int, budget_usd: float) -> float:
    """The best quality of one session over all choices, leaving turns out included."""
    best = 0.0
    for choice in product((-1, 0, 1, 2), repeat=board.shape[1]):
        spent, earned, last = 0.0, 0.0, -1
        for j, a in enumerate(choice):
            if a >= 0:
                spent += board.cost_usd[i, j, a] + board.context_usd(j, np.array([last]))[0, a]
                earned += board.quality[i, j, a]
                last = a
        if spent <= budget_usd + 1e-9:
            best = max(best, earned)
    return best


@pytest.mark.parametrize("context", [NO_CONTEXT, Context(2000, 0, 0.5)])
def test_the_knapsack_finds_the_best_there_is(context: Context) -> None:
    """Bills of whole dollars and 240 coins in 24 dollars: nothing is rounded, so the bound is met exactly."""
    board = random_board(0, context=context)
    budget = np.full(6, 24.0)
    found = knapsack(board, budget)
    assert found.quality.sum(axis=1).tolist() == pytest.approx([brute_force(board, i, 24.0) for i in range(6)])
    assert (found.cost_usd.sum(axis=1) <= budget + 1e-9).all()


def test_a_plan_for_one_turn_takes_the_best_that_fits() -> None:
    board = random_board(1, turns=1)
    made = plan(board, board.quality[:, 0], board.cost_quantiles_usd[:, 0], 4.0, 1, "cut", seed=0)
    played = play(board, planned_rule(made, "cut", known_quality), np.full(6, 4.0), "cut", HORIZON, 0)
    by_hand = np.where(board.cost_usd[:, 0] <= 4.0, board.quality[:, 0], 0.0).max(axis=1)
    assert played.quality[:, 0].tolist() == pytest.approx(by_hand.tolist())


def test_a_plan_keeps_money_for_the_turn_to_come() -> None:
    """Two turns, three dollars: .5 for one dollar or .9 for all three. 1.0 is more than .9."""
    cost = np.array([[[1.0, 3.0], [1.0, 3.0]]])
    board = SessionBatch(
        sessions=Sessions(np.zeros((1, 2), np.int64), np.array([2]), np.zeros(1, np.int64)),
        models=("a", "b"),
        quality=np.array([[[0.5, 0.9]] * 2]),
        cost_usd=cost,
        predicted=np.array([[[0.5, 0.9]] * 2]),
        cost_quantiles_usd=np.repeat(cost[..., None], len(COST_LEVELS), axis=-1),
        floor_usd=cost,
        output_tokens=np.full(cost.shape, 50.0),
        prompt_tokens=np.full((1, 2), 10.0),
        average=np.array([0.5, 0.9]),
        usd_in_per_m=np.zeros(2),
        usd_out_per_m=np.ones(2),
    )
    made = plan(board, board.quality[0], board.cost_quantiles_usd[0], 3.0, 2, "cut", seed=0)
    assert made.worth(2, np.full((1, 3), 3.0))[0, 2] == pytest.approx(1.0, abs=0.02)
    played = play(board, planned_rule(made, "cut", lambda turn: turn.quality), np.array([3.0]), "cut", HORIZON, 0)
    assert played.action.tolist() == [[0, 0]]
