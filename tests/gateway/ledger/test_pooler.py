"""Behind a pooler in transaction mode: the money is right, and no session is left different from how it was found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from gateway.accounts import keys, tenants
from gateway.ledger.types import Balance
from migrations.upgrade import upgrade
from tests.harness.money import START_MS, TTL_MS, admitted, open_bench, race, replica
from tests.harness.pooler import TransactionPooler


@pytest.fixture
def pooled(postgres_url: str) -> Iterator[tuple[TransactionPooler, str]]:
    url = make_url(postgres_url)
    assert url.port is not None
    assert url.database is not None
    pooler = TransactionPooler(url.port, url.database)
    yield pooler, url.set(host="127.0.0.1", port=pooler.port).render_as_string(hide_password=False)
    pooler.close()


async def test_three_gateways_on_three_shared_connections(pooled: tuple[TransactionPooler, str]) -> None:
    pooler, url = pooled
    upgrade(url)  # nothing to do, and it says so through the pooler too
    async with open_bench(url) as one, replica(url, one.hands) as two, replica(url, one.hands) as three:
        outcomes = await race(*((one, two, three)[n % 3].reserve(50, ceiling=1_000, dispatch=5) for n in range(120)))
        ops = admitted(outcomes)
        assert len(ops) == 20
        await race(*(one.ledger.settle(one.bill(op, 30)) for op in ops[:10]))
        swept = await three.sweep(START_MS + TTL_MS)
        assert swept.orphaned == 10
        key = await three.key(budget_nanousd=10)
        await one.database.write(lambda c: keys.revoke_key(c, key.key_id, actor="test", now_ms=1))
        await one.database.write(lambda c: tenants.grant_to_tenant(c, "acme", 7, actor="test", now_ms=1))
        assert (await two.show()).balance == Balance(10**12 + 7, 0, 10 * 30 + 10 * 5)
        with pytest.raises(Exception, match="division by zero"):
            await one.database.write(lambda c: c.execute(text("SELECT 1 / 0")).all())
    assert pooler.transactions > 20
    assert pooler.unusual_startup == []
    for question, expected in (
        ("SELECT count(*) FROM pg_prepared_statements", "0"),
        ("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
        ("SHOW statement_timeout", "0"),
        ("SHOW lock_timeout", "0"),
        ("SHOW idle_in_transaction_session_timeout", "0"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW default_transaction_read_only", "off"),
    ):
        assert set(pooler.ask_each(question)) == {expected}, question
