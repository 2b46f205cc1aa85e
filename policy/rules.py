"""Policies that need no training: the default until a learned one is published; baselines.

Each rule scores the candidates; `make_decision` turns scores into a draw with its exact probability. `score` takes one
turn or many at once: the gateway decides with it, `batch` and replay's tuned baselines score whole batches with it.
`ReSolving` alone decides on plain numbers, for speed, and has its batched form in `batch`. The arithmetic is in
`budgeting`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from policy import budgeting
from policy import budgeting_scalar as scalar
from policy.arrays import F32
from policy.decision import checked_means_usd, cost_quantiles_usd, feasible, make_decision, mean_costs_usd, turns_left
from policy.exploration import GREEDY, Exploration
from policy.features import DEFAULT_HORIZON, Horizon, available_usd, paused_long
from policy.mdp import Decision, Observation, Policy, caches_of
from policy.quality import PriorQuality, QualityModel

EVERYTHING = Exploration(floor=1.0, tolerance=0.0)
"""Every candidate with the same probability, whatever the scores."""
LAMBDA_PRESETS: Mapping[str, float] = {"cheap": 100.0, "balanced": 5.0, "best": 0.0}
"""Quality per USD until a checkpoint brings calibrated values; `cheap` pays a cent only for the whole quality scale."""


class RuleInputs(NamedTuple):
    """Inputs of a rule for one turn, or many: (..., K), `quantiles_usd` (..., K, L).

    The last three are (...). `models` are the candidates' names as an array; `quality` is this turn's, `average` a
    later one's. Names and `average` may be (K,) where all turns have the same.
    """

    models: Any
    quality: Any
    average: Any
    mean_usd: Any
    quantiles_usd: Any
    mask: Any
    remaining_usd: Any
    turns_left: Any
    lambda_per_usd: Any


class Scored(NamedTuple):
    """Inputs of the draw, (..., K): scores and the mask of what may be chosen."""

    scores: Any
    mask: Any


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The candidate of least expected cost."""

    policy_id: str = "rule:cheapest"
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score by cheapness."""
        return Scored(budgeting.cheapness(seen.mean_usd, seen.mask), seen.mask)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the least expected cost."""
        return scored_decision(self, observation, uniform)


@dataclass(frozen=True, slots=True)
class Fixed:
    """One named model; the cheapest when it may not be chosen."""

    model: str
    policy_id: str = "rule:fixed"
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score the named model above all others, those by cheapness."""
        return Scored(budgeting.cheapness(seen.mean_usd, seen.mask) + 2.0 * (seen.models == self.model), seen.mask)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the named model where it is feasible."""
        return scored_decision(self, observation, uniform)


@dataclass(frozen=True, slots=True)
class Strongest:
    """The affordable candidate of the best average quality; of equal ones the cheaper.

    With `model`, that one counts as the best.
    """

    quality: QualityModel = field(default_factory=PriorQuality)
    model: str | None = None
    policy_id: str = "rule:strongest"
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score by average quality."""
        named = 2.0 * (seen.models == self.model) if self.model is not None else 0.0
        scores = seen.average + named + 1e-6 * budgeting.cheapness(seen.mean_usd, seen.mask)
        return Scored(scores, seen.mask)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best average quality."""
        return scored_decision(self, observation, uniform, self.quality.average(observation))


@dataclass(frozen=True, slots=True)
class Random:
    """Uniform draw of a feasible candidate: the ideal logging policy for off-policy evaluation."""

    policy_id: str = "rule:random"
    exploration: Exploration = EVERYTHING

    def score(self, seen: RuleInputs) -> Scored:
        """Score all alike."""
        return Scored(np.zeros(seen.mask.shape), seen.mask)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Draw uniformly."""
        return scored_decision(self, observation, uniform)


@dataclass(frozen=True, slots=True)
class Threshold:
    """RouteLLM (arXiv 2406.18665): strongest if expected to win by `threshold`, else cheapest.

    `pair` names the weak and the strong model; without it they are the cheapest and the best on average of a turn.
    """

    threshold: float
    quality: QualityModel = field(default_factory=PriorQuality)
    pair: tuple[str, str] | None = None
    reserve: float = 0.0
    horizon: Horizon = DEFAULT_HORIZON
    policy_id: str = "rule:threshold"
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score the chosen one of both above the others if the shield allows it, those by cheapness."""
        if self.pair is None:
            weak = np.argmin(np.where(seen.mask, seen.mean_usd, np.inf), axis=-1)
            strong = np.argmax(np.where(seen.mask, seen.average, -np.inf), axis=-1)
        else:
            places = [np.argmax(seen.models == name, axis=-1) for name in self.pair]
            weak, strong = (np.broadcast_to(place, seen.mask.shape[:-1]) for place in places)

        def of(model: Any) -> Any:
            return np.take_along_axis(seen.quality, model[..., None], axis=-1)[..., 0]

        chosen = np.where(of(strong) - of(weak) >= self.threshold, strong, weak)
        named = np.arange(seen.mask.shape[-1]) == chosen[..., None]
        allowed = named & behind_shield(seen, self.reserve)
        return Scored(budgeting.cheapness(seen.mean_usd, seen.mask) + 2.0 * allowed, seen.mask)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the strongest or the cheapest by their predicted difference."""
        return scored_decision(self, observation, uniform, self.quality.predict(observation))


@dataclass(frozen=True, slots=True)
class TunedLambda:
    """argmax quality - lambda * cost, at the higher of the rule's and the observation's lambda.

    A rule without its own lambda (None) uses the observation's.
    """

    lambda_per_usd: float | None = None
    quality: QualityModel = field(default_factory=PriorQuality)
    reserve: float = 0.0
    horizon: Horizon = DEFAULT_HORIZON
    policy_id: str = "rule:tuned-lambda"
    exploration: Exploration = GREEDY

    def score(self, seen: RuleInputs) -> Scored:
        """Score by worth behind the shield."""
        price = np.maximum(seen.lambda_per_usd, self.lambda_per_usd or 0.0)
        return Scored(
            budgeting.lagrangian_scores(seen.quality, seen.mean_usd, price), behind_shield(seen, self.reserve)
        )

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best worth among the shielded candidates."""
        price = max(observation.lambda_per_usd, self.lambda_per_usd or 0.0)
        quality = self.quality.predict(observation)
        return scored_decision(self, observation, uniform, quality, {"lambda_per_usd": price})


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

    def score(self, seen: RuleInputs) -> Scored:
        """Score by worth within the share, behind the shield."""
        allowed = behind_shield(seen, self.reserve)
        scores = budgeting.pacing_scores(
            seen.quality,
            seen.mean_usd,
            allowed,
            seen.remaining_usd,
            seen.turns_left,
            self.factor,
            seen.lambda_per_usd,
        )
        return Scored(scores, allowed)

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose the best candidate within the share."""
        quality = self.quality.predict(observation)
        turns = turns_left(observation, self.horizon)
        return scored_decision(self, observation, uniform, quality, {"turns_left": turns})


@dataclass(frozen=True, slots=True)
class ReSolving:
    """The default rule: re-solve the price of money each turn, prompt cache included.

    At that price this and the later turns cost what is left, and with a cache also what holds would leave unspent
    (`budgeting.unspent_usd`). `reserve` scales what the shield keeps for later turns, `spread` is how much tasks differ
    (see `budgeting.later_plan`), `margin` the share of the money to plan with. The observation's lambda is a floor:
    with money to spare, a dollar must still buy that much quality.
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
        caches = caches_of([c.name for c in observation.candidates], [c.effort for c in observation.candidates])
        paused = paused_long(observation.session)
        cached = [
            scalar.cache_costs(
                cost,
                c.warm_tokens,
                scalar.kept_tokens(c.input_tokens, c.warm_tokens, c.served_last, paused),
                c.input_usd_per_mtok,
                c.cached_input_usd_per_mtok,
            )
            if self.cache_aware
            else (cost, cost)
            for cost, c in zip(costs, observation.candidates, strict=True)
        ]
        mask, quantiles = allowed, [c.cost_quantiles_usd for c in observation.candidates]
        if self.reserve > 0.0:
            mask = scalar.shield(quantiles, costs, cached, allowed, left_usd, turns, self.reserve, caches)
        session = scalar.Session(
            quality=self.quality.average(observation).tolist(),
            mean_usd=costs,
            cold_usd=[cold for cold, _ in cached],
            warm_usd=[warm for _, warm in cached],
            mask=allowed,
            later_turns=max(turns - 1.0, 0.0),
            spread=self.spread,
            caches=caches,
        )
        now: list[float] = quality.tolist()
        planned_usd = self.margin * left_usd + scalar.unspent_usd(quantiles, costs, cached, allowed, turns)
        price, scores, later = scalar.resolve(session, now, planned_usd, observation.lambda_per_usd)
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


ScoringRule = Cheapest | Fixed | Strongest | Random | Threshold | TunedLambda | Pacing


def scored_decision(
    rule: ScoringRule,
    observation: Observation,
    uniform: float,
    quality: F32 | None = None,
    info: dict[str, float] | None = None,
) -> Decision:
    """Score one turn and draw. `quality` (K,) is what the rule reads; None: it reads no quality."""
    mask = feasible(observation)
    horizon = getattr(rule, "horizon", DEFAULT_HORIZON)
    shown = np.zeros(len(mask), np.float32) if quality is None else quality
    found = rule.score(
        RuleInputs(
            models=np.array([c.name for c in observation.candidates]),
            quality=shown,
            average=rule.quality.average(observation) if isinstance(rule, Threshold | Strongest) else shown,
            mean_usd=mean_costs_usd(observation),
            quantiles_usd=cost_quantiles_usd(observation),
            mask=mask,
            remaining_usd=available_usd(observation.session),
            turns_left=turns_left(observation, horizon),
            lambda_per_usd=observation.lambda_per_usd,
        )
    )
    return make_decision(
        rule.policy_id, observation, found.scores, found.mask, rule.exploration, uniform, quality=quality, info=info
    )


def behind_shield(seen: RuleInputs, reserve: float) -> Any:
    """The candidates that leave enough for the later turns; the cheapest if none does."""
    if reserve <= 0.0:
        return seen.mask
    return budgeting.shield(seen.quantiles_usd, seen.mask, seen.remaining_usd, seen.turns_left, reserve)
