"""HTTP/1.1 on httptools: uvicorn's protocol with limits on request heads and client delays.

httptools is several times faster than h11, but accepts headers of any size, waits for clients indefinitely, and returns
the body of a request with an unknown `Upgrade` as if it were the next request. Here:

- a head beyond `header_bytes` is 431, whether one endless header, thousands of small ones or an endless address;
- a head or a body that does not arrive completely in time is 408; a connection without a request is closed;
- an upgrade is ignored (RFC 9110, 7.8): the request is parsed again as HTTP/1.1, with its body;
- framing that another server might parse differently is 400, and the rest of the connection is not read;
- a client that reads nothing of its response for a minute is disconnected;
- a connection that is closed after an early answer reads the rest of its body first, for a while: closing on unread
  bytes would reset it and lose the answer. Idle connections are closed only when nothing waits to be read.

Refusals are JSON and follow the responses to earlier requests of the same connection.
"""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.api import framing
from gateway.api.one_response import Departure, LingeringTransport, UndelimitedResponse, tell_departure
from gateway.api.refusals import raw_answer, shed_answer
from gateway.api.whole_request import whole_request
from gateway.errors import GatewayError, HeadersTooLarge, InvalidRequest, RequestTimeout
from gateway.http import WATCH
from gateway.request_ids import REQUEST_ID_HEADER, id_of, numbered_ids

STATE_KEY = "http_limits"
"""Key of `HttpLimits` in the lifespan state, from which every connection of every worker reads it."""
LINGER_S = 1.0
"""Time to read and drop incoming bytes after a refusal; closing at once could reset the response."""
UNREAD_S = 0.05
"""Time for the event loop to read what has arrived, before a client is judged late."""
WRITE_STALL_S = 60.0
PIPELINE_CHECK_S = 0.25
"""Time between checks that the client of waiting requests is still connected."""
# Linux reports the client's end of the connection even before the bytes that precede it are read.
_LEFT: int = getattr(select, "POLLRDHUP", select.POLLHUP)
_SEPARATORS = 4  # ": " and the line's end

Phase = Literal["silent", "head", "body"]


@dataclass(frozen=True, slots=True)
class Shedding:
    """Refusals under overload, before a request is parsed or passed on."""

    error_of: Callable[[bytes, bytes, list[tuple[bytes, bytes]]], GatewayError | None]
    """Method, address and headers of a request -> the error with which to refuse it, or None."""
    headers: Sequence[bytes] = ()
    """Lower-case names of the headers that `error_of` reads."""
    is_crowded: Callable[[], bool] = lambda: True
    """Whether `error_of` may refuse anything now."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of the size of a request's head and of the arrival time of head and body."""

    header_bytes: int = 32 * 2**10
    head_s: float = 10.0
    body_s: float = 10.0
    shedding: Shedding | None = None
    on_refusal: Callable[[str], None] = lambda code: None
    """Called with the code of every error that is sent without the application."""
    new_request_id: Callable[[], str] = field(default_factory=numbered_ids)


class _Refused(ValueError):
    """Raised inside a parser callback to stop parsing; the reason is in `_refusal`."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. Its limits come from the lifespan state of the worker process."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits: HttpLimits = app_state.get(STATE_KEY) or HttpLimits()
        self._in_head = True
        self._begun = False
        self._completed = 0
        self._received = 0
        """Bytes of the head that have arrived, parsed or not."""
        self._parsed = 0
        """Bytes of the head that the parser has reported."""
        self._upgrade_ignored = False
        self._shed = False
        """The current request was refused under overload: its body is dropped."""
        self._shed_at_s = -math.inf
        self._input_ignored = False
        """The connection ends: incoming bytes are dropped."""
        self._lingering = False
        self._pipeline_watched = False
        self._refusal: GatewayError | None = None
        self._running: RequestResponseCycle | None = None
        self._phase: Phase | None = None
        self._phase_of = 0
        """Number of the awaited request; each request has its own timeout."""
        self._extended = False
        self._timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    # -- bytes in --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of a new connection."""
        super().connection_made(transport)
        self._wait_for("silent")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and tell the running request, which need not be the last one received."""
        self._wait_for(None)
        self._stop_watching_writes()
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        tell_departure(running)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, within the limits of the head."""
        shedding = self._limits.shedding
        if shedding is not None and shedding.is_crowded() and self._refused_whole(data, shedding):
            return
        self._unset_keepalive_if_required()
        if self._input_ignored:
            return
        began_in_head, completed = self._in_head, self._completed
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidRequest("malformed HTTP request"))
            return
        if not self._in_head:
            self._received = 0
            self._wait_for("body")
        elif self._begun or (began_in_head and completed == self._completed):
            # The parser buffers an unfinished header: bytes that do not complete the head count toward its limit.
            self._received = self._received + len(data) if began_in_head and completed == self._completed else 0
            if self._received > self._limits.header_bytes:
                self._refuse(self._too_large())
            else:
                self._wait_for("head")
        else:
            self._received = 0
            self._wait_for(None)

    def _parse(self, data: bytes) -> None:
        """Feed the parser. It stops after the head of an upgrade: feed that head without the upgrade to a new one."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
                version = self.parser.get_http_version().encode()
                head = framing.without_upgrade(self._method(), self.url, version, self.headers)
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._upgrade_ignored = False
                self.parser.feed_data(head)

    def _method(self) -> bytes:
        return bytes(self.parser.get_method())

    # -- the parser's callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start counting the head of a request."""
        self._in_head = self._begun = True
        self._parsed = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count and collect a part of the address."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and collect a header."""
        self._count_head(len(name) + len(value) + _SEPARATORS)
        if self._in_head:  # drop trailers: they arrive after authentication
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the framing, then start the request unless it is refused."""
        version = self.parser.get_http_version()
        refused = framing.why_refused(version, self._method(), self.headers)
        if refused is not None:
            self._stop(refused)
        if version == "1.0":
            self.expect_100_continue = False  # to be ignored there (RFC 9110, 10.1.1)
        if self.parser.should_upgrade():
            self._upgrade_ignored = True
            return
        self._in_head = self._begun = False
        if not self._refused_unread():
            super().on_headers_complete()
            if self.pipeline and not self._pipeline_watched:
                self._pipeline_watched = True
                self.loop.call_later(PIPELINE_CHECK_S, self._check_pipeline)

    def _check_pipeline(self) -> None:
        """End the connection of a client that has left: while a request waits, nothing is read."""
        self._pipeline_watched = bool(self.pipeline) and not self.transport.is_closing()
        if not self._pipeline_watched:
            return
        if self._arrived(_LEFT):
            self.transport.close()
        self.loop.call_later(PIPELINE_CHECK_S, self._check_pipeline)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body, unless the request was refused."""
        if not self._shed:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next request."""
        if self._upgrade_ignored:
            return
        self._in_head = True
        self._completed += 1
        if self._shed:
            self._shed = False
        else:
            super().on_message_complete()

    def _refused_whole(self, data: bytes, shedding: Shedding) -> bool:
        """Refuse a request under overload without parsing it, when it came as a whole on an idle connection."""
        between_requests = self._in_head and not self._begun and not self._received and self._is_idle()
        if not between_requests or self._input_ignored or self.transport.is_closing():
            return False
        request = whole_request(data, shedding.headers, self._limits.header_bytes)
        error = None if request is None else shedding.error_of(b"POST", request.url, request.headers)
        if request is None or error is None:
            return False
        self._write(*shed_answer(error, request.url))
        self._wait_for(None)
        self._shed_at_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.on_response_complete()
        else:  # its timer goes on and is prolonged when it fires
            self.server_state.total_requests += 1
            self._watch_writes()
        return True

    def _refused_unread(self) -> bool:
        """Refuse a request under overload, at a tenth of the application's cost, and drop its body."""
        shedding = self._limits.shedding
        if shedding is None or not self._is_idle() or not self.parser.should_keep_alive():
            return False
        error = shedding.error_of(self._method(), self.url, self.headers)
        if error is None:
            return False
        self._shed = True
        self._write(*shed_answer(error, self.url))
        self.on_response_complete()
        return True

    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _count_head(self, size: int) -> None:
        self._parsed += size
        if self._parsed > self._limits.header_bytes:
            self._stop(self._too_large())

    def _stop(self, refusal: GatewayError) -> None:
        self._refusal = refusal
        raise _Refused

    def _too_large(self) -> GatewayError:
        return HeadersTooLarge(f"headers: expected at most {self._limits.header_bytes} bytes")

    # -- client timeouts -------------------------------------------------------------------------------------------

    def _wait_for(self, phase: Phase | None) -> None:
        """Start the timeout for a part of a request; partial data does not extend it."""
        if (phase, self._completed) == (self._phase, self._phase_of):
            return
        self._phase, self._phase_of, self._extended = phase, self._completed, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if phase is not None:
            self._arm()

    def _arm(self) -> None:
        seconds = self._limits.body_s if self._phase == "body" else self._limits.head_s
        self._timer = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # reading is paused: an earlier response is being sent
            self._arm()
        elif not self._extended and self._unread():  # once: a client that sends without end is late too
            self._extended = True
            self._timer = self.loop.call_later(UNREAD_S, self._late)
        elif self._phase == "silent":
            self.transport.close()
        else:
            part, seconds = self._phase, self._limits.body_s if self._phase == "body" else self._limits.head_s
            self._refuse(RequestTimeout(f"the request's {part} did not arrive within {seconds:g} s"))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a busy loop has not read its next request yet."""
        remaining_s = self._shed_at_s + self.timeout_keep_alive - self.loop.time()
        if remaining_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(remaining_s, self.timeout_keep_alive_handler)
        elif not self._unread():
            super().timeout_keep_alive_handler()

    def _unread(self) -> bool:
        """Whether bytes, or the connection's end, wait to be read."""
        return self._arrived(select.POLLIN)

    def _arrived(self, events: int) -> bool:
        number = self.transport.get_extra_info("socket").fileno()
        if number < 0:  # closed already; the loop reports it next
            return False
        arrived = select.poll()
        arrived.register(number, events)
        return bool(arrived.poll(0))

    def pause_writing(self) -> None:
        """Watch for a client that stops reading."""
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        """Stop the write timeout."""
        self._stop_watching_writes()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Watch the unsent rest of a response."""
        if self._lingering:
            self.server_state.total_requests += 1
        else:
            if self._running is not None:
                self._running.transport = self.transport  # no cycle of references is left behind
            super().on_response_complete()
        self._watch_writes()

    def _watch_writes(self) -> None:
        if self._stall_timer is None and (unsent := self.transport.get_write_buffer_size()) > 0:
            self._unsent = unsent
            self._stall_timer = self.loop.call_later(WRITE_STALL_S, self._check_writes)

    def _stop_watching_writes(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _check_writes(self) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size() >= self._unsent:
            self.transport.abort()
        else:
            self._watch_writes()

    # -- responses -------------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        # uvicorn's cycle calls only the three methods of a transport that this one has.
        cycle.transport = LingeringTransport(self.transport, cycle, self._linger)  # type: ignore[assignment]
        departure = Departure(cycle.flow, cycle.disconnected)
        request_id = id_of(cycle.scope["headers"], self._limits.new_request_id)
        extensions: Any = {WATCH: departure, REQUEST_ID_HEADER: request_id}
        cycle.scope["extensions"] = extensions
        cycle.default_headers = [*cycle.default_headers, (REQUEST_ID_HEADER.encode(), request_id.encode())]
        if cycle.scope["http_version"] == "1.0":
            app = UndelimitedResponse(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _refuse(self, error: GatewayError) -> None:
        """Stop reading. Send the error, unless an earlier response is pending or has started."""
        self._input_ignored = True
        self._wait_for(None)
        if self.transport.is_closing():
            return
        broken = None if self._in_head or self._shed else self.cycle
        if broken is not None and self.pipeline and self.pipeline[0][0] is broken:
            self.pipeline.popleft()
            broken = None
        if self.pipeline:
            self.pipeline[0][0].keep_alive = False
        elif broken is not None:
            if broken.response_started:
                self.transport.close()
            else:
                broken.disconnected = True
                broken.message_event.set()
                tell_departure(broken)
                self._answer(error)
        elif self._running is not None and not self._running.response_complete:
            self._running.keep_alive = False
        elif self._shed:
            self.transport.close()
        else:
            self._answer(error)

    def _write(self, status: bytes, rest: bytes) -> None:
        headers = b"".join([b"%s: %s\r\n" % header for header in self.server_state.default_headers])
        self.transport.write(b"%s%s%s" % (status, headers, rest))

    def _answer(self, error: GatewayError) -> None:
        self._limits.on_refusal(error.code)
        path = "" if self._in_head else self.scope["path"]
        named = (REQUEST_ID_HEADER.encode(), self._request_id().encode())
        self._write(*raw_answer(error, path, [named, (b"connection", b"close")]))
        self._linger()

    def _request_id(self) -> str:
        """The id of the refused request: the one it started with, else one by the part of its head that was read."""
        extensions: Any = None if self._in_head else self.scope.get("extensions")
        if extensions:
            return str(extensions[REQUEST_ID_HEADER])
        return id_of(self.headers if self._begun or not self._in_head else (), self._limits.new_request_id)

    def _linger(self) -> None:
        """End the connection, but read and drop for a while what its client is still sending."""
        self._input_ignored = self._lingering = True
        self._wait_for(None)
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()
