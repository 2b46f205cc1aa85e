"""The HTTP transport under LiteLLM's clients: one request per call, bounded answers, and the truth of what happened.

LiteLLM blurs what a bill depends on: it retries behind one's back, reports missing usage as zero and a cut stream as
`stop`, and turns every failure into one of its own. So each call carries an `Exchange` (through a context variable,
because no argument survives LiteLLM's layers), and the transport writes into it what really went over the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import aiohttp
import httpx

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest answer, whole or streamed, that is read at all."""

USER_AGENT = "seqroute"

_SDK_HEADERS = ("x-stainless-",)


@dataclass(slots=True)
class Exchange:
    """What happened on the wire for one call. `reached` turns true once the request may be in the provider's hands."""

    attempts: int = 0
    reached: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False
    failure: type[BaseException] | None = None
    answer: httpx.AsyncByteStream | None = None

    async def close(self) -> None:
        """Let go of the connection; a half-read answer closes it."""
        if self.answer is not None:
            await self.answer.aclose()


EXCHANGE: ContextVar[Exchange | None] = ContextVar("seqroute_exchange", default=None)


class AnswerTooLarge(httpx.ReadError):
    pass


class BoundedTransport(httpx.AsyncBaseTransport):
    """Sends through `inner` and records into the call's Exchange; a second request within one call is refused."""

    def __init__(self, inner: httpx.AsyncBaseTransport, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._inner = inner
        self._max_answer_bytes = max_answer_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = EXCHANGE.get() or Exchange()
        exchange.attempts += 1
        if exchange.attempts > 1:
            raise httpx.UnsupportedProtocol("one call may send one request", request=request)
        exchange.reached = True
        try:
            response = await self._inner.handle_async_request(_outgoing(request))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            exchange.failure = type(error)
            exchange.reached = not _never_sent(error)
            raise
        exchange.status = response.status_code
        exchange.headers = {name.lower(): value for name, value in response.headers.items()}
        inner_stream = response.stream
        assert isinstance(inner_stream, httpx.AsyncByteStream)
        exchange.answer = inner_stream
        encoding = exchange.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            exchange.failure = AnswerTooLarge
            await inner_stream.aclose()
            raise AnswerTooLarge("expected an uncompressed answer", request=request)
        exchange.answer = _RecordedStream(inner_stream, exchange, self._max_answer_bytes)
        return httpx.Response(
            status_code=response.status_code, headers=response.headers, stream=exchange.answer, request=request
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _RecordedStream(httpx.AsyncByteStream):
    """Passes the answer on, keeps a copy of an unstreamed one, and stops at the limit."""

    def __init__(self, inner: httpx.AsyncByteStream, exchange: Exchange, max_bytes: int) -> None:
        self._inner = inner
        self._exchange = exchange
        self._max_bytes = max_bytes
        self._streamed = "text/event-stream" in exchange.headers.get("content-type", "")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        try:
            async for piece in self._inner:
                received += len(piece)
                if received > self._max_bytes:
                    raise AnswerTooLarge(f"expected an answer of at most {self._max_bytes} bytes")
                if not self._streamed:
                    self._exchange.body += piece
                yield piece
        except httpx.HTTPError as error:
            self._exchange.failure = type(error)
            raise
        self._exchange.whole = True

    async def aclose(self) -> None:
        await self._inner.aclose()


def _outgoing(request: httpx.Request) -> httpx.Request:
    """A copy with our headers only: the SDK still looks for its own in the original."""
    headers = [(name, value) for name, value in request.headers.items() if not name.startswith(_SDK_HEADERS)]
    outgoing = httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    if isinstance(request.stream, httpx.ByteStream):
        outgoing.read()
    outgoing.headers["user-agent"] = USER_AGENT
    # A compressed answer could unpack to a thousand times its size in one step.
    outgoing.headers["accept-encoding"] = "identity"
    return outgoing


def _never_sent(error: Exception) -> bool:
    """True when the connection itself failed. httpx's ConnectError is not enough: aiohttp's mapping uses it for a
    reset in mid-request too."""
    cause = error.__cause__
    return isinstance(
        cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL
    ) or isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol)
