"""The transport of LiteLLM's HTTP clients: one request per call, a bounded response.

`gateway.providers.transport` records the same for calls that do not go through LiteLLM's clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Literal

import httpx
import orjson

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
from gateway.dialects.responses_events import ResponsesEvents
from gateway.dialects.sse import Event, EventReader, event_frame
from gateway.dialects.wire_usage import with_plain_usage
from gateway.providers.attachments import first_lost
from gateway.providers.decoding import Decoder, UnpackingError, decoder_for
from gateway.providers.exchange import (
    EXCHANGE,
    KEPT_TAIL_BYTES,
    KEY_HEADERS,
    MAX_ANSWER_BYTES,
    USER_AGENT,
    EncodingUnread,
    Exchange,
    lost_unanswered,
    never_sent,
    unpacked,
)

_SDK_HEADERS = ("x-stainless-", "openai-organization", "openai-project")


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
        answered(exchange, response)
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
        exchange.answer = answer = RecordedStream(inner_stream, exchange, decoder)
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
            return await self._inner.handle_async_request(outgoing(request, exchange.organization, exchange.bearer))
        except httpx.HTTPError as error:
            repeatable = self._fresh is not None and isinstance(request.stream, httpx.ByteStream)
            if not repeatable or not lost_unanswered(error.__cause__, exchange, loop.time() - started_s):
                raise
        exchange.reused = False
        assert self._fresh is not None
        return await self._fresh.handle_async_request(outgoing(request, exchange.organization, exchange.bearer))

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner.aclose()


class NoSecondTransport(httpx.AsyncBaseTransport):
    """Transport of the second client that LiteLLM makes for retries: it sends nothing."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse the request."""
        raise httpx.UnsupportedProtocol("one call may send one request", request=request)


class RecordedStream(httpx.AsyncByteStream):
    """Passes the response on, keeps a copy (only the tail of a stream), and stops at the limit."""

    def __init__(self, inner: httpx.AsyncByteStream, exchange: Exchange, decoder: Decoder | None) -> None:
        self._inner = inner
        self._exchange = exchange
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
        lines = StreamLines(self._exchange, self._decoder)
        try:
            async for piece in self._inner:
                if made := lines.feed(piece):
                    yield made
        except httpx.HTTPError as error:
            lines.break_off(error)
            raise
        if made := lines.finish():
            yield made
        self._exchange.ended()

    async def aclose(self) -> None:
        """Release the connection."""
        await self._inner.aclose()


class StreamLines:
    """The pieces of a response as LiteLLM reads them, bounded and recorded in the exchange."""

    def __init__(self, exchange: Exchange, decoder: Decoder | None) -> None:
        self._exchange = exchange
        self._decoder = decoder
        self._left = MAX_ANSWER_BYTES
        self._events: EventLines | None = None
        self._begun = False

    def feed(self, piece: bytes) -> bytes:
        """Return what can be read after `piece`. Raises AnswerTooLarge."""
        piece = unpacked(self._decoder, piece, self._left)
        self._left -= len(piece)
        if piece and not self._begun:
            self._begun = True
            if begins_events(self._exchange.headers.get("content-type", ""), piece):
                self._events = EventLines()
        return self._kept(piece if self._events is None else self._events.feed(piece))

    def finish(self) -> bytes:
        """Return the rest of a response that has ended."""
        return self._kept(b"" if self._events is None else self._events.finish())

    def break_off(self, error: httpx.HTTPError) -> None:
        """Record what came: it may be the error for which the provider broke off."""
        self.finish()
        self._exchange.ended(type(error))

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
            pieces = _with_missing_events(self._recorded) if self._dialect == "responses" else self._recorded
            async for piece in pieces:
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


async def _with_missing_events(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A stream of Responses with the events that its server left out, without which LiteLLM reads no content."""
    reader, completed = EventReader(), ResponsesEvents()
    async for piece in pieces:
        made = b"".join(_completed(event, completed) for event in reader.feed(piece))
        if made:
            yield made
    yield b"".join(_completed(event, completed) for event in reader.finish())


def _completed(event: Event, completed: ResponsesEvents) -> bytes:
    try:
        payload = orjson.loads(event.data)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return b"data: " + event.data.replace(b"\n", b"\ndata: ") + b"\n\n"
    made = completed.of(payload)
    for each in made:
        if each.get("type") == "response.refusal.delta":  # of which LiteLLM reads nothing
            each["type"] = "response.output_text.delta"
    return b"".join(event_frame(str(each.get("type") or "message"), each) for each in made)


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


def answered(exchange: Exchange, response: httpx.Response) -> None:
    """Record the head of a response."""
    exchange.status = response.status_code
    exchange.headers = {name.lower(): value for name, value in response.headers.items()}


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
    exchange.reached = exchange.reused = True


def outgoing(request: httpx.Request, organization: str | None, bearer: str | None = None) -> httpx.Request:
    """A copy without the SDK's headers, which the SDK still expects on the original."""
    headers = [(name, value) for name, value in request.headers.items() if not name.startswith(_SDK_HEADERS)]
    if bearer is not None:
        others = [(name, value) for name, value in headers if name not in KEY_HEADERS]
        headers = [*others, ("authorization", f"Bearer {bearer}")]
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
