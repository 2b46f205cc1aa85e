"""What is spent while the ledger is away: the cap holds, the journal survives, every attempt is posted once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.database.tables import decisions, ledger_entries
from gateway.errors import LedgerUnavailable
from gateway.ledger.offline import OfflineLedger
from gateway.ledger.types import Balance, Refused, Release, Reserved
from tests.harness.money import Bench, open_bench

CAP_NANOUSD = 1_000


def books_of(bench: Bench, folder: Path) -> OfflineLedger:
    return OfflineLedger(folder, cap_nanousd=CAP_NANOUSD, clock=bench.hands.clock, new_id=bench.hands.new_id)


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


async def entries(bench: Bench) -> list[tuple[str, int]]:
    turns = select(ledger_entries.c.kind, ledger_entries.c.amount_nanousd).where(ledger_entries.c.hold_id.is_not(None))
    rows: Any = await bench.database.read(lambda c: c.execute(turns.order_by(ledger_entries.c.entry_id)).all())
    return [tuple(row) for row in rows]


async def test_the_cap_binds_and_what_was_released_is_free_again(tmp_path: Path, database_url: str) -> None:
    async with open_bench(database_url) as bench:
        books = books_of(bench, tmp_path)
        assert books.allows("open")
        assert not books.allows("closed")
        first, second = bench.asking(600), bench.asking(600)
        assert isinstance(await books.reserve(first), Reserved)
        refused = await books.reserve(second)
        assert isinstance(refused, Refused)
        assert (refused.balance.available_nanousd, refused.pending) == (400, True)
        await books.release(Release(first.hold_id))
        assert isinstance(await books.reserve(second), Reserved)
        await books.settle(bench.bill(second, 250))
        assert books.balance.available_nanousd == 750
        assert await books.post(bench.ledger, bench.database) == 1
        assert books.balance.available_nanousd == CAP_NANOUSD
        assert await entries(bench) == [("reserve", 250), ("settle", 250)]
        assert journals(tmp_path) == []


async def test_nothing_is_posted_while_a_turn_of_the_outage_is_still_running(tmp_path: Path, sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        books = books_of(bench, tmp_path)
        op = bench.asking(600)
        await books.reserve(op)
        assert await books.post(bench.ledger, bench.database) == 0
        await books.settle(bench.bill(op, 80))
        assert await books.post(bench.ledger, bench.database) == 1


async def test_the_journal_of_a_dead_process_is_posted_once_with_estimates_where_bills_are_missing(
    tmp_path: Path, database_url: str
) -> None:
    async with open_bench(database_url) as bench:
        dead = books_of(bench, tmp_path)
        billed, cut, released = (bench.asking(300, dispatch=70) for _ in range(3))
        for op in (billed, cut, released):
            await dead.reserve(op)
        await dead.settle(bench.bill(billed, 120))
        await dead.release(Release(released.hold_id))
        [path] = journals(tmp_path)
        alive = books_of(bench, tmp_path)
        assert await alive.post(bench.ledger, bench.database) == 0  # its process lives: the lock says so
        torn = path.read_bytes() + b'{"hold": {"hold_id": "cut in the midd'
        path.unlink()
        (tmp_path / "outage_000999.jsonl").write_bytes(torn)
        assert await alive.post(bench.ledger, bench.database) == 2
        assert await alive.post(bench.ledger, bench.database) == 0
        assert await entries(bench) == [("reserve", 120), ("settle", 120), ("reserve", 70), ("settle", 70)]
        # A copy of the journal comes back, say from a backup: every hold in it is known already.
        (tmp_path / "outage_001000.jsonl").write_bytes(torn)
        await alive.post(bench.ledger, bench.database)
        assert len(await entries(bench)) == 4
        features = select(decisions.c.features).where(decisions.c.decision_id == billed.decision_id)
        assert await bench.database.read(lambda c: c.execute(features).scalar_one()) == b"\x00\x01\xff\x80"


async def test_a_journal_that_cannot_be_posted_is_named_once_and_the_others_are_posted(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(sqlite_url) as bench:
        dead, op = books_of(bench, tmp_path), bench.asking(300, dispatch=70)
        await dead.reserve(op)
        [path] = journals(tmp_path)
        told = path.read_bytes()
        path.unlink()
        (tmp_path / "outage_1.jsonl").mkdir()  # as one of another user: it cannot be opened
        (tmp_path / "outage_2.jsonl").write_bytes(b'{"bill": {"of": "another version"}}\n')
        (tmp_path / "outage_3.jsonl").write_bytes(told)
        alive = books_of(bench, tmp_path)
        assert await alive.post(bench.ledger, bench.database) == 1
        assert await alive.post(bench.ledger, bench.database) == 0
        assert [path.name for path in journals(tmp_path)] == ["outage_1.jsonl", "outage_2.jsonl"]
        unread, strange = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert unread.partition("outage_1.jsonl: ")[2].startswith("Is a directory; user ")
        assert strange.endswith("outage_2.jsonl: its content is not a journal of this version")


async def test_a_journal_whose_posting_was_interrupted_is_posted_later(tmp_path: Path, sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        dead, op = books_of(bench, tmp_path), bench.asking(300, dispatch=70)
        await dead.reserve(op)
        [path] = journals(tmp_path)
        told = path.read_bytes()
        path.unlink()
        (tmp_path / "outage_3.jsonl").write_bytes(told)
        alive, read = books_of(bench, tmp_path), bench.database.read
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.database, "read", _out_of_reach)
            with pytest.raises(LedgerUnavailable):
                await alive.post(bench.ledger, bench.database)
        assert bench.database.read == read
        assert await alive.post(bench.ledger, bench.database) == 1
        assert journals(tmp_path) == []


async def _out_of_reach(*asked: object) -> None:
    raise LedgerUnavailable("the database is away again")


async def test_what_the_accounts_cannot_cover_any_more_becomes_an_overage(tmp_path: Path, database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=100) as bench:
        books = books_of(bench, tmp_path)
        op = bench.asking(600)
        await books.reserve(op)
        await books.settle(bench.bill(op, 250))
        assert await books.post(bench.ledger, bench.database) == 1
        assert await entries(bench) == [("reserve", 0), ("settle", 0), ("overage", 250)]
        tenant = (await bench.show()).balance
        assert (tenant.spent_nanousd, tenant.overage_nanousd, tenant.available_nanousd) == (250, 250, -150)


async def test_a_journal_that_cannot_be_written_means_503_before_the_call(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "taken").write_text("a file where the journal's folder should be")
    async with open_bench(sqlite_url) as bench:
        books = books_of(bench, tmp_path / "taken")
        with pytest.raises(LedgerUnavailable):
            await books.reserve(bench.asking(600))
        assert books.balance == Balance(CAP_NANOUSD, 0, 0)


async def test_a_caller_that_leaves_while_the_journal_is_written_holds_nothing(tmp_path: Path, sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        dead = books_of(bench, tmp_path)
        task = asyncio.create_task(dead.reserve(bench.asking(600, dispatch=70)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert dead.balance.available_nanousd == CAP_NANOUSD
        [path] = journals(tmp_path)
        told = path.read_bytes()
        path.unlink()
        (tmp_path / "outage_000999.jsonl").write_bytes(told)
        assert await books_of(bench, tmp_path).post(bench.ledger, bench.database) == 0
