"""The network's sizes and the exact tree of its parameters, without JAX: what a checkpoint is checked against."""

from __future__ import annotations

from dataclasses import dataclass, fields

from policy.features import CANDIDATE_DIM, CANDIDATE_MONEY_DIM, MONEY_DIM, STATE_DIM

HEADS = 3
"""Per candidate: quality of this turn, quality of a later turn, cost of a later turn."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """`members` networks, each a trunk of two `hidden` layers over state, money and the pooled candidates, and two
    `joint` layers per candidate."""

    state_dim: int = STATE_DIM
    candidate_dim: int = CANDIDATE_DIM
    money_dim: int = MONEY_DIM
    candidate_money_dim: int = CANDIDATE_MONEY_DIM
    hidden: int = 256
    joint: int = 128
    members: int = 3

    def __post_init__(self) -> None:
        for item in fields(self):
            value, most = getattr(self, item.name), 16 if item.name == "members" else 4096
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"sizes.{item.name}: expected an integer from 1 to {most}, got {value!r}"[:200])


def parameter_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every parameter by its path ("trunk_0/kernel"), with the ensemble as leading axis; all float32."""
    row = sizes.candidate_dim + sizes.candidate_money_dim
    dense = {
        "rows": (row, sizes.joint),
        "trunk_0": (sizes.state_dim + sizes.money_dim + 2 * sizes.joint, sizes.hidden),
        "trunk_1": (sizes.hidden, sizes.hidden),
        "context": (sizes.hidden, sizes.joint),
        "joint_1": (sizes.joint, sizes.joint),
        "heads": (sizes.joint, HEADS),
    }
    norms = {
        "trunk_0_norm": sizes.hidden,
        "trunk_1_norm": sizes.hidden,
        "joint_0_norm": sizes.joint,
        "joint_1_norm": sizes.joint,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in dense.items():
        shapes[f"{name}/kernel"] = (sizes.members, inputs, outputs)
        shapes[f"{name}/bias"] = (sizes.members, outputs)
    for name, width in norms.items():
        shapes[f"{name}/scale"] = (sizes.members, width)
        shapes[f"{name}/bias"] = (sizes.members, width)
    return shapes
