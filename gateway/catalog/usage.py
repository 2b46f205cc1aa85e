"""The tokens and tool calls of one call of a provider, in one shape for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec import Struct, structs

UsageSource = Literal["reported", "estimated", "none"]


class Usage(Struct, frozen=True):
    """Token counts of one call; the special counts are parts of the two totals.

    `cache_write_tokens` includes `cache_write_1h_tokens` (Anthropic's longer-lived cache, priced apart).
    `service_tier` is the reported one, `premiums` are Anthropic's ("us", "fast"). `parts` are the calls that a provider
    made to several models, or to one model several times, for one answer; where there are any, they are what is billed.
    `hosted_calls` counts the calls of other tools that the provider ran, by kind; `heard_calls` those that a stream
    brought before its end, with searches. `citation_tokens` are read on cited pages and no part of a total.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cached_audio_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    service_tier: str | None = None
    premiums: tuple[str, ...] = ()
    web_searches: int = 0
    maps_queries: int = 0
    citation_tokens: int = 0
    parts: tuple[InnerCall, ...] = ()
    hosted_calls: tuple[tuple[str, int], ...] = ()
    heard_calls: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class InnerCall:
    """One of several calls behind an answer; `model` None is the model that was asked for."""

    model: str | None
    usage: Usage


class PartialUsage(Struct, frozen=True):
    """An incomplete report: `known` has 0 for a missing half.

    Without `has_output`, the output count is a lower bound, not a total. `total` is all that was counted, where neither
    half was. `fault` names a count that cannot be, never the provider's text.
    """

    known: Usage
    has_prompt: bool
    has_output: bool
    total: int = 0
    fault: str = ""

    def completed(self, prompt_tokens: int, output_tokens: int) -> Usage:
        """The full usage, with our own estimate in place of the missing half."""
        known = self.known
        if self.total:
            prompt_tokens = min(prompt_tokens, self.total)
            output_tokens = self.total - prompt_tokens or output_tokens
        return structs.replace(
            known,
            prompt_tokens=known.prompt_tokens if self.has_prompt else max(prompt_tokens, known.prompt_tokens),
            output_tokens=known.output_tokens if self.has_output else max(output_tokens, known.output_tokens),
        )


ReportedUsage = Usage | PartialUsage | None


def beside_words(usage: ReportedUsage) -> ReportedUsage:
    """The usage of an answer that has text: one without output tokens is only partly known."""
    if isinstance(usage, Usage) and usage.output_tokens == 0 and not usage.parts:
        return PartialUsage(usage, has_prompt=usage.prompt_tokens > 0, has_output=False)
    return usage


def with_facts(usage: ReportedUsage, service_tier: str | None, web_searches: int) -> ReportedUsage:
    """The usage with the service tier and searches that the response states elsewhere."""
    if isinstance(usage, PartialUsage):
        return structs.replace(usage, known=_with_facts(usage.known, service_tier, web_searches))
    return _with_facts(usage, service_tier, web_searches) if isinstance(usage, Usage) else usage


def _with_facts(usage: Usage, service_tier: str | None, web_searches: int) -> Usage:
    if service_tier is None and not web_searches:
        return usage
    return structs.replace(
        usage,
        service_tier=usage.service_tier or service_tier,
        web_searches=usage.web_searches or web_searches,
    )
