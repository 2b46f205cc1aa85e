"""The gate where every action is graded: what each candidate earned is known, so nothing has to be weighted.

The tests and their words are those of a night (`train.gate.judge`); only the evidence is exact, and it is of every
training prompt: a candidate is made on one half and judged on the other, and the reverse (`ours.Rehearsal`). What then
serves is made the same way of all of them. The default rule is the incumbent and stays where nothing surely beats it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig
from train.gate import Evidence, Verdict, judge, tail
from train.ope import Interval
from train.replay.report import Resampled
from train.replay.study import Stage
from train.replay.world import Played

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Gate:
    """How prompts are resampled: they occur several times, so sessions alone would be taken for more than they are."""

    task_of_prompt: I64
    resampled: Resampled
    config: GateConfig


@dataclass(frozen=True)
class Trial:
    """What one candidate, or its predecessor, did in all rehearsals: by turn (N,), by session (S,)."""

    prompt: I64
    quality: F64
    starved: NDArray[np.bool_]


def trial(stages: Sequence[Stage], played: Sequence[Played]) -> Trial:
    """One policy in each of the rehearsals, together."""
    return Trial(
        np.concatenate([stage.board.sessions.rows[one.valid] for stage, one in zip(stages, played, strict=True)]),
        np.concatenate([one.quality[one.valid] for one in played]),
        np.concatenate([one.starved for one in played]),
    )


def verdict(gate: Gate, incumbent: Trial, candidates: Mapping[str, Trial]) -> Verdict:
    """Who serves. Of several that pass, the one that earned most.

    Every candidate's lower bound holds together with all the others', whichever is then taken.
    """
    return judge([exact(gate, name, incumbent, tried, len(candidates)) for name, tried in candidates.items()],
                 gate.config)  # fmt: skip


def exact(gate: Gate, name: str, incumbent: Trial, candidate: Trial, candidates: int) -> Evidence:
    """What is known of one candidate: quality per turn against the incumbent's on the same turns.

    The interval is a paired bootstrap over tasks, one-sided, at the gate's confidence divided among the candidates.
    """
    difference = candidate.quality - incumbent.quality
    means = gate.resampled.means(gate.task_of_prompt[candidate.prompt], difference[:, None])[:, 0]
    below = tail(gate.config, candidates)
    low, high = np.quantile(means, (below, 1.0 - below))
    gain = Interval(float(difference.mean()), float(low), float(high))
    turns, sessions = len(difference), len(candidate.starved)
    return Evidence(
        name=name,
        sessions=sessions,
        turns=turns,
        gain=gain,
        gain_sd=float(means.std() * np.sqrt(sessions)),
        second_opinion=gain,
        effective_turns=float(turns),
        overlap=1.0,
        starved_rate=float(candidate.starved.mean()),
        incumbent_starved_rate=float(incumbent.starved.mean()),
        tuned_score=float(candidate.quality.mean()),
    )
