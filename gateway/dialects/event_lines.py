"""Event streams for readers that take them line by line, as LiteLLM's do.

Such a reader misses the first event behind a byte-order mark, fails at data over several lines, at a field without a
space behind its colon, and at characters of a text that Python counts as ends of a line.
"""

from __future__ import annotations

import orjson

from gateway.dialects.documents import is_done
from gateway.dialects.sse import BYTE_ORDER_MARK, LineFeeds

_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""Characters beyond ASCII at which Python ends a line, and how JSON writes them."""


def begins_events(content_type: str, start: bytes) -> bool:
    """True for an event stream by its label or its first bytes."""
    if "text/event-stream" in content_type.lower():
        return True
    return start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(_FIELDS[:2])


class EventLines:
    """A stream in pieces with every JSON value on one line, behind `data: `."""

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._data: list[bytes] = []
        self._line_feeds = LineFeeds()
        self._started = False

    def feed(self, piece: bytes) -> bytes:
        """Return what `piece` completed; data that is no value waits for the line behind it."""
        text = self._line_feeds.of(piece)
        self._open.append(text)
        if b"\n" not in text:
            return b""
        *lines, rest = b"".join(self._open).split(b"\n")
        self._open = [rest] if rest else []
        if not self._started:
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
            self._started = True
        made = b"".join(map(self._take, lines))
        return made if rest or not self._holds_value() else made + self._written()

    def finish(self) -> bytes:
        """Return the rest of a stream that has ended."""
        rest = b"".join(self._open)
        if not self._started:
            rest = rest.removeprefix(BYTE_ORDER_MARK)
        self._open = []
        last = self._take(rest) if self._data or rest.startswith(_FIELDS) else rest
        return last + self._written()

    def _take(self, line: bytes) -> bytes:
        if not line:
            return self._written() + b"\n"
        # Some servers leave out the blank line between events: a value that is complete is one.
        before = self._written() if self._holds_value() else b""
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif self._data and not line.startswith(_FIELDS):
            self._data.append(line)  # the rest of printed JSON, of which only the first line has the field's name
        else:
            return before + line + b"\n"
        return before

    def _holds_value(self) -> bool:
        return len(self._data) == 1 and _is_value(self._data[0])

    def _written(self) -> bytes:
        data, self._data = self._data, []
        if len(data) > 1 and _is_value(joined := b" ".join(data)):
            data = [joined]
        return b"".join(b"data: " + _in_one_line(value) + b"\n" for value in data)


def _is_value(data: bytes) -> bool:
    if is_done(data):
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _in_one_line(value: bytes) -> bytes:
    if value.isascii() or value[:1] not in b"{[":
        return value
    for character, escaped in _LINE_ENDS:
        value = value.replace(character, escaped)
    return value
