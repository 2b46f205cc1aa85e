"""Training of the value network: regression on the exact programme, then TD over the log.

1. *Warm start*: regress the curves on `train.fit.programme`, with few turns, few prices and a coarse grid.
2. *TD*: one expected step of full information. For a group of turns drawn from the log, at every knot of the money
axis,

       y(m) = mean over turns of  Backup of  argmax_k worth( after_bill(quality_k answer_kl, b_kl, m, target curves) ),

   over all 15 quantiles of every candidate's bill. Later turns, conversation, growth, cached price, warm model,
   lambda and penalty are redrawn in every step: what a user says next depends on none of them, and all of them
   follow by bookkeeping, so a recorded turn is a true transition under any (hindsight budget relabeling, arXiv
   2605.25424).

Qualities are out-of-fold predictions less the margin with which they serve: their maximum is not biased upwards, and
the values are those of the policy that serves, under the same mask. Deterministic given log, config and key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from policy.budgeting import CACHE_MIN_TOKENS
from policy.catalogue_statistics import CatalogueStatistics
from policy.value_backup import Backup, after_bill
from policy.value_curves import Curves, Later, money_axis, read
from policy.value_network import Params, curves
from policy.value_network_shapes import KNOTS
from train.config import FitConfig, PlanConfig, RelabelConfig
from train.fit.cql import polyak
from train.fit.mesh import everywhere, mean_of_shards
from train.fit.value_table import Samples
from train.fit.value_targets import (
    CurveTarget,
    Tables,
    TrainingSet,
    exact,
    repeat_catalogue,
    tables_of,
    training_set_of,
)

Array = jax.Array
Info = dict[str, Array]
Carry = tuple[Params, Params, optax.OptState]

COMPILER = {"xla_backend_optimization_level": 1}
"""As fast as the default level, at half the compile time where cores are shared."""
ON_MESH = COMPILER | {"xla_disable_hlo_passes": "algsimp"}
"""Without the simplifier, whose rewriting of sums depends on the number of devices, results are bit-identical."""
CHUNK_STEPS = 50
"""Gradient steps between two updates of the progress bar; one compiled scan."""
HUBER = 0.05


class Drawn(NamedTuple):
    """Terms of one step, (G,) each, with cached prices (G, K) and turns (G, J) of every group."""

    later: Later
    cached_usd: Any
    rows: Any


def draw(key: Array, data: TrainingSet, fit: FitConfig, relabel: RelabelConfig, turns: int) -> Drawn:
    """Draw the terms independently of one another; none affects what users say."""
    keys, g = jax.random.split(key, 10), fit.groups
    k, (m, _, _) = len(data.catalogue.quality), data.bills_usd.shape
    uniform = [jax.random.uniform(each, (g,)) for each in keys[:8]]

    def between(u: Array, low: float, high: float) -> Array:
        return jnp.exp(jnp.log(low) + u * jnp.log(high / low))

    n = jnp.floor(uniform[0] * turns) + 1.0
    context = jnp.where(uniform[1] < fit.conversation_fraction, between(uniform[2], 256.0, 64_000.0), 0.0)
    growth = jnp.where(context > 0.0, data.grown_tokens * between(uniform[3], 0.5, 2.0), 0.0)
    usd = data.catalogue.mean_usd.mean()
    free = uniform[4] < relabel.lambda_zero_fraction
    price = jnp.where(free, 0.0, between(uniform[5], relabel.lambda_low, relabel.lambda_high) / usd)
    bold = uniform[6] < relabel.bold_fraction
    penalty = jnp.where(bold, 0.0, between(uniform[7], relabel.penalty_low, relabel.penalty_high))
    last = jax.random.randint(keys[8], (g,), 0, k + 1)
    cached_key, rows_key = jax.random.split(keys[9])
    listed = jax.random.uniform(cached_key, (g, 1)) < 0.5
    ratio = jax.random.choice(cached_key, jnp.array([0.1, 0.25, 0.5]), (g, 1))
    cached = jnp.where(listed, data.catalogue.cached_usd, ratio * data.catalogue.input_usd)
    return Drawn(
        Later(n, context, growth, last, price, penalty), cached, jax.random.randint(rows_key, (g, fit.rows), 0, m)
    )


def back_up(target: Params, data: TrainingSet, drawn: Drawn) -> CurveTarget:
    """Expected backup of every group at every knot of its money axis."""
    k = len(data.catalogue.quality)
    each = jax.vmap(partial(_back_up, target, data, k))(drawn.later, drawn.cached_usd, drawn.rows)
    catalogue = repeat_catalogue(data.catalogue, len(drawn.rows))._replace(cached_usd=drawn.cached_usd)
    return jax.lax.stop_gradient(CurveTarget(catalogue, drawn.later, each))


def _back_up(target: Params, data: TrainingSet, k: int, later: Later, cached_usd: Array, rows: Array) -> Curves:
    catalogue = data.catalogue._replace(cached_usd=cached_usd)
    money = money_axis(catalogue, later, jnp)
    warm = (later.last == jnp.arange(k)) & (later.context_tokens >= CACHE_MIN_TOKENS)
    reading = later.context_tokens * jnp.where(warm, cached_usd, catalogue.input_usd)
    bills = data.bills_usd[rows] + reading[:, None]  # (J, K, L)
    following = Later(
        jnp.full(k, jnp.maximum(later.turns - 1.0, 1.0)), jnp.full(k, later.context_tokens + later.grown_tokens),
        jnp.full(k, later.grown_tokens), jnp.arange(k), jnp.full(k, later.lambda_per_usd), jnp.full(k, later.penalty),
    )  # fmt: skip
    known = curves(target, catalogue, following)  # (K, KNOTS)
    left = jnp.maximum(money[:, None, None, None] - bills, 0.0)  # (KNOTS, J, K, L)
    flat = jnp.moveaxis(left, 2, 0).reshape(k, -1)
    to_go = tuple(jnp.moveaxis(x.reshape(k, KNOTS, len(rows), -1), 0, 2) for x in read(known, flat, jnp))
    now = data.quality[rows][..., None] * data.answers  # (J, K, L)
    shape = (KNOTS, len(rows), k)
    found = after_bill(
        now, bills[None], jnp.broadcast_to(money[:, None, None], shape), jnp.broadcast_to(later.turns - 1.0, shape),
        (to_go[0], to_go[1], to_go[2]), jnp,
    )  # fmt: skip
    best = jnp.argmax(found.worth(later.lambda_per_usd, later.penalty), -1)[..., None]
    mean = Backup(*(jnp.take_along_axis(x, best, -1)[..., 0].mean(-1) for x in found))  # (KNOTS,)
    return Curves(money, mean.quality / later.turns, mean.spend_usd / later.turns, mean.starved)


# -- the loss and its descent --------------------------------------------------------------------------------------


def loss(params: Params, wanted: CurveTarget) -> tuple[Array, Info]:
    """Huber error of the worth per turn and its slope in money, plus a little of each part's.

    huber(w' - w) + huber(sqrt(n) diff(w' - w)),    w = quality - lambda spend - penalty starved / n
    """
    found = curves(params, wanted.catalogue, wanted.later)
    n, price, penalty = (x[:, None] for x in (wanted.later.turns, wanted.later.lambda_per_usd, wanted.later.penalty))
    quality = found.quality - wanted.curves.quality
    starved = found.starved - wanted.curves.starved
    worth = quality - price * (found.spend_usd - wanted.curves.spend_usd) - penalty * starved / n
    least = 1e-3 * wanted.curves.money_usd / n
    spend = jnp.log((found.spend_usd + least) / (wanted.curves.spend_usd + least))
    level, slope = huber(worth).mean(), huber(jnp.diff(worth, axis=-1) * jnp.sqrt(n)).mean()
    parts = 0.3 * jnp.mean(quality**2) + 0.05 * jnp.mean(starved**2) + 0.002 * jnp.mean(spend**2)
    total = 1e3 * (level + slope + parts)
    return total, {
        "curves/loss": total,
        "curves/worth": jnp.sqrt(jnp.mean(worth**2)),
        "curves/quality": jnp.sqrt(jnp.mean(quality**2)),
        "curves/starved": jnp.sqrt(jnp.mean(starved**2)),
    }


def huber(error: Array) -> Array:
    """Huber loss (1964): quadratic up to HUBER, linear beyond.

    Without money errors are large and decide nothing.
    """
    return jnp.asarray(optax.huber_loss(error, delta=HUBER))


def optimizer(steps: int, rate: float, fit: FitConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients and a cosine decay after a short warm-up."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 20, 1), max(steps, 2))
    return optax.chain(
        optax.clip_by_global_norm(fit.gradient_clip), optax.adamw(schedule, weight_decay=fit.weight_decay)
    )


@partial(jax.jit, static_argnames=("fit", "steps", "turns"), donate_argnames="carry", compiler_options=COMPILER)
def warm_chunk(
    carry: Carry, keys: Array, data: TrainingSet, tables: Tables, fit: FitConfig, steps: int, turns: int
) -> tuple[Carry, Info]:
    """Regress on the programme, one step per key."""

    def step(carry: Carry, key: Array) -> tuple[Carry, Info]:
        gradient, info = jax.grad(loss, has_aux=True)(carry[0], exact(key, data, tables, turns))
        return apply_gradient(carry, gradient, fit, steps, fit.warm_rate), info

    carry, infos = jax.lax.scan(step, carry, keys)
    return carry, jax.tree.map(jnp.mean, infos)


@partial(
    jax.jit, static_argnames=("fit", "relabel", "steps", "turns"), donate_argnames="carry", compiler_options=COMPILER
)
def td_chunk(
    carry: Carry, keys: Array, data: TrainingSet, fit: FitConfig, relabel: RelabelConfig, steps: int, turns: int
) -> tuple[Carry, Info]:
    """Take one TD step per key. Compiled once for all fits of the same shapes and config."""

    def step(carry: Carry, key: Array) -> tuple[Carry, Info]:
        gradient, info = td_gradient((carry[0], carry[1], data), draw(key, data, fit, relabel, turns))
        return apply_gradient(carry, gradient, fit, steps, fit.learning_rate), info

    carry, infos = jax.lax.scan(step, carry, keys)
    return carry, jax.tree.map(jnp.mean, infos)


def td_gradient(known: tuple[Params, Params, TrainingSet], drawn: Drawn) -> tuple[Params, Info]:
    """Gradient of the TD loss by the online parameters; `known` is (online, target, data)."""
    online, target, data = known
    found: tuple[Params, Info] = jax.grad(loss, has_aux=True)(online, back_up(target, data, drawn))
    return found


def apply_gradient(carry: Carry, gradient: Params, fit: FitConfig, steps: int, rate: float) -> Carry:
    """Step the optimiser, then the moving average of the parameters."""
    params, mean, state = carry
    updates, state = optimizer(steps, rate, fit).update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    return params, polyak(mean, params, fit.polyak), state


@partial(jax.jit, static_argnames=("fit", "relabel", "turns", "sharding"), compiler_options=ON_MESH)
def _td_gradient_on_mesh(
    known: tuple[Params, Params, TrainingSet], key: Array, fit: FitConfig, relabel: RelabelConfig, turns: int,
    sharding: NamedSharding,
) -> tuple[Params, Info]:  # fmt: skip
    drawn = draw(key, known[2], fit, relabel, turns)
    found: tuple[Params, Info] = mean_of_shards(td_gradient, known, drawn, sharding)
    return found


_moved_on_mesh = jax.jit(
    apply_gradient, static_argnames=("fit", "steps", "rate"), donate_argnames="carry", compiler_options=ON_MESH
)


def on_mesh(
    carry: Carry, keys: Array, data: TrainingSet, fit: FitConfig, relabel: RelabelConfig, steps: int, turns: int,
    sharding: NamedSharding,
) -> tuple[Carry, Info]:  # fmt: skip
    """Take the steps of `td_chunk` over a mesh, in two programs per step.

    No computation is compiled together with what depends on the mesh.
    """
    infos = []
    for key in keys:
        gradient, info = _td_gradient_on_mesh((carry[0], carry[1], data), key, fit, relabel, turns, sharding)
        # Forced devices share few threads: a program dispatched ahead may hold one that a collective waits for.
        gradient = jax.block_until_ready(gradient)
        carry = jax.block_until_ready(_moved_on_mesh(carry, gradient, fit, steps, fit.learning_rate))
        infos.append(info)
    return carry, {name: jnp.mean(jnp.array([float(info[name]) for info in infos])) for name in infos[0]}


def teach(
    params: Params,
    samples: Samples,
    statistics: CatalogueStatistics,
    fit: FitConfig,
    relabel: RelabelConfig,
    plan: PlanConfig,
    key: Array,
    progress: Callable[[int, int], None] | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[Params, tuple[dict[str, float], ...]]:
    """Warm start and TD from given parameters; returns averaged parameters and the loss curve."""
    data, curve = training_set_of(samples, statistics), []
    warm_key, td_key = jax.random.split(key)
    warm_steps, steps = whole_chunks(fit.warm_steps), whole_chunks(fit.steps)

    def note(phase: str, done: int, info: Info) -> None:
        curve.append({"step": float(done)} | {f"{phase}/{name}": float(value) for name, value in info.items()})
        if progress is not None:
            progress(done + (warm_steps if phase == "td" else 0), warm_steps + steps)

    params = jax.tree.map(jnp.asarray, params)
    if warm_steps:
        tables = tables_of(samples, data.catalogue, plan, float(data.grown_tokens))
        carry = initial_carry(params, warm_steps, fit.warm_rate, fit)
        for start in range(0, warm_steps, CHUNK_STEPS):
            keys = jax.random.split(jax.random.fold_in(warm_key, start), CHUNK_STEPS)
            carry, info = warm_chunk(carry, keys, data, tables, fit, warm_steps, plan.turns)
            note("warm", start + CHUNK_STEPS, info)
        params = carry[1]
    if not steps:
        return params, tuple(curve)
    carry = initial_carry(params, steps, fit.learning_rate, fit)
    if sharding is not None:
        carry, data = everywhere((carry, data), sharding)
    for start in range(0, steps, CHUNK_STEPS):
        keys = jax.random.split(jax.random.fold_in(td_key, start), CHUNK_STEPS)
        if sharding is None:
            carry, info = td_chunk(carry, keys, data, fit, relabel, steps, plan.turns)
        else:
            keys = everywhere(keys, sharding)
            carry, info = on_mesh(carry, keys, data, fit, relabel, steps, plan.turns, sharding)
        note("td", start + CHUNK_STEPS, info)
    return carry[1], tuple(curve)


def initial_carry(params: Params, steps: int, rate: float, fit: FitConfig) -> Carry:
    """Initial state: online parameters, their average and the optimiser's."""
    return jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params), optimizer(steps, rate, fit).init(params)


def whole_chunks(steps: int) -> int:
    """Steps rounded up to whole chunks."""
    return -(-steps // CHUNK_STEPS) * CHUNK_STEPS
