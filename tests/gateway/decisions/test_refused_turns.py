"""Refused turns are counted once, by session, and survive an outage of the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from sqlalchemy import Connection, select

from gateway.database.database import Database, transaction
from gateway.database.tables import refused_turns, refusing_accounts
from gateway.decisions import refused_turns as subject
from gateway.decisions.refused_turns import RefusedTurns
from gateway.errors import LedgerUnavailable


class Away:
    async def write(self, run: object) -> None:
        raise LedgerUnavailable("away")


class Fails:
    def __init__(self, database: Database, at: int) -> None:
        self._database = database
        self._left = at

    async def write(self, run: Callable[[Connection], object]) -> None:
        self._left -= 1
        if not self._left:
            raise LedgerUnavailable("away")
        await self._database.write(run)


async def test_counts_of_two_gateways_add_up_and_an_outage_loses_none(database_url: str) -> None:
    now_s = 100.0
    first, second = (RefusedTurns(lambda: now_s) for _ in range(2))
    database = Database(database_url, serving=False)
    await database.start()
    try:
        for _ in range(3):
            first.add("t", "s", "session_budget_exceeded")
        with pytest.raises(LedgerUnavailable):
            await first.share(cast(Database, Away()))
        now_s = 200.0
        first.add("t", "s", "session_budget_exceeded")
        second.add("t", "s", "session_budget_exceeded")
        second.add("t", "other", "tenant_budget_exceeded", ("key", "k"))
        with pytest.raises(LedgerUnavailable):
            await second.share(cast(Database, Away()))
        for counted in (second, first, first):
            await counted.share(database)
    finally:
        await database.close()
    with transaction(database_url, read_only=True) as connection:
        rows = connection.execute(select(refused_turns).order_by(refused_turns.c.session_id.desc())).all()
        accounts = connection.execute(select(refusing_accounts)).all()
    assert [tuple(row) for row in rows] == [
        ("t", "s", "session_budget_exceeded", 5, 100_000, 200_000),
        ("t", "other", "tenant_budget_exceeded", 1, 200_000, 200_000),
    ]
    assert [tuple(row) for row in accounts] == [("key", "k", 200_000)]


async def test_a_batch_is_written_off_when_it_is_committed(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setattr(subject, "WRITE_ROWS", 2)
    counted, database = RefusedTurns(lambda: 1.0), Database(database_url, serving=False)
    for name in "abcde":
        counted.add("t", name, "session_budget_exceeded")
    await database.start()
    try:
        with pytest.raises(LedgerUnavailable):
            await counted.share(cast(Database, Fails(database, at=2)))
        await counted.share(database)
    finally:
        await database.close()
    with transaction(database_url, read_only=True) as connection:
        found = connection.execute(select(refused_turns.c.session_id, refused_turns.c.turns)).all()
    assert {tuple(row) for row in found} == {(name, 1) for name in "abcde"}


async def test_waiting_counts_are_bounded(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setattr(subject, "MAX_WAITING", 2)
    counted, database = RefusedTurns(lambda: 1.0), Database(sqlite_url, serving=False)
    for name in ("a", "b", "c", "a"):
        counted.add("t", name, "session_budget_exceeded")
    await database.start()
    try:
        await counted.share(database)
    finally:
        await database.close()
    with transaction(sqlite_url, read_only=True) as connection:
        found = connection.execute(select(refused_turns.c.session_id, refused_turns.c.turns)).all()
    assert {tuple(row) for row in found} == {("a", 2), ("b", 1)}
