"""The capped open mode: a tenant that asked for it is served through an outage up to the cap, and pays afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.e2e.test_outage import database_of
from tests.harness.auditor import billed_nanousd
from tests.harness.cluster import Ground, ground
from tests.harness.postgres import PostgresServer
from tests.harness.processes import ForkServer, Replica

pytestmark = pytest.mark.faults

MODELS = {"words": "ok:tokens=30,delay=0.01", "slow": "ok:tokens=60,delay=0.05"}
CAP_USD = "0.01"


async def spent_nanousd(scene: Ground, replica: Replica, key: str, session: str) -> int:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as http:
        answer = (await http.get(f"{replica.url}/v1/sessions/{session}")).json()
    spent: int = answer["spent_nano_usd"]
    return spent


async def test_an_open_tenant_is_served_up_to_the_cap_and_its_turns_are_posted_when_the_database_is_back(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS, general={"outage_cap_usd": CAP_USD}) as scene:
        replica = await scene.fleet.start()
        trusted, careful = await scene.client(outage="open"), await scene.client()
        for client in (trusted, careful):
            assert (await client.turn("words", session="before")).fate == "ok"
        calls = len(scene.provider.bill)
        postgres_server.stop("immediate")
        refused = await careful.turn("words", session="during")
        assert (refused.status, refused.code) == (503, "ledger_unavailable")
        with_key = await trusted.turn("words", session="during", idempotency_key="kept")
        assert with_key.status == 503
        served = await trusted.turn("words", session="during", stream=True, max_tokens=40)
        assert served.fate == "ok"
        crowd = await asyncio.gather(*(trusted.turn("words", session="during", max_tokens=40) for _ in range(200)))
        assert {turn.fate for turn in crowd} == {"ok", "refused"}
        assert {(turn.status, turn.code) for turn in crowd if turn.fate == "refused"} == {(503, "ledger_unavailable")}
        billed = sum(map(billed_nanousd, scene.provider.bill[calls:]))
        assert 0 < billed <= 10_000_000  # the cap
        await asyncio.to_thread(postgres_server.start)
        await replica.answering("/readyz", 200)
        await scene.until(lambda: not list(tmp_path.rglob("outage_*.jsonl")))
        assert (await trusted.turn("words", session="after")).fate == "ok"
        # It may have met a connection that the crash broke, and be posted with the next round of the journal.
        await scene.until(lambda: not list(tmp_path.rglob("outage_*.jsonl")))
        verdict = await scene.judge()
        assert verdict.estimated == 0
        assert await spent_nanousd(scene, replica, trusted.key, "during") == billed


async def test_what_an_open_tenant_spent_through_a_process_that_died_is_posted_by_the_next_one(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS, general={"outage_cap_usd": CAP_USD}) as scene:
        replica = await scene.fleet.start()
        trusted = await scene.client(outage="open")
        assert (await trusted.turn("words", session="before")).fate == "ok"
        postgres_server.stop("immediate")
        assert (await trusted.turn("words", session="during", max_tokens=40)).fate == "ok"
        dying = asyncio.create_task(trusted.turn("slow", session="during", stream=True, max_tokens=100))
        await scene.until(lambda: len(scene.provider.bill) == 3 and scene.provider.bill[-1].output_tokens > 3)
        replica.kill()
        assert (await dying).fate == "unknown"
        await asyncio.to_thread(postgres_server.start)
        again = await scene.fleet.start(port=replica.port)
        await scene.until(lambda: not list(tmp_path.rglob("outage_*.jsonl")))
        verdict = await scene.judge()
        assert (verdict.settled_exactly, verdict.estimated) == (2, 1)
        assert await spent_nanousd(scene, again, trusted.key, "during") > 69_000
