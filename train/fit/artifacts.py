"""Artifacts of a fit: candidates as checkpoints and the reward model as plain arrays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from policy.checkpoint import Loaded, load, save
from policy.manifest import Recipe
from train.fit.reward_model import RewardModel, Space
from train.fit.tune import as_arrays

QUALITY = "quality.npz"


def keep(
    folder: Path, policies: Sequence[tuple[Recipe, Mapping[str, Mapping[str, Any]]]], quality: RewardModel
) -> None:
    """Write candidates/<policy_id>/ and quality.npz, replacing those of an earlier attempt."""
    shutil.rmtree(folder / "candidates", ignore_errors=True)
    for recipe, params in policies:
        save(folder / "candidates" / recipe.policy_id, recipe, as_arrays(params))
    values = asdict(quality)
    np.savez(folder / QUALITY, allow_pickle=False, **values.pop("space"), **values)


def candidates(folder: Path, policy_ids: Sequence[str]) -> list[Loaded]:
    """Load and verify the checkpoints that `keep` wrote."""
    return [load(folder / "candidates" / policy_id) for policy_id in policy_ids]


def quality_model(folder: Path, models: int, features: int) -> RewardModel:
    """Load the reward model that `keep` wrote. Raises ValueError when it does not fit this log."""
    with np.load(folder / QUALITY, allow_pickle=False) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    space = Space(**{name: found.pop(name) for name in Space.__dataclass_fields__})
    if found["means"].shape != (models,) or space.centre.shape != (features,):
        raise ValueError(
            f"{QUALITY}: expected {models} models and {features} features, "
            f"found {found['means'].shape} and {space.centre.shape}"
        )
    return RewardModel(space=space, **found | {"out_of_fold_error": float(found["out_of_fold_error"])})
