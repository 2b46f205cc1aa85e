"""Fit of the network: episodes to checkpoint parts. Pure in (episodes, config, key).

Grade the turns without a score (train/fit/reward_model.py), train the value curves (train/fit/value_curves.py) from the
shipped checkpoint on, and try a residual of the quality (train/fit/residual.py). Used by nightly, `fit` and replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from policy import value_network
from policy.catalogue_statistics import CatalogueStatistics
from policy.checkpoint import layers_as_part, layers_of, load
from policy.network_policy import NetworkPolicy
from policy.reload import PRETRAINED_FOLDER
from policy.residual import Residual
from policy.value_layers import forward_of
from policy.value_network_shapes import Sizes
from train.config import FitConfig, TrainConfig
from train.fit.residual import fit_residual
from train.fit.reward_model import RewardModel, fit_quality, folds_of
from train.fit.value_curves import teach
from train.fit.value_table import draw_samples
from train.fit.value_targets import catalogue_statistics_of
from train.log.episodes import Episodes
from train.progress import StepProgress

Array = jax.Array
Layers = dict[str, dict[str, Any]]
LEAST_IMPLICIT_WEIGHT = 0.01
"""Weight of an implicit grade in a log that has hardly any others."""


@dataclass(frozen=True)
class Network:
    """Parts of a network checkpoint besides its reward model."""

    layers: Layers
    sizes: Sizes
    statistics: CatalogueStatistics
    residual: Residual | None = None

    def parts(self) -> dict[str, dict[str, Any]]:
        """Checkpoint parts (policy/checkpoint.py) by name, without "quality"."""
        found = {"network": layers_as_part(self.layers), "statistics": self.statistics.arrays()}
        return found | ({"residual": self.residual.arrays()} if self.residual is not None else {})


@dataclass(frozen=True)
class Fitted:
    """Result of a fit: the network, its reward model, grades and training record."""

    network: Network
    quality: RewardModel
    grades: np.ndarray[Any, np.dtype[np.float64]]
    """(N, K): every candidate at every valid turn, out of fold."""
    curve: tuple[dict[str, float], ...]
    residual: dict[str, float] = field(default_factory=dict)
    """Held-out results of the residual."""


def fit(
    episodes: Episodes,
    config: TrainConfig,
    key: Array,
    progress: StepProgress | None = None,
    batch_sharding: NamedSharding | None = None,
) -> Fitted:
    """Grade turns without a score, then train the network under relabelled money.

    `batch_sharding` (train/fit/mesh.py) splits every step of TD over devices; without it one device does all.
    """
    quality, flat = grade(episodes, config)
    grades = np.zeros(episodes.mask.shape)
    grades[episodes.valid] = flat
    network, curve = fit_network(episodes, grades, quality, config, key, progress, batch_sharding)
    network, said = with_residual(network, episodes, grades, quality, config)
    return Fitted(network, quality, flat, curve, said)


def with_residual(
    network: Network,
    episodes: Episodes,
    grades: np.ndarray[Any, np.dtype[np.float64]],
    quality: RewardModel,
    config: TrainConfig,
) -> tuple[Network, dict[str, float]]:
    """Add a residual if it improves the held-out fold; also returns that fold's results."""
    served = NetworkPolicy("residual", forward_of(network.layers), quality.served(episodes.models), network.statistics)
    folds = folds_of(episodes, config.quality.folds, config.seed)
    residual, said = fit_residual(served, episodes, grades, folds, config.fit, config.relabel, config.seed)
    return replace(network, residual=residual), said


def fit_network(
    episodes: Episodes,
    grades: np.ndarray[Any, np.dtype[np.float64]],
    quality: RewardModel,
    config: TrainConfig,
    key: Array,
    progress: StepProgress | None = None,
    batch_sharding: NamedSharding | None = None,
) -> tuple[Network, tuple[dict[str, float], ...]]:
    """Train the curves on a log with out-of-fold grades (S, T, K), from the layers of `begin`."""
    init_key, teach_key = jax.random.split(key)
    samples = draw_samples(episodes, grades, replace(config.plan, samples=config.fit.samples))
    statistics = catalogue_statistics_of(samples, config.fit.margin * quality.deviation)
    layers = begin(config.fit, init_key)
    taught, curve = teach(
        layers, samples, statistics, config.fit, config.relabel, config.plan, teach_key, progress, batch_sharding
    )
    sizes = Sizes(encoder=config.fit.encoder, hidden=config.fit.hidden)
    return Network(jax.tree.map(np.asarray, taught), sizes, statistics), curve


def begin(fit: FitConfig, key: Array) -> Layers:
    """The shipped network's layers, or fresh ones when the config asks for other widths."""
    sizes = Sizes(encoder=fit.encoder, hidden=fit.hidden)
    if sizes == Sizes():
        return layers_of(load(PRETRAINED_FOLDER).params["network"])
    return value_network.init(key, sizes)


def grade(episodes: Episodes, config: TrainConfig) -> tuple[RewardModel, np.ndarray[Any, np.dtype[np.float64]]]:
    """Fit the reward model; returns it and out-of-fold grades of every valid turn, (N, K).

    No tenant's turns count for more than its cap (`tenant_weights`), and implicit grades for no more than their share
    (`Episodes.graded_share`). Turns beyond `quality.max_rows` graded ones are
    graded but not fitted on.
    """
    valid = episodes.valid
    states = episodes.state[valid]
    models = np.maximum(episodes.model[valid], 0)
    known = np.where(episodes.model[valid] >= 0, episodes.known_scores()[valid], np.nan).astype(np.float64)
    row, candidate = (found[: config.quality.max_rows] for found in np.nonzero(np.isfinite(known)))
    groups = folds_of(episodes, config.quality.folds, config.seed)[valid]
    weights = np.broadcast_to(tenant_weights(episodes, config.log.tenant_weight_cap)[:, None], valid.shape)[valid]
    own = episodes.implied[valid][row] & (candidate == episodes.action[valid][row])
    quality, out_of_fold = fit_quality(
        states[row],
        models[row, candidate],
        known[row, candidate],
        groups[row],
        model_priors(episodes),
        config.quality,
        weights[row] * np.where(own, max(episodes.graded_share, LEAST_IMPLICIT_WEIGHT), 1.0),
        episodes.route[valid][row],
    )
    everywhere = quality.predict(states, episodes.route[valid])
    everywhere[row] = out_of_fold
    return quality, np.take_along_axis(everywhere, models, axis=1)


def model_priors(episodes: Episodes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean quality predicted by the logging policy for each model, (M,); .5 where missing."""
    index, prior = episodes.model.reshape(-1), episodes.prior_quality.reshape(-1).astype(np.float64)
    known = (index >= 0) & np.isfinite(prior)
    count = np.bincount(index[known], minlength=len(episodes.models))
    total = np.bincount(index[known], weights=prior[known], minlength=len(episodes.models))
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def tenant_weights(episodes: Episodes, cap: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weight of each session, (S,): less than 1 for tenants with more than `cap` of all turns.

    A single tenant has weight 1.
    """
    lengths = episodes.lengths.astype(np.float64)
    total = lengths.sum()
    names = np.asarray(episodes.tenant_ids)
    weights = np.ones(episodes.sessions)
    for name in np.unique(names):
        mine = names == name
        share = lengths[mine].sum() / max(total, 1.0)
        weights[mine] = min(1.0, cap / share) if share > 0 else 1.0
    return weights / max(float(weights.max(initial=0.0)), 1e-12) if len(weights) else weights
