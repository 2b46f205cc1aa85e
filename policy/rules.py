"""Policies that need no training: the default until a learned one is published; baselines.

Each rule scores the candidates; `make_decision` turns scores into a draw with its exact probability. The arithmetic is
in `budgeting`, where replay calls the same functions for many sessions at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from policy import budgeting
from policy import budgeting_scalar as scalar
from policy.arrays import F32, Bools, Floats
from policy.exploration import GREEDY, Exploration, action_probabilities, draw
from policy.features import DEFAULT_HORIZON, Horizon, available_usd
from policy.mdp import Decision, Observation, Policy, PolicyFault
from policy.quality import PriorQuality, QualityModel

LAMBDA_PRESETS: Mapping[str, float] = {"cheap": 100.0, "balanced": 5.0, "best": 0.0}
"""Quality per USD until a checkpoint brings calibrated values; `cheap` pays a cent only for the whole quality scale."""


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The candidate of least expected cost."""

    policy_id: str = "rule:cheapest"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the least expected cost."""
        mask = feasible(observation)
        scores = budgeting.cheapness(mean_costs_usd(observation), mask)
        return make_decision(self.policy_id, observation, scores, mask, self.exploration, uniform)


@dataclass(frozen=True, slots=True)
class Fixed:
    """One named model; the cheapest when it may not be chosen."""

    model: str
    policy_id: str = "rule:fixed"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the named model where it is feasible."""
        mask = feasible(observation)
        named = np.array([c.name == self.model for c in observation.candidates])
        scores = budgeting.cheapness(mean_costs_usd(observation), mask) + 2.0 * named
        return make_decision(self.policy_id, observation, scores, mask, self.exploration, uniform)


@dataclass(frozen=True, slots=True)
class Strongest:
    """The candidate of the best average quality while it is affordable; the cheaper of equals."""

    quality: QualityModel = field(default_factory=PriorQuality)
    policy_id: str = "rule:strongest"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best average quality."""
        mask = feasible(observation)
        quality = self.quality.average(observation)
        scores = quality + 1e-6 * budgeting.cheapness(mean_costs_usd(observation), mask)
        return make_decision(self.policy_id, observation, scores, mask, self.exploration, uniform, quality=quality)


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform draw of a feasible candidate: the ideal logging policy for off-policy evaluation."""

    policy_id: str = "rule:random"

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Draw uniformly."""
        mask = feasible(observation)
        everything = Exploration(floor=1.0, tolerance=0.0)
        return make_decision(self.policy_id, observation, np.zeros(mask.shape), mask, everything, uniform)


@dataclass(frozen=True, slots=True)
class Threshold:
    """RouteLLM (arXiv 2406.18665): strongest if expected to win by `threshold`, else cheapest."""

    threshold: float
    quality: QualityModel = field(default_factory=PriorQuality)
    policy_id: str = "rule:threshold"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the strongest or the cheapest by their predicted difference."""
        mask = feasible(observation)
        quality = self.quality.predict(observation)
        costs = mean_costs_usd(observation)
        weak = int(np.argmin(np.where(mask, costs, np.inf)))
        strong = int(np.argmax(np.where(mask, self.quality.average(observation), -np.inf)))
        chosen = strong if quality[strong] - quality[weak] >= self.threshold else weak
        scores = budgeting.cheapness(costs, mask)
        scores[chosen] += 2.0
        return make_decision(self.policy_id, observation, scores, mask, self.exploration, uniform, quality=quality)


@dataclass(frozen=True, slots=True)
class TunedLambda:
    """argmax quality - lambda * cost, at the higher of the rule's and the observation's lambda.

    Without one of its own (None) the observation's alone.
    """

    lambda_per_usd: float | None = None
    quality: QualityModel = field(default_factory=PriorQuality)
    reserve: float = 0.0
    horizon: Horizon = DEFAULT_HORIZON
    policy_id: str = "rule:tuned-lambda"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best worth among the shielded candidates."""
        mask = shield(observation, self.reserve, self.horizon)
        quality = self.quality.predict(observation)
        price = max(observation.lambda_per_usd, self.lambda_per_usd or 0.0)
        scores = budgeting.lagrangian_scores(quality, mean_costs_usd(observation), price)
        return make_decision(
            self.policy_id,
            observation,
            scores,
            mask,
            self.exploration,
            uniform,
            quality=quality,
            info={"lambda_per_usd": price},
        )


@dataclass(frozen=True, slots=True)
class Pacing:
    """The best candidate within `factor` times an even share of the remaining money.

    A dollar must buy the observation's lambda of quality.
    """

    factor: float = 1.0
    quality: QualityModel = field(default_factory=PriorQuality)
    reserve: float = 0.0
    horizon: Horizon = DEFAULT_HORIZON
    policy_id: str = "rule:pacing"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best candidate within the share."""
        mask = shield(observation, self.reserve, self.horizon)
        quality = self.quality.predict(observation)
        turns = turns_left(observation, self.horizon)
        scores = budgeting.pacing_scores(
            quality,
            mean_costs_usd(observation),
            mask,
            available_usd(observation.session),
            turns,
            self.factor,
            observation.lambda_per_usd,
        )
        return make_decision(
            self.policy_id,
            observation,
            scores,
            mask,
            self.exploration,
            uniform,
            quality=quality,
            info={"turns_left": turns},
        )


@dataclass(frozen=True, slots=True)
class ReSolving:
    """The default rule: re-solve the price of money each turn, prompt cache included.

    At that price this and the later turns cost what is left. `reserve` scales what the shield keeps for later turns,
    `spread` is how much tasks differ (see `budgeting.later_plan`), `margin` the share of the money to plan with. The
    observation's lambda is a floor: with money to spare, a dollar must still buy that much quality.
    """

    quality: QualityModel = field(default_factory=PriorQuality)
    reserve: float = 1.0
    spread: float = 0.1
    margin: float = 1.0
    cache_aware: bool = True
    horizon: Horizon = DEFAULT_HORIZON
    policy_id: str = "rule:resolving"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best score at the re-solved price among the shielded candidates."""
        costs = checked_means_usd(observation)
        quality = self.quality.predict(observation)
        turns = turns_left(observation, self.horizon)
        left_usd = available_usd(observation.session)
        allowed: list[bool] = feasible(observation).tolist()
        mask = allowed
        if self.reserve > 0.0:
            quantiles = [c.cost_quantiles_usd for c in observation.candidates]
            mask = scalar.shield(quantiles, costs, allowed, left_usd, turns, self.reserve)
        cached = [
            scalar.cache_costs(cost, c.input_tokens, c.warm_tokens, c.input_usd_per_mtok, c.cached_input_usd_per_mtok)
            if self.cache_aware
            else (cost, cost)
            for cost, c in zip(costs, observation.candidates, strict=True)
        ]
        session = scalar.Session(
            quality=self.quality.average(observation).tolist(),
            mean_usd=costs,
            cold_usd=[cold for cold, _ in cached],
            warm_usd=[warm for _, warm in cached],
            mask=allowed,
            later_turns=max(turns - 1.0, 0.0),
            spread=self.spread,
        )
        now: list[float] = quality.tolist()
        price, scores, later = scalar.resolve(session, now, self.margin * left_usd, observation.lambda_per_usd)
        return make_decision(
            self.policy_id,
            observation,
            np.array(scores),
            np.array(mask, np.bool_),
            self.exploration,
            uniform,
            quality=quality,
            q_quality=np.array(
                [q + v + price * usd for q, v, usd in zip(now, later.value, later.spend_usd, strict=True)]
            ),
            q_cost_usd=np.array([cost + usd for cost, usd in zip(costs, later.spend_usd, strict=True)]),
            info={"lambda_per_usd": price, "turns_left": turns},
        )


def builtin_rules(exploration: Exploration = GREEDY) -> dict[str, Policy]:
    """The rules that an operator may promote by id without a checkpoint."""
    rules: tuple[Policy, ...] = (
        ReSolving(exploration=exploration),
        Pacing(exploration=exploration),
        TunedLambda(exploration=exploration),
        Strongest(exploration=exploration),
        Cheapest(exploration=exploration),
        Random(),
    )
    return {rule.policy_id: rule for rule in rules}


def make_decision(
    policy_id: str,
    observation: Observation,
    scores: Floats,
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
    probabilities = action_probabilities(scores, mask, exploration if observation.explore else GREEDY)
    action = draw(probabilities, uniform)
    ranked: list[float] = np.asarray(scores, np.float64).tolist()
    best = max((k for k, may in enumerate(mask.tolist()) if may), key=ranked.__getitem__)

    def or_nan(values: Floats | None) -> F32:
        return np.full(mask.shape, np.nan, np.float32) if values is None else np.asarray(values, np.float32)

    return Decision(
        action=action,
        propensity=float(probabilities[action]),
        policy_id=policy_id,
        reason=_reason(observation, mask) if action == best else "explore",
        probabilities=probabilities,
        quality=or_nan(quality),
        q_quality=or_nan(q_quality),
        q_cost_usd=or_nan(q_cost_usd),
        info=info or {},
    )


def feasible(observation: Observation) -> Bools:
    """The guard's mask. Raises PolicyFault when it is empty; the gateway refuses such turns."""
    mask = observation.mask
    if not mask.any():
        raise PolicyFault("no candidate is feasible")
    return mask


def shield(observation: Observation, reserve: float, horizon: Horizon) -> Bools:
    """Feasible candidates that leave enough for the later turns; the cheapest if none does."""
    mask = feasible(observation)
    if reserve <= 0.0:
        return mask
    return np.array(
        scalar.shield(
            [c.cost_quantiles_usd for c in observation.candidates],
            checked_means_usd(observation),
            mask.tolist(),
            available_usd(observation.session),
            turns_left(observation, horizon),
            reserve,
        )
    )


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
    if not all(math.isfinite(mean) for mean in means) or any(
        min(c.cost_quantiles_usd) < 0.0 for c in observation.candidates
    ):
        raise PolicyFault("a cost quantile is negative or not finite")
    return means


def mean_costs_usd(observation: Observation) -> F32:
    """Expected cost of this turn from all its quantiles, the tail included; (K,)."""
    return np.array(checked_means_usd(observation), np.float32)


def _reason(observation: Observation, mask: Bools) -> str:
    """The reason code of the best candidate: why there was no choice, if there was none."""
    if np.count_nonzero(mask) > 1 or len(observation.candidates) == 1:
        return "policy"
    if np.count_nonzero(observation.mask) > 1:
        return "only-affordable"
    money = any("budget" in c.why_not or "afford" in c.why_not for c in observation.candidates if not c.feasible)
    return "only-affordable" if money else "capability"
