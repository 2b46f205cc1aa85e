"""What nobody can serve, to measure against: planning with the training half's law of tasks, and with hindsight.

`planned` is dynamic programming over the money left (one draw of the training prompts a turn, the whole cost law in
the backup), on predicted quality, or knowing each turn's true quality when it comes. `knapsack` knows every answer and
bill of the session beforehand. The first is a plan, not a proven bound: it takes turns to be independent draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.mdp import COST_LEVELS, COST_MASSES
from train.replay.simulator import Mode, Played, Rule, SessionBatch, Turn

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MONEY_POINTS = 48
SAMPLED_PROMPTS = 96
UNITS = 240
"""The knapsack's budget is counted in so many coins; bills are rounded down, which keeps it a bound."""
_Q98 = COST_LEVELS.index(0.98)


@dataclass(frozen=True)
class Plan:
    """Value of n turns with money b if model k served last: `value` (n + 1, K + 1, B) on the grid `money_usd` (B,).

    Column K is the start of a session, where no model's cache is warm.
    """

    money_usd: F64
    value: F64

    def worth(self, turns: int, money_usd: F64) -> F64:
        """V_n(b, k) for money (..., K), the k-th column with model k having served."""
        turns = min(turns, len(self.value) - 1)
        found = np.empty(money_usd.shape)
        for k in range(money_usd.shape[-1]):
            found[..., k] = np.interp(money_usd[..., k], self.money_usd, self.value[turns, k])
        return found


def plan(
    board: SessionBatch, quality: F64, cost_quantiles_usd: F64, budget_usd: float, turns: int, mode: Mode, seed: int
) -> Plan:
    """Backward induction over training prompts: quality (N, K), cost law without context (N, K, L).

        V_n(b, k) = E_prompt max_a sum_l p_l [c_al <= b] (q_a + V_{n-1}(b - c_al, a))

    An answer dearer than what is left is worth nothing and takes the money. `turns` is how long sessions are at most;
    the context of a turn is that of its place in a session of that length.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(quality), min(SAMPLED_PROMPTS, len(quality)), replace=False)
    quality, law = quality[chosen], cost_quantiles_usd[chosen]
    k = quality.shape[1]
    money = np.concatenate([[0.0], np.geomspace(budget_usd * 1e-4, budget_usd * 1.5, MONEY_POINTS - 1)])
    made = Plan(money, np.zeros((turns + 1, k + 1, len(money))))
    lasts = np.append(np.arange(k), -1) if board.context.base_tokens or board.context.kept_tokens else np.array([-1])
    for n in range(1, turns + 1):
        for last in lasts:
            context = board.context_usd(turns - n, np.array([last]))[0]
            scores = _scores(made, n, quality[None], (law + context[:, None])[None], money[:, None], mode)  # (B, N, K)
            made.value[n, last] = scores.max(axis=-1).mean(axis=-1)
        if len(lasts) == 1:
            made.value[n, :] = made.value[n, -1]
    return made


def planned(made: Plan, mode: Mode, quality_of: Callable[[Turn], F64]) -> Rule:
    """Decide by the plan; `quality_of` says what is known of this turn's quality, (N, K)."""

    def rule(turn: Turn) -> I64:
        chosen = np.empty(len(turn.at), np.int64)
        left = np.maximum(np.round(turn.turns_left), 1).astype(int)
        quality = quality_of(turn)
        for n in np.unique(left):
            rows = np.flatnonzero(left == n)
            scores = _scores(made, int(n), quality[rows], turn.cost_quantiles_usd[rows], turn.remaining_usd[rows], mode)
            # Where no answer is worth anything, the cheapest is.
            scores = scores - 1e-9 * turn.mean_usd[rows] / turn.mean_usd[rows].max()
            chosen[rows] = np.argmax(np.where(turn.mask[rows], scores, -np.inf), axis=1)
        return chosen

    return rule


def known_quality(turn: Turn) -> F64:
    """What each model's answer to this turn would have been graded: nobody knows it beforehand."""
    return np.asarray(turn.board.quality[turn.at, turn.index])


def knapsack(board: SessionBatch, budget_usd: F64) -> Played:
    """The best that could have been done with each session's money, every answer and bill known: (S,) budgets.

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
            best[at] = after[at]  # unanswered: the money stays, and so does the cache
            bill = board.cost_usd[:, j] + board.context_usd(j, np.full(s, last))
            coins = np.floor(bill / coin + 1e-9).astype(np.int64)
            for a in range(k):
                rest = left - coins[:, a, None]
                value = np.take_along_axis(after[a if cached else 0], np.maximum(rest, 0), axis=1)
                value = np.where((rest >= 0) & valid[:, j, None], value + board.quality[:, j, a, None], -np.inf)
                better = value > best[at] + 1e-12
                best[at] = np.where(better, value, best[at])
                picks[j, at] = np.where(better, a, picks[j, at])
    return _walked(board, picks, coin[:, 0], cached)


def _walked(board: SessionBatch, picks: NDArray[np.int8], coin_usd: F64, cached: bool) -> Played:
    """Follow the picks from the full budget."""
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


def _scores(made: Plan, turns_left: int, quality: F64, law_usd: F64, money_usd: F64, mode: Mode) -> F64:
    """Expected value of every candidate with this money: the backup's right-hand side before the maximum.

    quality (..., K), law (..., K, L), money (...): (..., K), broadcast against one another.
    """
    money = money_usd[..., None]
    total = np.zeros(np.broadcast_shapes(quality.shape, money.shape))
    for level, mass in enumerate(COST_MASSES):
        rest = money - law_usd[..., level]
        worth = quality + made.worth(turns_left - 1, np.maximum(rest, 0.0))
        total += mass * np.where(rest >= 0.0, worth, 0.0)
    if mode == "degrade":
        likely = law_usd[..., _Q98] <= money
        total = np.where(likely | ~likely.any(axis=-1, keepdims=True), total, -1.0)
    return total
