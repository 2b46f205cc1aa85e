"""What the log says of each model of the catalogue: what the served network is told of later turns.

    quality, spread      mean predicted quality; deviation of a model's predictions from the candidates' mean
    mean_usd, q95_usd    a turn's bill without conversation, at the list prices of `list_usd`
    answers              quality by the level of the bill, relative to the model's mean (train/fit/answers.py)
    margin               what is subtracted from a predicted quality: a share of its posterior deviation

A model that the log does not know stands by its prior and this turn's own cost law, with the last row of `answers` and
`margin`. Without any model known (`NOTHING_KNOWN`) this is all there is: a fresh install.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.kernel import MAX_MODELS
from policy.mdp import COST_LEVELS, COST_MASSES

F32 = NDArray[np.float32]
TAIL = COST_LEVELS.index(0.9)
"""The levels of a bill from here on are its dear ones."""
LEAST_USD = 1e-9
LEAST_SHARE = 0.05
"""What is left of a bill without its conversation, at least: the reading is known by its length alone."""
GROWN_TOKENS = 250.0
"""What a turn adds to a conversation where no log has told."""
DIFFICULTY_SLOPE = 0.28
"""Deviation of -p log p times this is a prior's spread: `quality.PriorQuality` bends p by p log p times 2 log 2, and
difficulties differ by about a fifth."""


class Rows(NamedTuple):
    """Numbers of the candidates, (..., K) each."""

    quality: NDArray[np.floating]
    spread: NDArray[np.floating]
    mean_usd: NDArray[np.floating]
    q95_usd: NDArray[np.floating]
    tail: NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueLaw:
    """M models, L levels. `answers` and `margin` have one more row: what no log knows."""

    models: tuple[str, ...]
    quality: F32  # (M,)
    spread: F32  # (M,)
    mean_usd: F32  # (M,)
    q95_usd: F32  # (M,)
    list_usd: F32  # (M,) input plus output price, USD per million tokens
    answers: F32  # (M + 1, L)
    margin: F32  # (M + 1,)
    grown_tokens: F32  # (1,) what a turn adds to the conversation

    def places(self, names: Sequence[str]) -> NDArray[np.intp]:
        """The row of every name; unknown ones are beyond the last model."""
        known = {name: k for k, name in enumerate(self.models)}
        return np.array([known.get(name, len(self.models)) for name in names], np.intp)

    def rows(
        self,
        places: NDArray[np.integer],
        average: NDArray[np.floating],
        list_usd: NDArray[np.floating],
        bills_usd: NDArray[np.floating],
        read_usd: NDArray[np.floating],
        shown: NDArray[np.bool_],
    ) -> Rows:
        """What is known of candidates (..., K): by the log, at today's prices, or by what this turn shows.

        `average` is what is believed of their quality, `bills_usd` (..., K, L) this turn's law, of which reading the
        conversation is `read_usd`; `shown` leaves padding out.
        """
        mean = bills_usd @ COST_MASSES
        floor = np.maximum(LEAST_SHARE * mean, LEAST_USD)
        shown_mean = np.maximum(mean - read_usd, floor)
        shown_q95 = np.maximum(bills_usd[..., _Q95] - read_usd, floor)
        bent = average * np.log(np.maximum(average, 1e-3))
        count = np.maximum(shown.sum(axis=-1, keepdims=True), 1)
        middle = np.where(shown, bent, 0.0).sum(axis=-1, keepdims=True) / count
        shown_spread = DIFFICULTY_SLOPE * np.abs(bent - middle)
        tail = (self.answers[:, TAIL:] @ COST_MASSES[TAIL:] / COST_MASSES[TAIL:].sum())[places]
        if not self.models:
            return Rows(average, shown_spread, shown_mean, shown_q95, tail)
        known, at = places < len(self.models), np.minimum(places, len(self.models) - 1)
        dearer = np.where(
            (list_usd > 0.0) & (self.list_usd[at] > 0.0), list_usd / np.maximum(self.list_usd[at], 1e-9), 1.0
        )
        return Rows(
            np.where(known, self.quality[at], average),
            np.where(known, self.spread[at], shown_spread),
            np.where(known, self.mean_usd[at] * dearer, shown_mean),
            np.where(known, self.q95_usd[at] * dearer, shown_q95),
            tail,
        )

    def arrays(self) -> dict[str, F32]:
        """What a checkpoint stores, by name; `from_arrays` is the inverse."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, models: tuple[str, ...], arrays: Mapping[str, F32]) -> CatalogueLaw:
        """Raises ValueError when names, shapes or signs are not those of one law."""
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"law: missing or unknown arrays {sorted(set(arrays) ^ set(_ARRAYS))}")
        m = len(models)
        if m > MAX_MODELS:
            raise ValueError(f"law: expected at most {MAX_MODELS} models, found {m}")
        shapes = {"answers": (m + 1, len(COST_MASSES)), "margin": (m + 1,), "grown_tokens": (1,)}
        for name in _ARRAYS:
            found, expected = arrays[name], shapes.get(name, (m,))
            if found.shape != expected or not (found >= 0.0).all():
                raise ValueError(f"law/{name}: expected numbers from 0 of shape {expected}, found {found.shape}")
        for name in ("mean_usd", "q95_usd"):
            if not (arrays[name] > 0.0).all():
                raise ValueError(f"law/{name}: expected positive numbers")
        return cls(models, **{name: arrays[name] for name in _ARRAYS})


_Q95 = COST_LEVELS.index(0.95)
_ARRAYS = ("quality", "spread", "mean_usd", "q95_usd", "list_usd", "answers", "margin", "grown_tokens")
_NONE = np.zeros(0, np.float32)
NOTHING_KNOWN = CatalogueLaw(
    (),
    *(_NONE,) * 5,
    answers=np.ones((1, len(COST_LEVELS)), np.float32),
    margin=np.zeros(1, np.float32),
    grown_tokens=np.array([GROWN_TOKENS], np.float32),
)
"""The law of a fresh install."""
