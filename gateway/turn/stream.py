"""Outgoing streams: a pump reads the provider, a response sends the pump's buffer.

The pump is a separate task. It reads the provider, counts and frames chunks and, whatever happens, closes the provider
and calls `on_end` exactly once; this depends neither on the response being iterated nor on garbage collection. Pump and
response share a bounded buffer: a slow client slows the provider down, a disconnected client stops it at once.

    provider --> pump task --[ <= 256 KiB ]--> EventStreamResponse --> client
                    |  on_progress about every second, on_end once
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway.catalog.usage import ReportedUsage
from gateway.dialects.chat import generated_texts
from gateway.dialects.sse import data_frame
from gateway.errors import GatewayError
from gateway.http import WATCH, OnLeave, Watch
from gateway.providers.errors import BrokenFault, UpstreamFault

_log = logging.getLogger("seqroute.turn")
T = TypeVar("T")

BUFFER_BYTES = 256 * 1024
PIECE_BYTES = 16 * 1024
"""Size of pieces for the server, so that a slow client shows progress within CLIENT_STALL_S."""
PROGRESS_S = 1.0
CLIENT_STALL_S = 60.0
"""A client that reads nothing for this long, with a full buffer, counts as disconnected."""
KEPT_TEXT_BYTES = 2 * 2**20
BYTES_PER_TOKEN = 4

Chunk = dict[str, Any]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
Ending = Literal["finished", "failed", "client_left", "stopped"]


class ChunkStream(Protocol):
    """The part of `UpstreamStream` that a pump uses."""

    finish_reason: str | None

    @property
    def usage(self) -> ReportedUsage:
        """The usage that the provider reported."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def aclose(self) -> None:
        """Release the connection."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream.

    `text` is all generated text (content, reasoning, tool arguments; at most KEPT_TEXT_BYTES), for a better count when
    usage is missing. `ending` is "stopped" when this process drains with the client still connected, and "client_left"
    also when the task was cancelled.
    """

    ending: Ending
    fault: UpstreamFault | None
    usage: ReportedUsage
    finish_reason: str | None
    text: str


class StreamPump:
    """Reads a stream from its creation (inside a running loop), whether or not it is consumed.

    on_chunk(chunk) -> bytes            the bytes for the client; may be empty
    on_progress(output_tokens)          about every second during the stream, also without chunks
    on_end(end) -> frames               once, protected from cancellation; returns the last frames

    `spawn` must hold a reference to the task (`Background.spawn`): asyncio itself does not.
    """

    def __init__(
        self,
        stream: ChunkStream,
        *,
        on_end: Callable[[StreamEnd], Awaitable[Iterable[bytes]]],
        spawn: Spawn,
        on_chunk: Callable[[Chunk], bytes] = data_frame,
        on_progress: Callable[[int], Awaitable[None] | None] | None = None,
        progress_s: float = PROGRESS_S,
        buffer_bytes: int = BUFFER_BYTES,
        client_stall_s: float = CLIENT_STALL_S,
    ) -> None:
        self._stream = stream
        self._on_chunk = on_chunk
        self._on_progress = on_progress
        self._on_end = on_end
        self._spawn = spawn
        self._progress_s = progress_s
        self._buffer_bytes = buffer_bytes
        self._client_stall_s = client_stall_s
        self._received = _ReceivedPart()
        self._buffer = bytearray()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._left = False
        self._stopped = False
        self._closed = False
        self._reader: asyncio.Task[None] | None = None
        self._task = spawn(self._run())

    def leave(self) -> None:
        """Stop the provider because the client disconnected. May be called repeatedly."""
        if self._left or self._closed:
            return
        self._left = True
        self._buffer.clear()
        self._room.set()
        if self._reader is not None:
            self._reader.cancel()

    def stop(self) -> None:
        """Stop the provider because the process ends; the client gets an error."""
        if not self._closed and self._reader is not None:
            self._stopped = True
            self._reader.cancel()

    async def wait(self) -> None:
        """Wait until `on_end` has run."""
        await asyncio.shield(self._task)

    async def frames(self) -> AsyncIterator[bytes]:
        """Available bytes for the client; ends after the frames of `on_end`."""
        while True:
            await self._ready.wait()
            if self._buffer:
                piece = bytes(self._buffer[:PIECE_BYTES])
                del self._buffer[:PIECE_BYTES]
                self._room.set()
                yield piece
            elif self._closed:
                return
            else:
                self._ready.clear()

    async def _run(self) -> None:
        reader = self._reader = asyncio.ensure_future(self._read())
        ticker = asyncio.ensure_future(self._tick())
        if self._left:
            reader.cancel()
        while not reader.done():
            try:
                await asyncio.wait({reader})
            except asyncio.CancelledError:
                # The process shuts down; for the ledger that equals a disconnect.
                self._left = True
                reader.cancel()
        ticker.cancel()
        ending = self._spawn(self._finish(self._end(reader)))
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                if ending.cancelled():
                    break
            except Exception:  # noqa: BLE001 - the client's connection must end even if on_end raises
                _log.exception("the end of a stream could not be recorded")

    async def _read(self) -> None:
        async for chunk in self._stream:
            self._received.note(chunk)
            outgoing = self._on_chunk(chunk)
            if outgoing:
                self._put(outgoing)
                if len(self._buffer) > self._buffer_bytes:
                    await self._until_room()

    async def _until_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(self._client_stall_s):
                await self._room.wait()
        except TimeoutError:
            self._left = True
            self._buffer.clear()
            raise asyncio.CancelledError from None

    def _put(self, frame: bytes) -> None:
        if not self._left:
            self._buffer += frame
        self._ready.set()

    def _end(self, reader: asyncio.Task[None]) -> StreamEnd:
        fault: UpstreamFault | None = None
        ending: Ending = "finished"
        if reader.cancelled() and self._left:
            ending = "client_left"
        elif reader.cancelled() and self._stopped:
            ending = "stopped"
        elif reader.cancelled():
            # A stray cancellation from below: the client is connected and must not see a normal end.
            ending, fault = "failed", BrokenFault("the stream was stopped inside the gateway")
        elif (error := reader.exception()) is not None:
            ending = "failed"
            fault = error if isinstance(error, UpstreamFault) else BrokenFault("the stream failed in the gateway")
            if fault is not error:
                _log.error("stream failed in the gateway", exc_info=error)
        return StreamEnd(
            ending=ending,
            fault=fault,
            usage=self._stream.usage,
            finish_reason=self._stream.finish_reason,
            text=self._received.text,
        )

    async def _finish(self, end: StreamEnd) -> None:
        try:
            await self._stream.aclose()
            for frame in await self._on_end(end):
                self._put(frame)
        finally:
            self._closed = True
            self._ready.set()

    async def _tick(self) -> None:
        while self._on_progress is not None:
            await asyncio.sleep(self._progress_s)
            try:
                reported = self._on_progress(self._received.output_tokens)
                if reported is not None:
                    await reported
            except GatewayError as error:
                _log.warning("stream progress not written: %s", error.code)


class _ReceivedPart:
    """The received part: counted cheaply per chunk, kept as text up to a limit."""

    def __init__(self) -> None:
        self._bytes = 0
        self._generating_chunks = 0
        self._kept: list[str] = []

    @property
    def output_tokens(self) -> int:
        """An estimate: at least one token per chunk, and about four bytes per token."""
        return max(self._generating_chunks, -(-self._bytes // BYTES_PER_TOKEN))

    @property
    def text(self) -> str:
        return "".join(self._kept)

    def note(self, chunk: Mapping[str, Any]) -> None:
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta")
            if not isinstance(delta, Mapping):
                continue
            texts = [*generated_texts(delta)]
            if texts:
                self._generating_chunks += 1
            for text in texts:
                self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
                if self._bytes <= KEPT_TEXT_BYTES:
                    self._kept.append(text)


class EventStreamResponse:
    """ASGI response that sends the pump's frames and reports a disconnect to it at once."""

    def __init__(self, pump: StreamPump, headers: Mapping[str, str] | None = None) -> None:
        self._pump = pump
        self._headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(self._leave_on_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            async for piece in self._pump.frames():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            _log.debug("the client closed the connection during the stream")
        finally:
            watcher.cancel()
            self._pump.leave()

    async def _leave_on_disconnect(self, receive: Receive) -> None:
        await _disconnected(receive)
        self._pump.leave()


class ClientLeft(Exception):
    """The client disconnected before its response was ready."""


def watch_of(request: Request) -> Watch:
    """The watch for a request's disconnect: the server's, or a task that waits for its message."""
    watch: Watch | None = request.scope.get("extensions", {}).get(WATCH)
    return watch or by_receiving(request.receive)


def by_receiving(receive: Receive) -> Watch:
    """A watch of any server's request, whose body has been read."""

    def watch(on_leave: OnLeave) -> Callable[[], object]:
        watching = asyncio.ensure_future(_disconnected(receive))
        watching.add_done_callback(lambda done: None if done.cancelled() else on_leave())
        return watching.cancel

    return watch


async def run_until_disconnect(watch: Watch, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, cancelling it when the client disconnects; call it after reading the body.

    Waits until a cancelled `work` has cleaned up. Raises ClientLeft after a disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    waiting, left = True, False

    def leave() -> None:
        nonlocal left
        if waiting:
            left = True
            task.cancel()

    stop = watch(leave)
    try:
        return await work
    except (asyncio.CancelledError, Exception):
        # A second cancellation from elsewhere is passed on.
        if left and task.cancelling() == 1:
            raise ClientLeft from None
        raise
    finally:
        waiting = False
        stop()
        if left:
            task.uncancel()


async def _disconnected(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
