"""Warmth of prompt caches per model, learned from what providers report.

A prefix that was sent before may be cached; how much of it really is depends on the provider: some cache nothing, some
only long prefixes, some in blocks, some for minutes and some for hours, and some report nothing. The share of matching
tokens that were reported as cached is the expectation for the next turn. It is learned apart for short and long
prefixes, for short and long pauses, and for prompts with and without `cache_control`, which tells a provider's minimum,
lifetime and need of marks; old reports fade.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

PRIOR_TOKENS = 4_000.0
"""Weight of the prior: a whole matching prefix is cached until PROMPT_CACHE_S, and nothing of it later."""
PROMPT_CACHE_S = 300.0
"""Lifetime of a provider's prompt cache after its last use, before anything is known of it."""
LONGEST_CACHE_S = 86_400.0
"""Lifetime of the longest retention that providers sell; an older prefix is cold."""
MEMORY_TOKENS = 500_000.0
"""Cap on the evidence's weight, so that the share follows recent behaviour."""
_SIZES = (1_024, 2_048, 4_096)
"""Ends of the classes of prefixes: the minimums that providers state."""
_AGES_S = (60.0, PROMPT_CACHE_S, 600.0, 3_600.0)
"""Ends of the classes of pauses: the lifetimes that providers state."""


@dataclass(frozen=True, slots=True)
class CacheTerms:
    """A model's prompt cache as its operator states it; None: to be learned."""

    min_tokens: int | None = None
    ttl_s: float | None = None

    def excludes(self, matching_tokens: int, age_s: float) -> bool:
        """True if the operator knows that such a prefix is not cached."""
        short = self.min_tokens is not None and matching_tokens < self.min_tokens
        return short or (self.ttl_s is not None and age_s > self.ttl_s)

    def prior(self, age_s: float) -> float:
        """The share expected of a matching prefix before anything is reported."""
        return 1.0 if age_s <= (PROMPT_CACHE_S if self.ttl_s is None else self.ttl_s) else 0.0


UNKNOWN = CacheTerms()


@dataclass(slots=True)
class _Matches:
    matching: float = 0.0
    cached: float = 0.0


class CacheHits:
    """Shares of matching prefixes seen cached, per model, length, pause and mark."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, int, bool], _Matches] = {}

    def observe(
        self, model: str, matching_tokens: int, cached_tokens: int, age_s: float = 0.0, *, marked: bool = False
    ) -> None:
        """Learn from one reported bill; a prompt without a matching prefix teaches nothing."""
        if matching_tokens <= 0:
            return
        seen = self._seen.setdefault(_class(model, matching_tokens, age_s, marked), _Matches())
        seen.matching += matching_tokens
        seen.cached += min(max(0, cached_tokens), matching_tokens)
        if seen.matching > MEMORY_TOKENS:
            seen.cached *= MEMORY_TOKENS / seen.matching
            seen.matching = MEMORY_TOKENS

    def share(
        self, model: str, matching_tokens: int, age_s: float = 0.0, terms: CacheTerms = UNKNOWN, *, marked: bool = False
    ) -> float:
        """The expected share of a matching prefix that is cached, 0 to 1."""
        if terms.excludes(matching_tokens, age_s):
            return 0.0
        seen = self._seen.get(_class(model, matching_tokens, age_s, marked))
        prior = terms.prior(age_s)
        return prior if seen is None else (PRIOR_TOKENS * prior + seen.cached) / (PRIOR_TOKENS + seen.matching)

    def warm_tokens(
        self, model: str, matching_tokens: int, age_s: float = 0.0, terms: CacheTerms = UNKNOWN, *, marked: bool = False
    ) -> int:
        """The tokens of a matching prefix that are expected to be billed as cached."""
        if not matching_tokens:
            return 0
        return round(self.share(model, matching_tokens, age_s, terms, marked=marked) * matching_tokens)


def _class(model: str, matching_tokens: int, age_s: float, marked: bool) -> tuple[str, int, int, bool]:
    return model, bisect_right(_SIZES, matching_tokens), bisect_left(_AGES_S, age_s), marked
