"""Our own HTTP to the providers: one pool of connections, one request per call, bounded answers.

The thin lane's counterpart of `gateway.providers.exchange.BoundedTransport`: it writes the same `Exchange`, in the same
words, so that faults, usage and chunks are read from a call no matter who sent it. No cookies, no proxies out of the
environment, no redirects, no retries; nobody asks for compressed answers, but they are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import httpx
from yarl import URL

from gateway.providers.decoding import Decoder, UnpackingError, decoder_for
from gateway.providers.exchange import MAX_ANSWER_BYTES, AnswerTooLarge, Exchange, kept, unpacked

KEEP_ALIVE_S = 15.0
DNS_CACHE_S = 60


@dataclass(frozen=True, slots=True)
class ThinRequest:
    """What goes over the wire: `body` is JSON; `headers` are all headers but the transport's own."""

    url: URL
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def new_session(max_connections: int, per_host: int, connect_timeout_s: float) -> aiohttp.ClientSession:
    """A session that adds nothing of its own to a request; make it inside the loop that uses it."""
    connector = aiohttp.TCPConnector(
        limit=max_connections,
        limit_per_host=per_host,
        keepalive_timeout=KEEP_ALIVE_S,
        ttl_dns_cache=DNS_CACHE_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
    )


async def send(
    session: aiohttp.ClientSession, request: ThinRequest, exchange: Exchange, max_bytes: int = MAX_ANSWER_BYTES
) -> PoolAnswer:
    """Send, and wait for the answer's head. What happened is in `exchange`, also when this raises httpx.HTTPError."""
    exchange.attempts += 1
    exchange.path = request.url.path
    exchange.reached = True
    try:
        response = await session.post(request.url, data=request.body, headers=request.headers, allow_redirects=False)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
        exchange.failure, exchange.reached = httpx.ConnectError, False
        raise httpx.ConnectError("the provider could not be reached") from None
    except (aiohttp.ClientError, OSError):
        exchange.failure = httpx.ReadError
        raise httpx.ReadError("the connection broke off") from None
    exchange.status = response.status
    exchange.headers = {name.lower(): value for name, value in response.headers.items()}
    try:
        decoder = decoder_for(exchange.headers.get("content-encoding", ""))
    except UnpackingError as error:
        exchange.failure = AnswerTooLarge
        response.close()
        raise AnswerTooLarge(str(error)) from None
    answer = PoolAnswer(response, exchange, max_bytes, decoder)
    exchange.answer = answer
    return answer


class PoolAnswer:
    """An answer's body, piece by piece as it comes; the exchange keeps a copy (of a stream its tail)."""

    def __init__(
        self, response: aiohttp.ClientResponse, exchange: Exchange, max_bytes: int, decoder: Decoder | None
    ) -> None:
        self.begun = False
        self._response = response
        self._exchange = exchange
        self._left = max_bytes
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
        """The whole of it, into the exchange."""
        async for _ in self:
            pass

    def close(self) -> None:
        """Let go of the connection; one with an answer that was not read to its end is closed, which stops it."""
        if not self._response.content.at_eof():
            self._response.close()
        else:
            self._response.release()

    async def aclose(self) -> None:
        self.close()
        await asyncio.sleep(0)  # the transport closes in the loop's next turn
