"""Groups of operations on Postgres leave half of the waiting operations to the next group."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from gateway.ledger.postgres_batches import MAX_GROUP, most_of_group
from tests.harness.money import open_bench


@pytest.mark.parametrize(("waiting", "most"), [(1, 8), (16, 8), (17, 9), (32, 16), (128, 64), (2_000, MAX_GROUP)])
def test_a_group_has_at_most_half_of_what_waits(waiting: int, most: int) -> None:
    assert most_of_group(waiting) == most


async def test_turns_that_reserve_together_are_not_all_in_one_transaction(postgres_url: str) -> None:
    async with open_bench(postgres_url) as bench:
        await asyncio.gather(*(bench.held(10, session=f"s{number}", ceiling=1_000) for number in range(32)))
        transactions = text("SELECT count(*) AS holds FROM holds GROUP BY xmin::text")
        groups = await bench.database.read(lambda connection: connection.execute(transactions).scalars().all())
    assert sum(groups) == 32
    assert max(groups) <= 16
