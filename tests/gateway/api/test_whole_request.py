"""A request that is read without a parser is one that the parser reads in the same way."""

from __future__ import annotations

import asyncio

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError

from gateway.api.whole_request import whole_request

NAMES = (b"authorization", b"x-api-key")
LINES = (
    "host: here", "Host: there", "content-length: 2", "Content-Length: 3", "content-length : 2", "content-length: +2",
    "authorization: Bearer A", "Authorization:Bearer b ", "x-api-key: k", "transfer-encoding: chunked",
    "Transfer-Encoding : chunked", "upgrade: h2c", "connection: close", "Connection: Keep-Alive",
    "connection: keep-alive, close", "connection: keep-alive ", "proxy-connection: keep-alive",
    "expect: 100-continue", " folded: x",
    "x: a\rb", "x: a\nb", "x: \0", "user-agent: OpenAI/Python 3.0", "x-session-id: s-1", "",
)  # fmt: skip


class _Parsed:
    """What httptools reads."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.headers, self.completed = b"", b"", list[tuple[bytes, bytes]](), 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.completed += 1


def request(*lines: str, body: bytes = b"{}", first: str = "POST /v1/chat/completions HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1") + body


def test_an_ordinary_request_is_read_with_the_headers_asked_for() -> None:
    found = whole_request(request("Host: here", "AUTHORIZATION: Bearer A b", "Content-Length: 2", "x: 1"), NAMES, 4096)
    assert found is not None
    assert (found.url, found.headers) == (b"/v1/chat/completions", [(b"authorization", b"Bearer A b")])


async def test_what_the_openai_sdk_sends_is_ordinary() -> None:
    """The bytes of the SDK's own HTTP client, which names `Connection: keep-alive`."""
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        received.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-a", max_retries=0) as client:
        with pytest.raises(BadRequestError):
            await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hi"}])
    found = whole_request(received[0], NAMES, 4096)
    assert found is not None
    assert (found.url, found.headers) == (b"/v1/chat/completions", [(b"authorization", b"Bearer sk-a")])


@pytest.mark.parametrize(
    "data",
    [
        request("host: here", "content-length: 2", body=b"{}POST / HTTP/1.1\r\n"),
        request("host: here", "content-length: 3"),
        request("host: here", "content-length: 2", "content-length: 2"),
        request("content-length: 2"),
        request("host: here", "host: here", "content-length: 2"),
        request("host: here", "content-length: 2", "transfer-encoding: chunked"),
        request("host: here", "content-length: 2", "connection: close"),
        request("host: here", "content-length: 2", "connection: keep-alive, upgrade"),
        request("host: here", "content-length: 2", "connection: keep-alive", "connection: close"),
        request("host: here", "content-length: 2", "expect: 100-continue"),
        request("host: here", "content-length: 2", "x: a\nb"),
        request("host: here", "content-length: 2", " folded"),
        request("host: here", "content-length: 2", first="POST /v1 HTTP/1.0"),
        request("host: here", "content-length: 2", first="POST /a b HTTP/1.1"),
        request("host: here", "content-length: 2", first="GET /v1/models HTTP/1.1"),
        request("host: here", "content-length: 2", "x: " + "a" * 4096),
        request("host: here", "content-length: 00000002"),
        b"",
    ],
)
def test_all_others_are_left_to_the_parser(data: bytes) -> None:
    assert whole_request(data, NAMES, 4096) is None


@given(
    st.lists(st.sampled_from(LINES), max_size=7).map(lambda lines: ["host: here", "content-length: 2", *lines]),
    st.sampled_from([b"{}", b"{} ", b"{}POST", b"0\r\n\r\n"]),
    st.sampled_from(["POST /v1/x HTTP/1.1", "POST /v1/x?a=b HTTP/1.1", "POST /%zz HTTP/1.1", "POST /x  HTTP/1.1"]),
    st.booleans(),
)
def test_what_is_read_is_exactly_one_request_for_the_parser_too(
    lines: list[str], body: bytes, first: str, reverse: bool
) -> None:
    data = request(*(reversed(lines) if reverse else lines), body=body, first=first)
    found = whole_request(data, NAMES, 4096)
    if found is None:
        return
    parsed = _Parsed(data)
    assert (parsed.completed, parsed.body, parsed.url) == (1, b"{}", found.url)
    assert parsed.parser.should_keep_alive()
    last = {name: value for name, value in parsed.headers if name in NAMES}
    assert dict(found.headers) == {name: value.strip() for name, value in last.items()}
