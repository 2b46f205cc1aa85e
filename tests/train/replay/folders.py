"""Small folders in the replay format, with known truth: three models, two groups, text that gives the group away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODELS = ("large", "medium", "small")
USD_OUT_PER_M = {"small": 1.0, "medium": 10.0, "large": 100.0}
EASY = {"small": 0.9, "medium": 0.9, "large": 0.95}
HARD = {"small": 0.1, "medium": 0.4, "large": 0.9}


def write_folder(
    folder: Path,
    *,
    tasks: int = 120,
    turns: int = 1,
    seed: int = 0,
    models: Sequence[str] = MODELS,
    content: str = "text",
    drop: Sequence[str] = (),
    **columns: list[Any],
) -> Path:
    """`content`: text, embedding or none. `drop` leaves columns out of the prompts; `columns` replace outcomes'."""
    generator = np.random.default_rng(seed)
    prompts: dict[str, list[Any]] = {
        name: [] for name in ("source", "task_id", "turn", "group", "n_chars", "n_tok", "text", "embedding")
    }
    outcomes: dict[str, list[Any]] = {
        name: []
        for name in ("source", "task_id", "turn", "model", "quality", "in_tok", "out_tok", "n_calls", "cost_usd")
    }
    for task in range(tasks):
        hard = task % 2 == 1
        for turn in range(turns):
            words = f"task {task} turn {turn}: " + ("prove that the sum of these is even" if hard else "name a city")
            direction = np.zeros(8) + 0.1 * generator.standard_normal(8)
            direction[int(hard)] += 1.0
            prompts["source"].append("toy")
            prompts["task_id"].append(f"task-{task}")
            prompts["turn"].append(turn)
            prompts["group"].append("sums" if hard else "cities")
            prompts["n_chars"].append(len(words))
            prompts["n_tok"].append(len(words) // 4)
            prompts["text"].append(words if content == "text" else None)
            prompts["embedding"].append(direction.astype(np.float16).tolist() if content == "embedding" else None)
            for model in models:
                chance = (HARD if hard else EASY)[model]
                out_tokens = int(generator.integers(80, 121))
                outcomes["source"].append("toy")
                outcomes["task_id"].append(f"task-{task}")
                outcomes["turn"].append(turn)
                outcomes["model"].append(model)
                outcomes["quality"].append(float(generator.random() < chance))
                outcomes["in_tok"].append(len(words) // 4)
                outcomes["out_tok"].append(out_tokens)
                outcomes["n_calls"].append(1)
                outcomes["cost_usd"].append(out_tokens * USD_OUT_PER_M[model] * 1e-6)
    if content != "embedding":
        del prompts["embedding"]
    for name in drop:
        prompts.pop(name, None)
        outcomes.pop(name, None)
    outcomes |= columns
    prices = {
        "source": ["toy"] * len(models),
        "model": list(models),
        "usd_in_per_m": [0.0] * len(models),
        "usd_out_per_m": [USD_OUT_PER_M[model] for model in models],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("prompts", prompts), ("outcomes", outcomes), ("models", prices)):
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return folder
