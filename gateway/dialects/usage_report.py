"""Where in an answer a provider says what it used: found, taken out, joined, and shown to the client once.

Besides `usage` at the top: in a choice or its message, in `x_groq` or `metadata`, as Gemini's `usageMetadata`, as bare
counts beside the choices, with `cached_tokens` beside it, as the one item of a list; whole, cumulative in every chunk,
or one half at a stream's start and the other at its end.
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
"""Objects of providers that hold the usage among other things."""
PLACES = frozenset({"usage", "usageMetadata", "usage_metadata", "cached_tokens", *_AROUND, *_BARE})
"""The fields of an answer or a chunk in which a usage may stand."""
_TOTALS = ("total_tokens", "totalTokenCount", "totalTokens")


def take_usage(payload: dict[str, Any]) -> dict[str, Any] | None:
    """Take the usage out of an answer or a chunk, wherever it stands; None: it reports nothing."""
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


def joined(older: Mapping[str, Any] | None, newer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What two reports of one answer say together: the newer count of each kind, but no zero or null over a count.

    The newer report's total, or none: an older one would not be the sum of the newer counts.
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
    """The provider's own report as clients of OpenAI's dialect read it: what they look for and do not find is added."""
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
    """Counts as integers, since strict clients read nothing else: some providers write 10.0."""
    made: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            made[name] = _whole_counts(value)
        else:
            made[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return made


def _taken_from_top(payload: dict[str, Any]) -> dict[str, Any] | None:
    found = _mapping(payload.pop("usage", None))
    for name in ("usageMetadata", "usage_metadata"):
        found = found or _mapping(payload.pop(name, None))
    for name in _AROUND:
        around = payload.get(name)
        if isinstance(around, dict) and "usage" in around:
            inner = _mapping(around["usage"])
            payload[name] = {key: value for key, value in around.items() if key != "usage"}
            found = found or inner
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
    return value if isinstance(value, dict) and value else None
