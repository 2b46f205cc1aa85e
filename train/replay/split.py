"""Split of a source into independent halves, for training and testing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.arrays import I64
from train.replay.dataset import Graded


@dataclass(frozen=True)
class Halves:
    """Prompt indices of either half, and each prompt's hash in [0, 1), for further splits."""

    training: I64
    test: I64
    fraction: NDArray[np.float64]  # (P,)


def halves(graded: Graded, seed: int) -> Halves:
    """Split tasks by a hash of their first text, so that equal texts are on one side.

    Tasks without text use their id. All turns of a task are on the side of its first.
    """
    first = np.full(len(graded.task_ids), -1, np.int64)
    for i in range(graded.prompts - 1, -1, -1):
        first[graded.task[i]] = i
    names = [graded.text[i] or f"id {graded.task_ids[t]}" for t, i in enumerate(first)]
    of_task = np.array([hash_fraction(seed, graded.source, name) for name in names])
    fraction = of_task[graded.task]
    training = fraction < 0.5
    # A handful of tasks may nearly all fall on one side: assign them in turn.
    if min(len(np.unique(graded.task[side])) for side in (training, ~training)) < 2:
        fraction = (graded.task % 2) * 0.5 + fraction / 2
        training = fraction < 0.5
    return Halves(np.flatnonzero(training), np.flatnonzero(~training), fraction)


def hash_fraction(seed: int, source: str, name: str) -> float:
    """A hash of these words in [0, 1)."""
    digest = hashlib.sha256(f"{seed}\0{source}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
