"""Leases: renewed while a call lives, silent about what did not change, and patient with an outage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

from gateway.errors import LedgerUnavailable
from gateway.ledger.leases import Leases
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Checkpoint


class Books:
    """The one operation that leases need of a ledger; `down` makes it fail."""

    def __init__(self) -> None:
        self.written: list[list[Checkpoint]] = []
        self.first = asyncio.Event()
        self.down = False

    async def checkpoint(self, points: Sequence[Checkpoint]) -> None:
        if self.down:
            raise LedgerUnavailable("down")
        self.written.append(list(points))
        self.first.set()


class Time:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def made(ttl_s: float = 40.0) -> tuple[Leases, Books, Time]:
    books, clock = Books(), Time()
    return Leases(cast(Ledger, cast(Any, books)), clock, ttl_s=ttl_s), books, clock


async def test_a_lease_is_renewed_after_a_quarter_of_its_time_and_not_before() -> None:
    leases, books, clock = made()
    leases.take("h1", 70)
    clock.now_s += 9.9
    await leases.beat()
    assert books.written == []
    clock.now_s += 0.1
    await leases.beat()
    assert books.written == [[Checkpoint("h1", 70, 40_000)]]
    await leases.beat()
    assert len(books.written) == 1


async def test_progress_is_written_at_the_next_beat_and_never_goes_back() -> None:
    leases, books, clock = made()
    leases.take("h1", 70)
    leases.progress("h1", 90)
    leases.progress("h1", 80)
    clock.now_s += 1.0
    await leases.beat()
    assert books.written == [[Checkpoint("h1", 90, 40_000)]]


async def test_a_dropped_hold_is_left_alone() -> None:
    leases, books, clock = made()
    leases.take("h1", 70)
    leases.take("h2", 10)
    assert leases.count == 2
    leases.drop("h1")
    leases.drop("h1")
    leases.progress("h1", 1_000)
    clock.now_s += 20.0
    await leases.beat()
    assert [[point.hold_id for point in points] for points in books.written] == [["h2"]]


async def test_what_an_outage_kept_from_being_written_is_written_after_it() -> None:
    leases, books, _ = made(ttl_s=0.2)
    leases.take("h1", 70)
    leases.progress("h1", 75)
    books.down = True
    loop = asyncio.create_task(leases.run())
    await asyncio.sleep(0.15)
    assert books.written == []
    books.down = False
    async with asyncio.timeout(5):
        await books.first.wait()
    assert books.written[0][0].checkpoint_nanousd == 75
    loop.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loop


def test_leases_are_intervals_and_know_what_this_process_carries() -> None:
    leases, _, _ = made(ttl_s=2.5)
    assert leases.ttl_ms == 2_500
    leases.take("h1", 70)
    assert list(leases.carried) == ["h1"]
    leases.drop("h1")
    assert list(leases.carried) == []
