"""The daily budget of exploration, shared by all replicas, and the quotas of each model.

A turn is charged the expected cost of its probabilities, not the cost of its draw: over many turns both are equal, and
lucky draws do not extend the budget. About once a second each process adds its turns to the day's row and reads the
total, so the limit holds to within a second of every process's turns.

Each model should answer some turns of each kind of prompt, whatever the policy thinks of it: a log without its answers
cannot correct the policy. What a model lacks of this quota raises its probability (policy/exploration.py) while less
than half of the day's budget is spent: the other half is left to ordinary exploration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, select, text

from gateway.clock import Clock
from gateway.database.database import Database
from gateway.database.tables import exploration_days
from gateway.money import NANOUSD_PER_USD
from gateway.routing.answers import Answers, exchange
from policy.arrays import F32
from policy.exploration import Price, price
from policy.features import available_usd
from policy.mdp import CandidateView, Decision, Observation, mean_cost_usd
from policy.text import STAT_NAMES
from policy.valuetable import CHARS_PER_TOKEN, LOG_CHARS, LOG_CHARS_SCALE

_ADD = text(
    "INSERT INTO exploration_days (day, extra_nanousd, quality_given_up) VALUES (:day, :extra, :quality) "
    "ON CONFLICT (day) DO UPDATE SET extra_nanousd = exploration_days.extra_nanousd + excluded.extra_nanousd, "
    "quality_given_up = exploration_days.quality_given_up + excluded.quality_given_up"
)


MOST_SHARE = 0.2
"""Largest expected share of what a session has left that a model may cost to be tried for its quota."""
QUOTA_SHARE = 0.5
"""Share of the day's limit up to which quotas act."""
ATTEMPT = 0.2
"""What a turn that a quota wanted counts before it is answered. So a model that never answers is tried at most five
times as often as one that does."""
LONG_TOKENS = 250.0
"""Prompts of more tokens are of another kind than shorter ones."""
_LONG = math.log1p(LONG_TOKENS * CHARS_PER_TOKEN) / LOG_CHARS_SCALE
"""The statistic of a prompt's length at which `turn_tokens` is LONG_TOKENS."""
_DEMANDING = [STAT_NAMES.index(name) for name in ("code_marks", "math_marks", "reasoning_words")]


@dataclass(frozen=True, slots=True)
class Spent:
    """Expected cost of exploration: nano-USD beyond the best choices, and lost quality."""

    extra_nanousd: int = 0
    quality: float = 0.0

    def plus(self, other: Spent) -> Spent:
        """The sum of both."""
        return Spent(self.extra_nanousd + other.extra_nanousd, self.quality + other.quality)


_NOTHING = Spent()


class ExplorationBudget:
    """Counts the expected cost of exploration by day (UTC), against a limit.

    `limit_nanousd()` and `quota()` return the current settings; a limit of 0 disables exploration. `quota` is a number
    of answers of each model to each kind of prompt, counted over all replicas.
    """

    def __init__(self, limit_nanousd: Callable[[], int], clock: Clock, quota: Callable[[], int] = lambda: 0) -> None:
        self._limit_nanousd = limit_nanousd
        self._quota = quota
        self._clock = clock
        self._answers = Answers(clock)
        self._day = ""
        self._date = (-1, "")
        self._known = Spent()
        self._unwritten: dict[str, Spent] = {}

    @property
    def today(self) -> Spent:
        """Today's cost: the total of all replicas at the last read, plus this one's unwritten part."""
        day = self._today()
        known, unwritten = self._known if day == self._day else _NOTHING, self._unwritten.get(day)
        return known if unwritten is None else known.plus(unwritten)

    def allows(self) -> bool:
        """True while today's budget is not used up."""
        return self.today.extra_nanousd < self._limit_nanousd()

    def wanted(self, turn: Observation, candidates: Sequence[CandidateView]) -> tuple[float, ...]:
        """Share of its quota that each candidate lacks, 0 to 1.

        0 for one that is too expensive to be tried in this session; empty when quotas do not act.
        """
        quota = self._quota()
        if quota <= 0 or not turn.explore or self.today.extra_nanousd >= QUOTA_SHARE * self._limit_nanousd():
            return ()
        kind, most_usd = kind_of(turn.text_stats), MOST_SHARE * available_usd(turn.session)
        return tuple(
            [
                max(0.0, 1.0 - self._answers.of((c.name, kind)) / quota)
                if c.cost_quantiles_usd[-1] <= most_usd or mean_cost_usd(c.cost_quantiles_usd) <= most_usd
                else 0.0
                for c in candidates
            ]
        )

    def charge(self, observation: Observation, decision: Decision) -> Price:
        """Charge an executed decision; returns its expected cost."""
        paid = price_of(observation, decision)
        if paid.extra_usd > 0.0 or paid.quality > 0.0:
            self._spend(self._today(), Spent(math.ceil(paid.extra_usd * NANOUSD_PER_USD), paid.quality))
        return paid

    def _spend(self, day: str, spent: Spent) -> None:
        self._unwritten[day] = spent.plus(self._unwritten.get(day, _NOTHING))

    def count(self, observation: Observation, decision: Decision) -> None:
        """Count the answer of a settled decision that training will read."""
        if self._quota() > 0:
            self._add(observation, decision, 1.0 - ATTEMPT if _is_wanted(observation, decision) else 1.0)

    def tried(self, observation: Observation, decision: Decision) -> None:
        """Count the beginning of a drawn decision, if a quota wanted its model."""
        if _is_wanted(observation, decision):
            self._add(observation, decision, ATTEMPT)

    def _add(self, observation: Observation, decision: Decision, share: float) -> None:
        self._answers.add((observation.candidates[decision.action].name, kind_of(observation.text_stats)), share)

    async def share(self, database: Database) -> None:
        """Write the unwritten part, read the totals. Raises LedgerUnavailable."""
        day = self._today()
        self._known = await exchange(database, self._unwritten, lambda c, new: _written(c, new, day), self._spend)
        self._day = day
        if self._quota() > 0:
            await self._answers.share(database)

    def _today(self) -> str:
        number = int(self._clock() // 86_400)
        if number != self._date[0]:
            self._date = number, (date(1970, 1, 1) + timedelta(days=number)).isoformat()
        return self._date[1]


def kind_of(text_stats: F32) -> int:
    """The kind of a prompt, 0 to 3, by its surface statistics (STATS_DIM,).

    2 for a long one, plus 1 for one with code, formulas or words that ask for reasons.
    """
    shown: list[float] = text_stats.tolist()
    return 2 * (shown[LOG_CHARS] > _LONG) + any(shown[at] for at in _DEMANDING)


def _is_wanted(observation: Observation, decision: Decision) -> bool:
    return bool(observation.wanted) and observation.wanted[decision.action] > 0.0


def price_of(observation: Observation, decision: Decision) -> Price:
    """The expected cost of a decision's exploration; zero for a deterministic one."""
    chances: list[float] = decision.probabilities.tolist()
    if len(chances) - chances.count(0.0) < 2:
        return Price(0.0, 0.0)
    return price(decision.probabilities, decision.best, observation.means_usd, decision.quality)


def spent_on(connection: Connection, day: str) -> Spent:
    """The cost in the day's row, zero without one."""
    row = connection.execute(
        select(exploration_days.c.extra_nanousd, exploration_days.c.quality_given_up).where(
            exploration_days.c.day == day
        )
    ).first()
    return Spent() if row is None else Spent(row.extra_nanousd, row.quality_given_up)


def _written(connection: Connection, taken: Mapping[str, Spent], day: str) -> Spent:
    for when, spent in sorted(taken.items()):
        connection.execute(_ADD, {"day": when, "extra": spent.extra_nanousd, "quality": spent.quality})
    return spent_on(connection, day)
