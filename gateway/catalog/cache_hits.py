"""Warmth of prompt caches per model, learned from what providers report.

A prefix that was sent before may be cached; how much of it really is depends on the provider: some cache nothing, some
only long prefixes, some in blocks, and some report nothing. The share of matching tokens that were reported as cached
is the expectation for the next turn; long prefixes weigh more than short ones, old ones fade.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIOR_TOKENS = 4_000.0
"""Weight of the prior, which is that a whole matching prefix is cached."""
MEMORY_TOKENS = 500_000.0
"""Cap on the evidence's weight, so that the share follows recent behaviour."""


@dataclass(slots=True)
class _Matches:
    matching: float = PRIOR_TOKENS
    cached: float = PRIOR_TOKENS


class CacheHits:
    """Shares of matching prefixes that this process has seen cached, per model."""

    def __init__(self) -> None:
        self._seen: dict[str, _Matches] = {}

    def observe(self, model: str, matching_tokens: int, cached_tokens: int) -> None:
        """Learn from one reported bill; a prompt without a matching prefix teaches nothing."""
        if matching_tokens <= 0:
            return
        seen = self._seen.setdefault(model, _Matches())
        seen.matching += matching_tokens
        seen.cached += min(max(0, cached_tokens), matching_tokens)
        if seen.matching > MEMORY_TOKENS:
            seen.cached *= MEMORY_TOKENS / seen.matching
            seen.matching = MEMORY_TOKENS

    def share(self, model: str) -> float:
        """The expected share of a matching prefix that is cached, 0 to 1."""
        seen = self._seen.get(model)
        return 1.0 if seen is None else seen.cached / seen.matching

    def warm_tokens(self, model: str, matching_tokens: int) -> int:
        """The tokens of a matching prefix that are expected to be billed as cached."""
        return round(self.share(model) * matching_tokens)
