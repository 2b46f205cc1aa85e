"""Claude's events out of Bedrock's binary frames, as server-sent events."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

import httpx
import orjson

from gateway.dialects.amazon_frames import Frame, exception_in, take_frames
from gateway.dialects.sse import event_frame
from gateway.providers.exchange import Pieces
from gateway.unchecked import at

_FRAMES = "application/vnd.amazon.eventstream"


def is_framed(content_type: str) -> bool:
    """True for a body of Amazon's frames."""
    return content_type.startswith(_FRAMES)


async def unframed(inner: Pieces) -> AsyncGenerator[bytes]:
    """The model's events in a body of frames; an exception's frame is an `error` event."""
    held = bytearray()
    async for piece in inner:
        held += piece
        made, broken = bytearray(), False
        try:
            for frame in take_frames(held):
                made += _event(frame)
        except ValueError:
            broken = True
        if made:
            yield bytes(made)
        if broken:
            raise httpx.DecodingError("a frame of the stream cannot be read")


def _event(frame: Frame) -> bytes:
    thrown = exception_in(frame)
    if thrown is not None:
        return event_frame("error", {"type": "error", "error": thrown})
    inner = at(orjson.loads(frame[1] or b"{}"), "bytes")
    if not isinstance(inner, str):
        return b""
    event = base64.b64decode(inner).replace(b"\r", b" ").replace(b"\n", b" ")  # within a JSON text they are escaped
    return b"data: " + event + b"\n\n"
