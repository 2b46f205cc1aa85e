"""Encoding of an observation as the learned models' arrays, versioned by FEATURE_VERSION.

`encode` leaves out the money left, the budget and lambda, because training resamples them (hindsight budget
relabeling). It knows no model by its name: a new model of the catalogue is one more row of prices, limits and cache
state. A new feature needs its fact in `policy.mdp` and `policy.facts`; `decode` reads logs that hold features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from policy.arrays import F32, Bools
from policy.facts import CANDIDATE_FACTS, SESSION_FACTS, Facts
from policy.mdp import COST_LEVELS, COST_MASSES, CandidateView, Observation, SessionView
from policy.text import STATS_DIM, TEXT_DIM

FEATURE_VERSION = 1
CACHE_WINDOW_S = 300.0
"""Providers drop a prompt cache after about five minutes without use."""

SESSION_FEATURES: tuple[str, ...] = (
    "turn",
    "first_turn",
    "horizon_declared",
    "declared_turns_left",
    "log_tokens_so_far",
    "log_input_tokens",
    "failures",
    "regenerations",
    "tool_errors",
    "last_quality_known",
    "last_quality",
    "mean_quality_known",
    "mean_quality",
    "log_seconds_since_last",
    "cache_window_open",
    "tool_loop",
    "log_candidates",
)
CANDIDATE_FEATURES: tuple[str, ...] = (
    "quality_prior",
    "prior_below_best",
    "log_input_price",
    "log_output_price",
    "cached_price_ratio",
    "log_context_limit",
    "context_used",
    "log_output_tokens",
    "warm_share",
    "served_last",
    "log_mean_cost",
    "cost_above_cheapest",
    "cost_below_costliest",
    "spread_q05",
    "spread_q50",
    "spread_q95",
    "spread_q99",
    "switch_price",
    "failure_rate",
    "log_latency",
)
STATE_DIM = TEXT_DIM + STATS_DIM + len(SESSION_FEATURES)
CANDIDATE_DIM = len(CANDIDATE_FEATURES)

TEXT_SCALE = np.float32(8.0)
"""A unit vector of 256 entries has entries of about 1/16; the network reads them at about 1/2."""

_TINY_USD = 1e-9
_SPREAD = tuple(COST_LEVELS.index(level) for level in (0.05, 0.5, 0.95, 0.99))
_LOG_1000 = math.log(1000.0)
_LEAST, _MOST = np.float32(-5.0), np.float32(5.0)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The arrays of one observation with K candidates.

    state (STATE_DIM,), candidates (K, CANDIDATE_DIM), cost_quantiles_usd (K, 15), mask (K,).
    """

    state: F32
    candidates: F32
    cost_quantiles_usd: F32
    mask: Bools


@dataclass(frozen=True, slots=True)
class Horizon:
    """Distribution of a session's remaining turns, used when the client declared none.

    `hazard[t]` is the probability that turn t, once reached, is the last; its last entry holds for all later turns.
    Learned from the log and stored in the checkpoint; the default is a geometric horizon of mean six.
    """

    hazard: tuple[float, ...] = (1.0 / 6.0,)
    _table: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        *before, last = self.hazard or (1.0,)  # an empty one is refused by the manifest
        left = 1.0 / max(last, 1e-3)
        values = [left]
        for end in reversed(before):
            left = 1.0 + (1.0 - end) * left
            values.append(left)
        object.__setattr__(self, "_table", tuple(np.array(values[::-1], np.float32).tolist()))

    def table(self) -> F32:
        """Expected turns left, this one included, at every turn of `hazard`; shape (len(hazard),)."""
        return np.array(self._table, np.float32)

    def turns_left(self, turn: int, expected_turns: int | None) -> float:
        """Expected turns left, this one included.

        A declared horizon is used until it is passed; after that, two turns at most are expected.
        """
        if expected_turns is not None and turn < expected_turns:
            return float(expected_turns - turn)
        undeclared = self._table[min(turn, len(self._table) - 1)]
        return min(undeclared, 2.0) if expected_turns is not None else undeclared


DEFAULT_HORIZON = Horizon()


def encode(observation: Observation) -> Encoded:
    """Encode what does not depend on money. Raises ValueError on wrong shapes or infinities."""
    quantiles = np.array([c.cost_quantiles_usd for c in observation.candidates], np.float32)
    if quantiles.ndim != 2 or quantiles.shape[1] != len(COST_LEVELS):
        raise ValueError(f"expected cost quantiles of shape (candidates, {len(COST_LEVELS)}), got {quantiles.shape}")
    state = encode_state(observation)
    candidates = _candidate_rows(observation)
    if not (np.isfinite(candidates).all() and np.isfinite(quantiles).all()):
        raise ValueError("an observation must be finite")
    if (quantiles < 0.0).any():
        raise ValueError("a cost must not be negative")
    return Encoded(state, candidates, quantiles, observation.mask)


def encode_state(observation: Observation) -> F32:
    """Encode text, its statistics and the session, (STATE_DIM,). Raises like `encode`."""
    input_tokens = max((c.input_tokens for c in observation.candidates), default=0)
    return encode_turn(observation, input_tokens, len(observation.candidates))


def encode_turn(observation: Observation, input_tokens: int, candidates: int) -> F32:
    """Encode the state before the candidates are estimated. Raises like `encode`."""
    if observation.text.shape != (TEXT_DIM,) or observation.text_stats.shape != (STATS_DIM,):
        raise ValueError(
            f"expected text ({TEXT_DIM},) and text_stats ({STATS_DIM},), "
            f"got {observation.text.shape} and {observation.text_stats.shape}"
        )
    session = _session_row(observation.session, input_tokens, candidates)
    state = np.concatenate([observation.text * TEXT_SCALE, observation.text_stats, session]).astype(np.float32)
    if not np.isfinite(state).all():
        raise ValueError("an observation must be finite")
    return state


def encode_turns(text: F32, text_stats: F32, session: Mapping[str, ArrayLike]) -> F32:
    """Encode N turns at once, (N, STATE_DIM).

    Text (N, TEXT_DIM), stats (N, STATS_DIM). `session` holds the facts of SESSION_FACTS that differ from a first turn's
    without trouble, "expected_turns" (0: undeclared), "input_tokens" and "candidates", each (N,) or one number.
    `seconds_since_last` below 0 means none.
    """
    facts = {name: np.asarray(value, np.float64) for name, value in session.items()}
    none = np.zeros(())
    turn, since = facts.get("turn", none), facts.get("seconds_since_last", none - 1.0)
    expected, last, mean = (facts.get(name, none) for name in ("expected_turns", "last_quality", "mean_quality"))
    columns = {
        "turn": np.log1p(turn) / 3.0,
        "first_turn": turn == 0,
        "horizon_declared": expected > 0,
        "declared_turns_left": np.where(expected > 0, np.log1p(np.maximum(expected - turn, 0.0)) / 3.0, 0.0),
        "log_tokens_so_far": np.log1p(np.maximum(facts.get("tokens_so_far", none), 0.0)) / 12.0,
        "log_input_tokens": np.log1p(np.maximum(facts.get("input_tokens", none), 0.0)) / 12.0,
        "failures": np.log1p(facts.get("failures", none)),
        "regenerations": np.log1p(facts.get("regenerations", none)),
        "tool_errors": np.log1p(facts.get("tool_errors", none)),
        "last_quality_known": np.isfinite(last) & ("last_quality" in facts),
        "last_quality": np.nan_to_num(last),
        "mean_quality_known": np.isfinite(mean) & ("mean_quality" in facts),
        "mean_quality": np.nan_to_num(mean),
        "log_seconds_since_last": np.log1p(np.maximum(since, 0.0)) / 10.0,
        "cache_window_open": (since >= 0.0) & (since < CACHE_WINDOW_S),
        "tool_loop": facts.get("tool_loop", none),
        "log_candidates": np.log1p(facts.get("candidates", none)) / 3.0,
    }
    rows = [np.broadcast_to(columns[name], len(text)) for name in SESSION_FEATURES]
    return np.column_stack([text * TEXT_SCALE, text_stats, *rows]).astype(np.float32)


def decode(state: F32, candidates: F32) -> Facts:
    """Invert `encode` up to rounding: (..., STATE_DIM) and (..., K, CANDIDATE_DIM).

    Leading axes are kept. What `encode` clips comes back clipped; every candidate gets the longest prompt of them all.
    """
    session = dict(
        zip(SESSION_FEATURES, np.moveaxis(state[..., TEXT_DIM + STATS_DIM :], -1, 0).astype(np.float64), strict=True)
    )
    row = dict(zip(CANDIDATE_FEATURES, np.moveaxis(candidates, -1, 0).astype(np.float64), strict=True))
    unseen = (session["log_seconds_since_last"] == 0.0) & (session["cache_window_open"] == 0.0)
    tokens = np.round(np.expm1(session["log_input_tokens"] * 12.0))[..., None] + np.zeros_like(row["warm_share"])
    input_usd = 10.0 ** (row["log_input_price"] * 3.0) - 1e-3
    session_facts = {
        "turn": np.round(np.expm1(session["turn"] * 3.0)),
        "tokens_so_far": np.round(np.expm1(session["log_tokens_so_far"] * 12.0)),
        "failures": np.round(np.expm1(session["failures"])),
        "regenerations": np.round(np.expm1(session["regenerations"])),
        "tool_errors": np.round(np.expm1(session["tool_errors"])),
        "last_quality": np.where(session["last_quality_known"] > 0.0, session["last_quality"], np.nan),
        "mean_quality": np.where(session["mean_quality_known"] > 0.0, session["mean_quality"], np.nan),
        "seconds_since_last": np.where(unseen, np.nan, np.expm1(session["log_seconds_since_last"] * 10.0)),
        "tool_loop": session["tool_loop"],
    }
    candidate_facts = {
        "input_usd_per_mtok": input_usd,
        "cached_input_usd_per_mtok": row["cached_price_ratio"] * input_usd,
        "output_usd_per_mtok": 10.0 ** (row["log_output_price"] * 3.0) - 1e-3,
        "quality_prior": row["quality_prior"],
        "context_limit_tokens": np.round(np.expm1(row["log_context_limit"] * 14.0)),
        "input_tokens": tokens,
        "warm_tokens": np.round(row["warm_share"] * np.maximum(tokens, 1.0)),
        "output_tokens_mean": np.expm1(row["log_output_tokens"] * 10.0),
        "served_last": row["served_last"],
        "failure_rate": row["failure_rate"],
        "latency_s": np.expm1(row["log_latency"] * 4.0),
    }
    return Facts(
        text=state[..., :TEXT_DIM] / TEXT_SCALE,
        text_stats=state[..., TEXT_DIM : TEXT_DIM + STATS_DIM],
        session=np.stack([session_facts[name] for name in SESSION_FACTS], axis=-1),
        candidates=np.stack([candidate_facts[name] for name in CANDIDATE_FACTS], axis=-1),
    )


def available_usd(session: SessionView) -> float:
    """Money this session may still spend: the least of its own and the tenant's."""
    return max(min(session.remaining_usd, session.tenant_remaining_usd), 0.0)


def paused_long(session: SessionView) -> bool:
    """Tell whether the session last paused for longer than providers keep a prompt cache."""
    return session.seconds_since_last is not None and session.seconds_since_last >= CACHE_WINDOW_S


def expected_cost_usd(cost_quantiles_usd: Any, xp: Any = np) -> Any:
    """Mean of a cost known by its quantiles at COST_LEVELS: (..., K, 15) -> (..., K)."""
    return xp.sum(cost_quantiles_usd * COST_MASSES, axis=-1)


def _session_row(s: SessionView, input_tokens: int, candidates: int) -> F32:
    declared = s.expected_turns is not None
    declared_left = max(s.expected_turns - s.turn, 0) if s.expected_turns is not None else 0
    since = s.seconds_since_last
    return np.array(
        [
            math.log1p(s.turn) / 3.0,
            float(s.turn == 0),
            float(declared),
            math.log1p(declared_left) / 3.0,
            math.log1p(max(s.tokens_so_far, 0)) / 12.0,
            math.log1p(max(input_tokens, 0)) / 12.0,
            math.log1p(max(s.failures, 0)),
            math.log1p(max(s.regenerations, 0)),
            math.log1p(max(s.tool_errors, 0)),
            float(s.last_quality is not None),
            s.last_quality if s.last_quality is not None else 0.0,
            float(s.mean_quality is not None),
            s.mean_quality if s.mean_quality is not None else 0.0,
            math.log1p(max(since, 0.0)) / 10.0 if since is not None else 0.0,
            float(since is not None and since < CACHE_WINDOW_S),
            float(s.tool_loop),
            math.log1p(candidates) / 3.0,
        ],
        np.float32,
    )


def _candidate_rows(observation: Observation) -> F32:
    """(K, CANDIDATE_DIM). Prices enter as log10 USD per million tokens, costs relative to the catalogue's range."""
    candidates = observation.candidates
    means = [max(mean, _TINY_USD) for mean in observation.means_usd]
    log_means = [math.log(mean) for mean in means]
    cheapest, costliest = min(log_means, default=0.0), max(log_means, default=0.0)
    best = max((c.quality_prior for c in candidates), default=0.0)
    rows = [
        _candidate_row(c, mean, log_mean, max(best, 0.0), cheapest, costliest)
        for c, mean, log_mean in zip(candidates, means, log_means, strict=True)
    ]
    return np.minimum(np.maximum(np.array(rows, np.float32).reshape(-1, CANDIDATE_DIM), _LEAST), _MOST)


def _candidate_row(
    c: CandidateView, mean: float, log_mean: float, best_prior: float, log_cheapest: float, log_costliest: float
) -> tuple[float, ...]:
    """One row in the order of CANDIDATE_FEATURES; plain numbers beat small arrays here."""
    tokens, warm = c.input_tokens, c.warm_tokens
    saved = max(c.input_usd_per_mtok - c.cached_input_usd_per_mtok, 0.0) * 1e-6
    spread = [
        min(max(math.log(max(c.cost_quantiles_usd[at], _TINY_USD)) - log_mean, -6.0), 6.0) / 3.0 for at in _SPREAD
    ]
    return (
        c.quality_prior,
        c.quality_prior - best_prior,
        math.log10(c.input_usd_per_mtok + 1e-3) / 3.0,
        math.log10(c.output_usd_per_mtok + 1e-3) / 3.0,
        c.cached_input_usd_per_mtok / max(c.input_usd_per_mtok, 1e-9),
        math.log1p(c.context_limit_tokens) / 14.0,
        min(tokens / max(c.context_limit_tokens, 1.0), 2.0),
        math.log1p(c.output_tokens_mean) / 10.0,
        min(warm / max(tokens, 1.0), 1.0),
        c.served_last,
        log_mean / _LOG_1000 + 1.0,
        (log_mean - log_cheapest) / 5.0,
        (log_mean - log_costliest) / 5.0,
        *spread,
        min((tokens - warm) * saved / mean, 1.0),
        min(c.failure_rate, 1.0),
        math.log1p(max(c.latency_s, 0.0)) / 4.0,
    )
