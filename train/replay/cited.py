"""SeqRoute as published, in the replay's world: its network for many sessions at once, and its sweep over lambda.

`train.published` fits it and decides as the gateway would; the rule here is the same arithmetic over a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.features import TEXT_SCALE
from train.published import Published
from train.replay.baselines import LAMBDA_STEPS, quality_per_turn
from train.replay.vectors import Vectors
from train.replay.world import Played, Rule, Turn

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MOST_BANKRUPT = 0.01
"""The paper's claim: under one session in a hundred."""


@dataclass(frozen=True)
class Sweep:
    """The prices of money tried, and the one taken."""

    lambda_per_usd: float
    training_quality: float


def rule(published: Published, seen: Vectors, lambda_per_usd: float) -> Rule:
    """argmax Q(s, a) - lambda c(a) for all sessions of a turn. A model it was not trained on is its last choice."""

    def choose(turn: Turn) -> I64:
        board = turn.board
        text = seen.text[board.sessions.rows[turn.at, turn.index]] * TEXT_SCALE
        left = np.minimum(turn.remaining_usd / published.largest_usd, 1.0)
        values = _values(published, np.column_stack([text, left]).astype(np.float32))
        scores = np.full(turn.mask.shape, -1e3) + values.min(axis=1, keepdims=True)
        for k, name in enumerate(board.models):
            if name in published.models:
                scores[:, k] = values[:, published.models.index(name)]
        scores = scores - lambda_per_usd * turn.mean_usd
        return np.asarray(np.argmax(np.where(turn.mask, scores, -np.inf), axis=1))

    return choose


def safest_worth(published: Published, seen: Vectors, unit: float, play: Callable[[Rule], Played]) -> Sweep:
    """The lambda of the best quality among those that bankrupt no more than MOST_BANKRUPT, on the training half.

    `unit` is one over the mean cost of the strongest model. Where none is so safe, whichever bankrupts fewest.
    """
    tried = []
    for step in LAMBDA_STEPS:
        played = play(rule(published, seen, float(step) * unit))
        bankrupt = float(played.bankrupt.mean())
        tried.append((max(bankrupt, MOST_BANKRUPT), -quality_per_turn(played), float(step) * unit))
    _, worse, lambda_per_usd = min(tried)
    return Sweep(lambda_per_usd, -worse)


def _values(published: Published, hidden: NDArray[np.float32]) -> F64:
    """Q of every action, (N, M)."""
    for weight, bias in published.layers[:-1]:
        hidden = np.maximum(hidden @ weight + bias, 0.0)
    weight, bias = published.layers[-1]
    return np.asarray(hidden @ weight + bias, np.float64)
