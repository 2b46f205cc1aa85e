"""Claude's events out of Bedrock's binary frames, as server-sent events."""

from __future__ import annotations

import base64
import importlib
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any
from zlib import crc32

import httpx
import orjson

from gateway.dialects.sse import event_frame
from gateway.providers.exchange import AnswerBody

_FRAMES = "application/vnd.amazon.eventstream"
_PRELUDE = struct.Struct("!III")
"""Of a frame: its length, that of its headers, and the checksum of both."""
_CHECKED_BYTES = 8
_AROUND_BYTES = _PRELUDE.size + 4
"""What a frame has around its headers and its payload."""
_LARGEST_BYTES = 24 * 2**20
"""What botocore takes for a payload."""


def is_framed(content_type: str) -> bool:
    """True for a body of Amazon's frames."""
    return content_type.startswith(_FRAMES)


class UnframedEvents:
    """A body whose frames hold the model's events; an exception's frame is an `error` event."""

    def __init__(self, inner: AnswerBody) -> None:
        self._inner = inner
        self._botocore: Any = importlib.import_module("botocore.eventstream")
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        held = bytearray()
        async for piece in self._inner:
            held += piece
            made, broken = bytearray(), False
            try:
                for frame in self._taken(held):
                    made += _event(frame.headers, frame.payload)
            except Exception:  # noqa: BLE001 - botocore's parser raises whatever wrong bytes lead to
                broken = True
            if made:
                yield bytes(made)
            if broken:
                raise httpx.DecodingError("a frame of the stream cannot be read")

    def _taken(self, held: bytearray) -> Iterator[Any]:
        """The whole frames at the beginning, taken out; botocore is given each at once, as it copies what it holds."""
        while len(held) >= _PRELUDE.size:
            length, headers_length, checksum = _PRELUDE.unpack_from(held)
            likely = headers_length + _AROUND_BYTES <= length <= _LARGEST_BYTES
            if not likely or checksum != crc32(held[:_CHECKED_BYTES]):
                raise ValueError("the frame's length cannot be right")
            if len(held) < length:
                return
            buffer = self._botocore.EventStreamBuffer()
            buffer.add_data(bytes(held[:length]))
            del held[:length]
            yield next(buffer)

    async def aclose(self) -> None:
        """Release the connection."""
        await self._inner.aclose()


def _event(headers: dict[str, Any], payload: bytes) -> bytes:
    kind = str(headers.get(":exception-type") or headers.get(":error-code") or headers.get(":event-type") or "")
    said = orjson.loads(payload) if payload else {}
    said = said if isinstance(said, dict) else {}
    if headers.get(":message-type", "event") == "event" and not kind.endswith("Exception"):
        inner = said.get("bytes")
        if not isinstance(inner, str):
            return b""
        event = base64.b64decode(inner).replace(b"\r", b" ").replace(b"\n", b" ")  # within a JSON text they are escaped
        return b"data: " + event + b"\n\n"
    words = said.get("message") or headers.get(":error-message") or ""
    return event_frame("error", {"type": "error", "error": {"type": kind, "message": words}})
