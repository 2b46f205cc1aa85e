"""What really went over the wire, and the HTTP transport under LiteLLM's clients that records it.

LiteLLM blurs what a bill depends on: it retries behind one's back, reports missing usage as zero and a cut stream as
`stop`, and turns every failure into one of its own. So each call carries an `Exchange` (through a context variable,
because no argument survives LiteLLM's layers), and the transport writes into it what happened: one request per call,
bounded answers. `gateway.providers.transport` writes the same for the calls that do not go through LiteLLM's clients.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol

import aiohttp
import httpx

from gateway.clock import NewId, time_ordered_ids
from gateway.providers.decoding import Decoder, UnpackingError, decoder_for
from gateway.providers.errors import (
    MAX_RETRY_AFTER_S,
    BrokenFault,
    ConnectFault,
    FailedFault,
    TimeoutFault,
    UpstreamFault,
    fault_from_status,
)
from gateway.providers.told import told_in

_log = logging.getLogger("seqroute.wire")

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest answer, whole or streamed, that is read at all."""

KEPT_TAIL_BYTES = 32 * 1024

USER_AGENT = "seqroute"

_SDK_HEADERS = ("x-stainless-", "openai-organization", "openai-project")


class Answer(Protocol):
    """The body of an answer; its iterator raises httpx.HTTPError when the wire breaks. `begun`: it was asked for."""

    begun: bool

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Exchange:
    """What happened on the wire for one call. `reached` turns true once the request may be in the provider's hands.

    `organization` is the operator's; LiteLLM and the SDK would take one out of the environment.
    """

    organization: str | None = None
    streaming: bool = False
    """Whether a stream was asked for: only its tail is kept, of every other answer the whole."""
    new_id: NewId = field(default=time_ordered_ids(time.time), repr=False)
    expected_host: bytes = b""
    """The deployment's own host and port, where it names one."""
    errands: bool = False
    """Whether this provider's code may look things up before the call."""
    patience_s: float = 600.0
    """How long a thread waits for the provider's next byte."""
    attempts: int = 0
    path: str = ""
    host: bytes = b""
    reused: bool = False
    """Whether the request went out on a connection that had served another call before."""
    reached: bool = False
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    """A whole answer, or the last KEPT_TAIL_BYTES of a streamed one."""
    whole: bool = False
    failure: type[BaseException] | None = None
    answer: Answer | None = None

    @property
    def address(self) -> str:
        """Host and port that the call went to, for the operator."""
        return self.host.decode("ascii", "replace")

    @property
    def speaks_openai(self) -> bool:
        """Whether what came back is a chat completion in OpenAI's own dialect, whole or still to be read."""
        return 200 <= self.status < 300 and self.path.endswith("/chat/completions")

    @property
    def tail_only(self) -> bool:
        """Whether the copy in `body` is of a stream's end only."""
        return self.streaming and self.status < 300

    @property
    def finish_was_sent(self) -> bool:
        """Whether a stream of Gemini's dialect said that it finished: LiteLLM says so on every chunk of it."""
        return "streamGenerateContent" not in self.path or b'"finishReason"' in self.body

    async def close(self) -> None:
        """Let go of the connection; a half-read answer closes it."""
        if self.answer is not None:
            await self.answer.aclose()


EXCHANGE: ContextVar[Exchange | None] = ContextVar("seqroute_exchange", default=None)
"""The exchange of the call that this task is making."""


class AnswerTooLarge(httpx.ReadError):
    pass


class BoundedTransport(httpx.AsyncBaseTransport):
    """Sends through `inner` and records into the call's Exchange; a second one within one call is refused.

    What a provider's code asks beside the call (`errand`) is sent unrecorded, or refused as if nobody listened there.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        fresh: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._inner = inner
        self._max_answer_bytes = max_answer_bytes
        self._fresh = fresh

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = EXCHANGE.get() or Exchange()
        kind = errand(request, exchange)
        if kind == "refused":
            raise httpx.ConnectError("nothing but the call is asked here", request=request)
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
            exchange.failure = AnswerTooLarge
            await inner_stream.aclose()
            raise AnswerTooLarge(str(error), request=request) from None
        headers = response.headers
        if decoder is not None:
            del headers["content-encoding"]
            headers.pop("content-length", None)
        exchange.answer = RecordedStream(inner_stream, exchange, self._max_answer_bytes, decoder)
        return httpx.Response(
            status_code=response.status_code, headers=headers, stream=exchange.answer, request=request
        )

    async def _sent(self, request: httpx.Request, exchange: Exchange) -> httpx.Response:
        try:
            return await self._inner.handle_async_request(outgoing(request, exchange.organization))
        except httpx.HTTPError as error:
            repeatable = self._fresh is not None and isinstance(request.stream, httpx.ByteStream)
            if not repeatable or not lost_unanswered(error.__cause__, exchange):
                raise
        exchange.reused = False
        assert self._fresh is not None
        return await self._fresh.handle_async_request(outgoing(request, exchange.organization))

    async def aclose(self) -> None:
        await self._inner.aclose()


class NoSecondTransport(httpx.AsyncBaseTransport):
    """For the second client that LiteLLM makes to send a failed call again: it sends nothing."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.UnsupportedProtocol("one call may send one request", request=request)


class RecordedStream(httpx.AsyncByteStream):
    """Passes the answer on, keeps a copy (of a stream its tail), and stops at the limit."""

    def __init__(
        self, inner: httpx.AsyncByteStream, exchange: Exchange, max_bytes: int, decoder: Decoder | None
    ) -> None:
        self._inner = inner
        self._exchange = exchange
        self._max_bytes = max_bytes
        self._decoder = decoder
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        self.begun = True
        try:
            async for piece in self._inner:
                plain = unpacked(self._decoder, piece, self._max_bytes - received)
                received += len(plain)
                kept(self._exchange.body, plain, self._exchange.tail_only)
                if plain:
                    yield plain
        except httpx.HTTPError as error:
            self._exchange.failure = type(error)
            raise
        self._exchange.whole = True

    async def aclose(self) -> None:
        await self._inner.aclose()


def unpacked(decoder: Decoder | None, piece: bytes, max_bytes: int) -> bytes:
    """A piece of an answer as it was meant. Raises AnswerTooLarge beyond `max_bytes`."""
    if decoder is not None:
        try:
            return decoder.unpacked(piece, max_bytes)
        except UnpackingError as error:
            raise AnswerTooLarge(str(error)) from None
    if len(piece) > max_bytes:
        raise AnswerTooLarge(f"expected an answer of {len(piece) - max_bytes} bytes less")
    return piece


def errand(request: httpx.Request, exchange: Exchange) -> Literal["call", "sent", "refused"]:
    """What a request of a provider's code is.

    `call`: the call itself. `sent`: what it needs beside - a sign-in (a form to another host than the deployment's)
    before it, the state of a job (from the host that took it) after it, or whatever `errands` allows. `refused`:
    everything else that LiteLLM looks up on its own account (a model's template on a hub, its size at a local server):
    nobody configured these hosts, and LiteLLM goes on without.
    """
    host = request.url.netloc
    if request.method in ("GET", "HEAD"):
        polled = exchange.reached and host == exchange.host
        return "sent" if polled or exchange.errands else "refused"
    if request.url.path.endswith("/api/show"):
        return "refused"
    form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    return "sent" if form and exchange.attempts == 0 and host != exchange.expected_host else "call"


def begin(exchange: Exchange, request: httpx.Request) -> None:
    exchange.attempts += 1
    if exchange.attempts > 1:
        raise httpx.UnsupportedProtocol("one call may send one request", request=request)
    exchange.path, exchange.host = request.url.path, request.url.netloc
    exchange.reached = True


def kept(body: bytearray, piece: bytes, streamed: bool) -> None:
    """Add to the copy of an answer; of a stream only the tail stays."""
    body += piece
    if streamed and len(body) > 2 * KEPT_TAIL_BYTES:
        del body[:-KEPT_TAIL_BYTES]


def outgoing(request: httpx.Request, organization: str | None) -> httpx.Request:
    """A copy with our headers only: the SDK still looks for its own in the original."""
    headers = [(name, value) for name, value in request.headers.items() if not name.startswith(_SDK_HEADERS)]
    outgoing = httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    if isinstance(request.stream, httpx.ByteStream):
        outgoing.read()
    if organization is not None:
        outgoing.headers["openai-organization"] = organization
    outgoing.headers["user-agent"] = USER_AGENT
    # A compressed answer could unpack to a thousand times its size in one step.
    outgoing.headers["accept-encoding"] = "identity"
    return outgoing


def lost_unanswered(error: BaseException | None, exchange: Exchange) -> bool:
    """Whether a connection that had been kept ended without a byte of an answer: its server had closed it already.

    Such a call was not taken, and may be sent once more, over a connection of its own.
    """
    if not exchange.reused:
        return False
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the beginning of an answer
    return isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)


def never_sent(error: Exception) -> bool:
    """True when the connection itself failed. httpx's ConnectError is not enough: aiohttp's mapping uses it for a
    reset in mid-request too."""
    cause = error.__cause__
    return isinstance(
        cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL
    ) or isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol)


def timeout_fault(exchange: Exchange, ours: bool) -> UpstreamFault:
    """The fault for a wait that was too long, by our own limit (`ours`) or by a socket's."""
    if not exchange.reached:
        return ConnectFault("the provider could not be reached in time", address=exchange.address)
    said = "the provider did not answer in time" if ours else "the connection to the provider timed out"
    return TimeoutFault(said, status=exchange.status)


def wire_fault(exchange: Exchange) -> UpstreamFault:
    """The fault for an answer that broke on its way."""
    failure = exchange.failure or httpx.ReadError
    if issubclass(failure, httpx.TimeoutException):
        return TimeoutFault("the connection to the provider timed out")
    if issubclass(failure, AnswerTooLarge):
        return BrokenFault("the provider's answer was too large or compressed")
    return BrokenFault("the connection to the provider broke off")


def exchange_fault(exchange: Exchange, code: str = "") -> UpstreamFault | None:
    """What went wrong, as far as the wire tells; `code` is what LiteLLM made of an error's words. None: nothing."""
    if exchange.status >= 400:
        return fault_from_status(exchange.status, retry_after_s(exchange.headers), code, told_in(exchange.body))
    if exchange.attempts and not exchange.reached:
        return ConnectFault("the provider could not be reached", address=exchange.address)
    if exchange.failure is not None:
        return wire_fault(exchange)
    if 300 <= exchange.status < 400:
        return FailedFault("the provider redirected to another address", status=exchange.status)
    return None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The provider's Retry-After, in seconds or as a date, clamped to [0, MAX_RETRY_AFTER_S]; None if unreadable."""
    milliseconds = headers.get("retry-after-ms", "")
    text = headers.get("retry-after", "").strip()[:64]
    try:
        wish = float(milliseconds) / 1000 if milliseconds else float(text)
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        wish = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(wish, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(wish) else None


async def uninterrupted(*closings: Awaitable[None]) -> None:
    """Await clean-up to its end, also when this task is being cancelled; the cancellation follows afterwards."""
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
        except Exception as error:  # noqa: BLE001 - closing what is broken must not hide why it broke
            _log.debug("closing an upstream connection failed: %s", type(error).__name__)
