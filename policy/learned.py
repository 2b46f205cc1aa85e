"""Builder of the policy that a verified checkpoint describes. NumPy only."""

from __future__ import annotations

from typing import Any

from policy.answer_lengths import AnswerLengths
from policy.catalogue_statistics import NOTHING_KNOWN, CatalogueStatistics
from policy.checkpoint import Loaded, layers_of
from policy.exploration import GREEDY, Exploration
from policy.kernel import KernelQuality
from policy.mdp import Policy
from policy.network_policy import NetworkPolicy
from policy.planned import Planner
from policy.residual import Residual
from policy.rules import Cheapest, Pacing, ReSolving, Strongest, Threshold, TunedLambda
from policy.value_layers import forward_of
from policy.valuetable import ValueTable


def policy_from(loaded: Loaded, exploration: Exploration = GREEDY) -> Policy:
    """Build the policy of a checkpoint; parameters it does not set keep the rule's defaults."""
    recipe, params = loaded.recipe, loaded.params
    numbers: dict[str, Any] = dict(recipe.rule_parameters)
    shared: dict[str, Any] = {"policy_id": recipe.policy_id, "exploration": exploration}
    if recipe.rule == "cheapest":
        return Cheapest(**shared)
    if recipe.models:
        shared["quality"] = KernelQuality.from_arrays(recipe.models, params["quality"])
    if recipe.rule == "network":
        return NetworkPolicy(
            forward=forward_of(layers_of(params["network"])),
            statistics=CatalogueStatistics.from_arrays(recipe.models, params["statistics"])
            if recipe.models
            else NOTHING_KNOWN,
            residual=Residual.from_arrays(params["residual"]) if "residual" in params else None,
            horizon=recipe.horizon,
            **numbers,
            **shared,
        )
    if recipe.rule == "planned":
        table = ValueTable.from_arrays(recipe.models, params["values"])
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


def lengths_from(loaded: Loaded) -> AnswerLengths | None:
    """The checkpoint's forecast of the answers' lengths, if it has one."""
    if "lengths" not in loaded.params:
        return None
    return AnswerLengths.from_arrays(loaded.recipe.models, loaded.params["lengths"])
