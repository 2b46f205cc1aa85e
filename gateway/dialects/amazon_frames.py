"""Amazon's binary event streams.

https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html: a frame has a prelude (length, length of the
headers, CRC of both), headers, a payload and a CRC. An exception is a frame of its own after status 200.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.unchecked import at

_PRELUDE = struct.Struct("!III")
_CRC_BYTES = 4
_EMPTY_BYTES = _PRELUDE.size + _CRC_BYTES
"""A frame without headers and payload."""
_LARGEST_BYTES = 24 * 2**20
"""The largest payload that botocore reads."""
_MARK = b":message-type"
_READ_BYTES = 2**16
"""The end that is read: an exception is the last frame."""
_TEXT = 7
"""The type of a header whose value is a text; Amazon's own are texts."""
_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""The sizes of the values of other types; texts and bytes state theirs."""

Frame = tuple[Mapping[str, str], bytes]
"""A frame's headers with a text for their value, and its payload."""


def take_frames(held: bytearray) -> Iterator[Frame]:
    """The whole frames at the beginning, taken out. Raises ValueError for what is no frame."""
    while len(held) >= _EMPTY_BYTES:
        length = _length_at(held, 0)
        if not length:
            raise ValueError("expected the length of a frame")
        if len(held) < length:
            return
        frame = bytes(held[:length])
        del held[:length]
        yield _parts(frame)


def exception_in(frame: Frame) -> dict[str, Any] | None:
    """The exception that a frame is; None for an event."""
    headers, payload = frame
    kind = headers.get(":exception-type") or headers.get(":error-code") or headers.get(":event-type", "")
    if headers.get(":message-type", "event") == "event" and not kind.endswith("Exception"):
        return None
    try:
        said = at(orjson.loads(payload), "message")
    except ValueError:
        said = None
    return {"type": kind, "message": said or headers.get(":error-message") or ""}


def last_exception(tail: bytes | bytearray) -> dict[str, Any] | None:
    """The exception in the frames of a body, whose first one may be cut; None without any."""
    data, start, found = bytes(tail[-_READ_BYTES:]) if _MARK in tail else b"", 0, None
    while 0 <= start <= len(data) - _EMPTY_BYTES:
        length = _length_at(data, start)
        try:
            frame = _parts(data[start : start + length]) if 0 < length <= len(data) - start else None
        except ValueError:
            frame = None
        if frame is None:
            # The beginning of the kept part may be in the middle of a frame; the length of what fits starts with zeros.
            start = data.find(b"\0\0", start + 1)
            continue
        found = exception_in(frame) or found
        start += length
    return found


def _length_at(data: bytes | bytearray, start: int) -> int:
    """The length of the frame that begins there; 0 if none can."""
    length, headers_length, checksum = _PRELUDE.unpack_from(data, start)
    likely = headers_length + _EMPTY_BYTES <= length <= _LARGEST_BYTES
    return length if likely and checksum == binascii.crc32(data[start : start + 8]) else 0


def _parts(frame: bytes) -> Frame:
    if binascii.crc32(frame[:-_CRC_BYTES]) != int.from_bytes(frame[-_CRC_BYTES:]):
        raise ValueError("expected the checksum of a frame")
    payload_at = _PRELUDE.size + int.from_bytes(frame[4:8])
    return _headers(frame[_PRELUDE.size : payload_at]), frame[payload_at:-_CRC_BYTES]


def _headers(data: bytes) -> Mapping[str, str]:
    found: dict[str, str] = {}
    start = 0
    while start < len(data):
        kind_at = start + 1 + data[start]
        kind, value_at = data[kind_at : kind_at + 1], kind_at + 1
        size = _VALUE_BYTES.get(kind[0]) if kind else 0
        if size is None and kind[0] in (_TEXT - 1, _TEXT):
            size, value_at = int.from_bytes(data[value_at : value_at + 2]), value_at + 2
        if not kind or size is None or value_at + size > len(data):
            raise ValueError("expected the headers of a frame")
        if kind[0] == _TEXT:
            found[data[start + 1 : kind_at].decode("utf-8", "replace")] = data[value_at : value_at + size].decode(
                "utf-8", "replace"
            )
        start = value_at + size
    return found
