"""Simulated OpenAI-compatible provider: `seqroute demo-provider --port 4010 --seed 7`.

    POST /v1/chat/completions   stream and not; usage with cached tokens; max_tokens, stop, n, tools, response_format
    GET  /v1/models
    GET  /__bill                the provider's own bill

The gateway knows only its base URL. The provider has no ground truth: it works the answer out from the prompt.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from demo.answers import answer_text, draw, json_answer, schema_example
from demo.billing import Bill, Clock, PrefixCache, Usage, cut, pieces, prompt_pieces
from demo.command_line import OneLineParser
from demo.models import MODELS, SimulatedModel
from demo.solver import Message

MAX_BODY_BYTES = 8 * 2**20
IMAGE_TOKENS_TEXT = " [image]" * 85
"""Text that stands in for an image: billed as 85 tokens."""


class Refused(Exception):
    """A request that cannot be served, with an HTTP status and OpenAI's error fields."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: either `text` or `tool_calls`."""

    text: str
    finish_reason: str
    tool_calls: tuple[dict[str, Any], ...] = ()

    def tokens(self) -> int:
        """Billed tokens of the answer, at least one."""
        called = "".join(call["function"]["name"] + call["function"]["arguments"] for call in self.tool_calls)
        return max(1, len(pieces(self.text + called)))


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request with its answers and prompt tokens."""

    completion_id: str
    model: SimulatedModel
    messages: tuple[Message, ...]
    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int
    include_usage: bool

    def usage(self, completion_tokens: int) -> Usage:
        """Usage for the completion tokens that were sent."""
        return Usage(self.prompt_tokens, self.cached_tokens, completion_tokens)


@dataclass(slots=True)
class Provider:
    """State of the server: prompt cache, bill, and number of calls."""

    seed: int
    latency_scale: float
    clock: Clock
    cache: PrefixCache
    bill: Bill
    numbered: int = 0

    def understand(self, body: dict[str, Any]) -> Call:
        """Check the body, compute the answers, look up the prompt in the cache. Raises Refused."""
        model = _model_named(body.get("model"))
        messages = _messages(body.get("messages"))
        count = _whole(body, "n", 1, 1, 16)
        limit = min(
            _whole(body, "max_completion_tokens", model.max_output_tokens, 1, 10**6),
            _whole(body, "max_tokens", model.max_output_tokens, 1, 10**6),
            model.max_output_tokens,
        )
        tokens = prompt_pieces(messages)
        tools = [t for t in body.get("tools") or [] if isinstance(t, dict)]
        tokens += pieces(orjson.dumps(tools).decode()) if tools else []
        if len(tokens) > model.max_input_tokens:
            message = f"This model's maximum context length is {model.max_input_tokens} tokens, got {len(tokens)}."
            raise Refused(400, message, "messages", "context_length_exceeded")
        self.numbered += 1
        return Call(
            completion_id=f"chatcmpl-sim-{self.seed}-{self.numbered:08d}",
            model=model,
            messages=messages,
            choices=tuple(self._choose(model, messages, body, tools, limit, index) for index in range(count)),
            prompt_tokens=len(tokens),
            cached_tokens=self.cache.look_up(model.name, tokens),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def _choose(
        self, model: SimulatedModel, messages: tuple[Message, ...], body: dict[str, Any], tools: list[dict[str, Any]],
        limit: int, index: int,
    ) -> Choice:  # fmt: skip
        called = _tool_calls(messages, tools, body.get("tool_choice", "auto"), draw(self.seed, model.name, str(index)))
        if called:
            return Choice("", "tool_calls", called)
        wanted = body.get("response_format")
        structured = isinstance(wanted, dict) and wanted.get("type") in ("json_object", "json_schema")
        text = json_answer(wanted) if structured else answer_text(model, self.seed, messages, index)  # type: ignore[arg-type]
        for stop in _stops(body.get("stop")):
            text = text.split(stop, 1)[0]
        text, truncated = cut(text, limit)
        return Choice(text, "length" if truncated else "stop")

    async def think(self, model: SimulatedModel, tokens: int) -> None:
        """Wait for the first token (tokens = 0) or for the generation of `tokens`."""
        wait_s = (model.token_s * tokens if tokens else model.latency_s) * self.latency_scale
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def created(self) -> int:
        """Now, in seconds since the Unix epoch."""
        return int(self.clock())


def create_app(*, seed: int, latency_scale: float, clock: Clock) -> Starlette:
    """The provider as an ASGI application; the seed determines the answers."""
    provider = Provider(seed, latency_scale, clock, PrefixCache(clock), Bill())

    async def chat(request: Request) -> Response:
        try:
            body = await _body(request)
            call = provider.understand(body)
        except Refused as refused:
            return _refusal(refused)
        if body.get("stream"):
            return MeteredStream(provider, call)
        completion_tokens = sum(choice.tokens() for choice in call.choices)
        await provider.think(call.model, 0)
        await provider.think(call.model, completion_tokens)
        usage = call.usage(completion_tokens)
        provider.bill.add(call.model, usage)
        return JSONResponse(_completion(call, usage, provider.created()))

    async def models(request: Request) -> Response:
        listed = [{"id": m.name, "object": "model", "created": 0, "owned_by": "seqroute-demo"} for m in MODELS]
        return JSONResponse({"object": "list", "data": listed})

    async def bill(request: Request) -> Response:
        return JSONResponse(provider.bill.as_json())

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/__bill", bill),
        ]
    )


class MeteredStream(StreamingResponse):
    """A streamed answer, billed for what was sent even when the client disconnects."""

    def __init__(self, provider: Provider, call: Call) -> None:
        self._provider, self._call, self._sent_tokens = provider, call, 0
        super().__init__(self._events(), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._provider.bill.add(self._call.model, self._call.usage(self._sent_tokens))

    async def _events(self) -> AsyncIterator[bytes]:
        call, model = self._call, self._call.model
        await self._provider.think(model, 0)
        for index, choice in enumerate(call.choices):
            yield self._chunk(index, {"role": "assistant", "content": "" if not choice.tool_calls else None})
            for delta, tokens in _deltas(choice, draw(index, call.completion_id)):
                await self._provider.think(model, tokens)
                self._sent_tokens += tokens
                yield self._chunk(index, delta)
            yield self._chunk(index, {}, choice.finish_reason)
        if call.include_usage:
            yield _event(self._frame() | {"choices": [], "usage": call.usage(self._sent_tokens).as_json()})
        yield b"data: [DONE]\n\n"

    def _frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"id": self._call.completion_id, "object": "chat.completion.chunk"}
        return frame | {"created": self._provider.created(), "model": self._call.model.name}

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._frame() | {"choices": [choice]})


def _deltas(choice: Choice, rng: Random) -> list[tuple[dict[str, Any], int]]:
    """An answer in chunks of uneven size with their billed tokens, in total `choice.tokens()`."""
    if choice.tool_calls:
        calls = [{"index": i} | call for i, call in enumerate(choice.tool_calls)]
        return [({"tool_calls": calls}, choice.tokens())]
    deltas: list[tuple[dict[str, Any], int]] = []
    rest, total = choice.text, 0
    while rest:
        size = rng.randint(4, 16)
        piece, _ = cut(rest, size)
        rest = rest[len(piece) :]
        counted = len(pieces(choice.text[: len(choice.text) - len(rest)]))
        deltas.append(({"content": piece}, counted - total))
        total = counted
    return deltas or [({"content": ""}, choice.tokens())]


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _completion(call: Call, usage: Usage, created: int) -> dict[str, Any]:
    choices = []
    for index, choice in enumerate(call.choices):
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_calls:
            message |= {"content": None, "tool_calls": list(choice.tool_calls)}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason})
    return {
        "id": call.completion_id,
        "object": "chat.completion",
        "created": created,
        "model": call.model.name,
        "choices": choices,
        "usage": usage.as_json(),
    }


def _refusal(refused: Refused) -> JSONResponse:
    error = {"message": refused.message, "type": "invalid_request_error", "param": refused.param}
    return JSONResponse({"error": error | {"code": refused.code}}, status_code=refused.status)


async def _body(request: Request) -> dict[str, Any]:
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > MAX_BODY_BYTES:
            raise Refused(413, f"The request is larger than {MAX_BODY_BYTES} bytes.")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "The body is not valid JSON.") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.")
    return body


def _model_named(name: object) -> SimulatedModel:
    for model in MODELS:
        if model.name == name:
            return model
    raise Refused(404, f"The model {str(name)[:80]!r} does not exist.", "model", "model_not_found")


def _messages(given: object) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise Refused(400, "'messages' must be a non-empty array.", "messages")
    messages = []
    for index, message in enumerate(given):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"messages[{index}] must be an object with a role.", f"messages[{index}]")
        messages.append(Message(message["role"], _text(message.get("content"), index)))
    return tuple(messages)


def _text(content: object, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Refused(400, f"messages[{index}].content must be a string or an array.", f"messages[{index}].content")
    parts = [part for part in content if isinstance(part, dict)]
    return "".join(part["text"] if isinstance(part.get("text"), str) else IMAGE_TOKENS_TEXT for part in parts)


def _whole(body: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(400, f"'{name}' must be a whole number from {least} to {most}, got {str(value)[:40]}.", name)
    return value


def _stops(stop: object) -> Sequence[str]:
    listed = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return [s for s in listed if isinstance(s, str) and s]


def _tool_calls(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], choice: object, rng: Random
) -> tuple[dict[str, Any], ...]:
    """A call of the requested tool, or of one named in the last message, with minimal arguments."""
    functions = [t["function"] for t in tools if isinstance(t.get("function"), dict)]
    last = messages[-1]
    if not functions or choice == "none" or last.role == "tool":
        return ()
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    meant = [f for f in functions if f.get("name") == named] if named else []
    if not meant and choice == "required":
        meant = functions[:1]
    if not meant:
        meant = [f for f in functions if str(f.get("name")) in last.text][:1]
    return tuple(
        {
            "id": f"call_{rng.getrandbits(64):016x}",
            "type": "function",
            "function": {
                "name": str(f.get("name")),
                "arguments": orjson.dumps(schema_example(f.get("parameters") or {})).decode(),
            },
        }
        for f in meant
    )


def main() -> None:
    """Run the provider until interrupted."""
    parser = OneLineParser(
        prog="seqroute demo-provider", description="A simulated provider: an OpenAI-compatible server."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=4010, help="port to listen on")
    parser.add_argument("--seed", type=int, default=7, help="the same seed gives the same answers")
    parser.add_argument("--latency-scale", type=float, default=1.0, help="0: answer immediately")
    options = parser.parse_args()
    app = create_app(seed=options.seed, latency_scale=options.latency_scale, clock=time.time)
    try:
        listener = socket.create_server((options.host, options.port))
    except OSError as error:
        where = f"{options.host}:{options.port}: {os.strerror(error.errno) if error.errno else error}"
        print(
            f"{parser.prog}: --host, --port: expected a free address, got {where}; stop it or choose another --port",
            file=sys.stderr,
        )
        sys.exit(1)
    print(f"simulated provider at http://{options.host}:{options.port}/v1, until Ctrl-C", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
