"""An observation as the decision log keeps it: facts in their own units, not features.

Features change with the network's inputs, facts do not, so a log of any age can train: `unpack` reads the facts, and
`policy.features.encode` turns them into today's features. Names, masks, cost quantiles and the money at the time are
separate columns of the log; `observation_of` joins them to an observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from struct import Struct

import numpy as np

from policy.arrays import F32, F64
from policy.mdp import CandidateView, Observation, SessionView, effort_of
from policy.text import HASHED_SPACE, STATS_DIM, TEXT_DIM

LOG_VERSION = 3
"""The layout that `pack` writes. Version 1 held features (`policy.features.decode` reads them). Version 2 had no route
and no text space: it was always the hashed one."""

SESSION_FACTS: tuple[str, ...] = (
    "turn",
    "tokens_so_far",
    "failures",
    "regenerations",
    "tool_errors",
    "last_quality",
    "mean_quality",
    "seconds_since_last",
    "tool_loop",
)
"""Fields of SessionView in the order of the log; NaN where the field is None."""
CANDIDATE_FACTS: tuple[str, ...] = (
    "input_usd_per_mtok",
    "cached_input_usd_per_mtok",
    "output_usd_per_mtok",
    "quality_prior",
    "context_limit_tokens",
    "input_tokens",
    "warm_tokens",
    "output_tokens_mean",
    "served_last",
    "failure_rate",
    "latency_s",
)
"""Fields of CandidateView in the order of the log."""
_TEXT_BYTES = 4 * (TEXT_DIM + STATS_DIM)
_SESSION_BYTES = 8 * len(SESSION_FACTS)
_SPACE_AND_ROUTE_BYTES = 16
_CANDIDATE_BYTES = 8 * len(CANDIDATE_FACTS)
_SESSION = Struct(f"<{len(SESSION_FACTS) + 2}d")
"""SESSION_FACTS, the text space and the route."""
_CANDIDATE = Struct(f"<{len(CANDIDATE_FACTS)}d")
_candidate_facts = attrgetter(*CANDIDATE_FACTS)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one turn, or of many along the leading axes.

    text (..., TEXT_DIM), text_stats (..., STATS_DIM), session (..., 9), candidates (..., K, 11). `text_space` and
    `route` are those of Observation.
    """

    text: F32
    text_stats: F32
    session: F64
    candidates: F64
    text_space: int = HASHED_SPACE
    route: int = 0


@dataclass(frozen=True, slots=True)
class LoggedColumns:
    """Columns of a logged turn besides its facts; the sequences have one entry per candidate.

    `cost_quantiles_usd` has 15 levels each; `exclusions` holds "" for a feasible candidate, else the reason.
    """

    names: Sequence[str]
    cost_quantiles_usd: Sequence[tuple[float, ...]]
    exclusions: Sequence[str]
    budget_usd: float
    remaining_usd: float
    expected_turns: int | None
    lambda_per_usd: float


def pack(observation: Observation) -> tuple[bytes, bytes]:
    """Write the columns `features` and `candidate_features`, little-endian.

    Raises ValueError when the text vectors have another size.
    """
    if observation.text.shape != (TEXT_DIM,) or observation.text_stats.shape != (STATS_DIM,):
        raise ValueError(
            f"expected text ({TEXT_DIM},) and text_stats ({STATS_DIM},), "
            f"got {observation.text.shape} and {observation.text_stats.shape}"
        )
    s = observation.session
    session = _SESSION.pack(
        s.turn,
        s.tokens_so_far,
        s.failures,
        s.regenerations,
        s.tool_errors,
        math.nan if s.last_quality is None else s.last_quality,
        math.nan if s.mean_quality is None else s.mean_quality,
        math.nan if s.seconds_since_last is None else s.seconds_since_last,
        s.tool_loop,
        observation.text_space,
        observation.route,
    )
    candidates = b"".join([_CANDIDATE.pack(*_candidate_facts(c)) for c in observation.candidates])
    text = np.asarray(observation.text, "<f4").tobytes() + np.asarray(observation.text_stats, "<f4").tobytes()
    return text + session, candidates


def unpack(features: bytes, candidate_features: bytes) -> Facts:
    """Read the facts that `pack` wrote, in this version or in version 2.

    Raises ValueError for other lengths.
    """
    before = _TEXT_BYTES + _SESSION_BYTES
    if len(features) not in (before, before + _SPACE_AND_ROUTE_BYTES) or len(candidate_features) % _CANDIDATE_BYTES:
        raise ValueError(
            f"expected {before + _SPACE_AND_ROUTE_BYTES} bytes and a multiple of {_CANDIDATE_BYTES}, "
            f"got {len(features)} and {len(candidate_features)}"
        )
    session = np.frombuffer(features, "<f8", offset=_TEXT_BYTES)
    space, route = session[len(SESSION_FACTS) :].tolist() or (HASHED_SPACE, 0)
    vectors = np.frombuffer(features, "<f4", TEXT_DIM + STATS_DIM)
    return Facts(
        text=vectors[:TEXT_DIM],
        text_stats=vectors[TEXT_DIM:],
        session=session[: len(SESSION_FACTS)],
        candidates=np.frombuffer(candidate_features, "<f8").reshape(-1, len(CANDIDATE_FACTS)),
        text_space=int(space),
        route=int(route),
    )


def observation_of(facts: Facts, columns: LoggedColumns) -> Observation:
    """Rebuild the observation. Raises ValueError when the counts of candidates differ.

    Two fields are not logged: `cost_max_usd` is the highest quantile, and `tenant_remaining_usd` is
    `remaining_usd`, which the log keeps as the smaller of both.
    """
    session = dict(zip(SESSION_FACTS, facts.session.tolist(), strict=True))
    candidates = tuple(
        _candidate(row, name, quantiles, exclusion)
        for row, name, quantiles, exclusion in zip(
            facts.candidates.tolist(), columns.names, columns.cost_quantiles_usd, columns.exclusions, strict=True
        )
    )
    return Observation(
        text=facts.text,
        text_stats=facts.text_stats,
        session=SessionView(
            turn=int(session["turn"]),
            expected_turns=columns.expected_turns,
            budget_usd=columns.budget_usd,
            remaining_usd=columns.remaining_usd,
            tenant_remaining_usd=columns.remaining_usd,
            spent_usd=max(columns.budget_usd - columns.remaining_usd, 0.0),
            tokens_so_far=int(session["tokens_so_far"]),
            failures=int(session["failures"]),
            regenerations=int(session["regenerations"]),
            tool_errors=int(session["tool_errors"]),
            last_quality=_known(session["last_quality"]),
            mean_quality=_known(session["mean_quality"]),
            last_model=next((c.name for c in candidates if c.served_last), None),
            seconds_since_last=_known(session["seconds_since_last"]),
            tool_loop=session["tool_loop"] > 0,
        ),
        candidates=candidates,
        lambda_per_usd=columns.lambda_per_usd,
        text_space=facts.text_space,
        route=facts.route,
    )


def _candidate(row: list[float], name: str, quantiles: tuple[float, ...], exclusion: str) -> CandidateView:
    value = dict(zip(CANDIDATE_FACTS, row, strict=True))
    return CandidateView(
        name=name,
        effort=effort_of(name),
        input_usd_per_mtok=value["input_usd_per_mtok"],
        cached_input_usd_per_mtok=value["cached_input_usd_per_mtok"],
        output_usd_per_mtok=value["output_usd_per_mtok"],
        quality_prior=value["quality_prior"],
        context_limit_tokens=int(value["context_limit_tokens"]),
        input_tokens=int(value["input_tokens"]),
        warm_tokens=int(value["warm_tokens"]),
        output_tokens_mean=value["output_tokens_mean"],
        cost_quantiles_usd=quantiles,
        cost_max_usd=quantiles[-1],
        served_last=value["served_last"] > 0.5,
        failure_rate=value["failure_rate"],
        latency_s=value["latency_s"],
        feasible=not exclusion,
        why_not=exclusion,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
