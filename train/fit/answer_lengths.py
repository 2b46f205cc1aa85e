"""Fit of the answers' lengths (policy/answer_lengths.py) on the token counts of the log.

    loss = mean pinball over turns and levels + PENALTY |shared|^2 / turns + OWN_PENALTY |own|^2 / turns

Pinball loss of level a (Koenker & Bassett 1978): max(a e, (a - 1) e) of e = log tokens - quantile; its minimum is the
quantile. A model's weights are `shared + own_k`: with few turns the penalty leaves only what all models share.
Quantiles start as each model's own, shrunk towards all models' by the number of its turns. Afterwards they are set
again from the errors of held-back sessions (split conformal prediction: Romano, Patterson, Candes 2019, arXiv
1905.03222), shrunk alike. Truncated answers are not in the log that training reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from policy.answer_lengths import MEDIAN, MOST_LOG_TOKENS, MOST_Z, NARROWEST, WIDEST, AnswerLengths
from policy.arrays import F64, I64
from policy.mdp import COST_LEVELS
from train.log.episodes import Episodes

LEAST_TURNS = 400
"""Turns below which no head is tried."""
LEAST_OF_MODEL = 50
"""Turns below which a model keeps its own distribution."""
MOST_TURNS = 60_000
HELD_BACK = 4
"""Every fourth session is held back, to choose and to calibrate."""
SHRINKAGE_TURNS = 50.0
PENALTY, OWN_PENALTY = 0.3, 3.0
STEPS, BATCH, RATE = 300, 4096, 0.01
CONFIDENCE = 1.645
"""Standard errors by which the held-back loss must fall: one-sided 95 %."""
REPORTED = (0.5, 0.9, 0.99)
_LEVELS = np.array(COST_LEVELS)


class Lengths(NamedTuple):
    """Turns with a known length: states (N, D); model, log tokens and session (N,)."""

    state: NDArray[np.floating]
    model: I64
    log_tokens: F64
    session: I64

    def take(self, rows: NDArray[np.bool_] | I64) -> Lengths:
        """A selection of the turns."""
        return Lengths(self.state[rows], self.model[rows], self.log_tokens[rows], self.session[rows])


def lengths_of(episodes: Episodes) -> Lengths:
    """The turns of a log whose token count is known, at most MOST_TURNS, evenly spaced."""
    i, j = np.nonzero(episodes.valid & (np.nan_to_num(episodes.output_tokens) > 0.0))
    some = np.linspace(0, len(i) - 1, min(len(i), MOST_TURNS)).round().astype(np.int64)
    i, j = i[some], j[some]
    model = episodes.model[i, j, episodes.action[i, j]].astype(np.int64)
    return Lengths(episodes.state[i, j], model, np.log(episodes.output_tokens[i, j].astype(np.float64)), i)


def fit_answer_lengths(
    turns: Lengths, models: tuple[str, ...], seed: int
) -> tuple[AnswerLengths | None, dict[str, Any]]:
    """Fit a head; returns it, or None if it does not help, with the held-back results.

    Coverage is that of calibrated quantiles on held-back sessions that did not calibrate them.
    """
    counts = np.bincount(turns.model, minlength=len(models))
    known = np.flatnonzero(counts >= LEAST_OF_MODEL)
    turns = turns.take(np.isin(turns.model, known))
    report: dict[str, Any] = {"turns": len(turns.model), "models": len(known), "kept": False}
    if len(turns.model) < LEAST_TURNS or not len(known):
        return None, report
    place = np.full(len(models), -1, np.int64)
    place[known] = np.arange(len(known))
    turns = turns._replace(model=place[turns.model])
    _, session = np.unique(turns.session, return_inverse=True)
    back = session % HELD_BACK == 0
    fitted, held = turns.take(~back), turns.take(back)
    if np.bincount(fitted.model, minlength=len(known)).min() == 0 or not len(held.model):
        return None, report
    own = shrunk_quantiles(fitted.log_tokens, fitted.model, len(known))
    head = train(fitted, tuple(models[k] for k in known), own, seed)
    before = pinball(held.log_tokens, own[held.model]).mean(axis=1)
    after = pinball(held.log_tokens, log_quantiles(head, held)).mean(axis=1)
    gain = before - after
    low = float(gain.mean() - CONFIDENCE * gain.std() / np.sqrt(len(gain)))
    report |= {
        "kept": low > 0.0,
        "held_out_loss": float(after.mean()),
        "own_distribution_loss": float(before.mean()),
        "held_out_gain_low": low,
        "coverage": coverage(head, held, session[back] // HELD_BACK % 2 == 0),
    }
    return (_over_all(calibrate(head, held), models, known) if low > 0.0 else None), report


def _over_all(head: AnswerLengths, models: tuple[str, ...], known: I64) -> AnswerLengths:
    """The head over all models of the log, of which it knows some."""
    m = len(models)
    weights, quantiles = np.zeros((len(head.weights), m), np.float32), np.zeros((m, len(COST_LEVELS)), np.float32)
    weights[:, known], quantiles[known] = head.weights, head.quantiles
    found = np.zeros(m, np.float32)
    found[known] = 1.0
    return replace(head, models=models, weights=weights, quantiles=quantiles, known=found)


def pinball(log_tokens: F64, quantiles: NDArray[np.floating]) -> F64:
    """Pinball loss at every level: (N,) and (N, L) -> (N, L)."""
    error = log_tokens[:, None] - quantiles
    return np.asarray(np.maximum(_LEVELS * error, (_LEVELS - 1.0) * error))


def shrunk_quantiles(values: F64, model: I64, models: int) -> F64:
    """Quantiles of each model's values, shrunk towards those of all models: (M, L).

        quantile_k = w_k own_k + (1 - w_k) (median_k + quantiles of all values - their model's median)
        w_k        = n_k / (n_k + 50)

    A model without values has those of all models around the mean of the medians.
    """
    counts = np.bincount(model, minlength=models)
    medians = np.array([np.median(values[model == k]) if counts[k] else np.nan for k in range(models)])
    medians = np.where(np.isfinite(medians), medians, np.nanmean(medians))
    shared = np.quantile(values - medians[model], _LEVELS)
    found = medians[:, None] + shared
    for k in np.flatnonzero(counts):
        w = counts[k] / (counts[k] + SHRINKAGE_TURNS)
        found[k] = w * np.quantile(values[model == k], _LEVELS) + (1.0 - w) * found[k]
    return np.clip(np.maximum.accumulate(found, axis=1), -MOST_LOG_TOKENS, MOST_LOG_TOKENS)


def train(turns: Lengths, models: tuple[str, ...], quantiles: F64, seed: int) -> AnswerLengths:
    """Minimize the loss with Adam, from a head that predicts each model's own quantiles."""
    state = np.asarray(turns.state, np.float64)
    centre, spread = state.mean(axis=0), state.std(axis=0)
    scale = np.where(spread > 1e-3, 1.0 / np.maximum(spread, 1e-3), 0.0)
    d = state.shape[1]
    z = np.clip((state - centre) * scale, -MOST_Z, MOST_Z) / np.sqrt(d)
    params = {
        "shared": jnp.zeros(d), "own": jnp.zeros((d, len(models))), "widths": jnp.zeros(d), "offset": jnp.zeros(1),
    }  # fmt: skip
    data = tuple(jnp.asarray(x, jnp.float32) for x in (z, turns.log_tokens, quantiles))
    found = _descend(params, data, jnp.asarray(turns.model), jax.random.key(seed))
    numbers = {name: np.asarray(x, np.float64) for name, x in found.items()}
    weights = (numbers["shared"][:, None] + numbers["own"]) / np.sqrt(d)
    f32 = np.float32
    return AnswerLengths(
        models,
        centre.astype(f32),
        scale.astype(f32),
        weights.astype(f32),
        (numbers["widths"] / np.sqrt(d)).astype(f32),
        numbers["offset"].astype(f32),
        quantiles.astype(f32),
        np.ones(len(models), f32),
    )


@jax.jit
def _descend(params: Any, data: Any, model: jax.Array, key: jax.Array) -> Any:
    count, batch = len(model), min(len(model), BATCH)
    adam = optax.adam(optax.cosine_decay_schedule(RATE * np.sqrt(data[0].shape[1]), STEPS))

    def step(carry: Any, each: jax.Array) -> Any:
        params, state = carry
        rows = jnp.arange(count) if batch == count else jax.random.randint(each, (batch,), 0, count)
        gradient = jax.grad(loss)(params, data[0][rows], data[1][rows], model[rows], data[2], count)
        updates, state = adam.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, STEPS))[0][0]


def loss(params: Any, z: Any, log_tokens: Any, model: Any, quantiles: Any, turns: int) -> Any:
    """Mean pinball loss plus both penalties.

    z (N, D), log tokens and model (N,), quantiles (M, L).
    """
    own = jnp.take_along_axis(z @ params["own"], model[:, None], axis=1)[:, 0]  # faster than a row of weights each
    shift = z @ params["shared"] + own
    stretch = jnp.exp(jnp.clip(z @ params["widths"] + params["offset"][0], NARROWEST, WIDEST))
    base = quantiles[model]
    median = base[:, MEDIAN : MEDIAN + 1]
    error = log_tokens[:, None] - (median + shift[:, None] + stretch[:, None] * (base - median))
    levels = jnp.asarray(_LEVELS, error.dtype)
    shared = jnp.sum(params["shared"] ** 2) + jnp.sum(params["widths"] ** 2)
    penalty = (PENALTY * shared + OWN_PENALTY * jnp.sum(params["own"] ** 2)) / turns
    return jnp.mean(jnp.maximum(levels * error, (levels - 1.0) * error)) + penalty


def log_quantiles(head: AnswerLengths, turns: Lengths) -> NDArray[np.floating]:
    """The head's log quantiles of every turn for its model, (N, L)."""
    return np.asarray(np.log(head.tokens(turns.state)[np.arange(len(turns.model)), turns.model]))


def calibrate(head: AnswerLengths, held: Lengths) -> AnswerLengths:
    """The head with the median error of held-back turns added, and their quantiles around it.

        median' = median + median of e,    quantile' = median' + quantile of (e - median of e) / stretch

    e = log tokens - predicted median. The stretch applies around the median, so the median is corrected first.
    """
    models = len(head.models)
    base = head.quantiles.astype(np.float64)
    at = log_quantiles(head, held)
    stretch = (at[:, -1] - at[:, 0]) / np.maximum(base[:, -1] - base[:, 0], 1e-6)[held.model]
    error = held.log_tokens - at[:, MEDIAN]
    offset = shrunk_quantiles(error, held.model, models)[:, MEDIAN]
    around = (error - offset[held.model]) / np.maximum(stretch, 1e-3)
    found = base[:, MEDIAN : MEDIAN + 1] + offset[:, None] + shrunk_quantiles(around, held.model, models)
    seen = np.bincount(held.model, minlength=models) > 0
    kept = np.where(seen[:, None], np.clip(found, -MOST_LOG_TOKENS, MOST_LOG_TOKENS), base)
    return AnswerLengths.from_arrays(head.models, head.arrays() | {"quantiles": kept.astype(np.float32)})


def coverage(head: AnswerLengths, held: Lengths, first: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Share of held-back answers within the quantiles of REPORTED, by model.

    Each half of the held-back sessions is covered by a head that the other half calibrated.
    """
    within = np.zeros((len(held.model), len(REPORTED)), np.bool_)
    columns = [COST_LEVELS.index(level) for level in REPORTED]
    for half in (first, ~first):
        if half.any() and not half.all():
            calibrated = calibrate(head, held.take(~half))
            within[half] = held.log_tokens[half, None] <= log_quantiles(calibrated, held.take(half))[:, columns]
    found: dict[str, dict[str, float]] = {}
    for k, name in enumerate(head.models):
        rows = held.model == k
        if rows.any():
            shares = within[rows].mean(axis=0).tolist()
            found[name] = {"turns": float(rows.sum())} | {
                f"q{round(100 * level)}": share for level, share in zip(REPORTED, shares, strict=True)
            }
    return found
