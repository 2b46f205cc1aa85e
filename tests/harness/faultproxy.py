"""A TCP proxy that hurts: latency, resets, half-closes, silence, refusal, and an answer lost right after a COMMIT.

It stands between a gateway and its database, or between a gateway and a provider; the other side is never changed.

    async with FaultProxy("127.0.0.1", postgres_port) as proxy:
        proxy.latency_s = 0.2          every packet, both ways
        proxy.silent = True            connections stay, nothing passes (a frozen host, a lost route)
        proxy.reset()                  RST to everyone connected now
        proxy.half_close()             FIN towards the client, the other direction stays
        proxy.refusing = True          new connections are reset at once
        proxy.lose_answers = 0.01      each answer, with this probability, never arrives: the connection dies instead
        proxy.lose_requests = 0.01     the same before the request has arrived
        proxy.loses = lambda way, data: ...   decides by itself what is lost, beside these rates
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import Literal, Self

PIECE_BYTES = 65536
Way = Literal["request", "reply"]


class FaultProxy:
    """Settings may be changed at any time and hold for every connection, old and new."""

    def __init__(self, host: str, port: int, *, seed: int = 1) -> None:
        self._target = (host, port)
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = 0
        self.latency_s = 0.0
        self.refusing = False
        self.lose_answers = 0.0
        self.lose_requests = 0.0
        self.loses: Callable[[Way, bytes], bool] = lambda way, data: False
        self.lost_answers = 0
        self.accepted = 0

    @property
    def silent(self) -> bool:
        return not self._flowing.is_set()

    @silent.setter
    def silent(self, silent: bool) -> None:
        if silent:
            self._flowing.clear()
        else:
            self._flowing.set()

    @property
    def connections(self) -> int:
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset(self, *, after_s: float = 0.0) -> None:
        """Reset the connections whose last request is at least `after_s` old."""
        before_s = asyncio.get_running_loop().time() - after_s
        for link in list(self._links):
            if link.asked_s <= before_s:
                link.reset()

    def half_close(self) -> None:
        for link in list(self._links):
            link.half_close()

    def heal(self) -> None:
        """No faults from now on."""
        self.latency_s = self.lose_answers = self.lose_requests = 0.0
        self.refusing = self.silent = False
        self.loses = lambda way, data: False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            if self.refusing:
                _abort(writer)
                return
            await self._flowing.wait()
            to_reader, to_writer = await asyncio.open_connection(*self._target)
            link = _Link(writer, to_writer)
            self._links.add(link)
            try:
                up = self._pump(reader, to_writer, link, "request")
                down = self._pump(to_reader, writer, link, "reply")
                await asyncio.gather(up, down)
            finally:
                self._links.discard(link)
                for side in (writer, to_writer):
                    side.close()
        except (OSError, asyncio.CancelledError):
            _abort(writer)
        finally:
            self._tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, link: _Link, way: Way) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(PIECE_BYTES):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self._flowing.wait()
                loss = self.lose_answers if way == "reply" else self.lose_requests
                if (loss and self._random.random() < loss) or self.loses(way, piece):
                    self.lost_answers += way == "reply"
                    link.reset()
                    return
                if way == "request":
                    link.asked_s = asyncio.get_running_loop().time()
                sink.write(piece)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._client, self._server = client, server
        self.asked_s = 0.0

    def reset(self) -> None:
        """The client sees a RST; the server sees the connection end only after it has done what it was asked."""
        _abort(self._client)
        self._server.close()

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
