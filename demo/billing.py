"""The provider's own tokenizer, prompt cache, prices and bill, independent of the gateway."""

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
"""The cache works in whole blocks, like real ones (128 tokens; the demo's prompts are shorter)."""

CACHE_TTL_S = 300.0
"""Time after its last use until a prefix is dropped, like the large providers."""

CACHE_LIMIT = 200_000
"""Maximum number of prefixes kept."""


def pieces(text: str) -> list[str]:
    """The tokens of a text, without single spaces: for counting and comparing."""
    return _PIECE.findall(text)


def cut(text: str, tokens: int) -> tuple[str, bool]:
    """The first `tokens` tokens of a text, and True if it was truncated."""
    for index, found in enumerate(_PIECE.finditer(text)):
        if index == tokens:
            return text[: found.start()], True
    return text, False


def prompt_pieces(messages: Sequence[Message]) -> list[str]:
    """The billed tokens of a conversation: four more per message, and three for the reply."""
    tokens: list[str] = []
    for message in messages:
        tokens += ["<|start|>", message.role, "<|sep|>", *pieces(message.text), "<|end|>"]
    return [*tokens, "<|start|>", "assistant", "<|sep|>"]


@dataclass(slots=True)
class PrefixCache:
    """Prompt prefixes that each model has seen within CACHE_TTL_S."""

    clock: Clock
    last_use: dict[bytes, float] = field(default_factory=dict)

    def look_up(self, model: str, tokens: Sequence[str]) -> int:
        """Number of cached leading tokens (whole blocks, never all); caches the whole prompt."""
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
    """Billed tokens of one call; `cached_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def as_json(self) -> dict[str, object]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Bill:
    """The provider's bill, each call rounded up to a whole nano-USD."""

    calls: int = 0
    total_nanousd: int = 0
    by_model: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, model: SimulatedModel, usage: Usage) -> None:
        """Add one call."""
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
        """The answer of `/__bill`."""
        return {"calls": self.calls, "total_nano_usd": self.total_nanousd, "by_model": self.by_model}


def cost_nanousd(model: SimulatedModel, usage: Usage) -> int:
    """Price of a call, summed in femto-USD and rounded up once."""
    # 1 USD per million tokens is 10**9 femto-USD per token.
    femtousd = (
        (usage.prompt_tokens - usage.cached_tokens) * round(model.input_usd_per_mtok * 10**9)
        + usage.cached_tokens * round(model.cached_input_usd_per_mtok * 10**9)
        + usage.completion_tokens * round(model.output_usd_per_mtok * 10**9)
    )
    return -(-femtousd // 10**6)
