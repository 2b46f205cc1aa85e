"""SeqRoute as published, in replay: its network in batches, swept over lambda.

`train.fit.seqroute_paper` fits it and decides as the gateway would; the rule here is the same arithmetic over a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from policy.features import TEXT_SCALE
from train.fit.seqroute_paper import Published
from train.replay.baselines import LAMBDA_STEPS, quality_per_turn
from train.replay.simulator import Played, Rule, Turn
from train.replay.vectors import Vectors

MOST_BANKRUPT = 0.01
"""Bankruptcy rate that the paper claims: under one session in a hundred."""
STRIDE = 3


@dataclass(frozen=True)
class PriceSweep:
    """The prices of money tried and the chosen one."""

    lambda_per_usd: float
    training_quality: float


@dataclass(frozen=True, eq=False)
class PublishedNetwork:
    """The published network over the prompts of one source.

    The first layer's output for each prompt is computed once.
    """

    published: Published
    first: NDArray[np.float32]  # (P, width) before the money and the nonlinearity

    def rule(self, lambda_per_usd: float) -> Rule:
        """Choose argmax Q(s, a) - lambda c(a) for all sessions of a turn.

        Models that it was not trained on are its last choice.
        """
        published = self.published

        def choose(turn: Turn) -> I64:
            board = turn.board
            left = np.minimum(turn.remaining_usd / published.largest_usd, 1.0)
            values = self._values(board.sessions.rows[turn.at, turn.index], left.astype(np.float32))
            scores = np.full(turn.mask.shape, -1e3) + values.min(axis=1, keepdims=True)
            for k, name in enumerate(board.models):
                if name in published.models:
                    scores[:, k] = values[:, published.models.index(name)]
            scores = scores - lambda_per_usd * turn.mean_usd
            return np.asarray(np.argmax(np.where(turn.mask, scores, -np.inf), axis=1))

        return choose

    def _values(self, prompts: I64, left: NDArray[np.float32]) -> F64:
        """Q of every action, (N, M)."""
        hidden = np.maximum(self.first[prompts] + left[:, None] * self.published.layers[0][0][-1], 0.0)
        for weight, bias in self.published.layers[1:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        weight, bias = self.published.layers[-1]
        return np.asarray(hidden @ weight + bias, np.float64)


def prepare_published(published: Published, seen: Vectors) -> PublishedNetwork:
    """Prepare the published network for these prompts."""
    weight, bias = published.layers[0]
    return PublishedNetwork(published, np.asarray((seen.text * TEXT_SCALE) @ weight[:-1] + bias, np.float32))


def safest_worth(unit: float, play: Callable[[float], Played]) -> PriceSweep:
    """Best lambda on the training half among those that bankrupt at most MOST_BANKRUPT.

    `play` plays the training half at a lambda; `unit` is one over the mean cost of the strongest model. Every third of
    LAMBDA_STEPS is tried, and then the neighbours of the best. Where none qualifies, the one that bankrupts fewest.
    """
    tried: dict[int, tuple[float, float, float]] = {}

    def attempt(steps: Iterable[int]) -> int:
        for i in steps:
            if 0 <= i < len(LAMBDA_STEPS) and i not in tried:
                lambda_per_usd = float(LAMBDA_STEPS[i]) * unit
                played = play(lambda_per_usd)
                bankrupt = max(float(played.bankrupt.mean()), MOST_BANKRUPT)
                tried[i] = (bankrupt, -quality_per_turn(played), lambda_per_usd)
        return min(tried, key=lambda i: tried[i])

    best = attempt(range(0, len(LAMBDA_STEPS), STRIDE))
    best = attempt(range(best - STRIDE + 1, best + STRIDE))
    _, worse, lambda_per_usd = tried[best]
    return PriceSweep(lambda_per_usd, -worse)
