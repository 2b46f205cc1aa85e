"""Tuning of the candidates on the log: network, planner and heuristics.

Tuning plays the training part only, with out-of-fold grades. To the gate go the network at its best and at its
calibrated penalty, the planner at its best and the best heuristic; every further one would widen all their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from policy.arrays import F64
from policy.checkpoint import Loaded
from policy.exploration import Exploration
from policy.learned import policy_from
from policy.manifest import Recipe
from policy.mdp import Policy
from train.config import TrainConfig
from train.evaluate.simulate import play
from train.fit.network import Fitted
from train.fit.presets import calibrate_presets, learn_horizon
from train.fit.value_table import draw_samples, settings_of, tabulate
from train.log.episodes import Episodes

Params = Mapping[str, Mapping[str, Any]]

GRIDS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "resolving": {"reserve": (1.0,), "spread": (0.1, 0.2), "margin": (1.0,)},
    "pacing": {"factor": (1.0, 2.0), "reserve": (1.0,)},
    "tuned-lambda": {"reserve": (1.0,)},
}
"""Numbers tried for each rule. tuned-lambda also tries lambdas, in units of the log's mean bill."""
LAMBDA_GRID = (0.0, 0.05, 0.15)
PENALTIES = (
    *(0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0),
    *(3.0, 4.0, 6.0, 8.0, 10.0, 14.0, 20.0, 28.0, 40.0),
)
"""Prices of starving to try for the network, from the boldest to the most careful."""


@dataclass(frozen=True)
class Tuned:
    """A tuned recipe and its parameters, with its score per turn and starved share."""

    recipe: Recipe
    params: Params
    score: float
    starved: float


def propose(
    fitted: Fitted, training: Episodes, grades: F64, config: TrainConfig, run_id: str
) -> tuple[list[Tuned], dict[str, Any]]:
    """Candidates for the gate and a report of the tuning; `grades` (S, T, K) use real scores."""
    predicted = predictions_by_turn(training, fitted.grades)
    base = Recipe(
        policy_id=run_id,
        lambda_presets=calibrate_presets(training, predicted),
        horizon=learn_horizon(training.lengths),
        average_quality=dict(zip(training.models, (float(x) for x in fitted.quality.means), strict=True)),
        models=training.models,
    )
    few = np.arange(min(training.sessions, config.ope.tuning_sessions))
    sample, sample_grades = training.take(few), grades[few]
    quality = fitted.quality.served(training.models).arrays()

    def try_out(recipe: Recipe, params: Params, policy: Policy | None = None) -> Tuned:
        return try_recipe(recipe, params, policy or build(recipe, params), sample, sample_grades, config)

    of_network = replace(base, policy_id=f"{run_id}-network", rule="network", sizes=fitted.network.sizes)
    layers = fitted.network.parts() | {"quality": quality}

    def at(penalty: float) -> Tuned:
        return try_out(replace(of_network, rule_parameters={"starved_penalty": penalty}), layers)

    allowed = allowed_share(config.plan.most_starved, len(few))
    dial = bisect_penalty(at, lambda trial: laplace(trial.starved, len(few)), allowed)
    tried: dict[str, list[Tuned]] = {
        "network": list(dial.tried.values()),
        "planned": [
            try_out(recipe, params)
            for recipe, params in plans(
                replace(base, policy_id=f"{run_id}-planned"), quality, training, predicted, config
            )
        ],
    }
    for rule, grid in GRIDS.items():
        named = replace(base, policy_id=f"{run_id}-{rule}", rule=rule)
        tried[rule] = [
            try_out(recipe, {"quality": quality}, policy)
            for recipe, policy in variants(named, {"quality": quality}, settings(rule, grid, sample))
        ]
    best = {
        rule: max(trials, key=lambda t: (t.score - t.starved * 0.01, -trials.index(t)))
        for rule, trials in tried.items()
    }
    heuristic = max((best[rule] for rule in GRIDS), key=lambda trial: trial.score)
    chosen = [best["network"], best["planned"], heuristic]
    calibrated = dial.tried[dial.calibrated]
    if calibrated is not best["network"]:
        recipe = replace(calibrated.recipe, policy_id=f"{run_id}-network-calibrated")
        chosen.insert(1, replace(calibrated, recipe=recipe))
    seen = {
        rule: [{"parameters": dict(t.recipe.rule_parameters), "score": t.score, "starved": t.starved} for t in trials]
        for rule, trials in tried.items()
    }
    return chosen, seen


@dataclass(frozen=True)
class Dial:
    """Results by penalty, the lowest first, and the calibrated penalty."""

    tried: Mapping[float, Any]
    calibrated: float


def bisect_penalty(at: Callable[[float], Any], starved: Callable[[Any], float], most_starved: float) -> Dial:
    """Bisect PENALTIES for the lowest that starves at most `most_starved`, else the highest.

    Starving is assumed to fall as the penalty rises. The lowest penalty is always tried, because it is the best where
    no session starves.
    """
    tried = {PENALTIES[0]: at(PENALTIES[0])}
    low, high = 0, len(PENALTIES) - 1  # `low` starves too many, `high` is the most careful
    if starved(tried[PENALTIES[0]]) <= most_starved:
        return Dial(tried, PENALTIES[0])
    while high - low > 1:
        middle = (low + high) // 2
        tried[PENALTIES[middle]] = at(PENALTIES[middle])
        if starved(tried[PENALTIES[middle]]) <= most_starved:
            high = middle
        else:
            low = middle
    if PENALTIES[high] not in tried:
        tried[PENALTIES[high]] = at(PENALTIES[high])
    return Dial(dict(sorted(tried.items())), PENALTIES[high])


def laplace(share: float, sessions: int) -> float:
    """Share of `sessions` by Laplace's rule of succession, (k + 1) / (n + 2).

    A few sessions without an event do not prove a rate of zero.
    """
    return (share * sessions + 1.0) / (sessions + 2.0)


def allowed_share(most_starved: float, sessions: int) -> float:
    """Limit for `laplace`: `most_starved`, or, if higher, what only zero starved sessions meet.

    With few sessions, Laplace's rule exceeds a small limit even if no session starves.
    """
    return max(most_starved, 1.5 / (sessions + 2.0))


def plans(
    recipe: Recipe,
    quality: Mapping[str, Any],
    training: Episodes,
    grades: F64,
    config: TrainConfig,
    cache_aware: bool = True,
) -> Iterator[tuple[Recipe, Params]]:
    """Planners with a value table for each setting of the config.

    Without `cache_aware` they plan as if every prompt were read at the list price.
    """
    samples = draw_samples(training, grades, config.plan)
    for setting in settings_of(config.plan):
        table = tabulate(samples, config.plan, setting, cache_aware)
        yield (
            replace(recipe, rule="planned", rule_parameters=asdict(setting)),
            {
                "quality": quality,
                "values": table.arrays(),
            },
        )


def settings(rule: str, grid: Mapping[str, tuple[float, ...]], episodes: Episodes) -> list[dict[str, float]]:
    """Every combination of the grid."""
    values = dict(grid)
    if rule == "tuned-lambda":
        bill = float(episodes.cost_usd[episodes.valid].mean()) if episodes.turns else 1e-3
        values["lambda_per_usd"] = tuple(min(x / max(bill, 1e-9), 1e9) for x in LAMBDA_GRID)
    return [dict(zip(values, numbers, strict=True)) for numbers in product(*values.values())]


def variants(recipe: Recipe, params: Params, trials: Sequence[Mapping[str, float]]) -> Iterator[tuple[Recipe, Policy]]:
    """Policies of the recipe with each set of numbers.

    Where the policy is a dataclass that holds the numbers, its compiled network is shared; otherwise each is rebuilt.
    """
    built: Any = build(replace(recipe, rule_parameters=trials[0]), params)
    names = {item.name for item in fields(built)} if is_dataclass(built) else set()
    for numbers in trials:
        tried = replace(recipe, rule_parameters=numbers)
        if set(numbers) <= names:
            yield tried, replace(built, **numbers)
        else:
            yield tried, build(tried, params)


def try_recipe(
    recipe: Recipe, params: Params, policy: Policy, episodes: Episodes, grades: F64, config: TrainConfig
) -> Tuned:
    """Simulate one recipe greedily; returns its score per turn by the grades, for comparison."""
    played = play(policy, episodes, grades, seed=config.seed, weight_cap=config.ope.weight_cap)
    return Tuned(recipe, params, float(played.logged.v.sum() / max(episodes.turns, 1)), float(played.starved.mean()))


def build(recipe: Recipe, params: Params, exploration: Exploration | None = None) -> Policy:
    """Build the policy that the gateway would serve from this recipe."""
    arrays = as_arrays(params)
    return policy_from(Loaded(recipe, arrays, {}, ""), exploration or Exploration())


def as_arrays(params: Params) -> dict[str, dict[str, Any]]:
    """The parameters in the layout of a checkpoint."""
    return {layer: {leaf: np.asarray(x, np.float32) for leaf, x in leaves.items()} for layer, leaves in params.items()}


def grades_by_turn(episodes: Episodes, flat: F64) -> F64:
    """Grades of valid turns (N, K) as (S, T, K), for evaluation; real where every one is known.

    A second answer's grade does not replace its prediction: the estimates correct predictions by it.
    """
    return np.where(episodes.whole[..., None], episodes.scores, predictions_by_turn(episodes, flat))


def predictions_by_turn(episodes: Episodes, flat: F64) -> F64:
    """Out-of-fold grades (N, K) as (S, T, K), without real scores; for planning.

    Later turns will be decided by predictions. Planning with their known answers would overstate the value of money
    kept for them.
    """
    placed = np.zeros(episodes.mask.shape)
    placed[episodes.valid] = flat
    return placed
