"""The promotion gate where every action is graded: results are known and need no weighting.

The tests and texts are those of a night (`train.evaluate.gate.judge`); only the evidence is exact, and covers every
training prompt: a candidate is fitted on two thirds of them and judged on the last third, three times over
(`ours.Rehearsal`). The policy that serves is fitted on all of them. The shipped network is the incumbent and stays
unless a candidate is certainly better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policy.arrays import F64, I64
from train.config import GateConfig
from train.evaluate.gate import Evidence, GateVerdict, judge
from train.evaluate.ope import Interval
from train.replay.catalogue import Environment
from train.replay.simulator import Played
from train.replay.statistics import Resampled

TINY = 1e-12


@dataclass(frozen=True)
class Gate:
    """Resampling of prompts, since they occur several times and sessions are not independent."""

    task_of_prompt: I64
    resampled: Resampled
    config: GateConfig


@dataclass(frozen=True)
class Trial:
    """Results of one candidate, or the incumbent, in all rehearsals: by turn (N,), session (S,)."""

    prompt: I64
    quality: F64
    starved: NDArray[np.bool_]


def trial(stages: Sequence[Environment], played: Sequence[Played]) -> Trial:
    """Combine one policy's results of all rehearsals."""
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
) -> GateVerdict:
    """Choose who serves: the passing candidate with the highest score; ties go to `networks`."""
    found = [
        replace(item, incumbent_network=incumbent_network) for item in evidence(gate, incumbent, candidates, networks)
    ]
    return judge(found, gate.config)


def evidence(
    gate: Gate, incumbent: Trial, candidates: Mapping[str, Trial], networks: frozenset[str] = frozenset()
) -> list[Evidence]:
    """Evidence on every candidate: paired quality per turn against incumbent and networks.

    The one-sided intervals hold for all candidates at once, whichever is then chosen: they reach as far as the largest
    studentised deviation of a paired bootstrap over tasks (the single step of Romano & Wolf 2005). Candidates that
    behave almost alike hardly widen one another's intervals.
    """
    means, reach, spread = gains_over(gate, incumbent, list(candidates.values()))
    others = {name: trial for name, trial in candidates.items() if name not in networks}
    over: dict[str, dict[str, float]] = {name: {} for name in candidates}
    for network in networks if others else ():
        ahead, within, _ = gains_over(gate, candidates[network], list(others.values()))
        for at, name in enumerate(others):
            over[name][network] = float(ahead[at] - within[at])
    turns, sessions = len(incumbent.quality), len(incumbent.starved)
    found = []
    for at, (name, trial) in enumerate(candidates.items()):
        mean = float(means[at])
        gain = Interval(mean, mean - float(reach[at]), mean + float(reach[at]))
        found.append(
            Evidence(
                name=name,
                sessions=sessions,
                trees=sessions,
                turns=turns,
                gain=gain,
                gain_sd=float(spread[at] * np.sqrt(sessions)),
                second_opinion=gain,
                effective_turns=float(turns),
                overlap=1.0,
                starved_rate=float(trial.starved.mean()),
                incumbent_starved_rate=float(incumbent.starved.mean()),
                tuned_score=float(trial.quality.mean()),
                network=name in networks,
                over_networks=over[name],
            )
        )
    return found


def gains_over(gate: Gate, incumbent: Trial, trials: Sequence[Trial]) -> tuple[F64, F64, F64]:
    """Mean gain per turn of each trial, reach of its interval, standard error; (C,) each."""
    gains = np.stack([trial.quality - incumbent.quality for trial in trials], axis=1)  # (N, C)
    resampled = gate.resampled.means(gate.task_of_prompt[incumbent.prompt], gains)  # (R, C)
    means, spread = gains.mean(axis=0), resampled.std(axis=0)
    above = (resampled - means) / np.maximum(spread, TINY)
    return means, float(np.quantile(above.max(axis=1), gate.config.confidence)) * spread, spread
