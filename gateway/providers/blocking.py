"""HTTP transport of LiteLLM's blocking client, for providers whose code runs in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import httpx

from gateway.providers.exchange import EXCHANGE, Exchange, never_sent
from gateway.providers.litellm_transport import StreamLines, answered, begin, kind_of, outgoing


class BlockingTransport(httpx.BaseTransport):
    """Blocking counterpart of `BoundedTransport`, without persistent connections."""

    @cached_property
    def _inner(self) -> httpx.BaseTransport:
        """Made for the first call: reading the trusted certificates takes longer than the rest of a start."""
        return httpx.HTTPTransport(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and record it in the call's exchange."""
        exchange = EXCHANGE.get() or Exchange()
        # A thread cannot be cancelled, so its sockets time out with the call.
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), exchange.thread_timeout_s)
        kind = kind_of(request, exchange)
        if kind == "refused":
            raise httpx.ConnectError("only the call itself may be sent", request=request)
        if kind == "sent":
            return self._inner.handle_request(outgoing(request, None))
        begin(exchange, request)
        try:
            response = self._inner.handle_request(outgoing(request, exchange.organization, exchange.bearer))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            exchange.failure = type(error)
            exchange.reached = not (isinstance(error, httpx.ConnectError) or never_sent(error))
            raise
        answered(exchange, response)
        assert isinstance(response.stream, httpx.SyncByteStream)
        body = _BlockingBody(response.stream, exchange)
        return httpx.Response(response.status_code, headers=response.headers, stream=body, request=request)

    def close(self) -> None:
        """Close the inner transport, if a call has made it."""
        if "_inner" in vars(self):
            self._inner.close()


class _BlockingBody(httpx.SyncByteStream):
    """Passes the response on, keeps a copy (only the tail of a stream), and stops at the limit."""

    def __init__(self, inner: httpx.SyncByteStream, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    def __iter__(self) -> Iterator[bytes]:
        lines = StreamLines(self._exchange, None)
        try:
            for piece in self._inner:
                if made := lines.feed(piece):
                    yield made
        except httpx.HTTPError as error:
            lines.break_off(error)
            raise
        if made := lines.finish():
            yield made
        self._exchange.ended()

    def close(self) -> None:
        self._inner.close()
