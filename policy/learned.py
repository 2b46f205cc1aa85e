"""A checkpoint at work: the learned policy, and rules that read the network's quality. Importing this imports JAX.

The jitted function has two shapes for ever (SERVED_SHAPES rows, padding masked), so after the warm-up nothing compiles.
Everything around it, masks and draw included, is the NumPy that the rules use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from policy import budgeting as planning
from policy import network
from policy.checkpoint import Loaded
from policy.exploration import GREEDY, Exploration
from policy.features import (
    CANDIDATE_DIM,
    DEFAULT_HORIZON,
    MAX_CANDIDATES,
    Encoded,
    Horizon,
    available_usd,
    encode,
    expected_cost_usd,
)
from policy.kernel import KernelQuality
from policy.mdp import COST_LEVELS, BoolArray, Decision, FloatArray, Observation, Policy, PolicyFault
from policy.planned import Planner
from policy.quality import PriorQuality, QualityModel
from policy.rules import (
    Cheapest,
    Pacing,
    ReSolving,
    Strongest,
    Threshold,
    TunedLambda,
    decided,
    shielded,
    turns_left,
)
from policy.valuetable import ValueTable

SERVED_SHAPES: tuple[int, ...] = (MAX_CANDIDATES // 2, MAX_CANDIDATES)
"""Most catalogues are small, and half the rows are a fifth of the time."""


@dataclass(frozen=True, slots=True)
class Values:
    """What the network says of one observation, the ensemble's means, float32 (K,); NaN where it did not look.

    `scores` are the lower-confidence scores that decide (`planning.lower_confidence_scores`).
    """

    turn_quality: FloatArray
    q_quality: FloatArray
    q_cost_usd: FloatArray
    scores: FloatArray


@jax.jit
def forward(params: network.Params, state: Any, rows: Any, money: Any, quantiles: Any, masks: Any) -> Any:
    """The fields of `Values` for padded rows, (4, K). money (6,); masks (2, K): considered, allowed.

    The parameters are arguments: one compilation serves every checkpoint of the same sizes.
    """
    considered, allowed = masks
    heads = network.heads(params, state, rows, money[0], money[1], money[2], money[3], quantiles, considered)
    scores = planning.lower_confidence_scores(
        heads.q_quality, heads.q_cost_usd, allowed, money[3], money[4], money[5], xp=jnp
    )
    means = (heads.turn_quality, heads.q_quality, heads.q_cost_usd)
    return jnp.stack([*(head.mean(axis=0) for head in means), scores])


class NetworkValues:
    """The network of one checkpoint; compiled once for each of SERVED_SHAPES, unless its sizes were served before."""

    def __init__(self, params: dict[str, dict[str, FloatArray]], horizon: Horizon = DEFAULT_HORIZON) -> None:
        self._params: network.Params = jax.tree.map(jnp.asarray, params)
        self._horizon = horizon

    def values(
        self,
        observation: Observation,
        encoded: Encoded,
        allowed: BoolArray,
        pessimism: float = 0.0,
        shrinkage: float = 1.0,
    ) -> Values:
        """Evaluate the considered candidates; `allowed` (K,) is what the shield leaves of them.

        Raises PolicyFault when anything going in or out is not finite.
        """
        rows = shortlist(encoded.mask, allowed, encoded.cost_quantiles_usd)
        count = len(rows)
        padded = SERVED_SHAPES[0] if count <= SERVED_SHAPES[0] else SERVED_SHAPES[1]
        candidates = np.zeros((padded, CANDIDATE_DIM), np.float32)
        quantiles = np.zeros((padded, len(COST_LEVELS)), np.float32)
        masks = np.zeros((2, padded), np.bool_)
        candidates[:count], quantiles[:count] = encoded.candidates[rows], encoded.cost_quantiles_usd[rows]
        masks[0, :count], masks[1, :count] = True, allowed[rows]
        session = observation.session
        money = np.array(
            [
                available_usd(session),
                session.budget_usd,
                turns_left(observation, self._horizon),
                observation.lambda_per_usd,
                pessimism,
                shrinkage,
            ],
            np.float32,
        )
        found = np.asarray(forward(self._params, encoded.state, candidates, money, quantiles, masks))[:, :count]
        if not (np.isfinite(money).all() and np.isfinite(found).all()):
            raise PolicyFault("money, horizon, lambda or the network's answer is not finite")
        spread = np.full((4, len(encoded.mask)), np.nan, np.float32)
        spread[:, rows] = found
        return Values(*spread)


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """argmax Q_quality - lambda Q_cost by lower confidence, behind the shield, explored with exact propensity.

    `reserve` scales the money kept for later turns (`planning.shielded`), `pessimism` counts the ensemble's standard
    deviations, `shrinkage` is the out-of-fold slope of predicted differences (`planning.lower_confidence_scores`).
    """

    policy_id: str
    network: NetworkValues
    horizon: Horizon = DEFAULT_HORIZON
    reserve: float = 1.0
    pessimism: float = 0.5
    shrinkage: float = 1.0
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        encoded = encoded_or_fault(observation)
        mask = shielded(observation, self.reserve, self.horizon)
        values = self.network.values(observation, encoded, mask, self.pessimism, self.shrinkage)
        return decided(
            self.policy_id,
            observation,
            values.scores,
            mask & ~np.isnan(values.scores),
            self.exploration,
            uniform,
            quality=values.turn_quality,
            q_quality=values.q_quality,
            q_cost_usd=values.q_cost_usd,
            info={
                "lambda_per_usd": observation.lambda_per_usd,
                "turns_left": turns_left(observation, self.horizon),
            },
        )


@dataclass(frozen=True, slots=True)
class NetworkQuality:
    """A quality model for the rules: the network's head for this turn, differences shrunk; averages from the log.

    Where the network does not look (infeasible candidates) and where the log knows no average, the prior stands.
    """

    network: NetworkValues
    averages: dict[str, float]
    shrinkage: float = 1.0
    prior: QualityModel = PriorQuality()  # noqa: RUF009 - frozen

    def predict(self, observation: Observation) -> FloatArray:
        encoded = encoded_or_fault(observation)
        quality = self.network.values(observation, encoded, encoded.mask).turn_quality
        seen = ~np.isnan(quality)
        centre = quality[seen].mean()
        shrunk = np.clip(centre + self.shrinkage * (quality - centre), 0.0, 1.0)
        return np.where(seen, shrunk, self.prior.predict(observation)).astype(np.float32)

    def average(self, observation: Observation) -> FloatArray:
        priors = self.prior.average(observation)
        known = [self.averages.get(c.name, float(p)) for c, p in zip(observation.candidates, priors, strict=True)]
        return np.array(known, np.float32)


def policy_from(loaded: Loaded, exploration: Exploration = GREEDY) -> Policy:
    """The policy that a verified checkpoint describes; numbers it does not give have the rule's own defaults."""
    recipe = loaded.recipe
    numbers: dict[str, Any] = dict(recipe.rule_parameters)
    shrinkage = numbers.pop("shrinkage", 1.0)
    shared: dict[str, Any] = {"policy_id": recipe.policy_id, "exploration": exploration}
    if recipe.rule == "cheapest":
        return Cheapest(**shared)
    if recipe.rule == "learned":
        values = NetworkValues(loaded.params, recipe.horizon)
        return LearnedPolicy(network=values, horizon=recipe.horizon, shrinkage=shrinkage, **numbers, **shared)
    reads_parameters = bool(numbers.pop("network_quality", 1.0))
    if recipe.models:
        shared["quality"] = KernelQuality.from_arrays(recipe.models, loaded.params["quality"])
    elif reads_parameters:
        values = NetworkValues(loaded.params, recipe.horizon)
        shared["quality"] = NetworkQuality(values, dict(recipe.average_quality), shrinkage)
    if recipe.rule == "planned":
        table = ValueTable.from_arrays(recipe.models, loaded.params["values"])
        return Planner(table=table, horizon=recipe.horizon, **numbers, **shared)
    if recipe.rule == "strongest":
        return Strongest(**shared)
    if recipe.rule == "threshold":
        return Threshold(threshold=numbers.get("threshold", 0.1), **shared)
    shared["horizon"] = recipe.horizon
    if recipe.rule == "tuned-lambda":
        return TunedLambda(**numbers, **shared)
    if recipe.rule == "pacing":
        return Pacing(**numbers, **shared)
    cache_aware = bool(numbers.pop("cache_aware", 1.0))
    return ReSolving(cache_aware=cache_aware, **numbers, **shared)


def shortlist(mask: BoolArray, allowed: BoolArray, cost_quantiles_usd: FloatArray) -> NDArray[np.intp]:
    """Which candidates the network looks at: the feasible ones; of more than fit, an even spread over their costs.

    What the shield allows comes first. Indices in the catalogue's order; the cheapest allowed is always among them.
    """
    rows = np.flatnonzero(mask)
    if len(rows) <= MAX_CANDIDATES:
        return rows
    by_cost = rows[np.lexsort((expected_cost_usd(cost_quantiles_usd[rows]), ~allowed[rows]))]
    most = max(MAX_CANDIDATES, int(allowed[rows].sum()))
    return np.sort(by_cost[np.linspace(0, most - 1, MAX_CANDIDATES).round().astype(np.intp)])


def encoded_or_fault(observation: Observation) -> Encoded:
    """`features.encode`; an observation that cannot be encoded is a fault, as is one with nothing to choose from."""
    try:
        encoded = encode(observation)
    except ValueError as error:
        raise PolicyFault("the observation cannot be encoded") from error
    if not encoded.mask.any():
        raise PolicyFault("no candidate is feasible")
    return encoded
