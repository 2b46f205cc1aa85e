"""Reading a complete, ordinary POST from the bytes of one read, without a parser.

Under overload most requests are refused, and a parser with a callback for each header costs more than the refusal. A
request is ordinary when nothing about its framing could be read in another way: one Content-Length that ends exactly
with the bytes, no Transfer-Encoding, Upgrade or Expect, no Connection but the `keep-alive` that HTTP clients send,
lines that end with CR LF. All others, malformed ones included, are left to the parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_BEGIN, _END, _HEAD_END, _LENGTH = b"POST /", b" HTTP/1.1", b"\r\n\r\n", b"\r\ncontent-length:"
_OTHER_FRAMING = (b"transfer-encoding", b"\r\nupgrade", b"\r\nexpect", b"\r\n ", b"\r\n\t", b"\0")
_CONNECTION, _KEPT = b"\r\nconnection", b"\r\nconnection: keep-alive\r\n"
_LONGEST_LENGTH = 7


@dataclass(frozen=True, slots=True)
class WholeRequest:
    """The address of a POST and those of its headers that were asked for, by lower-case name."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


def whole_request(data: bytes, names: Sequence[bytes], header_bytes: int) -> WholeRequest | None:
    """The ordinary request that `data` is, with a head of at most `header_bytes`, or None."""
    if not data.startswith(_BEGIN):
        return None
    end = data.find(_HEAD_END)
    if not 0 < end <= header_bytes:
        return None
    head = data[: end + 2].lower()
    line = data[: data.find(b"\r\n")]
    url = line[5 : -len(_END)]
    if not line.endswith(_END) or b" " in url or not url.isascii():
        return None
    if head.count(b"\n") != head.count(b"\r\n") or head.count(b"\r") != head.count(b"\n"):
        return None
    if head.count(b"content-length") != 1 or head.count(b"\r\nhost:") != 1:
        return None
    for sign in _OTHER_FRAMING:
        if sign in head:
            return None
    if head.count(_CONNECTION) != head.count(_KEPT):
        return None
    length = _value(data, head, _LENGTH)
    if length is None or not length.isdigit() or len(length) > _LONGEST_LENGTH:
        return None
    if int(length) != len(data) - end - len(_HEAD_END):
        return None
    found = []
    for name in names:
        value = _value(data, head, b"\r\n%s:" % name)
        if value is not None:
            found.append((name, value))
    return WholeRequest(url, found)


def _value(data: bytes, head: bytes, start: bytes) -> bytes | None:
    """The value of the last header that begins so; `head` is the lower-case beginning of `data`."""
    at = head.rfind(start)
    if at < 0:
        return None
    at += len(start)
    return data[at : head.find(b"\r\n", at)].strip(b" \t")
