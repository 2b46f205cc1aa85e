"""SIGTERM: what runs is finished and settled, new work goes elsewhere, and a rolling restart fails nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.cluster import ground
from tests.harness.crashes import keep_asking
from tests.harness.processes import ForkServer

pytestmark = pytest.mark.faults

MODELS = {"words": "ok:tokens=30,delay=0.01", "slow": "ok:tokens=40,delay=0.1", "whole": "ok:tokens=20,delay=0.1"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_streams_in_flight_finish_with_a_real_end_and_the_process_exits_with_status_zero(
    tmp_path: Path, nursery: ForkServer, postgres_url: str, workers: int
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS) as scene:
        replica = await scene.fleet.start(workers=workers)
        client = await scene.client()
        await client.turn("small", session="warm")
        streams = [asyncio.create_task(client.turn("slow", stream=True, session=f"s{n}")) for n in range(25)]
        whole = [asyncio.create_task(client.turn("whole", session=f"w{n}")) for n in range(5)]
        await scene.until(lambda: len(scene.provider.bill) == 31)
        replica.terminate()
        code = await replica.ended()
        turns = await asyncio.gather(*streams, *whole)
        assert [turn.fate for turn in turns] == ["ok"] * 30
        assert all(len(turn.text.split()) == 40 for turn in turns[:25])
        assert code == 0, replica.log_text()
        assert scene.open_holds() == 0
        verdict = await scene.judge()
        assert (verdict.settled_exactly, verdict.orphaned) == (31, 0)


async def test_a_draining_gateway_turns_readiness_off_at_once_and_refuses_new_turns(
    tmp_path: Path, nursery: ForkServer, sqlite_url: str
) -> None:
    async with ground(tmp_path, nursery, sqlite_url, modes=MODELS) as scene:
        replica = await scene.fleet.start()
        client = await scene.client()
        running = asyncio.create_task(client.turn("slow", stream=True))
        await scene.until(lambda: bool(scene.provider.bill))
        replica.terminate()
        await asyncio.sleep(0.3)
        refused = await client.turn("small", session="late")
        assert refused.fate == "refused"
        assert refused.status == 503
        assert (await running).fate == "ok"
        assert await replica.ended() == 0
        await scene.judge()


async def test_a_stream_longer_than_the_drain_is_cut_with_an_error_and_settled(
    tmp_path: Path, nursery: ForkServer, sqlite_url: str
) -> None:
    environ = {"SEQROUTE_DRAIN_SECONDS": "1"}
    async with ground(tmp_path, nursery, sqlite_url, modes={"long": "ok:tokens=4000,delay=0.05"}, environ=environ) as s:
        replica = await s.fleet.start()
        client = await s.client()
        running = asyncio.create_task(client.turn("long", stream=True))
        await s.until(lambda: bool(s.provider.bill) and s.provider.bill[0].output_tokens > 5)
        replica.terminate()
        cut = await running
        assert (cut.fate, cut.code) == ("failed", "draining")
        await replica.ended(timeout_s=15)
        assert s.open_holds() == 0
        verdict = await s.judge()
        assert verdict.estimated == 1
        assert s.provider.bill[0].cut


async def test_a_rolling_restart_under_load_fails_no_turn(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS) as scene:
        replicas = [await scene.fleet.start() for _ in range(2)]
        client = await scene.client()
        stop = asyncio.Event()
        load = [asyncio.create_task(keep_asking(client, seed, stop, tries=8)) for seed in range(8)]
        for replica in replicas:
            await asyncio.sleep(1.0)
            replica.terminate()
            assert await replica.ended() == 0, replica.log_text()
            await scene.fleet.start(port=replica.port)
        await asyncio.sleep(1.0)
        stop.set()
        await asyncio.gather(*load)
        failed = [turn for turn in client.history if turn.fate not in ("ok", "left")]
        assert failed == []
        assert len(client.history) > 50
        await scene.judge()
