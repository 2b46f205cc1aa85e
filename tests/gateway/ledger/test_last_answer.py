"""What a session keeps for its last answer: no other turn, charge or sub-agent may hold it, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from gateway.ledger.records import CHARGE_PREFIX
from gateway.ledger.types import Balance, Refused, Reserved
from tests.harness.money import open_bench


async def test_an_ordinary_turn_leaves_what_is_kept_and_the_closing_one_holds_it(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        first = await bench.held(60, ceiling=100, kept=30)
        _, refused = await bench.reserve(11, kept=30)
        assert refused == Refused("session", Balance(100, 60, 0), pending=True, kept_nanousd=30)
        assert refused.free_nanousd == 10
        await bench.held(10, kept=30)
        await bench.held(30, kept=0, closing=True)
        await bench.ledger.release(bench.back(first))
        # After a last answer the next turn decides what is kept; 0 for one whose client wants no last answer.
        await bench.held(40, kept=20)
        await bench.held(20, kept=0)


async def test_a_small_conversation_leaves_what_a_long_one_of_its_session_keeps(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(10, ceiling=100, kept=50)
        _, refused = await bench.reserve(41, kept=5)
        assert refused == Refused("session", Balance(100, 10, 0), pending=True, kept_nanousd=50)
        await bench.held(10, kept=5)
        row = await bench.session("s1")
        assert row is not None
        assert row.kept_nanousd == 50
        await bench.held(10, kept=60)
        row = await bench.session("s1")
        assert row is not None
        assert row.kept_nanousd == 60
        await bench.held(70, kept=0, closing=True)
        row = await bench.session("s1")
        assert row is not None
        assert row.kept_nanousd == 0


async def test_a_gateway_that_knows_no_last_answer_is_not_refused_one(postgres_url: str) -> None:
    """A gateway of revision 0026 sends neither what it keeps nor whether its turn is the last."""
    async with open_bench(postgres_url) as bench:
        await bench.held(60, ceiling=100, kept=40)
        backend: Any = bench.ledger._backend
        submit = backend._groups.submit

        def old(group: Any, sent: dict[str, Any], *more: Any, **named: Any) -> Any:
            known = {name: value for name, value in sent.items() if name not in ("kept", "closing")}
            return submit(group, known, *more, **named)

        backend._groups.submit = old
        await bench.held(40)
        row = await bench.session("s1")
        assert row is not None
        assert row.kept_nanousd == 40


async def test_a_charge_and_a_further_attempt_leave_what_the_last_turn_kept(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        op = await bench.held(60, ceiling=100, kept=30)
        name = CHARGE_PREFIX + "search"
        charge = structs.replace(bench.asking(11), hold_id=name, decision_id=name, decision=None, repeatable=True)
        assert await bench.ledger.reserve(charge) == Refused("session", Balance(100, 60, 0), True, 30)
        assert isinstance(await bench.ledger.reserve(structs.replace(charge, amount_nanousd=4)), Reserved)
        _, again = await bench.reserve(7, decision=op.decision_id)
        assert isinstance(again, Refused)
        await bench.held(6, decision=op.decision_id)


async def test_sub_agents_leave_what_every_session_above_keeps(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(10, session="root", ceiling=100, kept=50)
        op, reserved = await bench.reserve(15, session="child", parent="root", kept=20)
        # Its own rest is its parent's budget, of which the parent keeps 50: 100 - 10 - 15 - 50.
        assert reserved == Reserved(0, Balance(100, 15, 0, 0, 25), Balance(10**12, 25, 0))
        _, refused = await bench.reserve(26, session="child", kept=0)
        assert refused == Refused("parent", Balance(100, 25, 0), True, 50)
        _, refused = await bench.reserve(6, session="grandchild", parent="child", ceiling=6)
        assert isinstance(refused, Reserved)
        row = await bench.session("child")
        assert row is not None
        assert row.chain is not None
        assert (row.kept_nanousd, row.chain.available_nanousd, row.chain.unspent_nanousd) == (20, 19, 50)
        resolved = await bench.ledger.settle(bench.bill(op, 15))
        assert resolved.session == Balance(100, 6, 15, 0, 19)
        await bench.held(69, session="root", closing=True)


async def test_a_key_and_a_tenant_leave_it_too(database_url: str) -> None:
    async with open_bench(database_url, budget_nanousd=100) as bench:
        key = (await bench.key(budget_nanousd=50)).key_id
        _, refused = await bench.reserve(21, key=key, kept=30)
        assert refused == Refused("key", Balance(50, 0, 0), False, 30)
        _, refused = await bench.reserve(71, kept=30)
        assert refused == Refused("tenant", Balance(100, 0, 0), False, 30)
        await bench.held(70, kept=30)
        await bench.held(30, closing=True)


async def test_a_budget_that_is_lowered_below_what_is_kept_leaves_nothing_free(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await bench.held(10, ceiling=100, kept=50)
        _, refused = await bench.reserve(1, ceiling=40)
        assert isinstance(refused, Refused)
        assert refused.free_nanousd == 0
        await bench.held(30, ceiling=40, closing=True)


async def test_an_amount_below_zero_is_never_kept(sqlite_url: str) -> None:
    async with open_bench(sqlite_url) as bench:
        with pytest.raises(ValueError, match="keep"):
            await bench.reserve(1, kept=-1)
