"""Two halves of a source that share nothing: one to fit and tune on, one to measure on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.replay.dataset import Graded

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Halves:
    """Prompt indices of either half, and each prompt's number in [0, 1), by which further parts are made."""

    training: I64
    test: I64
    fraction: NDArray[np.float64]  # (P,)


def halves(graded: Graded, seed: int) -> Halves:
    """Half of the tasks for fitting, by a hash of their first text: the same text under two ids is on one side only.

    Where there is no text the id is hashed. All turns of a task are on the side of its first.
    """
    first = np.full(len(graded.task_ids), -1, np.int64)
    for i in range(graded.prompts - 1, -1, -1):
        first[graded.task[i]] = i
    names = [graded.text[i] or f"id {graded.task_ids[t]}" for t, i in enumerate(first)]
    of_task = np.array([hashed(seed, graded.source, name) for name in names])
    fraction = of_task[graded.task]
    training = fraction < 0.5
    # Of a handful of tasks nearly all may fall on one side: deal them out in turn.
    if min(len(np.unique(graded.task[side])) for side in (training, ~training)) < 2:
        fraction = (graded.task % 2) * 0.5 + fraction / 2
        training = fraction < 0.5
    return Halves(np.flatnonzero(training), np.flatnonzero(~training), fraction)


def hashed(seed: int, source: str, name: str) -> float:
    """A number in [0, 1) that depends on these words alone."""
    digest = hashlib.sha256(f"{seed}\0{source}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
