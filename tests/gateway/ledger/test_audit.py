"""The audit finds every kind of damage: each invariant is broken once by hand, and must be named."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text

from gateway.ledger.audit import audit
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
}  # fmt: skip


async def some_history(bench: Bench) -> None:
    key = await bench.key(budget_nanousd=1_000)
    op = await bench.held(100, ceiling=1_000, key=key.key_id)
    await bench.ledger.settle(bench.bill(op, 60))
    await bench.held(50)


@pytest.mark.parametrize("invariant", DAMAGE)
async def test_damage_is_found_and_named(database_url: str, invariant: str) -> None:
    async with open_bench(database_url, audit=False) as bench:
        await some_history(bench)
        assert await bench.database.read(audit) == []

        def damage(connection: Connection) -> None:
            connection.execute(text(DAMAGE[invariant]))

        await bench.database.write(damage)
        assert invariant in {violation.invariant for violation in await bench.database.read(audit)}


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
