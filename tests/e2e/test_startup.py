"""`seqroute serve` before its database: what is said, what is kept, how it becomes ready and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import psycopg
import pytest

from migrations.upgrade import upgrade
from tests.harness.clients import Client, make_tenant
from tests.harness.gateway import config
from tests.harness.postgres import PostgresServer
from tests.harness.processes import Fleet, ForkServer, Replica, free_port
from tests.harness.upstream import FaultUpstream

pytestmark = pytest.mark.faults

DRAIN_S = 3.0
ENDED_WITHIN_S = DRAIN_S + 6.0
READY_WITHIN_S = 30.0
"""Bounds for never, on a busy machine; the promised times are DRAIN_S and five seconds."""
KEY = "sk-Zt7qWc41LmVx9uRkPb2nHs8d"


@contextlib.asynccontextmanager
async def fleet(folder: Path, nursery: ForkServer, url: str) -> AsyncIterator[Fleet]:
    async with FaultUpstream() as provider:
        path = config(folder, provider.url, database_url=url, general={"master_key": KEY})
        async with Fleet(nursery, path, environ={"SEQROUTE_DRAIN_SECONDS": f"{DRAIN_S:g}"}) as replicas:
            yield replicas


async def ends_in_time(replica: Replica, codes: tuple[int, ...] = (0,)) -> None:
    began_s = time.monotonic()
    replica.terminate()
    assert await replica.ended(timeout_s=60) in codes, replica.log_text()
    assert time.monotonic() - began_s < ENDED_WITHIN_S


async def serves_a_turn(replica: Replica) -> None:
    _, key = await make_tenant(replica.url, KEY, "acme")
    assert (await Client([replica.url], key, name="first").turn("small")).fate == "ok"


async def waiting(replica: Replica) -> list[str]:
    """The lines about waiting, once there is one."""
    async with asyncio.timeout(60):
        while not (said := [line for line in replica.log_text().splitlines() if "retried every" in line]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return said


async def test_without_its_database_it_keeps_its_threads_and_connections_says_so_once_and_can_be_ended(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = postgres_server.url("postgres")
    upgrade(url)
    postgres_server.stop("immediate")
    async with fleet(tmp_path, nursery, url) as replicas:
        replica = await replicas.start(ready=False)
        await replica.answering("/readyz", 503)
        await waiting(replica)
        process = psutil.Process(replica.process_id)
        await asyncio.sleep(3)
        before = process.num_threads(), process.num_fds()
        await asyncio.sleep(8)
        assert process.num_threads() <= before[0] + 2
        assert process.num_fds() <= before[1] + 2
        assert len(await waiting(replica)) == 1
        await asyncio.to_thread(postgres_server.start)
        assert await replica.answering("/readyz", 200) <= READY_WITHIN_S
        await serves_a_turn(replica)
        await ends_in_time(replica)


async def test_before_migrate_it_says_the_command_and_serves_once_it_was_run(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    url = postgres_server.url("postgres")
    async with fleet(tmp_path, nursery, url) as replicas:
        replica = await replicas.start(ready=False)
        await replica.answering("/readyz", 503)
        [said] = await waiting(replica)
        assert f"run `seqroute migrate --config {tmp_path}/gateway.yaml`" in said
        await asyncio.to_thread(upgrade, url)
        assert await replica.answering("/readyz", 200) <= READY_WITHIN_S
        await serves_a_turn(replica)
        await ends_in_time(replica)


@pytest.mark.parametrize("moment", ["at once", "absent", "frozen", "empty", "lost"])
async def test_sigterm_ends_it_within_the_time_to_drain(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer, moment: str
) -> None:
    url = postgres_server.url("postgres")
    if moment != "empty":
        upgrade(url)
    if moment == "absent":
        postgres_server.stop("immediate")
    if moment == "frozen":
        postgres_server.freeze()
    async with fleet(tmp_path, nursery, url) as replicas:
        try:
            replica = await replicas.start(ready=moment == "lost")
            if moment == "lost":
                await serves_a_turn(replica)
                postgres_server.stop("immediate")
                await replica.answering("/readyz", 503)
            elif moment != "at once":
                await waiting(replica)
            # The very first moment is before any of our code: the signal itself ends the process.
            await ends_in_time(replica, (0, -15) if moment == "at once" else (0,))
        finally:
            if moment == "frozen":
                postgres_server.thaw()


async def test_a_database_whose_name_a_url_must_encode_is_served_from(
    tmp_path: Path, nursery: ForkServer, postgres_server: PostgresServer
) -> None:
    with psycopg.connect(postgres_server.url("postgres"), autocommit=True) as admin:
        admin.execute('CREATE DATABASE "da-ta base/ü%41"')
    url = postgres_server.url("da-ta%20base%2F%C3%BC%2541")
    upgrade(url)
    async with fleet(tmp_path, nursery, url) as replicas:
        await serves_a_turn(await replicas.start())


async def test_a_port_taken_and_a_file_served_already_are_one_line_each(
    tmp_path: Path, nursery: ForkServer, sqlite_url: str
) -> None:
    async with fleet(tmp_path, nursery, sqlite_url) as replicas:
        first = await replicas.start()
        for port, complaint in ((first.port, "in use by another process"), (free_port(), "another process serves")):
            second = await replicas.start(port=port, ready=False)
            assert await second.ended() == 1
            [line] = second.log_text().splitlines()
            assert line.startswith("seqroute: ")
            assert complaint in line
