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
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from policy.budgeting import CACHE_MIN_TOKENS
from policy.catalogue_statistics import GROWN_TOKENS, LEAST_USD, CatalogueStatistics, Rows
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.value_curves import Backup, Catalogue, Curves, Later, after_bill, money_axis, read
from policy.value_network import Params, curves
from policy.value_network_shapes import KNOTS
from train.config import FitConfig, PlanConfig, RelabelConfig
from train.fit.cql import polyak
from train.fit.mesh import everywhere, mean_of_shards
from train.fit.programme import QUALITY, SPEND, STARVED, Programme, programme
from train.fit.value_table import UNKNOWN_USD, Samples

Array = jax.Array
Info = dict[str, Array]
Carry = tuple[Params, Params, optax.OptState]

COMPILER = {"xla_backend_optimization_level": 1}
"""As fast as the default level, at half the compile time where cores are shared."""
ON_MESH = COMPILER | {"xla_disable_hlo_passes": "algsimp"}
"""Without the simplifier, whose rewriting of sums depends on the number of devices, results are bit-identical."""
CHUNK_STEPS = 50
"""Gradient steps between two updates of the progress bar; one compiled scan."""
CURVES_A_STEP = 256
"""Curves of the programme in one step of the warm start."""
CONTEXTS_TOKENS = (0.0, 1500.0, 4000.0, 8000.0, 16000.0, 32000.0, 64000.0)
LEAST_GROWTH_TOKENS = 20.0
"""Logs whose conversations grow by less count as having none."""
DEFAULT_CACHED = 0.1
"""Default ratio of cached to list price, for catalogues without cached prices."""
FREE_WEIGHT = 6.0
"""Sampling weight of the programme of quality alone, relative to another pair of prices."""
HUBER = 0.05


class TrainingSet(NamedTuple):
    """Training data on the device: the catalogue and M turns of K models.

    `quality` (M, K) are predictions, `bills_usd` (M, K, L) without conversation.
    """

    catalogue: Catalogue
    quality: Any
    bills_usd: Any
    answers: Any  # (K, L)
    grown_tokens: Any


class CurveTarget(NamedTuple):
    """Target curves per later turn, with their catalogue and terms. Leading axis G."""

    catalogue: Catalogue
    later: Later
    curves: Curves


class Tables(NamedTuple):
    """Programmes on the device as cells of (price pair, context, warm model); curves by turns."""

    budgets_usd: Any  # (B,)
    values: Any  # (cells, N + 1, B, 3)
    lambdas_per_usd: Any  # (cells,)
    penalties: Any
    contexts_tokens: Any
    grown_tokens: Any
    last: Any
    weights: Any


def catalogue_statistics_of(samples: Samples, margin: np.ndarray[Any, np.dtype[np.float64]]) -> CatalogueStatistics:
    """Statistics of the models for serving: means over the turns that offered each.

    `margin` is (K + 1,).
    """
    offered = samples.bills_usd[..., -1] < UNKNOWN_USD
    count = np.maximum(offered.sum(axis=0), 1)
    quality = np.where(offered, np.clip(samples.quality - margin[:-1], 0.0, 1.0), 0.0)
    mean = quality.sum(axis=1, keepdims=True) / np.maximum(offered.sum(axis=1, keepdims=True), 1)
    own = np.where(offered, quality - mean, 0.0)
    spread = np.sqrt(np.maximum((own**2).sum(axis=0) / count - (own.sum(axis=0) / count) ** 2, 0.0))
    bills = np.where(offered[..., None], samples.bills_usd, 0.0).sum(axis=0) / count[:, None]
    # A model that no turn offered gets the highest price: the network must not plan with it as if it were free.
    costliest = max(float((bills @ COST_MASSES).max()), LEAST_USD)
    seen = offered.any(axis=0)
    f32 = np.float32
    return CatalogueStatistics(
        models=samples.models,
        quality=(quality.sum(axis=0) / count).astype(f32),
        spread=spread.astype(f32),
        mean_usd=np.where(seen, np.maximum(bills @ COST_MASSES, LEAST_USD), costliest).astype(f32),
        q95_usd=np.where(seen, np.maximum(bills[:, COST_LEVELS.index(0.95)], LEAST_USD), costliest).astype(f32),
        list_usd=samples.list_usd.astype(f32),
        answers=samples.answers.astype(f32),
        margin=margin.astype(f32),
        grown_tokens=np.array([grown_tokens(samples)], f32),
    )


def grown_tokens(samples: Samples) -> float:
    """Tokens that a turn adds to the conversation; a default when the log has no conversations."""
    return samples.grown_tokens if samples.grown_tokens >= LEAST_GROWTH_TOKENS else GROWN_TOKENS


def known_rows(statistics: CatalogueStatistics, samples: Samples) -> Rows:
    """Rows of the statistics' own models at the prices they were learned at."""
    k = len(statistics.models)
    unseen = np.ones((k, len(COST_LEVELS)), np.float32)
    return statistics.rows(
        np.arange(k), statistics.quality, samples.list_usd, unseen, np.zeros(k), np.ones(k, np.bool_)
    )


def training_set_of(samples: Samples, statistics: CatalogueStatistics) -> TrainingSet:
    """The samples as training data, with qualities as served: less their margins."""
    priced = samples.input_usd > 0.0
    ratio = np.where(priced, samples.cached_usd / np.where(priced, samples.input_usd, 1.0), 1.0)
    cached = np.where(ratio < 1.0, samples.cached_usd, samples.input_usd * DEFAULT_CACHED)
    columns = (*known_rows(statistics, samples), samples.input_usd, cached)
    shown = jnp.ones(len(samples.models), bool)
    catalogue = Catalogue._make([*(jnp.asarray(x, jnp.float32) for x in columns), shown])
    quality = np.clip(samples.quality - statistics.margin[:-1], 0.0, 1.0)
    return TrainingSet(
        catalogue,
        jnp.asarray(quality, jnp.float32),
        jnp.asarray(samples.bills_usd, jnp.float32),
        jnp.asarray(samples.answers[:-1], jnp.float32),
        jnp.float32(statistics.grown_tokens[0]),
    )


# -- targets from the exact programme ------------------------------------------------------------------------------


def price_pairs(mean_bill_usd: float) -> list[tuple[float, float]]:
    """Pairs of (lambda per USD, penalty) to solve; the first, quality alone, is sampled most."""
    lambdas = [x / max(mean_bill_usd, 1e-12) for x in (0.05, 0.3, 2.0)]
    free = [(0.0, penalty) for penalty in (0.0, 0.3, 2.0, 10.0, 30.0)]
    return free + [(price, 0.0) for price in lambdas] + [(lambdas[0], 2.0), (lambdas[1], 10.0)]


def tables_of(samples: Samples, catalogue: Catalogue, config: PlanConfig, grown: float) -> Tables:
    """Programmes with and without conversation as one list of cells."""
    usd = float(np.asarray(catalogue.mean_usd).mean())
    few = np.linspace(0, len(samples.quality) - 1, min(config.samples, len(samples.quality))).round().astype(np.int64)
    cached = np.asarray(catalogue.cached_usd, np.float64)
    taken = replace(samples, quality=samples.quality[few], bills_usd=samples.bills_usd[few], cached_usd=cached)
    made = []
    for contexts, growth in (((0.0,), 0.0), (CONTEXTS_TOKENS, grown)):
        here = replace(config, money_points=64, contexts_tokens=contexts)
        made.append(programme(replace(taken, grown_tokens=growth), here, price_pairs(usd)))
    return join_programmes(made, len(samples.models))


def join_programmes(programmes: list[Programme], models: int) -> Tables:
    """All cells of several programmes of one catalogue, on the longest money axis."""
    axis = max((p.budgets_usd for p in programmes), key=lambda budgets: float(budgets[-1]))
    columns: list[list[Any]] = [[] for _ in range(7)]
    for one in programmes:
        p, c, k1, n1, _, parts = one.values.shape
        at = _resample(one.values, one.budgets_usd, axis).reshape(p * c * k1, n1, len(axis), parts)
        price, context, last = (axis.ravel() for axis in np.indices((p, c, k1)))
        # Without a cache the model that served does not matter: one of those cells is enough.
        cached = one.contexts_tokens[context] >= CACHE_MIN_TOKENS
        weight = np.where(cached | (last == models), 1.0, 0.0) * np.where(price == 0, FREE_WEIGHT, 1.0) / c
        for column, values in zip(
            columns,
            (at, one.lambdas_per_usd[price], one.penalties[price], one.contexts_tokens[context],
             np.full(len(last), one.grown_tokens), last, weight / weight.sum() / len(programmes)),
            strict=True,
        ):  # fmt: skip
            column.append(values)
    return Tables(jnp.asarray(axis, jnp.float32), *(jnp.asarray(np.concatenate(x), jnp.float32) for x in columns))


def _resample(values: Any, budgets: Any, axis: Any) -> Any:
    """Interpolate (..., B, 3) at other sums of money, (..., B', 3)."""
    if len(budgets) == len(axis) and np.array_equal(budgets, axis):
        return values
    low = np.clip(np.searchsorted(budgets, axis, side="right") - 1, 0, len(budgets) - 2)
    share = np.clip((axis - budgets[low]) / (budgets[low + 1] - budgets[low]), 0.0, 1.0).astype(np.float32)[:, None]
    return (1 - share) * values[..., low, :] + share * values[..., low + 1, :]


def exact(key: Array, data: TrainingSet, tables: Tables, turns: int) -> CurveTarget:
    """Draw curves of the programme at the knots of the network's money axis."""
    one, two = jax.random.split(key)
    cell = jax.random.choice(one, len(tables.weights), (CURVES_A_STEP,), p=tables.weights)
    n = jax.random.randint(two, (CURVES_A_STEP,), 1, turns + 1)
    later = Later(
        n * 1.0, tables.contexts_tokens[cell], tables.grown_tokens[cell], tables.last[cell].astype(jnp.int32),
        tables.lambdas_per_usd[cell], tables.penalties[cell],
    )  # fmt: skip
    money = money_axis(data.catalogue, later, jnp)
    low = jnp.clip(jnp.searchsorted(tables.budgets_usd, money, side="right") - 1, 0, len(tables.budgets_usd) - 2)
    below, above = tables.budgets_usd[low], tables.budgets_usd[low + 1]
    share = jnp.clip((money - below) / (above - below), 0.0, 1.0)[..., None]
    at = (cell[:, None], n[:, None])
    found = (1 - share) * tables.values[(*at, low)] + share * tables.values[(*at, low + 1)]
    per_turn = n[:, None] * 1.0
    curve = Curves(money, found[..., QUALITY] / per_turn, found[..., SPEND] / per_turn, found[..., STARVED])
    return CurveTarget(repeat_catalogue(data.catalogue, CURVES_A_STEP), later, curve)


def repeat_catalogue(catalogue: Catalogue, groups: int) -> Catalogue:
    """Repeat the catalogue for every group, (G, K)."""
    return Catalogue(*(jnp.broadcast_to(x, (groups, len(x))) for x in catalogue))


# -- temporal differences ------------------------------------------------------------------------------------------


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
    """`td_chunk` over a mesh, in two programs per step.

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
