"""The gate where every action is graded: what each candidate earned is known, so nothing has to be weighted.

The tests and their words are those of a night (`train.gate.judge`); only the evidence is exact. Candidates are the
planner and every tuned heuristic; the default rule is the incumbent and stays where nothing surely beats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig
from train.gate import Evidence, Verdict, judge, tail
from train.ope import Interval
from train.replay.report import Resampled
from train.replay.world import Board, Played

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Gate:
    """Sessions of the prompts that the gate keeps, (S, T), and how prompts are resampled: they occur several times, so
    sessions alone would be taken for more than they are."""

    board: Board
    task_of_prompt: I64
    resampled: Resampled
    config: GateConfig


def verdict(gate: Gate, incumbent: Played, candidates: Mapping[str, Played]) -> Verdict:
    """Who serves. Of several that pass, the one that earned most.

    Every candidate's lower bound holds together with all the others', whichever is then taken.
    """
    return judge([exact(gate, name, incumbent, played, len(candidates)) for name, played in candidates.items()],
                 gate.config)  # fmt: skip


def exact(gate: Gate, name: str, incumbent: Played, candidate: Played, candidates: int) -> Evidence:
    """What is known of one candidate: quality per turn against the incumbent's on the same turns.

    The interval is a paired bootstrap over tasks, one-sided, at the gate's confidence divided among the candidates.
    """
    valid = candidate.valid
    task = gate.task_of_prompt[gate.board.sessions.rows[valid]]
    difference = candidate.quality[valid] - incumbent.quality[valid]
    means = gate.resampled.means(task, difference[:, None])[:, 0]
    below = tail(gate.config, candidates)
    low, high = np.quantile(means, (below, 1.0 - below))
    gain = Interval(float(difference.mean()), float(low), float(high))
    turns = int(valid.sum())
    return Evidence(
        name=name,
        sessions=len(valid),
        turns=turns,
        gain=gain,
        gain_sd=float(means.std() * np.sqrt(len(valid))),
        second_opinion=gain,
        effective_turns=float(turns),
        overlap=1.0,
        starved_rate=float(candidate.starved.mean()),
        incumbent_starved_rate=float(incumbent.starved.mean()),
        tuned_score=float(candidate.quality[valid].mean()),
    )
