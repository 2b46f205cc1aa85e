"""Pretraining of the shipped network on random catalogues, for an install without a log.

Every catalogue is drawn from wide ranges: two to eight models, prices over three decades, priors partly explained by
price, turns whose difficulty bends them as `policy.quality.PriorQuality` assumes, bills with light and heavy tails that
the text predicts or not, answers that are worse at high bills or not, conversations and cached prices. The network
regresses on the exact programme (train/fit/programme.py) of each. The only input is the seed: no third party's data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from policy import value_network
from policy.manifest import Recipe
from policy.mdp import COST_LEVELS, COST_MASSES
from policy.quality import PriorQuality
from policy.reload import PRETRAINED
from policy.value_curves import Catalogue, Curves, Later, money_axis
from policy.value_network import Params
from policy.value_network_shapes import KNOTS, Sizes
from train.config import FitConfig, PlanConfig
from train.fit.programme import QUALITY, SPEND, STARVED, Programme, programme
from train.fit.value_curves import COMPILER, Carry, Info, apply_gradient, initial_carry, loss
from train.fit.value_table import Samples
from train.fit.value_targets import CurveTarget, catalogue_statistics_of, known_rows
from train.progress import Progress

MODELS = 8
"""Number of models that catalogues are padded to."""
NORMAL = np.array([NormalDist().inv_cdf(level) for level in COST_LEVELS])
CONTEXTS_TOKENS = (0.0, 1500.0, 6000.0, 24000.0)
CHUNK_STEPS = 250
STARVED_PENALTY = 1.0
"""What the shipped network counts a session that ends without money as: one lost answer (docs/policy-results.md)."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Size of the pretraining. The shipped checkpoint uses these defaults and seed 0."""

    catalogues: int = 500
    curves: int = 240
    """Curves kept of each catalogue's some thousands."""
    steps: int = 20_000
    batch_size: int = 256
    rate: float = 3e-3
    samples: int = 40
    """Sampled turns of a catalogue."""
    money_points: int = 48
    turns: int = 16
    sizes: Sizes = field(default_factory=Sizes)


def pretrain(config: PretrainConfig, seed: int, progress: Progress | None = None) -> Params:
    """Draw, solve, regress. Bit-identical for the same config and seed on the same machine."""
    told = progress or (lambda step, done, total: None)
    parts = []
    for i in range(config.catalogues):
        parts.append(random_target(np.random.default_rng([seed, i]), config))
        told("solve", i + 1, config.catalogues)
    pool: CurveTarget = jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)), *parts)
    init_key, train_key = jax.random.split(jax.random.key(seed))
    fit = FitConfig()
    carry = initial_carry(value_network.init(init_key, config.sizes), config.steps, config.rate, fit)
    for start in range(0, config.steps, CHUNK_STEPS):
        keys = jax.random.split(jax.random.fold_in(train_key, start), min(CHUNK_STEPS, config.steps - start))
        carry, _ = chunk(carry, keys, pool, fit, config)
        told("fit", min(start + CHUNK_STEPS, config.steps), config.steps)
    return carry[1]


@partial(jax.jit, static_argnames=("fit", "config"), donate_argnames="carry", compiler_options=COMPILER)
def chunk(
    carry: Carry, keys: jax.Array, pool: CurveTarget, fit: FitConfig, config: PretrainConfig
) -> tuple[Carry, Info]:
    """Take one regression step per key."""

    def step(carry: Carry, key: jax.Array) -> tuple[Carry, Info]:
        rows = jax.random.randint(key, (config.batch_size,), 0, len(pool.later.turns))
        gradient, info = jax.grad(loss, has_aux=True)(carry[0], jax.tree.map(lambda x: x[rows], pool))
        return apply_gradient(carry, gradient, fit, config.steps, config.rate), info

    carry, infos = jax.lax.scan(step, carry, keys)
    return carry, jax.tree.map(jnp.mean, infos)


def random_target(generator: np.random.Generator, config: PretrainConfig) -> CurveTarget:
    """Curves of one random catalogue under random prices, as NumPy arrays.

    With and without conversation.
    """
    samples = random_samples(generator, config.samples)
    statistics = catalogue_statistics_of(samples, np.zeros(len(samples.models) + 1))
    unit = float(statistics.mean_usd.mean())
    prices = random_prices(generator, unit)
    parts = []
    for contexts, grown in (((0.0,), 0.0), (CONTEXTS_TOKENS, samples.grown_tokens)):
        plan = PlanConfig(turns=config.turns, money_points=config.money_points, contexts_tokens=contexts)
        solved = programme(replace(samples, grown_tokens=grown), plan, prices)
        parts.append(sample_curves(solved, samples, statistics, generator, config.curves // 2))
    return CurveTarget(*(jax.tree.map(lambda *x: np.concatenate(x), *each) for each in zip(*parts, strict=True)))


def sample_curves(
    solved: Programme, samples: Samples, statistics: Any, generator: np.random.Generator, count: int
) -> CurveTarget:
    """Draw `count` curves of a programme at the knots of the network's axis."""
    k = len(samples.models)
    p = generator.integers(0, len(solved.lambdas_per_usd), count)
    c = generator.integers(0, len(solved.contexts_tokens), count)
    n = generator.integers(1, solved.values.shape[3], count)
    last = generator.integers(0, k + 1, count)
    f32 = np.float32
    columns = (*known_rows(statistics, samples), samples.input_usd, samples.cached_usd)
    # Padding gets a model's prices, so that no logarithm is of zero.
    padded = [np.pad(np.asarray(x, f32), (0, MODELS - k), mode="edge") for x in columns]
    mask = np.arange(MODELS) < k
    catalogue = Catalogue(*(np.broadcast_to(x, (count, MODELS)).copy() for x in (*padded, mask)))
    later = Later(
        n.astype(f32),
        solved.contexts_tokens[c].astype(f32),
        np.full(count, solved.grown_tokens, f32),
        np.where(last == k, MODELS, last).astype(np.int32),
        solved.lambdas_per_usd[p].astype(f32),
        solved.penalties[p].astype(f32),
    )
    money = np.asarray(money_axis(catalogue, later), f32)
    axis = solved.budgets_usd
    low = np.clip(np.searchsorted(axis, money, side="right") - 1, 0, len(axis) - 2)
    share = np.clip((money - axis[low]) / (axis[low + 1] - axis[low]), 0.0, 1.0)[..., None]
    at = (p[:, None], c[:, None], last[:, None], n[:, None])
    found = (1 - share) * solved.values[(*at, low)] + share * solved.values[(*at, low + 1)]
    each = [found[..., part] / (n[:, None] if part != STARVED else 1.0) for part in (QUALITY, SPEND, STARVED)]
    assert money.shape == (count, KNOTS)
    return CurveTarget(catalogue, later, Curves(money, *(x.astype(f32) for x in each)))


def recipe(sizes: Sizes, seed: int) -> Recipe:
    """The manifest of the shipped checkpoint."""
    return Recipe(
        PRETRAINED,
        rule="network",
        rule_parameters={"starved_penalty": STARVED_PENALTY},
        sizes=sizes,
        report={"pretrained": {"seed": seed}},
    )


def random_prices(generator: np.random.Generator, unit_usd: float) -> list[tuple[float, float]]:
    """Pairs of lambda and penalty: neither, each alone, and both."""
    lambdas = 10.0 ** generator.uniform(-1.7, 0.7, 3) / unit_usd
    penalties = 10.0 ** generator.uniform(-1.0, 1.6, 3)
    return [
        (0.0, 0.0), (0.0, float(penalties[0])), (0.0, float(penalties[1])),
        (float(lambdas[0]), 0.0), (float(lambdas[1]), 0.0), (float(lambdas[2]), float(penalties[2])),
    ]  # fmt: skip


def random_samples(generator: np.random.Generator, count: int) -> Samples:
    """Turns of a random catalogue, in the form of a log's."""
    k = int(generator.choice(np.arange(2, MODELS + 1), p=np.array([5, 5, 5, 4, 3, 2, 2]) / 26.0))
    decades = generator.uniform(0.3, 2.7)
    place = np.sort(generator.random(k))
    usd_out = 0.1e-6 * 10.0 ** (decades * place)
    usd_in = usd_out / generator.uniform(2.0, 5.0)
    cached = usd_in * generator.choice([0.1, 0.1, 0.25, 0.5, 1.0])
    explained = generator.uniform(0.2, 1.0)
    standing = explained * place + (1.0 - explained) * generator.random(k)
    least, most = np.sort(generator.uniform(0.05, 0.97, 2))
    priors = least + (most - least) * standing
    hard = generator.beta(1.5, 2.5, count)[:, None]
    bend = PriorQuality(sensitivity=float(generator.uniform(0.0, 3.0)))
    own = generator.uniform(0.0, 0.12) * generator.standard_normal((count, k))
    quality = np.clip(priors ** bend.exponent(hard) + own, 0.0, 1.0)
    tokens = np.exp(
        generator.uniform(np.log(50.0), np.log(2000.0)) + generator.uniform(0.0, 0.5) * generator.standard_normal(k)
    )
    foretold = np.exp(generator.uniform(0.0, 0.9) * generator.standard_normal((count, 1)))
    width = generator.uniform(0.1, 1.2) * np.exp(0.3 * generator.standard_normal(k))
    level = np.exp(width[:, None] * NORMAL)
    level /= (level @ COST_MASSES)[:, None]
    prompt = np.exp(generator.uniform(np.log(20.0), np.log(2000.0)) + 0.5 * generator.standard_normal((count, 1)))
    bills = (foretold * tokens * usd_out)[..., None] * level + (prompt * usd_in)[..., None]
    worse = 1.0 - generator.uniform(0.0, 0.6) * generator.random((k, 1)) * np.linspace(-0.3, 1.0, len(COST_LEVELS)) ** 2
    answers = worse / (worse @ COST_MASSES)[:, None]
    return Samples(
        models=tuple(f"model-{i}" for i in range(k)),
        quality=quality,
        bills_usd=bills,
        input_usd=usd_in,
        cached_usd=cached,
        list_usd=(usd_in + usd_out) * 1e6,
        answers=np.vstack([answers, np.ones(len(COST_LEVELS))]),
        grown_tokens=float(np.exp(generator.uniform(np.log(50.0), np.log(2000.0)))),
    )
