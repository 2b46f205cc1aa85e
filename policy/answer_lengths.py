"""Length of each model's answer, predicted from the turn: a monotone quantile head.

    log tokens_kl(x) = median_k + shift_k(x) + stretch(x) (quantile_kl - median_k)
    shift_k(x) = z . weights_k,    stretch(x) = exp(z . widths + offset),    z the standardized state

The quantiles ascend and the stretch is positive, so the levels never cross. A checkpoint has a head only where it
predicted held-out turns better than each model's own distribution (train/fit/answer_lengths.py). The policy's cost
distribution reads it; a hold is never smaller for it (gateway/routing/estimates.py). NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32
from policy.features import STATE_DIM
from policy.kernel import MAX_MODELS
from policy.mdp import COST_LEVELS

MEDIAN = COST_LEVELS.index(0.5)
MOST_Z = 5.0
"""Standardized features are clipped: a turn unlike any in the log is not extrapolated."""
MOST_SHIFT = 3.0
NARROWEST, WIDEST = -2.0, 1.0
"""Limits of the logarithm of the stretch."""
MOST_LOG_TOKENS = 16.0


@dataclass(frozen=True, slots=True, eq=False)
class AnswerLengths:
    """The head over M models, D features and L levels.

    `known` is 0 for a model with too few turns.
    """

    models: tuple[str, ...]
    centre: F32  # (D,)
    scale: F32  # (D,)
    weights: F32  # (D, M)
    widths: F32  # (D,)
    offset: F32  # (1,)
    quantiles: F32  # (M, L) of log tokens at COST_LEVELS
    known: F32  # (M,) 0 or 1

    def standardized(self, state: NDArray[np.floating]) -> NDArray[np.floating]:
        """Standardize and clip states, (..., D)."""
        return np.asarray(np.minimum(np.maximum((state - self.centre) * self.scale, -MOST_Z), MOST_Z))

    def tokens(self, state: NDArray[np.floating]) -> NDArray[np.floating]:
        """Output tokens at COST_LEVELS of states (..., D), (..., M, L)."""
        z = self.standardized(state)
        shift = np.minimum(np.maximum(z @ self.weights, -MOST_SHIFT), MOST_SHIFT)
        stretch = np.exp(np.minimum(np.maximum(z @ self.widths + self.offset[0], NARROWEST), WIDEST))
        return np.asarray(np.exp(log_tokens(self.quantiles, shift, stretch)))

    def by_model(self, state: NDArray[np.floating]) -> dict[str, tuple[float, ...]]:
        """Quantiles of one turn for every known model."""
        found = zip(self.models, self.known.tolist(), self.tokens(state).tolist(), strict=True)
        return {name: tuple(levels) for name, known, levels in found if known}

    def arrays(self) -> dict[str, F32]:
        """Arrays by name, as a checkpoint stores them; `from_arrays` is the inverse."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, models: tuple[str, ...], arrays: Mapping[str, F32]) -> AnswerLengths:
        """Build a head. Raises ValueError when names, shapes or ranges are wrong."""
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"lengths: missing or unknown arrays {sorted(set(arrays) ^ set(_ARRAYS))}")
        m = len(models)
        if not 1 <= m <= MAX_MODELS:
            raise ValueError(f"lengths: expected 1 to {MAX_MODELS} models, found {m}")
        shapes = {"weights": (STATE_DIM, m), "offset": (1,), "quantiles": (m, len(COST_LEVELS)), "known": (m,)}
        for name in _ARRAYS:
            expected = shapes.get(name, (STATE_DIM,))
            if arrays[name].shape != expected:
                raise ValueError(f"lengths/{name}: expected {expected}, found {arrays[name].shape}")
        quantiles = arrays["quantiles"]
        if not (np.diff(quantiles, axis=1) >= 0.0).all() or not (np.abs(quantiles) <= MOST_LOG_TOKENS).all():
            raise ValueError(f"lengths/quantiles: expected ascending numbers of at most {MOST_LOG_TOKENS:g} in size")
        return cls(models, **{name: arrays[name] for name in _ARRAYS})


def log_tokens(quantiles: Any, shift: Any, stretch: Any) -> Any:
    """The head's equation: quantiles (M, L), shift (..., M), stretch (...) -> (..., M, L)."""
    median = quantiles[:, MEDIAN : MEDIAN + 1]
    return median + shift[..., None] + stretch[..., None, None] * (quantiles - median)


_ARRAYS = ("centre", "scale", "weights", "widths", "offset", "quantiles", "known")
