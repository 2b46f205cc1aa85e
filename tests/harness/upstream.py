"""A fault-injecting OpenAI-compatible provider that keeps its own bill: raw asyncio, no framework in the way.

The *mode* is the requested model's name (after the last `/`), with options behind a colon:

    ok   ok:tokens=50,delay=0.01,cached=12   e429-date   rst:after=3

A mode can also be set for a model name from outside (`POST /__mode {"model": ..., "mode": ...}`), so that a black box
can be made to fail without changing its configuration. `GET /__bill` tells what every attempt generated, whether the
caller cut the connection and when, and how many connections are open. Every token is one common English word, so
whoever counts the words of an answer knows what the provider generated, and so does OpenAI's tokenizer.

    async with FaultUpstream() as provider: ...            # in process, on a free port
    python -m tests.harness.upstream --port 8080            # as a process
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.harness.listener import Listener
from tests.harness.upstream_answers import STATUS_MODES, STREAM_MODES, Answer, Attempt, send_json


@dataclass(slots=True)
class Received:
    """What came in, for tests on what may go out."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass(slots=True)
class FaultUpstream(Listener):
    """`async with FaultUpstream() as provider:` serves `provider.url`; the bill stays readable afterwards."""

    tokens: int = 20
    delay_s: float = 0.0
    modes: dict[str, str] = field(default_factory=dict)
    bill: list[Attempt] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Answers of modes with `gate=1` wait until it is set."""
    open_connections: int = 0
    accepted_connections: int = 0
    _zero_s: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def billed(self, model: str | None = None) -> tuple[int, int]:
        """(prompt tokens, output tokens) over all attempts, of `model` if given."""
        attempts = [attempt for attempt in self.bill if model is None or attempt.model == model]
        return sum(a.prompt_tokens for a in attempts), sum(a.output_tokens for a in attempts)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        self.accepted_connections += 1
        try:
            while await self._one_request(reader, writer):
                pass
        finally:
            self.open_connections -= 1

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(raw) if raw.strip() else {}
        if path.startswith("/__"):
            await send_json(writer, 200, self._control(method, path, body))
            return True
        if method == "GET" and path.endswith("/models"):
            models = [{"id": name, "object": "model"} for name in STREAM_MODES]
            await send_json(writer, 200, {"object": "list", "data": models})
            return True
        self.received.append(Received(path, headers, body))
        del self.received[:-1000]
        return await Answer(self, reader, writer, headers, body, route=path.rpartition("/")[2]).send()

    def _control(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/__mode":
            self.modes[str(body["model"])] = str(body["mode"])
        elif path == "/__reset":
            self.bill.clear()
            self.received.clear()
            self.modes.clear()
        prompt_tokens, output_tokens = self.billed()
        return {
            "attempts": [asdict(attempt) for attempt in self.bill],
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "open_connections": self.open_connections - 1,
            "accepted_connections": self.accepted_connections,
        }

    def mode_of(self, model: str) -> tuple[str, dict[str, str]]:
        name = self.modes.get(model, model).rpartition("/")[2]
        mode, _, options = name.partition(":")
        pairs = (option.partition("=") for option in options.split(",") if option)
        known = mode in STREAM_MODES or mode in STATUS_MODES or mode == "short"
        return (mode if known else "ok"), {key: value for key, _, value in pairs}

    def now_s(self) -> float:
        return time.monotonic() - self._zero_s


async def _serve(host: str, port: int, tokens: int, delay_s: float) -> None:
    async with FaultUpstream(host=host, port=port, tokens=tokens, delay_s=delay_s) as upstream:
        print(upstream.url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A fault-injecting OpenAI-compatible provider with its own bill.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one; the address is printed")
    parser.add_argument("--tokens", type=int, default=20, help="words per answer")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between tokens")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.host, arguments.port, arguments.tokens, arguments.delay))


if __name__ == "__main__":
    main()
