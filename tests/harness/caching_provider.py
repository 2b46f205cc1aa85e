"""A provider whose prompt cache belongs to the API key, as a process of its own.

    python -m tests.harness.caching_provider      prints its port

A prefix is cached in whole blocks, from a minimum length on, until it was not used for a while. `GET /figures` tells
the tokens that were cached, and those that one cache for all keys would have had: the most that any gateway can reach.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

BLOCK_TOKENS = 32
MIN_TOKENS = 128
TTL_S = 300.0


@dataclass
class KeyedCache:
    """Prefixes by the key that sent them; the key "" stands for one cache of all keys."""

    last_use_s: dict[tuple[str, bytes], float] = field(default_factory=dict)

    def look_up(self, key: str, tokens: list[str], now_s: float) -> int:
        """The cached tokens at the prompt's beginning; the whole prompt is cached from now on."""
        digest = hashlib.blake2b(digest_size=16)
        cached, warm = 0, True
        for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            digest.update("\x1f".join(tokens[end - BLOCK_TOKENS : end]).encode())
            place = (key, digest.digest())
            warm = warm and now_s - self.last_use_s.get(place, -TTL_S) < TTL_S
            if warm:
                cached = end
            self.last_use_s[place] = now_s
        return cached if cached >= MIN_TOKENS else 0


@dataclass
class CachingProvider:
    """The routes of the provider and its figures."""

    cache: KeyedCache = field(default_factory=KeyedCache)
    figures: dict[str, int] = field(default_factory=lambda: {"cached": 0, "possible": 0, "prompt": 0, "keys": 0})
    keys: set[str] = field(default_factory=set)

    async def chat(self, request: web.Request) -> web.Response:
        """One answer, with the usage that this key's cache gives."""
        key, body = request.headers.get("Authorization", ""), await request.json()
        tokens = tokens_of(body["messages"])
        now_s = time.monotonic()
        cached, possible = self.cache.look_up(key, tokens, now_s), self.cache.look_up("", tokens, now_s)
        self.keys.add(key)
        for name, count in (("cached", cached), ("possible", possible), ("prompt", len(tokens))):
            self.figures[name] += count
        self.figures["keys"] = len(self.keys)
        usage = {
            "prompt_tokens": len(tokens), "completion_tokens": 20, "total_tokens": len(tokens) + 20,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 20}}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        return web.json_response(answer | {"usage": usage})

    async def told(self, request: web.Request) -> web.Response:
        """What was cached, and what could have been."""
        return web.json_response(self.figures)


def tokens_of(messages: list[dict[str, Any]]) -> list[str]:
    """Words, and a few tokens around each message."""
    found: list[str] = []
    for message in messages:
        found += ["<|start|>", message["role"], *str(message.get("content") or "").split(), "<|end|>"]
    return found


async def serve() -> None:
    """Serve on a free port, which is printed, until killed."""
    provider, app = CachingProvider(), web.Application()
    app.router.add_post("/v1/chat/completions", provider.chat)
    app.router.add_get("/figures", provider.told)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
