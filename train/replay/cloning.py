"""Behaviour cloning: a linear classifier of the logged action, by ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from train.fit.reward_model import ridge
from train.log.episodes import Episodes
from train.replay.simulator import Rule, SessionBatch, Turn
from train.replay.vectors import Vectors

PENALTY = 30.0


@dataclass(frozen=True)
class Clone:
    """Weights (d, K) of each model over the turn's vectors and its money."""

    weights: F64
    mean_usd: F64  # (K,)

    def rule(self, seen: Vectors) -> Rule:
        """Choose the offered model with the highest predicted share."""

        def choose(turn: Turn) -> I64:
            rows = turn.board.sessions.rows[turn.at, turn.index]
            money = _money(turn.remaining_usd, turn.budget_usd, turn.turns_left, self.mean_usd)
            scores = _design(seen, rows, money) @ self.weights
            return np.asarray(np.argmax(np.where(turn.mask, scores, -np.inf), axis=1))

        return choose


def clone(log: Episodes, board: SessionBatch, seen: Vectors, left: F64, mean_usd: F64) -> Clone:
    """Fit on a log played on this board; `left` (S, T) are the turns left known to the policies."""
    valid = log.valid
    money = _money(log.remaining_usd[valid], log.budget_usd[valid], left[valid], mean_usd)
    design = _design(seen, board.sessions.rows[valid], money)
    chosen = np.eye(len(board.models))[log.action[valid]]
    return Clone(ridge(design, chosen, PENALTY), mean_usd)


def _money(remaining_usd: NDArray[np.floating], budget_usd: NDArray[np.floating], left: F64, mean_usd: F64) -> F64:
    """Money features, (N, K + 2): share left, log money per turn by model's cost, turns left."""
    rate = remaining_usd / np.maximum(left, 1.0)
    ratios = np.log(np.maximum(rate, 1e-12)[:, None] / mean_usd)
    return np.column_stack([np.clip(ratios, -5.0, 5.0), remaining_usd / np.maximum(budget_usd, 1e-12), np.log(left)])


def _design(seen: Vectors, rows: I64, money: F64) -> F64:
    return np.column_stack([seen.text[rows], seen.stats[rows], money, np.ones(len(rows))])
