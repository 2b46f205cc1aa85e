"""Worth of the policy's text: `python -m bench.text --data FOLDER [--seed N] [--pair]`.

The same planner of the folder's training half for each text space (policy/text.py, policy/text_models.py), with the
gateway's features and forecasts of bills. `explained` is the share of the test half's variance of quality that its
reward model predicts: of differences between models, and of what all models share. Quality is that of the four budget
cells of `quick` together; below `hashed` the paired difference to it with a 95 % interval. `encoder` are the data's
sentence embeddings (MiniLM), as an ONNX encoder would give them. With `+ route` the label of the data's benchmark is
the client's route, as if each had its own system prompt; with `+ classifier` a class that ridge regression predicts
from the text, taught by these labels. Deterministic given the data and the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.ablations import TURNS, learn_from, line
from policy.arrays import F32, F64, I64
from policy.text import HASHED, TEXT_DIM, TextSpace, embed
from policy.text_models import projection, static_space
from train.fit.reward_model import RewardModel, ridge
from train.replay.catalogue import CatalogueSetup, compose_sets, stages, studies
from train.replay.dataset import Graded, read_folder
from train.replay.grid import Cell, quick
from train.replay.live import LiveVectors
from train.replay.predict import folds_of_tasks
from train.replay.served import as_rule
from train.replay.simulator import NO_CONTEXT, Played

PENALTY = 3.0
WITH_ROUTES = ("hashed", "static", "encoder")


def main() -> None:
    """Print a table for every catalogue in the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pair", action="store_true", help="the catalogue of two models")
    args = parser.parse_args()
    for folder in args.data:
        for graded in read_folder(folder):
            for row in table(graded, args.seed, int(args.pair)):
                print(row, flush=True)


def table(graded: Graded, seed: int, number: int) -> Iterator[str]:
    """Markdown lines of one catalogue of a source; none if it has no such catalogue."""
    grid, before = quick(), list[Played]()
    for name, space in spaces(graded):
        study = next(studies(graded, grid, (), seed, only=number, space=space), None)
        if study is None:
            return
        if not before:
            yield f"\n{graded.source}, {len(study.graded.models)} models, seed {seed}\n"
            yield "| explained: own, shared | cells | text | quality | 95 % | starved |\n|---|---|---|--:|--:|--:|"
        sets = compose_sets(study, grid, TURNS)
        cells = [Cell(TURNS, phi, mode, NO_CONTEXT) for phi in grid.phis for mode in grid.modes]
        for words, routed in routes(study, name):
            learned = learn_from(routed, grid, NO_CONTEXT)
            tests = [stages(routed, sets, cell)[1] for cell in cells]
            played = [test.play(as_rule(learned.planner(grid.training), routed.seen)) for test in tests]
            own, shared = explained(routed, learned.quality)
            yield f"| {own:.3f}, {shared:.3f} {line(routed, 'four', words, tests, played, before or None)}"
            before = before or played


def spaces(graded: Graded) -> Iterator[tuple[str, TextSpace]]:
    """The text spaces to compare, the first of which is the reference."""
    static = static_space()
    yield "hashed", HASHED
    yield "static", static
    yield "hashed and static", TextSpace("both", lambda text: halves_of(embed(text), static.embed(text)))
    if graded.embedding is not None:
        project = projection(graded.embedding.shape[1])
        known = {text: project(row) for text, row in zip(graded.text, graded.embedding.astype(np.float32), strict=True)}
        yield "encoder", TextSpace("encoder", lambda text: known.get(text, np.zeros(TEXT_DIM, np.float32)))


def halves_of(hashed: F32, static: F32) -> F32:
    """Both in one vector, of equal length: the hashed buckets folded, half of the static vector."""
    halves = [
        half / max(float(np.linalg.norm(half)), 1e-9) for half in (hashed.reshape(2, -1).sum(axis=0), static[:128])
    ]
    return np.asarray(np.concatenate(halves) / np.sqrt(2.0), np.float32)


def routes(study: CatalogueSetup, name: str) -> Iterator[tuple[str, CatalogueSetup]]:
    """The study without routes, and with those of its groups and of the classifier."""
    yield name, study
    if name in WITH_ROUTES and len(study.graded.groups) > 1:
        group = study.graded.group
        yield f"{name} + route", replace(study, seen=replace(study.seen, route=group + 1))
        yield f"{name} + classifier", replace(study, seen=replace(study.seen, route=classes(study, group) + 1))


def classes(study: CatalogueSetup, group: I64) -> I64:
    """The predicted group of every prompt, out of fold on the training half."""
    x = np.column_stack([study.seen.text, np.ones(len(group))]).astype(np.float64)
    y, training, fold = (
        np.eye(int(group.max()) + 1)[group],
        study.halves.training,
        folds_of_tasks(study.graded, study.seed),
    )
    found = x @ weights(x, y, training)
    for each in np.unique(fold):
        held = training[fold[training] == each]
        found[held] = x[held] @ weights(x, y, training[fold[training] != each])
    return np.asarray(found.argmax(axis=1), np.int64)


def weights(x: F64, y: F64, rows: I64) -> F64:
    """Ridge weights of all columns of y."""
    return ridge(x[rows], y[rows], PENALTY)


def explained(study: CatalogueSetup, quality: RewardModel) -> tuple[float, float]:
    """Explained variance of the test half, of models' deviations from their mean and of it."""
    assert isinstance(study.seen, LiveVectors)
    test, mean = study.halves.test, study.graded.quality[study.halves.training].mean(axis=0)
    true = study.graded.quality[test] - mean
    found = quality.predict(study.seen.state[test], study.seen.route[test]) - mean

    def share(true: F64, found: F64) -> float:
        return float(1.0 - ((true - found) ** 2).sum() / (true**2).sum())

    shared, predicted = true.mean(axis=1, keepdims=True), found.mean(axis=1, keepdims=True)
    return share(true - shared, found - predicted), share(shared, predicted)


if __name__ == "__main__":
    main()
