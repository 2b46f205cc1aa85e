"""What fitting leaves for the steps after it: the candidates as checkpoints, the reward model as plain arrays."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from policy.checkpoint import Loaded, Recipe, load, save
from train.quality import QualityModel

QUALITY = "quality.npz"


def keep(folder: Path, recipes: Sequence[Recipe], params: Any, quality: QualityModel) -> None:
    """Write candidates/<policy_id>/ and quality.npz, replacing what an earlier try left."""
    shutil.rmtree(folder / "candidates", ignore_errors=True)
    for recipe in recipes:
        arrays = {
            layer: {leaf: np.asarray(x, np.float32) for leaf, x in leaves.items()} for layer, leaves in params.items()
        }
        save(folder / "candidates" / recipe.policy_id, recipe, arrays)
    np.savez(folder / QUALITY, allow_pickle=False, **asdict(quality))


def candidates(folder: Path, policy_ids: Sequence[str]) -> list[Loaded]:
    """The checkpoints that `keep` wrote, verified."""
    return [load(folder / "candidates" / policy_id) for policy_id in policy_ids]


def quality_model(folder: Path, models: int, features: int) -> QualityModel:
    """The reward model that `keep` wrote. Raises ValueError when its shapes are not those of this log."""
    with np.load(folder / QUALITY, allow_pickle=False) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    if found["means"].shape != (models,) or found["centre"].shape != (features,):
        raise ValueError(
            f"{QUALITY}: expected {models} models and {features} features, "
            f"found {found['means'].shape} and {found['centre'].shape}"
        )
    return QualityModel(**found | {"out_of_fold_error": float(found["out_of_fold_error"])})
