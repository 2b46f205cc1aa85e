"""Statistics of each model of the catalogue, learned from the log for the served network.

    quality, spread      mean predicted quality; deviation of a model's predictions from the candidates' mean
    mean_usd, q95_usd    a turn's bill without conversation, at the list prices of `list_usd`
    answers              quality by the level of the bill, relative to the model's mean (train/fit/answers.py)
    margin               what is subtracted from a predicted quality: a share of its posterior deviation

A model missing from the log gets its prior and this turn's own cost distribution, with the last row of `answers` and
`margin`. In a fresh install (`NOTHING_KNOWN`) this holds for every model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32
from policy.kernel import MAX_MODELS
from policy.mdp import COST_LEVELS, COST_MASSES

TAIL = COST_LEVELS.index(0.9)
"""First level of a bill's expensive tail."""
LEAST_USD = 1e-9
LEAST_SHARE = 0.01
"""Least share of a bill that is not reading the conversation. What is estimated is the length of the turn's own text,
so that more than its error would be added to every later turn of a long conversation."""
GROWN_TOKENS = 250.0
"""Tokens that a turn adds to a conversation when no log says otherwise."""
DIFFICULTY_SLOPE = 0.28
"""Deviation of -p log p times this is a prior's spread: `quality.PriorQuality` bends p by p log p times 2 log 2, and
difficulties differ by about a fifth."""


class Rows(NamedTuple):
    """Statistics of the candidates, (..., K) each, or plain numbers of one turn."""

    quality: Any
    spread: Any
    mean_usd: Any
    q95_usd: Any
    tail: Any


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueStatistics:
    """Statistics of M models at L levels; `answers` and `margin` have a row more, for others."""

    models: tuple[str, ...]
    quality: F32  # (M,)
    spread: F32  # (M,)
    mean_usd: F32  # (M,)
    q95_usd: F32  # (M,)
    list_usd: F32  # (M,) input plus output price, USD per million tokens
    answers: F32  # (M + 1, L)
    margin: F32  # (M + 1,)
    grown_tokens: F32  # (1,) added to the conversation by a turn
    index: Mapping[str, int] = field(init=False, repr=False)
    margins: tuple[float, ...] = field(init=False, repr=False)
    tails: F32 = field(init=False, repr=False)
    """(M + 1,) `Rows.tail` of every model."""
    numbers: tuple[tuple[float, ...], ...] = field(init=False, repr=False)
    """`Rows` and the list price of every model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", MappingProxyType({name: k for k, name in enumerate(self.models)}))
        object.__setattr__(self, "margins", tuple(self.margin.tolist()))
        object.__setattr__(self, "tails", self.answers[:, TAIL:] @ COST_MASSES[TAIL:] / COST_MASSES[TAIL:].sum())
        columns = (self.quality, self.spread, self.mean_usd, self.q95_usd, self.tails[:-1], self.list_usd)
        object.__setattr__(self, "numbers", tuple(zip(*(x.tolist() for x in columns), strict=True)))

    def model_rows(self, names: Sequence[str]) -> list[int]:
        """The row of every name; unknown names get the row after the last model."""
        unknown = len(self.models)
        return [self.index.get(name, unknown) for name in names]

    def rows(
        self,
        model_rows: NDArray[np.integer],
        average: NDArray[np.floating],
        list_usd: NDArray[np.floating],
        bills_usd: NDArray[np.floating],
        read_usd: NDArray[np.floating],
        shown: NDArray[np.bool_],
    ) -> Rows:
        """Statistics of candidates (..., K): the log's at today's prices, else from this turn.

        `average` is their predicted quality, `bills_usd` (..., K, L) this turn's cost distribution, of which reading
        the conversation is `read_usd`; `shown` is False for padding.
        """
        tail = self.tails[model_rows]
        if self.models and bool((model_rows < len(self.models)).all()):
            price_ratio = self._price_ratio(model_rows, list_usd)
            return Rows(
                self.quality[model_rows],
                self.spread[model_rows],
                self.mean_usd[model_rows] * price_ratio,
                self.q95_usd[model_rows] * price_ratio,
                tail,
            )
        mean = bills_usd @ COST_MASSES
        floor = np.maximum(LEAST_SHARE * mean, LEAST_USD)
        shown_mean = np.maximum(mean - read_usd, floor)
        shown_q95 = np.maximum(bills_usd[..., Q95] - read_usd, floor)
        bent = average * np.log(np.maximum(average, 1e-3))
        count = np.maximum(shown.sum(axis=-1, keepdims=True), 1)
        middle = np.where(shown, bent, 0.0).sum(axis=-1, keepdims=True) / count
        shown_spread = DIFFICULTY_SLOPE * np.abs(bent - middle)
        if not self.models:
            return Rows(average, shown_spread, shown_mean, shown_q95, tail)
        known, at = model_rows < len(self.models), np.minimum(model_rows, len(self.models) - 1)
        price_ratio = self._price_ratio(at, list_usd)
        return Rows(
            np.where(known, self.quality[at], average),
            np.where(known, self.spread[at], shown_spread),
            np.where(known, self.mean_usd[at] * price_ratio, shown_mean),
            np.where(known, self.q95_usd[at] * price_ratio, shown_q95),
            tail,
        )

    def rows_of_turn(
        self,
        model_rows: list[int],
        average: list[float],
        list_usd: list[float],
        bills_usd: list[tuple[float, float]],
        read_usd: list[float],
        shown: list[bool],
    ) -> Rows:
        """The rows of one turn in plain numbers, since calls on such small arrays cost more.

        `bills_usd` are the mean and the .95 quantile.
        """
        known, found = len(self.models), []
        bent = [x * math.log(max(x, 1e-3)) for x in average] if max(model_rows) == known else []
        middle = sum(compress(bent, shown)) / max(sum(shown), 1)
        for k, at in enumerate(model_rows):
            if at < known:
                quality, spread, mean, q95, tail, before = self.numbers[at]
                ratio = list_usd[k] / max(before, 1e-9) if list_usd[k] > 0.0 < before else 1.0
                found.append((quality, spread, mean * ratio, q95 * ratio, tail))
                continue
            floor = max(LEAST_SHARE * bills_usd[k][0], LEAST_USD)
            mean, q95 = (max(usd - read_usd[k], floor) for usd in bills_usd[k])
            found.append((average[k], DIFFICULTY_SLOPE * abs(bent[k] - middle), mean, q95, float(self.tails[-1])))
        return Rows(*zip(*found, strict=True))

    def _price_ratio(self, at: NDArray[np.integer], list_usd: NDArray[np.floating]) -> NDArray[np.floating]:
        """Today's list prices over those of the log; 1 where either is free."""
        before = self.list_usd[at]
        return np.where((list_usd > 0.0) & (before > 0.0), list_usd / np.maximum(before, 1e-9), 1.0)

    def arrays(self) -> dict[str, F32]:
        """Arrays by name, as a checkpoint stores them; `from_arrays` is the inverse."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, models: tuple[str, ...], arrays: Mapping[str, F32]) -> CatalogueStatistics:
        """Build the statistics. Raises ValueError when names, shapes or signs are wrong."""
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"statistics: missing or unknown arrays {sorted(set(arrays) ^ set(_ARRAYS))}")
        m = len(models)
        if m > MAX_MODELS:
            raise ValueError(f"statistics: expected at most {MAX_MODELS} models, found {m}")
        shapes = {"answers": (m + 1, len(COST_MASSES)), "margin": (m + 1,), "grown_tokens": (1,)}
        for name in _ARRAYS:
            found, expected = arrays[name], shapes.get(name, (m,))
            if found.shape != expected or not (found >= 0.0).all():
                raise ValueError(f"statistics/{name}: expected numbers from 0 of shape {expected}, found {found.shape}")
        for name in ("mean_usd", "q95_usd"):
            if not (arrays[name] > 0.0).all():
                raise ValueError(f"statistics/{name}: expected positive numbers")
        return cls(models, **{name: arrays[name] for name in _ARRAYS})


Q95 = COST_LEVELS.index(0.95)
_ARRAYS = ("quality", "spread", "mean_usd", "q95_usd", "list_usd", "answers", "margin", "grown_tokens")
_NONE = np.zeros(0, np.float32)
NOTHING_KNOWN = CatalogueStatistics(
    (),
    *(_NONE,) * 5,
    answers=np.ones((1, len(COST_LEVELS)), np.float32),
    margin=np.zeros(1, np.float32),
    grown_tokens=np.array([GROWN_TOKENS], np.float32),
)
"""The statistics of a fresh install."""
