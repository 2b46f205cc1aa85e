"""What a policy is shown of a composed session: one by one, and for all sessions of a turn at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from policy import batch
from policy.features import Horizon
from policy.mdp import Decision, Observation
from policy.rules import ReSolving
from tests.policy.observations import stack_observations
from tests.train.replay.folders import write_folder
from train.replay.blind import Blind
from train.replay.compose import compose, group_difficulty
from train.replay.dataset import read_folder
from train.replay.inputs import Inputs, bills_of, vectors_of
from train.replay.predict import predict
from train.replay.served import as_rule, observation, turn_batch
from train.replay.simulator import NO_CONTEXT, Context, SessionBatch, Turn, make_board, play
from train.replay.split import halves
from train.replay.vectors import Vectors

HORIZON = Horizon((0.1, 0.2))
WEIGHED = Context(4000, 250, 0.1)


def sessions_of(folder: Path, context: Context, inputs: Inputs = "live") -> tuple[SessionBatch, Vectors, np.ndarray]:
    (graded,) = read_folder(write_folder(folder))
    split = halves(graded, 0)
    seen = vectors_of(inputs, graded, split.training)
    predictions = predict(graded, seen, bills_of(inputs, graded, seen, split.training, 0), split.training, 0)
    drawn = compose(
        graded,
        split.test,
        group_difficulty(graded, split.training, 2),
        sessions=40,
        turns=6,
        generator=np.random.default_rng(0),
    )
    budget = 6 * predictions.average_cost_usd[0] * np.linspace(0.02, 1.2, 40)
    return make_board(graded, predictions, drawn, context), seen, budget


@pytest.mark.parametrize("context", [NO_CONTEXT, WEIGHED])
def test_all_sessions_of_a_turn_are_shown_what_each_is_shown_alone(tmp_path: Path, context: Context) -> None:
    board, seen, budget = sessions_of(tmp_path, context)
    compared = []

    def comparing(turn: Turn) -> np.ndarray:
        alone = stack_observations([observation(turn, n, seen, 3.0) for n in range(len(turn.at))])
        shown = turn_batch(turn, seen, 3.0)
        assert [alone.models[k] for k in alone.model[0]] == [shown.models[k] for k in shown.model[0]]
        for item in fields(batch.Batch):
            if item.name not in ("models", "model"):
                found, expected = getattr(shown, item.name), getattr(alone, item.name)
                assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), item.name
        compared.append(len(turn.at))
        return np.asarray(np.argmax(turn.mask, axis=1))

    play(board, comparing, budget, "degrade", HORIZON, 3)
    assert sum(compared) > 100


class OneByOne:
    """A policy that has no batched form, though it decides as one that has."""

    policy_id = "one-by-one"

    def __init__(self, policy: ReSolving | Blind) -> None:
        self._policy = policy

    def decide(self, observation: Observation, uniform: float) -> Decision:
        return self._policy.decide(observation, uniform)


@pytest.mark.parametrize("context", [NO_CONTEXT, WEIGHED])
def test_the_default_rule_plays_alike_asked_together_and_one_by_one(tmp_path: Path, context: Context) -> None:
    board, seen, budget = sessions_of(tmp_path, context)
    for policy in (ReSolving(horizon=HORIZON), Blind(ReSolving(horizon=HORIZON))):
        together = play(board, as_rule(policy, seen), budget, "cut", HORIZON, 3)
        alone = play(board, as_rule(OneByOne(policy), seen), budget, "cut", HORIZON, 3)
        assert len(np.unique(together.action)) > 1
        assert together.action.tolist() == alone.action.tolist()
