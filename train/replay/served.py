"""Adapter that lets served policies decide in replay, on the gateway's observations.

Policies with a batched form (`policy.batch`) decide all sessions of a turn at once, others session by session.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.routing.session import SessionMemory, view
from policy import batch
from policy.arrays import I64
from policy.features import encode_turns
from policy.mdp import NOT_AFFORDABLE, CandidateView, Observation, Policy, SessionView, effort_of
from train.replay.blind import Blind
from train.replay.simulator import Rule, Turn
from train.replay.vectors import Vectors

CONTEXT_LIMIT_TOKENS = 128_000
SECONDS_BETWEEN_TURNS = 30.0
"""Less than the five minutes for which providers keep a prompt cache."""


def as_rule(policy: Policy, seen: Vectors, lambda_per_usd: float = 0.0) -> Rule:
    """A rule for `simulator.play`; the models' averages are its quality priors."""
    asked = policy.policy if isinstance(policy, Blind) else policy

    def rule(turn: Turn) -> I64:
        if batch.has_batched_form(asked):
            shown = turn_batch(turn, seen, lambda_per_usd)
            if isinstance(policy, Blind):
                shown = shown.without_cache()
            return batch.draw_rows(batch.probabilities(asked, shown), turn.uniform)
        return np.array(
            [
                policy.decide(observation(turn, n, seen, lambda_per_usd), float(turn.uniform[n])).action
                for n in range(len(turn.at))
            ],
            np.int64,
        )

    return rule


def turn_batch(turn: Turn, seen: Vectors, lambda_per_usd: float = 0.0) -> batch.Batch:
    """The observations of all sessions at a turn, as one batch."""
    board, shape = turn.board, turn.mask.shape
    prompts = board.sessions.rows[turn.at, turn.index]
    tokens = np.floor(board.prompt_tokens[turn.at, turn.index]) + board.context.tokens(turn.index)
    state = encode_turns(
        seen.text[prompts],
        seen.stats[prompts],
        {
            "turn": turn.index,
            "expected_turns": turn.declared,
            "tokens_so_far": np.floor(turn.tokens_so_far),
            "input_tokens": tokens,
            "seconds_since_last": SECONDS_BETWEEN_TURNS if turn.index else -1.0,
            "candidates": shape[1],
        },
    )

    def each(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(values, shape)

    return batch.Batch(
        models=board.models,
        model=np.broadcast_to(np.arange(shape[1]), shape),
        state=state,
        prior=each(board.average),
        usd_in=each(board.usd_in_per_m * board.context.write_price),
        usd_cached=each(board.usd_in_per_m * board.context.cached_price),
        usd_out=each(board.usd_out_per_m),
        input_tokens=each(tokens[:, None]),
        warm_tokens=turn.warm_tokens(),
        served_last=board.served_last(turn.last),
        cost_quantiles_usd=turn.cost_quantiles_usd.astype(np.float32),
        mask=turn.mask,
        able=np.ones(shape, np.bool_),
        available_usd=np.maximum(turn.remaining_usd, 0.0),
        turn=np.full(shape[0], turn.index),
        expected_turns=turn.declared,
        lambda_per_usd=np.full(shape[0], lambda_per_usd),
        route=seen.route[prompts],
    )


def observation(
    turn: Turn,
    n: int,
    seen: Vectors,
    lambda_per_usd: float = 0.0,
) -> Observation:
    """The gateway's observation for the n-th session of a turn."""
    board = turn.board
    prompt = int(board.sessions.rows[turn.at[n], turn.index])
    return Observation(
        text=seen.text[prompt],
        text_stats=seen.stats[prompt],
        session=_session(turn, n),
        candidates=_candidates(turn, n),
        lambda_per_usd=lambda_per_usd,
        route=int(seen.route[prompt]),
    )


def _session(turn: Turn, n: int) -> SessionView:
    """The gateway's view of the session, from the memory that it would have."""
    board, last, remaining = turn.board, int(turn.last[n]), float(turn.remaining_usd[n])
    memory = SessionMemory(
        last_model=board.models[last] if last >= 0 else None,
        last_at_ms=0 if turn.index else None,
        tokens_so_far=int(turn.tokens_so_far[n]),
    )
    return view(
        memory,
        turn=turn.index,
        expected_turns=int(turn.declared[n]) or None,
        budget_usd=float(turn.budget_usd[n]),
        remaining_usd=remaining,
        tenant_remaining_usd=remaining,
        spent_usd=float(turn.budget_usd[n]) - remaining,
        at_ms=round(SECONDS_BETWEEN_TURNS * 1000),
    )


def _candidates(turn: Turn, n: int) -> tuple[CandidateView, ...]:
    board, last = turn.board, turn.board.served_last(turn.last[n : n + 1])[0].tolist()
    context, cached = board.context.tokens(turn.index), board.context.cached_price
    warm = board.context.warm_tokens(turn.index)
    prompt_tokens = int(board.prompt_tokens[turn.at[n], turn.index]) + context
    output_tokens = board.output_tokens[turn.at[n], turn.index].tolist()
    quantiles, offered = turn.cost_quantiles_usd[n].tolist(), turn.mask[n].tolist()
    views = []
    for k, name in enumerate(board.models):
        price_in = float(board.usd_in_per_m[k])
        views.append(
            CandidateView(
                name=name,
                effort=effort_of(name),
                input_usd_per_mtok=price_in * board.context.write_price,
                cached_input_usd_per_mtok=price_in * cached,
                output_usd_per_mtok=float(board.usd_out_per_m[k]),
                quality_prior=float(board.average[k]),
                context_limit_tokens=CONTEXT_LIMIT_TOKENS,
                input_tokens=prompt_tokens,
                warm_tokens=warm if last[k] else 0,
                output_tokens_mean=output_tokens[k],
                cost_quantiles_usd=tuple(quantiles[k]),
                cost_max_usd=quantiles[k][-1],
                served_last=last[k],
                failure_rate=0.0,
                latency_s=0.0,
                feasible=offered[k],
                why_not="" if offered[k] else NOT_AFFORDABLE,
            )
        )
    return tuple(views)
