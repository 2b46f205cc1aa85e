"""Counts of each model's answers to each kind of prompt, shared by all replicas.

About once a second each process adds its answers to one row per model and kind, and reads all of them. A row's count
is that of its day; later days keep a part of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

from sqlalchemy import Connection, select, text

from gateway.clock import Clock
from gateway.database.database import Database
from gateway.database.tables import exploration_answers

KEPT_A_DAY = 0.9
"""What remains of a count a day later: half after a week, so that models are tried again."""
K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")
Key = tuple[str, int]
"""A model, and a kind of prompt."""

_AGE = text(
    "UPDATE exploration_answers SET answers = answers * :kept, day = :day "
    "WHERE model = :model AND kind = :kind AND day = :old"
)
_ADD = text(
    "INSERT INTO exploration_answers (model, kind, day, answers) VALUES (:model, :kind, :day, :answers) "
    "ON CONFLICT (model, kind) DO UPDATE SET answers = exploration_answers.answers + excluded.answers"
)


class Answers:
    """Counts answers; `share` exchanges them with the other replicas."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._day = 0
        self._known: Mapping[Key, float] = {}
        self._unwritten: defaultdict[Key, float] = defaultdict(float)

    def add(self, key: Key, share: float = 1.0) -> None:
        """Count an answer, or a share of one."""
        self._unwritten[key] += share

    def of(self, key: Key) -> float:
        """Today's count: of all replicas at the last read, plus this one's unwritten answers."""
        return _kept(self._today() - self._day) * self._known.get(key, 0.0) + self._unwritten.get(key, 0.0)

    async def share(self, database: Database) -> None:
        """Write the new answers, read all counts.

        Raises LedgerUnavailable, and keeps what was not written then.
        """
        day = self._today()
        self._known = await exchange(database, self._unwritten, lambda c, new: _written(c, new, day), self.add)
        self._day = day

    def _today(self) -> int:
        return int(self._clock() // 86_400)


async def exchange(
    database: Database,
    unwritten: dict[K, V],
    write: Callable[[Connection, Mapping[K, V]], T],
    add: Callable[[K, V], None],
) -> T:
    """Write what a process has counted, and return the totals of all replicas.

    `write` writes nothing where there is nothing new. What was not written is added again.
    """
    taken = dict(unwritten)
    unwritten.clear()
    try:
        return await (database.write if taken else database.read)(lambda c: write(c, taken))
    except BaseException:
        for key, value in taken.items():
            add(key, value)
        raise


def _kept(days: int) -> float:
    return KEPT_A_DAY ** max(0, days)


def _counts(connection: Connection, day: int) -> dict[Key, float]:
    return {
        (row.model, row.kind): row.answers * _kept(day - row.day)
        for row in connection.execute(select(exploration_answers))
    }


def _written(connection: Connection, taken: Mapping[Key, float], day: int) -> dict[Key, float]:
    if not taken:
        return _counts(connection, day)
    days = {(row.model, row.kind): row.day for row in connection.execute(select(exploration_answers))}
    for key in sorted(taken):  # in one order, so that no two replicas wait for each other
        place, old = {"model": key[0], "kind": key[1], "day": day}, days.get(key, day)
        if old < day:  # no effect when another replica was first
            connection.execute(_AGE, {**place, "old": old, "kept": _kept(day - old)})
        connection.execute(_ADD, {**place, "answers": taken[key]})
    return _counts(connection, day)
