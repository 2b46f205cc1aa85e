"""Claude's events out of Bedrock's binary frames, as server-sent events."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import httpx
import orjson

from gateway.dialects.amazon_frames import Frame, exception_in, take_frames
from gateway.dialects.sse import event_frame
from gateway.providers.exchange import AnswerBody
from gateway.unchecked import at

_FRAMES = "application/vnd.amazon.eventstream"


def is_framed(content_type: str) -> bool:
    """True for a body of Amazon's frames."""
    return content_type.startswith(_FRAMES)


class UnframedEvents:
    """A body whose frames hold the model's events; an exception's frame is an `error` event."""

    def __init__(self, inner: AnswerBody) -> None:
        self._inner = inner
        self.begun = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        held = bytearray()
        async for piece in self._inner:
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

    async def aclose(self) -> None:
        """Release the connection."""
        await self._inner.aclose()


def _event(frame: Frame) -> bytes:
    thrown = exception_in(frame)
    if thrown is not None:
        return event_frame("error", {"type": "error", "error": thrown})
    inner = at(orjson.loads(frame[1] or b"{}"), "bytes")
    if not isinstance(inner, str):
        return b""
    event = base64.b64decode(inner).replace(b"\r", b" ").replace(b"\n", b" ")  # within a JSON text they are escaped
    return b"data: " + event + b"\n\n"
