"""Simulator of composed sessions with a hard budget, a growing context and a prompt cache.

One loop serves every policy. At each turn a `Rule` sees all sessions that can still be answered at once, as a `Turn`;
`served.as_rule` makes one of any `policy.mdp.Policy`. The hard cap is the gateway's:

- A model is offered while the remaining money covers the prompt and the shortest answer that the gateway reserves for.
  A turn without an offered model is *unanswered*.
- Mode `degrade`: models whose likely bill (the 98 % quantile) exceeds the remaining money are not offered while another
  model's fits.
- A response that costs more than the remaining money is *cut*: quality 0, and the money is spent.

Shapes: S sessions, T turns, K candidates, L cost levels, N sessions that are still answered at a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from policy import budgeting
from policy.arrays import F64, I64, Bools
from policy.features import Horizon, expected_cost_usd
from policy.mdp import COST_LEVELS, caches_of
from train.replay.compose import Sessions
from train.replay.dataset import Graded
from train.replay.predict import Predictions

Mode = Literal["cut", "degrade"]

KEPT_TOKENS = 250
"""Tokens that every turn adds to a growing context."""
_Q98 = COST_LEVELS.index(0.98)


@dataclass(frozen=True)
class Context:
    """Size of the conversation: `base_tokens` before the first turn, `kept_tokens` per turn.

    Read at `cached_price` times the list price by the model that served the last turn (from a thousand tokens on); what
    is not cached is written to the cache, at `write_price` times the list price. `hit_share` is the share of a matching
    prefix that a provider really has in its cache; 0 where it forgets before the next turn.
    """

    base_tokens: int = 0
    kept_tokens: int = 0
    cached_price: float = 1.0
    write_price: float = 1.0
    hit_share: float = 1.0

    def tokens(self, turn: int) -> int:
        """Tokens of conversation before this turn."""
        return self.base_tokens + self.kept_tokens * turn

    def matching_tokens(self, turn: int) -> int:
        """Tokens of these that the last turn's model has seen; 0 if no cache holds so few."""
        before = self.tokens(turn - 1) if turn > 0 else 0
        return before if before >= budgeting.CACHE_MIN_TOKENS else 0

    def warm_tokens(self, turn: int) -> int:
        """Tokens of these in that model's cache."""
        return round(self.hit_share * self.matching_tokens(turn))


NO_CONTEXT = Context()


@dataclass(frozen=True)
class SessionBatch:
    """Sessions with their predictions and their outcomes (`quality` and `cost_usd`).

    Shape (S, T, K): `quality`, `cost_usd` (without context), `predicted`, `floor_usd` (least hold without context).
    `cost_quantiles_usd` (S, T, K, L) without context. `average` (K,), prices (K,) in USD per million tokens.
    """

    sessions: Sessions
    models: tuple[str, ...]
    quality: F64
    cost_usd: F64
    predicted: F64
    cost_quantiles_usd: F64
    floor_usd: F64
    output_tokens: F64  # (S, T, K) expected
    prompt_tokens: F64  # (S, T)
    average: F64
    usd_in_per_m: F64
    usd_out_per_m: F64
    context: Context = NO_CONTEXT

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of sessions, turns and candidates."""
        s, t, k = self.quality.shape
        return s, t, k

    def within(self, context: Context) -> SessionBatch:
        """The same sessions with this context."""
        return replace(self, context=context)

    @cached_property
    def caches(self) -> I64:
        """The prompt cache of each candidate, (K,): efforts of one model share it."""
        return np.array(caches_of(self.models) or range(len(self.models)), np.int64)

    def served_last(self, last: I64) -> Bools:
        """Candidates of the model that served before, (N, K), from `last` (N,), -1 for none."""
        return np.asarray((last[:, None] >= 0) & (self.caches[last][:, None] == self.caches))

    def context_usd(self, turn: int, last: I64) -> F64:
        """Cost of reading the context at this turn, (N, K), with `last` (N,) serving before."""
        tokens, warm = self.context.tokens(turn), self.context.warm_tokens(turn)
        cached = warm * self.served_last(last)
        billed = (tokens - cached) * self.context.write_price + cached * self.context.cached_price
        return np.asarray(billed * self.usd_in_per_m * 1e-6)


@dataclass(frozen=True)
class Turn:
    """Turn `index` of the sessions `at` (N,), before the choice.

    Costs include the context; `uniform` (N,) are the numbers to draw with. `turns_left` counts this turn. `last` is -1
    at the start.
    """

    board: SessionBatch
    index: int
    at: I64
    quality: F64  # (N, K) predicted
    cost_quantiles_usd: F64  # (N, K, L)
    mean_usd: F64  # (N, K)
    mask: Bools  # (N, K)
    remaining_usd: F64  # (N,)
    budget_usd: F64  # (N,)
    turns_left: F64  # (N,)
    declared: I64  # (N,)
    last: I64  # (N,)
    tokens_so_far: F64  # (N,)
    uniform: F64  # (N,)

    def warm_tokens(self) -> F64:
        """Context in each candidate's cache, (N, K)."""
        return np.asarray(self.board.served_last(self.last) * float(self.board.context.warm_tokens(self.index)))

    def take(self, rows: I64) -> Turn:
        """Some of the sessions."""
        arrays: dict[str, Any] = {f.name: getattr(self, f.name)[rows] for f in fields(self)[2:]}
        return replace(self, **arrays)


Rule = Callable[[Turn], I64]
"""Chooses the candidate for each session of a turn, (N,), never a masked one."""


@dataclass(frozen=True)
class Played:
    """Result of a rule, (S, T); `action` is -1 where no model answered."""

    valid: Bools
    action: I64
    quality: F64
    cost_usd: F64
    cut: Bools
    unanswered: Bools

    @property
    def starved(self) -> Bools:
        """Sessions with an unanswered or cut turn, (S,)."""
        return np.asarray((self.cut | self.unanswered).any(axis=1))

    @property
    def bankrupt(self) -> Bools:
        """Sessions whose money was gone before their last turn, (S,)."""
        later = np.cumsum(self.valid[:, ::-1], axis=1)[:, ::-1] > 1
        return np.asarray((self.unanswered | (self.cut & later)).any(axis=1))

    @property
    def switches(self) -> F64:
        """Number of model changes between answered turns, (S,)."""
        changes = np.zeros(len(self.action))
        last = np.full(len(self.action), -1)
        for t in range(self.action.shape[1]):
            now = self.action[:, t]
            changes += (now >= 0) & (last >= 0) & (now != last)
            last = np.where(now >= 0, now, last)
        return changes


def make_board(
    graded: Graded, predictions: Predictions, sessions: Sessions, context: Context = NO_CONTEXT
) -> SessionBatch:
    """Look up a source's prompts for these sessions; rows after a session's end hold prompt 0."""
    rows = np.maximum(sessions.rows, 0)
    return SessionBatch(
        sessions=sessions,
        models=graded.models,
        quality=graded.quality[rows],
        cost_usd=graded.cost_usd[rows],
        predicted=predictions.quality[rows],
        cost_quantiles_usd=predictions.cost_quantiles_usd[rows],
        floor_usd=predictions.bills.least_usd[rows],
        output_tokens=predictions.bills.output_tokens[rows],
        prompt_tokens=predictions.prompt_tokens[rows],
        average=predictions.average,
        usd_in_per_m=graded.usd_in_per_m,
        usd_out_per_m=graded.usd_out_per_m,
        context=context,
    )


def play(board: SessionBatch, rule: Rule, budget_usd: F64, mode: Mode, horizon: Horizon, seed: int) -> Played:
    """Play every session by one rule under its own budget, `budget_usd` (S,).

    All rules share the draws of a seed.
    """
    s, t, _ = board.shape
    valid = board.sessions.valid
    action = np.full((s, t), -1, np.int64)
    quality, cost_usd = np.zeros((s, t)), np.zeros((s, t))
    cut, unanswered = np.zeros((s, t), np.bool_), np.zeros((s, t), np.bool_)
    remaining, last, tokens = budget_usd.astype(np.float64).copy(), np.full(s, -1, np.int64), np.zeros(s)
    uniforms = np.random.default_rng(seed).random((t, s))
    left = turns_left(board.sessions, horizon)
    for j in range(t):
        alive = np.flatnonzero(valid[:, j])
        turn = _turn(board, j, alive, remaining, budget_usd, left, last, tokens, uniforms, mode)
        unanswered[alive, j] = True
        if len(turn.at):
            chosen = rule(turn)
            at = turn.at
            if not turn.mask[np.arange(len(at)), chosen].all():
                raise ValueError(f"turn {j}: a rule chose a model that is not offered")
            bill = board.cost_usd[at, j, chosen] + _chosen(board.context_usd(j, last[at]), chosen)
            over = bill > remaining[at] * (1 + 1e-12)
            unanswered[at, j], cut[at, j], action[at, j] = False, over, chosen
            quality[at, j] = np.where(over, 0.0, board.quality[at, j, chosen])
            cost_usd[at, j] = np.minimum(bill, remaining[at])
            remaining[at] = np.where(over, 0.0, remaining[at] - cost_usd[at, j])
            last[at] = chosen
        tokens[alive] += board.prompt_tokens[alive, j] + board.context.kept_tokens
    return Played(valid, action, quality, cost_usd, cut, unanswered)


def turns_left(sessions: Sessions, horizon: Horizon) -> F64:
    """Expected turns left, this one included, (S, T): declared, or by the learned hazard."""
    table = horizon.table().astype(np.float64)
    index = np.arange(sessions.rows.shape[1])
    undeclared = np.broadcast_to(table[np.minimum(index, len(table) - 1)], sessions.rows.shape)
    declared = sessions.declared[:, None]
    return np.where(index < declared, declared - index, undeclared)


def _turn(
    board: SessionBatch,
    j: int,
    alive: I64,
    remaining: F64,
    budget_usd: F64,
    left: F64,
    last: I64,
    tokens: F64,
    uniforms: F64,
    mode: Mode,
) -> Turn:
    context = board.context_usd(j, last[alive])
    mask = board.floor_usd[alive, j] + context <= remaining[alive, None]
    answered = mask.any(axis=1)
    at, context, mask = alive[answered], context[answered], mask[answered]
    quantiles = board.cost_quantiles_usd[at, j] + context[..., None]
    if mode == "degrade":
        likely = mask & (quantiles[..., _Q98] <= remaining[at, None])
        mask = np.where(likely.any(axis=1, keepdims=True), likely, mask)
    return Turn(
        board=board,
        index=j,
        at=at,
        quality=board.predicted[at, j],
        cost_quantiles_usd=quantiles,
        mean_usd=np.asarray(expected_cost_usd(quantiles), np.float64),
        mask=mask,
        remaining_usd=remaining[at],
        budget_usd=budget_usd[at],
        turns_left=left[at, j],
        declared=board.sessions.declared[at],
        last=last[at],
        tokens_so_far=tokens[at],
        uniform=uniforms[j, at],
    )


def _chosen(values: F64, chosen: I64) -> F64:
    return np.asarray(np.take_along_axis(values, chosen[:, None], axis=1)[:, 0])
