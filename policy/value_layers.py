"""NumPy layers of the value network (policy/value_network.py), served without importing JAX.

The network is so small that dispatching a compiled call takes as long as computing it, and compiling would add seconds
to every worker's start. `tests/policy/test_value_network.py` checks that both forms agree.

The network is so small that dispatching a compiled call takes as long as computing it, and a compilation takes seconds
of every worker's start. `tests/policy/test_value_network.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.value_curves import Forward
from policy.value_network_shapes import CURVES, KNOTS

F32 = NDArray[np.float32]
_EPSILON = np.float32(1e-6)
"""Flax's LayerNorm adds it to the variance."""


def forward_of(params: Mapping[str, Mapping[str, Any]]) -> Forward:
    """The forward pass with these parameters bound, all in float32."""
    layers = {
        name: (np.asarray(p["kernel"], np.float32), np.asarray(p["bias"], np.float32))
        for name, p in params.items()
        if "kernel" in p
    }
    scale, bias = (np.asarray(params["norm"][leaf], np.float32) for leaf in ("scale", "bias"))

    def dense(name: str, x: F32) -> F32:
        kernel, offset = layers[name]
        return x @ kernel + offset

    def forward(rows: Any, mask: Any, state: Any) -> F32:
        encoded = np.maximum(dense("encoder_0", np.asarray(rows, np.float32)), 0.0)
        encoded = np.maximum(dense("encoder_1", encoded), 0.0) * mask[..., None]
        mean = encoded.sum(-2) / np.maximum(mask.sum(-1), 1).astype(np.float32)[..., None]
        hidden = dense("trunk_0", np.concatenate([mean, encoded.max(-2), np.asarray(state, np.float32)], -1))
        centred = hidden - hidden.mean(-1, keepdims=True)
        deviation = np.sqrt(np.mean(centred * centred, -1, keepdims=True) + _EPSILON)
        hidden = np.maximum(centred / deviation * scale + bias, 0.0)
        hidden = hidden + np.maximum(dense("trunk_1", hidden), 0.0)
        hidden = hidden + np.maximum(dense("trunk_2", hidden), 0.0)
        raw = dense("curves", hidden)
        return raw.reshape(*raw.shape[:-1], CURVES, KNOTS + 1)

    return forward
