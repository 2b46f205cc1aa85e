"""A provider that reads its answers from a script, one for each request, and keeps the time of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.harness.listener import Listener

OK = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One answer: JSON under a status, or (`chunks`) an event stream of so many words with a pause between them."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: int = 0
    pause_s: float = 0.0
    last: Any = None
    """What a stream says instead of its finish."""


@dataclass(slots=True)
class ScriptedProvider(Listener):
    """`async with ScriptedProvider([Line(503), Line()]) as provider:`; the last line is said again and again."""

    script: Sequence[Line]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        self.bodies.append(json.loads(await reader.readexactly(int(headers["content-length"]))))
        self.keys.append(headers.get("authorization", "").removeprefix("Bearer "))
        self.asked_s.append(asyncio.get_running_loop().time())
        line = self.script[min(len(self.bodies), len(self.script)) - 1]
        await (_stream if line.chunks else _whole)(line, writer)


async def _whole(line: Line, writer: asyncio.StreamWriter) -> None:
    raw = json.dumps(OK if line.body is None and line.status == 200 else line.body).encode()
    writer.write(_head(line, "application/json") + f"content-length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()


async def _stream(line: Line, writer: asyncio.StreamWriter) -> None:
    writer.write(_head(line, "text/event-stream") + b"\r\n")
    for number in range(line.chunks):
        delta = {"index": 0, "delta": {"content": f"w{number} "}, "finish_reason": None}
        writer.write(b"data: " + json.dumps({"choices": [delta]}).encode() + b"\n\n")
        await writer.drain()
        await asyncio.sleep(line.pause_s)
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": OK["usage"]}
    last = line.last or finish
    writer.write(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
    await writer.drain()


def _head(line: Line, kind: str) -> bytes:
    lines = [f"HTTP/1.1 {line.status} X", f"content-type: {kind}", "connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in line.headers.items()), ""]).encode()
