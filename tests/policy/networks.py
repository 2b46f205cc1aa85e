"""Value networks for tests: small ones with noise in every layer, as checkpoints hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

from policy.checkpoint import layers_as_part
from policy.value_network_shapes import Sizes, parameter_shapes

SMALL = Sizes(encoder=4, hidden=5)


def layers(seed: int = 0, sizes: Sizes = SMALL, scale: float = 0.3) -> dict[str, dict[str, Any]]:
    """Parameters far from the start: every curve speaks."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for path, shape in parameter_shapes(sizes).items():
        layer, leaf = path.split("/")
        noise = scale * rng.standard_normal(shape) + (leaf == "scale")
        found.setdefault(layer, {})[leaf] = noise.astype(np.float32)
    return found


def part(seed: int = 0, sizes: Sizes = SMALL, scale: float = 0.3) -> dict[str, dict[str, Any]]:
    """The parameters of a checkpoint of which priors are all that is known."""
    return {"network": layers_as_part(layers(seed, sizes, scale))}
