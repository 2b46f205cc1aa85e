"""Many pieces of work in a few processes, one core each: results as they come, and how far each piece is meanwhile."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TypeVar

Result = TypeVar("Result")
Tell = Callable[[int], None]
"""Told how many of its steps a piece of work has done."""

ONE_CORE = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
LISTENING_SECONDS = 1.0


@dataclass(frozen=True)
class ProgressSender:
    """Tells another process how far the piece at `place` is."""

    place: int
    told: Queue[tuple[int, int]]

    def __call__(self, done: int) -> None:
        self.told.put((self.place, done))


def side_by_side(
    work: Sequence[Callable[[Tell], Result]], workers: int, told: Callable[[int, int], None]
) -> Iterator[tuple[int, Result]]:
    """(place, result) of every piece as it ends. They are begun in order; what one raises is raised here.

    `told(place, done)` hears of their steps. Pieces and results travel between processes: they must be picklable.
    """
    spawn = multiprocessing.get_context("spawn")
    with _one_core_each(), spawn.Manager() as manager, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        steps: Queue[tuple[int, int]] = manager.Queue()
        places = {pool.submit(piece, ProgressSender(place, steps)): place for place, piece in enumerate(work)}
        waiting = set(places)
        while waiting:
            ended, waiting = wait(waiting, LISTENING_SECONDS, FIRST_COMPLETED)
            for place, done in _heard(steps):
                told(place, done)
            for future in ended:
                yield places[future], future.result()


def _heard(steps: Queue[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    while True:
        try:
            yield steps.get_nowait()
        except Empty:
            return


@contextmanager
def _one_core_each() -> Iterator[None]:
    """Processes started here take one core each: threads of BLAS and XLA would only get in the way of the others."""
    before = {name: os.environ.get(name) for name in ONE_CORE}
    os.environ.update(ONE_CORE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
