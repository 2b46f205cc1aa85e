"""Reference results that no policy can serve: planning on the training half, and hindsight.

`planned_rule` is dynamic programming over the money left (one draw of the training prompts per turn, the whole cost
distribution in the backup), on predicted quality or with each turn's true quality revealed. `knapsack` knows every
answer and bill of the session beforehand. The first is a plan, not a proven bound: it takes turns as independent draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from policy.mdp import COST_LEVELS, COST_MASSES
from train.replay.simulator import Mode, Played, Rule, SessionBatch, Turn

MONEY_POINTS = 48
SAMPLED_PROMPTS = 96
UNITS = 240
"""Number of coins in the knapsack's budget; bills are rounded down, so it stays an upper bound."""
_Q98 = COST_LEVELS.index(0.98)


@dataclass(frozen=True)
class ValueGrid:
    """Value of n turns with money b after model k served: `value` (n + 1, K + 1, B).

    On the grid `money_usd` (B,). Column K is the start of a session, without a warm cache.
    """

    money_usd: F64
    value: F64

    def worth(self, turns: int, money_usd: F64) -> F64:
        """Value V_n(b, k) for money (..., K), with model k having served in the k-th column."""
        turns = min(turns, len(self.value) - 1)
        found = np.empty(money_usd.shape)
        for k in range(money_usd.shape[-1]):
            found[..., k] = np.interp(money_usd[..., k], self.money_usd, self.value[turns, k])
        return found


def plan(
    board: SessionBatch, quality: F64, cost_quantiles_usd: F64, budget_usd: float, turns: int, mode: Mode, seed: int
) -> ValueGrid:
    """Backward induction over training prompts.

    Quality is (N, K), the cost distribution without context (N, K, L).

        V_n(b, k) = E_prompt max_a sum_l p_l [c_al <= b] (q_a + V_{n-1}(b - c_al, a))

    An answer more expensive than the money left is worth nothing and takes the money. `turns` is the longest session;
    the context of a turn is that of its place in a session of that length.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(quality), min(SAMPLED_PROMPTS, len(quality)), replace=False)
    quality, cost_usd = quality[chosen], cost_quantiles_usd[chosen]
    k = quality.shape[1]
    money = np.concatenate([[0.0], np.geomspace(budget_usd * 1e-4, budget_usd * 1.5, MONEY_POINTS - 1)])
    made = ValueGrid(money, np.zeros((turns + 1, k + 1, len(money))))
    lasts = np.append(np.arange(k), -1) if board.context.base_tokens or board.context.kept_tokens else np.array([-1])
    for n in range(1, turns + 1):
        for last in lasts:
            context = board.context_usd(turns - n, np.array([last]))[0]
            scores = _scores(
                made, n, quality[None], (cost_usd + context[:, None])[None], money[:, None], mode
            )  # (B, N, K)
            made.value[n, last] = scores.max(axis=-1).mean(axis=-1)
        if len(lasts) == 1:
            made.value[n, :] = made.value[n, -1]
    return made


def planned_rule(made: ValueGrid, mode: Mode, quality_of: Callable[[Turn], F64]) -> Rule:
    """Decide by the plan; `quality_of` returns the known quality of a turn, (N, K)."""

    def rule(turn: Turn) -> I64:
        chosen = np.empty(len(turn.at), np.int64)
        left = np.maximum(np.round(turn.turns_left), 1).astype(int)
        quality = quality_of(turn)
        for n in np.unique(left):
            rows = np.flatnonzero(left == n)
            scores = _scores(made, int(n), quality[rows], turn.cost_quantiles_usd[rows], turn.remaining_usd[rows], mode)
            # If no answer has any value, choose the cheapest.
            scores = scores - 1e-9 * turn.mean_usd[rows] / turn.mean_usd[rows].max()
            chosen[rows] = np.argmax(np.where(turn.mask[rows], scores, -np.inf), axis=1)
        return chosen

    return rule


def known_quality(turn: Turn) -> F64:
    """True grade of each model's answer to this turn, (N, K), which no policy knows beforehand."""
    return np.asarray(turn.board.quality[turn.at, turn.index])


def knapsack(board: SessionBatch, budget_usd: F64) -> Played:
    """Best possible use of each session's budget (S,), with every answer and bill known.

    Dynamic programming over coins left and the model that served last; a turn may be left out.
    """
    s, t, k = board.shape
    cached = bool(board.context.base_tokens or board.context.kept_tokens)
    lasts = [*range(k), -1] if cached else [-1]
    valid = board.sessions.valid
    coin = (budget_usd / UNITS)[:, None]
    best = np.zeros((len(lasts), s, UNITS + 1))
    picks = np.full((t, len(lasts), s, UNITS + 1), -1, np.int8)
    left = np.broadcast_to(np.arange(UNITS + 1), (s, UNITS + 1))
    for j in range(t - 1, -1, -1):
        after, best = best, np.empty_like(best)
        for at, last in enumerate(lasts):
            best[at] = after[at]  # unanswered: money and cache are unchanged
            bill = board.cost_usd[:, j] + board.context_usd(j, np.full(s, last))
            coins = np.floor(bill / coin + 1e-9).astype(np.int64)
            for a in range(k):
                rest = left - coins[:, a, None]
                value = np.take_along_axis(after[a if cached else 0], np.maximum(rest, 0), axis=1)
                value = np.where((rest >= 0) & valid[:, j, None], value + board.quality[:, j, a, None], -np.inf)
                better = value > best[at] + 1e-12
                best[at] = np.where(better, value, best[at])
                picks[j, at] = np.where(better, a, picks[j, at])
    return _follow(board, picks, coin[:, 0], cached)


def _follow(board: SessionBatch, picks: NDArray[np.int8], coin_usd: F64, cached: bool) -> Played:
    """Follow the choices from the full budget."""
    s, t, _ = board.shape
    left, last = np.full(s, UNITS), np.full(s, -1, np.int64)
    action = np.full((s, t), -1, np.int64)
    quality, cost = np.zeros((s, t)), np.zeros((s, t))
    rows = np.arange(s)
    for j in range(t):
        pick = picks[j, last if cached else 0, rows, left].astype(np.int64)
        taken = pick >= 0
        a = np.maximum(pick, 0)
        bill = board.cost_usd[rows, j, a] + board.context_usd(j, last)[rows, a]
        coins = np.floor(bill / coin_usd + 1e-9).astype(np.int64)
        action[:, j] = pick
        quality[:, j] = np.where(taken, board.quality[rows, j, a], 0.0)
        cost[:, j] = np.where(taken, bill, 0.0)
        left = left - np.where(taken, coins, 0)
        last = np.where(taken, a, last)
    valid = board.sessions.valid
    return Played(valid, action, quality, cost, np.zeros((s, t), np.bool_), valid & (action < 0))


def _scores(made: ValueGrid, turns_left: int, quality: F64, cost_usd: F64, money_usd: F64, mode: Mode) -> F64:
    """Expected value of every candidate with this money: the backup before the maximum.

    quality (..., K), costs (..., K, L), money (...): (..., K), broadcast against one another.
    """
    money = money_usd[..., None]
    total = np.zeros(np.broadcast_shapes(quality.shape, money.shape))
    for level, mass in enumerate(COST_MASSES):
        rest = money - cost_usd[..., level]
        worth = quality + made.worth(turns_left - 1, np.maximum(rest, 0.0))
        total += mass * np.where(rest >= 0.0, worth, 0.0)
    if mode == "degrade":
        likely = cost_usd[..., _Q98] <= money
        total = np.where(likely | ~likely.any(axis=-1, keepdims=True), total, -1.0)
    return total
