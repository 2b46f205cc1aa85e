"""The learned network on graded answers: fitted by the code of a night on the log that `ours` learns from.

It is reported beside the planner and not offered to the replay's gate: a fit for each rehearsal would take longer than
all the rest of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax

from policy.checkpoint import Recipe
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.mdp import Policy
from train.config import FitConfig, TrainConfig
from train.fit.network import fit
from train.fit.presets import learn_horizon
from train.fit.tune import build
from train.log.episodes import Episodes

POLICY_ID = "replay-network"


@dataclass(frozen=True)
class Network:
    """What a checkpoint of the network would hold."""

    recipe: Recipe
    params: Any

    def expecting(self, horizon: Horizon) -> Policy:
        """The served policy where sessions are known to last like this."""
        return build(replace(self.recipe, horizon=horizon), self.params, GREEDY)


def fit_network(episodes: Episodes, config: TrainConfig, fitting: FitConfig, seed: int) -> Network:
    """Grade, relabel and fit as a night does (`train.fit.network.fit`). Deterministic given log, config and seed."""
    fitted = fit(episodes, replace(config, fit=fitting, seed=seed), jax.random.key(seed))
    recipe = Recipe(policy_id=POLICY_ID, rule="learned", horizon=learn_horizon(episodes.lengths), sizes=fitted.sizes)
    return Network(recipe, fitted.params)
