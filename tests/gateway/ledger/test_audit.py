"""The audit finds every kind of damage: each invariant is broken once by hand, and must be named."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import Connection, select, text

from gateway.database.tables import holds
from gateway.ledger.audit import MAX_LISTED, Violation, audit, blocks
from tests.harness.money import START_MS, TTL_MS, Bench, open_bench

ONE = "hold_id = (SELECT min(hold_id) FROM holds)"
DAMAGE = {
    "tenant: spent equals the sum of its entries": "UPDATE tenants SET spent_nanousd = spent_nanousd + 1",
    "tenant: granted equals the sum of its entries": "UPDATE tenants SET granted_nanousd = granted_nanousd + 1",
    "session: reserved equals the sum of its entries": "UPDATE sessions SET reserved_nanousd = reserved_nanousd + 1",
    "session: reserved equals its open holds": "UPDATE sessions SET reserved_nanousd = reserved_nanousd + 1",
    "session: overage equals the sum of its entries": "UPDATE sessions SET overage_nanousd = 9",
    "key: spent equals the sum of its entries": "UPDATE keys SET spent_nanousd = 3",
    "hold: one terminal entry when resolved, none when open":
        "UPDATE holds SET state = 'settled', resolved_at_ms = 1 WHERE state = 'open' AND hold_id IS NOT NULL",
    "hold: the terminal entry's kind": "UPDATE holds SET state = 'released' WHERE state = 'settled'",
    "hold: posted by its entries": "UPDATE holds SET posted_nanousd = 1 WHERE state = 'settled'",
    "hold: the reserve entry's amount": "UPDATE holds SET amount_nanousd = 77 WHERE state = 'settled'",
    "hold: late posts and refunds": "UPDATE holds SET late = 1",
    "hold: entries belong to a hold": "DELETE FROM holds WHERE state = 'settled'",
    "hold: belongs to a logged decision": "DELETE FROM decisions",
    "decision: cost is what its holds posted": "UPDATE decisions SET cost_nanousd = 5",
    "decision: has a hold": "DELETE FROM holds",
    "session: entries belong to an account": "DELETE FROM sessions",
    "hold: one reserve entry":
        "INSERT INTO holds (hold_id, tenant_id, session_id, decision_id, attempt_id, model, amount_nanousd, state,"
        " expires_at_ms, created_at_ms)"
        " SELECT 'ghost', tenant_id, session_id, decision_id, 'ghost', model, 0, 'open', 1, 1 FROM holds LIMIT 1",
    "entry: a turn's money belongs to a hold":
        "INSERT INTO ledger_entries (kind, scope, amount_nanousd, tenant_id, created_at_ms)"
        " VALUES ('settle', 'turn', 1, 'acme', 1)",
    "entry: the amount is what it moves":
        "INSERT INTO ledger_entries (kind, scope, amount_nanousd, spent_delta_nanousd, tenant_id, created_at_ms)"
        " VALUES ('settle', 'turn', 1000, 1, 'acme', 1)",
}  # fmt: skip


async def some_history(bench: Bench) -> None:
    key = await bench.key(budget_nanousd=1_000)
    op = await bench.held(100, ceiling=1_000, key=key.key_id)
    await bench.ledger.settle(bench.bill(op, 60))
    await bench.held(50)
    await bench.held(20, session="s2")
    other = await bench.held(30, session="s3")
    await bench.ledger.settle(bench.bill(other, 10))


@pytest.mark.parametrize("invariant", DAMAGE)
async def test_damage_is_found_and_named(database_url: str, invariant: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        await some_history(bench)
        assert await bench.database.read(audit) == []

        def damage(connection: Connection) -> None:
            connection.execute(text(DAMAGE[invariant]))

        await bench.database.write(damage)
        found = await bench.database.read(audit)
        assert invariant in {violation.invariant for violation in found}
        for rows in (1, 3):  # one key, and a few, at a time
            assert as_set(await bench.database.read(partial(audit, block_rows=rows))) == as_set(found)


def as_set(found: list[Violation]) -> set[str]:
    return set(map(str, found))


async def test_blocks_of_every_size_cover_every_key_once(database_url: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        for number in range(7):
            for _ in range(number % 3 + 1):
                await bench.held(1, session=f"s{number}", ceiling=1_000)

        def covered(connection: Connection, rows: int) -> list[list[str]]:
            h = holds.c
            query = select(h.session_id).order_by(h.hold_id)
            return [
                [row[0] for row in connection.execute(query.where(block.holds(h.decision_id)))]
                for block in blocks(connection, h.decision_id, rows=rows)
            ]

        every = sorted(f"s{number}" for number in range(7) for _ in range(number % 3 + 1))
        for rows in (1, 2, 5, 100):
            parts = await bench.database.read(partial(covered, rows=rows))
            assert sorted(name for part in parts for name in part) == every
            assert len(parts) >= len(every) // (rows + 1)
        assert len(await bench.database.read(partial(covered, rows=100))) == 1


async def test_many_violations_of_one_kind_are_cut_and_hide_none_of_another(database_url: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        for number in range(MAX_LISTED + 3):
            await bench.held(1, session=f"s{number}", ceiling=1_000)

        def damage(connection: Connection) -> None:
            connection.execute(text("UPDATE holds SET amount_nanousd = 77"))
            connection.execute(text("UPDATE sessions SET overage_nanousd = 9 WHERE session_id = 's9'"))

        await bench.database.write(damage)
        found = [violation.invariant for violation in await bench.database.read(partial(audit, block_rows=10))]
        assert found.count("hold: the reserve entry's amount") == MAX_LISTED
        assert found.count("session: overage equals the sum of its entries") == 1


async def test_a_hold_that_outlives_its_lease_and_two_sweeps_is_a_leak(database_url: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        op = await bench.held(50)
        late_ms = START_MS + TTL_MS + 20_001
        bench.hands.at_ms = late_ms
        found = await bench.database.read(lambda c: audit(c, now_ms=late_ms, grace_ms=20_000))
        assert [(violation.invariant, violation.subject) for violation in found] == [
            ("hold: resolved after its lease", op.hold_id)
        ]
        bench.hands.at_ms = late_ms - 1
        assert await bench.database.read(lambda c: audit(c, now_ms=late_ms - 1, grace_ms=20_000)) == []
        await bench.sweep(late_ms)
        assert await bench.database.read(lambda c: audit(c, now_ms=late_ms, grace_ms=0)) == []


async def test_the_database_itself_refuses_an_impossible_balance(database_url: str) -> None:
    async with open_bench(database_url) as bench:
        await some_history(bench)

        def overspend(connection: Connection) -> None:
            connection.execute(text("UPDATE sessions SET spent_nanousd = granted_nanousd + 1"))

        with pytest.raises(Exception, match="sessions_never_overspent"):
            await bench.database.write(overspend)
