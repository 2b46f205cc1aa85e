"""The record of a call's HTTP exchange, which all later steps read.

LiteLLM hides what a bill depends on: it retries silently, reports missing usage as zero and a cut stream as `stop`, and
replaces every failure by one of its own. So each call has an `Exchange`, passed in a context variable because LiteLLM's
layers pass no argument through.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextvars import ContextVar
from typing import Protocol

import aiohttp
import httpx
from msgspec import Struct, field

from gateway.clock import NewId, time_ordered_ids
from gateway.dialects.raw_answer import gemini_finished
from gateway.dialects.wire_usage import WireUsage
from gateway.providers.decoding import Decoder, UnpackingError

_log = logging.getLogger("seqroute.providers")

MAX_ANSWER_BYTES = 64 * 2**20
"""The largest response, streamed or not, that is read."""

KEPT_TAIL_BYTES = 32 * 1024

STALE_S = 0.3
"""Within a round trip to the other side of the world a server says that it had closed a connection."""
USER_AGENT = "seqroute"
KEY_HEADERS = frozenset({"api-key", "authorization", "x-api-key"})


class Pieces(Protocol):
    """The pieces of a response; iterating raises httpx.HTTPError when the connection breaks."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Release the connection."""


class AnswerBody(Pieces, Protocol):
    """A response body; `begun`: its reading has."""

    begun: bool


class Exchange(Struct):
    """The HTTP exchange of one call. `reached`: the provider may have received the request.

    `organization` is the operator's; LiteLLM and the SDK would read one from the environment.
    """

    organization: str | None = None
    bearer: str | None = None
    """A token that takes the place of every key in the request's headers."""
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
    """The request was sent on a connection that had served an earlier call: until one is opened for it."""
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
        """True if `body` holds only the tail of a stream."""
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


async def in_one_piece(body: bytes) -> AsyncGenerator[bytes]:
    """A body that was read."""
    yield body


class AnswerTooLarge(httpx.ReadError):
    """The response exceeds its limit, or cannot be unpacked within it."""


class EncodingUnread(httpx.ReadError):
    """The response has an encoding that cannot be read here."""


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


def kept(body: bytearray, piece: bytes, streamed: bool) -> None:
    """Append to the copy of a response; of a stream only the tail is kept."""
    body += piece
    if streamed and len(body) > 2 * KEPT_TAIL_BYTES:
        del body[:-KEPT_TAIL_BYTES]


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
