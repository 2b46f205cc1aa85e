"""Training data of the value network: the log's turns, and the exact programme's curves.

A log becomes a set of turns with the statistics of its models; the exact programme (train/fit/programme.py) becomes
tables from which curves for any budget are drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from policy.budgeting import CACHE_MIN_TOKENS
from policy.catalogue_statistics import GROWN_TOKENS, LEAST_USD, CatalogueStatistics, Rows
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.value_curves import Catalogue, Curves, Later, money_axis
from train.config import PlanConfig
from train.fit.programme import QUALITY, SPEND, STARVED, Programme, programme
from train.fit.value_table import UNKNOWN_USD, Samples

Array = jax.Array

CURVES_A_STEP = 256
"""Curves of the programme in one step of the warm start."""
CONTEXTS_TOKENS = (0.0, 1500.0, 4000.0, 8000.0, 16000.0, 32000.0, 64000.0)
LEAST_GROWTH_TOKENS = 20.0
"""Logs whose conversations grow by less count as having none."""
DEFAULT_CACHED = 0.1
"""Default ratio of cached to list price, for catalogues without cached prices."""
FREE_WEIGHT = 6.0
"""Sampling weight of the programme of quality alone, relative to another pair of prices."""


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
        grown_tokens=np.array([samples.grown_tokens], f32),
    )


def taught_growth_tokens(samples: Samples) -> float:
    """Growth of the conversations to train on: the log's, or a default where the log has none.

    The growth is an input of the network, and later sessions may have conversations although the log has none.
    """
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
        jnp.float32(taught_growth_tokens(samples)),
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
