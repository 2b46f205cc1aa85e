"""From scores to a decision: what a policy reads of an observation, the draw and its reason."""

from __future__ import annotations

import math
from itertools import compress

import numpy as np

from policy.arrays import F32, Bools, Floats
from policy.exploration import GREEDY, Exploration, draw, shares_of
from policy.features import Horizon
from policy.mdp import NOT_AFFORDABLE, ONLY_AFFORDABLE, Decision, Observation, PolicyFault


def make_decision(
    policy_id: str,
    observation: Observation,
    scores: Floats | list[float],
    mask: Bools,
    exploration: Exploration,
    uniform: float,
    *,
    quality: Floats | None = None,
    q_quality: Floats | None = None,
    q_cost_usd: Floats | None = None,
    info: dict[str, float] | None = None,
) -> Decision:
    """Draw from the scored candidates; returns the decision with its probability and reason."""
    ranked: list[float] = scores if isinstance(scores, list) else scores.astype(np.float64).tolist()
    allowed = list(compress(range(len(ranked)), mask.tolist()))
    explored = exploration if observation.explore else GREEDY
    probabilities = shares_of(ranked, allowed, explored, observation.wanted)
    action = draw(probabilities, uniform)
    best = max(allowed, key=ranked.__getitem__)

    def or_nan(values: Floats | None) -> F32:
        return np.full(mask.shape, np.nan, np.float32) if values is None else np.asarray(values, np.float32)

    return Decision(
        action=action,
        best=best,
        propensity=float(probabilities[action]),
        policy_id=policy_id,
        reason=_reason(observation, len(allowed)) if action == best else "explore",
        probabilities=probabilities,
        quality=or_nan(quality),
        q_quality=or_nan(q_quality),
        q_cost_usd=or_nan(q_cost_usd),
        info=info or {},
    )


def feasible(observation: Observation) -> Bools:
    """The guard's mask. Raises PolicyFault when it is empty; the gateway refuses such turns."""
    if not any(c.feasible for c in observation.candidates):
        raise PolicyFault("no candidate is feasible")
    return observation.mask


def turns_left(observation: Observation, horizon: Horizon) -> float:
    """Turns of this session still to answer, this one included."""
    return horizon.turns_left(observation.session.turn, observation.session.expected_turns)


def cost_quantiles_usd(observation: Observation) -> F32:
    """Cost quantiles, (K, 15). Raises PolicyFault on negative or infinite ones."""
    checked_means_usd(observation)
    return np.array([c.cost_quantiles_usd for c in observation.candidates], np.float32)


def checked_means_usd(observation: Observation) -> tuple[float, ...]:
    """Expected cost of every candidate. Raises PolicyFault on negative or infinite quantiles."""
    means = observation.means_usd
    if not all(map(math.isfinite, means)) or min([min(c.cost_quantiles_usd) for c in observation.candidates]) < 0.0:
        raise PolicyFault("a cost quantile is negative or not finite")
    return means


def mean_costs_usd(observation: Observation) -> F32:
    """Expected cost of this turn from all its quantiles, the tail included; (K,)."""
    return np.array(checked_means_usd(observation), np.float32)


def _reason(observation: Observation, allowed: int) -> str:
    """The reason code of the best candidate: why there was no choice, if there was none."""
    if allowed > 1 or len(observation.candidates) == 1:
        return "policy"
    if np.count_nonzero(observation.mask) > 1:
        return ONLY_AFFORDABLE
    money = any(c.why_not == NOT_AFFORDABLE for c in observation.candidates)
    return ONLY_AFFORDABLE if money else "capability"
