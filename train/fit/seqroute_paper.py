"""SeqRoute as published (Xu, Zheng, Wang 2026, arXiv 2605.25424): the baseline to beat.

State: the text vector and the remaining share of the largest budget. Actions: the models of the training data, one
output each. Reward: quality - 5 [bankrupt], without lambda; gamma .99. Every unconstrained recorded path is replayed
under five initial budgets, the budget recomputed, truncated at bankruptcy (hindsight budget relabeling). Discrete CQL,
an MLP of widths 512, 256, 256. Served as argmax_a Q(s, a) - lambda c(a), c the immediate cost.

Not published, and chosen here: alpha, learning rate, batch, and the unit of the budgets: the largest (8000 in the
paper) is a session on the most expensive model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from policy.arrays import F32
from policy.decision import feasible, make_decision, mean_costs_usd
from policy.exploration import GREEDY, Exploration
from policy.features import TEXT_SCALE, available_usd
from policy.mdp import Decision, Observation
from policy.text import TEXT_DIM
from train.fit.cql import huber
from train.log.episodes import Episodes

Array = jax.Array
Column = Array | NDArray[Any]
Layers = list[tuple[Array, Array]]

BUDGET_SHARES = (500 / 8000, 1500 / 8000, 3000 / 8000, 5000 / 8000, 1.0)


@dataclass(frozen=True, slots=True)
class PublishedConfig:
    """The paper's numbers and our choices where it gives none."""

    widths: tuple[int, ...] = (512, 256, 256)
    gamma: float = 0.99
    bankrupt_penalty: float = 5.0
    budget_shares: tuple[float, ...] = BUDGET_SHARES
    """Budgets that every path is relabelled to, as shares of the largest."""
    paths: int = 4
    """Recorded paths per session: actions drawn uniformly, all graded."""
    alpha: float = 1.0
    learning_rate: float = 3e-4
    batch_size: int = 256
    steps: int = 2000
    polyak: float = 0.005
    huber_delta: float = 1.0


class Transitions(NamedTuple):
    """Relabelled transitions; `row` and `following` index text vectors, `left` budget shares."""

    row: Column
    left: Column
    action: Column
    reward: Column
    following: Column
    left_after: Column
    done: Column


@dataclass(frozen=True, eq=False)
class Published:
    """The published policy. Models it was not trained on are chosen only when no other may be."""

    models: tuple[str, ...]
    layers: tuple[tuple[F32, F32], ...]
    largest_usd: float
    lambda_per_usd: float | None = None
    policy_id: str = "seqroute-published"
    exploration: Exploration = GREEDY

    def decide(self, observation: Observation, uniform: float) -> Decision:
        """Choose argmax Q(s, a) - lambda c(a)."""
        mask = feasible(observation)
        left = min(available_usd(observation.session) / self.largest_usd, 1.0)
        hidden = np.append(np.asarray(observation.text, np.float32) * TEXT_SCALE, np.float32(left))
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        values = hidden @ self.layers[-1][0] + self.layers[-1][1]
        known = {name: float(value) for name, value in zip(self.models, values, strict=True)}
        q = np.array([known.get(c.name, float(values.min()) - 1e3) for c in observation.candidates])
        price = observation.lambda_per_usd if self.lambda_per_usd is None else self.lambda_per_usd
        scores = q - price * mean_costs_usd(observation)
        return make_decision(
            self.policy_id,
            observation,
            scores,
            mask,
            self.exploration,
            uniform,
            q_quality=q,
            info={"lambda_per_usd": price},
        )


def fit_published(episodes: Episodes, config: PublishedConfig, seed: int) -> Published:
    """Relabel and fit on turns with grades for every shown model: the paper's data are trees."""
    largest_usd = largest_budget_usd(episodes)
    transitions = relabel_paths(episodes, largest_usd, config, seed)
    text = jnp.asarray(episodes.state[episodes.valid][:, :TEXT_DIM])
    init_key, train_key = jax.random.split(jax.random.key(seed))
    layers = initial(init_key, (TEXT_DIM + 1, *config.widths, len(episodes.models)))
    fitted = train(layers, text, Transitions(*(jnp.asarray(x) for x in transitions)), config, train_key)
    return Published(episodes.models, tuple((np.asarray(w), np.asarray(b)) for w, b in fitted), largest_usd)


def largest_budget_usd(episodes: Episodes) -> float:
    """Cost of a session of mean length on the most expensive model."""
    bills = by_model(episodes, episodes.known_bills_usd())[episodes.valid]
    costliest = max(float(np.nanmean(column)) for column in bills.T if np.isfinite(column).any())
    return costliest * float(episodes.lengths[episodes.lengths > 0].mean())


def by_model(episodes: Episodes, values: F32) -> F32:
    """Rearrange (S, T, K) by candidate as (S, T, M) by model, NaN where a turn did not show it."""
    placed = np.full((*episodes.valid.shape, len(episodes.models)), np.nan, np.float32)
    s, t, k = np.nonzero(episodes.model >= 0)
    placed[s, t, episodes.model[s, t, k]] = values[s, t, k]
    return placed


def relabel_paths(episodes: Episodes, largest_usd: float, config: PublishedConfig, seed: int) -> Transitions:
    """Every path under every budget, truncated where the money ends.

    A bill beyond the rest earns the penalty alone.
    """
    scores = by_model(episodes, episodes.known_scores())
    bills = by_model(episodes, episodes.known_bills_usd())
    usable = np.isfinite(scores) & np.isfinite(bills)
    row = np.cumsum(episodes.valid.ravel()).reshape(episodes.valid.shape) - 1
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(config.paths):
        action = np.argmax(np.where(usable, generator.random(usable.shape), -1.0), axis=-1)
        real = np.logical_and.accumulate(episodes.valid & usable.any(axis=-1), axis=1)
        bill = np.take_along_axis(bills, action[..., None], axis=-1)[..., 0] / largest_usd
        score = np.take_along_axis(scores, action[..., None], axis=-1)[..., 0]
        bill, score = np.where(real, bill, 0.0), np.where(real, score, 0.0)
        for budget in config.budget_shares:
            after = budget - np.cumsum(bill, axis=1)
            before = after + bill
            bankrupt = after < 0.0
            alive = real & (np.cumsum(bankrupt, axis=1) - bankrupt == 0)
            last = ~np.append(real[:, 1:], np.zeros((len(real), 1), np.bool_), axis=1)
            reward = np.where(bankrupt, -config.bankrupt_penalty, score)
            columns = (row, before, action, reward, row + 1, np.maximum(after, 0.0), bankrupt | last)
            parts.append([column[alive] for column in columns])
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    types = (np.int32, np.float32, np.int32, np.float32, np.int32, np.float32, np.bool_)
    return Transitions(*(column.astype(kind) for column, kind in zip(joined, types, strict=True)))


@partial(jax.jit, static_argnames="widths")
def initial(key: Array, widths: tuple[int, ...]) -> Layers:
    """He initialisation, zero biases."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        (jax.random.normal(k, (a, b)) * jnp.sqrt(2.0 / a), jnp.zeros(b))
        for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def values(layers: Layers, state: Array) -> Array:
    """Q-values of every action: (B, d) -> (B, M)."""
    for weight, bias in layers[:-1]:
        state = jax.nn.relu(state @ weight + bias)
    weight, bias = layers[-1]
    return state @ weight + bias


def loss(layers: Layers, target: Layers, text: Array, batch: Transitions, config: PublishedConfig) -> Array:
    """Q-learning error plus alpha times the conservative term (arXiv 2006.04779, eq. 4)."""
    q = values(layers, jnp.column_stack([text[batch.row], batch.left]))
    taken = jnp.take_along_axis(q, batch.action[:, None], axis=1)[:, 0]
    following = text[jnp.minimum(batch.following, len(text) - 1)]
    best = values(target, jnp.column_stack([following, batch.left_after])).max(axis=1)
    goal = jax.lax.stop_gradient(batch.reward + config.gamma * jnp.where(batch.done, 0.0, best))
    conservative = jax.nn.logsumexp(q, axis=1) - taken
    return jnp.mean(huber(taken - goal, config.huber_delta) + config.alpha * conservative)


@partial(jax.jit, static_argnames="config")
def train(layers: Layers, text: Array, transitions: Transitions, config: PublishedConfig, key: Array) -> Layers:
    """Train with Adam and a Polyak-averaged target network, in one compiled scan."""
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def step(
        carry: tuple[Layers, Layers, optax.OptState], k: Array
    ) -> tuple[tuple[Layers, Layers, optax.OptState], None]:
        online, target, state = carry
        rows = jax.random.randint(k, (config.batch_size,), 0, len(transitions.row))
        gradient = jax.grad(loss)(online, target, text, Transitions(*(x[rows] for x in transitions)), config)
        updates, state = adam.update(gradient, state)
        moved = optax.apply_updates(online, updates)
        return (moved, optax.incremental_update(moved, target, config.polyak), state), None

    carry = (layers, layers, adam.init(layers))
    (fitted, _, _), _ = jax.lax.scan(step, carry, jax.random.split(key, config.steps))
    return fitted
