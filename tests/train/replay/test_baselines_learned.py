"""SeqRoute as published: many sessions at once decide as one by one does, and the sweep takes what is safe."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from policy.features import Horizon
from policy.text import TEXT_DIM
from tests.train.replay.folders import write_folder
from train.fit.seqroute_paper import Published
from train.replay.baselines import LAMBDA_STEPS
from train.replay.baselines_learned import STRIDE, prepare_published, safest_worth
from train.replay.compose import compose
from train.replay.dataset import read_folder
from train.replay.predict import predict
from train.replay.richer import richer_bills, richer_vectors
from train.replay.served import as_rule
from train.replay.simulator import Played, make_board, play
from train.replay.split import halves


def untrained(models: tuple[str, ...]) -> Published:
    generator = np.random.default_rng(0)
    widths = (TEXT_DIM + 1, 16, 8, len(models))
    layers = tuple(
        ((generator.standard_normal((a, b)) / 4).astype(np.float32), np.zeros(b, np.float32))
        for a, b in pairwise(widths)
    )
    return Published(models, layers, largest_usd=0.05)


def test_a_batch_decides_as_the_policy_does_one_by_one(tmp_path: Path) -> None:
    (graded,) = read_folder(write_folder(tmp_path))
    split = halves(graded, 0)
    seen = richer_vectors(graded, split.training)
    predictions = predict(graded, seen, richer_bills(graded, seen, split.training, 0), split.training, 0)
    sessions = compose(
        graded, split.test, np.zeros(2), sessions=30, turns=4, generator=np.random.default_rng(0), orderings=("iid",)
    )
    board, budget, horizon = make_board(graded, predictions, sessions), np.full(30, 0.02), Horizon()
    for models in (graded.models, graded.models[1:]):  # the second knows nothing of the large model
        published = untrained(models)
        for price in (0.0, 30.0):
            policy = replace(published, lambda_per_usd=price)
            one = play(board, as_rule(policy, seen), budget, "cut", horizon, 1)
            other = play(board, prepare_published(published, seen).rule(price), budget, "cut", horizon, 1)
            assert one.action.tolist() == other.action.tolist()
            assert len(np.unique(one.action)) > 1


def test_of_the_safe_prices_the_best_one_is_taken() -> None:
    """Played outcomes by hand: quality falls with the price, and every price but the first four bankrupts no one."""
    asked = []

    def outcome(lambda_per_usd: float) -> Played:
        i = int(np.argmin(np.abs(LAMBDA_STEPS * 2.0 - lambda_per_usd)))
        asked.append(i)
        yes, no = np.ones((1, 2), np.bool_), np.zeros((1, 2), np.bool_)
        quality = np.full((1, 2), 1.0 - 0.01 * i)
        return Played(yes, np.zeros((1, 2), np.int64), quality, quality, no, yes if i < 4 else no)

    found = safest_worth(2.0, outcome)
    assert found.training_quality == 0.96
    assert found.lambda_per_usd == LAMBDA_STEPS[4] * 2.0
    assert len(asked) == len(set(asked)) <= len(LAMBDA_STEPS) // STRIDE + 1 + 2 * (STRIDE - 1)
