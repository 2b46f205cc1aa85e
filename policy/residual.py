"""Residual of the reward model's quality: a small network fit by discrete CQL.

    residual(s, k) = relu(x W + b) w + c,    x of the turn's statistics, the session and the candidate (`inputs`)

A checkpoint has one only if it improved a held-out fold (train/fit/residual.py). NumPy or traced by JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F32
from policy.features import SESSION_FEATURES
from policy.text import STATS_DIM, TEXT_DIM

CANDIDATE_INPUTS = 5
INPUT_DIM = STATS_DIM + len(SESSION_FEATURES) + CANDIDATE_INPUTS
MAX_HIDDEN = 256


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Parameters of the residual network with H hidden units."""

    kernel: F32  # (INPUT_DIM, H)
    bias: F32  # (H,)
    heads: F32  # (H,)
    offset: F32  # (1,)

    def of(self, x: Any, xp: Any = np) -> Any:
        """The residual of inputs (..., INPUT_DIM), (...)."""
        return xp.maximum(x @ self.kernel + self.bias, 0.0) @ self.heads + self.offset[0]

    def arrays(self) -> dict[str, F32]:
        """Arrays by name, as a checkpoint stores them; `from_arrays` is the inverse."""
        return {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, F32]) -> Residual:
        """Build a residual. Raises ValueError when names or shapes are wrong."""
        if set(arrays) != set(_ARRAYS):
            raise ValueError(f"residual: missing or unknown arrays {sorted(set(arrays) ^ set(_ARRAYS))}")
        hidden = len(arrays["bias"]) if arrays["bias"].ndim == 1 else 0
        expected = {"kernel": (INPUT_DIM, hidden), "bias": (hidden,), "heads": (hidden,), "offset": (1,)}
        for name, shape in expected.items():
            if not 1 <= hidden <= MAX_HIDDEN or arrays[name].shape != shape:
                raise ValueError(f"residual/{name}: expected {shape}, found {arrays[name].shape}")
        return cls(**{name: arrays[name] for name in _ARRAYS})


def inputs(state: Any, quality: Any, prior: Any, list_usd: Any, mean_usd: Any) -> NDArray[np.float32]:
    """Network inputs of every candidate, (..., K, INPUT_DIM).

    `state` (..., STATE_DIM) is that of `features.encode_state`, the rest (..., K).
    """
    turn_state = state[..., TEXT_DIM:]
    price = np.log(np.maximum(list_usd, 1e-6))
    bill = np.log(np.maximum(mean_usd, 1e-9))
    columns = (
        quality,
        quality - quality.mean(axis=-1, keepdims=True),
        prior - quality,
        (price - price.min(axis=-1, keepdims=True)) / 5.0,
        (bill - bill.min(axis=-1, keepdims=True)) / 5.0,
    )
    each = np.stack(np.broadcast_arrays(*columns), axis=-1)
    session = np.broadcast_to(turn_state[..., None, :], (*each.shape[:-1], turn_state.shape[-1]))
    return np.asarray(np.concatenate([session, each], axis=-1), np.float32)


_ARRAYS = ("kernel", "bias", "heads", "offset")
