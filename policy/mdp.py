"""The session as a Markov decision process: observations and decisions.

A *session* is an episode. At every *turn* the agent observes the text of the turn, the session so far, the money left
and one row per *candidate* model; it picks one. The transition of the money is bookkeeping (the bill is subtracted),
which is what makes hindsight budget relabeling exact (arXiv 2605.25424).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from operator import mul
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from policy.arrays import F32, Bools
from policy.text import HASHED_SPACE

COST_LEVELS: tuple[float, ...] = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    0.99,
    0.995,
)
"""Probability levels of every cost quantile: the tail matters more than the mean (replay: 15 levels beat 5)."""

NOT_AFFORDABLE = "not affordable"
"""`CandidateView.why_not` of a model that only money excludes: another budget, or a later turn, may have it."""
ONLY_AFFORDABLE = "only-affordable"
"""`Decision.reason` when money left no choice."""


def _masses() -> NDArray[np.float64]:
    """Probability mass of each of COST_LEVELS: from midpoint to midpoint, all of [0, 1]."""
    levels = np.array(COST_LEVELS)
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
    return np.diff(edges)


COST_MASSES: F32 = _masses().astype(np.float32)
COST_MASSES.setflags(write=False)
_MASSES: tuple[float, ...] = tuple(COST_MASSES.tolist())


def mean_cost_usd(quantiles_usd: Sequence[float]) -> float:
    """Mean of a cost known by its quantiles at COST_LEVELS."""
    mean: float = sum(map(mul, quantiles_usd, _MASSES))
    return mean


class CandidateView(Struct, frozen=True):
    """One model of the catalogue at this turn, or one of its efforts of reasoning.

    Efforts of one model share its prompt cache.
    `cost_quantiles_usd` are the quantiles at COST_LEVELS of what this turn would cost on this model, with the warm
    part of the prompt at the cached price; `warm_tokens` is that part. `input_tokens` is the whole prompt. The input
    price is that of a token which is not cached: where the client marks its prompt for the cache, of writing it.
    `feasible` is the guard's verdict (capability, context, price, health, affordable), `why_not` its reason.
    """

    name: str
    input_usd_per_mtok: float
    cached_input_usd_per_mtok: float
    output_usd_per_mtok: float
    quality_prior: float
    context_limit_tokens: int
    input_tokens: int
    warm_tokens: int
    output_tokens_mean: float
    cost_quantiles_usd: tuple[float, ...]
    cost_max_usd: float
    served_last: bool
    failure_rate: float
    latency_s: float
    feasible: bool
    why_not: str = ""
    effort: str = ""
    """The effort of reasoning, which ends `name` after a "#"; empty where none is chosen."""


EFFORTS = ("low", "medium", "high")
"""Efforts of reasoning that may be a candidate, `CandidateView.effort`."""


def effort_of(name: str) -> str:
    """The effort at the end of a candidate's name, where only the name is known; else empty."""
    _, mark, end = name.rpartition("#")
    return end if mark and end in EFFORTS else ""


def caches_of(names: Sequence[str], efforts: Sequence[str] | None = None) -> list[int] | None:
    """Number the candidates' prompt caches, which efforts of one model share.

    None where each candidate has its own cache. Without `efforts` they are read from the names, although a model's own
    name may contain "#".
    """
    ends = [effort_of(name) for name in names] if efforts is None else efforts
    models = [name.removesuffix(f"#{end}") if end else name for name, end in zip(names, ends, strict=True)]
    return [models.index(name) for name in models] if len(set(models)) < len(models) else None


class SessionView(Struct, frozen=True):
    """The session so far. `turn` counts from 0; `expected_turns` is the client's, if declared."""

    turn: int
    expected_turns: int | None
    budget_usd: float
    remaining_usd: float
    tenant_remaining_usd: float
    spent_usd: float
    tokens_so_far: int
    failures: int
    regenerations: int
    tool_errors: int
    last_quality: float | None
    mean_quality: float | None
    last_model: str | None
    seconds_since_last: float | None
    tool_loop: bool


class Observation(Struct, frozen=True, dict=True):
    """Everything a policy may use for one turn. `text` is the featurizer's vector, (text_dim,).

    `text_stats` are cheap surface features of the turn, (n_stats,). `lambda_per_usd` is the quality (0..1 scale) one
    dollar must buy at this turn. `explore` False: the best candidate is taken with probability one. `wanted` is what
    each candidate lacks of its quota of exploration, 0 to 1; empty: nothing. `text_space` is the number of the text's
    space (policy/text.py), `route` that of the client's system prompt and tools, 0 without any.
    """

    text: F32
    text_stats: F32
    session: SessionView
    candidates: tuple[CandidateView, ...]
    lambda_per_usd: float
    explore: bool = True
    wanted: tuple[float, ...] = ()
    text_space: int = HASHED_SPACE
    route: int = 0

    def with_candidates(self, candidates: tuple[CandidateView, ...], wanted: tuple[float, ...] = ()) -> Observation:
        """The same turn with other candidates."""
        return Observation(
            self.text,
            self.text_stats,
            self.session,
            candidates,
            self.lambda_per_usd,
            self.explore,
            wanted,
            self.text_space,
            self.route,
        )

    @cached_property
    def mask(self) -> Bools:
        """Feasible candidates, shape (candidates,); read-only."""
        feasible = np.array([c.feasible for c in self.candidates], np.bool_)
        feasible.setflags(write=False)
        return feasible

    @cached_property
    def means_usd(self) -> tuple[float, ...]:
        """Expected cost of this turn on each candidate, from all its quantiles, the tail included."""
        return tuple([mean_cost_usd(c.cost_quantiles_usd) for c in self.candidates])


class Decision(Struct, frozen=True):
    """A policy's choice. `propensity == probabilities[action]` is that of the executed draw.

    `best` is the candidate that would serve without exploration.
    `reason` is one of `policy`, `explore`, `only-affordable`, `policy-fault`, `policy-off`, `pinned`, `tool-loop`,
    `capability`, `fallback`, `shadow` (some are set by the gateway).
    Arrays have shape (candidates,); `q_quality`, `q_cost_usd` are NaN for a policy without values-to-go.
    """

    action: int
    best: int
    propensity: float
    policy_id: str
    reason: str
    probabilities: F32
    quality: F32
    q_quality: F32
    q_cost_usd: F32
    info: dict[str, float] = field(default_factory=dict)


class PolicyFault(Exception):
    """A policy cannot decide: no feasible candidate, an infinite value, an invalid checkpoint.

    The gateway uses the rule's choice in the same turn.
    """


class Policy(Protocol):
    """A routing policy. Pure: `uniform`, a number in [0, 1), is its only randomness.

    `decide` may raise any exception; the gateway then uses the rule's choice in the same turn.
    """

    @property
    def policy_id(self) -> str:
        """Identifier in the log and in the policies table."""

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose a feasible candidate."""


@runtime_checkable
class PolicyOfMany(Policy, Protocol):
    """A policy that decides several turns for little more than one."""

    def decide_together(self, turns: Sequence[tuple[Observation, float]]) -> list[Decision]:
        """Decide observations with equally many candidates, each with its uniform number."""
