"""Batched form of the served planner, network and rules: many turns at once.

Replay and evaluation ask a policy hundreds of thousands of times; one by one most of that would be Python. Row n of a
`Batch` is one `Observation`, and `probabilities` of row n are those that `decide` would draw from (a test checks that
both agree). The gateway decides one turn at a time and does not use this.

Shapes: N turns, K candidates (padded where `model` is -1), L cost levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from policy import budgeting
from policy.arrays import F32, F64, I64, Bools, Floats
from policy.exploration import NEVER, Exploration
from policy.features import (
    DEFAULT_HORIZON,
    SESSION_FEATURES,
    Horizon,
    expected_cost_usd,
)
from policy.kernel import KernelQuality, with_newcomers
from policy.mdp import COST_MASSES, Policy, PolicyFault, caches_of
from policy.network_policy import NetworkPolicy, Shown
from policy.planned import TIE_BREAK, Planner
from policy.quality import PriorQuality, QualityModel, difficulties
from policy.rules import ReSolving, RuleInputs, Scored, ScoringRule
from policy.text import STATS_DIM, TEXT_DIM
from policy.valuetable import ValueTable, cautious_usd, turn_tokens

CHUNK = 256
"""Turns processed together: their data fits into a processor's cache."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Observations of N turns as arrays.

    `models` names what `model` indexes. `available_usd` is what the session may still spend; `expected_turns` is 0
    where the client declared no horizon. `state` is that of `features.encode_state`.
    """

    models: tuple[str, ...]
    model: I64  # (N, K)
    state: F32  # (N, STATE_DIM)
    prior: F64  # (N, K)
    usd_in: F64  # (N, K) per million tokens, as the next two
    usd_cached: F64  # (N, K)
    usd_out: F64  # (N, K)
    input_tokens: F64  # (N, K)
    warm_tokens: F64  # (N, K)
    served_last: Bools  # (N, K)
    cost_quantiles_usd: F32  # (N, K, L)
    mask: Bools  # (N, K)
    able: Bools  # (N, K) excluded by nothing but money, if at all
    available_usd: F64  # (N,)
    turn: I64  # (N,)
    expected_turns: I64  # (N,)
    lambda_per_usd: F64  # (N,)
    route: I64  # (N,)

    def __len__(self) -> int:
        return len(self.turn)

    def take(self, rows: slice | I64) -> Batch:
        """Some of the turns."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return Batch(**{name: value if name == "models" else value[rows] for name, value in values.items()})

    @property
    def paused_long(self) -> Bools:
        """Sessions that last paused for longer than a cache is kept, (N,): `features.paused_long`."""
        return np.asarray((self.column("log_seconds_since_last") > 0.0) & (self.column("cache_window_open") == 0.0))

    @property
    def stats(self) -> F32:
        """The text's surface features, (N, STATS_DIM)."""
        return self.state[:, TEXT_DIM : TEXT_DIM + STATS_DIM]

    def column(self, name: str) -> F32:
        """One of `features.SESSION_FEATURES`, (N,)."""
        return self.state[:, TEXT_DIM + STATS_DIM + SESSION_FEATURES.index(name)]

    def turns_left(self, horizon: Horizon) -> F64:
        """The expected turns left at every turn, (N,)."""
        table = horizon.table().astype(np.float64)
        undeclared = table[np.minimum(self.turn, len(table) - 1)]
        declared = self.expected_turns > 0
        past = np.where(declared, np.minimum(undeclared, 2.0), undeclared)
        return np.where(declared & (self.turn < self.expected_turns), self.expected_turns - self.turn, past)

    def without_cache(self) -> Batch:
        """The same turns without the prompt cache: everything at the list price."""
        saved = self.warm_tokens * (self.usd_in - self.usd_cached) * 1e-6
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        cold = (self.cost_quantiles_usd + saved[..., None]).astype(np.float32)
        return Batch(
            **values
            | {
                "cost_quantiles_usd": cold,
                "usd_cached": self.usd_in,
                "warm_tokens": np.zeros_like(self.warm_tokens),
                "served_last": np.zeros_like(self.served_last),
            }
        )


BatchedPolicy = Planner | ReSolving | NetworkPolicy | ScoringRule


def has_batched_form(policy: Policy) -> TypeGuard[BatchedPolicy]:
    """Tell whether `probabilities` supports this policy and its reward model."""
    quality = getattr(policy, "quality", None)  # some rules read none
    return isinstance(policy, BatchedPolicy) and isinstance(quality, PriorQuality | KernelQuality | None)


def probabilities(policy: BatchedPolicy, batch: Batch) -> F64:
    """The probabilities from which `policy.decide` would draw at every turn, (N, K).

    Raises PolicyFault where `decide` would at any of the turns.
    """
    if not batch.mask.any(axis=1).all():
        raise PolicyFault("no candidate is feasible")
    found = np.zeros(batch.mask.shape)
    for start in range(0, len(batch), CHUNK):
        rows = slice(start, start + CHUNK)
        found[rows] = action_probabilities(*score_batch(policy, batch.take(rows)), policy.exploration)
    return found


def score_batch(policy: BatchedPolicy, batch: Batch) -> Scored:
    """The scores and mask that `decide` computes before the draw."""
    if isinstance(policy, NetworkPolicy):
        return _score_network(policy, batch)
    if isinstance(policy, Planner):
        return _score_planner(policy, batch)
    return _score_resolving(policy, batch) if isinstance(policy, ReSolving) else _score_rule(policy, batch)


def action_probabilities(scores: F64, mask: Bools, exploration: Exploration) -> F64:
    """The probabilities of `exploration.action_probabilities` for every row, (N, K)."""
    if not np.isfinite(scores[mask]).all():
        raise PolicyFault("a score is not finite")
    shown = np.where(mask, scores, -np.inf)
    best = np.argmax(shown, axis=1)[:, None]
    found = np.zeros(shown.shape)
    if exploration.floor > 0.0:
        gap = np.maximum(np.take_along_axis(shown, best, axis=1) - shown - exploration.tolerance, 0.0)
        tried = np.exp(-gap / exploration.temperature)
        found = exploration.floor * tried / tried.sum(axis=1, keepdims=True)
    np.put_along_axis(found, best, np.take_along_axis(found, best, axis=1) + 1.0 - exploration.floor, axis=1)
    found[found < NEVER] = 0.0
    return np.asarray((found / found.sum(axis=1, keepdims=True)).astype(np.float32), np.float64)


def draw_rows(shares: F64, uniform: F64) -> I64:
    """The action of every row whose share of [0, 1) contains `uniform` (N,)."""
    cumulative = np.cumsum(shares, axis=1)
    action = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1)
    last = shares.shape[1] - 1 - np.argmax(shares[:, ::-1] > 0.0, axis=1)
    return np.asarray(np.minimum(action, last), np.int64)


def _score_network(policy: NetworkPolicy, batch: Batch) -> Scored:
    """`NetworkPolicy.decide` up to the draw."""
    there = batch.model >= 0
    found = policy.values(
        Shown(
            model_rows=_model_rows(policy.statistics.models, batch),
            prior=batch.prior,
            predicted=predict_quality(policy.quality, batch),
            average=average_quality(policy.quality, batch),
            usd_in=batch.usd_in,
            usd_cached=batch.usd_cached,
            usd_out=batch.usd_out,
            warm_tokens=batch.warm_tokens,
            bills_usd=batch.cost_quantiles_usd,
            able=(batch.able | batch.mask) & there,
            available_usd=batch.available_usd,
            later_turns=np.maximum(batch.turns_left(policy.horizon) - 1.0, 0.0),
            turn=batch.turn,
            context_tokens=context_tokens_of(batch),
            lambda_per_usd=batch.lambda_per_usd,
            state=batch.state,
        )
    )[1]
    costs = np.where(there, expected_cost_usd(batch.cost_quantiles_usd.astype(np.float64)), 0.0)
    costliest = np.maximum(costs.max(axis=1, keepdims=True), 1e-12)
    worth = found.worth(batch.lambda_per_usd[:, None], policy.starved_penalty)
    return Scored(np.asarray(worth - TIE_BREAK * costs / costliest, np.float64), batch.mask)


def _score_planner(policy: Planner, batch: Batch) -> Scored:
    """`Planner.decide` up to the draw."""
    quantiles = batch.cost_quantiles_usd.astype(np.float64)
    quality = predict_quality(policy.quality, batch)
    budget_left = batch.available_usd[:, None, None]
    later_turns = np.maximum(batch.turns_left(policy.horizon) - 1.0, 0.0)
    weighed = cautious_usd(quantiles, policy.caution)
    later = later_value(policy.table, batch, np.maximum(budget_left - weighed, 0.0), later_turns)
    price = batch.lambda_per_usd[:, None, None]
    answers = quality[..., None] * policy.table.answers[_model_rows(policy.table.models, batch)]
    worth = np.where(weighed <= budget_left, answers + later, -policy.starved_penalty)
    scores = (worth - price * np.minimum(quantiles, budget_left)) @ COST_MASSES.astype(np.float64)
    costs = np.where(batch.model >= 0, expected_cost_usd(quantiles), 0.0)
    costliest = np.maximum(costs.max(axis=1, keepdims=True), 1e-12)
    return Scored(scores - TIE_BREAK * costs / costliest, batch.mask)


def _score_rule(rule: ScoringRule, batch: Batch) -> Scored:
    """`score` of every turn."""
    costs = np.asarray(expected_cost_usd(batch.cost_quantiles_usd), np.float32)
    quality = getattr(rule, "quality", None)
    shown = np.zeros(batch.mask.shape, np.float32)
    return rule.score(
        RuleInputs(
            models=np.array([*batch.models, ""])[batch.model],
            quality=shown if quality is None else predict_quality(quality, batch),
            average=shown if quality is None else average_quality(quality, batch),
            mean_usd=costs,
            quantiles_usd=batch.cost_quantiles_usd,
            mask=batch.mask,
            remaining_usd=batch.available_usd,
            turns_left=batch.turns_left(getattr(rule, "horizon", DEFAULT_HORIZON)),
            lambda_per_usd=batch.lambda_per_usd,
        )
    )


def _score_resolving(policy: ReSolving, batch: Batch) -> Scored:
    """`ReSolving.decide` up to the draw."""
    quantiles, mask, left = batch.cost_quantiles_usd, batch.mask, batch.available_usd
    turns = batch.turns_left(policy.horizon)
    costs = np.asarray(expected_cost_usd(quantiles), np.float32)
    kept = budgeting.kept_tokens(batch.input_tokens, batch.warm_tokens, batch.served_last, batch.paused_long)
    cold, warm = (
        budgeting.cache_costs(costs, batch.warm_tokens, kept, batch.usd_in, batch.usd_cached)
        if policy.cache_aware
        else (costs, costs)
    )
    alike, allowed = _sharing_caches(batch), mask
    if policy.reserve > 0.0:
        allowed = budgeting.shield(quantiles, mask, left, turns, policy.reserve, (cold, warm), alike)
    found = budgeting.resolve(
        predict_quality(policy.quality, batch),
        average_quality(policy.quality, batch),
        costs,
        cold,
        warm,
        mask,
        policy.margin * left + budgeting.unspent_usd(quantiles, costs, (cold, warm), mask, turns),
        turns,
        batch.lambda_per_usd,
        policy.spread,
        alike,
    )
    return Scored(np.asarray(found.scores, np.float64), allowed)


def predict_quality(model: QualityModel, batch: Batch) -> F32:
    """Predict every turn, (N, K). Raises TypeError for a model without a batched form."""
    if isinstance(model, PriorQuality):
        exponent = model.exponent(difficulties(batch.stats, *_trouble(batch))).astype(np.float32)
        return np.asarray(average_quality(model, batch) ** exponent[:, None], np.float32)
    if isinstance(model, KernelQuality):
        columns = _model_rows(model.models, batch)
        deviations = np.take_along_axis(model.deviations(batch.state, batch.route), columns, axis=1)
        return np.asarray(np.clip(_levels(model, batch, columns) + deviations, 0.0, 1.0), np.float32)
    raise TypeError(f"no batched form of {type(model).__name__}")


def average_quality(model: QualityModel, batch: Batch) -> F32:
    """The average quality at every turn, (N, K). Raises like `predict_quality`."""
    if isinstance(model, PriorQuality):
        return np.asarray(np.clip(batch.prior, 1e-3, 1.0), np.float32)
    if isinstance(model, KernelQuality):
        return np.asarray(np.clip(_levels(model, batch, _model_rows(model.models, batch)), 0.0, 1.0), np.float32)
    raise TypeError(f"no batched form of {type(model).__name__}")


def later_value(table: ValueTable, batch: Batch, after_usd: F64, turns: F64) -> F64:
    """Values of later turns: (N, K, L) budgets and (N,) later turns -> (N, K, L)."""
    rows = _model_rows(table.models, batch)
    scale = _price_scale(table, batch, rows)
    most = table.values.shape[3] - 1
    repeated = np.maximum(turns / most, 1.0)
    p, p_share = _between(table.lambdas_per_usd, batch.lambda_per_usd * scale)
    c, c_share = _between(table.contexts_tokens, context_tokens_of(batch))
    t, t_share = _between(np.arange(most + 1.0), turns / repeated)

    def at_turn(prices: I64, contexts: I64) -> F32:
        low = table.values[prices[:, None], contexts[:, None], rows, t[:, None]]
        return _interpolate(
            low, lambda: table.values[prices[:, None], contexts[:, None], rows, t[:, None] + 1], t_share
        )

    def at_context(prices: I64) -> F32:
        return _interpolate(at_turn(prices, c), lambda: at_turn(prices, c + 1), c_share)

    plane = _interpolate(at_context(p), lambda: at_context(p + 1), p_share)  # (N, K, B)
    money = after_usd / (scale * repeated)[:, None, None]
    axis = table.budgets_usd.astype(np.float64)
    low = np.clip(np.searchsorted(axis, money, side="right") - 1, 0, len(axis) - 2)
    share = np.minimum((money - axis[low]) / (axis[low + 1] - axis[low]), 1.0)
    below, above = np.take_along_axis(plane, low, axis=-1), np.take_along_axis(plane, low + 1, axis=-1)
    return np.asarray(repeated[:, None, None] * ((1.0 - share) * below + share * above))


def _between(axis: NDArray[np.floating], at: F64) -> tuple[I64, F64]:
    """Index on a rising axis and share of the step to the next entry, (N,) each; clamped."""
    if len(axis) == 1:
        return np.zeros(at.shape, np.int64), np.zeros(at.shape)
    known = axis.astype(np.float64)
    low = np.clip(np.searchsorted(known, at, side="right") - 1, 0, len(known) - 2)
    return low, np.clip((at - known[low]) / (known[low + 1] - known[low]), 0.0, 1.0)


def _interpolate(low: F32, high: Callable[[], F32], share: F64) -> F32:
    """Linear interpolation of (N, ...) by (N,); looks up the upper values only where they count."""
    if not share.any():
        return low
    wide = share[:, None, None]
    return np.asarray((1.0 - wide).astype(np.float32) * low + wide.astype(np.float32) * high(), np.float32)


def _price_scale(table: ValueTable, batch: Batch, rows: I64) -> F64:
    """`ValueTable._price_scale` of every turn, (N,)."""
    now = batch.usd_in + batch.usd_out
    known = (batch.model >= 0) & (rows < len(table.models)) & (now > 0.0)
    before = np.append(table.list_usd.astype(np.float64), 1.0)[rows]
    logs = np.where(known, np.log(np.where(known, now, 1.0) / before), 0.0)
    return np.asarray(np.exp(logs.sum(axis=1) / np.maximum(known.sum(axis=1), 1)))


def context_tokens_of(batch: Batch) -> F64:
    """The tokens of conversation at every turn, (N,)."""
    return np.asarray(np.maximum(batch.input_tokens.max(axis=1) - turn_tokens(batch.stats), 0.0))


def _model_rows(models: tuple[str, ...], batch: Batch) -> I64:
    """Index of every candidate in `models`, (N, K); unknown models and padding get the index past the end."""
    known = {name: k for k, name in enumerate(models)}
    model_rows = np.array([*(known.get(name, len(models)) for name in batch.models), len(models)], np.int64)
    return model_rows[batch.model]


def _sharing_caches(batch: Batch) -> Floats | None:
    """`budgeting.sharing_caches` of every turn; padding has a cache of its own."""
    caches = caches_of(batch.models)
    return None if caches is None else budgeting.sharing_caches(np.array([*caches, -1], np.int64)[batch.model])


def _levels(model: KernelQuality, batch: Batch, columns: I64) -> F64:
    """`KernelQuality._levels` of every turn, (N, K)."""
    known = columns < len(model.models)
    means = np.append(model.means, np.float32(0.0)).astype(np.float64)[columns]
    return with_newcomers(means, batch.prior, known)


def _trouble(batch: Batch) -> tuple[F64, Bools]:
    """Failures of any kind, and whether the last grade was poor; (N,) each."""
    names = ("failures", "regenerations", "tool_errors")
    trouble = np.sum([np.round(np.expm1(batch.column(name).astype(np.float64))) for name in names], axis=0)
    poor = (batch.column("last_quality_known") > 0) & (batch.column("last_quality") < 0.5)
    return np.asarray(trouble), np.asarray(poor)
