"""The answers of the fault-injecting provider: one request, one mode, one line of its bill."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol

from tests.harness.forwarded_answers import FORWARDED_ROUTES, forwarded_events, forwarded_whole
from tests.harness.words import prompt_tokens, words

STREAM_MODES = (
    "ok", "tools", "oknousage", "nousage", "zero", "neg", "huge", "dup-usage", "nodone", "nofinish", "nofinish-done",
    "inband-first", "inband-mid", "inband-last", "rst", "half", "badjson", "stall", "drip", "slow-first-byte", "long",
    "40mb-line", "crlf", "split-utf8", "bom", "comments", "nul", "html", "gzip-bomb", "1xx", "overrun", "wrongtype",
    "empty", "judge",
)  # fmt: skip
STATUS_MODES = {
    "e400": 400, "e401echo": 401, "e403": 403, "e404": 404, "e413": 413, "e422": 422, "e429": 429, "e429-date": 429,
    "e429-absurd": 429, "e429-negative": 429, "e429-missing": 429, "e429-ms": 429, "e429-garbage": 429, "e500": 500,
    "e502": 502, "e503": 503, "e504": 504, "e529": 529, "redirect": 307,
}  # fmt: skip
_RETRY_AFTER = {
    "e429": "7", "e429-absurd": "999999999999", "e429-negative": "-5", "e429-garbage": "soon", "e503": "3",
}  # fmt: skip


@dataclass(slots=True)
class Attempt:
    """One request and what it cost the provider. Times are seconds since the upstream started."""

    attempt_id: int
    model: str
    mode: str
    stream: bool
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    searches: int = 0
    max_tokens: int | None = None
    status: int = 200
    usage_reported: bool = False
    finished: bool = False
    cut: bool = False
    started_s: float = 0.0
    ended_s: float | None = None
    tag: str = ""
    """The last message's text, by which an auditor joins this attempt to a client's turn."""


class Provider(Protocol):
    """What an answer needs of the provider that gives it."""

    host: str
    port: int
    tokens: int
    delay_s: float
    bill: list[Attempt]
    gate: asyncio.Event

    def mode_of(self, model: str) -> tuple[str, dict[str, str]]: ...
    def now_s(self) -> float: ...


class _Cut(Exception):
    """The caller closed the connection."""


class Answer:
    """One answer in one mode."""

    def __init__(
        self,
        upstream: Provider,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        *,
        route: str = "",
    ) -> None:
        self.route = route
        self.upstream, self.reader, self.writer, self.headers, self.body = upstream, reader, writer, headers, body
        self.model = str(body.get("model", "ok"))
        self.mode, options = upstream.mode_of(self.model)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
        asked = body.get("messages") or body.get("input")
        self.limit = limit if isinstance(limit, int) else None
        wanted = int(options.get("tokens", 400 if self.mode == "long" else upstream.tokens))
        self.tokens = wanted if self.limit is None or self.mode == "overrun" else min(wanted, self.limit)
        self.finish = "length" if self.tokens < wanted else "stop"
        self.delay_s = float(options.get("delay", upstream.delay_s))
        self.first_s = float(options.get("first", 5.0 if self.mode == "slow-first-byte" else 0.0))
        self.gated = "gate" in options
        self.after = int(options.get("after", 3))
        self.n = int(body.get("n") or 1)
        self.usage_unasked = options.get("usage") == "always"
        self.attempt = Attempt(
            attempt_id=len(upstream.bill),
            model=self.model,
            mode=self.mode,
            stream=bool(body.get("stream")),
            prompt_tokens=int(options.get("prompt", prompt_tokens(asked))),
            cached_tokens=int(options.get("cached", 0)),
            reasoning_tokens=int(options.get("reasoning", 0)),
            max_tokens=self.limit,
            started_s=upstream.now_s(),
            tag=_tag(asked),
        )
        upstream.bill.append(self.attempt)

    async def send(self) -> bool:
        """Answer; False when the connection is not to be used again."""
        answering = asyncio.ensure_future(self._send())
        watching = asyncio.ensure_future(self.reader.read(1))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.attempt.cut = True
                return False
            return answering.result() and not watching.done()
        except ConnectionError:
            self.attempt.cut = True
            return False
        finally:
            self.attempt.ended_s = self.upstream.now_s()
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)

    async def _send(self) -> bool:
        await asyncio.sleep(self.first_s)
        if self.gated:
            await self.upstream.gate.wait()
        if self.mode in STATUS_MODES:
            return await self._status()
        if self.mode == "1xx":
            self.writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
        if self.mode == "html":
            self._generated(0)
            await _send(self.writer, 200, b"<html><body>Bad gateway</body></html>", "text/html")
            return True
        if self.mode == "gzip-bomb":
            return await self._gzip_bomb()
        if self.attempt.stream and self.mode != "wrongtype":
            return await self._stream()
        return await self._whole()

    async def _status(self) -> bool:
        status = self.attempt.status = STATUS_MODES[self.mode]
        self.attempt.prompt_tokens = 0
        headers = {"retry-after": _RETRY_AFTER[self.mode]} if self.mode in _RETRY_AFTER else {}
        if self.mode == "e429-date":
            headers["retry-after"] = formatdate(time.time() + 20, usegmt=True)
        if self.mode == "e429-ms":
            headers["retry-after-ms"] = "1500"
        if self.mode == "redirect":
            headers["location"] = f"http://{self.upstream.host}:{self.upstream.port}/elsewhere"
        message = f"no: {self.headers.get('authorization', '')}" if self.mode == "e401echo" else f"status {status}"
        error = {"error": {"message": message, "type": "provider_error", "param": None, "code": None}}
        await send_json(self.writer, status, error, headers)
        return True

    async def _gzip_bomb(self) -> bool:
        squeezed = gzip.compress(b'{"choices": [' + b" " * 10_000_000 + b"]}", compresslevel=1)
        kind = "text/event-stream" if self.attempt.stream else "application/json"
        await _send(self.writer, 200, squeezed, kind, {"content-encoding": "gzip"})
        return True

    # --- whole answers

    async def _whole(self) -> bool:
        if self.mode == "stall":
            await asyncio.sleep(3600)
        for _ in range(self.tokens if self.delay_s else 0):
            await asyncio.sleep(self.delay_s)
            self.attempt.output_tokens += 1
        self._generated(self.tokens * self.n)
        if self.mode == "rst":
            return self._reset()
        if self.route in FORWARDED_ROUTES:
            usage = self._usage()
            body = json.dumps(forwarded_whole(self.route, self.model, self._words(), usage, self.finish)).encode()
        else:
            made = {"embeddings": self._vectors, "moderations": self._verdicts}.get(self.route, self._completion)
            body = json.dumps(made()).encode()
        if self.mode == "badjson":
            body = body[:-7]
        if self.mode == "half":
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            self.writer.write(head.encode() + body[: len(body) // 2])
            await self.writer.drain()
            return False
        if self.mode == "drip":
            self.writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode())
            for byte in body:
                self.writer.write(bytes([byte]))
                await asyncio.sleep(self.delay_s or 0.05)
            return True
        await _send(self.writer, 200, body, "application/json")
        self.attempt.finished = True
        return True

    def _vectors(self) -> dict[str, Any]:
        """A vector for each input (but the last, in mode "short"), by its place; a token for each word or id."""
        inputs = self.body["input"]
        self.attempt.prompt_tokens = sum(len(i) if isinstance(i, list) else len(i.split()) for i in inputs)
        self.attempt.output_tokens = 0
        data = [
            {"object": "embedding", "index": place, "embedding": [float(place), 0.5, -1.25]}
            for place in range(len(inputs) - (self.mode == "short"))
        ]
        answer = {"object": "list", "model": self.model, "data": data}
        if self.mode in ("nousage", "oknousage"):
            return answer
        self.attempt.usage_reported = True
        tokens = self.attempt.prompt_tokens
        return answer | {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def _verdicts(self) -> dict[str, Any]:
        """One verdict on all parts or for each text; a token for each word."""
        given = self.body["input"]
        texts = given if isinstance(given, list) else [given]
        self.attempt.prompt_tokens = sum(len(text.split()) for text in texts if isinstance(text, str))
        self.attempt.output_tokens = 0
        verdict = {"flagged": False, "categories": {"violence": False}, "category_scores": {"violence": 0.01}}
        answer = {"id": "modr-7", "model": self.model, "results": [verdict] * (len(texts) or 1)}
        if self.mode in ("nousage", "oknousage"):
            return answer
        self.attempt.usage_reported = True
        tokens = self.attempt.prompt_tokens
        return answer | {"usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}}

    def _completion(self) -> dict[str, Any]:
        if self.mode.startswith("inband"):
            self.attempt.prompt_tokens = self.attempt.output_tokens = 0
            return {"error": {"message": "overloaded", "code": 502}}
        if self.mode == "empty":
            return {"id": "x", "object": "chat.completion", "choices": []}
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._words())}
        finish = None if self.mode == "nofinish" else self.finish
        if self.mode == "judge":
            message["content"] = 'I looked at it. {"score": 0.75}'
        if self.mode == "tools":
            message, finish = {"role": "assistant", "content": None, "tool_calls": [_tool_call()]}, "tool_calls"
        completion = {
            "id": f"chatcmpl-{self.attempt.attempt_id}",
            "object": "chat.completion",
            "created": 1_750_000_000,
            "model": f"{self.model}-2026-01-01",
            "choices": [{"index": i, "message": message, "finish_reason": finish} for i in range(self.n)],
        }
        usage = self._usage()
        return completion if usage is None else completion | {"usage": usage}

    # --- streams

    async def _stream(self) -> bool:
        if self.mode == "stall" and self.after == 0:
            await asyncio.sleep(3600)
        self.writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
            b"cache-control: no-cache\r\n\r\n"
        )
        if self.mode == "split-utf8":
            return await self._split_stream()
        async for piece in self._forwarded() if self.route in FORWARDED_ROUTES else self._pieces():
            await self._piece(piece)
            if self.mode == "drip" and self.attempt.output_tokens >= self.after:
                await self._drip()
        if self.mode == "rst":
            return self._reset()
        if self.mode == "half":
            return False
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        self.attempt.finished = True
        return True

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self.mode == "inband-first":
            self.attempt.prompt_tokens = 0
            yield _event({"error": {"message": "overloaded", "type": "server_error", "code": 503}})
            return
        if self.mode == "40mb-line":
            yield b'data: {"id": "'
            for _ in range(640):
                yield b"x" * 65536
            yield b'"}\n\n'
            return
        if self.mode == "comments":
            for _ in range(5):
                yield b": still here\n\n"
            return
        if self.mode == "bom":
            yield b"\xef\xbb\xbf"
        if self.mode != "empty":
            yield self._event(self._chunk({"role": "assistant", "content": ""}))
        async for piece in self._deltas():
            yield piece
        if self.mode in ("rst", "half", "nofinish"):
            return
        if self.mode == "inband-last":
            yield _event({"error": {"message": "late trouble", "code": 500}})
            return
        if self.mode not in ("nofinish-done", "empty"):
            finish = "tool_calls" if self.mode == "tools" else self.finish
            for index in range(self.n):
                yield self._event(self._chunk({}, finish=finish, index=index))
        async for piece in self._usage_events():
            yield piece
        if self.mode != "nodone":
            yield b"data: [DONE]\r\n\r\n" if self.mode == "crlf" else b"data: [DONE]\n\n"

    async def _forwarded(self) -> AsyncIterator[bytes]:
        """The events of OpenAI's Responses or Anthropic's Messages, after a web search."""
        broken = self.mode in ("rst", "half", "nofinish", "inband-mid", "badjson", "stall", "nul")
        said = 0
        for event, speaks in forwarded_events(self.route, self.model, self._words(), self._usage, self.finish):
            if broken and said == self.after:
                async for piece in self._breakage():
                    yield piece
                return
            if speaks:
                await asyncio.sleep(self.delay_s)
                said += 1
                self._generated(said)
            yield _event(event)

    async def _deltas(self) -> AsyncIterator[bytes]:
        if self.mode == "tools":
            call = _tool_call()
            head = call | {"index": 0, "function": call["function"] | {"arguments": ""}}
            yield self._event(self._chunk({"tool_calls": [head]}))
            for part in ('{"city":', ' "Berlin"}'):
                self._generated(self.attempt.output_tokens + 1)
                yield self._event(self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}))
            return
        broken = self.mode in ("rst", "half", "nofinish", "inband-mid", "badjson", "stall", "nul")
        for number, word in enumerate(() if self.mode == "empty" else self._words()):
            if broken and number == self.after:
                async for piece in self._breakage():
                    yield piece
                return
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            for index in range(self.n):
                self._generated(self.attempt.output_tokens + 1)
                yield self._event(self._chunk({"content": word}, index=index))

    async def _breakage(self) -> AsyncIterator[bytes]:
        if self.mode == "stall":
            await self.writer.drain()
            await asyncio.sleep(3600)
        elif self.mode == "inband-mid":
            yield _event({"error": {"message": "overloaded", "type": "server_error", "code": 503}})
        elif self.mode == "badjson":
            yield b'data: {"choices": [{"delta": {"con\n\n'
        elif self.mode == "nul":
            yield b"data: \x00\x00\n\n"

    async def _usage_events(self) -> AsyncIterator[bytes]:
        usage = self._usage()
        options = self.body.get("stream_options") or {}
        if usage is None or not (options.get("include_usage") or self.usage_unasked):
            return
        closing = self._chunk({}) | {"choices": []}
        if self.mode == "dup-usage":
            yield self._event(closing | {"usage": usage | {"completion_tokens": 1, "total_tokens": 2}})
        yield self._event(closing | {"usage": usage})

    async def _split_stream(self) -> bool:
        """The whole stream in pieces of three bytes, with characters of up to four in it."""
        chunks = [self._chunk({"content": word + "ä€🙂"}) for word in self._words()]
        self._generated(self.tokens)
        chunks += [self._chunk({}, finish=self.finish), self._chunk({}) | {"choices": [], "usage": self._usage()}]
        whole = b"".join(b"data: " + json.dumps(c, ensure_ascii=False).encode() + b"\n\n" for c in chunks)
        whole += b"data: [DONE]\n\n"
        for start in range(0, len(whole), 3):
            await self._piece(whole[start : start + 3])
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        self.attempt.finished = True
        return True

    async def _drip(self) -> None:
        for byte in self._event(self._chunk({"content": "x" * 10_000})):
            await self._piece(bytes([byte]))
            await asyncio.sleep(0.02)

    async def _piece(self, piece: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self.writer.drain()

    def _event(self, chunk: Mapping[str, Any]) -> bytes:
        if self.mode != "crlf":
            return _event(chunk)
        line_end = (b"\r\n", b"\r", b"\n")[self.attempt.output_tokens % 3]
        return b"event: message" + line_end + b"data:" + json.dumps(chunk).encode() + line_end + line_end

    def _chunk(self, delta: Mapping[str, Any], *, finish: str | None = None, index: int = 0) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.attempt.attempt_id}",
            "object": "chat.completion.chunk",
            "created": 1_750_000_000,
            "model": f"{self.model}-2026-01-01",
            "choices": [{"index": index, "delta": dict(delta), "finish_reason": finish}],
        }

    # --- books

    def _words(self) -> list[str]:
        return words(self.tokens)

    def _generated(self, output_tokens: int) -> None:
        self.attempt.output_tokens = output_tokens

    def _usage(self) -> dict[str, Any] | None:
        if self.mode in ("nousage", "oknousage"):
            return None
        self.attempt.usage_reported = True
        self.attempt.searches = int(self.route in FORWARDED_ROUTES)
        prompt, output = self.attempt.prompt_tokens, self.attempt.output_tokens + self.attempt.reasoning_tokens
        if self.mode == "zero":
            prompt = output = self.attempt.prompt_tokens = self.attempt.output_tokens = 0
        if self.mode == "neg":
            prompt, output = -prompt, -output
        if self.mode == "huge":
            output = 10**15
        usage: dict[str, Any] = {
            "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
        }  # fmt: skip
        if self.attempt.cached_tokens:
            usage["prompt_tokens_details"] = {"cached_tokens": self.attempt.cached_tokens}
        if self.attempt.reasoning_tokens:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.attempt.reasoning_tokens}
        return usage

    def _reset(self) -> bool:
        """A RST rather than a FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        return False


def _tag(messages: Any) -> str:
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content[:200] if isinstance(content, str) else ""


def _tool_call() -> dict[str, Any]:
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Berlin"}'},
    }


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


async def send_json(
    writer: asyncio.StreamWriter, status: int, payload: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> None:
    await _send(writer, status, json.dumps(payload).encode(), "application/json", headers)


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None
) -> None:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()
