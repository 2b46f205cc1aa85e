"""A checkpoint at work: the learned policy, and rules that read the network's quality. Importing this imports JAX.

The jitted function closes over the parameters and has two shapes for ever (SERVED_SHAPES rows, padding masked), so
after the warm-up nothing compiles. Everything around it, masks and draw included, is the NumPy that the rules use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from policy import network, planning
from policy.baselines import (
    Cheapest,
    Pacing,
    Resolving,
    Strongest,
    Threshold,
    TunedLambda,
    decided,
    shielded,
    turns_left,
)
from policy.checkpoint import Loaded
from policy.exploration import GREEDY, Exploration
from policy.features import (
    CANDIDATE_DIM,
    DEFAULT_HORIZON,
    MAX_CANDIDATES,
    Horizon,
    available_usd,
    encode,
    expected_cost_usd,
)
from policy.mdp import COST_LEVELS, BoolArray, Decision, FloatArray, Observation, Policy, PolicyFault
from policy.quality import PriorQuality, QualityModel

SERVED_SHAPES: tuple[int, ...] = (MAX_CANDIDATES // 2, MAX_CANDIDATES)
"""Most catalogues are small, and half the rows are a fifth of the time."""


@dataclass(frozen=True, slots=True)
class Values:
    """The network's heads for one observation, float32, (E, K) each; rows outside `considered` (K,) are zero."""

    turn_quality: FloatArray
    q_quality: FloatArray
    q_cost_usd: FloatArray
    considered: BoolArray


class NetworkValues:
    """The network of one checkpoint, compiled once for each of SERVED_SHAPES; `compilations` stays at their number."""

    def __init__(self, params: dict[str, dict[str, FloatArray]], horizon: Horizon = DEFAULT_HORIZON) -> None:
        constants: network.Params = jax.tree.map(jnp.asarray, params)
        self._horizon = horizon
        self.compilations = 0

        def forward(state: Any, rows: Any, money: Any, quantiles: Any, mask: Any) -> Any:
            self.compilations += 1  # runs when traced, not when called: one shape, one trace
            heads = network.heads(constants, state, rows, money[0], money[1], money[2], money[3], quantiles, mask)
            return jnp.stack([heads.turn_quality, heads.q_quality, heads.q_cost_usd])

        self._forward = jax.jit(forward)

    def values(self, observation: Observation, lambda_per_usd: float) -> Values:
        """Evaluate the considered candidates. Raises PolicyFault when anything going in or out is not finite."""
        try:
            encoded = encode(observation)
        except ValueError as error:
            raise PolicyFault("the observation cannot be encoded") from error
        rows = shortlist(encoded.mask, encoded.cost_quantiles_usd)
        count = len(rows)
        padded = next(shape for shape in SERVED_SHAPES if count <= shape)
        candidates = np.zeros((padded, CANDIDATE_DIM), np.float32)
        quantiles = np.zeros((padded, len(COST_LEVELS)), np.float32)
        mask = np.zeros(padded, np.bool_)
        candidates[:count], quantiles[:count] = encoded.candidates[rows], encoded.cost_quantiles_usd[rows]
        mask[:count] = True
        session = observation.session
        money = np.array(
            [available_usd(session), session.budget_usd, turns_left(observation, self._horizon), lambda_per_usd],
            np.float32,
        )
        found = np.asarray(self._forward(encoded.state, candidates, money, quantiles, mask))[:, :, :count]
        if not (np.isfinite(money).all() and np.isfinite(found).all()):
            raise PolicyFault("money, horizon, lambda or the network's answer is not finite")
        spread = np.zeros((*found.shape[:2], len(encoded.mask)), np.float32)
        spread[:, :, rows] = found
        considered = np.zeros(len(encoded.mask), np.bool_)
        considered[rows] = True
        return Values(spread[0], spread[1], spread[2], considered)


@dataclass(frozen=True, slots=True)
class LearnedPolicy:
    """argmax Q_quality - lambda Q_cost by lower confidence, behind the shield, explored with exact propensity.

    `reserve` scales the money kept for later turns (`planning.shielded`), `pessimism` counts the ensemble's standard
    deviations, `shrinkage` is the out-of-fold slope of predicted differences.
    """

    policy_id: str
    network: NetworkValues
    horizon: Horizon = DEFAULT_HORIZON
    reserve: float = 1.0
    pessimism: float = 0.5
    shrinkage: float = 1.0
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        price = observation.lambda_per_usd
        values = self.network.values(observation, price)
        mask = shielded(observation, self.reserve, self.horizon) & values.considered
        scores = planning.lower_confidence_scores(
            values.q_quality, values.q_cost_usd, mask, price, self.pessimism, self.shrinkage
        )
        return decided(
            self.policy_id, observation, scores, mask, self.exploration, uniform,
            quality=shown(values.turn_quality, values.considered), q_quality=shown(values.q_quality, values.considered),
            q_cost_usd=shown(values.q_cost_usd, values.considered),
            info={"lambda_per_usd": price, "turns_left": turns_left(observation, self.horizon)},
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
        values = self.network.values(observation, observation.lambda_per_usd)
        mean = values.turn_quality.mean(axis=0)
        centre = mean[values.considered].mean()
        shrunk = np.clip(centre + self.shrinkage * (mean - centre), 0.0, 1.0)
        return np.where(values.considered, shrunk, self.prior.predict(observation)).astype(np.float32)

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
    if numbers.pop("network_quality", 1.0):
        values = NetworkValues(loaded.params, recipe.horizon)
        shared["quality"] = NetworkQuality(values, dict(recipe.average_quality), shrinkage)
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
    return Resolving(cache_aware=cache_aware, **numbers, **shared)


def shortlist(mask: BoolArray, cost_quantiles_usd: FloatArray) -> NDArray[np.intp]:
    """Which candidates the network looks at: the feasible ones; of more than fit, an even spread over their costs.

    Indices in the catalogue's order. The cheapest and the dearest are always among them.
    """
    rows = np.flatnonzero(mask)
    if len(rows) <= MAX_CANDIDATES:
        return rows
    by_cost = rows[np.argsort(expected_cost_usd(cost_quantiles_usd[rows]), kind="stable")]
    return np.sort(by_cost[np.linspace(0, len(rows) - 1, MAX_CANDIDATES).round().astype(np.intp)])


def shown(members: FloatArray, considered: BoolArray) -> FloatArray:
    """The ensemble's mean for the log, (K,); NaN where the network did not look."""
    return np.where(considered, members.mean(axis=0), np.nan).astype(np.float32)

