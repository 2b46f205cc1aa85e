"""Bounded decompression of responses: some providers compress although asked not to.

Brotli and Zstandard are read where their packages are installed (`pip install "seqroute[encodings]"`).
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from typing import Protocol

_GZIP_BITS = 16 + zlib.MAX_WBITS
_HEAD_BYTES = 2
_KINDS = {"gzip": _GZIP_BITS, "x-gzip": _GZIP_BITS, "deflate": zlib.MAX_WBITS}
_PACKAGES = {"br": "brotli", "zstd": "zstandard"}
_SLICE_BYTES = 128
"""Of Zstandard at once: four bytes may unpack to 128 KiB."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}")
_GZIP_HEAD = b"\x1f\x8b"
_PLAIN = frozenset({"", "identity", "none", "utf-8", "utf8", "binary", "aws-chunked"})
"""What servers write for a response that is not compressed; some mean the charset."""


_BROKEN = "expected a compressed response as announced in its header"


class UnpackingError(ValueError):
    """The compressed response is malformed, or unpacks to more than the limit."""


class Decoder(Protocol):
    """Unpacks a response piece by piece."""

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        """Unpack `piece` to at most `max_bytes`. Raises UnpackingError."""


def decoder_for(content_encoding: str) -> Decoder | None:
    """The decoder of an encoding; None if uncompressed. Raises UnpackingError if unreadable."""
    kinds = [kind for each in content_encoding.lower().split(",") if (kind := each.strip()) not in _PLAIN]
    if not kinds:
        return None
    [kind] = kinds if len(kinds) == 1 else [""]
    if kind in _KINDS:
        return _Inflater(_KINDS[kind])
    package = _PACKAGES.get(kind)
    if package is not None and importlib.util.find_spec(package) is not None:
        return _Brotli() if kind == "br" else _Zstandard()
    raise UnpackingError(f"a content-encoding of {encoding_name(content_encoding)}")


def encoding_name(content_encoding: str) -> str:
    """A content-encoding for a log line, if it is names and nothing else."""
    names = [name.strip() for name in content_encoding.split(",")]
    return ", ".join(names) if all(map(_NAME.fullmatch, names)) else "(no name of one)"


class _Brotli:
    def __init__(self) -> None:
        import brotli  # noqa: PLC0415 - an optional package

        self._inner = brotli.Decompressor()
        self._broken: type[Exception] = brotli.error

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        made = bytearray()
        try:
            while piece or not self._inner.can_accept_more_data():
                made += self._inner.process(piece, output_buffer_limit=max_bytes + 1 - len(made))
                piece = b""
                _check_size(len(made), max_bytes)
        except self._broken:
            raise UnpackingError(_BROKEN) from None
        return bytes(made)


class _Zstandard:
    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - an optional package

        self._inner = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
        self._broken: type[Exception] = zstandard.ZstdError

    def unpacked(self, piece: bytes, max_bytes: int) -> bytes:
        made = bytearray()
        try:
            for at in range(0, len(piece), _SLICE_BYTES):
                made += self._inner.decompress(piece[at : at + _SLICE_BYTES])
                _check_size(len(made), max_bytes)
        except self._broken:
            raise UnpackingError(_BROKEN) from None
        return bytes(made)


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
                raise UnpackingError(_BROKEN) from None
            size += len(made[-1])
            _check_size(size, max_bytes)
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


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise UnpackingError(f"expected a response that unpacks to at most {max_bytes} bytes")


def _has_zlib_head(data: bytes) -> bool:
    return data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
