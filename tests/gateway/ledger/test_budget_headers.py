"""Ceilings of turns beside budgets that were set by hand: the ledger compares both in the statement that grants."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.accounts.sessions import change_session
from gateway.ledger.budget_headers import MAX_ASKED, BudgetHeaders, budget_headers
from gateway.ledger.types import SessionTerms
from tests.harness.money import Bench, open_bench, race, replica


async def change(bench: Bench, budget_nanousd: int, by_header: SessionTerms | None = None) -> None:
    def run(connection: Connection) -> None:
        change_session(
            connection, "acme", "s1", default_nanousd=0, budget_nanousd=budget_nanousd, by_header=by_header,
            actor="test", now_ms=bench.hands.at_ms,
        )  # fmt: skip

    await bench.database.write(run)


async def granted(bench: Bench) -> int:
    row = await bench.session("s1")
    assert row is not None
    return row.balance.granted_nanousd


async def known(bench: Bench) -> BudgetHeaders:
    row = await bench.session("s1")
    assert row is not None
    return budget_headers(row.memory)


async def test_a_turn_that_came_before_a_budget_was_set_by_hand_changes_nothing_then_or_later(
    database_url: str,
) -> None:
    async with open_bench(database_url) as bench, replica(database_url, bench.hands) as other:
        await bench.held(1, ceiling=500)
        await change(bench, 100)
        await race(*(each.held(1, ceiling=value) for each in (bench, other) for value in (500, 700, 900)))
        assert await granted(bench) == 100
        for repeated in (500, 700, 900):
            await other.held(1, ceiling=repeated, times_by_hand=1)
            assert await granted(bench) == 100
        await other.held(1, ceiling=300, times_by_hand=1)
        assert await granted(bench) == 300
        # A change by a header is no reason for the turns that came before the hand.
        await bench.held(1, ceiling=800)
        assert await granted(bench) == 300
        await bench.held(1, ceiling=500, times_by_hand=1)
        assert await granted(bench) == 500


async def test_a_refused_turn_that_came_before_a_budget_was_set_by_hand_is_a_repetition_later(
    database_url: str,
) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(1, ceiling=500)
        await change(bench, 100)
        await change(bench, 900, by_header=SessionTerms(0, ceiling_nanousd=900))
        assert (await granted(bench), (await known(bench)).asked) == (100, ("500", "900"))
        await bench.held(1, ceiling=900, times_by_hand=1)
        assert await granted(bench) == 100
        await change(bench, 400, by_header=SessionTerms(0, ceiling_nanousd=400, times_by_hand=1))
        assert (await granted(bench), (await known(bench)).by_hand) == (400, False)


async def test_a_share_is_remembered_as_the_client_wrote_it(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(1, ceiling=500, share=50)
        await bench.held(1, ceiling=600, share=50)  # its parent has more by now
        assert (await granted(bench), (await known(bench)).asked) == (600, ("50%",))
        await change(bench, 100)
        await bench.held(1, ceiling=700, share=50, times_by_hand=1)
        assert await granted(bench) == 100
        await bench.held(1, ceiling=280, share=20, times_by_hand=1)
        assert await granted(bench) == 280


async def test_a_session_remembers_the_values_that_were_used_last(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        for value in range(100, 100 + 2 * MAX_ASKED):
            await bench.held(0, ceiling=100)
            await bench.held(0, ceiling=value)
        newest = [str(value) for value in range(101 + MAX_ASKED, 100 + 2 * MAX_ASKED)]
        assert (await known(bench)).asked == (*newest[:-1], "100", newest[-1])
