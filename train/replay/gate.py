"""The gate where every action is graded: what each candidate earned is known, so nothing has to be weighted.

The tests and their words are those of a night (`train.evaluate.gate.judge`); only the evidence is exact, and it is of
every training prompt: a candidate is made of two thirds of them and judged on the last third, three times over
(`ours.Rehearsal`). What then serves is made the same way of all of them. The shipped network is the
incumbent and stays where nothing surely beats it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from train.config import GateConfig
from train.evaluate.gate import Evidence, Verdict, judge
from train.evaluate.ope import Interval
from train.replay.catalogue import Environment
from train.replay.simulator import Played
from train.replay.statistics import Resampled

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TINY = 1e-12


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


def trial(stages: Sequence[Environment], played: Sequence[Played]) -> Trial:
    """One policy in each of the rehearsals, together."""
    return Trial(
        np.concatenate([stage.board.sessions.rows[one.valid] for stage, one in zip(stages, played, strict=True)]),
        np.concatenate([one.quality[one.valid] for one in played]),
        np.concatenate([one.starved for one in played]),
    )


def verdict(
    gate: Gate,
    incumbent: Trial,
    candidates: Mapping[str, Trial],
    networks: frozenset[str] = frozenset(),
    *,
    incumbent_network: bool = False,
) -> Verdict:
    """Who serves. Of several that pass, the one that earned most; ties go to the `networks` among them."""
    found = [
        replace(item, network=item.name in networks, incumbent_network=incumbent_network)
        for item in evidence(gate, incumbent, candidates)
    ]
    return judge(found, gate.config)


def evidence(gate: Gate, incumbent: Trial, candidates: Mapping[str, Trial]) -> list[Evidence]:
    """What is known of every candidate: quality per turn against the incumbent's on the same turns.

    The one-sided intervals hold for all candidates at once, whichever is then taken: as far as the largest studentised
    deviation of a paired bootstrap over tasks reaches (the single step of Romano & Wolf 2005). Candidates that do
    nearly the same cost one another nearly nothing.
    """
    trials = list(candidates.values())
    gains = np.stack([trial.quality - incumbent.quality for trial in trials], axis=1)  # (N, C)
    means = gate.resampled.means(gate.task_of_prompt[incumbent.prompt], gains)  # (R, C)
    spread = means.std(axis=0)
    above = (means - gains.mean(axis=0)) / np.maximum(spread, TINY)
    reach = float(np.quantile(above.max(axis=1), gate.config.confidence)) * spread
    turns, sessions = len(gains), len(incumbent.starved)
    found = []
    for at, (name, trial) in enumerate(candidates.items()):
        mean = float(gains[:, at].mean())
        gain = Interval(mean, mean - float(reach[at]), mean + float(reach[at]))
        found.append(
            Evidence(
                name=name,
                sessions=sessions,
                turns=turns,
                gain=gain,
                gain_sd=float(spread[at] * np.sqrt(sessions)),
                second_opinion=gain,
                effective_turns=float(turns),
                overlap=1.0,
                starved_rate=float(trial.starved.mean()),
                incumbent_starved_rate=float(incumbent.starved.mean()),
                tuned_score=float(trial.quality.mean()),
            )
        )
    return found
