"""Minimal fake provider: raw asyncio protocols on uvloop with pre-rendered answers.

    python -m bench.rig.provider --port 18080

    POST /v1/chat/completions   20 words at once, or a stream of 200
    POST /__pace                {"delay_ms": 20, "gap_ms": 20, "chunks": 200} from the next request on

The words of an answer differ (LiteLLM ends a stream after 100 equal chunks). A gap of 0 is an unpaced stream: one event
per turn of the event loop, as fast as they are read.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from itertools import count
from typing import cast

import orjson
import uvloop

UNARY_WORDS = 20
PROMPT_TOKENS = 40
ID_LENGTH = 10
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """Timing of answers in seconds; `gap_s` 0 streams without pauses."""

    delay_s: float = 0.0
    gap_s: float = 0.0
    chunks: int = 200


@dataclass(slots=True)
class Provider:
    """State of all connections: the current pace and the number of the next answer."""

    pace: Pace
    events: Events
    numbers: count[int]


@dataclass(frozen=True, slots=True)
class Events:
    """A rendered stream: for each event the bytes before and after the answer's id."""

    parts: tuple[tuple[bytes, bytes], ...]
    usage: tuple[bytes, bytes]

    @classmethod
    def of(cls, chunks: int) -> Events:
        """Render a stream of this many chunks."""
        deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": f"w{n} "} for n in range(chunks)]
        events = [_event([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
        events.append(_event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        return cls(tuple(events), _event([], _usage(chunks)))


def _event(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> tuple[bytes, bytes]:
    content: dict[str, object] = {"object": "chat.completion.chunk", "created": 1_750_000_000, "model": "ok"}
    content["choices"] = choices
    if usage is not None:
        content["usage"] = usage
    before = b'data: {"id":"chatcmpl-'
    after = b'",' + orjson.dumps(content)[1:] + b"\n\n"
    length = len(before) + ID_LENGTH + len(after)
    return b"%x\r\n" % length + before, after + b"\r\n"


def _usage(words: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": words, "total_tokens": PROMPT_TOKENS + words}


_UNARY_TAIL = b'",' + orjson.dumps({
    "object": "chat.completion",
    "created": 1_750_000_000,
    "model": "ok",
    "choices": [{
        "index": 0,
        "message": {"role": "assistant", "content": "".join(f"w{n} " for n in range(UNARY_WORDS)), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }],
    "usage": _usage(UNARY_WORDS),
})[1:]  # fmt: skip


class Connection(asyncio.Protocol):
    """One keep-alive connection of a gateway: Content-Length, no pipelining."""

    def __init__(self, provider: Provider, loop: asyncio.AbstractEventLoop) -> None:
        self._provider, self._loop = provider, loop
        self._received = b""
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self._waiting: _Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast("asyncio.Transport", transport)

    def close(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel a pending answer."""
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        """Hold back events while the reader is slow."""
        self._paused = True

    def resume_writing(self) -> None:
        """Continue the held-back stream."""
        self._paused = False
        if self._waiting is not None:
            stream, self._waiting = self._waiting, None
            self._next_event(stream)

    def data_received(self, data: bytes) -> None:
        """Answer a complete request."""
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _content_length(head)
        if len(rest) < length:
            return
        self._received = rest[length:]
        self._answer(head[: head.index(b"\r\n")], rest[:length])

    def _answer(self, line: bytes, body: bytes) -> None:
        if b"/__pace" in line:
            content = orjson.loads(body)
            self._provider.pace = Pace(content["delay_ms"] / 1000, content["gap_ms"] / 1000, content["chunks"])
            self._provider.events = Events.of(self._provider.pace.chunks)
            self._transport.write(_HEAD + b"2\r\n\r\n{}")
            return
        asked = orjson.loads(body) if body else {}
        number = b"%010d" % next(self._provider.numbers)
        delay_s = self._provider.pace.delay_s
        if asked.get("stream"):
            wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            stream = _Stream(number, self._provider.events, self._provider.pace.gap_s, wants_usage)
            self._later(delay_s, self._open, stream)
            return
        reply = b'{"id":"chatcmpl-' + number + _UNARY_TAIL
        self._later(delay_s, self._transport.write, _HEAD + b"%d\r\n\r\n" % len(reply) + reply)

    def _later(self, delay_s: float, call: object, argument: object) -> None:
        if delay_s:
            self._timer = self._loop.call_later(delay_s, call, argument)  # type: ignore[arg-type]
        else:
            call(argument)  # type: ignore[operator]

    def _open(self, stream: _Stream) -> None:
        self._transport.write(_STREAM_HEAD)
        self._next_event(stream)

    def _next_event(self, stream: _Stream) -> None:
        if self._transport.is_closing():
            return
        if self._paused:
            self._waiting = stream
            return
        event = stream.next_event()
        if event is None:
            self._timer = None
            self._transport.write(stream.end())
            return
        self._transport.write(event)
        if stream.gap_s:
            self._timer = self._loop.call_later(stream.gap_s, self._next_event, stream)
        else:
            self._timer = self._loop.call_soon(self._next_event, stream)


class _Stream:
    __slots__ = ("_at", "_events", "_number", "_wants_usage", "gap_s")

    def __init__(self, number: bytes, events: Events, gap_s: float, wants_usage: bool) -> None:
        self._number, self._events, self.gap_s, self._wants_usage = number, events, gap_s, wants_usage
        self._at = 0

    def next_event(self) -> bytes | None:
        if self._at == len(self._events.parts):
            return None
        before, after = self._events.parts[self._at]
        self._at += 1
        return before + self._number + after

    def end(self) -> bytes:
        """Usage if requested, end marker and end of the body, in one write."""
        usage = b""
        if self._wants_usage:
            before, after = self._events.usage
            usage = before + self._number + after
        return usage + b"%x\r\n" % len(_END) + _END + b"\r\n0\r\n\r\n"


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    return int(lowered[at + 17 :].split(b"\r\n", 1)[0])


async def serve(port: int) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    provider = Provider(Pace(), Events.of(Pace().chunks), count())
    server = await loop.create_server(lambda: Connection(provider, loop), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Run the provider until interrupted."""
    parser = argparse.ArgumentParser(description="Minimal fake provider.")
    parser.add_argument("--port", type=int, default=18080)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
