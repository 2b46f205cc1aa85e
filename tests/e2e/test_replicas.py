"""Several replicas, several workers, one database: the same money, held once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.harness.cluster import ground
from tests.harness.concurrent_turns import crowd, crowd_of_a_tree
from tests.harness.processes import ForkServer, clean_environ

pytestmark = pytest.mark.faults

MODELS = {"held": "ok:tokens=40,gate=1", "words": "ok:tokens=30,delay=0.01", "agent": "ok:tokens=50,delay=0.02"}
LONG_LEASES = {"SEQROUTE_HOLD_TTL_SECONDS": "60"}


async def test_three_replicas_with_two_workers_dispatch_exactly_what_a_session_affords(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS, environ=LONG_LEASES) as scene:
        replicas = await asyncio.gather(*(scene.fleet.start(workers=2) for _ in range(3)))
        assert [len(replica.workers()) for replica in replicas] == [2, 2, 2]
        client = await scene.client()
        for number in range(2):
            figures = await crowd(scene, client, session=f"crowd-{number}", asking=200, affordable=20)
            assert (figures.dispatched, figures.answered, figures.refused) == (20, 20, 180)
            assert figures.overshoot_nanousd == 0
        verdict = await scene.judge()
        assert verdict.overshoot_nanousd == 0


async def test_a_crowd_in_a_tree_of_sessions_spends_its_root_s_money_and_no_more(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS, environ=LONG_LEASES) as scene:
        await asyncio.gather(*(scene.fleet.start() for _ in range(3)))
        client = await scene.client()
        figures = await crowd_of_a_tree(scene, client, root="tree", asking=200, budget_usd="0.004")
        assert figures.overshoot_nanousd == 0
        # 26 turns made the sessions; of the crowd some were answered, none was called without money.
        assert 0 < figures.answered == figures.dispatched - 26
        assert figures.answered + figures.refused == 200
        await scene.judge()


async def test_one_idempotency_key_over_replicas_means_one_call_and_one_charge(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS, environ=LONG_LEASES) as scene:
        await asyncio.gather(*(scene.fleet.start() for _ in range(2)))
        client = await scene.client()
        client_urls = client.urls

        async def race(key: str, url: str, stream: bool) -> str:
            racer = scene.client_of(client.key, [url])
            turn = await racer.turn("words", stream=stream, idempotency_key=key, tag=key, tries=60, pause_s=0.1)
            assert turn.fate == "ok", turn
            return turn.text

        for number in range(4):
            key = f"race-{number}"
            texts = await asyncio.gather(*(race(key, client_urls[n % 2], number % 2 == 1) for n in range(12)))
            assert len(set(texts)) == 1
            assert len([a for a in scene.provider.bill if a.tag == key]) == 1
        verdict = await scene.judge()
        assert verdict.settled_exactly == 4


async def test_a_second_process_on_one_sqlite_file_is_refused(
    tmp_path: Path, nursery: ForkServer, sqlite_url: str
) -> None:
    async with ground(tmp_path, nursery, sqlite_url, modes=MODELS) as scene:
        first = await scene.fleet.start()
        second = await scene.fleet.start(ready=False)
        assert await second.ended() != 0
        assert "another process serves from this SQLite database" in second.log_text()
        several = await scene.fleet.start(ready=False, workers=2)
        assert await several.ended() == 2
        assert "one process serves a SQLite file" in several.log_text()
        assert first.alive
        client = await scene.client([first.url])
        assert (await client.turn()).fate == "ok"
        await scene.judge()


async def test_ten_agent_turns_of_three_dollars_at_worst_keep_eight_in_flight_and_a_hundred_finish(
    tmp_path: Path, nursery: ForkServer, postgres_url: str
) -> None:
    """Worst case 3,000 tokens at 1,000 USD per million; the real answers cost 5 cents. The session has 25 USD."""
    dear = {"input_cost_per_token": 0.000001, "output_cost_per_token": 0.001, "max_output_tokens": 3000}
    async with ground(tmp_path, nursery, postgres_url, modes=MODELS, model_info=dear, environ=LONG_LEASES) as scene:
        replicas = await asyncio.gather(*(scene.fleet.start() for _ in range(2)))
        client = await scene.client()
        finished = 0
        most_in_flight = 0

        async def agent(number: int) -> None:
            nonlocal finished
            for step in range(10):
                turn = await client.turn(
                    "agent", session="agents", budget_usd="25", stream=step % 2 == 0, tag=f"agent-{number}-{step}"
                )
                assert turn.fate == "ok", turn
                finished += 1

        async def watch() -> None:
            nonlocal most_in_flight
            while finished < 100:
                running = sum(attempt.ended_s is None for attempt in scene.provider.bill)
                most_in_flight = max(most_in_flight, running)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(120):
            await asyncio.gather(watch(), *(agent(number) for number in range(10)))
        assert most_in_flight >= 8
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {client.key}"}) as http:
            session = (await http.get(f"{replicas[0].url}/v1/sessions/agents")).json()
        assert session["turns"] == 100
        assert session["reserved_nano_usd"] == 0
        assert session["spent_nano_usd"] <= 25 * 10**9
        assert scene.open_holds() == 0


def test_the_environment_of_a_gateway_process_has_no_settings_of_the_developer() -> None:
    assert not any(name.startswith("SEQROUTE_") for name in clean_environ({}))
