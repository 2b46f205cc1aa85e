"""What only raw bytes can ask: upgrades, HTTP/1.0, framing; through the whole gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

from tests.harness.gateway import Served, config, serving
from tests.harness.upstream import FaultUpstream

BODY = json.dumps({"model": "small", "messages": [{"role": "user", "content": "x"}]}).encode()


async def exchanged(gateway: Served, *segments: bytes) -> bytes:
    """Everything that is answered until the server closes; each segment is a packet of its own."""
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for segment in segments:
        writer.write(segment)
        await writer.drain()
        await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        written = await reader.read()
    writer.close()
    return written


def head(gateway: Served, length: int, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join(
        [f"POST /v1/chat/completions HTTP/{version}", "Host: here", f"Authorization: Bearer {gateway.master_key}",
         "Content-Type: application/json", f"Content-Length: {length}", *lines, "", ""]
    ).encode()  # fmt: skip


async def test_an_unknown_upgrade_is_answered_over_http_1_1_and_its_body_is_a_body(
    tmp_path: Path, sqlite_url: str
) -> None:
    asks = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    async with (
        FaultUpstream() as provider,
        serving(config(tmp_path, provider.url, database_url=sqlite_url)) as gateway,
    ):
        answered = await exchanged(gateway, head(gateway, len(BODY), *asks, "Connection: close") + BODY)
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b'"choices"' in answered
        hidden = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
        twice = await exchanged(gateway, head(gateway, len(hidden), *asks, "Connection: close"), hidden)
        assert twice.startswith(b"HTTP/1.1 400 ")
        assert twice.count(b"HTTP/1.1 ") == 1


async def test_a_stream_for_http_1_0_has_no_chunks(tmp_path: Path, sqlite_url: str) -> None:
    streamed = json.dumps(json.loads(BODY) | {"stream": True}).encode()
    async with (
        FaultUpstream() as provider,
        serving(config(tmp_path, provider.url, database_url=sqlite_url)) as gateway,
    ):
        address = urlsplit(gateway.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        more = ("Connection: keep-alive", "Expect: 100-continue")
        writer.write(head(gateway, len(streamed), *more, version="1.0") + streamed)
        async with asyncio.timeout(20):
            first, _, rest = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert first.startswith(b"HTTP/1.1 200 ")  # it knows no 100
        assert b"transfer-encoding" not in first.lower()
        assert rest.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")


async def test_a_body_is_asked_for_when_its_key_is_good(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        FaultUpstream() as provider,
        serving(config(tmp_path, provider.url, database_url=sqlite_url)) as gateway,
    ):
        asks = head(gateway, len(BODY), "Expect: 100-continue", "Connection: close")
        answered = await exchanged(gateway, asks, BODY)
        assert answered.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
        stranger = asks.replace(gateway.master_key.encode(), b"sk-nobody")
        assert (await exchanged(gateway, stranger)).startswith(b"HTTP/1.1 401 ")


async def test_a_chunked_body_is_read_and_a_head_request_has_no_body(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        FaultUpstream() as provider,
        serving(config(tmp_path, provider.url, database_url=sqlite_url)) as gateway,
    ):
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:])]
        asks = head(gateway, 0, "Transfer-Encoding: chunked", "Connection: close").replace(
            b"Content-Length: 0\r\n", b""
        )
        answered = await exchanged(gateway, asks, *pieces, b"0\r\n\r\n")
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert b'"choices"' in answered
        peek = head(gateway, 0, "Connection: close").replace(b"POST /v1/chat/completions", b"HEAD /v1/models")
        found, _, body = (await exchanged(gateway, peek)).partition(b"\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 ")
        assert body == b""
