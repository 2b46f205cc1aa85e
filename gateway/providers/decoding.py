"""Bounded decompression of responses: some providers compress although not asked to."""

from __future__ import annotations

import zlib
from typing import Protocol

_GZIP_BITS = 16 + zlib.MAX_WBITS
_HEAD_BYTES = 2
_KINDS = {"gzip": _GZIP_BITS, "x-gzip": _GZIP_BITS, "deflate": zlib.MAX_WBITS}
_GZIP_HEAD = b"\x1f\x8b"
_PLAIN = frozenset({"", "identity", "none", "utf-8", "utf8", "binary", "aws-chunked"})
"""What servers write for a response that is not compressed; some mean the charset."""


class UnpackingError(ValueError):
    """The compressed response is malformed, or unpacks to more than the limit."""


class Decoder(Protocol):
    """Unpacks a response piece by piece."""

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        """Unpack `piece` to at most `max_bytes`. Raises UnpackingError."""


def decoder_for(content_encoding: str) -> Decoder | None:
    """The decoder of an encoding; None if uncompressed. Raises UnpackingError if unknown."""
    kind = content_encoding.strip().lower()
    if kind in _PLAIN:
        return None
    if kind not in _KINDS:
        raise UnpackingError(f"expected gzip, deflate or identity, got a content-encoding of {len(kind)} letters")
    return _Inflater(_KINDS[kind])


class _Inflater:
    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inner = zlib.decompressobj(bits)
        self._head = b""
        self._begun = False
        self._plain = False
        self._between_members = False

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        if not self._begun:
            self._head += piece
            if len(self._head) < _HEAD_BYTES:
                return b""
            piece, self._begun = self._head, True
            # Some proxies unpack a response and leave its label.
            self._plain = self._bits == _GZIP_BITS and not piece.startswith(_GZIP_HEAD)
            if self._bits == zlib.MAX_WBITS and not _has_zlib_head(piece):
                # Some servers send a raw deflate stream as "deflate".
                self._bits = -zlib.MAX_WBITS
                self._inner = zlib.decompressobj(self._bits)
        if self._plain:
            return piece
        made: list[bytes] = []
        size = 0
        while piece := self._padded(piece):
            try:
                made.append(self._inner.decompress(piece, max_bytes + 1 - size))
            except zlib.error:
                raise UnpackingError("expected a compressed response as announced in its header") from None
            size += len(made[-1])
            if size > max_bytes:
                raise UnpackingError(f"expected a response that unpacks to at most {max_bytes} bytes")
            piece = self._inner.unconsumed_tail
            if self._inner.eof:
                # Consecutive gzip members form one text.
                piece, self._between_members = self._inner.unused_data, True
                self._inner = zlib.decompressobj(self._bits)
        return b"".join(made)

    def _padded(self, piece: bytes) -> bytes:
        """`piece` without the zero padding that may follow a member."""
        if self._between_members:
            piece = piece.lstrip(b"\0")
            self._between_members = not piece
        return piece


def _has_zlib_head(data: bytes) -> bool:
    return data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
