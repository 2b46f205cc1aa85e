"""Through pgbouncer in transaction mode: the same turns, the same crowd, no statement that outlives a transaction.

Collected only where a pgbouncer is installed; the header of every test run says which, or that it is absent.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.cluster import ground
from tests.harness.concurrent_turns import crowd
from tests.harness.crashes import keep_asking
from tests.harness.pgbouncer import pgbouncer
from tests.harness.processes import ForkServer

pytestmark = pytest.mark.faults

MODELS = {"held": "ok:tokens=40,gate=1", "words": "ok:tokens=30,delay=0.01"}


async def test_two_replicas_behind_a_transaction_pooler_keep_every_law(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    with pgbouncer(postgres_url) as through:
        environ = {"SEQROUTE_HOLD_TTL_SECONDS": "60"}
        async with ground(tmp_path, nursery, postgres_url, served_url=through, modes=MODELS, environ=environ) as scene:
            first, _ = [await scene.fleet.start() for _ in range(2)]
            client = await scene.client()
            figures = await crowd(scene, client, session="crowd", asking=100, affordable=10)
            assert (figures.dispatched, figures.refused) == (10, 90)
            stop = asyncio.Event()
            load = [asyncio.create_task(keep_asking(client, seed, stop)) for seed in range(6)]
            await asyncio.sleep(4.0)
            stop.set()
            await asyncio.gather(*load)
            assert {turn.fate for turn in client.history} <= {"ok", "left", "refused"}
            assert all(turn.status in (402, 429) for turn in client.history if turn.fate == "refused")
            verdict = await scene.judge()
            assert verdict.acknowledged > 20
            assert "prepared statement" not in first.log_text()
