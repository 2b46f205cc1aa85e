"""Provider-reported usage in one shape; `usage_from_openai` reads every dialect.

`prompt_tokens` always includes cached and cache-written tokens, `output_tokens` always includes reasoning; providers
differ in both:

    OpenAI, DeepSeek, Gemini        prompt includes cached
    Anthropic (native)              input excludes cache reads and writes; LiteLLM adds them into prompt_tokens
    OpenAI, Anthropic, DeepSeek     output includes reasoning
    Gemini (native, and its OpenAI dialect), xAI   output excludes reasoning; only the total shows it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

UsageSource = Literal["reported", "estimated", "none"]

MAX_PLAUSIBLE_TOKENS = 10**7
"""The largest context window of 2026; a higher count is an error, not a bill."""

_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call; the special counts are parts of the two totals.

    `cache_write_tokens` includes `cache_write_1h_tokens` (Anthropic's longer-lived cache, priced apart).
    `service_tier` is the reported one. `parts` are the calls that a provider made to several models, or to one model
    several times, for one answer; where there are any, they are what is billed.
    """

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    service_tier: str | None = None
    web_searches: int = 0
    parts: tuple[InnerCall, ...] = ()


@dataclass(frozen=True, slots=True)
class InnerCall:
    """One of several calls behind an answer; `model` None is the model that was asked for."""

    model: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class UsageFault:
    """A usage report that cannot be billed; `reason` names the field, never the provider's text."""

    reason: str


@dataclass(frozen=True, slots=True)
class PartialUsage:
    """An incomplete report: `known` has 0 for a missing half.

    Without `has_output`, the output count is a lower bound, not a total.
    """

    known: Usage
    has_prompt: bool
    has_output: bool

    def completed(self, prompt_tokens: int, output_tokens: int) -> Usage:
        """The full usage, with our own estimate in place of the missing half."""
        known = self.known
        return replace(
            known,
            prompt_tokens=known.prompt_tokens if self.has_prompt else max(prompt_tokens, known.prompt_tokens),
            output_tokens=known.output_tokens if self.has_output else max(output_tokens, known.output_tokens),
        )


ReportedUsage = Usage | PartialUsage | UsageFault | None


def usage_from_openai(reported: Mapping[str, Any] | None) -> ReportedUsage:
    """Read a `usage` object of any dialect; None when nothing was reported (never zero usage).

    One half without the other gives PartialUsage; a negative, fractional, implausible or contradictory count gives
    UsageFault.
    """
    if not reported:
        return None
    try:
        return _read(reported)
    except _Implausible as error:
        return UsageFault(str(error))


# Every dialect's name of a count.
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount", "promptTokens", "inputTokens", "prompt_eval_count",
           "inputTokenCount", "input_token_count", "prompt_token_count")  # fmt: skip
OUTPUT_COUNTS = (
    "completion_tokens", "output_tokens", "candidatesTokenCount", "completionTokens", "outputTokens", "eval_count",
    "outputTokenCount", "output_token_count", "candidates_token_count", "generated_token_count", "generated_tokens",
)  # fmt: skip
_TOTAL = ("total_tokens", "totalTokenCount", "totalTokens", "total_token_count")
_CACHED = (
    "cache_read_input_tokens", "prompt_cache_hit_tokens", "cachedContentTokenCount", "cached_tokens",
    "cached_input_tokens", "cached_prompt_tokens", "num_cached_tokens", "cacheReadInputTokens",
)  # fmt: skip


class _Implausible(ValueError):
    pass


def _read(reported: Mapping[str, Any]) -> Usage | PartialUsage | None:
    prompt, output = _count(reported, *_PROMPT), _count(reported, *OUTPUT_COUNTS)
    total = _count(reported, *_TOTAL)
    has_prompt, has_output = prompt is not None, output is not None
    if not has_prompt and not has_output:
        return None
    if total is not None and has_prompt != has_output:
        # The total gives the other half. Equal to the known half it only repeats it: no answer is free for that.
        other = total - (prompt or 0) - (output or 0)
        if other > 0 or (other == 0 and "promptTokenCount" in reported):  # Gemini leaves zeros out
            prompt, output = (prompt, other) if has_prompt else (other, output)
            has_prompt = has_output = True
            total = None if "promptTokenCount" not in reported else total
    prompt, output = prompt or 0, output or 0
    prompt += _count(reported, "toolUsePromptTokenCount") or 0

    prompt_details = _part(reported, "prompt_tokens_details", "input_tokens_details")
    output_details = _part(reported, "completion_tokens_details", "output_tokens_details")
    cached = _count(prompt_details, "cached_tokens") or _count(reported, *_CACHED) or 0
    written = (
        _count(reported, "cache_creation_input_tokens", "cacheWriteInputTokens")
        or _count(prompt_details, "cache_creation_tokens", "cache_write_tokens")
        or 0
    )
    creation = _part(reported, "cache_creation") or _part(prompt_details, "cache_creation_token_details")
    written_1h = _count(creation, "ephemeral_1h_input_tokens") or 0
    reasoning = (
        _count(output_details, "reasoning_tokens") or _count(reported, "thoughtsTokenCount", "reasoning_tokens") or 0
    )

    prompt = _with_cache(reported, prompt, output, cached + written, total)
    output, reasoning = _with_reasoning(reported, prompt, output, reasoning, total)
    usage = Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=written_1h,
        reasoning_tokens=reasoning,
        audio_input_tokens=_count(prompt_details, "audio_tokens") or 0,
        audio_output_tokens=_count(output_details, "audio_tokens") or 0,
        image_input_tokens=_count(prompt_details, "image_tokens") or 0,
        image_output_tokens=_count(output_details, "image_tokens") or 0,
        service_tier=_tier(reported),
        web_searches=_searches(reported, prompt_details),
        parts=_parts_of(reported),
    )
    if has_prompt and has_output:
        return _checked(usage)
    if not has_prompt:
        usage = replace(usage, prompt_tokens=max(usage.prompt_tokens, cached + written, usage.audio_input_tokens))
    return PartialUsage(_checked(usage), has_prompt, has_output)


def _with_cache(reported: Mapping[str, Any], prompt: int, output: int, cache: int, total: int | None) -> int:
    """Add cache reads and writes to a prompt count that excludes them."""
    if not cache:
        return prompt
    native_anthropic = (
        "input_tokens" in reported
        and "prompt_tokens" not in reported
        and ("cache_read_input_tokens" in reported or "cache_creation_input_tokens" in reported)
    )
    total_adds_cache = total is not None and total == prompt + cache + output
    return prompt + cache if native_anthropic or prompt < cache or total_adds_cache else prompt


def _with_reasoning(
    reported: Mapping[str, Any], prompt: int, output: int, reasoning: int, total: int | None
) -> tuple[int, int]:
    """Add reasoning to an output count that excludes it; tokens found only in the total are reasoning."""
    if "thoughtsTokenCount" in reported and "candidatesTokenCount" in reported:
        return output + reasoning, reasoning
    unexplained = 0 if total is None else total - prompt - output
    if unexplained > 0:
        return output + unexplained, max(reasoning, unexplained)
    if reasoning > output:
        return output + reasoning, reasoning
    return output, reasoning


def _checked(usage: Usage) -> Usage:
    if usage.cached_tokens + usage.cache_write_tokens > usage.prompt_tokens:
        raise _Implausible("more cached tokens than prompt tokens")
    if usage.cache_write_1h_tokens > usage.cache_write_tokens:
        raise _Implausible("more one-hour cache writes than cache writes")
    if usage.audio_input_tokens > usage.prompt_tokens or usage.audio_output_tokens > usage.output_tokens:
        raise _Implausible("more audio tokens than tokens")
    if usage.output_tokens > MAX_PLAUSIBLE_TOKENS or usage.prompt_tokens > MAX_PLAUSIBLE_TOKENS:
        raise _Implausible("implausibly many tokens")
    return usage


def with_facts(usage: ReportedUsage, service_tier: str | None, web_searches: int) -> ReportedUsage:
    """A usage with what the response says beside it, where the usage itself does not say it."""
    if isinstance(usage, PartialUsage):
        return replace(usage, known=_with_facts(usage.known, service_tier, web_searches))
    return _with_facts(usage, service_tier, web_searches) if isinstance(usage, Usage) else usage


def _with_facts(usage: Usage, service_tier: str | None, web_searches: int) -> Usage:
    if service_tier is None and not web_searches:
        return usage
    return replace(
        usage,
        service_tier=usage.service_tier or service_tier,
        web_searches=usage.web_searches or web_searches,
    )


def _tier(reported: Mapping[str, Any]) -> str | None:
    """Anthropic's tier in the usage, and Gemini's kind of traffic."""
    values = (reported.get("service_tier"), reported.get("trafficType"), reported.get("traffic_type"))
    return next((value for value in values if isinstance(value, str) and value), None)


def _searches(reported: Mapping[str, Any], prompt_details: Mapping[str, Any]) -> int:
    """Web searches that the provider made for this answer, by any of the reported names."""
    tools = _part(_part(reported, "tool_usage"), "web_search")
    return (
        _count(_part(reported, "server_tool_use"), "web_search_requests")
        or _count(prompt_details, "web_search_requests")
        or _count(_part(reported, "server_side_tool_usage_details"), "web_search_calls")
        or _count(tools, "num_requests")
        or _count(reported, "num_search_queries", "web_search_requests")
        or 0
    )


def _parts_of(reported: Mapping[str, Any]) -> tuple[InnerCall, ...]:
    """Anthropic's `iterations`: the calls of one answer (compaction, an advisor, a fallback model)."""
    listed = reported.get("iterations")
    found = []
    for item in listed if isinstance(listed, list) else ():
        usage = _read(item) if isinstance(item, Mapping) else None
        if isinstance(usage, PartialUsage):
            usage = usage.known
        if usage is not None:
            model = item.get("model")
            found.append(InnerCall(model if isinstance(model, str) and model else None, usage))
    return tuple(found)


def _part(reported: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        value = reported.get(name)
        if isinstance(value, Mapping):
            return value
    return {}


def _count(reported: Mapping[str, Any], *names: str) -> int | None:
    """The first of `names` that is present, as a count; null counts as absent."""
    for name in names:
        value = reported.get(name)
        if value is None:
            continue
        value = _as_integer(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _Implausible(f"{name} is not a whole number")
        if value < 0:
            raise _Implausible(f"{name} is negative")
        if value > MAX_PLAUSIBLE_TOKENS:
            raise _Implausible(f"{name} is implausibly large")
        return value
    return None


def _as_integer(value: object) -> object:
    """Convert a whole number written as a float or a string to int; return other values unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < _MAX_DIGITS:
        return int(value)
    return value
