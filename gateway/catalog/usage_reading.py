"""Reads the usage that a provider reports, in any dialect.

`prompt_tokens` always includes cached and cache-written tokens, `output_tokens` always includes reasoning; providers
differ in both:

    OpenAI, DeepSeek, Gemini        prompt includes cached
    Anthropic (native)              input excludes cache reads and writes; LiteLLM adds them into prompt_tokens
    OpenAI, Anthropic, DeepSeek     output includes reasoning
    Gemini (native, and its OpenAI dialect), xAI   output excludes reasoning; only the total shows it
    Perplexity's deep research      output and total exclude reasoning
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import structs

from gateway.catalog.usage import InnerCall, PartialUsage, ReportedUsage, Usage
from gateway.catalog.usage_names import (
    CACHED_DETAILS,
    CACHED_IN_DETAILS,
    CACHED_NAMES,
    HOSTED_NAMES,
    LIFETIME_NAMES,
    MAX_PLAUSIBLE_TOKENS,
    OUTPUT_DETAILS,
    OUTPUT_NAMES,
    PROMPT_DETAILS,
    PROMPT_NAMES,
    REASONING_NAMES,
    TOTAL_NAMES,
    WRITTEN_IN_DETAILS,
    WRITTEN_NAMES,
    ReportedCounts,
)
from gateway.config.prices import FAST, US
from gateway.unchecked import objects_in


def read_usage(reported: Mapping[str, Any] | None) -> ReportedUsage:
    """Read a `usage` object of any dialect; None when nothing was reported (never zero usage).

    One half without the other gives PartialUsage. A negative, fractional or implausible count is a missing one, and so
    is a detail that contradicts the counts.
    """
    if not reported:
        return None
    return _read_plain(reported) or _read(ReportedCounts.of(reported))


_TOTALS = frozenset(("prompt_tokens", "completion_tokens", "total_tokens"))
_DETAILS = frozenset(("prompt_tokens_details", "completion_tokens_details"))


def _read_plain(reported: Mapping[str, Any]) -> Usage | None:
    """What `_read` says of the common report: OpenAI's two counts, their sum, and no detail that is not zero."""
    if not _TOTALS <= reported.keys() <= _TOTALS | _DETAILS:
        return None
    prompt, output, total = reported["prompt_tokens"], reported["completion_tokens"], reported["total_tokens"]
    if not (type(prompt) is type(output) is type(total) is int and 0 < prompt <= MAX_PLAUSIBLE_TOKENS):
        return None
    if not 0 <= output <= MAX_PLAUSIBLE_TOKENS or total != prompt + output:
        return None
    for name in reported.keys() & _DETAILS:
        details = reported[name]
        if details is not None and (type(details) is not dict or any(details.values())):
            return None
    return Usage(prompt, output)


def _read(reported: ReportedCounts) -> ReportedUsage:
    counts = _Counts(reported.count(*PROMPT_NAMES), reported.count(*OUTPUT_NAMES), reported.count(*TOTAL_NAMES))
    fault = _fault(reported, counts)
    if counts.prompt is None and counts.output is None:
        return _without_halves(reported, counts.total or 0, fault)
    counts = _with_other_half(reported, counts)
    has_prompt, has_output, total = counts.prompt is not None, counts.output is not None, counts.total
    prompt, output = _whole_prompt(reported, counts.prompt or 0), counts.output or 0
    prompt_details, output_details = reported.part(*PROMPT_DETAILS), reported.part(*OUTPUT_DETAILS)

    cache = _cache(reported, prompt_details)
    prompt = _with_cache(reported, prompt, output, cache.cached + cache.written, total) + cache.unsummed
    total = None if total is None else total + cache.unsummed
    cached, written = cache.cached, cache.written + cache.unsummed
    if has_prompt and cached + written > prompt:
        # The total has no room for a cache beside the prompt: some servers count one for each of several choices.
        cached, written = min(cached, prompt), min(written, max(prompt - cached, 0))
    hosted = not (HOSTED_NAMES.isdisjoint(reported.values) and HOSTED_NAMES.isdisjoint(prompt_details.values))
    researched = hosted and any(details.first("citationtokens") for details in (reported, prompt_details))
    reasoning = output_details.detail(*REASONING_NAMES) or reported.detail(*REASONING_NAMES)
    output, reasoning = _with_reasoning(reported, prompt, output, reasoning, total, apart=researched)

    usage = Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        cached_audio_tokens=min(cache.audio, cached),
        cache_write_tokens=written,
        cache_write_1h_tokens=cache.written_1h,
        reasoning_tokens=reasoning,
        audio_input_tokens=prompt_details.detail("audiotokens"),
        audio_output_tokens=output_details.detail("audiotokens"),
        image_input_tokens=prompt_details.detail("imagetokens"),
        image_output_tokens=output_details.detail("imagetokens"),
        service_tier=_tier(reported),
        premiums=_premiums(reported),
    )
    if hosted:
        usage = _with_hosted(usage, reported, prompt_details)
    if has_prompt and has_output and (prompt or not output):
        return _without_contradictions(usage)
    return _partial(usage, has_output=has_output, fault=fault)


class _Counts(NamedTuple):
    """The totals of a report; None: not counted."""

    prompt: int | None
    output: int | None
    total: int | None


class _Cache(NamedTuple):
    """What was read from a provider's cache and written to it.

    `unsummed` was written too: counted by lifetime without a sum, and so part of no prompt either.
    """

    cached: int
    audio: int
    written: int
    written_1h: int
    unsummed: int


def _fault(reported: ReportedCounts, counts: _Counts) -> str:
    """Why a half that the report names cannot be read."""
    prompt = "" if counts.prompt is not None else reported.fault(*PROMPT_NAMES)
    return prompt or ("" if counts.output is not None else reported.fault(*OUTPUT_NAMES))


def _without_halves(reported: ReportedCounts, total: int, fault: str) -> PartialUsage | None:
    """The usage of a report that counts neither the prompt nor the output."""
    heard = _calls_by_kind(reported, "heardcalls")
    if not (total or heard or fault):
        return None
    return PartialUsage(Usage(0, 0, heard_calls=heard), has_prompt=False, has_output=False, total=total, fault=fault)


def _with_other_half(reported: ReportedCounts, counts: _Counts) -> _Counts:
    """The counts with a missing half from the total.

    A total equal to the known half only repeats it: no answer is free for that, but Gemini leaves zeros out.
    """
    prompt, output, total = counts
    if total is None or (prompt is None) == (output is None):
        return counts
    other, gemini = total - (prompt or 0) - (output or 0), "prompttokencount" in reported
    if other < 0 or (other == 0 and not gemini):
        return counts
    return _Counts(other if prompt is None else prompt, other if output is None else output, total if gemini else None)


def _whole_prompt(reported: ReportedCounts, prompt: int) -> int:
    """The prompt with what Gemini and llama.cpp count beside it."""
    prompt += reported.detail("tooluseprompttokencount")
    return prompt + reported.detail("cachen") if reported.first(*PROMPT_NAMES) == "promptn" else prompt


def _cache(reported: ReportedCounts, prompt_details: ReportedCounts) -> _Cache:
    cached = prompt_details.detail(*CACHED_IN_DETAILS) or reported.detail(*CACHED_NAMES)
    written_5m, written_1h = _written_by_lifetime(reported, prompt_details)
    written = reported.detail(*WRITTEN_NAMES) or prompt_details.detail(*WRITTEN_IN_DETAILS)
    unsummed = 0 if written else written_5m + written_1h
    parts = [details.part(*CACHED_DETAILS) for details in (prompt_details, reported)] if cached else []
    audio = max((part.detail("audiotokens") for part in parts), default=0)
    return _Cache(cached, audio, written, written_1h, unsummed)


def _written_by_lifetime(reported: ReportedCounts, prompt_details: ReportedCounts) -> tuple[int, int]:
    """The tokens that were written for five minutes and for an hour, where the report tells them apart."""
    if LIFETIME_NAMES.isdisjoint(reported.values) and LIFETIME_NAMES.isdisjoint(prompt_details.values):
        return 0, 0
    parts = reported.part("cachecreation"), prompt_details.part("cachecreationtokendetails")
    written_5m, written_1h = (
        max(
            *(part.detail(f"ephemeral{lifetime}inputtokens") for part in parts),
            _written_for(reported.value("cachedetails"), lifetime),
        )
        for lifetime in ("5m", "1h")
    )
    return written_5m, written_1h


def _partial(usage: Usage, *, has_output: bool, fault: str) -> PartialUsage:
    """The usage of a report without a half; no answer is without a prompt: Ollama counts none that was cached."""
    has_prompt = usage.prompt_tokens > 0
    if not has_prompt:
        least = max(usage.cached_tokens + usage.cache_write_tokens, usage.audio_input_tokens)
        usage = structs.replace(usage, prompt_tokens=least)
    return PartialUsage(_without_contradictions(usage), has_prompt, has_output, fault=fault)


def _with_hosted(usage: Usage, reported: ReportedCounts, prompt_details: ReportedCounts) -> Usage:
    """A usage with what the report says beside the tokens, where it has one of HOSTED_NAMES."""
    return structs.replace(
        usage,
        web_searches=_searches(reported, prompt_details),
        maps_queries=(prompt_details if prompt_details.values else reported).detail("googlemapsgroundingrequests"),
        citation_tokens=reported.detail("citationtokens") or prompt_details.detail("citationtokens"),
        parts=_parts_of(reported),
        hosted_calls=_calls_by_kind(reported, "hostedcalls"),
        heard_calls=_calls_by_kind(reported, "heardcalls"),
    )


def _with_cache(reported: ReportedCounts, prompt: int, output: int, cache: int, total: int | None) -> int:
    """Add cache reads and writes to a prompt count that excludes them."""
    if not cache:
        return prompt
    native_anthropic = (
        "inputtokens" in reported
        and "prompttokens" not in reported
        and ("cachereadinputtokens" in reported or "cachecreationinputtokens" in reported)
    )
    total_adds_cache = total is not None and total == prompt + cache + output
    excluded = prompt < cache and total != prompt + output
    return prompt + cache if native_anthropic or excluded or total_adds_cache else prompt


def _with_reasoning(
    reported: ReportedCounts, prompt: int, output: int, reasoning: int, total: int | None, *, apart: bool
) -> tuple[int, int]:
    """Add reasoning to an output count that excludes it; tokens found only in the total are reasoning.

    `apart`: a report with citation tokens is Perplexity's deep research, which counts reasoning in no total.
    """
    if "thoughtstokencount" in reported and "candidatestokencount" in reported:
        return output if total == prompt + output >= prompt + reasoning else output + reasoning, reasoning
    unexplained = 0 if total is None else total - prompt - output
    if unexplained > 0:
        return output + unexplained, max(reasoning, unexplained)
    if reasoning > output or apart:
        return output + reasoning, reasoning
    return output, reasoning


def _without_contradictions(usage: Usage) -> Usage:
    """The usage without parts that are larger than what they are parts of."""
    return structs.replace(
        usage,
        cache_write_1h_tokens=_within(usage.cache_write_1h_tokens, usage.cache_write_tokens),
        audio_input_tokens=_within(usage.audio_input_tokens, usage.prompt_tokens),
        audio_output_tokens=_within(usage.audio_output_tokens, usage.output_tokens),
    )


def _within(part: int, whole: int) -> int:
    return part if part <= whole else 0


def _tier(reported: ReportedCounts) -> str | None:
    """Anthropic's tier in the usage, and Gemini's kind of traffic."""
    values = (reported.value("servicetier"), reported.value("traffictype"))
    return next((value for value in values if isinstance(value, str) and value), None)


def _premiums(reported: ReportedCounts) -> tuple[str, ...]:
    """Where and how fast Anthropic served the call, where that costs more."""
    values = (reported.value("inferencegeo"), reported.value("speed"))
    return tuple(value.lower() for value in values if isinstance(value, str) and value.lower() in (US, FAST))


def _searches(reported: ReportedCounts, prompt_details: ReportedCounts) -> int:
    """Web searches that the provider made for this answer, by any of the reported names."""
    return (
        reported.part("servertooluse").detail("websearchrequests")
        or prompt_details.detail("websearchrequests")
        or reported.part("serversidetoolusagedetails").detail("websearchcalls")
        or reported.part("toolusage").part("websearch").detail("numrequests")
        or reported.detail("numsearchqueries", "websearchrequests")
    )


def _parts_of(reported: ReportedCounts) -> tuple[InnerCall, ...]:
    """Anthropic's `iterations`: the calls of one answer (compaction, an advisor, a fallback model)."""
    found = []
    for item in objects_in(reported.value("iterations")):
        usage = _read(ReportedCounts.of(item))
        if isinstance(usage, PartialUsage):
            usage = usage.known
        if usage is not None:
            model = item.get("model")
            found.append(InnerCall(model if isinstance(model, str) and model else None, usage))
    return tuple(found)


def _calls_by_kind(reported: ReportedCounts, name: str) -> tuple[tuple[str, int], ...]:
    """Calls of hosted tools by kind, as a forwarded answer's are counted."""
    calls = reported.part(name)
    return tuple((calls.values[folded][0], count) for folded in calls.values if (count := calls.count(folded)))


def _written_for(details: object, ttl: str) -> int:
    """Bedrock's tokens that were written to the cache for a time."""
    items = map(ReportedCounts.of, objects_in(details))
    return sum(item.detail("inputtokens") for item in items if item.value("ttl") == ttl)
