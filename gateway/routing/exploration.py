"""The daily budget of exploration, charged by expected cost and shared by all replicas.

A turn is charged the expected cost of its probabilities, not the cost of its draw: over many turns both are equal, and
lucky draws do not extend the budget. About once a second each process adds its turns to the day's row and reads the
total, so the limit holds to within a second of every process's turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from sqlalchemy import Connection, select, text

from gateway.clock import Clock
from gateway.database.database import Database
from gateway.database.tables import exploration_days
from gateway.money import NANOUSD_PER_USD
from policy.exploration import Price, price
from policy.mdp import Decision, Observation

_ADD = text(
    "INSERT INTO exploration_days (day, extra_nanousd, quality_given_up) VALUES (:day, :extra, :quality) "
    "ON CONFLICT (day) DO UPDATE SET extra_nanousd = exploration_days.extra_nanousd + excluded.extra_nanousd, "
    "quality_given_up = exploration_days.quality_given_up + excluded.quality_given_up"
)


@dataclass(frozen=True, slots=True)
class Spent:
    """Expected cost of exploration: nano-USD beyond the best choices, and lost quality."""

    extra_nanousd: int = 0
    quality: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum of both."""
        return Spent(self.extra_nanousd + other.extra_nanousd, self.quality + other.quality)


class ExplorationBudget:
    """Counts the expected cost of exploration by day (UTC), against a limit.

    `limit_nanousd()` returns the current setting; 0 disables exploration.
    """

    def __init__(self, limit_nanousd: Callable[[], int], clock: Clock) -> None:
        self._limit_nanousd = limit_nanousd
        self._clock = clock
        self._day = ""
        self._date = (-1, "")
        self._known = Spent()
        self._unwritten: dict[str, Spent] = {}

    @property
    def today(self) -> Spent:
        """Today's cost: the total of all replicas at the last read, plus this one's unwritten part."""
        day = self._today()
        known = self._known if day == self._day else Spent()
        return known.plus(self._unwritten.get(day, Spent()))

    def allows(self) -> bool:
        """True while today's budget is not used up."""
        return self.today.extra_nanousd < self._limit_nanousd()

    def charge(self, observation: Observation, decision: Decision) -> Price:
        """Charge an executed decision; returns its expected cost."""
        paid = price_of(observation, decision)
        if paid.extra_usd > 0.0 or paid.quality > 0.0:
            day = self._today()
            spent = Spent(math.ceil(paid.extra_usd * NANOUSD_PER_USD), paid.quality)
            self._unwritten[day] = self._unwritten.get(day, Spent()).plus(spent)
        return paid

    async def share(self, database: Database) -> None:
        """Write the unwritten part, read the day's total. Raises LedgerUnavailable."""
        day, taken = self._today(), self._unwritten
        self._unwritten = {}
        try:
            if taken:
                total = await database.write(lambda c: _written(c, taken, day))
            else:
                total = await database.read(lambda c: spent_on(c, day))
        except BaseException:
            for when, spent in taken.items():
                self._unwritten[when] = spent.plus(self._unwritten.get(when, Spent()))
            raise
        self._day, self._known = day, total

    def _today(self) -> str:
        number = int(self._clock() // 86_400)
        if number != self._date[0]:
            self._date = number, (date(1970, 1, 1) + timedelta(days=number)).isoformat()
        return self._date[1]


def price_of(observation: Observation, decision: Decision) -> Price:
    """The expected cost of a decision's exploration; zero for a deterministic one."""
    if np.count_nonzero(decision.probabilities) < 2:
        return Price(0.0, 0.0)
    return price(decision.probabilities, observation.means_usd, decision.quality)


def spent_on(connection: Connection, day: str) -> Spent:
    """The cost in the day's row, zero without one."""
    row = connection.execute(
        select(exploration_days.c.extra_nanousd, exploration_days.c.quality_given_up).where(
            exploration_days.c.day == day
        )
    ).first()
    return Spent() if row is None else Spent(row.extra_nanousd, row.quality_given_up)


def _written(connection: Connection, taken: dict[str, Spent], day: str) -> Spent:
    for when, spent in sorted(taken.items()):
        connection.execute(_ADD, {"day": when, "extra": spent.extra_nanousd, "quality": spent.quality})
    return spent_on(connection, day)
