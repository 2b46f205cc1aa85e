"""Traffic of a canary and the sessions beside it, as sums or as rows of the log, with a regression to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.policies.confidence_sequences import Arm
from gateway.policies.verdicts import MEASURES, Arms

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Habits:
    """How sessions of a policy go. Bills of a session share a level, as sessions do."""

    cost: float = 1.0
    failures: float = 0.03
    quality: float = 0.75
    graded: float = 0.5


@dataclass(frozen=True)
class Traffic:
    """Per session and measure, (S, 4): numerators and denominators, in the order of MEASURES."""

    y: F64
    m: F64

    def arm(self, sessions: int) -> dict[str, Arm]:
        y, m = self.y[:sessions], self.m[:sessions]
        sums = [(m > 0).sum(axis=0), y.sum(axis=0), m.sum(axis=0), (y * y).sum(axis=0), (y * m).sum(axis=0),
                (m * m).sum(axis=0)]  # fmt: skip
        return {
            measure.name: Arm(int(sums[0][k]), *(float(total[k]) for total in sums[1:]))
            for k, measure in enumerate(MEASURES)
        }


def traffic(generator: np.random.Generator, sessions: int, habits: Habits) -> Traffic:
    """Sessions of 3 to 7 turns: lognormal bills with a level per session, failures, scores of some turns."""
    shape = (sessions, 7)
    turns = generator.integers(3, 8, sessions)
    real = np.arange(7) < turns[:, None]
    level = generator.lognormal(0.0, 0.5, (sessions, 1))
    bills = habits.cost * level * generator.lognormal(0.0, 0.8, shape) * real
    failed = (generator.random(shape) < habits.failures) & real
    ability = np.clip(habits.quality + 0.15 * generator.standard_normal((sessions, 1)), 0.0, 1.0)
    scores = (generator.random(shape) < ability) & real
    graded = (generator.random(shape) < habits.graded) & real
    starved = (generator.random(shape) < 0.02) & real
    numerators: list[Any] = [bills, failed, scores & graded, starved]
    denominators: list[Any] = [real, real, graded, real]
    return Traffic(
        np.stack([x.sum(axis=1) for x in numerators], axis=1).astype(np.float64),
        np.stack([x.sum(axis=1) for x in denominators], axis=1).astype(np.float64),
    )


def looks(seed: int, habits: Habits, *, share: float, sessions: int, every: int = 10) -> list[Arms]:
    """What successive looks at one trial see: after every so many canary sessions, the control in proportion."""
    generator = np.random.default_rng(seed)
    canary = traffic(generator, sessions, habits)
    control = traffic(generator, round(sessions * (1 - share) / share), Habits())
    return [Arms(canary.arm(n), control.arm(round(n * (1 - share) / share))) for n in range(every, sessions + 1, every)]
