"""Claude's events out of Bedrock's binary frames, as server-sent events."""

from __future__ import annotations

import base64
import importlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson

from gateway.dialects.sse import event_frame
from gateway.providers.exchange import AnswerBody

_FRAMES = "application/vnd.amazon.eventstream"


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
        frames = self._botocore.EventStreamBuffer()
        async for piece in self._inner:
            frames.add_data(piece)
            made, broken = bytearray(), False
            try:
                for frame in frames:
                    made += _event(frame.headers, frame.payload)
            except (self._botocore.ParserError, ValueError):
                broken = True
            if made:
                yield bytes(made)
            if broken:
                raise httpx.DecodingError("a frame of the stream cannot be read")

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
