"""Databases that are away, slow, frozen, full or lossy: 503, nothing dispatched; then back by themselves, exactly."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from migrations.upgrade import upgrade
from tests.harness.clients import Client
from tests.harness.cluster import Ground, ground
from tests.harness.crashes import keep_asking
from tests.harness.faultproxy import FaultProxy
from tests.harness.postgres import PostgresServer
from tests.harness.processes import ForkServer

pytestmark = pytest.mark.faults

MODELS = {"words": "ok:tokens=30,delay=0.01", "slow": "ok:tokens=40,delay=0.1"}
BACK_WITHIN_S = 30.0
"""A bound for never: the promised five seconds are measured by `make soak`, on a machine that is not busy."""


async def acknowledged(scene: Ground, client: Client, more: int) -> None:
    """Until the client has that many more whole answers than now."""

    def count() -> int:
        return sum(turn.fate == "ok" for turn in client.history)

    wanted = count() + more
    await scene.until(lambda: count() >= wanted, timeout_s=120)


def database_of(server: PostgresServer) -> str:
    url = server.url("postgres")
    upgrade(url)
    return url


@asynccontextmanager
async def behind_a_proxy(
    tmp_path: Path, nursery: ForkServer, server: PostgresServer, **options: Any
) -> AsyncIterator[tuple[Ground, FaultProxy]]:
    url = database_of(server)
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        served_url = url.replace(f":{server.port}/", f":{proxy.port}/")
        async with ground(tmp_path, nursery, url, served_url=served_url, modes=MODELS, **options) as scene:
            yield scene, proxy
            proxy.heal()


async def test_a_gateway_started_without_its_database_is_alive_not_ready_and_serves_when_it_comes(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS) as scene:
        first = await scene.fleet.start()
        client = await scene.client()
        first.terminate()
        await first.ended()
        postgres_server.stop("immediate")
        replica = await scene.fleet.start(ready=False, port=first.port)
        await replica.answering("/livez", 200)
        await replica.answering("/readyz", 503)
        refused = await client.turn()
        assert (refused.status, refused.code) == (503, "ledger_unavailable")
        assert refused.retry_after is not None
        async with httpx.AsyncClient() as http:  # a key nobody knows: still no verdict without a database
            stranger = await http.post(replica.url + "/v1/chat/completions", headers={"Authorization": "Bearer sk-no"})
            assert stranger.status_code == 503
        await asyncio.to_thread(postgres_server.start)
        assert await replica.answering("/readyz", 200) <= BACK_WITHIN_S
        assert (await client.turn()).fate == "ok"
        await scene.judge()


async def test_crashes_of_the_database_under_load_lose_no_acknowledged_turn(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS) as scene:
        replica = await scene.fleet.start()
        client = await scene.client()
        stop = asyncio.Event()
        load = [asyncio.create_task(keep_asking(client, seed, stop)) for seed in range(8)]
        for _ in range(3):
            await acknowledged(scene, client, 10)
            await asyncio.to_thread(postgres_server.stop, "immediate")
            await scene.until(lambda: client.history[-1].fate in ("refused", "unknown"), timeout_s=60)
            await asyncio.to_thread(postgres_server.start)
            assert await replica.answering("/readyz", 200) <= BACK_WITHIN_S
        await acknowledged(scene, client, 10)
        stop.set()
        await asyncio.gather(*load)
        statuses = {(turn.status, turn.code) for turn in client.history if turn.fate == "refused"}
        assert statuses <= {(503, "ledger_unavailable")}
        assert all(turn.retry_after for turn in client.history if turn.status == 503)
        verdict = await scene.judge()
        assert verdict.acknowledged > 20


async def test_a_frozen_database_means_503_and_nothing_dispatched(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS) as scene:
        replica = await scene.fleet.start()
        client = await scene.client()
        assert (await client.turn("words")).fate == "ok"
        postgres_server.freeze()
        try:
            calls = len(scene.provider.bill)
            refused = await asyncio.gather(*(client.turn("words", session=f"s{n}") for n in range(10)))
            assert {(turn.status, turn.code) for turn in refused} == {(503, "ledger_unavailable")}
            assert len(scene.provider.bill) == calls
            await replica.answering("/readyz", 503, timeout_s=15)
        finally:
            postgres_server.thaw()
        assert await replica.answering("/readyz", 200) <= BACK_WITHIN_S
        await scene.until(lambda: scene.open_holds() == 0)
        assert (await client.turn("words")).fate == "ok"
        await scene.judge()


async def test_a_stream_outlives_an_outage_of_the_database_and_its_exact_bill_is_posted_after_it(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    environ = {"SEQROUTE_HOLD_TTL_SECONDS": "30"}
    async with behind_a_proxy(tmp_path, nursery, postgres_server, environ=environ) as (scene, proxy):
        await scene.fleet.start()
        client = await scene.client()
        streams = [asyncio.create_task(client.turn("slow", stream=True, session=f"s{n}")) for n in range(5)]
        await scene.until(lambda: len(scene.provider.bill) == 5 and scene.provider.bill[-1].output_tokens > 3)
        proxy.refusing = True
        proxy.reset()
        turns = await asyncio.gather(*streams)
        assert [turn.fate for turn in turns] == ["ok"] * 5
        proxy.heal()
        verdict = await scene.judge()
        assert (verdict.settled_exactly, verdict.orphaned) == (5, 0)


async def test_a_slow_and_lossy_network_to_the_database_costs_time_and_never_money(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    """Answers lost right after the COMMIT are the case that matters: each must resolve to one outcome."""
    async with behind_a_proxy(tmp_path, nursery, postgres_server) as (scene, proxy):
        await scene.fleet.start()
        client = await scene.client()
        stop = asyncio.Event()
        load = [asyncio.create_task(keep_asking(client, seed, stop, tries=5)) for seed in range(8)]
        proxy.lose_answers, proxy.lose_requests, proxy.latency_s = 0.05, 0.02, 0.01
        await acknowledged(scene, client, 25)
        await scene.until(lambda: proxy.lost_answers > 20, timeout_s=120)
        proxy.half_close()
        await acknowledged(scene, client, 5)
        proxy.heal()
        stop.set()
        await asyncio.gather(*load)
        verdict = await scene.judge()
        assert verdict.acknowledged > 20
        refused = [turn for turn in client.history if turn.fate == "refused"]
        # A retry may come while the outcome of its first try, whose answer was lost, is still being resolved.
        retried = {turn.code for turn in refused if turn.tries > 1}
        assert {turn.code for turn in refused if turn.tries == 1} <= {"ledger_unavailable"}
        assert retried <= {"ledger_unavailable", "idempotency_in_flight"}


async def test_a_locked_database_means_503_and_no_dispatch(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = database_of(postgres_server)
    async with ground(tmp_path, nursery, url, modes=MODELS) as scene:
        replica = await scene.fleet.start()
        client = await scene.client()
        assert (await client.turn("words")).fate == "ok"
        calls = len(scene.provider.bill)
        with psycopg.connect(url, autocommit=True) as operator:
            operator.execute("BEGIN")
            operator.execute("LOCK TABLE tenants, sessions, holds, keys IN ACCESS EXCLUSIVE MODE")
            refused = await asyncio.gather(*(client.turn("words", session=f"s{n}") for n in range(30)))
            operator.execute("ROLLBACK")
        assert {(turn.status, turn.code) for turn in refused} == {(503, "ledger_unavailable")}
        assert all(turn.retry_after for turn in refused)
        assert len(scene.provider.bill) == calls
        assert replica.alive
        await scene.until(lambda: scene.open_holds() == 0)
        assert (await client.turn("words")).fate == "ok"
        await scene.judge()


async def test_a_full_disk_under_sqlite_means_503_and_recovery_when_there_is_room(
    tmp_path: Path, nursery: ForkServer, sqlite_url: str
) -> None:
    """The limit of the file's size stands for the disk: it is raised again while the gateway runs."""
    async with ground(tmp_path, nursery, sqlite_url, modes=MODELS) as scene:
        replica = await scene.fleet.start()
        client = await scene.client()
        assert (await client.turn("words")).fate == "ok"
        soft, hard = resource.prlimit(replica.process_id, resource.RLIMIT_FSIZE)
        resource.prlimit(replica.process_id, resource.RLIMIT_FSIZE, (4096, hard))
        calls = len(scene.provider.bill)
        refused = [await client.turn("words", session=f"s{n}") for n in range(5)]
        assert {(turn.status, turn.code) for turn in refused} == {(503, "ledger_unavailable")}
        assert len(scene.provider.bill) == calls
        await replica.answering("/readyz", 503)  # reads are answered, and so are not what readiness goes by
        assert "cannot be written to" in replica.log_text()
        resource.prlimit(replica.process_id, resource.RLIMIT_FSIZE, (soft, hard))
        assert await replica.answering("/readyz", 200) <= BACK_WITHIN_S
        assert (await client.turn("words")).fate == "ok"
        calls = len(scene.provider.bill)
        streaming = asyncio.create_task(client.turn("slow", stream=True))
        await scene.until(lambda: len(scene.provider.bill) > calls and scene.provider.bill[-1].output_tokens > 3)
        resource.prlimit(replica.process_id, resource.RLIMIT_FSIZE, (4096, hard))
        assert (await streaming).fate == "ok"
        resource.prlimit(replica.process_id, resource.RLIMIT_FSIZE, (soft, hard))
        verdict = await scene.judge()
        assert verdict.orphaned <= 1
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_server_without_a_free_connection_means_503_and_service_when_one_is_free(
    tmp_path: Path, nursery: ForkServer
) -> None:
    server = PostgresServer({"max_connections": "25"})
    try:
        await asyncio.to_thread(server.start)
        url = database_of(server)
        async with ground(tmp_path, nursery, url, modes=MODELS) as scene:
            replica = await scene.fleet.start()
            client = await scene.client()
            assert (await client.turn("words")).fate == "ok"
            await asyncio.to_thread(server.stop, "immediate")
            await asyncio.to_thread(server.start)
            greedy = await asyncio.to_thread(take_every_connection, url)
            calls = len(scene.provider.bill)
            asked = await asyncio.gather(*(client.turn("words", session=f"s{n}") for n in range(10)))
            refused = [turn for turn in asked if turn.fate != "ok"]
            assert {(turn.status, turn.code) for turn in refused} <= {(503, "ledger_unavailable")}
            assert len(scene.provider.bill) - calls == len(asked) - len(refused)
            for connection in greedy:
                connection.close()
            # A slot is free when its backend has ended, which readiness may never have noticed: so ask for turns.
            async with asyncio.timeout(BACK_WITHIN_S):
                while (await client.turn("words")).fate != "ok":  # noqa: ASYNC110 - asking is the point
                    await asyncio.sleep(0.1)
            assert replica.alive
            await scene.judge()
    finally:
        server.destroy()


def take_every_connection(url: str) -> list[psycopg.Connection[Any]]:
    """Connect until the server says that there are too many clients."""
    taken: list[psycopg.Connection[Any]] = []
    while True:
        try:
            taken.append(psycopg.connect(url, connect_timeout=2))
        except psycopg.OperationalError:
            return taken
