"""NumPy layers of the value network (policy/value_network.py), served without importing JAX.

The network is so small that dispatching a compiled call takes as long as computing it, and compiling would add seconds
to every worker's start. `tests/policy/test_value_curves.py` checks that both forms agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from policy.arrays import F32
from policy.value_curves import Forward
from policy.value_network_shapes import CURVES, KNOTS

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
    width = layers["encoder_0"][0].shape[1]
    # LayerNorm subtracts the mean over the units; subtracted from the weights it costs nothing.
    kernel, offset = layers["trunk_0"]
    layers["centred_0"] = kernel - kernel.mean(axis=1, keepdims=True), offset - offset.mean()

    def dense(name: str, x: F32) -> F32:
        kernel, offset = layers[name]
        found = x @ kernel
        found += offset
        return found

    def relu(x: F32) -> F32:
        return np.maximum(x, 0.0, out=x)

    def forward(rows: Any, mask: Any, state: Any) -> F32:
        shown = np.asarray(rows, np.float32)
        encoded = relu(dense("encoder_1", relu(dense("encoder_0", shown.reshape(-1, shown.shape[-1])))))
        encoded = encoded.reshape(*shown.shape[:-1], width)
        encoded *= mask[..., None]
        read = np.empty((*shown.shape[:-2], 2 * width + state.shape[-1]), np.float32)
        np.add.reduce(encoded, -2, out=read[..., :width])
        read[..., :width] /= np.maximum(np.add.reduce(mask, -1, dtype=np.float32), 1.0)[..., None]
        np.maximum.reduce(encoded, -2, out=read[..., width : 2 * width])
        read[..., 2 * width :] = state
        hidden = dense("centred_0", read)
        variance = np.add.reduce(hidden * hidden, -1, keepdims=True) / np.float32(hidden.shape[-1])
        hidden *= scale / np.sqrt(variance + _EPSILON)
        hidden += bias
        relu(hidden)
        hidden += relu(dense("trunk_1", hidden))
        hidden += relu(dense("trunk_2", hidden))
        raw = dense("curves", hidden)
        return raw.reshape(*raw.shape[:-1], CURVES, KNOTS + 1)

    return forward
