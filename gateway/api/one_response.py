"""One response of a connection: its transport, its end, and who watches for its client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.http import WATCH, OnLeave


@dataclass(slots=True)
class Departure:
    """Watches for the disconnect of one request's client (`gateway.http.Watch`)."""

    flow: FlowControl
    gone: bool
    on_leave: OnLeave | None = None

    def __call__(self, on_leave: OnLeave) -> Callable[[], None]:
        """Call `on_leave` once when the client goes; returns what stops that."""
        self.flow.resume_reading()  # a disconnect is read too
        self.on_leave = on_leave
        if self.gone:
            asyncio.get_running_loop().call_soon(self.tell)
        return self.stop

    def stop(self) -> None:
        """Watch no longer."""
        self.on_leave = None

    def tell(self) -> None:
        """Note that the client has gone."""
        self.gone = True
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave()


def tell_departure(cycle: RequestResponseCycle | None) -> None:
    """Tell who watches for the client of this request that it has gone."""
    if cycle is not None and cycle.disconnected:
        departure: Any = (cycle.scope.get("extensions") or {}).get(WATCH)
        if departure is not None:
            departure.tell()


@dataclass(frozen=True, slots=True)
class LingeringTransport:
    """The transport of one response, which does not cut off a body that is still arriving."""

    transport: asyncio.Transport
    cycle: RequestResponseCycle
    linger: Callable[[], None]

    def write(self, data: bytes) -> None:
        """Write to the connection."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Tell whether the connection is closing."""
        return self.transport.is_closing()

    def close(self) -> None:
        """End the connection, after the rest of the request's body if it is still arriving."""
        if self.cycle.more_body and self.cycle.response_complete:
            self.linger()
        else:
            self.transport.close()


class UndelimitedResponse:
    """A response without chunks for HTTP/1.0, ended by the connection (RFC 9112, 6.1)."""

    def __init__(self, app: ASGIApp, cycle: RequestResponseCycle) -> None:
        self._app = app
        self._cycle = cycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle, undelimited = self._cycle, False

        async def send_whole(message: Message) -> None:
            nonlocal undelimited
            if message["type"] == "http.response.start":
                undelimited = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if undelimited:
                    cycle.chunked_encoding = False
            elif undelimited:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_whole)
