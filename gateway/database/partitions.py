"""Monthly partitions of the decision log on Postgres.

A decision's id begins with its time (gateway/clock.py), so the partitions are ranges of ids: the primary key stays the
id alone, and a query by id reads one partition. `decisions_2026_11` has the ids of that month,
`decisions_through_2026_11` all before its end (the rows of a table that had no partitions), `decisions_other` those
that no other takes: unusual ids, and every id while its month has no partition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

AHEAD_MONTHS = 2
"""Partitions made in advance, beyond the present month's."""
OTHER = "decisions_other"
_NAME = re.compile(r"decisions_(through_)?(\d{4})_(\d{2})")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month, UTC."""

    year: int
    number: int

    @classmethod
    def of(cls, at_ms: int) -> Month:
        """The month of a time."""
        moment = datetime.fromtimestamp(at_ms / 1000, UTC)
        return cls(moment.year, moment.month)

    @property
    def following(self) -> Month:
        """The next month."""
        return Month(self.year + self.number // 12, self.number % 12 + 1)

    @property
    def start_ms(self) -> int:
        """Start of the month."""
        return int(datetime(self.year, self.number, 1, tzinfo=UTC).timestamp() * 1000)

    @property
    def first_id(self) -> str:
        """The least id of a decision that is made in it: ten characters of five bits."""
        return "dec_" + "".join(_ALPHABET[self.start_ms >> shift & 31] for shift in range(45, -1, -5))

    def __str__(self) -> str:
        return f"{self.year:04}_{self.number:02}"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of `decisions` and its last month."""

    name: str
    month: Month


def partitions(connection: Connection) -> list[Partition]:
    """The partitions of months, oldest first; none on SQLite, or where the table has none."""
    if connection.dialect.name != "postgresql":
        return []
    names = connection.execute(
        text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass('decisions')")
    ).scalars()
    matches = [found for found in map(_NAME.fullmatch, names) if found is not None]
    found = [Partition(match[0], Month(int(match[2]), int(match[3]))) for match in matches]
    return sorted(found, key=lambda partition: partition.month)


def is_partitioned(connection: Connection) -> bool:
    """True if `decisions` is a table of partitions."""
    if connection.dialect.name != "postgresql":
        return False
    kind = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass('decisions')")
    return bool(connection.execute(kind).scalar())


def missing_months(connection: Connection, now_ms: int) -> list[Month]:
    """The months from now to AHEAD_MONTHS from now that have no partition, the latest first.

    The coming ones have no rows to move, so each new month finds its partition even while the present one's cannot be
    made. Rows of past months stay in OTHER.
    """
    if not is_partitioned(connection):
        return []
    known = partitions(connection)
    through = max((found.month for found in known if "through" in found.name), default=Month(0, 1))
    months = [Month.of(now_ms)]
    while len(months) <= AHEAD_MONTHS:
        months.append(months[-1].following)
    taken = {found.month for found in known}
    return [month for month in reversed(months) if month > through and month not in taken]


def make_partition(connection: Connection, month: Month) -> None:
    """Make the partition of one month, with the rows that arrived while it was missing.

    One month per transaction: it waits for those that use the log and holds it for milliseconds, or ends with a lock
    timeout.
    """
    name, low, high = f"decisions_{month}", month.first_id, month.following.first_id
    # Two gateways may do this at once: the second finds the partition made.
    connection.execute(text("LOCK TABLE ONLY decisions IN SHARE UPDATE EXCLUSIVE MODE"))
    if month in {found.month for found in partitions(connection)}:
        return
    connection.execute(text(f"LOCK TABLE {OTHER} IN ACCESS EXCLUSIVE MODE"))
    connection.execute(text(f"CREATE TABLE {name} (LIKE decisions INCLUDING ALL) WITH (fillfactor = 70)"))
    connection.execute(
        text(
            f"WITH moved AS (DELETE FROM {OTHER} WHERE decision_id >= '{low}' AND decision_id < '{high}' RETURNING *) "
            f"INSERT INTO {name} SELECT * FROM moved"
        )
    )
    attach = f"ALTER TABLE decisions ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')"
    connection.execute(text(attach))
