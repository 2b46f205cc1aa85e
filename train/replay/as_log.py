"""A replay folder as a log: sessions composed of its prompts, with grades of all models.

`fit`, `evaluate` and `frontier` accept one instead of the gateway's log. The two parts share no prompt and no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policy.arrays import I64
from train.errors import InputError
from train.log.episodes import Episodes
from train.replay.catalogue import CatalogueSetup, compose_sessions, studies
from train.replay.dataset import DataError, read_folder
from train.replay.grid import PHIS, TRAINING_PHIS, Cell, quick
from train.replay.ours import one_log
from train.replay.simulated_log import concatenate
from train.replay.simulator import NO_CONTEXT

LOOSE_PHI = 3.0
"""A budget that ends no session, for callers that set budgets of their own."""
TURNS = 8
TRAINING_SESSIONS, UNTOUCHED_SESSIONS = 480, 240
FIRST_PART, SECOND_PART = 401, 501
"""First seeds of the composed parts; replay's own are smaller."""


def composed_log(
    folder: Path, seed: int, *, phis: Sequence[float] = PHIS, untouched_sessions: int | None = None
) -> tuple[Episodes, Episodes]:
    """Compose (training part, held-out part) of a folder with one source.

    Sessions have eight turns in all of replay's orders. Training sessions have the budgets that replay trains under,
    the held-out ones those of `phis`. Raises InputError for a folder with several sources.
    """
    try:
        sources = read_folder(folder)
    except DataError as error:
        raise InputError(str(error)) from error
    if len(sources) != 1:
        names = ", ".join(source.source for source in sources)
        raise InputError(f"{folder}: expected one source, found {len(sources)}: {names}")
    study = next(studies(sources[0], quick(), (), seed))
    training = _part(study, study.halves.training, TRAINING_PHIS, TRAINING_SESSIONS, FIRST_PART)
    sessions = UNTOUCHED_SESSIONS if untouched_sessions is None else untouched_sessions
    return training, _part(study, study.halves.test, phis, sessions, SECOND_PART)


def _part(study: CatalogueSetup, prompts: I64, phis: Sequence[float], sessions: int, first: int) -> Episodes:
    """`sessions` sessions of these prompts, evenly over the budgets."""
    each = -(-sessions // len(phis))
    cells = [Cell(TURNS, phi, "degrade", NO_CONTEXT) for phi in phis]
    logs = []
    for i, cell in enumerate(cells):
        made = compose_sessions(study, prompts, each, TURNS, quick().orderings, part=first + i)
        logs.append(one_log(study, made, cell, first + i)[0])
    return concatenate(logs)


def log_summary(training: Episodes, untouched: Episodes) -> dict[str, Any]:
    """Summary of the log for a report; every turn is graded."""
    turns = training.turns + untouched.turns
    models = np.concatenate([part.action[part.valid] for part in (training, untouched)])
    return {
        "sessions": training.sessions + untouched.sessions,
        "turns": turns,
        "excluded": {},
        "labels": {"known": turns},
        "policies": {training.policy_ids[0]: turns},
        "models": {name: int((models == k).sum()) for k, name in enumerate(training.models)},
    }
