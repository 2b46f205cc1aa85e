"""Compressed answers, unpacked within a limit: nobody asked for them, and some providers compress all the same."""

from __future__ import annotations

import zlib
from typing import Protocol

_GZIP_BITS = 16 + zlib.MAX_WBITS
_KINDS = {"gzip": _GZIP_BITS, "x-gzip": _GZIP_BITS, "deflate": zlib.MAX_WBITS}


class UnpackingError(ValueError):
    """A compressed answer is no such thing, or unpacks to more than the limit."""


class Decoder(Protocol):
    """Unpacks an answer piece by piece."""

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        """What `piece` unpacks to, at most `max_bytes`. Raises UnpackingError."""


def decoder_for(content_encoding: str) -> Decoder | None:
    """None for an answer that is not compressed. Raises UnpackingError for a kind that is not known."""
    kind = content_encoding.strip().lower()
    if kind in ("", "identity"):
        return None
    if kind not in _KINDS:
        raise UnpackingError(f"expected gzip, deflate or identity, got a content-encoding of {len(kind)} letters")
    return _Inflater(_KINDS[kind])


class _Inflater:
    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inner = zlib.decompressobj(bits)
        self._begun = False

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        made: list[bytes] = []
        size = 0
        while piece:
            out = self._step(piece, max_bytes + 1 - size)
            made.append(out)
            size += len(out)
            if size > max_bytes:
                raise UnpackingError(f"expected an answer that unpacks to at most {max_bytes} bytes")
            piece = self._inner.unconsumed_tail
            if self._inner.eof:
                # Several gzip members after each other are one text.
                piece = self._inner.unused_data.lstrip(b"\0")
                self._inner = zlib.decompressobj(self._bits)
        return b"".join(made)

    def _step(self, piece: bytes, max_bytes: int) -> bytes:
        begun, self._begun = self._begun, True
        try:
            return self._inner.decompress(piece, max_bytes)
        except zlib.error:
            if begun or self._bits != zlib.MAX_WBITS:
                raise UnpackingError("expected a compressed answer as its head says") from None
        # "deflate" is used for the bare stream too.
        self._bits = -zlib.MAX_WBITS
        self._inner = zlib.decompressobj(self._bits)
        return self._step(piece, max_bytes)
