"""HTTP into the gateway: uvicorn's protocol on httptools, with a limit to what a request's head may weigh.

httptools is several times faster than h11, but takes headers of any size: 100 MB in one request were collected and
answered. Here a head beyond the limit ends the connection with 400, whether it comes as one endless header, as
thousands of small ones, or as an address without end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

DEFAULT_HEAD_BYTES = 32 * 2**10
_SEPARATORS = 4  # ": " and the line's end


class HeadTooLarge(ValueError):
    """Raised inside the parser, which makes an invalid request of it."""


class BoundedHttp(HttpToolsProtocol):
    """The limit is the server's `h11_max_incomplete_event_size`: the same setting as for h11, as `config` travels to
    worker processes while a class made for a limit would not."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limit = config.h11_max_incomplete_event_size or DEFAULT_HEAD_BYTES
        self._in_head = True
        self._received = 0
        self._parsed = 0

    def data_received(self, data: bytes) -> None:
        began_in_head = self._in_head
        super().data_received(data)
        if not (began_in_head and self._in_head):
            self._received = 0
            return
        # The parser keeps an unfinished header to itself: what came without completing the head counts as one.
        self._received += len(data)
        if self._received > self._limit and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._parsed = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._weigh(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._weigh(len(name) + len(value) + _SEPARATORS)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def _weigh(self, size: int) -> None:
        self._parsed += size
        if self._parsed > self._limit:
            raise HeadTooLarge
