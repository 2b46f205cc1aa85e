"""The server's protocol over real sockets: heads and bodies bounded in size and time, one answer to each request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api import server as served
from gateway.api.server import STATE_KEY, BoundedHttp, HttpLimits, Shedding
from gateway.errors import GatewayError, Overloaded
from gateway.http import WATCH

LIMIT = 4096
PATIENT = HttpLimits(header_bytes=LIMIT)
HURRIED = HttpLimits(header_bytes=LIMIT, head_s=0.1, body_s=0.1)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what was read; `/stream` in pieces, `/eager` without waiting for the body."""
    if scope["path"] == "/stream":
        pieces = (piece async for piece in _pieces())
        await StreamingResponse(pieces)(scope, receive, send)
        return
    try:
        body = b"" if scope["path"] == "/eager" else await Request(scope, receive).body()
    except ClientDisconnect:
        return
    await PlainTextResponse(f"{scope['path']} {len(scope['headers'])} {len(body)}")(scope, receive, send)


async def _pieces() -> AsyncIterator[bytes]:
    for piece in (b"one ", b"two ", b"three"):
        yield piece


def configured(app: ASGIApp = echo, keep_alive_s: int = 5) -> uvicorn.Config:
    config = uvicorn.Config(
        app, http=BoundedHttp, lifespan="off", log_level="critical", ws="none", timeout_keep_alive=keep_alive_s
    )
    config.load()
    return config


@asynccontextmanager
async def connected(
    limits: HttpLimits = PATIENT, app: ASGIApp = echo, keep_alive_s: int = 5
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config, state = configured(app, keep_alive_s), uvicorn.server.ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttp(config, state, {STATE_KEY: limits}, asyncio.get_running_loop()), "127.0.0.1", 0
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


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: here", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def upgrade(path: str, body: bytes) -> bytes:
    """What JDK's HttpClient sends by default."""
    return post(path, body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")


async def answer(reader: asyncio.StreamReader) -> tuple[int, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length"))
    return int(head.split(" ")[1]), (await reader.readexactly(length)).decode()


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """The status and `error.code` of the last answer on this connection."""
    status, body = await answer(reader)
    assert await reader.read() == b""
    return status, json.loads(body)["error"]["code"]


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
async def test_a_head_beyond_the_limit_is_refused_with_431_in_json(head: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(head)
        assert await refusal(reader) == (431, "headers_too_large")


@pytest.mark.parametrize("piece", [b"x" * 1000, b"h: x\r\n" * 100, b"\r\n" * 500], ids=["header", "headers", "lines"])
async def test_a_head_without_end_is_answered_and_cut_off(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LINGER_S", 0.05)
    async with connected() as (reader, writer):
        writer.write(piece if piece.isspace() else b"GET /x HTTP/1.1\r\nhost: here\r\na: ")
        answered = asyncio.create_task(answer(reader))
        with pytest.raises(ConnectionError):
            while True:
                writer.write(piece)
                await writer.drain()
        assert (await answered)[0] == 431


_BODILESS = "POST /x HTTP/1.1\r\nhost: here\r\n{}content-length: 9\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "request_id"),
    [
        (get("/x", "x-request-id: mine", "a: " + "x" * LIMIT).decode(), 431, "mine"),
        (get("/" + "x" * LIMIT).decode(), 431, "req_own"),
        (get("/x", "X-Request-Id: mine", "content-length: 1", "content-length: 2").decode(), 400, "mine"),
        ("GET /x HTTP/1.1\r\nX-Request-Id: mine\r\n\r\n", 400, "mine"),
        ("GET /x HTTP/1.1\r\nX-Request-Id: a b\r\n\r\n", 400, "req_own"),
        ("\x16\x03\x01 no HTTP", 400, "req_own"),
        (_BODILESS.format("X-Request-Id: mine\r\n"), 408, "mine"),
        (_BODILESS.format(""), 408, "req_own"),
        (get("/1", "X-Request-Id: earlier").decode() + "\x16\x03 no HTTP", 400, "req_own"),
        ("GET /x HTTP/1.1\r\nX-Request-Id: mine\r\na: b\r\n", 408, "mine"),
    ],
)
async def test_a_refusal_before_the_application_has_the_request_s_id(sent: str, status: int, request_id: str) -> None:
    ids = iter(["req_own", "another"])
    limits = HttpLimits(header_bytes=LIMIT, head_s=0.1, body_s=0.1, new_request_id=lambda: next(ids))
    async with connected(limits) as (reader, writer):
        first, *rest = sent.partition("\x16\x03 ")
        writer.write(first.encode())
        if rest[0]:
            assert (await answer(reader))[0] == 200
            writer.write("".join(rest).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    assert head[0].split(" ")[1] == str(status)
    assert [line for line in head if line.startswith("x-request-id")] == [f"x-request-id: {request_id}"]


# -- one request, one answer -------------------------------------------------------------------------------------------

HIDDEN = get("/hidden")


async def test_the_body_behind_an_unknown_upgrade_is_a_body_and_no_request() -> None:
    async with connected() as (reader, writer):
        whole = upgrade("/a", HIDDEN)
        writer.write(whole[: -len(HIDDEN)])
        await asyncio.sleep(0)
        writer.write(HIDDEN)
        assert await answer(reader) == (200, f"/a 3 {len(HIDDEN)}")
        writer.write(get("/b"))
        assert await answer(reader) == (200, "/b 1 0")


class _Wire(asyncio.Transport):
    """A transport in memory: what the protocol wrote, and whether it closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.gone = asyncio.Event()

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.gone.set()

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def exchanged(segments: list[bytes]) -> bytes:
    """Everything that is answered to these TCP segments."""
    loop, wire, state = asyncio.get_running_loop(), _Wire(), uvicorn.server.ServerState()
    protocol = BoundedHttp(configured(), state, {STATE_KEY: PATIENT}, loop)
    protocol.connection_made(wire)
    for segment in segments:
        if not wire.closed:
            protocol.data_received(segment)
        await asyncio.sleep(0)
    for _ in range(40):
        await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError())
    await asyncio.gather(*state.tasks)
    protocol._unset_keepalive_if_required()
    return bytes(wire.written)


chunked = (
    b"POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\nx-tenant-id: t\r\n\r\n"
)
requests = st.sampled_from(
    [
        (upgrade("/a", HIDDEN), f"/a 3 {len(HIDDEN)}"),
        (upgrade("/u", b""), "/u 3 0"),
        (post("/p", HIDDEN), f"/p 2 {len(HIDDEN)}"),
        (get("/w", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), "/w 3 0"),
        (chunked.replace(b"host", b"connection: upgrade\r\nupgrade: h2c\r\nhost"), "/c 3 5"),
        (chunked, "/c 2 5"),
        (get("/g"), "/g 1 0"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, min_size=1, max_size=4), st.data())
def test_however_the_bytes_are_cut_each_request_has_its_own_answer_in_order(
    asked: list[tuple[bytes, str]], data: st.DataObject
) -> None:
    stream = b"".join(request for request, _ in asked)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    segments = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    written = asyncio.run(exchanged(segments))
    assert written.count(b"HTTP/1.1 200 ") == written.count(b"HTTP/1.1 ") == len(asked)
    bodies = [part.rpartition(b"\r\n\r\n")[2].decode() for part in written.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [body for _, body in asked]


POST = b"POST /x HTTP/1.1\r\nhost: h\r\n"
AMBIGUOUS = {
    "two ways to say how long": POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
    "and the other way round": POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n",
    "two lengths": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n",
    "the same length twice": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\n",
    "a list of lengths": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4, 4\r\n\r\n",
    "a signed length": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: +4\r\n\r\n",
    "an endless length": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    "two codings": b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n",
    "an unknown coding": b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: xchunked\r\n\r\n",
    "a coding on the next line": b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding:\r\n chunked\r\n\r\n",
    "a coding before HTTP/1.1": b"POST /x HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
    "a NUL in a name": b"GET /x HTTP/1.1\r\nhost: h\r\na\x00b: c\r\n\r\n",
    "a space before the colon": b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length : 4\r\n\r\n",
    "bare LF": b"POST /x HTTP/1.1\nhost: h\ncontent-length: 4\n\n",
    "a bare CR in a value": b"GET /x HTTP/1.1\r\nhost: h\r\na: b\rc: d\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nhost: h\r\nhost: i\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP/2.0": b"GET /x HTTP/2.0\r\nhost: h\r\n\r\n",
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a bad chunk": b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0x4\r\nabcd\r\n",
    "a chunk with bare LF": b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n4\nabcd\n0\n\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_what_another_server_might_read_differently_has_one_refusal_and_no_second_answer(head: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(head + b"0\r\n\r\n" + get("/hidden"))
        assert await refusal(reader) == (400, "invalid_request")


async def test_connect_is_not_answered_with_a_tunnel() -> None:
    async with connected() as (reader, writer):
        writer.write(b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n" + get("/hidden"))
        assert await refusal(reader) == (405, "method_not_allowed")


async def test_an_absolute_address_is_read_by_its_path() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET http://here/x HTTP/1.1\r\nhost: here\r\n\r\n")
        assert await answer(reader) == (200, "/x 1 0")


async def test_rubbish_behind_a_request_does_not_take_that_requests_answer() -> None:
    async with connected() as (reader, writer):
        writer.write(get("/first") + get("/second") + b"rubbish\r\n\r\n")
        assert await answer(reader) == (200, "/first 1 0")
        assert await answer(reader) == (200, "/second 1 0")
        assert await reader.read() == b""


async def test_a_body_that_breaks_behind_a_waiting_request_takes_nobodys_answer() -> None:
    async with connected() as (reader, writer):
        writer.write(get("/first") + AMBIGUOUS["a bad chunk"])
        assert await answer(reader) == (200, "/first 1 0")
        assert await reader.read() == b""


# -- HTTP/1.0 ----------------------------------------------------------------------------------------------------------


async def test_http_1_0_is_answered_without_chunks_and_the_connection_closes() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        assert body == b"one two three"


async def test_http_1_0_keeps_a_length_that_is_known() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST /x HTTP/1.0\r\ncontent-length: 2\r\n\r\nab")
        assert await answer(reader) == (200, "/x 1 2")
        assert await reader.read() == b""


# -- no connection is lost ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_to_test(
    limits: HttpLimits = PATIENT,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[BoundedHttp]]]:
    """A connection, and the protocol of its server once it is accepted."""
    config, state, made = configured(), uvicorn.server.ServerState(), []

    def protocol() -> BoundedHttp:
        made.append(BoundedHttp(config, state, {STATE_KEY: limits}, asyncio.get_running_loop()))
        return made[-1]

    async with await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer, made


async def test_a_request_that_a_busy_loop_has_not_read_outlives_the_end_of_its_idle_connection() -> None:
    """The timer of an idle connection may run before a read of what has long arrived."""
    async with open_to_test() as (reader, writer, made):
        writer.write(get("/first"))
        assert await answer(reader) == (200, "/first 1 0")
        writer.write(get("/second"))  # is sent at once, and read by the server when this test next waits
        made[0].timeout_keep_alive_handler()
        assert await answer(reader) == (200, "/second 1 0")
        made[0].timeout_keep_alive_handler()
        assert await reader.read() == b""
        writer.close()


async def test_the_end_of_an_idle_connection_may_find_its_socket_closed() -> None:
    async with open_to_test() as (reader, writer, made):
        writer.write(get("/first"))
        assert await answer(reader) == (200, "/first 1 0")
        made[0].transport.get_extra_info("socket")._sock.close()
        made[0].timeout_keep_alive_handler()
        assert made[0].transport.is_closing()
        writer.close()


async def test_bytes_that_a_busy_loop_has_not_read_are_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "UNREAD_S", 0.0)
    async with open_to_test() as (reader, writer, made):
        whole = post("/x", b"abcd")
        writer.write(whole[:-2])
        while not made or made[0]._phase != "body":  # noqa: ASYNC110 - one loop
            await asyncio.sleep(0)
        writer.write(whole[-2:])
        made[0]._late()
        assert await answer(reader) == (200, "/x 2 4")
        writer.close()


async def test_a_client_that_sends_without_end_is_late_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "UNREAD_S", 60.0)
    monkeypatch.setattr(BoundedHttp, "_unread", lambda self: True)
    async with open_to_test() as (reader, writer, made):
        writer.write(post("/x", b"abcd")[:-2])
        while not made or made[0]._phase != "body":  # noqa: ASYNC110 - one loop
            await asyncio.sleep(0)
        for _ in range(2):
            made[0]._late()
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_before_the_end_of_its_body_is_not_lost_with_the_connection(version: str) -> None:
    """Closing with bytes unread would reset the connection, and the client would lose the answer that was sent."""
    body = b"x" * 2_000_000
    head = f"POST /eager HTTP/{version}\r\nhost: h\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    async with connected() as (reader, writer):
        writer.write(head.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(body)
        await writer.drain()
        assert await reader.read() == b"/eager 3 0"


# -- overload ----------------------------------------------------------------------------------------------------------


def shedding(method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> GatewayError | None:
    if url.startswith(b"/full"):
        return Overloaded("too many requests at once", headers={"Retry-After": "1"})
    return None


SHEDDING = HttpLimits(header_bytes=LIMIT, shedding=Shedding(shedding))


async def test_what_is_shed_is_answered_before_its_body_and_the_connection_goes_on() -> None:
    async with connected(SHEDDING) as (reader, writer):
        for _ in range(3):
            whole = post("/full", HIDDEN)
            writer.write(whole[: -len(HIDDEN)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 503 ")
            assert b"retry-after: 1\r\n" in head
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["error"]["code"] == "overloaded"
            writer.write(HIDDEN)
            writer.write(get("/free"))
            assert await answer(reader) == (200, "/free 1 0")


async def test_a_whole_request_is_shed_without_a_parser_and_its_idle_connection_is_closed_later() -> None:
    async with connected(SHEDDING, keep_alive_s=1) as (reader, writer):
        for _ in range(3):
            writer.write(post("/full", HIDDEN, "authorization: Bearer it"))
            assert (await answer(reader))[0] == 503
        writer.write(post("/free", b"ab") + get("/free"))
        assert await answer(reader) == (200, "/free 2 2")
        assert await answer(reader) == (200, "/free 1 0")
        writer.write(post("/full", HIDDEN))
        assert (await answer(reader))[0] == 503
        assert await reader.read() == b""


async def test_an_idle_connection_lasts_for_its_time_since_the_last_shed_request() -> None:
    async with open_to_test(SHEDDING) as (reader, writer, made):
        for _ in range(2):
            writer.write(post("/full", HIDDEN))
            await answer(reader)
        made[0].timeout_keep_alive_handler()  # the timer of the first one
        writer.write(post("/full", HIDDEN))
        assert (await answer(reader))[0] == 503
        writer.close()


async def test_what_comes_behind_a_running_request_is_not_answered_before_it() -> None:
    async with connected(SHEDDING) as (reader, writer):
        writer.write(get("/free") + post("/full", b"ab"))
        assert await answer(reader) == (200, "/free 1 0")
        assert await answer(reader) == (200, "/full 2 2")


async def test_a_body_of_a_shed_request_that_does_not_come_ends_the_connection_without_a_second_answer() -> None:
    limits = HttpLimits(header_bytes=LIMIT, body_s=0.1, shedding=Shedding(shedding))
    async with connected(limits) as (reader, writer):
        writer.write(post("/full", HIDDEN)[:-5])
        assert (await answer(reader))[0] == 503
        assert await reader.read() == b""


# -- slow clients ------------------------------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed() -> None:
    async with connected(HURRIED) as (reader, _):
        assert await reader.read() == b""


async def drip(writer: asyncio.StreamWriter, piece: bytes) -> None:
    with pytest.raises(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (b"", b"\r\n"),
        (b"GET /x HTTP/1.1\r\nhost: h\r\na: ", b"x"),
        (b"GET /x HTTP/1.1\r\nhost: h\r\n", b"a: b\r\n"),
        (b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n", b"x"),
        (b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (upgrade("/x", b"x" * 1000)[:-1000], b"x"),
    ],
    ids=["blank lines", "a header", "headers", "a body", "chunks", "a body behind an upgrade"],
)
async def test_who_trickles_is_told_408_and_closed(begun: bytes, piece: bytes) -> None:
    async with connected(HURRIED) as (reader, writer):
        writer.write(begun)
        dripping = asyncio.create_task(drip(writer, piece))
        assert await refusal(reader) == (408, "request_timeout")
        writer.close()
        dripping.cancel()


async def test_a_body_that_does_not_come_is_told_408_even_where_nobody_waits_for_it() -> None:
    async with connected(HURRIED) as (reader, writer):
        writer.write(b"POST /eager HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n")
        assert await answer(reader) == (200, "/eager 2 0")
        assert await reader.read() == b""


async def test_requests_in_a_row_each_have_their_own_time() -> None:
    async with connected(HttpLimits(head_s=0.3, body_s=0.3)) as (reader, writer):
        for number in range(6):
            request = post(f"/{number}", b"ab")
            for part in (request[:10], request[10:-1], request[-1:]):
                writer.write(part)
                await asyncio.sleep(0.04)
            assert await answer(reader) == (200, f"/{number} 2 2")


async def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "WRITE_STALL_S", 0.05)

    class Stalled(_Wire):
        unsent = 100_000

        def get_write_buffer_size(self) -> int:
            return self.unsent

    wire, loop = Stalled(), asyncio.get_running_loop()
    protocol = BoundedHttp(configured(), uvicorn.server.ServerState(), {STATE_KEY: PATIENT}, loop)
    protocol.connection_made(wire)
    protocol.pause_writing()
    wire.unsent = 50_000  # slow, and still there
    loop.call_later(0.07, lambda: seen.append(wire.closed))
    seen: list[bool] = []
    async with asyncio.timeout(5):
        await wire.gone.wait()
    assert seen == [False]
    protocol.connection_lost(ConnectionResetError())


@pytest.mark.parametrize("size", [4, 300_000])
async def test_a_watch_is_told_once_that_the_client_left_whatever_the_size_of_its_body(size: int) -> None:
    reading, told = asyncio.Event(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        left = asyncio.Event()

        def on_leave() -> None:
            told.append(scope["path"])
            left.set()

        scope["extensions"][WATCH](on_leave)
        reading.set()
        await asyncio.wait_for(left.wait(), 10)

    async with connected(app=app) as (_, writer):
        writer.write(post("/watched", b"x" * size))
        await asyncio.wait_for(reading.wait(), 10)
        writer.close()
    assert told == ["/watched"]


@pytest.mark.parametrize("waiting", [1, 3])
async def test_the_running_request_is_told_when_a_client_leaves_that_sent_more_requests(waiting: int) -> None:
    """While requests wait nothing is read, so that the connection's end must be looked for."""
    started: list[str] = []
    told: list[str] = []
    reading, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.append(scope["path"])

        def on_leave() -> None:
            told.append(scope["path"])
            left.set()

        scope["extensions"][WATCH](on_leave)
        reading.set()
        await asyncio.wait_for(left.wait(), 10)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    async with connected(app=app) as (_, writer):
        writer.write(post("/running", b"x"))
        await asyncio.wait_for(reading.wait(), 10)
        writer.write(b"".join(post(f"/waiting{number}", b"y" * 30_000) for number in range(waiting)))
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), 10)
    assert (started, told) == (["/running"], ["/running"])


async def test_a_watch_that_has_ended_is_told_nothing() -> None:
    told: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        scope["extensions"][WATCH](lambda: told.append(scope["path"]))()
        ended.set()
        assert (await receive())["type"] == "http.disconnect"

    async with connected(app=app) as (_, writer):
        writer.write(post("/watched", b"body"))
        await asyncio.wait_for(ended.wait(), 10)
        writer.close()
    assert told == []
