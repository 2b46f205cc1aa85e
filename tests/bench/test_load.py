"""The load generator against the fake provider, both in this process: what is counted, and what is no answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import pytest

from bench.rig.gateways import free_port
from bench.rig.load import RunFailed, Target, arriving, closed, set_pace, tenant_name
from bench.rig.provider import Connection, Events, Pace, Provider

WINDOW_S = 0.1


@asynccontextmanager
async def provider(pace: Pace) -> AsyncIterator[Target]:
    loop = asyncio.get_running_loop()
    shared = Provider(pace, Events.of(pace.chunks), count())
    connections: list[Connection] = []

    def connection() -> Connection:
        connections.append(Connection(shared, loop))
        return connections[-1]

    server = await loop.create_server(connection, "127.0.0.1", 0)
    async with server:
        yield Target(server.sockets[0].getsockname()[1], "ok", {"authorization": "Bearer sk-none"})
        for made in connections:
            made.close()


def meter() -> dict[str, float]:
    return {"load": time.process_time()}


async def test_requests_within_the_window_are_counted_with_their_latency() -> None:
    async with provider(Pace(delay_s=0.01)) as target:
        sample = await closed(target, clients=4, window_s=WINDOW_S, meter=meter)
    assert len(sample.latencies_ms) > 0
    assert sample.latencies_ms[0] >= 9.0
    assert list(sample.latencies_ms) == sorted(sample.latencies_ms)
    assert sample.events == 0
    assert set(sample.cpu_s) == {"load"}


async def test_every_event_of_a_stream_is_counted_once_however_it_is_cut() -> None:
    """200 words, the role before them, the reason after and the usage at the end are 203 events; [DONE] is none."""
    async with provider(Pace(chunks=200)) as target:
        sample = await closed(target, clients=2, window_s=WINDOW_S, meter=meter, stream_events=203)
    assert len(sample.first_ms) > 0
    assert sample.events >= 203 * (len(sample.latencies_ms) - 2)


async def test_a_stream_that_ends_too_early_fails_the_run() -> None:
    async with provider(Pace(chunks=10)) as target:
        with pytest.raises(RunFailed, match="a stream of 13 events, expected at least 200"):
            await closed(target, clients=1, window_s=WINDOW_S, meter=meter, stream_events=200)


async def test_an_error_fails_the_run_and_is_quoted() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}]}")
        writer.write(b"HTTP/1.1 402 Payment Required\r\nContent-Length: 5\r\n\r\nmoney")
        writer.close()
        await writer.wait_closed()
        refused.set()

    refused = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        target = Target(server.sockets[0].getsockname()[1], "ok")
        with pytest.raises(RunFailed, match=r"402 payment required: b'money'"):
            await closed(target, clients=1, window_s=WINDOW_S, meter=meter)
        await refused.wait()


async def test_nobody_at_the_port_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="no connection to port"):
        await closed(Target(free_port(), "ok"), clients=1, window_s=WINDOW_S, meter=meter)


async def test_waiting_for_a_free_connection_is_part_of_the_latency() -> None:
    """One connection, 10 ms each, 60 arrivals a second: some arrive while another is on its way."""
    async with provider(Pace(delay_s=0.01)) as target:
        sample = await arriving(target, per_s=60, window_s=0.5, meter=meter, rng=Random(3), connections=1)
    assert sample.latencies_ms[0] >= 9.0
    assert sample.latencies_ms[-1] > 12.0


async def test_a_server_that_cannot_keep_up_fails_the_run() -> None:
    async with provider(Pace(delay_s=0.2)) as target:
        with pytest.raises(RunFailed, match="it fell behind 100 requests/s"):
            await arriving(target, per_s=100, window_s=5, meter=meter, rng=Random(3), connections=1)


async def test_the_pace_can_be_changed_from_outside() -> None:
    async with provider(Pace()) as target:
        await set_pace(target.port, delay_ms=0, gap_ms=1, chunks=5)
        sample = await closed(target, clients=1, window_s=WINDOW_S, meter=meter, stream_events=8)
    assert sample.latencies_ms[0] >= 5.0


def test_a_session_is_named_in_the_head_of_a_request() -> None:
    request = Target(80, "auto", {"authorization": "Bearer k"}, sessions=True).requests(stream=False)("s-1")
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"\r\nx-session-id: s-1" in head
    assert f"content-length: {len(body)}".encode() in head
    assert b"session" not in Target(80, "ok").requests(stream=False)("s-1")


def test_a_session_is_always_paid_for_by_the_same_of_many_tenants() -> None:
    request = Target(80, "auto", sessions=True, tenants=50).requests(stream=False)
    payers = {n: request(f"s-{n}").split(b"x-tenant-id: ")[1].split(b"\r\n")[0] for n in range(500)}
    assert len(set(payers.values())) == 50
    assert request("s-7") == request("s-7")
    assert payers[7].decode() in {tenant_name(n) for n in range(50)}
