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
from train.errors import InputError
from train.fit.reward_model import RewardModel, Space
from train.fit.tune import as_arrays

QUALITY = "quality.npz"


def keep(
    folder: Path,
    policies: Sequence[tuple[Recipe, Mapping[str, Mapping[str, Any]]]],
    quality: RewardModel,
    models: Sequence[str],
) -> None:
    """Write candidates/<policy_id>/ and quality.npz, replacing those of an earlier attempt.

    `models` are those that the reward model grades, in its order.
    """
    shutil.rmtree(folder / "candidates", ignore_errors=True)
    for recipe, params in policies:
        save(folder / "candidates" / recipe.policy_id, recipe, as_arrays(params))
    values = asdict(quality)
    np.savez(folder / QUALITY, allow_pickle=False, models=np.array(models), **values.pop("space"), **values)


def candidates(folder: Path, policy_ids: Sequence[str]) -> list[Loaded]:
    """Load and verify the checkpoints that `keep` wrote."""
    return [load(folder / "candidates" / policy_id) for policy_id in policy_ids]


def quality_model(folder: Path, models: Sequence[str], features: int) -> RewardModel:
    """Load the reward model that `keep` wrote. Raises InputError when it does not fit this log."""
    with np.load(folder / QUALITY, allow_pickle=False) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    space = Space(**{name: found.pop(name) for name in Space.__dataclass_fields__})
    graded = tuple(found.pop("models", np.array([])).tolist())
    if graded != tuple(models) or space.centre.shape != (features,):
        raise InputError(
            f"{folder / QUALITY}: expected the log's models {', '.join(models)} and {features} features, found "
            f"{', '.join(graded) or 'none'} and {space.centre.size}: run `seqroute-train fit` on this log"
        )
    return RewardModel(space=space, **found | {"out_of_fold_error": float(found["out_of_fold_error"])})
