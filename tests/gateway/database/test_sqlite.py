"""SQLite as the ledger needs it: settings read back, one serving process, groups that survive a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from gateway.accounts import tenants
from gateway.database import sqlite as db_sqlite
from gateway.database.database import Database, DatabaseStartError, transaction
from gateway.database.sqlite_connection import driver, open_connection
from gateway.errors import LedgerUnavailable, NotFound
from gateway.ledger.types import Balance, Checkpoint, Reserved
from tests.harness.auditor import assert_url_sound
from tests.harness.fsyncs import syncs_before
from tests.harness.money import Hands, open_bench, race, replica, until


def path_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


@contextmanager
def traced(bench_database: Database) -> Iterator[list[str]]:
    """Every statement the writer's connection runs."""
    assert bench_database.sqlite is not None
    statements: list[str] = []
    connection = bench_database.sqlite.writer.connection
    connection.set_trace_callback(statements.append)
    yield statements
    connection.set_trace_callback(None)


def test_the_settings_that_durability_rests_on_are_read_back(sqlite_url: str) -> None:
    connection = open_connection(path_of(sqlite_url))
    found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert found == {"journal_mode": "wal", "synchronous": 2}
    assert connection.execute("PRAGMA busy_timeout").fetchone()[0] == 5_000
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    connection.close()


@pytest.mark.parametrize("damage", ["no database", "a folder", "cut off"])
def test_a_file_that_is_no_database_is_named_in_one_error(tmp_path: Path, sqlite_url: str, damage: str) -> None:
    path = tmp_path / "broken.db"
    if damage == "a folder":
        path.mkdir()
    else:
        text_of = b"no database at all " * 300 if damage == "no database" else Path(path_of(sqlite_url)).read_bytes()
        path.write_bytes(text_of[:6_000])
    with pytest.raises(DatabaseStartError, match=r"broken\.db: expected an SQLite database that this user may write"):
        open_connection(str(path)).execute("SELECT count(*) FROM tenants")


async def test_a_file_that_cannot_do_wal_is_refused_at_the_start(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn:
        """A connection whose journal mode never changes, as on some network file systems."""

        def __init__(self, *_: object, **__: object) -> None:
            self.closed = False

        def execute(self, sql: str) -> Stubborn:
            return self

        def fetchone(self) -> tuple[str]:
            return ("delete",)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(driver, "connect", Stubborn)
    with pytest.raises(DatabaseStartError, match=r"PRAGMA busy_timeout is 'delete'"):
        await Database(sqlite_url).start()


async def test_a_second_serving_process_is_refused_and_the_cli_is_not(sqlite_url: str) -> None:
    async with open_bench(sqlite_url, serving=True) as bench:
        with pytest.raises(DatabaseStartError, match="another process serves"):
            await Database(sqlite_url, serving=True).start()
        with transaction(sqlite_url) as connection:
            tenants.grant_to_tenant(connection, "acme", 5, actor="cli", now_ms=1)
        assert (await bench.show()).balance.granted_nanousd == 10**12 + 5
    again = Database(sqlite_url, serving=True)
    await again.start()
    await again.close()


async def test_a_library_with_the_wal_defect_shares_the_file_with_nobody(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db_sqlite, "wal_reset_safe", False)
    monkeypatch.setattr("gateway.database.database.wal_reset_safe", False)
    async with open_bench(sqlite_url) as bench:
        assert bench.database.sqlite is not None
        assert bench.database.sqlite.reader is bench.database.sqlite.writer
        await bench.held(5)
        with pytest.raises(DatabaseStartError, match="another process serves"), transaction(sqlite_url):
            pass


async def test_waiting_operations_are_committed_as_one_group_that_begins_immediate(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        with traced(bench.database) as statements:
            await race(*(bench.reserve(1) for _ in range(50)))
        begins = [s for s in statements if s.startswith("BEGIN")]
        assert set(begins) == {"BEGIN IMMEDIATE"}
        assert len(begins) < 10  # fifty reservations, a few fsyncs
        assert not any("synchronous" in s for s in statements)


async def test_only_groups_of_checkpoints_commit_without_an_fsync(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        op = await bench.held(10)
        point = Checkpoint(op.hold_id, 3, 0)
        with traced(bench.database) as statements:
            await bench.ledger.checkpoint([point])
        assert statements[0] == "PRAGMA synchronous = NORMAL"
        assert statements[-1] == "PRAGMA synchronous = FULL"
        with traced(bench.database) as statements:
            await race(bench.ledger.checkpoint([point]), bench.reserve(1))
        assert bench.database.sqlite is not None
        assert bench.database.sqlite.writer.connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_sync_counts_for_an_acknowledgement_when_it_returned_before_it() -> None:
    trace = """\
17 fdatasync(5) = 0
17 write(9, "acknowledged: reserve\\n", 22) = 22
17 write(9, "acknowledged: checkpoint\\n", 25) = 25
18 fdatasync(5 <unfinished ...>
17 write(9, "acknowledged: settle\\n", 21) = 21
18 <... fdatasync resumed>) = 0
18 fsync(6) = -1 EIO (Input/output error)
17 write(9, "acknowledged: release\\n", 22) = 22
"""
    assert list(syncs_before(trace.splitlines())) == [("reserve", 1), ("checkpoint", 0), ("settle", 0), ("release", 1)]


async def test_twenty_tasks_and_a_second_writer_never_see_a_locked_database(sqlite_url: str) -> None:
    async with open_bench(sqlite_url, budget_nanousd=10**9) as bench:

        async def agent(name: str) -> None:
            for _ in range(25):
                op = await bench.held(10, session=name)
                await bench.ledger.settle(bench.bill(op, 10))

        def operator() -> None:
            for _ in range(50):
                with transaction(sqlite_url) as connection:
                    tenants.grant_to_tenant(connection, "acme", 1, actor="cli", now_ms=1)

        await race(*(agent(f"s{n}") for n in range(20)), asyncio.to_thread(operator))
        assert (await bench.show()).balance == Balance(10**9 + 50, 0, 20 * 25 * 10)


async def test_a_full_disk_is_503_and_space_brings_the_bill_back(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        op = await bench.held(100)
        assert bench.database.sqlite is not None
        connection = bench.database.sqlite.writer.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerUnavailable):
            for _ in range(200):
                await bench.held(1, row={"request_text": "x" * 4_000})
        with pytest.raises(LedgerUnavailable):
            await bench.ledger.settle(bench.bill(op, 40, session_memory='{"set": {"note": "%s"}}' % ("m" * 200_000)))
        connection.execute("PRAGMA max_page_count = 1000000")
        await until(lambda: bench.ledger.unresolved == 0, seconds=5)
        assert (await bench.show()).balance.spent_nanousd == 40


async def test_a_function_that_fails_rolls_back_and_the_next_one_works(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:

        def half_done(connection: Connection) -> None:
            connection.execute(text("UPDATE tenants SET store_text = 1"))
            raise NotFound("nothing here")

        with pytest.raises(NotFound):
            await bench.database.write(half_done)
        assert not (await bench.show()).store_text
        with pytest.raises(LedgerUnavailable):  # a read cannot write, whatever its function tries
            await bench.database.read(lambda c: c.execute(text("UPDATE tenants SET store_text = 1")).rowcount)


async def test_too_many_waiting_operations_are_refused_and_a_bill_is_not(sqlite_url: str) -> None:
    async with open_bench(sqlite_url, max_waiting=20) as bench:
        op = await bench.held(10)
        # All submitted before the loop gives the writer a chance to answer: the cap must bite, the bill must pass.
        asked = [asyncio.ensure_future(bench.reserve(1)) for _ in range(60)]
        settled = asyncio.ensure_future(bench.ledger.settle(bench.bill(op, 4)))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert (await settled).kind == "settle"
        refused = [answer for answer in answers if isinstance(answer, LedgerUnavailable)]
        assert len(refused) == 40
        assert all(error.headers["Retry-After"] for error in refused)


KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from tests.harness.money import start_bench

    async def main(url):
        bench = await start_bench(url, serving=True)
        async def client(name):
            while True:
                op = await bench.held(10, session=name, dispatch=4)
                print("held", op.hold_id, flush=True)
                await bench.ledger.settle(bench.bill(op, 7))
                print("settled", op.hold_id, flush=True)
        bench.hands.numbers = iter(range(int(sys.argv[2]), 10**9))
        await asyncio.gather(*(client(f"s{n}") for n in range(8)))

    asyncio.run(main(sys.argv[1]))
    """
)


@pytest.mark.parametrize("lines", [40, 173, 400])
async def test_a_killed_gateway_loses_nothing_it_acknowledged(sqlite_url: str, lines: int) -> None:
    async with open_bench(sqlite_url) as bench:
        assert (await bench.show()).balance.spent_nanousd == 0
    child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this test
        [sys.executable, "-c", KILLED, sqlite_url, str(lines * 10**6)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert child.stdout is not None
    told = [child.stdout.readline().split() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    told += [line.split() for line in child.stdout.readlines() if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    settled = {hold for word, hold in told if word == "settled"}
    with transaction(sqlite_url, read_only=True) as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"
        rows = connection.execute(text("SELECT hold_id, state FROM holds")).all()
    states = {row.hold_id: row.state for row in rows}
    assert all(states[hold] == "settled" for hold in settled)
    assert all(hold in states for word, hold in told if word == "held")
    assert_url_sound(sqlite_url)
    # The next gateway takes the file over and resolves what was left, each from its mark: 4, or nothing.
    async with replica(sqlite_url, Hands()) as bench:
        await bench.sweep(bench.hands.at_ms + 10**9)
        spent = (await bench.show()).balance
        assert spent.reserved_nanousd == 0
        assert spent.spent_nanousd >= 7 * len(settled)


async def test_a_long_report_holds_up_no_turn(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        await bench.held(10)
        go_on = threading.Event()
        reports = [asyncio.create_task(bench.database.read(lambda _: go_on.wait(30))) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert await asyncio.wait_for(bench.session("s1"), 10) is not None
        await asyncio.wait_for(bench.held(10), 10)
        assert not any(report.done() for report in reports)
        go_on.set()
        assert await asyncio.gather(*reports) == [True, True]


async def test_reserved_means_the_group_was_committed(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        _, outcome = await bench.reserve(10)
        assert isinstance(outcome, Reserved)
        with transaction(sqlite_url, read_only=True) as connection:
            assert connection.execute(text("SELECT count(*) FROM holds")).scalar_one() == 1
