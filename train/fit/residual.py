"""Fit of the quality's residual by discrete CQL, kept only if it improves a held-out fold.

    loss = mean over graded actions of (quality_k + residual_k - score_k)^2
           + alpha (1 - share graded) (logsumexp_k Q_k - Q_a),      Q_k = worth of k as it serves + residual_k

Later turns are the same on both sides of the Bellman equation, so its error is that of this turn's quality: of the
logged action, or of every action where all were graded. The conservative term (arXiv 2006.04779) pushes down actions
that the log did not try, under money, horizons and lambdas redrawn for every turn; it vanishes when all are graded.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from policy.arrays import F64, Bools
from policy.facts import SESSION_FACTS
from policy.features import CANDIDATE_FEATURES, SESSION_FEATURES, decode, expected_cost_usd
from policy.network_policy import NetworkPolicy, Shown
from policy.residual import INPUT_DIM, Residual
from policy.residual import inputs as inputs_of
from policy.text import STATS_DIM, TEXT_DIM
from policy.valuetable import turn_tokens
from train.config import FitConfig, RelabelConfig
from train.fit.cql import conservative_loss
from train.log.episodes import Episodes

Params = dict[str, jax.Array]

MOST_TURNS = 20_000
LEAST_GRADED = 200
"""Graded turns below which no residual is tried: a held-out fold would be too small."""
BATCH = 512
CONFIDENCE = 1.645
"""Standard errors by which the held-out error must fall: one-sided 95 %."""


class ResidualTurns(NamedTuple):
    """Training data of N turns and K candidates.

    Inputs (N, K, D), served qualities, grades (NaN where missing) and worths.
    """

    x: Any
    quality: Any
    scores: Any
    worth: Any
    mask: Any
    action: Any


def fit_residual(
    policy: NetworkPolicy,
    episodes: Episodes,
    grades: F64,
    folds: NDArray[np.integer],
    fit: FitConfig,
    relabel: RelabelConfig,
    seed: int,
) -> tuple[Residual | None, dict[str, float]]:
    """Fit a residual; returns it, or None if it does not help, with the held-out results.

    `grades` (S, T, K) are out of fold, `folds` (S, T).
    """
    turns, fold = turns_of(policy, episodes, grades, folds, relabel, seed)
    graded = np.isfinite(turns.scores).any(axis=1)
    if graded.sum() < LEAST_GRADED or len(np.unique(fold)) < 2:
        return None, {"graded_turns": float(graded.sum()), "kept": 0.0}
    key = jax.random.key(seed)
    held = fold == fold.max()
    trial = as_residual(train(select_rows(turns, ~held), fit, key))
    before, after = (errors(turns, held, residual) for residual in (None, trial))
    gain = before - after
    low = float(gain.mean() - CONFIDENCE * gain.std() / np.sqrt(len(gain)))
    report = {"held_out_error": float(before.mean()), "held_out_gain": float(gain.mean()), "held_out_gain_low": low}
    kept = low > 0.0
    found = as_residual(train(turns, fit, key)) if kept else None
    return found, report | {"graded_turns": float(graded.sum()), "kept": float(kept)}


def turns_of(
    policy: NetworkPolicy,
    episodes: Episodes,
    grades: F64,
    folds: NDArray[np.integer],
    relabel: RelabelConfig,
    seed: int,
) -> tuple[ResidualTurns, NDArray[np.integer]]:
    """At most MOST_TURNS turns, evenly spaced in the log, with redrawn terms; and their folds."""
    i, j = np.nonzero(episodes.valid)
    some = np.linspace(0, len(i) - 1, min(len(i), MOST_TURNS)).round().astype(np.int64)
    i, j = i[some], j[some]
    state, model, mask = episodes.state[i, j], episodes.model[i, j], episodes.mask[i, j]
    candidates = episodes.candidates[i, j]

    def of_candidate(name: str) -> Any:
        return candidates[..., CANDIDATE_FEATURES.index(name)].astype(np.float32)

    usd_in = 10.0 ** (of_candidate("log_input_price") * 3.0) - 1e-3
    usd_out = 10.0 ** (of_candidate("log_output_price") * 3.0) - 1e-3
    bills = episodes.cost_quantiles_usd[i, j]
    means = np.maximum(expected_cost_usd(bills), 1e-12)
    later, per_turn, price = _redrawn_terms(means, mask, relabel, np.random.default_rng(seed))
    reading = TEXT_DIM + STATS_DIM + SESSION_FEATURES.index("log_input_tokens")
    tokens = np.expm1(state[:, reading].astype(np.float64) * 12.0)
    quality = np.clip(grades[i, j], 0.0, 1.0).astype(np.float32)
    model_rows = np.where(model >= 0, model, len(policy.statistics.models))
    brought = policy.values(
        Shown(
            model_rows=model_rows,
            prior=of_candidate("quality_prior"),
            predicted=quality,
            average=quality,
            usd_in=usd_in,
            usd_cached=of_candidate("cached_price_ratio") * usd_in,
            usd_out=usd_out,
            warm_tokens=np.round(of_candidate("warm_share") * np.maximum(tokens, 1.0)[:, None]),
            bills_usd=bills,
            able=mask,
            available_usd=per_turn * (later + 1.0),
            later_turns=later,
            turn=decode(state, candidates).session[:, SESSION_FACTS.index("turn")],
            context_tokens=np.maximum(tokens - turn_tokens(state[:, TEXT_DIM : TEXT_DIM + STATS_DIM]), 0.0),
            lambda_per_usd=price,
        )
    )[1]
    worth = brought.worth(price[:, None], policy.starved_penalty)
    x = inputs_of(state, quality, of_candidate("quality_prior"), usd_in + usd_out, bills.mean(axis=-1))
    scores = np.where(mask, episodes.known_scores()[i, j], np.nan).astype(np.float32)
    action = episodes.action[i, j].astype(np.int32)
    return ResidualTurns(x, quality, scores, np.asarray(worth, np.float32), mask, action), folds[i, j]


def _redrawn_terms(
    means_usd: F64, mask: Bools, relabel: RelabelConfig, generator: np.random.Generator
) -> tuple[F64, F64, F64]:
    """Later turns, money for each turn and price of money, drawn for every turn (N,)."""
    turns = len(means_usd)
    later = np.floor(generator.random(turns) * 16.0)
    share = generator.random(turns)
    able = mask.any(axis=1)
    cheapest = np.where(able, np.where(mask, means_usd, np.inf).min(axis=1), 1.0)
    costliest = np.where(able, np.where(mask, means_usd, 0.0).max(axis=1), 1.0)
    per_turn = cheapest ** (1.0 - share) * costliest**share
    free = generator.random(turns) < relabel.lambda_zero_fraction
    a_bill = np.exp(generator.uniform(np.log(relabel.lambda_low), np.log(relabel.lambda_high), turns))
    return later, per_turn, np.where(free, 0.0, a_bill / per_turn)


def select_rows(turns: ResidualTurns, rows: NDArray[np.bool_]) -> ResidualTurns:
    """The turns of a boolean mask (N,)."""
    return ResidualTurns(*(x[rows] for x in turns))


def train(turns: ResidualTurns, fit: FitConfig, key: jax.Array) -> Params:
    """Minimize the loss with Adam from a zero residual."""
    on_device = ResidualTurns(*(jnp.asarray(x) for x in turns))
    kernel = jax.random.normal(key, (INPUT_DIM, fit.residual_hidden)) / np.sqrt(INPUT_DIM)
    zeros = jnp.zeros(fit.residual_hidden)
    params = {"kernel": kernel, "bias": zeros, "heads": zeros, "offset": jnp.zeros(1)}
    found: Params = _descend(params, on_device, fit, key)
    return found


@partial(jax.jit, static_argnames="fit")
def _descend(params: Params, turns: ResidualTurns, fit: FitConfig, key: jax.Array) -> Params:
    rate = optax.cosine_decay_schedule(fit.residual_rate, fit.residual_steps)
    adam = optax.adamw(rate, weight_decay=1e-3)

    def step(carry: tuple[Params, Any], each: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        rows = jax.random.randint(each, (BATCH,), 0, len(turns.action))
        gradient = jax.grad(loss)(params, ResidualTurns(*(x[rows] for x in turns)), fit.alpha)
        updates, state = adam.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, fit.residual_steps)
    found: Params = jax.lax.scan(step, (params, adam.init(params)), keys)[0][0]
    return found


def loss(params: Params, turns: ResidualTurns, alpha: float) -> jax.Array:
    """Squared error of the graded actions plus the conservative term."""
    found = Residual(**params).of(turns.x, jnp)  # type: ignore[arg-type]
    graded = jnp.isfinite(turns.scores)
    error = jnp.where(graded, turns.quality + found - jnp.where(graded, turns.scores, 0.0), 0.0)
    squares = jnp.sum(error**2) / jnp.maximum(graded.sum(), 1)
    count = jnp.maximum(turns.mask.sum(-1), 1)
    ungraded = 1.0 - (graded & turns.mask).sum(-1) / count
    usable = jnp.take_along_axis(turns.mask, turns.action[:, None], axis=-1)[:, 0]
    conservative = conservative_loss(turns.worth + found, turns.action, turns.mask | ~usable[:, None])
    return squares + alpha * jnp.mean(jnp.where(usable, ungraded * conservative, 0.0))


def errors(turns: ResidualTurns, rows: NDArray[np.bool_], residual: Residual | None) -> F64:
    """Mean squared error of the graded actions, for each chosen turn that has any, (N',)."""
    some = select_rows(turns, rows)
    found = some.quality if residual is None else some.quality + residual.of(some.x)
    graded = np.isfinite(some.scores)
    squares = np.where(graded, (np.clip(found, 0.0, 1.0) - np.where(graded, some.scores, 0.0)) ** 2, 0.0)
    kept = graded.any(axis=1)
    return np.asarray(squares.sum(axis=1)[kept] / graded.sum(axis=1)[kept], np.float64)


def as_residual(params: Params) -> Residual:
    """The trained parameters as a `Residual` of NumPy arrays."""
    return Residual(**{name: np.asarray(value, np.float32) for name, value in params.items()})
