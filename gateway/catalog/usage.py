"""Provider-reported usage in one shape; `usage_from_openai` reads every dialect.

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
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from msgspec import Struct, structs

from gateway.catalog.service_tiers import FAST, US

UsageSource = Literal["reported", "estimated", "none"]

MAX_PLAUSIBLE_TOKENS = 10**7
"""The largest context window of 2026; a higher count is an error, not a bill."""

_MAX_DIGITS = 20


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


def usage_from_openai(reported: Mapping[str, Any] | None) -> ReportedUsage:
    """Read a `usage` object of any dialect; None when nothing was reported (never zero usage).

    One half without the other gives PartialUsage. A negative, fractional or implausible count is a missing one, and so
    is a detail that contradicts the counts.
    """
    return _read(reported) if reported else None


def _fold(name: str) -> str:
    """A name without the marks and capitals in which dialects differ: `promptTokens` is `prompt_tokens`."""
    return name.replace("_", "").replace("-", "").lower()


def _folded(*names: str) -> tuple[str, ...]:
    return tuple(map(_fold, names))


# Every dialect's name of a count.
_PROMPT = _folded(
    "prompt_tokens", "input_tokens", "promptTokenCount", "inputTokenCount", "prompt_eval_count", "prompt_n",
    "inputTextTokenCount", "prompt", "input",
)  # fmt: skip
_OUTPUT = _folded(
    "completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokenCount", "eval_count",
    "completionTokenCount", "generated_token_count", "generated_tokens", "predicted_n", "completion", "output",
)  # fmt: skip
_TOTAL = _folded("total_tokens", "totalTokenCount")
_CACHED = _folded(
    "cache_read_input_tokens", "prompt_cache_hit_tokens", "cachedContentTokenCount", "cached_tokens",
    "cached_input_tokens", "cached_prompt_tokens", "prompt_cached_tokens", "num_cached_tokens", "cache_read_tokens",
    "cache_hit_tokens", "cached_prompt_text_tokens", "input_cached_tokens", "cache_tokens", "cache_n",
    "cacheReadInputTokenCount",
)  # fmt: skip
_WRITTEN = _folded(
    "cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount", "cache_write_tokens"
)
_REASONING = _folded("thoughtsTokenCount", "reasoning_tokens", "thinking_tokens")
_PROMPT_DETAILS = _folded(
    "prompt_tokens_details", "input_tokens_details", "prompt_token_details", "input_token_details"
)
_OUTPUT_DETAILS = _folded(
    "completion_tokens_details",
    "output_tokens_details",
    "completion_token_details",
    "output_token_details",
    "candidatesTokensDetails",
)
_CACHED_DETAILS = _folded("cached_tokens_details", "cacheTokensDetails")
_CACHED_IN_DETAILS = (*_CACHED, *_folded("cached", "cache_read"))
_WRITTEN_IN_DETAILS = (*_WRITTEN, *_folded("cache_creation_tokens", "cache_creation"))
_AMBIGUOUS = frozenset(_folded("prompt", "input", "completion", "output"))
"""Names that mean counts only within a usage."""
_LONE_COUNTS = frozenset((*_PROMPT, *_OUTPUT, *_TOTAL, *_CACHED, *_PROMPT_DETAILS, *_OUTPUT_DETAILS)) - _AMBIGUOUS
_HOSTED = frozenset(
    _folded(
        "server_tool_use", "server_side_tool_usage_details", "tool_usage", "web_search_requests", "num_search_queries",
        "google_maps_grounding_requests", "citation_tokens", "iterations", "hosted_calls", "heard_calls",
    )
)  # fmt: skip
"""What few reports have: searches and other tools that the provider ran, and several calls behind one answer."""


def is_count_name(name: str) -> bool:
    """True for the name of a count of tokens, or of their details, wherever it stands."""
    return _fold(name) in _LONE_COUNTS


def is_count(value: object) -> bool:
    """True for a count of tokens as any provider writes it."""
    number = _as_integer(value)
    return _is_whole(number) and 0 <= number <= MAX_PLAUSIBLE_TOKENS


def tells_both_counts(value: Mapping[str, Any]) -> bool:
    """True for a usage under any name: it counts the prompt and the output, in numbers."""
    numbers = {name: _as_integer(count) for name, count in value.items() if not isinstance(count, bool | str)}
    names = {_fold(name) for name, count in numbers.items() if isinstance(count, int)} - _AMBIGUOUS
    return not names.isdisjoint(_PROMPT) and not names.isdisjoint(_OUTPUT)


def counts_output(reported: Mapping[str, Any]) -> bool:
    """True if a report has an output count above zero."""
    return any(value and _fold(name) in _OUTPUT for name, value in reported.items())


@dataclass(frozen=True, slots=True)
class _Report:
    """The counts of a report by their folded names."""

    values: Mapping[str, tuple[str, Any]]

    @staticmethod
    def of(reported: object) -> _Report:
        """The report; of a list, its counts by modality or its only item; of anything else, none."""
        if isinstance(reported, list):
            reported = counts_by_modality(reported) or (reported[0] if len(reported) == 1 else None)
        named = reported.items() if isinstance(reported, Mapping) else ()
        folded = {_fold(name): (name, value) for name, value in named}
        for name in _AMBIGUOUS.intersection(folded):
            if not isinstance(_as_integer(folded[name][1]), int):
                del folded[name]  # a price, a text
        return _Report(folded)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def value(self, name: str) -> Any:
        """The value under a folded name; None without one."""
        found = self.values.get(name)
        return None if found is None else found[1]

    def part(self, *names: str) -> _Report:
        """The first object among `names`; empty without one."""
        values = self.values
        for name in names:
            if name in values:
                value = values[name][1]
                if isinstance(value, Mapping | list) and (made := _Report.of(value)).values:
                    return made
        return _NOTHING

    def first(self, *names: str) -> str | None:
        """The first of `names` that is a count."""
        return next((name for name in names if self._counted(name) is not None), None)

    def count(self, *names: str) -> int | None:
        """The first count among `names`."""
        return next((count for name in names if (count := self._counted(name)) is not None), None)

    def detail(self, *names: str) -> int:
        """As `count`, for a part of the two totals: 0 where there is none, or the server did not count it."""
        return self.count(*names) or 0

    def fault(self, *names: str) -> str:
        """Why no count can be read although there is one; "" if there is none."""
        for name in names:
            given, value = self.values.get(name, ("", None))
            if not _is_uncounted(value):
                return f"{given} is {'implausibly large' if _is_whole(_as_integer(value)) else 'not a whole number'}"
        return ""

    def _counted(self, folded: str) -> int | None:
        found = self.values.get(folded)
        if found is None:
            return None
        value = found[1] if type(found[1]) is int else _as_integer(found[1])
        return value if _is_whole(value) and 0 <= value <= MAX_PLAUSIBLE_TOKENS else None


_NOTHING = _Report({})


def _read(given: Mapping[str, Any]) -> Usage | PartialUsage | None:
    reported = _Report.of(given)
    prompt, output = reported.count(*_PROMPT), reported.count(*_OUTPUT)
    total = reported.count(*_TOTAL)
    has_prompt, has_output = prompt is not None, output is not None
    fault = ("" if has_prompt else reported.fault(*_PROMPT)) or ("" if has_output else reported.fault(*_OUTPUT))
    if not has_prompt and not has_output:
        heard = _calls_by_kind(reported, "heardcalls")
        none = PartialUsage(Usage(0, 0, heard_calls=heard), has_prompt=False, has_output=False, fault=fault)
        return structs.replace(none, total=total or 0) if total or heard or fault else None
    if total is not None and has_prompt != has_output:
        # The total gives the other half. Equal to the known half it only repeats it: no answer is free for that.
        other = total - (prompt or 0) - (output or 0)
        if other > 0 or (other == 0 and "prompttokencount" in reported):  # Gemini leaves zeros out
            prompt, output = (prompt, other) if has_prompt else (other, output)
            has_prompt = has_output = True
            total = None if "prompttokencount" not in reported else total
    prompt, output = prompt or 0, output or 0
    prompt += reported.detail("tooluseprompttokencount")
    if reported.first(*_PROMPT) == "promptn":  # llama.cpp's, which excludes cache_n
        prompt += reported.detail("cachen")

    prompt_details, output_details = reported.part(*_PROMPT_DETAILS), reported.part(*_OUTPUT_DETAILS)
    cached = prompt_details.detail(*_CACHED_IN_DETAILS) or reported.detail(*_CACHED)
    cached_audio = _cached_audio(prompt_details, reported) if cached else 0
    by_lifetime = reported.part("cachecreation"), prompt_details.part("cachecreationtokendetails")
    written_5m, written_1h = (
        max(
            *(each.detail(f"ephemeral{lifetime}inputtokens") for each in by_lifetime),
            _written_for(reported.value("cachedetails"), lifetime),
        )
        for lifetime in ("5m", "1h")
    )
    written = reported.detail(*_WRITTEN) or prompt_details.detail(*_WRITTEN_IN_DETAILS)
    unsummed = 0 if written else written_5m + written_1h  # no sum: in no prompt either, by whomever it is counted
    reasoning = output_details.detail(*_REASONING) or reported.detail(*_REASONING)

    prompt = _with_cache(reported, prompt, output, cached + written, total) + unsummed
    written, total = written + unsummed, None if total is None else total + unsummed
    if has_prompt and cached + written > prompt:
        # The total has no room for a cache beside the prompt: some servers count one for each of several choices.
        cached, written = min(cached, prompt), min(written, max(prompt - cached, 0))
    hosted = not (_HOSTED.isdisjoint(reported.values) and _HOSTED.isdisjoint(prompt_details.values))
    researched = hosted and any(details.first("citationtokens") for details in (reported, prompt_details))
    output, reasoning = _with_reasoning(reported, prompt, output, reasoning, total, apart=researched)
    usage = Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        cached_audio_tokens=min(cached_audio, cached),
        cache_write_tokens=written,
        cache_write_1h_tokens=written_1h,
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
    has_prompt = prompt > 0  # no answer is without a prompt: Ollama counts none that it had in its cache
    if not has_prompt:
        usage = structs.replace(
            usage, prompt_tokens=max(usage.prompt_tokens, cached + written, usage.audio_input_tokens)
        )
    return PartialUsage(_without_contradictions(usage), has_prompt, has_output, fault=fault)


def _with_hosted(usage: Usage, reported: _Report, prompt_details: _Report) -> Usage:
    """A usage with what the report says beside the tokens, where it has one of _HOSTED."""
    return structs.replace(
        usage,
        web_searches=_searches(reported, prompt_details),
        maps_queries=(prompt_details if prompt_details.values else reported).detail("googlemapsgroundingrequests"),
        citation_tokens=reported.detail("citationtokens") or prompt_details.detail("citationtokens"),
        parts=_parts_of(reported),
        hosted_calls=_calls_by_kind(reported, "hostedcalls"),
        heard_calls=_calls_by_kind(reported, "heardcalls"),
    )


def _cached_audio(prompt_details: _Report, reported: _Report) -> int:
    return max(details.part(*_CACHED_DETAILS).detail("audiotokens") for details in (prompt_details, reported))


def _with_cache(reported: _Report, prompt: int, output: int, cache: int, total: int | None) -> int:
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
    reported: _Report, prompt: int, output: int, reasoning: int, total: int | None, *, apart: bool
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


def beside_words(usage: ReportedUsage) -> ReportedUsage:
    """The usage of a generated answer: a prompt without output is half, zeros are none."""
    if isinstance(usage, Usage) and usage.output_tokens == 0 and not usage.parts:
        return PartialUsage(usage, has_prompt=usage.prompt_tokens > 0, has_output=False)
    return usage


def with_facts(usage: ReportedUsage, service_tier: str | None, web_searches: int) -> ReportedUsage:
    """A usage with what the response says beside it, where the usage itself does not say it."""
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


def _tier(reported: _Report) -> str | None:
    """Anthropic's tier in the usage, and Gemini's kind of traffic."""
    values = (reported.value("servicetier"), reported.value("traffictype"))
    return next((value for value in values if isinstance(value, str) and value), None)


def _premiums(reported: _Report) -> tuple[str, ...]:
    """Where and how fast Anthropic served the call, where that costs more."""
    values = (reported.value("inferencegeo"), reported.value("speed"))
    return tuple(value.lower() for value in values if isinstance(value, str) and value.lower() in (US, FAST))


def _searches(reported: _Report, prompt_details: _Report) -> int:
    """Web searches that the provider made for this answer, by any of the reported names."""
    return (
        reported.part("servertooluse").detail("websearchrequests")
        or prompt_details.detail("websearchrequests")
        or reported.part("serversidetoolusagedetails").detail("websearchcalls")
        or reported.part("toolusage").part("websearch").detail("numrequests")
        or reported.detail("numsearchqueries", "websearchrequests")
    )


def _parts_of(reported: _Report) -> tuple[InnerCall, ...]:
    """Anthropic's `iterations`: the calls of one answer (compaction, an advisor, a fallback model)."""
    listed = reported.value("iterations")
    found = []
    for item in listed if isinstance(listed, list) else ():
        usage = _read(item) if isinstance(item, Mapping) else None
        if isinstance(usage, PartialUsage):
            usage = usage.known
        if usage is not None:
            model = item.get("model")
            found.append(InnerCall(model if isinstance(model, str) and model else None, usage))
    return tuple(found)


def _calls_by_kind(reported: _Report, name: str) -> tuple[tuple[str, int], ...]:
    """Calls of hosted tools by kind, as a forwarded answer's are counted."""
    calls = reported.part(name)
    return tuple((calls.values[folded][0], count) for folded in calls.values if (count := calls.count(folded)))


def counts_by_modality(listed: list[Any]) -> dict[str, int]:
    """Gemini's counts by modality under the names of OpenAI's; empty for any other list."""
    counts: dict[str, int] = {}
    for item in listed:
        modality = item.get("modality") if isinstance(item, Mapping) else None
        count = _Report.of(item).detail("tokencount") if isinstance(modality, str) else None
        if count is None:
            return {}
        name = f"{modality}_tokens".lower()
        counts[name] = counts.get(name, 0) + count
    return counts


def _written_for(listed: object, ttl: str) -> int:
    """Bedrock's tokens that were written to the cache for a time."""
    items = listed if isinstance(listed, list) else ()
    return sum(_Report.of(item).detail("inputtokens") for item in items if _Report.of(item).value("ttl") == ttl)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_uncounted(value: object) -> bool:
    """True for null and for a negative number, which some servers write for what they did not count."""
    if type(value) is int:
        return value < 0
    if isinstance(value, str):
        return value.strip().startswith("-") and isinstance(_as_integer(value.strip()[1:]), int)
    return value is None or (isinstance(value, float) and value < 0)


def _as_integer(value: object) -> object:
    """Convert a whole number written as a float or a string to int; return other values unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0")
        if digits.isascii() and digits.isdigit() and len(digits) < _MAX_DIGITS:
            return int(digits)
    return value
