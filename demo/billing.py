"""The provider's own books: its tokenizer, prompt cache, prices and bill. Nothing here comes from the gateway."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from demo.models import SimulatedModel
from demo.solver import Message

Clock = Callable[[], float]

_PIECE = re.compile(r"\d{1,3}|[^\W\d_]{1,9}|[^\w\s]{1,3}|_|\n|[^\S\n]{2,}")

BLOCK_TOKENS = 32
"""The cache works in whole blocks, as real ones do (128 there; the demo's prompts are shorter)."""

CACHE_TTL_S = 300.0
"""Five minutes after its last use a prefix is forgotten: what the big providers do."""

CACHE_LIMIT = 200_000
"""Prefixes kept at most."""


def pieces(text: str) -> list[str]:
    """The tokens of a text. Joining them loses single spaces: this is for counting and for comparing."""
    return _PIECE.findall(text)


def cut(text: str, tokens: int) -> tuple[str, bool]:
    """The first `tokens` tokens of a text, and whether anything had to go."""
    for index, found in enumerate(_PIECE.finditer(text)):
        if index == tokens:
            return text[: found.start()], True
    return text, False


def prompt_pieces(messages: Sequence[Message]) -> list[str]:
    """A conversation as the tokens it is billed for: four for the frame of each message, three to start the reply."""
    tokens: list[str] = []
    for message in messages:
        tokens += ["<|start|>", message.role, "<|sep|>", *pieces(message.text), "<|end|>"]
    return [*tokens, "<|start|>", "assistant", "<|sep|>"]


@dataclass(slots=True)
class PrefixCache:
    """Which prompt prefixes each model has seen in the last five minutes."""

    clock: Clock
    last_use: dict[bytes, float] = field(default_factory=dict)

    def look_up(self, model: str, tokens: Sequence[str]) -> int:
        """How many leading tokens are warm for this model (whole blocks, never the whole prompt); warms them all."""
        now = self.clock()
        digest = hashlib.blake2b(model.encode(), digest_size=16)
        cached, still_warm = 0, True
        for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS):
            digest.update("\x1f".join(tokens[end - BLOCK_TOKENS : end]).encode())
            prefix = digest.digest()
            still_warm = still_warm and now - self.last_use.get(prefix, -CACHE_TTL_S) < CACHE_TTL_S
            if still_warm:
                cached = end
            self.last_use[prefix] = now
        if len(self.last_use) > CACHE_LIMIT:
            self._forget(now)
        return cached

    def _forget(self, now: float) -> None:
        warm = sorted(((used, prefix) for prefix, used in self.last_use.items() if now - used < CACHE_TTL_S))
        self.last_use = {prefix: used for used, prefix in warm[-CACHE_LIMIT // 2 :]}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call is billed for. `cached_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Bill:
    """What the provider will ask to be paid, call by call rounded up to a whole nano-USD."""

    calls: int = 0
    total_nanousd: int = 0
    by_model: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, model: SimulatedModel, usage: Usage) -> None:
        amount_nanousd = cost_nanousd(model, usage)
        line = self.by_model.setdefault(
            model.name, {"calls": 0, "nano_usd": 0, "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
        )
        for key, amount in (
            ("calls", 1), ("nano_usd", amount_nanousd), ("prompt_tokens", usage.prompt_tokens),
            ("cached_tokens", usage.cached_tokens), ("completion_tokens", usage.completion_tokens),
        ):  # fmt: skip
            line[key] += amount
        self.calls += 1
        self.total_nanousd += amount_nanousd

    def as_json(self) -> dict[str, object]:
        return {"calls": self.calls, "total_nano_usd": self.total_nanousd, "by_model": self.by_model}


def cost_nanousd(model: SimulatedModel, usage: Usage) -> int:
    """Price of a call, summed in femto-USD and rounded up once: 1 USD per million tokens is 10**9 femto-USD a token."""
    femtousd = (
        (usage.prompt_tokens - usage.cached_tokens) * round(model.input_usd_per_mtok * 10**9)
        + usage.cached_tokens * round(model.cached_input_usd_per_mtok * 10**9)
        + usage.completion_tokens * round(model.output_usd_per_mtok * 10**9)
    )
    return -(-femtousd // 10**6)
