"""Bare gateways: `uvicorn bench.rig.relay:relay` and `uvicorn bench.rig.relay:acompletion`.

`relay` copies bytes with aiohttp: the minimum of a Python gateway. `acompletion` calls LiteLLM's `acompletion` and
renders its result: the minimum of a gateway on LiteLLM. Both use the provider at BENCH_PROVIDER.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


class Held(TypedDict):
    """State of the relay, from its lifespan."""

    client: aiohttp.ClientSession
    url: str


def relay() -> Starlette:
    """The relay that copies bytes."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Held]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:
            yield {"client": client, "url": os.environ["BENCH_PROVIDER"] + "/chat/completions"}

    async def chat(request: Request) -> Response:
        body = await request.body()
        headers = {"content-type": "application/json", "authorization": "Bearer sk-none"}
        answer = await request.state.client.post(request.state.url, data=body, headers=headers)
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return StreamingResponse(_copied(answer), media_type=kind)
        async with answer:
            return Response(await answer.read(), answer.status, media_type=kind)

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), _ready()], lifespan=lifespan)


async def _copied(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for part in answer.content.iter_any():
            yield part


def acompletion() -> Starlette:
    """The minimum on LiteLLM: no key, session, budget or log."""
    import litellm

    litellm.suppress_debug_info = True

    async def chat(request: Request) -> Response:
        asked: dict[str, Any] = orjson.loads(await request.body())
        asked["model"] = "openai/" + asked["model"]
        answer = await litellm.acompletion(
            **asked, api_base=os.environ["BENCH_PROVIDER"], api_key="sk-none", max_retries=0, timeout=600
        )
        if asked.get("stream"):
            return StreamingResponse(_events(answer), media_type="text/event-stream")
        return Response(orjson.dumps(answer.model_dump()), media_type="application/json")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), _ready()])


async def _events(chunks: Any) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield b"data: " + orjson.dumps(chunk.model_dump(exclude_none=True)) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _ready() -> Route:
    async def ready(request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    return Route("/ready", ready)
