"""Fit of the planner's value table: backward induction over turns of the log.

Hindsight budget relabeling in full (policy/valuetable.py). What a user says next does not depend on the budget, and
budget, prompt cache and length of the conversation follow by bookkeeping. So every recorded turn is a sample of a later
turn under *any* budget, any context and any warm model, and the value of n turns follows from that of n - 1 without a
gradient:

    V_n(m, last) = mean over turns of
                   max_k sum_l mass_l ([w <= m] (quality_k answer_kl + V_{n-1}(m - w, k)) - [w > m] penalty)
                         - lambda E[min(b, m)],     b the l-th quantile of k's bill, on a warm cache if k is last,
    w the same with its tail stretched (policy/valuetable.py), and answer_kl the quality of an answer with such a bill,
    relative to the model's mean (train/fit/answers.py).

Qualities are out-of-fold grades, shrunk, so that taking their maximum is not biased upwards. Later turns are assumed to
be like those of the log, whatever the session has shown so far: conditioning on a composed session's history was
measured to gain .0 to .15 points (docs/policy-design.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.arrays import F32, F64
from policy.batch import context_tokens_of
from policy.budgeting import CACHE_MIN_TOKENS
from policy.catalogue_statistics import GROWN_TOKENS
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.valuetable import ValueTable, cautious_usd, context_tokens
from train.config import PlanConfig
from train.evaluate.logged_turns import recorded_batch, recorded_observation
from train.fit.answers import answer_shares
from train.log.episodes import Episodes

UNKNOWN_USD = 1e12
"""The bill of a model that a turn did not offer: beyond any budget."""
GROWTH_TURNS = 4_000
"""Pairs of neighbouring turns from which the growth of conversations is measured."""


@dataclass(frozen=True)
class Setting:
    """Trade-off of the planner between quality and starvation (`policy.planned.Planner`)."""

    starved_penalty: float = 0.0
    caution: float = 1.0


@dataclass(frozen=True)
class Samples:
    """Sampled turns: `quality` (M, K) and `bills_usd` (M, K, L), without conversation.

    `input_usd`, `cached_usd` (K,) are USD per token of conversation, cold and warm; `grown_tokens` is what one turn
    adds to it.
    """

    models: tuple[str, ...]
    quality: F64
    bills_usd: F64
    input_usd: F64
    cached_usd: F64
    list_usd: F64
    answers: F64  # (K + 1, L)
    grown_tokens: float


def settings_of(config: PlanConfig) -> list[Setting]:
    """Settings to try, from the boldest to the most careful."""
    return [
        *(Setting(penalty) for penalty in config.starved_penalties),
        *(Setting(penalty, config.caution) for penalty in config.cautious_penalties),
    ]


def draw_samples(episodes: Episodes, grades: F64, config: PlanConfig) -> Samples:
    """Draw `config.samples` turns, evenly spaced in the log."""
    where = np.argwhere(episodes.valid)
    chosen = where[np.linspace(0, len(where) - 1, min(config.samples, len(where))).round().astype(np.int64)]
    m, k = len(chosen), len(episodes.models)
    quality, bills = np.zeros((m, k)), np.full((m, k, len(COST_LEVELS)), UNKNOWN_USD)
    prices = np.zeros((3, k))
    for row, (i, j) in enumerate(chosen):
        seen = recorded_observation(episodes, i, j, remaining_usd=1.0, budget_usd=1.0)
        context = context_tokens(seen)
        for at, view in enumerate(seen.candidates):
            model = int(episodes.model[i, j, at])
            price_in, cached = view.input_usd_per_mtok * 1e-6, view.cached_input_usd_per_mtok * 1e-6
            read_usd = context * price_in - view.warm_tokens * (price_in - cached)
            prices[:, model] = price_in, cached, view.input_usd_per_mtok + view.output_usd_per_mtok
            if episodes.mask[i, j, at]:
                quality[row, model] = grades[i, j, at]
                bills[row, model] = np.maximum(np.array(view.cost_quantiles_usd) - read_usd, 0.0)
    return Samples(
        models=episodes.models,
        quality=quality,
        bills_usd=bills,
        input_usd=prices[0],
        cached_usd=prices[1],
        list_usd=np.maximum(prices[2], 1e-6),
        answers=answer_shares(episodes, grades),
        grown_tokens=conversation_growth(episodes),
    )


def conversation_growth(episodes: Episodes) -> float:
    """Mean tokens that a turn adds to the conversation.

    From at most GROWTH_TURNS pairs of neighbours in the log, which may be several turns apart: those between them were
    pinned, failed or a judge's. A default where no session has two. Turns that shorten the conversation count as 0.
    """
    pairs = np.argwhere(episodes.valid[:, 1:] & episodes.valid[:, :-1])
    if not len(pairs):
        return GROWN_TOKENS
    i, j = pairs[np.linspace(0, len(pairs) - 1, min(GROWTH_TURNS, len(pairs))).round().astype(np.int64)].T
    before, after = (recorded_batch(episodes, i, at, np.ones(len(i))) for at in (j, j + 1))
    grown = np.maximum(context_tokens_of(after) - context_tokens_of(before), 0.0)
    return float((grown / np.maximum(after.turn - before.turn, 1)).mean())


def tabulate(samples: Samples, config: PlanConfig, setting: Setting, cache_aware: bool = True) -> ValueTable:
    """Backward induction over `config.turns` turns on the grid of the table."""
    contexts = np.array(config.contexts_tokens)
    lambdas, budgets = axes(samples, config)
    k = len(samples.models)
    values = np.zeros((len(lambdas), len(contexts), k + 1, config.turns + 1, len(budgets)), np.float32)
    steps = [_context_steps(samples, tokens, budgets, lambdas, setting, cache_aware) for tokens in contexts]
    for n in range(1, config.turns + 1):
        for c, (cold, warm) in enumerate(steps):
            following = _after_growth(values[:, :, :, n - 1], contexts, c, samples.grown_tokens)  # (P, K + 1, B)
            values[:, c, :, n] = _backed_up(samples, cold, warm, following)
    return ValueTable(
        models=samples.models,
        list_usd=samples.list_usd.astype(np.float32),
        lambdas_per_usd=lambdas.astype(np.float32),
        contexts_tokens=contexts.astype(np.float32),
        budgets_usd=budgets.astype(np.float32),
        values=values,
        answers=samples.answers.astype(np.float32),
    )


def axes(samples: Samples, config: PlanConfig) -> tuple[F64, F64]:
    """Axes of lambdas (P,) and budgets (B,).

    Budgets run from half the cheapest bill to all turns on the most expensive model, context included.
    """
    offered = samples.bills_usd[..., -1] < UNKNOWN_USD
    typical = samples.bills_usd[..., COST_LEVELS.index(0.5)]
    tail = samples.bills_usd[..., COST_LEVELS.index(0.95)]
    longest_usd = max(config.contexts_tokens) * float(samples.input_usd.max())
    least = max(0.5 * float(typical[offered].min()), 1e-9)
    costliest = max(float(tail[:, k][offered[:, k]].mean()) for k in range(tail.shape[1]) if offered[:, k].any())
    most = max(config.turns * (costliest + longest_usd), 2.0 * least)
    budgets = np.concatenate([[0.0], np.geomspace(least, most, config.money_points - 1)])
    mean_usd = float((samples.bills_usd @ COST_MASSES)[offered].mean())
    return np.concatenate([[0.0], np.array(config.lambdas) / max(mean_usd, 1e-12)]), budgets


@dataclass(frozen=True)
class Step:
    """Turn of one model on the grid.

    `moved` (M * B, B) takes values to their expectation after the bill; `reward` (P, M, B) is the turn's own.
    """

    moved: F32
    reward: F32


def step_of(answers: F64, bills_usd: F64, budgets: F64, lambdas: F64, setting: Setting) -> Step:
    """Step from the quality at each bill and the bills, both (M, L).

    A bill that fits moves the budget between two points of the grid.
    """
    m, b = len(answers), len(budgets)
    weighed = cautious_usd(bills_usd, setting.caution)
    left = budgets[None, :, None] - weighed[:, None, :]  # (M, B, L)
    fits = left >= 0.0
    low = np.clip(np.searchsorted(budgets, left, side="right") - 1, 0, b - 2)
    share = np.clip((left - budgets[low]) / (budgets[low + 1] - budgets[low]), 0.0, 1.0)
    mass = np.where(fits, COST_MASSES, 0.0)
    cell = np.arange(m * b).reshape(m, b, 1) * b + low
    size = m * b * b
    moved = np.bincount(cell.ravel(), (mass * (1.0 - share)).ravel(), size)
    moved += np.bincount((cell + 1).ravel(), (mass * share).ravel(), size)
    paid = np.minimum(bills_usd[:, None, :], budgets[None, :, None]) @ COST_MASSES
    earned = (mass * answers[:, None, :]).sum(-1) - (1.0 - mass.sum(-1)) * setting.starved_penalty
    reward = earned[None] - lambdas[:, None, None] * paid[None]
    return Step(moved.reshape(m * b, b).astype(np.float32), reward.astype(np.float32))


def _context_steps(
    samples: Samples, tokens: float, budgets: F64, lambdas: F64, setting: Setting, cache_aware: bool
) -> tuple[list[Step], list[Step]]:
    """Steps of every model with `tokens` of conversation: (cold, warm)."""
    cached = cache_aware and tokens >= CACHE_MIN_TOKENS
    cold, warm = [], []
    for k in range(len(samples.models)):
        bills, answers = samples.bills_usd[:, k], samples.quality[:, k, None] * samples.answers[k]
        cold.append(step_of(answers, bills + tokens * samples.input_usd[k], budgets, lambdas, setting))
        warm.append(
            step_of(answers, bills + tokens * samples.cached_usd[k], budgets, lambdas, setting) if cached else cold[k]
        )
    return cold, warm


def _after_growth(values: F32, contexts: F64, c: int, grown_tokens: float) -> F32:
    """Values (P, C, K + 1, B) with the conversation one turn longer than contexts[c]: (P, K + 1, B)."""
    if c + 1 >= len(contexts):
        return np.asarray(values[:, c])
    share = min(grown_tokens / float(contexts[c + 1] - contexts[c]), 1.0)
    return np.asarray((1.0 - share) * values[:, c] + share * values[:, c + 1], np.float32)


def _backed_up(samples: Samples, cold: list[Step], warm: list[Step], following: F32) -> F32:
    """One step of the induction: (P, K + 1, B) -> (P, K + 1, B); the last row is of a cold cache."""
    k, (p, _, b) = len(cold), following.shape
    on_cold = np.stack([_worth(step, following[:, j]) for j, step in enumerate(cold)])  # (K, P, M, B)
    backed = np.empty((p, k + 1, b), np.float32)
    backed[:, k] = on_cold.max(axis=0).mean(axis=1)
    for j in range(k):
        if warm[j] is cold[j]:
            backed[:, j] = backed[:, k]
            continue
        others = np.delete(on_cold, j, axis=0)
        best = (
            np.maximum(others.max(axis=0), _worth(warm[j], following[:, j]))
            if k > 1
            else _worth(warm[j], following[:, j])
        )
        backed[:, j] = best.mean(axis=1)
    return backed


def _worth(step: Step, following: F32) -> F32:
    """Reward plus later value of one model at every sample and budget: (P, B) -> (P, M, B)."""
    p, b = following.shape
    later = (step.moved @ following.T).reshape(-1, b, p)
    return np.asarray(step.reward + later.transpose(2, 0, 1), np.float32)
