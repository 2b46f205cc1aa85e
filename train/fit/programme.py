"""Exact dynamic programme for many prices: quality, spend and starvation by the money left.

Backward induction over turns of the log, as in train/fit/value_table.py (whose steps it uses), for several pairs of
lambda and penalty, keeping the parts of the value separate:

    choose k to maximise   quality - lambda spend - penalty P(starved),
    then carry  quality_n(m) = E[fits] (quality_k answer_kl + quality_{n-1}(m - b)),
                spend_n(m)   = E[min(b, m)] + E[fits] spend_{n-1}(m - b),
                starved_n(m) = 1 - E[fits] (1 - starved_{n-1}(m - b)).

The value network is first trained on it and then compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.arrays import F32, F64
from policy.budgeting import CACHE_MIN_TOKENS
from policy.mdp import COST_MASSES
from train.config import PlanConfig
from train.fit.value_table import Samples, Setting, axes, step_of

QUALITY, SPEND, STARVED = range(3)


@dataclass(frozen=True)
class Programme:
    """Solution for P price pairs, C contexts, K models (or no warm cache), N turns, B budgets.

    Values are totals of n turns.
    """

    lambdas_per_usd: F64  # (P,)
    penalties: F64  # (P,)
    contexts_tokens: F64  # (C,)
    budgets_usd: F64  # (B,), from 0
    values: F32  # (P, C, K + 1, N + 1, B, 3)
    grown_tokens: float

    def worth(self) -> F64:
        """Return quality - lambda spend - penalty P(starved), (P, C, K + 1, N + 1, B)."""
        price, penalty = (x.reshape(-1, 1, 1, 1, 1) for x in (self.lambdas_per_usd, self.penalties))
        v = self.values.astype(np.float64)
        return v[..., QUALITY] - price * v[..., SPEND] - penalty * v[..., STARVED]


@dataclass(frozen=True)
class _Move:
    """One model's turn: `moved` (M * B, B) takes values to their expectation after the bill; the rest (M, B)."""

    moved: F32
    quality: F32
    paid_usd: F32
    lost: F32


def programme(samples: Samples, config: PlanConfig, prices: Sequence[tuple[float, float]]) -> Programme:
    """Solve for pairs of (lambda per USD, penalty) on the turns, contexts and money of `config`."""
    contexts = np.array(config.contexts_tokens)
    budgets = axes(samples, config)[1]
    lambdas, penalties = (np.array(column, np.float64) for column in zip(*prices, strict=True))
    k, n = len(samples.models), config.turns
    values = np.zeros((len(prices), len(contexts), k + 1, n + 1, len(budgets), 3), np.float32)
    moves = [_moves(samples, tokens, budgets) for tokens in contexts]
    for turns in range(1, n + 1):
        for c, (cold, warm) in enumerate(moves):
            following = _grown(values[:, :, :, turns - 1], contexts, c, samples.grown_tokens)
            values[:, c, :, turns] = _best(cold, warm, following, lambdas, penalties)
    return Programme(lambdas, penalties, contexts, budgets, values, samples.grown_tokens)


def _moves(samples: Samples, tokens: float, budgets: F64) -> tuple[list[_Move], list[_Move]]:
    """Turn of every model with `tokens` of conversation: (cold, warm)."""
    cold, warm = [], []
    for k in range(len(samples.models)):
        bills, answers = samples.bills_usd[:, k], samples.quality[:, k, None] * samples.answers[k]
        cold.append(_move(answers, bills + tokens * samples.input_usd[k], budgets))
        cached = tokens >= CACHE_MIN_TOKENS and samples.cached_usd[k] < samples.input_usd[k]
        warm.append(_move(answers, bills + tokens * samples.cached_usd[k], budgets) if cached else cold[k])
    return cold, warm


def _move(answers: F64, bills_usd: F64, budgets: F64) -> _Move:
    step = step_of(answers, bills_usd, budgets, np.zeros(1), Setting())
    paid = np.minimum(bills_usd[:, None, :], budgets[None, :, None]) @ COST_MASSES
    kept = np.where(bills_usd[:, None, :] <= budgets[None, :, None], COST_MASSES, 0.0).sum(-1)
    return _Move(step.moved, step.reward[0], paid.astype(np.float32), (1.0 - kept).astype(np.float32))


def _grown(values: F32, contexts: F64, c: int, grown_tokens: float) -> F32:
    """Values (P, C, K + 1, B, 3) with the conversation one turn longer than contexts[c]: (P, K + 1, B, 3)."""
    if c + 1 >= len(contexts):
        return np.asarray(values[:, c])
    share = np.float32(min(grown_tokens / float(contexts[c + 1] - contexts[c]), 1.0))
    return np.asarray((1 - share) * values[:, c] + share * values[:, c + 1], np.float32)


def _best(cold: list[_Move], warm: list[_Move], following: F32, lambdas: F64, penalties: F64) -> F32:
    """One step of the induction, (P, K + 1, B, 3); the last row is of a cold cache."""
    k, (p, _, b, _) = len(cold), following.shape
    on_cold = [_brought(move, following[:, j]) for j, move in enumerate(cold)]  # (P, M, B, 3)
    worth = np.stack([_worth(x, lambdas, penalties) for x in on_cold])  # (K, P, M, B)
    first = worth.argmax(axis=0)
    best = np.max(worth, axis=0)
    stacked = np.stack(on_cold)  # (K, P, M, B, 3)
    chosen = np.take_along_axis(stacked, first[None, ..., None], axis=0)[0]
    backed = np.empty((p, k + 1, b, 3), np.float32)
    backed[:, k] = chosen.mean(axis=1)
    for j in range(k):
        if warm[j] is cold[j]:
            backed[:, j] = backed[:, k]
            continue
        here = _brought(warm[j], following[:, j])
        # A warm cache makes no model worse: compare it with the best cold one, which may be the same model.
        wins = _worth(here, lambdas, penalties) >= best
        backed[:, j] = np.where(wins[..., None], here, chosen).mean(axis=1)
    return backed


def _brought(move: _Move, following: F32) -> F32:
    """One model's value at every sample and sum of money, now and later: (P, B, 3) -> (P, M, B, 3)."""
    p, b, _ = following.shape
    m = len(move.quality)
    later = (move.moved @ following.transpose(1, 0, 2).reshape(b, p * 3)).reshape(m, b, p, 3).transpose(2, 0, 1, 3)
    now = np.stack([move.quality, move.paid_usd, move.lost], -1)
    return np.asarray(later + now[None], np.float32)


def _worth(brought: F32, lambdas: F64, penalties: F64) -> F32:
    price, penalty = (x.astype(np.float32).reshape(-1, 1, 1) for x in (lambdas, penalties))
    return np.asarray(brought[..., QUALITY] - price * brought[..., SPEND] - penalty * brought[..., STARVED])
