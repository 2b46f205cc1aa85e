"""Adapter that lets served policies decide in replay, on the gateway's observations.

Policies with a batched form (`policy.batch`) decide all sessions of a turn at once, others session by session.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy import batch
from policy.arrays import I64
from policy.features import SESSION_FEATURES, TEXT_SCALE
from policy.mdp import CandidateView, Observation, Policy, SessionView
from train.replay.blind import Blind
from train.replay.simulator import Rule, Turn
from train.replay.vectors import Vectors

CONTEXT_LIMIT_TOKENS = 128_000
SECONDS_BETWEEN_TURNS = 30.0
"""Less than the five minutes for which providers keep a prompt cache."""


def as_rule(
    policy: Policy, seen: Vectors, lambda_per_usd: float = 0.0, priors: NDArray[np.float64] | None = None
) -> Rule:
    """A rule for `simulator.play`; `priors` (K,) are quality priors (or training averages)."""
    asked = policy.policy if isinstance(policy, Blind) else policy

    def rule(turn: Turn) -> I64:
        if batch.has_batched_form(asked):
            shown = turn_batch(turn, seen, lambda_per_usd, priors)
            shown = shown if asked is policy else shown.without_cache()
            return batch.draw_rows(batch.probabilities(asked, shown), turn.uniform)
        return np.array(
            [
                policy.decide(observation(turn, n, seen, lambda_per_usd, priors), float(turn.uniform[n])).action
                for n in range(len(turn.at))
            ],
            np.int64,
        )

    return rule


def turn_batch(
    turn: Turn, seen: Vectors, lambda_per_usd: float = 0.0, priors: NDArray[np.float64] | None = None
) -> batch.Batch:
    """`observation` for all sessions of a turn, as one batch."""
    board, shape = turn.board, turn.mask.shape
    prompts = board.sessions.rows[turn.at, turn.index]
    tokens = np.floor(board.prompt_tokens[turn.at, turn.index]) + board.context.tokens(turn.index)
    state = np.column_stack([seen.text[prompts] * TEXT_SCALE, seen.stats[prompts], _session_columns(turn, tokens)])

    def each(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(values, shape)

    return batch.Batch(
        models=board.models,
        model=np.broadcast_to(np.arange(shape[1]), shape),
        state=state.astype(np.float32),
        prior=each(board.average if priors is None else priors),
        usd_in=each(board.usd_in_per_m),
        usd_cached=each(board.usd_in_per_m * board.context.cached_price),
        usd_out=each(board.usd_out_per_m),
        input_tokens=each(tokens[:, None]),
        warm_tokens=turn.warm_tokens(),
        cost_quantiles_usd=turn.cost_quantiles_usd.astype(np.float32),
        mask=turn.mask,
        able=np.ones(shape, np.bool_),
        available_usd=np.maximum(turn.remaining_usd, 0.0),
        turn=np.full(shape[0], turn.index),
        expected_turns=turn.declared,
        lambda_per_usd=np.full(shape[0], lambda_per_usd),
    )


def _session_columns(turn: Turn, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Session features as in `features.encode_state`, (N, 17), without failures and grades."""
    later = float(turn.index > 0)
    columns = {
        "turn": np.log1p(turn.index) / 3.0,
        "first_turn": 1.0 - later,
        "horizon_declared": turn.declared > 0,
        "declared_turns_left": np.log1p(np.maximum(turn.declared - turn.index, 0)) / 3.0,
        "log_tokens_so_far": np.log1p(np.floor(turn.tokens_so_far)) / 12.0,
        "log_input_tokens": np.log1p(tokens) / 12.0,
        "log_seconds_since_last": later * np.log1p(SECONDS_BETWEEN_TURNS) / 10.0,
        "cache_window_open": later,
        "log_candidates": np.log1p(turn.mask.shape[1]) / 3.0,
    }
    return np.column_stack([np.broadcast_to(columns.get(name, 0.0), len(turn.at)) for name in SESSION_FEATURES])


def observation(
    turn: Turn,
    n: int,
    seen: Vectors,
    lambda_per_usd: float = 0.0,
    priors: NDArray[np.float64] | None = None,
) -> Observation:
    """The gateway's observation for the n-th session of a turn."""
    board = turn.board
    prompt = int(board.sessions.rows[turn.at[n], turn.index])
    return Observation(
        text=seen.text[prompt],
        text_stats=seen.stats[prompt],
        session=_session(turn, n),
        candidates=_candidates(turn, n, board.average if priors is None else priors),
        lambda_per_usd=lambda_per_usd,
    )


def _session(turn: Turn, n: int) -> SessionView:
    board, last, remaining = turn.board, int(turn.last[n]), float(turn.remaining_usd[n])
    return SessionView(
        turn=turn.index,
        expected_turns=int(turn.declared[n]) or None,
        budget_usd=float(turn.budget_usd[n]),
        remaining_usd=remaining,
        tenant_remaining_usd=remaining,
        spent_usd=float(turn.budget_usd[n]) - remaining,
        tokens_so_far=int(turn.tokens_so_far[n]),
        failures=0,
        regenerations=0,
        tool_errors=0,
        last_quality=None,
        mean_quality=None,
        last_model=board.models[last] if last >= 0 else None,
        seconds_since_last=SECONDS_BETWEEN_TURNS if turn.index else None,
        tool_loop=False,
    )


def _candidates(turn: Turn, n: int, priors: NDArray[np.float64]) -> tuple[CandidateView, ...]:
    board, last = turn.board, int(turn.last[n])
    context, cached = board.context.tokens(turn.index), board.context.cached_price
    warm = board.context.warm_tokens(turn.index)
    prompt_tokens = int(board.prompt_tokens[turn.at[n], turn.index]) + context
    quantiles, means, offered = turn.cost_quantiles_usd[n].tolist(), turn.mean_usd[n].tolist(), turn.mask[n].tolist()
    views = []
    for k, name in enumerate(board.models):
        price_in, price_out = float(board.usd_in_per_m[k]), float(board.usd_out_per_m[k])
        warm_here = warm if k == last else 0
        prompt_usd = (prompt_tokens - warm_here * (1.0 - cached)) * price_in * 1e-6
        views.append(
            CandidateView(
                name=name,
                input_usd_per_mtok=price_in,
                cached_input_usd_per_mtok=price_in * cached,
                output_usd_per_mtok=price_out,
                quality_prior=float(priors[k]),
                context_limit_tokens=CONTEXT_LIMIT_TOKENS,
                input_tokens=prompt_tokens,
                warm_tokens=warm_here,
                output_tokens_mean=max(means[k] - prompt_usd, 0.0) / max(price_out * 1e-6, 1e-12),
                cost_quantiles_usd=tuple(quantiles[k]),
                cost_max_usd=quantiles[k][-1],
                served_last=k == last,
                failure_rate=0.0,
                latency_s=1.0,
                feasible=offered[k],
                why_not="" if offered[k] else "not affordable",
            )
        )
    return tuple(views)
