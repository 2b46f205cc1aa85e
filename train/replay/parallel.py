"""Parallel work in a few processes, one core each, with progress."""

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
"""Called with the number of steps that a piece of work has done."""

ONE_CORE = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
LISTENING_SECONDS = 1.0


@dataclass(frozen=True)
class ProgressSender:
    """Callback that reports progress of the piece at `place` to another process."""

    place: int
    told: Queue[tuple[int, int]]

    def __call__(self, done: int) -> None:
        self.told.put((self.place, done))


def side_by_side(
    work: Sequence[Callable[[Tell], Result]], workers: int, told: Callable[[int, int], None]
) -> Iterator[tuple[int, Result]]:
    """Yield (place, result) of every piece of work as it ends, in `workers` processes.

    Pieces are started in order, and their exceptions are raised here. `told(place, done)` is called with their steps.
    Pieces and results travel between processes: they must be picklable.
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
    """Limit BLAS and XLA to one thread in processes started here."""
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
