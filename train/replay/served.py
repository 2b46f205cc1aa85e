"""Let the very object that the gateway serves decide in the replay's world, by the observation the gateway would build.

`as_rule` asks a `policy.mdp.Policy` session by session: some tenths of a millisecond each. A fault is answered as the
gateway answers it, by the default rule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy.mdp import CandidateView, Observation, Policy, SessionView
from train.replay.vectors import Vectors
from train.replay.world import Rule, Turn

I64 = NDArray[np.int64]

CONTEXT_LIMIT_TOKENS = 128_000
SECONDS_BETWEEN_TURNS = 30.0
"""Within the five minutes that a provider keeps a prompt cache."""


def as_rule(
    policy: Policy, seen: Vectors, lambda_per_usd: float = 0.0, priors: NDArray[np.float64] | None = None
) -> Rule:
    """A rule for `world.play`. `priors` (K,) are the catalogue's quality priors (default: the training averages)."""

    def rule(turn: Turn) -> I64:
        return np.array(
            [
                policy.decide(observation(turn, n, seen, lambda_per_usd, priors), float(turn.uniform[n])).action
                for n in range(len(turn.at))
            ],
            np.int64,
        )

    return rule


def observation(
    turn: Turn,
    n: int,
    seen: Vectors,
    lambda_per_usd: float = 0.0,
    priors: NDArray[np.float64] | None = None,
) -> Observation:
    """What the gateway would show for the n-th session of a turn."""
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
