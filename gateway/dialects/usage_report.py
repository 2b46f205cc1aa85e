"""Usage reports in providers' responses: finding, removing, merging and rendering them.

Apart from `usage` at the top, a report may be in a choice or its message, in `x_groq` or `metadata`, in Gemini's
`usageMetadata`, as bare counts next to the choices, with a separate `cached_tokens`, or as the only item of a list. It
may be complete, cumulative in every chunk, or split between the start and the end of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.catalog.usage import ReportedUsage, Usage

_BARE = (
    "prompt_eval_count", "eval_count", "prompt_tokens", "completion_tokens", "total_tokens", "input_tokens",
    "output_tokens",
)  # fmt: skip
_AROUND = ("x_groq", "metadata", "meta", "response_metadata")
_OTHER_NAMES = (
    "usageMetadata", "usage_metadata", "token_usage", "tokenUsage", "amazon-bedrock-invocationMetrics",
)  # fmt: skip
_WITHIN = ("billed_units", "tokens", "total_usage")
"""Objects inside a usage that hold its counts; what was billed comes first."""
"""Providers' objects that contain the usage among other fields."""
PLACES = frozenset({"usage", "cached_tokens", *_OTHER_NAMES, *_AROUND, *_BARE})
"""Fields of a response or chunk that may contain a usage."""
_TOTALS = ("total_tokens", "totalTokenCount", "totalTokens")


def take_usage(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Remove and return the usage of a response or chunk; None without one."""
    found: dict[str, Any] | None = None
    if not payload.keys().isdisjoint(PLACES):
        found = _taken_from_top(payload)
    choices = payload.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict:
            continue
        inner = choice.pop("usage", None) if "usage" in choice else None
        for name in ("delta", "message"):
            part = choice.get(name)
            if type(part) is dict and "usage" in part:
                inner = inner or part.pop("usage")
        if (report := _mapping(inner)) is not None:
            found = joined(report, found)
    return found


def reported_tier(payload: Mapping[str, Any]) -> str | None:
    """The service tier that a response or chunk names beside its usage."""
    tier = payload.get("service_tier")
    return tier if isinstance(tier, str) and tier else None


def cited_searches(choices: object) -> int:
    """1 if an answer cites web pages: a search that its usage may not count; else 0."""
    for choice in choices if isinstance(choices, list) else ():
        for name in ("message", "delta"):
            part = choice.get(name) if isinstance(choice, dict) else None
            notes = part.get("annotations") if isinstance(part, dict) else None
            for note in notes if isinstance(notes, list) else ():
                if isinstance(note, dict) and note.get("type") == "url_citation":
                    return 1
    return 0


def joined(older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Merge two reports of one response: newer counts replace older, unless zero or null.

    The total is the newer report's, or absent: an older one would not match the newer counts.
    """
    if not older or not newer:
        chosen = newer or older
        return dict(chosen) if chosen else None
    both = {name: value for name, value in older.items() if name not in _TOTALS}
    for name, value in newer.items():
        before = both.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            both[name] = joined(before, value)
        elif value or before is None:
            both[name] = value
    return both


def shown(report: Mapping[str, Any], usage: ReportedUsage) -> dict[str, Any]:
    """The provider's report with the fields that clients of OpenAI's dialect expect."""
    made = _whole_counts(report)
    if not isinstance(usage, Usage):
        return made
    named = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
    made |= {name: count for name, count in named.items() if type(made.get(name)) is not int}
    if usage.cached_tokens and not isinstance(made.get("prompt_tokens_details"), Mapping):
        made["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens and not isinstance(made.get("completion_tokens_details"), Mapping):
        made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return made


def _whole_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as integers, because strict clients reject 10.0, which some providers send."""
    made: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            made[name] = _whole_counts(value)
        else:
            made[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return made


def _taken_from_top(payload: dict[str, Any]) -> dict[str, Any] | None:
    found = _mapping(payload.pop("usage", None))
    for name in _OTHER_NAMES:
        found = found or _mapping(payload.pop(name, None))
    for name in _AROUND:
        around = payload.get(name)
        if isinstance(around, dict):
            for place in ("usage", "token_usage", *_WITHIN):
                found = found or _mapping(around.get(place))
            payload[name] = {key: value for key, value in around.items() if key not in ("usage", "token_usage")}
    if any(name in payload for name in _BARE):
        bare = {name: payload.pop(name) for name in _BARE if name in payload}
        found = found or bare
    beside = payload.pop("cached_tokens", None)
    if beside is not None and found and "cached_tokens" not in found:
        found["cached_tokens"] = beside
    return found


def _mapping(value: object) -> dict[str, Any] | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or not value:
        return None
    within = (value.get(name) for name in _WITHIN)
    inner = next((each for each in within if isinstance(each, dict) and any("token" in key for key in each)), None)
    return value if inner is None else inner | {key: kept for key, kept in value.items() if key not in _WITHIN}
