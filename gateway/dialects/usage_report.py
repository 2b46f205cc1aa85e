"""Usage reports in providers' responses: finding, removing, merging and rendering them.

Apart from `usage` at the top, a report may be in a choice or its message, in `x_groq` or `meta`, in Gemini's
`usageMetadata`, as bare counts next to the choices, with a separate `cached_tokens`, or as the only item of a list. It
may be complete, cumulative in every chunk, or split between the start and the end of a stream.

Callers write some of a response: what they sent comes back in it. No usage is read out of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from gateway.catalog.usage import ReportedUsage, Usage
from gateway.catalog.usage_names import (
    MAX_PLAUSIBLE_TOKENS,
    count_in_text,
    is_count,
    is_count_name,
    tells_both_counts,
)
from gateway.dialects.forwarded import FORWARDED
from gateway.schema.fields import KNOWN_FIELDS

_AROUND = ("x_groq", "meta", "metadata", "response_metadata")
"""Providers' objects that contain the usage among other fields; `metadata` is Bedrock's, and a caller's labels."""
_OTHER_NAMES = (
    "usageMetadata", "usage_metadata", "token_usage", "tokenUsage", "amazon-bedrock-invocationMetrics",
)  # fmt: skip
_WITHIN = ("billed_units", "tokens", "total_usage", "usage")
"""Objects inside a usage that hold its counts; what was billed comes first."""
_WITHIN_NAMES = frozenset(_WITHIN)
_PLAIN_FIELDS = frozenset(
    {"id", "object", "created", "model", "choices", "system_fingerprint", "service_tier", "provider", "usage"}
)
"""Fields of an ordinary response; any other may contain a usage."""
_WRITTEN = KNOWN_FIELDS | {
    FORWARDED, "choices", "input", "instructions", "output", "prompt", "query", "request", "request_body",
    "request_metadata", "request_params", "system",
}  # fmt: skip
"""Fields that contain what the caller sent or the model wrote, or an event whose usage stands beside it."""
_MAX_DEPTH = 3
_GENERATED = (
    "content", "tool_calls", "reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "refusal",
    "function_call", "audio", "images",
)  # fmt: skip
_NOTHING: Mapping[str, Any] = {}
_TOTALS = ("total_tokens", "totalTokenCount", "totalTokens")


def has_usage(payload: Mapping[str, Any]) -> bool:
    """True if a response or chunk without choices brings a usage."""
    return bool(payload.get("usage")) or _taken_from_top(dict(payload)) is not None


def take_usage(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Remove and return the usage of a response or chunk; None without one."""
    found: dict[str, Any] | None = None
    if not payload.keys() <= _PLAIN_FIELDS:
        found = _taken_from_top(payload)
    elif "usage" in payload:
        found = _mapping(_parsed(payload.pop("usage"))) or _searched(payload, _MAX_DEPTH)
    choices = payload.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict:
            continue
        inner = choice.pop("usage", None) if "usage" in choice else None
        for name in ("delta", "message"):
            part = choice.get(name)
            if type(part) is dict and "usage" in part:
                inner = inner or part.pop("usage")
        if (report := _mapping(_parsed(inner))) is not None:
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


def speaks(choices: Iterable[Mapping[str, Any]]) -> bool:
    """True if choices, whole or in deltas, bring anything that a model generated."""
    for choice in choices:
        if choice.get("finish_reason") != "content_filter":
            part = choice.get("delta") or choice.get("message") or _NOTHING
            for name in _GENERATED:
                if part.get(name):
                    return True
    return False


def joined(older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Merge two reports of one response: newer counts replace older, unless zero or null.

    The total is the newer report's, or absent: an older one, or none at all, would not match the newer counts.
    """
    if not older or not newer:
        chosen = newer or older
        return dict(chosen) if chosen else None
    both = {name: value for name, value in older.items() if name not in _TOTALS}
    for name, value in newer.items():
        before = both.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            both[name] = joined(before, value)
        elif _is_unknown(name, value):
            if name not in older:
                both[name] = value
        elif value or (before is None and name not in _TOTALS):
            both[name] = value
    return both


def shown(report: Mapping[str, Any], usage: ReportedUsage) -> dict[str, Any]:
    """The provider's report with the fields that clients of OpenAI's dialect expect."""
    made = whole_counts(report)
    if not isinstance(usage, Usage):
        return made
    named = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }
    made |= {name: count for name, count in named.items() if type(made.get(name)) is not int or made[name] < 0}
    if usage.cached_tokens and not isinstance(made.get("prompt_tokens_details"), Mapping):
        made["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens and not isinstance(made.get("completion_tokens_details"), Mapping):
        made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return made


def shown_in_full(usage: Usage) -> dict[str, Any]:
    """A usage that was not reported in OpenAI's form, in it."""
    made = shown({}, usage)
    for name, parts in (
        ("prompt_tokens_details", {"audio_tokens": usage.audio_input_tokens, "image_tokens": usage.image_input_tokens}),
        ("completion_tokens_details", {
            "audio_tokens": usage.audio_output_tokens, "image_tokens": usage.image_output_tokens
        }),
    ):  # fmt: skip
        if any(parts.values()):
            made[name] = {**(made.get(name) or {}), **{part: count for part, count in parts.items() if count}}
    cache = {
        "cache_read_input_tokens": usage.cached_tokens, "cache_creation_input_tokens": usage.cache_write_tokens
    }  # fmt: skip
    return made | (cache if any(cache.values()) else {})


def whole_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as integers: strict clients reject 10.0 and "10", which some providers send."""
    made: dict[str, Any] = {}
    for name, value in report.items():
        if type(value) is int or value is None:
            made[name] = value
        elif isinstance(value, Mapping):
            made[name] = whole_counts(value)
        elif isinstance(value, list):
            made[name] = [whole_counts(each) if isinstance(each, Mapping) else each for each in value]
        elif isinstance(value, float):
            made[name] = int(value) if abs(value) <= MAX_PLAUSIBLE_TOKENS and value.is_integer() else value
        else:
            made[name] = count_in_text(value) if isinstance(value, str) and _counts(name) else value
    return made


def _counts(name: str) -> bool:
    """True for the name of any count in a usage: what else it has are labels and prices."""
    return is_count_name(name) or "token" in name.lower() or name.lower().endswith(("count", "requests"))


def _is_unknown(name: str, value: object) -> bool:
    """Whether a count says that it is not known, or cannot be read."""
    if isinstance(value, int) and value < 0:
        return True
    return bool(value) and is_count_name(name) and not isinstance(value, Mapping | list) and not is_count(value)


def _taken_from_top(payload: dict[str, Any]) -> dict[str, Any] | None:
    found = _mapping(_parsed(payload.pop("usage", None)))
    for name in _OTHER_NAMES:
        found = found or _mapping(_parsed(payload.pop(name, None)))
    for name in _AROUND:
        around = payload.get(name)
        if isinstance(around, dict):
            for place in ("token_usage", *_WITHIN):
                found = found or _in_numbers(around.get(place))
            payload[name] = {
                key: value
                for key, value in around.items()
                if key not in ("usage", "token_usage") or isinstance(value, str)
            }
    beside = {name: payload.pop(name) for name in [*payload] if name not in _PLAIN_FIELDS and is_count_name(name)}
    if beside:
        found = beside | (found or {})
    return found or _searched(payload, _MAX_DEPTH)


def _in_numbers(value: object) -> dict[str, Any] | None:
    """A usage without counts as texts, which only a usage at the top or in a choice may have."""
    report = _mapping(value)
    if report and any(isinstance(count, str) for name, count in report.items() if is_count_name(name)):
        return None
    return report


def _searched(value: Mapping[str, Any], depth: int) -> dict[str, Any] | None:
    """A usage in numbers under a name of the provider's own."""
    for name, inner in value.items():
        if isinstance(inner, dict) and name not in _WRITTEN and depth:
            found = inner if tells_both_counts(inner) else _searched(inner, depth - 1)
            if found is not None:
                return dict(found)
    return None


def _parsed(value: object) -> object:
    """A usage that a provider writes as JSON in a text."""
    if isinstance(value, str) and value.startswith("{"):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(value)
    return value


def _mapping(value: object) -> dict[str, Any] | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or not value:
        return None
    if _WITHIN_NAMES.isdisjoint(value):
        return value
    within = (value.get(name) for name in _WITHIN)
    inner = next((each for each in within if isinstance(each, dict) and any(map(is_count_name, each))), None)
    if inner is None and isinstance(tokens := value.get("tokens"), dict):
        inner = tokens
    return value if inner is None else inner | {key: kept for key, kept in value.items() if key not in _WITHIN}
