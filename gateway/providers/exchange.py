"""The record of a call's HTTP exchange, and the transport of LiteLLM's clients.

LiteLLM hides what a bill depends on: it retries silently, reports missing usage as zero and a cut stream as `stop`, and
replaces every failure by one of its own. So each call has an `Exchange`, passed in a context variable because LiteLLM's
layers pass no argument through. The transport records one request per call and limits the size of its response.
`gateway.providers.transport` records the same for calls that do not go through LiteLLM's clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextvars import ContextVar
from typing import Literal, Protocol

import aiohttp
import httpx
import orjson
from msgspec import Struct, field

from gateway.clock import NewId, time_ordered_ids
from gateway.dialects.documents import form_of
from gateway.dialects.event_lines import EventLines, begins_events
from gateway.dialects.native_forms import (
    NativeDialect,
    as_stream,
    as_whole,
    begun_payload,
    native_dialect,
    payloads_of,
    speaks_openai,
)
from gateway.dialects.raw_answer import gemini_finished
from gateway.dialects.wire_usage import WireUsage, with_plain_usage
from gateway.providers.attachments import first_lost
from gateway.providers.decoding import Decoder, UnpackingError, decoder_for

_log = logging.getLogger("seqroute.providers")

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest response, streamed or not, that is read."""

KEPT_TAIL_BYTES = 32 * 1024

STALE_S = 0.3
"""Within a round trip to the other side of the world a server says that it had closed a connection."""
USER_AGENT = "seqroute"

_SDK_HEADERS = ("x-stainless-", "openai-organization", "openai-project")


class AnswerBody(Protocol):
    """A response body; iterating raises httpx.HTTPError when the connection breaks."""

    begun: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Release the connection."""


class Exchange(Struct):
    """The HTTP exchange of one call. `reached`: the provider may have received the request.

    `organization` is the operator's; LiteLLM and the SDK would read one from the environment.
    """

    organization: str | None = None
    streaming: bool = False
    """A stream was requested: only its tail is kept; other responses are kept completely."""
    new_id: NewId = time_ordered_ids(time.time)
    expected_host: bytes = b""
    """The deployment's host and port, if configured."""
    lookups: bool = False
    """The provider's code may send look-ups before the call."""
    thread_timeout_s: float = 600.0
    """Longest wait of a thread for the provider's next byte."""
    one_choice: bool = False
    """One answer was asked for: whatever its number is, it is the first."""
    attached: Mapping[str, bytes] = field(default_factory=dict)
    """Pictures, files and sounds of the messages by their place: what LiteLLM's request must contain."""
    lost: str | None = None
    """The place of one that it does not contain; nothing was sent."""
    attempts: int = 0
    path: str = ""
    host: bytes = b""
    reused: bool = False
    """The request was sent on a connection that had served an earlier call."""
    reached: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    """A complete response, or the last KEPT_TAIL_BYTES of a stream."""
    whole: bool = False
    failure: type[BaseException] | None = None
    answer: AnswerBody | None = None
    document: bool = False
    """A stream was requested in a provider's own dialect, and something whole is received: all of it is kept."""
    reports: WireUsage | None = None
    """What a stream that LiteLLM translates, or a whole answer, reported as its usage."""
    openai_instead: bool = False
    """The response is a chat completion, or a stream of one, at another address than OpenAI's."""

    @property
    def address(self) -> str:
        """Host and port of the call, for the operator."""
        return self.host.decode("ascii", "replace")

    @property
    def speaks_openai(self) -> bool:
        """The response is a chat completion in OpenAI's dialect, read or not."""
        return 200 <= self.status < 300 and (self.openai_instead or self.path.rstrip("/").endswith("/chat/completions"))

    @property
    def shows_form(self) -> bool:
        """True for an answer that says that it is a stream, or whole: its form can be awaited.

        JSON without a length may be lines of a stream.
        """
        kind = self.headers.get("content-type", "")
        return kind.startswith("text/event-stream") or (
            kind.startswith("application/json") and "content-length" in self.headers
        )

    @property
    def tail_only(self) -> bool:
        """`body` holds only the tail of a stream."""
        return self.streaming and self.status < 300 and not self.document

    @property
    def finish_was_sent(self) -> bool:
        """A Gemini stream sent a finish reason; LiteLLM reports one on every chunk."""
        return "streamGenerateContent" not in self.path or gemini_finished(self.body)

    def received(self, piece: bytes, *, tail_only: bool) -> None:
        """Record a piece of the response; of a stream only the tail is kept."""
        if self.reports is not None and self.status < 300:
            self.reports.feed(piece)
        kept(self.body, piece, tail_only)

    def ended(self, failure: type[BaseException] | None = None) -> None:
        """Record the end of the response, proper or by a failure."""
        self.failure, self.whole = failure, failure is None
        if self.reports is not None:
            self.reports.finish()

    def reported(self) -> WireUsage:
        """The usage that a whole answer reported."""
        return WireUsage.of(self.body, self.headers) if self.whole and self.status < 400 else WireUsage()

    async def close(self) -> None:
        """Release the connection; it is closed if the response was not read completely."""
        if self.answer is not None:
            await self.answer.aclose()


EXCHANGE: ContextVar[Exchange | None] = ContextVar("seqroute_exchange", default=None)
"""The exchange of the call that this task is making."""


class AnswerTooLarge(httpx.ReadError):
    """The response exceeds its limit, or cannot be unpacked within it."""


class EncodingUnread(httpx.ReadError):
    """The response has an encoding that cannot be read here."""


class BoundedTransport(httpx.AsyncBaseTransport):
    """Sends through `inner` and records in the call's Exchange, one request per call.

    Other requests of a provider's code (`kind_of`) are sent unrecorded, or refused like an unreachable host.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, fresh: httpx.AsyncBaseTransport | None = None) -> None:
        self._inner = inner
        self._fresh = fresh

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and record it in the call's exchange."""
        exchange = EXCHANGE.get() or Exchange()
        kind = kind_of(request, exchange)
        if kind == "refused":
            raise httpx.ConnectError("only the call itself may be sent", request=request)
        if kind == "sent":
            return await self._inner.handle_async_request(outgoing(request, None))
        begin(exchange, request)
        try:
            response = await self._sent(request, exchange)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            exchange.failure = type(error)
            exchange.reached = not never_sent(error)
            raise
        exchange.status = response.status_code
        exchange.headers = {name.lower(): value for name, value in response.headers.items()}
        inner_stream = response.stream
        assert isinstance(inner_stream, httpx.AsyncByteStream)
        try:
            decoder = decoder_for(exchange.headers.get("content-encoding", ""))
        except UnpackingError as error:
            exchange.failure = EncodingUnread
            await inner_stream.aclose()
            raise EncodingUnread(str(error), request=request) from None
        headers = response.headers
        if decoder is not None:
            del headers["content-encoding"]
            headers.pop("content-length", None)
        exchange.answer = answer = RecordedStream(inner_stream, exchange, MAX_ANSWER_BYTES, decoder)
        path = request.url.path
        dialect = native_dialect(path)
        if response.status_code >= 300 or (
            dialect is None and (exchange.streaming or path.rstrip("/").endswith("/completions"))
        ):
            return httpx.Response(response.status_code, headers=headers, stream=answer, request=request)
        headers.pop("content-length", None)
        formed = FormedStream(answer, exchange, dialect)
        return httpx.Response(response.status_code, headers=headers, stream=formed, request=request)

    async def _sent(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            return await self._inner.handle_async_request(outgoing(request, exchange.organization))
        except httpx.HTTPError as error:
            repeatable = self._fresh is not None and isinstance(request.stream, httpx.ByteStream)
            if not repeatable or not lost_unanswered(error.__cause__, exchange, loop.time() - started_s):
                raise
        exchange.reused = False
        assert self._fresh is not None
        return await self._fresh.handle_async_request(outgoing(request, exchange.organization))

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


class NoSecondTransport(httpx.AsyncBaseTransport):
    """Transport of the second client that LiteLLM makes for retries: it sends nothing."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse."""
        raise httpx.UnsupportedProtocol("one call may send one request", request=request)


class RecordedStream(httpx.AsyncByteStream):
    """Passes the response on, keeps a copy (only the tail of a stream), and stops at the limit."""

    def __init__(
        self, inner: httpx.AsyncByteStream, exchange: Exchange, max_bytes: int, decoder: Decoder | None
    ) -> None:
        self._inner = inner
        self._exchange = exchange
        self._max_bytes = max_bytes
        self._decoder = decoder
        self._ahead: list[bytes] = []
        self._rest = self._received()
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        while self._ahead:
            yield self._ahead.pop(0)
        async for piece in self._rest:
            yield piece

    async def head(self) -> bytes:
        """The start of the response up to its first event; all of it if it is not a stream."""
        head = bytearray().join(self._ahead)
        while (form := form_of(head)) != "events" or (begun_payload(head) is None and len(head) < KEPT_TAIL_BYTES):
            self._exchange.document = form == "document"
            piece = await anext(self._rest, b"")
            if not piece:
                break
            self._ahead.append(piece)
            head += piece
        return bytes(head)

    async def _received(self) -> AsyncIterator[bytes]:
        received = 0
        lines = StreamLines(self._exchange)
        try:
            async for piece in self._inner:
                plain = unpacked(self._decoder, piece, self._max_bytes - received)
                received += len(plain)
                if made := lines.feed(plain):
                    yield made
        except httpx.HTTPError as error:
            lines.finish()  # recorded: it may be the error for which the provider broke off
            self._exchange.ended(type(error))
            raise
        if made := lines.finish():
            yield made
        self._exchange.ended()

    async def aclose(self) -> None:
        """Release the connection."""
        await self._inner.aclose()


class StreamLines:
    """The pieces of a response as LiteLLM reads them, with a copy in the exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events: EventLines | None = None
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """Return what can be read after `piece`."""
        if piece and not self._begun:
            self._begun = True
            if begins_events(self._exchange.headers.get("content-type", ""), piece):
                self._events = EventLines()
        return self._kept(piece if self._events is None else self._events.feed(piece))

    def finish(self) -> bytes:
        """Return the rest of a response that has ended."""
        return self._kept(b"" if self._events is None else self._events.finish())

    def _kept(self, piece: bytes) -> bytes:
        self._exchange.received(piece, tail_only=self._exchange.tail_only)
        return piece


class FormedStream(httpx.AsyncByteStream):
    """A response of a provider's own API for LiteLLM, in the form that was asked for.

    A whole one has a usage that LiteLLM can read; the provider's is read from what is recorded.
    """

    def __init__(self, recorded: RecordedStream, exchange: Exchange, dialect: NativeDialect | None) -> None:
        self._recorded = recorded
        self._exchange = exchange
        self._dialect = dialect

    async def __aiter__(self) -> AsyncIterator[bytes]:
        streaming = self._exchange.streaming
        if streaming and form_of(await self._recorded.head()) == "events":
            async for piece in self._recorded:
                yield piece
            return
        data = b"".join([piece async for piece in self._recorded])
        try:
            payloads = payloads_of(data) if self._dialect is not None or b'"choices"' in data else []
        except ValueError:
            payloads = []
        self._exchange.openai_instead = any(map(speaks_openai, payloads))
        if self._dialect is None:
            yield with_plain_usage(data)
        elif not payloads or self._exchange.openai_instead:
            yield data
        elif streaming:
            yield as_stream(self._dialect, payloads)
        elif (whole := as_whole(self._dialect, payloads)) is not None:
            yield with_plain_usage(orjson.dumps(whole))
        else:
            yield with_plain_usage(data)

    async def aclose(self) -> None:
        """Release the connection."""
        await self._recorded.aclose()


def unpacked(decoder: Decoder | None, piece: bytes, max_bytes: int) -> bytes:
    """A piece of a response, decompressed. Raises AnswerTooLarge beyond `max_bytes`."""
    if decoder is not None:
        try:
            return decoder.unpacked(piece, max_bytes)
        except UnpackingError as error:
            raise AnswerTooLarge(str(error)) from None
    if len(piece) > max_bytes:
        raise AnswerTooLarge(f"expected a response smaller by {len(piece) - max_bytes} bytes")
    return piece


def kind_of(request: httpx.Request, exchange: Exchange) -> Literal["call", "sent", "refused"]:
    """Classify a request of a provider's code.

    `call`: the call itself. `sent`: a request that the call needs: a sign-in (a form to a host other than the
    deployment's) before it, the state of a job (from the same host) after it, or what `lookups` allows. `refused`:
    LiteLLM's own look-ups (a model's template on a hub, its size at a local server), to hosts that are not configured,
    and uploads of a picture into the operator's account; LiteLLM works without them.
    """
    host = request.url.netloc
    if request.method in ("GET", "HEAD"):
        polled = exchange.reached and host == exchange.host
        return "sent" if polled or exchange.lookups else "refused"
    if request.url.path.endswith("/api/show"):
        return "refused"
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        return "refused"
    form = kind.startswith("application/x-www-form-urlencoded")
    return "sent" if form and exchange.attempts == 0 and host != exchange.expected_host else "call"


def begin(exchange: Exchange, request: httpx.Request) -> None:
    """Record the start of a call. Raises UnsupportedProtocol for a second one, or a lost part."""
    if exchange.attached and isinstance(request.stream, httpx.ByteStream):
        body = request.read()
        exchange.lost = first_lost(exchange.attached, body)
        if exchange.lost is not None:
            raise httpx.UnsupportedProtocol("a part of the messages would be lost", request=request)
    exchange.attempts += 1
    if exchange.attempts > 1:
        raise httpx.UnsupportedProtocol("one call may send one request", request=request)
    exchange.path, exchange.host = request.url.path, request.url.netloc
    exchange.reached = True


def kept(body: bytearray, piece: bytes, streamed: bool) -> None:
    """Append to the copy of a response; of a stream only the tail is kept."""
    body += piece
    if streamed and len(body) > 2 * KEPT_TAIL_BYTES:
        del body[:-KEPT_TAIL_BYTES]


def outgoing(request: httpx.Request, organization: str | None) -> httpx.Request:
    """A copy without the SDK's headers, which the SDK still expects on the original."""
    headers = [(name, value) for name, value in request.headers.items() if not name.startswith(_SDK_HEADERS)]
    outgoing = httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    if isinstance(request.stream, httpx.ByteStream):
        outgoing.read()
    if organization is not None:
        outgoing.headers["openai-organization"] = organization
    outgoing.headers["user-agent"] = USER_AGENT
    # A compressed response could unpack to a thousand times its size in one step.
    outgoing.headers["accept-encoding"] = "identity"
    return outgoing


def lost_unanswered(error: BaseException | None, exchange: Exchange, elapsed_s: float) -> bool:
    """True if a reused connection closed at once, without a byte of a response.

    Its server had already closed it and did not process the call, which may be sent again over a new connection. One
    that closes later than STALE_S may have worked on the call and bill it: that is a failed attempt with its own hold.
    """
    if not exchange.reused or elapsed_s > STALE_S:
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the start of a response
    return isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)


def never_sent(error: Exception) -> bool:
    """True if the connection itself failed.

    httpx's ConnectError does not show this: aiohttp's mapping also uses it for a reset during a request.
    """
    cause = error.__cause__
    return isinstance(
        cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL
    ) or isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol)


async def uninterrupted(*closings: Awaitable[None]) -> None:
    """Await clean-up completely; a cancellation of this task is raised afterwards."""
    task = asyncio.ensure_future(_closed(closings))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _closed(closings: tuple[Awaitable[None], ...]) -> None:
    for closing in closings:
        try:
            await closing
        except Exception as error:  # noqa: BLE001 - a failing close must not hide the first error
            _log.debug("closing an upstream connection failed: %s", type(error).__name__)
