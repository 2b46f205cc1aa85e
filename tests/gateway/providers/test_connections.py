"""Kept connections: one that its server has closed costs nothing, and nobody is asked twice for the same answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import structs

from gateway.providers.errors import BrokenFault
from gateway.providers.exchange import STALE_S
from gateway.providers.providers import Call, Upstream
from gateway.providers.transport import KEEP_ALIVE_S
from tests.harness.lanes import LANES
from tests.harness.listener import Listener

ANSWER = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}  # fmt: skip
STREAM = {
    "id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}],
}  # fmt: skip


@dataclass(slots=True)
class HangsUp(Listener):
    """A provider that answers the first request of a connection and meets the next ones with `then`: "close" ends the
    connection without a byte, "reset" by a reset, "late" like "close" after a while."""

    then: str
    first: str = "answer"
    requests: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        what = self.first
        while True:
            body = await self._request(reader)
            if what == "answer":
                writer.write(_answered(streamed=body.get("stream") is True))
                await writer.drain()
                what = self.then
                continue
            if what == "late":
                await asyncio.sleep(2 * STALE_S)
            if what == "reset":
                writer.transport.abort()
            return

    async def _request(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        body: dict[str, Any] = json.loads(await reader.readexactly(length))
        self.requests += 1
        return body


def _answered(streamed: bool) -> bytes:
    kind, raw = "application/json", json.dumps(ANSWER).encode()
    if streamed:
        kind, raw = "text/event-stream", b"data: " + json.dumps(STREAM).encode() + b"\n\ndata: [DONE]\n\n"
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(provider: HangsUp, **more: Any) -> Call:
    base = f"http://127.0.0.1:{provider.port}/v1"
    return Call("openai/m", [{"role": "user", "content": "hi"}], api_base=base, api_key="k", **more)


def test_connections_are_kept_for_less_time_than_servers_keep_theirs() -> None:
    assert KEEP_ALIVE_S < 5.0


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_kept_connection_that_ends_without_a_byte_is_one_more_attempt(upstream: Upstream, then: str) -> None:
    async with HangsUp(then) as provider:
        for _ in range(3):
            assert (await upstream.complete(upstream.outgoing(call(provider)))).body["choices"][0]["message"][
                "content"
            ] == "Hello"
        assert provider.connections >= 2


async def test_the_same_holds_for_streams(upstream: Upstream) -> None:
    async with HangsUp("close") as provider:
        for _ in range(3):
            stream = await upstream.open_stream(upstream.outgoing(call(provider, stream=True)))
            assert [chunk["choices"][0]["delta"]["content"] async for chunk in stream] == ["Hello"]


async def test_a_fresh_connection_that_ends_without_a_byte_is_the_providers_failure(upstream: Upstream) -> None:
    async with HangsUp("close", first="close") as provider:
        with pytest.raises(BrokenFault) as caught:
            await upstream.complete(upstream.outgoing(call(provider)))
        assert caught.value.dispatched
        assert provider.requests == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_kept_connection_that_ends_later_may_have_been_billed_and_is_not_sent_again(
    upstream: Upstream, streamed: bool
) -> None:
    async with HangsUp("late") as provider:
        await upstream.complete(upstream.outgoing(call(provider)))
        with pytest.raises(BrokenFault) as caught:
            if streamed:
                await upstream.open_stream(upstream.outgoing(call(provider, stream=True)))
            else:
                await upstream.complete(upstream.outgoing(call(provider)))
        assert caught.value.dispatched
        assert provider.requests == 2


@pytest.mark.parametrize("lane", ["thin"])
async def test_a_short_body_is_written_without_a_task_and_a_long_one_as_a_whole(upstream: Upstream, lane: str) -> None:
    loop, started = asyncio.get_running_loop(), list[str]()

    def start(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        started.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **more)

    async with HangsUp("answer") as provider:
        await upstream.complete(upstream.outgoing(call(provider)))  # opens the connection
        long = structs.replace(call(provider), messages=[{"role": "user", "content": "long " * 100_000}])
        loop.set_task_factory(start)
        try:
            await upstream.complete(upstream.outgoing(call(provider)))
            assert started == []
            await upstream.complete(upstream.outgoing(long))
        finally:
            loop.set_task_factory(None)
        assert (provider.requests, provider.connections) == (3, 1)


async def test_there_is_no_third_attempt(upstream: Upstream) -> None:
    async with HangsUp("close") as provider:
        await upstream.complete(upstream.outgoing(call(provider)))
        provider.first = "close"
        with pytest.raises(BrokenFault):
            await upstream.complete(upstream.outgoing(call(provider)))
        assert provider.requests == 3
