"""`seqroute-train replay`: every policy on every cell of every source, and what each earned. `run` is the story."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from train.replay.aims import aims
from train.replay.cells import Cell, Grid, catalogues, cells, middle, newcomer_cells
from train.replay.contest import Contest, newcomer_rows, play_cell
from train.replay.data import Graded, read_folder
from train.replay.ours import Learned, learn, learnt_turns
from train.replay.split import halves
from train.replay.study import Sets, Study, compose_sets, gate_stages, stages, studies
from train.replay.summary import summary
from train.replay.sweeps import fronts, make_sweep, starvation
from train.replay.world import NO_CONTEXT
from train.runs import finite

Progress = Callable[[str, int, int], None]

FORMAT = "seqroute-replay/1"
ONE_CORE = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
VERSIONS_OF = ("numpy", "jax", "jaxlib", "flax", "optax")


@dataclass(frozen=True)
class Options:
    """What to play. Empty `models` and `policies` mean the defaults and all. `workers` processes share the sources."""

    folders: tuple[Path, ...]
    grid: Grid
    preset: str = "quick"
    models: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 1
    progress: Progress | None = None

    def step(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(name, done, total)


class Part(NamedTuple):
    """What one catalogue brings to the output."""

    rows: list[dict[str, Any]]
    points: list[dict[str, Any]]
    learnt: dict[str, Any]


def run(options: Options) -> dict[str, Any]:
    """Play everything. Returns the output as docs/replay.md gives it. Deterministic given data and seed."""
    sources = [graded for folder in options.folders for graded in read_folder(folder)]
    parts = list(each_part(sources, options))
    rows = [row for part in parts for row in part.rows]
    points = [point for part in parts for point in part.points]
    return {
        "meta": meta(options, sources) | {"learnt": [part.learnt for part in parts]},
        "rows": rows,
        "summary": [*summary(rows, points), *aims(rows, points)],
        "front": points,
    }


def each_part(sources: Sequence[Graded], options: Options) -> Iterator[Part]:
    """Every catalogue of every source, in order; side by side where there are several workers."""
    waiting = [
        (graded, number)
        for graded in sources
        for number in range(len(catalogues(graded, halves(graded, options.seed).training, options.models)))
    ]
    if options.workers <= 1 or len(waiting) <= 1:
        for graded, number in waiting:
            yield play_catalogue(graded, number, options)
        return
    quiet = replace(options, progress=None, workers=1)
    spawn = multiprocessing.get_context("spawn")
    found: dict[int, Part] = {}
    with _one_core_each(), ProcessPoolExecutor(options.workers, mp_context=spawn) as pool:
        # The longest first: the last one to end then ends soon after the others.
        order = sorted(range(len(waiting)), key=lambda i: (waiting[i][1], -waiting[i][0].quality.size))
        places = {pool.submit(play_catalogue, *waiting[i], quiet): i for i in order}
        options.step("catalogues", 0, len(waiting))
        for done, future in enumerate(as_completed(places), 1):
            found[places[future]] = future.result()
            options.step("catalogues", done, len(waiting))
    for i in range(len(waiting)):
        yield found[i]


def play_catalogue(graded: Graded, number: int, options: Options) -> Part:
    """One catalogue of a source, by its number."""
    return play_study(next(studies(graded, options.grid, options.models, options.seed, only=number)), options)


def play_study(study: Study, options: Options) -> Part:
    """One catalogue: learn, play every cell, sweep the fronts."""
    grid, played = options.grid, cells(options.grid)
    label = f"{study.graded.source}, {len(study.graded.models)} models"
    options.step(f"{label}: learn", 0, 1)
    learned = learn(study, grid, learnt_turns(grid))
    judging = [rehearsal.judging for rehearsal in learned.planners[NO_CONTEXT].rehearsals]
    sets = {turns: compose_sets(study, grid, turns, judging) for turns in dict.fromkeys(cell.turns for cell in played)}
    rows: list[dict[str, Any]] = []
    for done, cell in enumerate(played):
        options.step(label, done, len(played))
        rows += play_cell(contest(study, sets, cell, learned, grid), options.policies)
    first = sets[grid.turns[0]]
    sweep, informed = make_sweep(study, first, grid.sweep_sessions, grid.turns[0]), learned.expecting(first.horizon)
    options.step(f"{label}: fronts", 0, 1)
    points = [*fronts(sweep, informed), *starvation(sweep, informed.planners[NO_CONTEXT])]
    options.step(f"{label}: newcomer", 0, 1)
    rows += newcomer_part(study, sets, learned, options)
    learnt = {
        "source": study.graded.source,
        "models": list(study.graded.models),
        "weakest": study.graded.models[study.named.weak],
        "strongest": study.graded.models[study.named.strong],
        "predictor": study.seen.kind,
        "predictor_r2": round(study.predictions.r2, 4),
        "planner": learned.planners[NO_CONTEXT].best.policy_id,
        "calibrated": learned.planners[NO_CONTEXT].calibrated.policy_id,
    }
    return Part(rows, points, learnt)


def contest(study: Study, sets: dict[int | None, Sets], cell: Cell, learned: Learned, grid: Grid) -> Contest:
    training, test = stages(study, sets[cell.turns], cell)
    gate = gate_stages(study, sets[cell.turns], cell)
    # What is learnt holds for any number of turns; how long sessions last is known of each cell, to all policies alike.
    return Contest(study, cell, training, test, gate, learned.expecting(training.horizon), grid.training.gate)


def newcomer_part(
    study: Study, sets: dict[int | None, Sets], learned: Learned, options: Options
) -> list[dict[str, Any]]:
    """The middle model withheld from everything: where there are three models or more."""
    if len(study.graded.models) < 3:
        return []
    grid, model = options.grid, middle(study.average_cost_usd)
    played = [contest(study, sets, cell, learned, grid) for cell in newcomer_cells(grid)]
    return [row for one in played for row in newcomer_rows(one, model, grid, options.policies)]


def meta(options: Options, sources: Sequence[Graded]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preset": options.preset,
        "seed": options.seed,
        "grid": finite(options.grid),
        "versions": {name: metadata.version(name) for name in VERSIONS_OF},
        "sources": [
            {"source": g.source, "prompts": g.prompts, "models": list(g.models), "digest": g.digest, "notes": g.notes}
            for g in sources
        ],
    }


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
