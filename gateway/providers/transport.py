"""HTTP of the direct client: pooled connections, one request per call, bounded responses.

The counterpart of `gateway.providers.exchange.BoundedTransport`: it records the same `Exchange`, so faults, usage and
chunks are read alike for both clients. No cookies, no proxies from the environment, no redirects, no retries;
compressed responses are not requested, but accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.hdrs import CONTENT_LENGTH
from aiohttp.tracing import Trace
from yarl import URL

from gateway.providers.decoding import Decoder, UnpackingError, decoder_for
from gateway.providers.exchange import (
    EXCHANGE,
    MAX_ANSWER_BYTES,
    AnswerTooLarge,
    EncodingUnread,
    Exchange,
    kept,
    lost_unanswered,
    unpacked,
)

KEEP_ALIVE_S = 4.0
"""Less than the five seconds after which most servers close an idle connection (uvicorn, Node)."""
DNS_CACHE_S = 60
AT_ONCE_BYTES = 64 * 1024
"""Length of a body that the transport takes without a pause; asyncio's transports ask for one beyond it."""


@dataclass(frozen=True, slots=True)
class DirectRequest:
    """A request to send: JSON `body`, and all headers except the transport's own."""

    url: URL
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class _NotingConnector(aiohttp.TCPConnector):
    """Notes in a call's exchange that a new connection was opened for it; `send` assumes a kept one.

    aiohttp's tracing says so too, but tells of every step of every request, for a tenth of its time.
    """

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        exchange = EXCHANGE.get()
        if exchange is not None:
            exchange.reused = False
        return await super()._create_connection(req, traces, timeout)


class _Head:
    """Stands for a connection's transport while the head of a request is written, to be sent with the body."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = b""

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self.written += data


class _Request(aiohttp.ClientRequest):
    """A request whose short body is written with its head.

    aiohttp wraps it and, on Python 3.11, starts a task.
    """

    _short = b""

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        """Keep a short body as it is."""
        if isinstance(body, bytes) and len(body) <= AT_ONCE_BYTES and not self.chunked and not self.compress:
            self._short = body
            self.headers[CONTENT_LENGTH] = str(len(body))
        else:
            super().update_body_from_data(body, _stacklevel + 1)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write the head and a short body."""
        protocol = conn.protocol
        assert protocol is not None
        transport = protocol.transport
        if self._short and (transport is None or protocol.writing_paused or self._continue is not None):
            super().update_body_from_data(self._short)
            self._short = b""
        if not self._short or transport is None:
            return await super().send(conn)
        head = _Head(transport)
        protocol.transport = head  # type: ignore[assignment]
        try:
            response = await super().send(conn)  # without a body it waits for nothing
        finally:
            protocol.transport = transport
        transport.write(head.written + self._short)
        return response


@dataclass(frozen=True, slots=True)
class Connections:
    """Two connection pools: `kept` ones are reused, `fresh` ones serve one call each.

    A call whose kept connection turns out to be closed is sent again over a fresh one.
    """

    kept: aiohttp.ClientSession
    fresh: aiohttp.ClientSession

    @classmethod
    def open(cls, max_connections: int, per_host: int, connect_timeout_s: float) -> Connections:
        """Create both pools inside the event loop that uses them."""
        kept = _NotingConnector(
            limit=max_connections, limit_per_host=per_host, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_CACHE_S
        )
        fresh = aiohttp.TCPConnector(
            limit=max_connections, limit_per_host=per_host, force_close=True, ttl_dns_cache=DNS_CACHE_S
        )
        return cls(_session(kept, connect_timeout_s), _session(fresh, connect_timeout_s))

    async def close(self) -> None:
        """Close all connections."""
        await self.kept.close()
        await self.fresh.close()


def _session(connector: aiohttp.TCPConnector, connect_timeout_s: float) -> aiohttp.ClientSession:
    """A session that adds nothing to a request."""
    return aiohttp.ClientSession(
        connector=connector,
        request_class=_Request,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
    )


async def send(connections: Connections, request: DirectRequest, exchange: Exchange) -> PoolAnswer:
    """Send and wait for the response head, recording in `exchange`. Raises httpx.HTTPError."""
    exchange.attempts += 1
    exchange.path, exchange.host = request.url.path, request.url.authority.rpartition("@")[2].encode("ascii", "replace")
    exchange.reached = exchange.reused = True
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    mark = EXCHANGE.set(exchange)
    try:
        try:
            response = await _posted(connections.kept, request)
        except (aiohttp.ClientError, OSError) as error:
            if not lost_unanswered(error, exchange, loop.time() - started_s):
                raise
            exchange.reused = False
            response = await _posted(connections.fresh, request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
        exchange.failure, exchange.reached = httpx.ConnectError, False
        raise httpx.ConnectError("the provider could not be reached") from None
    except (aiohttp.ClientError, OSError):
        exchange.failure = httpx.ReadError
        raise httpx.ReadError("the connection broke off") from None
    finally:
        EXCHANGE.reset(mark)
    exchange.status = response.status
    exchange.headers = {name.lower(): value for name, value in response.headers.items()}
    try:
        decoder = decoder_for(exchange.headers.get("content-encoding", ""))
    except UnpackingError as error:
        exchange.failure = EncodingUnread
        response.close()
        raise EncodingUnread(str(error)) from None
    answer = PoolAnswer(response, exchange, decoder)
    exchange.answer = answer
    return answer


async def _posted(session: aiohttp.ClientSession, request: DirectRequest) -> aiohttp.ClientResponse:
    return await session.post(request.url, data=request.body, headers=request.headers, allow_redirects=False)


class PoolAnswer:
    """A response body in pieces; the exchange keeps a copy (only the tail of a stream)."""

    def __init__(self, response: aiohttp.ClientResponse, exchange: Exchange, decoder: Decoder | None) -> None:
        self.begun = False
        self._response = response
        self._exchange = exchange
        self._left = MAX_ANSWER_BYTES
        self._decoder = decoder

    def __aiter__(self) -> PoolAnswer:
        self.begun = True
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, OSError):
            exchange.failure = httpx.ReadError
            raise httpx.ReadError("the connection broke off") from None
        if not piece:
            exchange.whole = exchange.failure is None
            raise StopAsyncIteration
        try:
            plain = unpacked(self._decoder, piece, self._left)
        except AnswerTooLarge:
            exchange.failure = AnswerTooLarge
            raise
        self._left -= len(plain)
        kept(exchange.body, plain, exchange.tail_only)
        return plain

    async def read(self) -> None:
        """Read the complete body into the exchange."""
        async for _ in self:
            pass
        self._exchange.answer = None  # nothing is left to release, and no cycle of references behind

    def close(self) -> None:
        """Release the connection; close it if the body was not read completely."""
        if not self._response.content.at_eof():
            self._response.close()
        else:
            self._response.release()

    async def aclose(self) -> None:
        """Like `close`, and let the transport close."""
        self.close()
        await asyncio.sleep(0)  # the transport closes in the loop's next turn
