"""Fit the network: episodes -> parameters. Pure in (episodes, config, key); nightly, `fit` and replay all come here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from policy import network
from policy.mdp import COST_MASSES
from policy.network_shapes import Sizes
from train.config import FitConfig, RelabelConfig, TrainConfig
from train.fit.cql import Batch, Info, Params, draw_batch, loss, polyak
from train.fit.mesh import everywhere, mean_of_shards
from train.fit.relabel import Turns
from train.fit.reward_model import QualityModel, fit_quality, folds_of
from train.log.episodes import Episodes

Array = jax.Array
Progress = Callable[[int, int], None]
Carry = tuple[Params, Params, optax.OptState]

COMPILER = {"xla_backend_optimization_level": 1}
"""Steps are as fast as at the default level, and compiling takes half as long where cores are shared."""
ON_MESH = COMPILER | {"xla_disable_hlo_passes": "algsimp"}
"""The simplifier rewrites sums by the number of devices it compiles for; without it no bit depends on that."""
PAD_ROWS = 1024
CHUNK_STEPS = 100
"""Gradient steps between two looks at the progress bar; one compiled scan."""


@dataclass(frozen=True)
class Fitted:
    """Parameters of the ensemble, the reward model they were distilled from, and the curve of the losses."""

    params: Params
    sizes: Sizes
    quality: QualityModel
    grades: np.ndarray[Any, np.dtype[np.float64]]
    """(N, K): every candidate at every valid turn, out of fold."""
    curve: tuple[dict[str, float], ...]
    transitions: int


def fit(
    episodes: Episodes,
    config: TrainConfig,
    key: Array,
    progress: Progress | None = None,
    batch_sharding: NamedSharding | None = None,
) -> Fitted:
    """Grade what was not graded, then learn values-to-go by CQL under relabelled budgets.

    `batch_sharding` (train/fit/mesh.py) splits every step over devices; without it one device does all.
    """
    quality, grades = grade(episodes, config)
    turns, weights = device_turns(episodes, grades, config)
    sizes = Sizes(hidden=config.fit.hidden, joint=config.fit.joint, members=config.fit.members)
    init_key, train_key = jax.random.split(key)
    params, curve = train(
        initial(init_key, sizes), turns, weights, config.fit, config.relabel, train_key, progress, batch_sharding
    )
    return Fitted(params, sizes, quality, grades, curve, episodes.turns)


@partial(jax.jit, static_argnames="sizes", compiler_options=COMPILER)
def initial(key: Array, sizes: Sizes) -> Params:
    """Fresh parameters, compiled as one: a dozen small compilations take ten times as long."""
    return network.init(key, sizes)


def grade(episodes: Episodes, config: TrainConfig) -> tuple[QualityModel, np.ndarray[Any, np.dtype[np.float64]]]:
    """The reward model, and every candidate's grade at every valid turn (N, K), out of fold.

    No tenant's turns count for more than its cap (`tenant_weights`). Turns beyond `quality.max_rows` graded ones are
    graded, not learnt from.
    """
    valid = episodes.valid
    states = episodes.state[valid]
    models = np.maximum(episodes.model[valid], 0)
    known = np.where(episodes.model[valid] >= 0, episodes.known_scores()[valid], np.nan).astype(np.float64)
    row, candidate = (found[: config.quality.max_rows] for found in np.nonzero(np.isfinite(known)))
    groups = folds_of(episodes, config.quality.folds, config.seed)[valid]
    weights = np.broadcast_to(tenant_weights(episodes, config.log.tenant_weight_cap)[:, None], valid.shape)[valid]
    quality, out_of_fold = fit_quality(
        states[row],
        models[row, candidate],
        known[row, candidate],
        groups[row],
        model_priors(episodes),
        config.quality,
        weights[row],
    )
    everywhere = quality.predict(states)
    everywhere[row] = out_of_fold
    return quality, np.take_along_axis(everywhere, models, axis=1)


def model_priors(episodes: Episodes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the serving policy believed of each model on average, (M,); .5 where it said nothing."""
    index, prior = episodes.model.reshape(-1), episodes.prior_quality.reshape(-1).astype(np.float64)
    known = (index >= 0) & np.isfinite(prior)
    count = np.bincount(index[known], minlength=len(episodes.models))
    total = np.bincount(index[known], weights=prior[known], minlength=len(episodes.models))
    return np.where(count > 0, total / np.maximum(count, 1), 0.5)


def device_turns(
    episodes: Episodes, grades: np.ndarray[Any, np.dtype[np.float64]], config: TrainConfig
) -> tuple[Turns, Array]:
    """Valid turns in order, on the device (vectors in float16), and the cumulative sampling weights (N,)."""
    valid = episodes.valid
    known = episodes.known_scores()[valid]
    graded = np.isfinite(known).astype(np.float32)
    scores = np.where(graded > 0, known, grades).astype(np.float32)
    weights = np.where(graded > 0, 1.0, config.fit.imputed_weight).astype(np.float32)
    spent = np.cumsum(episodes.cost_usd, axis=1) - episodes.cost_usd
    left = (episodes.lengths[:, None] - np.arange(valid.shape[1])[None, :]).astype(np.float32)
    per_session = tenant_weights(episodes, config.log.tenant_weight_cap)
    per_turn = np.broadcast_to(per_session[:, None], valid.shape)[valid]
    missing = padded_rows(episodes.turns) - episodes.turns

    def device(x: NDArray[Any], dtype: Any = None) -> Array:
        # Rows repeated, never drawn: logs of about a size share one compilation.
        return jnp.asarray(np.pad(x.astype(dtype or x.dtype), [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge"))

    turns = Turns(
        state=device(episodes.state[valid], np.float16),
        candidates=device(episodes.candidates[valid], np.float16),
        cost_quantiles_usd=device(episodes.cost_quantiles_usd[valid], np.float32),
        mask=device(episodes.mask[valid]),
        action=device(episodes.action[valid]),
        bills_usd=device(episodes.known_bills_usd()[valid]),
        grades=device(scores),
        weights=device(weights),
        graded=device(graded),
        spent_usd=device(spent[valid], np.float32),
        left=device(left[valid]),
    )
    return turns, device(np.cumsum(per_turn), np.float32)


def padded_rows(rows: int) -> int:
    """The next of the sizes that are compiled for: steps of a quarter of the size, of PAD_ROWS at least."""
    step = max(PAD_ROWS, (1 << rows.bit_length()) // 8)
    return rows + -rows % step


def tenant_weights(episodes: Episodes, cap: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weight of each session, (S,): 1, or less for a tenant whose turns exceed `cap` of all; a tenant alone has 1."""
    lengths = episodes.lengths.astype(np.float64)
    total = lengths.sum()
    names = np.asarray(episodes.tenant_ids)
    weights = np.ones(episodes.sessions)
    for name in np.unique(names):
        mine = names == name
        share = lengths[mine].sum() / max(total, 1.0)
        weights[mine] = min(1.0, cap / share) if share > 0 else 1.0
    return weights / max(float(weights.max(initial=0.0)), 1e-12) if len(weights) else weights


def train(
    params: Params,
    turns: Turns,
    cdf: Array,
    config: FitConfig,
    relabel: RelabelConfig,
    key: Array,
    progress: Progress | None = None,
    batch_sharding: NamedSharding | None = None,
) -> tuple[Params, tuple[dict[str, float], ...]]:
    """Adam on the CQL loss, in compiled scans of CHUNK_STEPS. Same data, config and key: the same parameters."""
    steps = whole_chunks(config.steps)
    target = jax.tree.map(jnp.copy, params)
    carry = (params, target, optimizer(config).init(params))
    if batch_sharding is not None:
        carry, turns, cdf = everywhere((carry, turns, cdf), batch_sharding)
    curve = []
    for start in range(0, steps, CHUNK_STEPS):
        keys = jax.random.split(jax.random.fold_in(key, start), CHUNK_STEPS)
        if batch_sharding is not None:
            keys = everywhere(keys, batch_sharding)
        if batch_sharding is None:
            carry, info = chunk(carry, keys, turns, cdf, config, relabel)
        else:
            carry, info = chunk_on_mesh(carry, keys, turns, cdf, config, relabel, batch_sharding)
        curve.append({"step": float(start + CHUNK_STEPS)} | {name: float(value) for name, value in info.items()})
        if progress is not None:
            progress(start + CHUNK_STEPS, steps)
    return carry[0], tuple(curve)


@partial(jax.jit, static_argnames=("config", "relabel"), donate_argnames="carry", compiler_options=COMPILER)
def chunk(
    carry: Carry, keys: Array, turns: Turns, cdf: Array, config: FitConfig, relabel: RelabelConfig
) -> tuple[Carry, Info]:
    """As many steps as there are keys. One compilation serves every fit of the same shapes and config."""
    masses = jnp.asarray(COST_MASSES)

    def step(carry: Carry, step_key: Array) -> tuple[Carry, Info]:
        batch = draw_batch(step_key, turns, masses, cdf, config, relabel)
        gradient, info = slope(carry[:2], batch, config, relabel)
        return moved(carry, gradient, config), info

    carry, infos = jax.lax.scan(step, carry, keys)
    return carry, jax.tree.map(jnp.mean, infos)


def chunk_on_mesh(
    carry: Carry,
    keys: Array,
    turns: Turns,
    cdf: Array,
    config: FitConfig,
    relabel: RelabelConfig,
    batch_sharding: NamedSharding,
) -> tuple[Carry, dict[str, float]]:
    """The same over a mesh: two programs a step, so that none is compiled together with what depends on the mesh."""
    infos = []
    for at in range(len(keys)):
        gradient, info = slope_on_mesh(carry[:2], keys, at, turns, cdf, config, relabel, batch_sharding)
        # Forced devices share few threads: a program dispatched ahead may hold the one that a collective waits for.
        gradient = jax.block_until_ready(gradient)
        carry = jax.block_until_ready(moved_on_mesh(carry, gradient, config))
        infos.append(info)
    return carry, {name: float(np.mean([float(info[name]) for info in infos])) for name in infos[0]}


@partial(jax.jit, static_argnames=("config", "relabel", "batch_sharding"), compiler_options=ON_MESH)
def slope_on_mesh(
    networks: tuple[Params, Params],
    keys: Array,
    at: int,
    turns: Turns,
    cdf: Array,
    config: FitConfig,
    relabel: RelabelConfig,
    batch_sharding: NamedSharding,
) -> tuple[Params, Info]:
    """The gradient at the `at`-th key's batch, whole on every device."""
    batch = draw_batch(keys[at], turns, jnp.asarray(COST_MASSES), cdf, config, relabel)
    found: tuple[Params, Info] = mean_of_shards(
        lambda same, part: slope(same, part, config, relabel), networks, batch, batch_sharding
    )
    return found


def slope(
    networks: tuple[Params, Params], batch: Batch, config: FitConfig, relabel: RelabelConfig
) -> tuple[Params, Info]:
    """Gradient of the loss by the online network's parameters, beside (online, target)."""
    found: tuple[Params, Info] = jax.grad(loss, has_aux=True)(*networks, batch, config, relabel)
    return found


def moved(carry: Carry, gradient: Params, config: FitConfig) -> Carry:
    """One step of the optimiser, and of the target network after it."""
    params, target, state = carry
    updates, state = optimizer(config).update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return params, polyak(target, params, config.polyak), state


moved_on_mesh = jax.jit(moved, static_argnames="config", donate_argnames="carry", compiler_options=ON_MESH)


def optimizer(config: FitConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients and a cosine decay after a short warm-up."""
    steps = whole_chunks(config.steps)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, steps // 20, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.adamw(rate, weight_decay=config.weight_decay)
    )


def whole_chunks(steps: int) -> int:
    """Steps rounded down to whole chunks, one at least."""
    return max(CHUNK_STEPS, steps - steps % CHUNK_STEPS)
