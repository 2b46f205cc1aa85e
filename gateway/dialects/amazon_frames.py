"""Amazon's binary event streams: the exception in the last frames of one.

https://docs.aws.amazon.com/lexv2/latest/dg/event-stream-encoding.html: a frame has a prelude (length, length of the
headers, CRC of both), headers, a payload and a CRC. An exception is a frame of its own after status 200.
"""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

_PRELUDE = struct.Struct("!III")
_CRC_BYTES = 4
_EMPTY_BYTES = _PRELUDE.size + _CRC_BYTES
"""A frame without headers and payload."""
_MARK = b":message-type"
_READ_BYTES = 2**16
"""The end that is read: an exception is the last frame."""
_TEXT = 7
"""The type of a header whose value is a text."""


def last_exception(tail: bytes | bytearray) -> dict[str, Any] | None:
    """The exception in the frames of a body, whose first one may be cut; None without any."""
    found = None
    for headers, payload in _frames(bytes(tail[-_READ_BYTES:])) if _MARK in tail else ():
        kind = headers.get(":exception-type") or headers.get(":error-code") or headers.get(":event-type", "")
        if headers.get(":message-type") == "event" and not kind.endswith("Exception"):
            continue
        try:
            read = orjson.loads(payload)
        except ValueError:
            read = None
        said = read.get("message") if isinstance(read, dict) else None
        found = {"type": kind, "message": said or headers.get(":error-message") or ""}
    return found


def _frames(data: bytes) -> Iterator[tuple[Mapping[str, str], bytes]]:
    """Headers and payload of every complete frame."""
    start = 0
    while 0 <= start <= len(data) - _EMPTY_BYTES:
        length, header_length, checksum = _PRELUDE.unpack_from(data, start)
        end = start + length
        whole = _EMPTY_BYTES + header_length <= length <= len(data) - start
        if not whole or checksum != binascii.crc32(data[start : start + 8]):
            # The beginning of the kept part may be in the middle of a frame; the length of what fits starts with zeros.
            start = data.find(b"\0\0", start + 1)
            continue
        payload_at = start + _PRELUDE.size + header_length
        yield _headers(data[start + _PRELUDE.size : payload_at]), data[payload_at : end - _CRC_BYTES]
        start = end


def _headers(data: bytes) -> Mapping[str, str]:
    """The headers up to the first one that is no text; Amazon's own are texts."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        if name_end + 3 > len(data) or data[name_end] != _TEXT:
            break
        name, value_at = data[at + 1 : name_end].decode("utf-8", "replace"), name_end + 3
        at = value_at + int.from_bytes(data[name_end + 1 : value_at])
        found[name] = data[value_at:at].decode("utf-8", "replace")
    return found
