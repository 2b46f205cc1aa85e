"""Efforts of reasoning: levels of one model that a policy chooses among like among models.

A model whose `model_info` lists `efforts` is one candidate per level. Its levels share deployments, prices, limits and
the provider's prompt cache; lengths of answers, bills and quality are learned for each level by itself, under the name
`model#level`. Clients see the model's own name. A client that sets an effort has only that one.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.config.model_entry import EFFORTS

SCALE = ("none", "minimal", *EFFORTS, "xhigh", "max")
"""Efforts that clients may name, ascending."""
_STEP = 0.1
"""Share of its quality that a model is believed to lose with a low effort, and of its faults with a high one."""


def nearest(asked: str, levels: Sequence[str]) -> str:
    """The listed level next to what a client asked for; the middle one for an unknown effort."""
    if asked not in SCALE:
        return levels[len(levels) // 2]
    wanted = SCALE.index(asked)
    return min(levels, key=lambda level: abs(SCALE.index(level) - wanted))


def quality_prior(of_model: float, level: str) -> float:
    """The prior of a level for which the operator states none."""
    return {"low": of_model * (1.0 - _STEP), "high": of_model + (1.0 - of_model) * _STEP}.get(level, of_model)
