"""Assumptions about a model that neither the file nor the price map describes.

A server of one's own (vLLM, llama.cpp) or a model of last week is in no price map. To refuse what nothing says that it
lacks would refuse every coding agent; its provider refuses what does not fit, and that costs nothing. Models that are
known to have what a request needs go first (gateway.routing.guard).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalog.prices import Prices
from gateway.config.model_entry import CAPABILITY_KEYS, ModelEntry

WINDOW_TOKENS = 128_000
UNASKED_ANSWER_TOKENS = 4_096
"""Limit of answers whose length neither the client nor a description limits: a hold needs one, and it must not be more
than a small server takes."""
CAPABILITIES = frozenset({"tools", "response_schema"})
"""What nearly every server of chat completions can do; images, audio and files are not among it."""


_ASSUMED: Mapping[str, str] = {
    "max_input_tokens": f"{WINDOW_TOKENS:,} tokens of context",
    "max_output_tokens": "answers as long as the client asks",
    "supports_function_calling": "tools",
    "supports_response_schema": "JSON schemas",
}


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Limits of a model in tokens; see `gateway.catalog.models.Model`."""

    max_input_tokens: int
    max_output_tokens: int
    longest_answer_tokens: int | None
    unasked_tokens: int | None


def limits_of(window: int | None, longest: int | None, enforced: int | None, prices: Prices) -> AnswerLimits:
    """The limits of a model from its stated context window and longest answer.

    `enforced`: the longest answer by the price map. Its provider ends answers there; a server that only the file
    describes ends them at its context window, whatever `max_output_tokens` says, unless it is told a limit. Without a
    longest answer the client's own limit goes to the provider. Where answers are free no hold needs a limit, so none is
    sent that the client did not ask for.
    """
    context = window or WINDOW_TOKENS
    if enforced is not None:
        unlimited: int | None = min(max(enforced, longest or 0), max(context, enforced))
    else:
        unlimited = window or (context if _has_free_answers(prices) else None)
    return AnswerLimits(context, longest or context, unlimited, None if longest else UNASKED_ANSWER_TOKENS)


def _has_free_answers(prices: Prices) -> bool:
    tiers = (prices, *(prices.of(name) for name in prices.tier_names))
    rates = [each for tiered in tiers for each in tiered.reachable(WINDOW_TOKENS)]
    return not any(each.max_output_femtousd or each.audio_output_femtousd for each in rates)


def assumed_capabilities(known: Mapping[str, Any], stated: Collection[str]) -> frozenset[str]:
    """Capabilities that nothing states of a model which is in no price map."""
    return frozenset() if known else CAPABILITIES - frozenset(stated)


def unstated(entry: ModelEntry, known: Mapping[str, Any], window: int | None, longest: int | None) -> list[str]:
    """A warning that names what is assumed of a chat model with these stated limits."""
    limits = {"max_input_tokens": window, "max_output_tokens": longest}
    missing = [key for key, tokens in limits.items() if tokens is None]
    flags = [key for key, name in CAPABILITY_KEYS.items() if name in CAPABILITIES]
    missing += [] if known else [key for key in flags if CAPABILITY_KEYS[key] not in entry.info.capabilities]
    if not missing:
        return []
    return [
        f"{entry.where}.model_info: neither the file nor the price map states {', '.join(missing)} of "
        f'"{entry.params.model[:120]}": assumed are {", ".join(_ASSUMED[key] for key in missing)}; state what differs'
    ]
