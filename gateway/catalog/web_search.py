"""Fees of web searches that a provider runs: when they are due, and how many a hold covers.

Only the parameters in ASKING_PARAMETERS start a search; hosted tools are refused by name. Some models search for every
answer, others as often as they like: Claude within a limit that LiteLLM derives from the context size, the rest
without one. Gemini 2 costs one fee for all searches of a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.catalog.prices import NO_SEARCH, Prices

ASKING_PARAMETERS = ("web_search_options", "search_parameters", "plugins")
SIZES = ("low", "medium", "high")
ASSUMED_SIZE = "medium"
"""The context size of a request that names none."""
MOST_SEARCHES: Mapping[str, int] = {"low": 1, "medium": 5, "high": 10}
"""LiteLLM's limit of Anthropic's searches by context size."""
UNLIMITED_SEARCHES = MOST_SEARCHES["high"]
"""Searches that are held for where no limit can be sent: as many as the highest limit that is sent to any provider.
Those beyond it are billed too, as an overage."""
RESULT_TOKENS = 10_000
"""Prompt tokens that the results of one search may add, for providers that bill them."""

RESEARCH_SEARCHES = 30
"""Searches of one call of Perplexity's deep research, which no parameter limits."""
CITATION_TOKENS = 100_000
"""Tokens that deep research may bill of the pages that it cites."""
RESEARCH_REASONING_TOKENS = 100_000
"""Reasoning of deep research, which comes beside the output; no limit of tokens covers it."""


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """Web searches of one call.

    `size` selects the fee. `most` are held for, `least` are billed; `unreported` are billed when the provider
    reports no usage. `result_tokens` are what they may add to the prompt; `citation_tokens` of the cited pages and
    `reasoning_tokens` beside the output are held for. `one_billed`: all together cost one fee.
    """

    size: str = "medium"
    most: int = 0
    least: int = 0
    unreported: int = 0
    result_tokens: int = 0
    citation_tokens: int = 0
    reasoning_tokens: int = 0
    one_billed: bool = False

    def fee_femtousd(self, prices: Prices, searches: int) -> int:
        """The fee of a number of searches."""
        return self._billed(searches) * prices.search_femtousd[SIZES.index(self.size)]

    def maps_fee_femtousd(self, prices: Prices, queries: int) -> int:
        """The fee of a number of queries of Google Maps, which are billed as searches are."""
        return self._billed(queries) * prices.maps_femtousd

    def _billed(self, searches: int) -> int:
        return min(searches, 1) if self.one_billed else searches


NO_SEARCHES = SearchTerms()


def search_terms(
    litellm_model: str,
    prices: Prices,
    params: Mapping[str, Any],
    extras: Mapping[str, Any],
    *,
    one_billed: bool = False,
) -> SearchTerms:
    """The terms of a call; no searches are held for where they have no price or none can happen."""
    researching = researches(litellm_model, prices)
    citations, reasoning = (CITATION_TOKENS, RESEARCH_REASONING_TOKENS) if researching else (0, 0)
    if prices.search_femtousd == NO_SEARCH:
        return SearchTerms(citation_tokens=citations, reasoning_tokens=reasoning) if researching else NO_SEARCHES
    perplexity = litellm_model.startswith("perplexity/") or researching
    options = params.get("web_search_options")
    size = (options or {}).get("search_context_size") if isinstance(options, Mapping) else None
    if size not in SIZES:
        size = "low" if perplexity else ASSUMED_SIZE
    if perplexity or searches_always(litellm_model):
        most = RESEARCH_SEARCHES if researching else 1
        return SearchTerms(
            size, most=most, least=1, unreported=1, citation_tokens=citations, reasoning_tokens=reasoning
        )
    if not asks_for_search(params, extras):
        return SearchTerms(one_billed=True) if one_billed else NO_SEARCHES
    most = MOST_SEARCHES[size] if limits_searches(litellm_model) else UNLIMITED_SEARCHES
    results = MOST_SEARCHES[size] * RESULT_TOKENS  # the context size bounds what is read of any number of searches
    return SearchTerms(size, most=1 if one_billed else most, unreported=1, result_tokens=results, one_billed=one_billed)


def researches(litellm_model: str, prices: Prices) -> bool:
    """True for Perplexity's deep research, by its name or by its price of citations."""
    named = litellm_model.startswith("perplexity/") and "deep-research" in litellm_model
    return named or prices.citation_femtousd > 0


def limits_searches(litellm_model: str) -> bool:
    """True for a model that is told how often it may search, by the context size."""
    return litellm_model.startswith("anthropic/") or "claude" in litellm_model.lower()


def bills_one_search(provider: str, names: str, known: Mapping[str, Any]) -> bool:
    """True where all searches of one call cost one fee.

    That is Gemini, unless the model's entry `known` of the price map says that it bills per query.
    """
    gemini = provider == "gemini" or (provider.startswith("vertex_ai") and "gemini" in names.lower())
    return gemini and known.get("web_search_billing_unit") != "per_query"


def searches_always(litellm_model: str) -> bool:
    """True for a model that searches for every answer (OpenAI's search models)."""
    return "-search-preview" in litellm_model or "-search-api" in litellm_model


def asks_for_search(params: Mapping[str, Any], extras: Mapping[str, Any]) -> bool:
    """True if a request asks its provider to search the web."""
    return any(starts_search(name, {**params, **extras}.get(name)) for name in ASKING_PARAMETERS)


def starts_search(name: str, value: Any) -> bool:
    """True if a parameter with this value makes the provider search."""
    if value is None:
        return False
    if name == "web_search_options":
        return True
    if name == "search_parameters":
        return not (isinstance(value, Mapping) and value.get("mode") == "off")
    if name == "plugins":
        return not isinstance(value, list) or any(
            not isinstance(plugin, Mapping) or plugin.get("id") == "web" for plugin in value
        )
    return False
