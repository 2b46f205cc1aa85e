"""Observations for the policy's tests: plausible by default, random by seed, every part replaceable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from policy import text
from policy.batch import Batch
from policy.features import available_usd, encode_state
from policy.mdp import COST_LEVELS, CandidateView, Observation, SessionView
from policy.network_policy import able_later
from policy.reload import synthetic_observation


def candidate(name: str = "small", cost_usd: float = 0.001, prior: float = 0.6, **changes: Any) -> CandidateView:
    """A model whose turn costs exactly `cost_usd` (every quantile), unless `cost_quantiles_usd` is given."""
    view = CandidateView(
        name=name,
        input_usd_per_mtok=1.0,
        cached_input_usd_per_mtok=0.1,
        output_usd_per_mtok=4.0,
        quality_prior=prior,
        context_limit_tokens=128_000,
        input_tokens=500,
        warm_tokens=0,
        output_tokens_mean=200.0,
        cost_quantiles_usd=(cost_usd,) * len(COST_LEVELS),
        cost_max_usd=cost_usd * 4,
        served_last=False,
        failure_rate=0.0,
        latency_s=0.8,
        feasible=True,
    )
    return replace(view, **changes)


def session(**changes: Any) -> SessionView:
    return replace(synthetic_observation(1).session, **({"expected_turns": 4} | changes))


def observation(
    candidates: Sequence[CandidateView], *, lambda_per_usd: float = 0.0, words: str = "hello", **session_changes: Any
) -> Observation:
    return Observation(
        text.embed(words), text.stats(words), session(**session_changes), tuple(candidates), lambda_per_usd
    )


def random_observation(rng: np.random.Generator, most_candidates: int = 12) -> Observation:
    """Any catalogue, any money, any mask with at least one feasible candidate."""
    count = int(rng.integers(1, most_candidates + 1))
    mask = rng.random(count) < 0.7
    mask[rng.integers(count)] = True
    candidates = []
    for k in range(count):
        price_in, discount = float(10 ** rng.uniform(-2, 1.5)), float(rng.choice([0.1, 0.5, 1.0]))
        tokens = int(10 ** rng.uniform(1, 4.5))
        scale = float(10 ** rng.uniform(-6, -1))
        quantiles = np.sort(scale * rng.lognormal(0.0, 1.0, len(COST_LEVELS)))
        candidates.append(
            candidate(
                name=f"model-{k}",
                prior=float(rng.random()),
                input_usd_per_mtok=price_in,
                cached_input_usd_per_mtok=price_in * discount,
                output_usd_per_mtok=price_in * 4,
                input_tokens=tokens,
                warm_tokens=int(tokens * max(rng.random() - 0.3, 0.0)),
                cost_quantiles_usd=tuple(float(q) for q in quantiles),
                served_last=bool(rng.random() < 0.3),
                feasible=bool(mask[k]),
            )
        )
    turn = int(rng.integers(0, 12))
    budget = float(10 ** rng.uniform(-4, 1))
    return observation(
        candidates,
        lambda_per_usd=float(rng.choice([0.0, 1.0, 30.0, 1e4])),
        turn=turn,
        words=f"task {turn} explain?",
        expected_turns=None if rng.random() < 0.5 else int(rng.integers(1, 16)),
        budget_usd=budget,
        remaining_usd=budget * float(rng.random()),
        tokens_so_far=int(rng.integers(0, 10_000)),
        failures=int(rng.integers(0, 3)),
        last_quality=None if rng.random() < 0.5 else float(rng.random()),
        seconds_since_last=[None, 0.0, 30.0, 900.0][int(rng.integers(4))],
    )


def permuted(view: Observation, order: Sequence[int]) -> Observation:
    return replace(view, candidates=tuple(view.candidates[k] for k in order))


def stack_observations(observations: Sequence[Observation]) -> Batch:
    """Observations as rows of one batch, padded to the most candidates."""
    names = sorted({c.name for seen in observations for c in seen.candidates})
    index = {name: k for k, name in enumerate(names)}
    most = max(len(seen.candidates) for seen in observations)
    number = np.zeros((9, len(observations), most))
    model = np.full((len(observations), most), -1, np.int64)
    quantiles = np.zeros((len(observations), most, len(COST_LEVELS)), np.float32)
    for n, seen in enumerate(observations):
        for k, c in enumerate(seen.candidates):
            model[n, k], quantiles[n, k] = index[c.name], c.cost_quantiles_usd
            number[:, n, k] = (
                c.quality_prior,
                c.input_usd_per_mtok,
                c.cached_input_usd_per_mtok,
                c.output_usd_per_mtok,
                c.input_tokens,
                c.warm_tokens,
                c.feasible,
                able_later(c),
                c.served_last,
            )
    prior, usd_in, usd_cached, usd_out, input_tokens, warm_tokens, feasible, able, served_last = number
    return Batch(
        models=tuple(names),
        model=model,
        state=np.stack([encode_state(seen) for seen in observations]),
        prior=prior,
        usd_in=usd_in,
        usd_cached=usd_cached,
        usd_out=usd_out,
        input_tokens=input_tokens,
        warm_tokens=warm_tokens,
        served_last=served_last > 0,
        cost_quantiles_usd=quantiles,
        mask=feasible > 0,
        able=able > 0,
        available_usd=np.array([available_usd(seen.session) for seen in observations]),
        turn=np.array([seen.session.turn for seen in observations], np.int64),
        expected_turns=np.array([seen.session.expected_turns or 0 for seen in observations], np.int64),
        lambda_per_usd=np.array([seen.lambda_per_usd for seen in observations]),
        route=np.array([seen.route for seen in observations], np.int64),
    )
