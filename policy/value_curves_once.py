"""One turn's form of `value_backup.q_values`: what the gateway calls at every decision.

The equations are those of value_curves.py and value_backup.py, which training traces and replay calls for many turns; a
test checks that both agree. On arrays of a few numbers the calls are the cost, not the arithmetic, so this form makes a
third of them: what all candidates share (the money axis, the cold costs) is computed once, and sigmoids replace sums of
softplus.

    exp(-softplus(-x)) = sigmoid(x) = (1 + tanh(x / 2)) / 2,    exp(-sum softplus(x)) = prod (1 - sigmoid(x))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np

from policy.arrays import F32
from policy.budgeting import CACHE_MIN_TOKENS
from policy.fixed_plans import LEAST_USD, LOST
from policy.mdp import COST_MASSES
from policy.value_backup import Backup
from policy.value_curves import EMPTY, HEADROOM, HIGH, LEAST_SPAN, LOW, STEPS, Catalogue, Forward, Later
from policy.value_network_shapes import KNOTS, ROW_DIM, TURNS


class PlainTurn(NamedTuple):
    """One turn in plain numbers: the later turns, and the ends of the money axis.

    At most TURNS later turns, otherwise as in `Later`. `halfway_tokens` is the conversation that the turns after the
    first read on average, `best` the best average quality and `shown` the catalogue's mask.
    """

    turns: float
    context_tokens: float
    grown_tokens: float
    halfway_tokens: float
    lambda_per_usd: float
    penalty: float
    shown: list[bool]
    best: float
    cold_usd: list[float]
    low_usd: float
    width: float

    @property
    def cached(self) -> bool:
        """Tell whether a cache may hold the conversation, and later turns differ by candidate."""
        return self.context_tokens >= CACHE_MIN_TOKENS


class OneTurn(NamedTuple):
    """Inputs of the values of one turn.

    The catalogue's columns are lists and the later turns plain numbers; answers and bills are (K, L).
    """

    catalogue: Catalogue
    answers: F32
    bills_usd: F32
    money_usd: float
    later: Later


def q_values_of_turn(
    forward: Forward, catalogue: Catalogue, answers: F32, bills_usd: F32, money_usd: float, later: Later
) -> Backup:
    """Values of every candidate from this turn on: `value_backup.q_values` of one turn."""
    one = OneTurn(catalogue, answers, bills_usd, money_usd, later)
    turn = turn_of(catalogue, later)
    axis_usd = axis_of_turn(turn)
    rows, state = inputs_of_turn(catalogue, turn)
    raw = forward(rows, np.array(turn.shown), state)
    return backup_of_turn(one, turn, axis_usd, curves_of_turn(raw, *scales_of_turn(turn, axis_usd)))


def q_values_of_turns(forward: Forward, turns: Sequence[OneTurn]) -> list[Backup]:
    """The values of several turns, in one pass through the network.

    It costs little more than that of one turn. All have the same number of candidates.
    """
    plain = [turn_of(one.catalogue, one.later) for one in turns]
    axes = [axis_of_turn(turn) for turn in plain]
    rows, states = zip(
        *(inputs_of_turn(one.catalogue, turn) for one, turn in zip(turns, plain, strict=True)), strict=True
    )
    counts = [len(each) for each in states]
    shown = np.repeat([turn.shown for turn in plain], counts, axis=0)
    scales = np.repeat([scales_of_turn(turn, axis) for turn, axis in zip(plain, axes, strict=True)], counts, axis=0)
    raw = forward(np.concatenate(rows), shown, np.concatenate(states))
    values = curves_of_turn(raw, *scales.astype(np.float32).T[:, :, None])
    found, start = [], 0
    for one, turn, axis_usd, count in zip(turns, plain, axes, counts, strict=True):
        found.append(backup_of_turn(one, turn, axis_usd, values[:, start : start + count]))
        start += count
    return found


def axis_of_turn(turn: PlainTurn) -> F32:
    """The money axis, (KNOTS,)."""
    axis_usd: F32 = np.exp(STEPS * np.float32(turn.width))
    axis_usd *= turn.low_usd
    return axis_usd


def scales_of_turn(turn: PlainTurn, axis_usd: F32) -> tuple[float, float, float]:
    """Scales of the curves: most quality, first knot's spend, logarithm of an axis step."""
    return turn.best + HEADROOM, float(axis_usd[0]) / turn.turns, math.log(axis_usd[1] / axis_usd[0])


def backup_of_turn(one: OneTurn, turn: PlainTurn, axis_usd: F32, values: F32) -> Backup:
    """The values of one turn, from the curves of its later turns."""
    catalogue, answers, bills_usd, money_usd, later = one
    after = later.turns
    left_usd = np.maximum(money_usd - bills_usd, 0.0)
    if after != turn.turns:
        left_usd *= turn.turns / max(after, 1e-6)
    to_go = read_of_turn(values, axis_usd, left_usd)
    if turn.cached:
        raise_to_plans(to_go, plans_of_turn(catalogue, turn), turn, left_usd)
    mass = COST_MASSES * (bills_usd <= money_usd)
    to_go *= mass
    expected = np.add.reduce(to_go, -1)
    lost = 1.0 - np.add.reduce(mass, -1)
    return Backup(
        np.add.reduce(mass * answers, -1) + after * expected[0],
        np.minimum(bills_usd, money_usd) @ COST_MASSES + after * expected[1],
        lost + expected[2] if after > 0.0 else lost,
    )


def turn_of(catalogue: Catalogue, later: Later) -> PlainTurn:
    """The later turns with `session_usd` without a warm cache, and `money_span`."""
    turns = min(max(later.turns, 1.0), float(TURNS))
    context, grown, shown = later.context_tokens, later.grown_tokens, catalogue.mask
    halfway = context + grown * turns / 2.0
    every, rest = turns * halfway, (turns - 1.0) * halfway
    later_usd = catalogue.cached_usd if halfway >= CACHE_MIN_TOKENS else catalogue.input_usd
    columns = zip(catalogue.mean_usd, catalogue.input_usd, catalogue.cached_usd, later_usd, strict=True)
    costs = [(turns * mean + context * usd + rest * price, turns * mean + every * cached)
             for mean, usd, cached, price in columns]  # fmt: skip
    cold = [usd for usd, _ in costs]
    low = LOW * min(compress([usd for _, usd in costs], shown))
    high = max(HIGH * max(compress(cold, shown)), LEAST_SPAN * low)
    return PlainTurn(
        turns,
        context,
        grown,
        halfway,
        later.lambda_per_usd,
        later.penalty,
        shown,
        max(compress(catalogue.quality, shown)),
        cold,
        low,
        math.log(high / low),
    )


def inputs_of_turn(catalogue: Catalogue, turn: PlainTurn) -> tuple[F32, F32]:
    """The network's inputs after each candidate.

    Rows (S, K, ROW_DIM) and state (S, STATE_DIM). S is K, or 1 where no cache holds the conversation and all candidates
    leave the same. Plain numbers for each model; after each candidate only its own row differs, and what is relative to
    the cheapest model.
    """
    n, price = turn.turns, turn.lambda_per_usd
    cold_usd = [usd / n for usd in turn.cold_usd]
    columns = catalogue[:7]
    cheapest = min(compress(cold_usd, turn.shown))
    rows = [
        _row(turn, cheapest, cold, 0.0, *numbers) if shown else _NO_ROW
        for shown, cold, *numbers in zip(turn.shown, cold_usd, *columns, strict=True)
    ]
    state = [
        math.log(n) * 2.0 / 3.0 - 1.0,
        1.0 / n,
        (n - 8.0) / 8.0,
        math.log1p(turn.context_tokens) / 10.0,
        math.log1p(turn.grown_tokens) / 10.0,
        turn.width / 5.0,
        math.log1p(turn.penalty),
        _in_quality(price * cheapest),
    ]
    if not turn.cached:
        return np.array([rows], np.float32), np.array([state + [0.0] * ROW_DIM], np.float32)
    own, least = [], []
    for k, (shown, cold, *numbers) in enumerate(zip(turn.shown, cold_usd, *columns, strict=True)):
        warm = cold - turn.context_tokens * (numbers[_INPUT] - numbers[_CACHED]) / n
        others = [usd for j, usd in enumerate(cold_usd) if j != k and turn.shown[j]]
        least.append(min([warm, *others]) if shown else cheapest)
        own.append(_row(turn, least[-1], warm, 1.0, *numbers) if shown else _NO_ROW)
    base, own_rows = np.array(rows, np.float32), np.array(own, np.float32)
    each = np.empty((len(own), *base.shape), np.float32)
    each[:] = base
    least_usd = np.array(least)[:, None]
    each[:, :, _ABOVE] += np.log(cheapest / least_usd) / 3.0
    if price > 0.0:
        extra = np.maximum(np.array(cold_usd) - least_usd, 0.0)
        each[:, :, _EXTRA] = np.log1p(100.0 * np.minimum(price * extra, 1e4)) / 5.0
    if not all(turn.shown):
        each *= np.array(turn.shown)[:, None]
    diagonal = np.arange(len(own))
    each[diagonal, diagonal] = own_rows
    states = np.empty((len(own), len(state) + ROW_DIM), np.float32)
    states[:, : len(state)] = state
    states[:, len(state) - 1] = [_in_quality(price * usd) for usd in least]
    states[:, len(state) :] = own_rows
    return each, states


def _row(
    turn: PlainTurn,
    cheapest_usd: float,
    per_turn_usd: float,
    warm: float,
    quality: float,
    spread: float,
    mean_usd: float,
    q95_usd: float,
    tail: float,
    input_usd: float,
    cached_usd: float,
) -> tuple[float, ...]:
    """One model's row of `value_curves.inputs`."""
    first_usd = turn.context_tokens * (cached_usd if warm else input_usd)
    return (
        quality * 2.0 - 1.0,
        (quality - turn.best) * 5.0,
        spread * 5.0,
        math.log(per_turn_usd * turn.turns / turn.low_usd) / turn.width * 2.0 - 1.0,
        math.log(per_turn_usd / cheapest_usd) / 3.0,
        warm,
        math.log1p(first_usd / mean_usd) / 2.0,
        math.log(max(q95_usd / mean_usd, 0.1)),
        tail - 1.0,
        cached_usd / max(input_usd, 1e-15),
        _in_quality(turn.lambda_per_usd * per_turn_usd),
        _in_quality(turn.lambda_per_usd * max(per_turn_usd - cheapest_usd, 0.0)),
    )


def curves_of_turn(raw: F32, most: F32 | float, first_usd: F32 | float, step: F32 | float) -> F32:
    """Monotone quality, spend and starving (3, S, KNOTS + 1), an empty budget first.

    The scales are those of `scales_of_turn`, one for all or (S, 1).
    """
    values = np.empty((3, len(raw), KNOTS + 1), np.float32)
    values[:, :, 0] = EMPTY[:, None]
    chances = np.exp(raw[:, 0] - np.maximum.reduce(raw[:, 0], -1, keepdims=True))
    shares = np.add.accumulate(chances, -1)
    np.multiply(shares[:, :-1], most / shares[:, -1:], out=values[0, :, 1:])
    half = np.tanh(0.5 * raw[:, 1:, :-1])
    half *= 0.5
    elasticity = half[:, 0] + 0.5
    first = elasticity[:, :1] * first_usd
    grown = np.add.accumulate(elasticity[:, 1:], -1)
    grown *= step
    values[1, :, 1:2] = first
    np.multiply(first, np.exp(grown), out=values[1, :, 2:])
    np.multiply.accumulate(0.5 - half[:, 1], -1, out=values[2, :, 1:])
    return values


def read_of_turn(values: F32, axis_usd: F32, left_usd: F32) -> F32:
    """The curves at the money that each bill of K candidates leaves, (3, K, L)."""
    axis = np.empty(KNOTS + 1, np.float32)
    axis[0], axis[1:] = 0.0, axis_usd
    at = axis[1:-1].searchsorted(left_usd, "right")
    per_usd = 1.0 / (axis[1:] - axis[:-1])
    share = np.minimum((left_usd - axis[at]) * per_usd[at], 1.0)
    flat = values.reshape(3, -1)
    if values.shape[1] > 1:
        at = at + (KNOTS + 1) * np.arange(len(left_usd))[:, None]
    below = flat.take(at, axis=1)
    return np.asarray(below + share * (flat.take(at + 1, axis=1) - below))


class PlainPlans(NamedTuple):
    """The plans of `fixed_plans` of one turn, columns (J, 1, 1), without a warm cache's savings.

    `need_usd` is `start_usd` and the tail; `stay_usd` what all turns on the model cost beyond `start_usd`. `of` are the
    plans' candidates, `saved_usd` (J, 1) what a candidate's own cache saves on the first of the later turns. `rest` is
    the quality of the model that is cheapest on a warm cache.
    """

    need_usd: F32
    each_usd: F32
    stay_usd: F32
    gain: F32
    start_usd: F32
    of: list[int]
    saved_usd: F32
    rest: float


def plans_of_turn(catalogue: Catalogue, turn: PlainTurn) -> PlainPlans:
    """The fixed plans of one turn, in plain numbers."""
    n, context = turn.turns, turn.context_tokens
    read_usd = catalogue.cached_usd if turn.halfway_tokens >= CACHE_MIN_TOKENS else catalogue.input_usd
    warm_usd = [mean + turn.halfway_tokens * usd for mean, usd in zip(catalogue.mean_usd, read_usd, strict=True)]
    cheapest = min(compress(range(len(warm_usd)), turn.shown), key=warm_usd.__getitem__)
    rest, rest_usd = catalogue.quality[cheapest], warm_usd[cheapest]
    switch_usd = (context + turn.grown_tokens * n) * (catalogue.input_usd[cheapest] - read_usd[cheapest])
    columns = zip(turn.shown, warm_usd, turn.cold_usd, *catalogue[:7], strict=True)
    plans, saved, of = [], [], []
    for k, (shown, warm, stay, quality, _, mean, q95, _, usd, cached) in enumerate(columns):
        if shown:
            start = context * usd + mean - warm + switch_usd + n * rest_usd
            tail = math.sqrt(n) * max(q95 - mean, 0.0)
            plans.append((start + tail, max(warm - rest_usd, LEAST_USD), stay - start, quality - rest, start))
            saved.append(context * (usd - cached))
            of.append(k)
    need, each, stay_usd, gain, start_usd = np.array(plans, np.float32).T[..., None, None]
    return PlainPlans(need, each, stay_usd, gain, start_usd, of, np.array(saved, np.float32)[:, None], rest)


def raise_to_plans(to_go: F32, plans: PlainPlans, turn: PlainTurn, left_usd: F32) -> None:
    """Raise the values to go (3, K, L) after each of K candidates to those of fixed plans."""
    n, price = turn.turns, turn.lambda_per_usd
    own = np.arange(len(plans.of)), plans.of  # each plan after its own candidate
    spare_usd = left_usd - plans.need_usd  # (J, K, L)
    spare_usd[own] += plans.saved_usd
    stays = spare_usd >= plans.stay_usd
    turns = np.minimum(spare_usd / plans.each_usd, n - 1.0)
    cost_usd = plans.start_usd + np.where(stays, plans.stay_usd, turns * plans.each_usd)
    cost_usd[own] -= plans.saved_usd
    turns[stays] = n
    worth = turns * plans.gain
    if price > 0.0:
        worth -= price * cost_usd
    worth[turns < 1.0] = -np.inf
    best = worth.argmax(0)[None]
    gained, cost_usd = np.take_along_axis(worth, best, 0)[0], np.take_along_axis(cost_usd, best, 0)[0]
    quality, spend_usd, starved = to_go
    known = n * (quality - plans.rest) - price * n * spend_usd - turn.penalty * starved
    better = gained - turn.penalty * LOST > known
    quality[better] = plans.rest + (gained[better] + price * cost_usd[better]) / n
    spend_usd[better] = cost_usd[better] / n
    starved[better] = LOST


def _in_quality(cost: float) -> float:
    return math.log1p(100.0 * min(cost, 1e4)) / 5.0


_NO_ROW = (0.0,) * ROW_DIM
_ABOVE, _EXTRA = 4, 11
"""Columns of `value_curves.inputs` that are relative to the cheapest model."""
_INPUT, _CACHED = Catalogue._fields.index("input_usd"), Catalogue._fields.index("cached_usd")
