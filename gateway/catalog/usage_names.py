"""Finds the counts of a usage report under any dialect's names and in any of its forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from msgspec import Struct

MAX_PLAUSIBLE_TOKENS = 10**7
"""The largest context window of 2026; a higher count is an error, not a bill."""

_MAX_DIGITS = 20


def _fold(name: str) -> str:
    """A name without the marks and capitals in which dialects differ: `promptTokens` is `prompt_tokens`."""
    return name.replace("_", "").replace("-", "").lower()


def _folded(*names: str) -> tuple[str, ...]:
    return tuple(map(_fold, names))


# Every dialect's name of a count.
PROMPT_NAMES = _folded(
    "prompt_tokens", "input_tokens", "promptTokenCount", "inputTokenCount", "prompt_eval_count", "prompt_n",
    "inputTextTokenCount", "prompt", "input",
)  # fmt: skip
OUTPUT_NAMES = _folded(
    "completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokenCount", "eval_count",
    "completionTokenCount", "generated_token_count", "generated_tokens", "predicted_n", "completion", "output",
)  # fmt: skip
TOTAL_NAMES = _folded("total_tokens", "totalTokenCount")
CACHED_NAMES = _folded(
    "cache_read_input_tokens", "prompt_cache_hit_tokens", "cachedContentTokenCount", "cached_tokens",
    "cached_input_tokens", "cached_prompt_tokens", "prompt_cached_tokens", "num_cached_tokens", "cache_read_tokens",
    "cache_hit_tokens", "cached_prompt_text_tokens", "input_cached_tokens", "cache_tokens", "cache_n",
    "cacheReadInputTokenCount",
)  # fmt: skip
WRITTEN_NAMES = _folded(
    "cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount", "cache_write_tokens"
)
REASONING_NAMES = _folded("thoughtsTokenCount", "reasoning_tokens", "thinking_tokens")
PROMPT_DETAILS = _folded("prompt_tokens_details", "input_tokens_details", "prompt_token_details", "input_token_details")
OUTPUT_DETAILS = _folded(
    "completion_tokens_details",
    "output_tokens_details",
    "completion_token_details",
    "output_token_details",
    "candidatesTokensDetails",
)
CACHED_DETAILS = _folded("cached_tokens_details", "cacheTokensDetails")
CACHED_IN_DETAILS = (*CACHED_NAMES, *_folded("cached", "cache_read"))
WRITTEN_IN_DETAILS = (*WRITTEN_NAMES, *_folded("cache_creation_tokens", "cache_creation"))
LIFETIME_NAMES = frozenset(_folded("cache_creation", "cache_creation_token_details", "cacheDetails"))
"""Where a report has the tokens written to a cache by the time for which they stay."""
_AMBIGUOUS = frozenset(_folded("prompt", "input", "completion", "output"))
"""Names that mean counts only within a usage."""
_LONE_COUNTS = (
    frozenset((*PROMPT_NAMES, *OUTPUT_NAMES, *TOTAL_NAMES, *CACHED_NAMES, *PROMPT_DETAILS, *OUTPUT_DETAILS))
    - _AMBIGUOUS
)
HOSTED_NAMES = frozenset(
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
    return _counted(value) is not None


def count_in_text(value: str) -> int | str:
    """The count that a text is, as the ledger reads it; any other text unchanged."""
    count = _counted(value)
    return value if count is None else count


def tells_both_counts(value: Mapping[str, Any]) -> bool:
    """True for a usage under any name: it counts the prompt and the output, in numbers."""
    numbers = {name: _as_integer(count) for name, count in value.items() if not isinstance(count, bool | str)}
    names = {_fold(name) for name, count in numbers.items() if isinstance(count, int)} - _AMBIGUOUS
    return not names.isdisjoint(PROMPT_NAMES) and not names.isdisjoint(OUTPUT_NAMES)


def counts_output(reported: Mapping[str, Any]) -> bool:
    """True if a report has an output count above zero."""
    return any(value and _fold(name) in OUTPUT_NAMES for name, value in reported.items())


class ReportedCounts(Struct, frozen=True):
    """The counts of a report by their folded names."""

    values: Mapping[str, tuple[str, Any]]

    @staticmethod
    def of(reported: object) -> ReportedCounts:
        """The report; of a list, its counts by modality or its only item; of anything else, none."""
        if isinstance(reported, list):
            reported = counts_by_modality(reported) or (reported[0] if len(reported) == 1 else None)
        named = reported.items() if isinstance(reported, Mapping) else ()
        folded = {_fold(name): (name, value) for name, value in named}
        for name in _AMBIGUOUS.intersection(folded):
            if not isinstance(_as_integer(folded[name][1]), int):
                del folded[name]  # a price, a text
        return ReportedCounts(folded)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def value(self, name: str) -> Any:
        """The value under a folded name; None without one."""
        found = self.values.get(name)
        return None if found is None else found[1]

    def part(self, *names: str) -> ReportedCounts:
        """The first object among `names`; empty without one."""
        values = self.values
        for name in names:
            if name in values:
                value = values[name][1]
                if isinstance(value, Mapping | list) and (made := ReportedCounts.of(value)).values:
                    return made
        return NO_COUNTS

    def first(self, *names: str) -> str | None:
        """The first of `names` that is a count."""
        values = self.values
        for name in names:
            if name in values and _counted(values[name][1]) is not None:
                return name
        return None

    def count(self, *names: str) -> int | None:
        """The first count among `names`."""
        name = self.first(*names)
        return None if name is None else _counted(self.values[name][1])

    def detail(self, *names: str) -> int:
        """The first count among `names`; 0 if there is none, or the server did not count it."""
        return self.count(*names) or 0

    def fault(self, *names: str) -> str:
        """The reason that a count cannot be read although there is one; "" if there is none."""
        for name in names:
            given, value = self.values.get(name, ("", None))
            if not _is_uncounted(value):
                return f"{given} is {'implausibly large' if _is_whole(_as_integer(value)) else 'not a whole number'}"
        return ""


NO_COUNTS = ReportedCounts({})


def counts_by_modality(listed: list[Any]) -> dict[str, int]:
    """Gemini's counts by modality under the names of OpenAI's; empty for any other list."""
    counts: dict[str, int] = {}
    for item in listed:
        modality = item.get("modality") if isinstance(item, Mapping) else None
        count = ReportedCounts.of(item).detail("tokencount") if isinstance(modality, str) else None
        if count is None:
            return {}
        name = f"{modality}_tokens".lower()
        counts[name] = counts.get(name, 0) + count
    return counts


def _counted(value: object) -> int | None:
    """A count of tokens as any provider writes it; None for any other value."""
    number = value if type(value) is int else _as_integer(value)
    return number if _is_whole(number) and 0 <= number <= MAX_PLAUSIBLE_TOKENS else None


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
