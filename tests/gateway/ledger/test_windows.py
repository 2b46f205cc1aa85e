"""Budget windows end where the calendar says, and nothing that a turn or a charge holds is lost at their end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Connection, select

from gateway.accounts.keys import get_key, set_key_budget
from gateway.accounts.tenants import patch_tenant
from gateway.database.tables import ledger_entries
from gateway.ledger.records import CHARGE_PREFIX
from gateway.ledger.types import Balance, Refused, Reserved
from gateway.ledger.windows import next_reset_ms, parse_window
from tests.harness.money import START_MS, open_bench, race, replica

DAY_MS = 86_400_000
MIDNIGHT_MS = (START_MS // DAY_MS + 1) * DAY_MS


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1000  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("window", "now_ms", "expected_ms"),
    [
        ("1mo", ms(2026, 4, 18, 13, 7), ms(2026, 5, 1)),
        ("1mo", ms(2026, 12, 31, 23, 59), ms(2027, 1, 1)),
        ("1mo", ms(2026, 5, 1), ms(2026, 6, 1)),  # a boundary belongs to the window it opens
        ("1mo", ms(2028, 2, 29), ms(2028, 3, 1)),
        ("3mo", ms(2026, 4, 18), ms(2026, 7, 1)),
        ("12mo", ms(2026, 4, 18), ms(2027, 1, 1)),
        ("1d", ms(2026, 4, 18, 13, 7), ms(2026, 4, 19)),
        ("7d", ms(1970, 1, 7), ms(1970, 1, 8)),
        ("7d", ms(1970, 1, 8), ms(1970, 1, 15)),
        ("12h", ms(2026, 4, 18, 11, 59), ms(2026, 4, 18, 12)),
        ("12h", ms(2026, 4, 18, 12), ms(2026, 4, 19)),
    ],
)
def test_the_next_boundary(window: str, now_ms: int, expected_ms: int) -> None:
    assert next_reset_ms(window, now_ms) == expected_ms


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5d", "30 d", "1m", "1y", "99999d", "30days", "٣d"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a window"):
        parse_window(text)


async def test_the_first_turn_of_a_window_sees_its_budget_before_anyone_has_reset_it(database_url: str) -> None:
    """Else it would be refused for what the window before spent, and only a sweep could end that."""
    async with open_bench(database_url) as bench:
        await bench.tenant("daily", 1_000, window="1d")
        await bench.ledger.settle(bench.bill(await bench.held(600, tenant="daily"), 900))
        held = await bench.held(90, tenant="daily")
        seen = []
        for bench.hands.at_ms in (MIDNIGHT_MS - 1, MIDNIGHT_MS):
            accounts = await bench.ledger.snapshot("daily", "s1")
            assert accounts is not None
            seen.append(accounts.tenant)
        assert seen == [Balance(1_000, 90, 900, 300), Balance(1_000, 90, 0, 0)]
        await bench.held(910, tenant="daily")
        after = await bench.ledger.settle(bench.bill(held, 50))
        assert after.tenant == Balance(1_000, 910, 50)


async def test_a_window_that_is_set_again_after_its_end_is_still_reset(database_url: str) -> None:
    """As by a script that sets budgets at midnight: the next day would begin with what the last one spent."""
    async with open_bench(database_url) as bench:
        await bench.tenant("daily", 1_000, window="1d")
        key = (await bench.key("daily", budget_nanousd=1_000, window="1d")).key_id
        await bench.ledger.settle(bench.bill(await bench.held(900, tenant="daily", key=key), 900))
        bench.hands.at_ms = MIDNIGHT_MS
        by: dict[str, Any] = {"actor": "script", "now_ms": MIDNIGHT_MS}
        await bench.database.write(lambda c: patch_tenant(c, "daily", {"window": "1d"}, **by))
        await bench.database.write(lambda c: set_key_budget(c, key, window="12h", **by))
        assert (await bench.ledger.sweep()).reset == 2
        owned = await bench.database.read(lambda c: get_key(c, key))
        assert (owned.balance, owned.reset_at_ms) == (Balance(1_000, 0, 0), MIDNIGHT_MS + DAY_MS // 2)
        tenant = await bench.show("daily")
        assert (tenant.balance, tenant.reset_at_ms) == (Balance(1_000, 0, 0), MIDNIGHT_MS + DAY_MS)


async def test_a_tree_s_turns_and_charges_of_two_gateways_cross_midnight(database_url: str) -> None:
    """The tenant's day and the key's half day end; the tree's budget goes on."""
    async with open_bench(database_url) as bench, replica(database_url, bench.hands) as other:
        bench.hands.at_ms = MIDNIGHT_MS - 1_000
        await bench.tenant("daily", 10_000, window="1d")
        key = (await bench.key("daily", budget_nanousd=3_000, window="12h")).key_id
        of_all: dict[str, Any] = {"tenant": "daily", "key": key}
        spent = await bench.held(2_000, session="root", ceiling=4_000, **of_all)
        await bench.ledger.settle(bench.bill(spent, 1_900))
        turn = await other.held(400, session="child", parent="root", ceiling=2_000, share=50, **of_all)
        charge = structs.replace(bench.asking(300, session="child", **of_all), repeatable=True, decision=None)
        charge = structs.replace(charge, hold_id=f"{CHARGE_PREFIX}1")
        assert isinstance(await bench.ledger.reserve(charge), Reserved)
        _, late = await other.reserve(600, session="root", **of_all)
        assert isinstance(late, Refused)
        assert (late.account, late.balance) == ("key", Balance(3_000, 700, 1_900))

        bench.hands.at_ms = MIDNIGHT_MS
        swept = await race(bench.ledger.sweep(), other.ledger.sweep(), other.reserve(600, session="root", **of_all))
        assert isinstance(swept[2][1], Reserved)
        resolved = await race(
            bench.ledger.settle(bench.bill(turn, 350)),
            other.ledger.settle(bench.bill(charge, 300)),
            other.ledger.release(bench.back(swept[2][0])),
        )
        assert [each.kind for each in resolved] == ["settle", "settle", "release"]
        assert (await other.show("daily")).balance == Balance(10_000, 0, 650)
        assert (await bench.database.read(lambda c: get_key(c, key))).balance == Balance(3_000, 0, 650)
        accounts = await bench.ledger.snapshot("daily", "root")
        assert accounts is not None
        assert accounts.session is not None
        assert accounts.session.balance == Balance(4_000, 0, 2_550)
        assert await bench.database.read(_resets) == [("key", 1_900), ("tenant", 1_900)]


def _resets(connection: Connection) -> list[tuple[str, int]]:
    c = ledger_entries.c
    rows = connection.execute(select(c.scope, c.amount_nanousd).where(c.kind == "reset").order_by(c.scope))
    return [(row.scope, row.amount_nanousd) for row in rows]
