"""Server-sent events: a reader for providers' streams, and frames for ours.

`EventReader` accepts bytes in arbitrary pieces and returns complete events. It handles CR, LF and CRLF, a byte-order
mark, comments and events without a final blank line, and buffers at most `max_event_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_EVENT_BYTES = 32 * 2**20
"""Large enough for an image in one event; bounds the memory of an endless line."""

DONE_FRAME = b"data: [DONE]\n\n"
_UNFINISHED = (b"{", b"[", b",")
"""Ends of a line on which no JSON ends."""
_NO_DATA = (b"", b"event", b"id", b"retry")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """An event: its name, empty for an ordinary one, and its joined data lines."""

    name: bytes
    data: bytes


class EventTooLarge(ValueError):
    """An event exceeds the reader's limit."""


class LineFeeds:
    """The line ends of a stream in pieces, as line feeds."""

    def __init__(self) -> None:
        self._after_cr = False

    def of(self, piece: bytes) -> bytes:
        """Convert CRLF and CR to LF, also when a piece ends between the two."""
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece.removeprefix(b"\n")
        if b"\r" not in piece:
            return piece
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class EventReader:
    """Incremental SSE parser; `lines` counts complete lines and comments, for idle timeouts."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.lines = 0
        self._max_event_bytes = max_event_bytes
        self._tail = b""
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._line_feeds = LineFeeds()
        self._started = False
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._printed = False

    def feed(self, piece: bytes) -> list[Event]:
        """Events that `piece` completed. Raises EventTooLarge."""
        text = self._line_feeds.of(piece)
        if self._started and b"\n" not in text:
            # A line of many pieces is joined once, at its end.
            self._open.append(text)
            self._open_bytes += len(text)
            self._check_size(len(self._tail) + self._open_bytes)
            return []
        if self._open:
            text = b"".join([self._tail, *self._open, text])
            self._open, self._open_bytes = [], 0
        else:
            text = self._tail + text
        if not self._started:
            if len(text) < 3 and BYTE_ORDER_MARK.startswith(text):
                self._tail = text
                return []
            self._started = True
            text = text.removeprefix(BYTE_ORDER_MARK)
        *lines, self._tail = text.split(b"\n")
        self._check_size(len(self._tail))
        events: list[Event] = []
        for line in lines:
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def finish(self) -> list[Event]:
        """The event that the end of the stream completed, if any."""
        events = []
        last = b"".join([self._tail, *self._open])
        self._open, self._open_bytes = [], 0
        for line in (last, b""):
            event = self._take(line)
            if event is not None:
                events.append(event)
        self._tail = b""
        return events

    def _take(self, line: bytes) -> Event | None:
        self.lines += 1
        if not line:
            if not self._data:
                self._name = b""
                return None
            event = Event(self._name, b"\n".join(self._data))
            self._name, self._data, self._data_bytes, self._printed = b"", [], 0, False
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field != b"data":
            if field == b"event":
                self._name = value
            # Not in the standard: a bare JSON object, in which some providers send an error or the complete response;
            # and the further lines of JSON over several lines, of which only the first has the field's name.
            bare = line.startswith(b"{") or (self._printed and field not in _NO_DATA)
            if not bare:
                return None
            value = line
        self._data_bytes += len(value)
        self._check_size(self._data_bytes)
        self._data.append(value)
        if value.endswith(_UNFINISHED):
            self._printed = True
        return None

    def _check_size(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise EventTooLarge(f"expected events of at most {self._max_event_bytes} bytes")


def data_frame(payload: Mapping[str, Any]) -> bytes:
    """An unnamed event with a JSON payload."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def event_frame(name: str, payload: Mapping[str, Any]) -> bytes:
    """A named event, as in Anthropic's Messages and OpenAI's Responses."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"


def billed_frame(bill: Mapping[str, Any], frame: bytes) -> bytes:
    """The frame with the bill before it, as an SSE comment, which other clients skip.

    Both are in one block, because some decoders treat every blank line as an event, even after a comment.
    """
    return b": seqroute " + orjson.dumps(bill) + b"\n" + frame
