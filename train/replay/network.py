"""The network in replay, trained by the code of a night on the planner's log.

Curves and residual are trained once for each set of prompts, on a log without conversation: contexts, cached prices,
lambdas and penalties are inputs of the network. The statistics of the models and their qualities come from each
context's own log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax

from policy.arrays import F64
from policy.exploration import GREEDY
from policy.features import Horizon
from policy.network_policy import NetworkPolicy
from policy.reload import pretrained
from policy.value_layers import forward_of
from train.config import TrainConfig
from train.fit.network import Network, fit_network, with_residual
from train.fit.presets import learn_horizon
from train.fit.reward_model import RewardModel
from train.fit.value_table import draw_samples
from train.fit.value_targets import catalogue_statistics_of
from train.log.episodes import Episodes

POLICY_ID = "replay-network"


@dataclass(frozen=True)
class Networks:
    """The network of all training prompts and that of each rehearsal, at one penalty."""

    serving: NetworkPolicy
    rehearsals: tuple[NetworkPolicy, ...]

    def at(self, penalty: float) -> Networks:
        """The same networks at another price of starving."""

        def priced(policy: NetworkPolicy) -> NetworkPolicy:
            return replace(policy, starved_penalty=penalty, policy_id=f"{POLICY_ID}-{penalty:g}")

        return Networks(priced(self.serving), tuple(priced(policy) for policy in self.rehearsals))

    def expecting(self, horizon: Horizon) -> Networks:
        """The same networks with this horizon of sessions."""
        return Networks(
            replace(self.serving, horizon=horizon), tuple(replace(one, horizon=horizon) for one in self.rehearsals)
        )


def train_network(episodes: Episodes, grades: F64, quality: RewardModel, config: TrainConfig) -> Network:
    """Train as a night does (`train.fit.network.fit`). Deterministic given log and config."""
    network, _ = fit_network(episodes, grades, quality, config, jax.random.key(config.seed))
    return with_residual(network, episodes, grades, quality, config)[0]


def build_policy(
    network: Network, episodes: Episodes, grades: F64, quality: RewardModel, config: TrainConfig
) -> NetworkPolicy:
    """The policy of these layers with another log's statistics of the models."""
    samples = draw_samples(episodes, grades, replace(config.plan, samples=config.fit.samples))
    return NetworkPolicy(
        POLICY_ID,
        forward_of(network.layers),
        quality.served(episodes.models),
        catalogue_statistics_of(samples, config.fit.margin * quality.deviation),
        network.residual,
        horizon=learn_horizon(episodes.lengths),
        exploration=GREEDY,
    )


def hasty(config: TrainConfig) -> TrainConfig:
    """Shorter training for rehearsals: half of the warm start and a quarter of the TD steps."""
    fit = config.fit
    return replace(config, fit=replace(fit, warm_steps=fit.warm_steps // 2, steps=fit.steps // 4))


def shipped_policy(horizon: Horizon) -> NetworkPolicy:
    """The network of a fresh install, with priors only."""
    policy = pretrained(GREEDY).policy
    assert isinstance(policy, NetworkPolicy)
    return replace(policy, horizon=horizon)


def policy_kind(policy_id: str) -> str:
    """Kind of policy by its name in the replay's gate, for the column `build_policy`."""
    if policy_id.startswith((POLICY_ID, "pretrained")):
        return "network"
    if policy_id.startswith("replay-planned"):
        return "planner"
    return policy_id if policy_id.startswith("rule:") else f"heuristic:{policy_id}"
