"""`seqroute-train replay`: play every policy on every cell of every source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from policy.mdp import Policy
from train.progress import Progress
from train.replay.branches import Branches, read_branches
from train.replay.catalogue import CatalogueSetup, Sets, compose_sets, gate_stages, stages, studies, without_model
from train.replay.cell import CellRun, best_setting, newcomer_rows, planner_trials, play_cell
from train.replay.dataset import Graded, named_apart, read_folder
from train.replay.grid import Cell, Grid, catalogues, cells, middle, newcomer_cells
from train.replay.inputs import Inputs
from train.replay.ours import Learned, curves_of, learn, learned_turns
from train.replay.parallel import Tell, side_by_side
from train.replay.resume_cache import ResumeCache, part_name
from train.replay.simulator import NO_CONTEXT
from train.replay.split import halves
from train.replay.summary import Row, summary
from train.replay.sweeps import TIGHT_PHI, fronts, make_sweep, starvation
from train.replay.targets import aims
from train.replay.tree import tree_rows
from train.run_folder import finite

FORMAT = "seqroute-replay/1"
VERSIONS_OF = ("numpy", "jax", "jaxlib", "flax", "optax")
LEARNING_STEPS = 5
"""Progress steps of learning for each context: about the time of so many cells."""


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Empty `models` and `policies` mean the defaults and all. Everything is played with each of `inputs`. `workers`
    processes share the catalogues; 0: this process plays them all. `kept` is a folder for finished parts, to resume
    an interrupted run.
    """

    folders: tuple[Path, ...]
    grid: Grid
    preset: str = "quick"
    models: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    seed: int = 0
    inputs: tuple[Inputs, ...] = ("live",)
    workers: int = 0
    kept: Path | None = None
    progress: Progress | None = None

    def step(self, done: int, total: int) -> None:
        """Report progress, if requested."""
        if self.progress is not None:
            self.progress("replay", done, total)


class CatalogueOutput(NamedTuple):
    """Results of one catalogue."""

    rows: list[dict[str, Any]]
    points: list[dict[str, Any]]
    learned: dict[str, Any]
    tree: list[dict[str, Any]]


class ReplaySource(NamedTuple):
    """One source of a folder; `branches` if it is a rollout's."""

    graded: Graded
    branches: Branches | None = None

    @property
    def digest(self) -> str:
        """Digest of the source's data."""
        return self.graded.digest + (self.branches.digest if self.branches else "")


def run(options: Options) -> dict[str, Any]:
    """Play everything; returns the output (docs/replay.md). Deterministic given data and seed."""
    sources = read_sources(options.folders)
    parts = each_part(sources, options)
    rows = [row for part in parts for row in part.rows]
    points = [point for part in parts for point in part.points]
    return {
        "meta": meta(options, [source.graded for source in sources]) | {"learned": [part.learned for part in parts]},
        "rows": rows,
        "summary": [line for kind in options.inputs for line in summary_of(kind, rows, points)],
        "front": points,
        "tree": [row for part in parts for row in part.tree],
    }


def summary_of(inputs: Inputs, rows: Sequence[Row], points: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """All summary lines of one kind of inputs."""
    mine, drawn = ([row for row in part if row["inputs"] == inputs] for part in (rows, points))
    for line in (*summary(mine, drawn), *aims(mine, drawn)):
        yield {"inputs": inputs, **line}


def read_sources(folders: Sequence[Path]) -> list[ReplaySource]:
    """Every source of all folders, under distinct names."""
    found = [(folder, graded) for folder in dict.fromkeys(folders) for graded in read_folder(folder)]
    branches = [read_branches(folder, graded) for folder, graded in found]
    return [ReplaySource(*both) for both in zip(named_apart(found), branches, strict=True)]


def each_part(sources: Sequence[ReplaySource], options: Options) -> list[CatalogueOutput]:
    """Play every catalogue of every source in order, reusing finished parts of an earlier run."""
    waiting = [
        (source, inputs, number)
        for source in sources
        for inputs in options.inputs
        for number in range(
            len(catalogues(source.graded, halves(source.graded, options.seed).training, options.models))
        )
    ]
    names = [
        part_name([source.digest, source.graded.source, inputs, number, settings(options)])
        for source, inputs, number in waiting
    ]
    kept, each = ResumeCache(options.kept) if options.kept else None, steps(options.grid)
    before = [kept.find(name) if kept else None for name in names]
    found = {i: CatalogueOutput(**part) for i, part in enumerate(before) if part is not None}
    # The longest first, so that all processes end at about the same time.
    order = sorted(range(len(waiting)), key=lambda i: (waiting[i][2], -waiting[i][0].graded.quality.size))
    places = [i for i in order if i not in found]
    done = dict.fromkeys(found, each)
    options.step(sum(done.values()), each * len(waiting))

    def told(place: int, steps_done: int) -> None:
        done[places[place]] = steps_done
        options.step(sum(done.values()), each * len(waiting))

    quiet = replace(options, folders=(), kept=None, progress=None)
    for place, part in run_pieces([partial(play_catalogue, *waiting[i], quiet) for i in places], options.workers, told):
        found[places[place]] = part
        told(place, each)
        if kept:
            kept.keep(names[places[place]], part._asdict())
    return [found[i] for i in range(len(waiting))]


def run_pieces(
    work: Sequence[Callable[[Tell], CatalogueOutput]], workers: int, told: Callable[[int, int], None]
) -> Iterator[tuple[int, CatalogueOutput]]:
    """Results of all pieces of work with their index, from this process or several."""
    if workers > 0:
        yield from side_by_side(work, min(workers, max(len(work), 1)), told)
        return
    for place, piece in enumerate(work):
        yield place, piece(partial(told, place))


def steps(grid: Grid) -> int:
    """Progress steps of one catalogue."""
    return LEARNING_STEPS * (1 + len(grid.contexts)) + len(cells(grid)) + len(newcomer_cells(grid))


def play_catalogue(source: ReplaySource, inputs: Inputs, number: int, options: Options, tell: Tell) -> CatalogueOutput:
    """Play one catalogue of a source, by its number."""
    study = next(studies(source.graded, options.grid, options.models, options.seed, only=number, inputs=inputs))
    return play_study(study, source.branches, options, tell)


def play_study(study: CatalogueSetup, branches: Branches | None, options: Options, tell: Tell) -> CatalogueOutput:
    """Play one catalogue: learn, play every cell, sweep the fronts, follow a rollout's trees."""
    grid, plain = options.grid, cells(options.grid)
    learned = learn(study, grid, learned_turns(grid))
    judging = [rehearsal.judging for rehearsal in learned.planners[NO_CONTEXT].rehearsals]
    sets = {turns: compose_sets(study, grid, turns, judging) for turns in dict.fromkeys(cell.turns for cell in plain)}
    rows: list[dict[str, Any]] = []
    for done, cell in enumerate(plain):
        tell(LEARNING_STEPS * (1 + len(grid.contexts)) + done)
        rows += play_cell(contest(study, sets, cell, learned, grid), options.policies)
    first = sets[grid.turns[0]]
    sweep, informed = make_sweep(study, first, grid.sweep_sessions, grid.turns[0]), learned.expecting(first.horizon)
    there = contest(study, sets, Cell(grid.turns[0], TIGHT_PHI, "cut", NO_CONTEXT), learned, grid)
    planner = planner_of_front(there)
    points = [*fronts(sweep, informed, planner), *starvation(sweep, informed)]
    rows += newcomer_part(study, sets, learned, options)
    facts = {
        "source": study.graded.source,
        "inputs": study.inputs,
        "models": list(study.graded.models),
        "weakest": study.graded.models[study.named.weak],
        "strongest": study.graded.models[study.named.strong],
        "predictor": study.seen.kind,
        "predictor_r2": round(study.predictions.r2, 4),
    }
    tree = tree_rows(study, branches, planner, first.horizon, grid.resamples) if branches else []
    return CatalogueOutput(rows, points, facts, tree)


def contest(study: CatalogueSetup, sets: dict[int | None, Sets], cell: Cell, learned: Learned, grid: Grid) -> CellRun:
    """Set up one cell with its environments and learned policies."""
    training, test = stages(study, sets[cell.turns], cell)
    gate = gate_stages(study, sets[cell.turns], cell)
    # Learned policies hold for any number of turns; all policies know the horizon of the cell.
    return CellRun(study, cell, training, test, gate, learned.expecting(training.horizon), grid.training)


def planner_of_front(contest: CellRun) -> Policy:
    """The planner's setting with the highest score in the rehearsals."""
    return contest.planners.curve[best_setting(planner_trials(contest))][1]


def newcomer_part(
    study: CatalogueSetup, sets: dict[int | None, Sets], learned: Learned, options: Options
) -> list[dict[str, Any]]:
    """Rows with the middle model withheld from all training, given three models or more."""
    if len(study.graded.models) < 3:
        return []
    grid, model = options.grid, middle(study.average_cost_usd)
    absent = without_model(study, model)
    curve = curves_of(absent, grid, absent.halves.training, learned_turns(grid), [NO_CONTEXT])[0]
    there = [contest(study, sets, cell, learned, grid) for cell in newcomer_cells(grid)]
    return [row for one in there for row in newcomer_rows(one, model, curve, options.policies)]


def meta(options: Options, sources: Sequence[Graded]) -> dict[str, Any]:
    """Metadata of the output: data, options and versions."""
    return {
        "format": FORMAT,
        **settings(options),
        "sources": [
            {"source": g.source, "prompts": g.prompts, "models": list(g.models), "digest": g.digest, "notes": g.notes}
            for g in sources
        ],
    }


def settings(options: Options) -> dict[str, Any]:
    """Options that the output depends on, besides data and code."""
    return {
        "preset": options.preset,
        "seed": options.seed,
        "grid": finite(options.grid),
        "catalogue": list(options.models),
        "policies": list(options.policies),
        "inputs": list(options.inputs),
        "versions": {name: metadata.version(name) for name in VERSIONS_OF},
    }
