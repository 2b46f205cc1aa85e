"""Sizes and parameter shapes of the value network, without JAX; checkpoints must match them."""

from __future__ import annotations

from dataclasses import dataclass, fields

KNOTS = 40
"""Points of the money axis."""
TURNS = 16
"""Later turns that it is trained on; more are taken to be alike."""
CURVES = 3
"""Quality, spend, chance of ending starved."""
ROW_DIM = 12
"""Inputs for each model (`value_curves.inputs`)."""
STATE_DIM = 8 + ROW_DIM
"""Inputs for the session: its turns, conversation and prices, and the row of the model whose cache is warm."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of the catalogue's encoder (two layers) and of the trunk (three)."""

    encoder: int = 32
    hidden: int = 80

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise ValueError(f"sizes.{item.name}: expected an integer from 1 to 1024, got {value!r}"[:200])


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by layer and leaf ("trunk_0/kernel"); all float32."""
    dense = {
        "encoder_0": (ROW_DIM, sizes.encoder),
        "encoder_1": (sizes.encoder, sizes.encoder),
        "trunk_0": (2 * sizes.encoder + STATE_DIM, sizes.hidden),
        "trunk_1": (sizes.hidden, sizes.hidden),
        "trunk_2": (sizes.hidden, sizes.hidden),
        "curves": (sizes.hidden, CURVES * (KNOTS + 1)),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in dense.items():
        shapes[f"{name}/kernel"] = (inputs, outputs)
        shapes[f"{name}/bias"] = (outputs,)
    shapes["norm/scale"] = shapes["norm/bias"] = (sizes.hidden,)
    return shapes
