"""A provider that answers every request with the same bytes: for dialects that FaultUpstream does not speak."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from tests.harness.listener import Listener


@dataclass(slots=True)
class CannedProvider(Listener):
    """`async with CannedProvider(json_answer(...)) as provider:`; `received` holds (path, body) of every request."""

    answer: bytes
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        length = next(int(line.partition(":")[2]) for line in head if line.lower().startswith("content-length"))
        self.received.append((head[0].split(" ")[1], json.loads(await reader.readexactly(length))))
        writer.write(self.answer)
        await writer.drain()


def raw_answer(body: bytes, content_type: str, *headers: str) -> bytes:
    """Any body under any label."""
    lines = ["HTTP/1.1 200 OK", f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_answer(body: Any) -> bytes:
    return raw_answer(json.dumps(body).encode(), "application/json")


def event_answer(*events: dict[str, Any], whole: bool = True) -> bytes:
    """An event stream; one that is not `whole` lacks the end of its transfer encoding: the connection breaks."""
    pieces = [
        (f"event: {event['type']}\n" if "type" in event else "").encode()
        + b"data: "
        + json.dumps(event).encode()
        + b"\n\n"
        for event in events
    ]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + chunks + (b"0\r\n\r\n" if whole else b"")
