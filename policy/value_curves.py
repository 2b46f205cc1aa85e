"""Value curves of the later turns over the money left: the served network minus its layers.

The network (policy/value_network.py) predicts the values to go: quality, spend and the chance of ending starved, given
the later turns, the tokens of conversation, the model with the warm prompt cache, lambda and the penalty. Curves are
monotone by construction (`monotone`), and every input is a ratio: multiplying prices, budgets and 1 / lambda by c
changes nothing. This turn is computed exactly (policy/value_backup.py).

NumPy or traced by JAX, from the same lines (`xp`), as in policy/features.py: training differentiates what serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from policy.budgeting import CACHE_MIN_TOKENS
from policy.value_network_shapes import KNOTS

Forward = Callable[[Any, Any, Any], Any]
"""rows (..., K, ROW_DIM), mask (..., K), state (..., STATE_DIM) -> raw curves (..., CURVES, KNOTS + 1)."""

LOW, HIGH = 0.15, 3.0
"""Ends of the money axis, in warm costs of the cheapest model and in cold costs of the most expensive one."""
LEAST_SPAN = 2.0
"""Least ratio of the ends; a conversation that grows by more than it has would turn them around."""
HEADROOM = 0.1
"""A curve may exceed the best average quality by so much: tasks differ, and each turn has its best model."""
STEPS = np.linspace(0.0, 1.0, KNOTS, dtype=np.float32)
EMPTY = np.array([0.0, 0.0, 1.0], np.float32)
"""Quality, spend and chance of ending starved of an empty budget."""
_UPTO = np.triu(np.ones((KNOTS + 1, KNOTS + 1), np.float32))
"""x @ _UPTO is the running sum of x: a small product compiles and runs faster than a scan."""


class Catalogue(NamedTuple):
    """Statistics of the candidates of a later turn, (..., K) each; money in USD.

    `spread` is the deviation of a model's predicted quality from the candidates' mean; `mean_usd`, `q95_usd` are bills
    without conversation; `tail` is the quality of the most expensive answers, relative to the model's mean.
    """

    quality: Any
    spread: Any
    mean_usd: Any
    q95_usd: Any
    tail: Any
    input_usd: Any
    cached_usd: Any
    mask: Any

    def at_each_candidate(self) -> Catalogue:
        """The same catalogue with an axis for the candidate that serves now: (..., 1, K)."""
        return Catalogue(*(x[..., None, :] for x in self))


class Later(NamedTuple):
    """The later turns, (...,) each.

    `turns` (1 at least), tokens of conversation that the first of them reads, tokens that each adds, index of the model
    whose cache is warm (K: none), lambda per USD and the penalty of starving.
    """

    turns: Any
    context_tokens: Any
    grown_tokens: Any
    last: Any
    lambda_per_usd: Any
    penalty: Any


class Curves(NamedTuple):
    """Quality and spend per turn and chance of ending starved at the knots of the money axis.

    Each (..., KNOTS).
    """

    money_usd: Any
    quality: Any
    spend_usd: Any
    starved: Any


def session_usd(catalogue: Catalogue, later: Later, xp: Any = np) -> tuple[Any, Any, Any]:
    """Cost of all later turns on each model alone, of the first's reading, and the warm mask.

    Each (..., K).

        n mean + c p_first + (n - 1) (c + g n / 2) p_later,    p the cached price where a cache holds the conversation
    """
    turns, context = later.turns[..., None], later.context_tokens[..., None]
    served = later.last[..., None] == np.arange(catalogue.quality.shape[-1])
    warm = served & (context >= CACHE_MIN_TOKENS)
    first = context * xp.where(warm, catalogue.cached_usd, catalogue.input_usd)
    halfway = context + later.grown_tokens[..., None] * turns / 2.0
    price = xp.where(halfway >= CACHE_MIN_TOKENS, catalogue.cached_usd, catalogue.input_usd)
    return turns * catalogue.mean_usd + first + (turns - 1.0) * halfway * price, first, warm


def money_span(catalogue: Catalogue, later: Later, xp: Any = np) -> tuple[Any, Any]:
    """Lowest and highest knot of the money axis, (...,).

    Less money than the first pays for no turn, and more than the last gains nothing. The warm cache does not move the
    axis: curves of all candidates are read at the same knots.
    """
    turns, context = later.turns[..., None], later.context_tokens[..., None]
    halfway = context + later.grown_tokens[..., None] * turns / 2.0
    price = xp.where(halfway >= CACHE_MIN_TOKENS, catalogue.cached_usd, catalogue.input_usd)
    alone = turns * catalogue.mean_usd
    least = alone + turns * halfway * catalogue.cached_usd
    most = alone + context * catalogue.input_usd + (turns - 1.0) * halfway * price
    low = LOW * xp.min(xp.where(catalogue.mask, least, np.inf), axis=-1)
    return low, xp.maximum(HIGH * xp.max(xp.where(catalogue.mask, most, 0.0), axis=-1), LEAST_SPAN * low)


def money_axis(catalogue: Catalogue, later: Later, xp: Any = np) -> Any:
    """The knots, (..., KNOTS), geometric."""
    low, high = money_span(catalogue, later, xp)
    return xp.exp(xp.log(low)[..., None] + STEPS * xp.log(high / low)[..., None])


def inputs(catalogue: Catalogue, later: Later, xp: Any = np) -> tuple[Any, Any]:
    """Network inputs: rows (..., K, ROW_DIM) and state (..., STATE_DIM)."""
    total, first, warm = session_usd(catalogue, later, xp)
    low, high = money_span(catalogue, later, xp)
    turns = later.turns
    width, ones, price = xp.log(high / low)[..., None], xp.ones_like(total), later.lambda_per_usd[..., None]
    mask = catalogue.mask & (total > -np.inf)
    best = xp.max(xp.where(mask, catalogue.quality, 0.0), axis=-1, keepdims=True)
    per_turn = total / turns[..., None]
    cheapest = xp.min(xp.where(mask, per_turn, np.inf), axis=-1, keepdims=True)
    rows = xp.stack(
        [
            (catalogue.quality * 2.0 - 1.0) * ones,
            (catalogue.quality - best) * 5.0,
            catalogue.spread * 5.0 * ones,
            xp.log(total / low[..., None]) / width * 2.0 - 1.0,
            xp.log(per_turn / cheapest) / 3.0,
            warm * ones,
            xp.log1p(first / catalogue.mean_usd) / 2.0,
            xp.log(xp.maximum(catalogue.q95_usd / catalogue.mean_usd, 0.1)) * ones,
            (catalogue.tail - 1.0) * ones,
            catalogue.cached_usd / xp.maximum(catalogue.input_usd, 1e-15) * ones,
            _in_quality(price * per_turn, xp),
            _in_quality(price * xp.maximum(per_turn - cheapest, 0.0), xp),
        ],
        -1,
    )
    rows = xp.where(mask[..., None], rows, 0.0)
    own = xp.sum(xp.where(warm[..., None], rows, 0.0), axis=-2)
    state = xp.stack(
        [
            xp.log(turns) * 2.0 / 3.0 - 1.0,
            1.0 / turns,
            (turns - 8.0) / 8.0,
            xp.log1p(later.context_tokens) / 10.0,
            xp.log1p(later.grown_tokens) / 10.0,
            width[..., 0] / 5.0,
            xp.log1p(later.penalty),
            _in_quality(later.lambda_per_usd * cheapest[..., 0], xp),
        ],
        -1,
    )
    return rows, xp.concatenate([state, own], -1)


def monotone(raw: Any, best: Any, money_usd: Any, turns: Any, xp: Any = np) -> Curves:
    """Turn raw numbers (..., CURVES, KNOTS + 1) into monotone curves.

    Quality and spend rise, the chance of starving falls.

    quality_j = (best + headroom) sum_{i <= j} softmax(raw)_i
    spend_j   = m_0 / n sigmoid(raw_0) (m_1 / m_0)^(sum_{0 < i <= j} sigmoid(raw_i))    never more than the money
    starved_j = exp(-sum_{i <= j} softplus(raw_i))
    """
    grown = xp.exp(raw[..., 0, :] - xp.max(raw[..., 0, :], axis=-1, keepdims=True))
    shares = grown @ _UPTO
    step = xp.log(money_usd[..., 1:2] / money_usd[..., :1])
    first = -_softplus(-raw[..., 1, :1], xp)
    elasticity = xp.exp(-_softplus(-raw[..., 1, 1:-1], xp)) @ _UPTO[:-2, :-2]
    exponent = xp.concatenate([first, first + step * elasticity], -1)
    return Curves(
        money_usd,
        (best + HEADROOM)[..., None] * shares[..., :-1] / shares[..., -1:],
        money_usd[..., :1] / turns[..., None] * xp.exp(exponent),
        xp.exp(-(_softplus(raw[..., 2, :-1], xp) @ _UPTO[:-1, :-1])),
    )


def curves(forward: Forward, catalogue: Catalogue, later: Later, xp: Any = np) -> Curves:
    """Values to go of the later turns; keeps the leading axes of `later` and `catalogue`."""
    rows, state = inputs(catalogue, later, xp)
    mask = catalogue.mask & (rows[..., 0] > -np.inf)
    best = xp.max(xp.where(mask, catalogue.quality, 0.0), axis=-1)
    return monotone(forward(rows, mask, state), best, money_axis(catalogue, later, xp), later.turns, xp)


def read(known: Curves, money_usd: Any, xp: Any = np) -> tuple[Any, Any, Any]:
    """Interpolate (quality, spend, starved) at sums of money (..., X).

    Linear between the knots, towards an empty budget below the first, constant beyond the last.
    """
    low = known.money_usd[..., :1]
    step = xp.log(known.money_usd[..., 1:2] / low)
    at = xp.clip(xp.floor(xp.log(xp.maximum(money_usd, 1e-30) / low) / step), 0, KNOTS - 2).astype(np.int32)
    below = xp.take_along_axis(known.money_usd, at, axis=-1)
    share = xp.clip((money_usd / below - 1.0) / (xp.exp(step) - 1.0), 0.0, 1.0)
    scarce, short = money_usd / low, money_usd < low

    values = xp.stack([known.quality, known.spend_usd, known.starved])
    places = xp.stack([at, at, at])
    here = xp.take_along_axis(values, places, axis=-1)
    inside = here + share * (xp.take_along_axis(values, places + 1, axis=-1) - here)
    first, empty = values[..., :1], EMPTY.reshape(-1, *(1,) * at.ndim)
    found = xp.where(short, empty + (first - empty) * scarce, inside)
    return found[0], found[1], found[2]


def _in_quality(cost: Any, xp: Any) -> Any:
    """Compress a cost in units of quality (lambda times USD): fine below 0.01, coarse beyond 1."""
    return xp.log1p(100.0 * xp.minimum(cost, 1e4)) / 5.0


def _softplus(x: Any, xp: Any) -> Any:
    return xp.logaddexp(x, 0.0)
