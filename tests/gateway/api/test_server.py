"""The server's protocol over real sockets: what a request's head may weigh, and that a connection goes on after one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.api.server import BoundedHttp

LIMIT = 4096


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{scope['path']} {len(scope['headers'])} {len(body)}")(scope, receive, send)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(
        echo, http=BoundedHttp, h11_max_incomplete_event_size=LIMIT, lifespan="off", log_level="critical", ws="none"
    )
    config.load()
    state = uvicorn.server.ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttp(config, state, {}, asyncio.get_running_loop()), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await asyncio.gather(*state.tasks)


def get(path: str = "/x", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: here", *headers, "", ""]).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length"))
    return int(head.split(" ")[1]), (await reader.readexactly(length)).decode()


async def test_a_connection_serves_one_request_after_another() -> None:
    async with connected() as (reader, writer):
        for number in range(5):
            writer.write(get(f"/{number}", "a: " + "x" * (LIMIT - 200)))
            assert await answer(reader) == (200, f"/{number} 2 0")


async def test_several_requests_in_one_packet_are_weighed_one_by_one() -> None:
    async with connected() as (reader, writer):
        writer.write(get("/1", "a: " + "x" * 3000) + get("/2", "a: " + "x" * 3000))
        assert await answer(reader) == (200, "/1 2 0")
        assert await answer(reader) == (200, "/2 2 0")


async def test_a_body_weighs_nothing() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: here\r\ncontent-length: 50000\r\n\r\n")
        for _ in range(50):
            writer.write(b"b" * 1000)
        assert await answer(reader) == (200, "/x 2 50000")


@pytest.mark.parametrize(
    "head",
    [
        get("/x", "a: " + "x" * LIMIT),
        get("/x", *(f"h{number}: x" for number in range(600))),
        get("/" + "x" * LIMIT),
    ],
    ids=["one large header", "many small headers", "a long address"],
)
async def test_a_head_beyond_the_limit_is_refused(head: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(head)
        assert (await answer(reader))[0] == 400
        assert await reader.read() == b""


@pytest.mark.parametrize("piece", [b"x" * 1000, b"h: x\r\n" * 100], ids=["one header", "many headers"])
async def test_a_head_without_end_is_cut_off_soon(piece: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /x HTTP/1.1\r\nhost: here\r\na: ")
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 2**26:
                writer.write(piece)
                sent += len(piece)
                await writer.drain()
                if reader.at_eof() or b"400" in reader._buffer:  # type: ignore[attr-defined]
                    raise ConnectionResetError
        assert sent < 2**22


@pytest.mark.parametrize(
    "head",
    [
        b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
        b"GET /x HTTP/1.1\r\nhost: h\r\na\x00b: c\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost : h\r\n\r\n",
    ],
    ids=["two ways to say how long", "two lengths", "a NUL in a name", "a space before the colon"],
)
async def test_what_another_server_might_read_differently_is_refused(head: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(head)
        assert (await answer(reader))[0] == 400
