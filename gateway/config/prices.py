"""Readers of prices: fixed ones, those of service tiers and searches, and changes at a date."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from gateway.config import litellm_keys
from gateway.config.reader import Section

TIERS = ("priority", "flex", "balanced", "ultrafast", "batches")
"""Suffixes of LiteLLM's price keys."""
US, FAST = "us", "fast"
FAST_US = f"{FAST}_{US}"
PREMIUMS = (US, FAST, FAST_US)
"""Anthropic's tiers, which LiteLLM's map has as factors.

A provider reports them by other fields than `service_tier`, which cannot name them.
"""
MAX_PRICE_USD_PER_TOKEN = Decimal("0.01")
"""10,000 USD per million tokens: a higher price is per million tokens by mistake."""
PRICE_NAMES = (
    "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost",
    "cache_creation_input_token_cost_above_1hr", "output_cost_per_reasoning_token", "input_cost_per_audio_token",
    "output_cost_per_audio_token", "input_cost_per_image_token", "output_cost_per_image_token",
    "cache_read_input_audio_token_cost",
)  # fmt: skip
PRICE_KEY = re.compile(
    rf"(?P<name>{'|'.join(PRICE_NAMES)})(?:_above_(?P<above>\d{{1,6}})k_tokens)?"
    rf"(?:_(?P<tier>{'|'.join((*TIERS, *PREMIUMS))}))?"
)
"""Prices per token, by LiteLLM's names: above a threshold in thousand tokens, and of a service tier."""
SEARCH_PRICE_KEYS = ("search_context_size_low", "search_context_size_medium", "search_context_size_high")
"""Fees of one web search, in LiteLLM's `search_context_cost_per_query`."""
CITATION_PRICE_KEY = "citation_cost_per_token"
"""Perplexity's fee of the tokens that its deep research reads on the pages that it cites."""
MAPS_PRICE_KEY = "google_maps_grounding_cost_per_query"
UNIT_PRICE_KEYS = ("input_cost_per_image", "input_cost_per_request", CITATION_PRICE_KEY, MAPS_PRICE_KEY)
TOOL_PRICE_KEYS = ("file_search_cost_per_1k_calls", "code_interpreter_cost_per_session")
"""Fees of tools that the provider runs."""
FOREIGN_PRICE = re.compile(r"[a-z0-9_]*(?:_cost|cost_per_|pricing|uplift)[a-z0-9_]*", re.IGNORECASE)
"""What else looks like a price: never ignored silently."""
_OTHER_PRICES: Mapping[str, str] = {
    "tiered_pricing": "write the tiers as input_cost_per_token_above_128k_tokens, ...",
    "pricing_provider": "write the prices of that provider as input_cost_per_token, ...",
}
"""Keys that give a model other prices than the map's: the ledger would bill wrong ones."""


@dataclass(frozen=True, slots=True)
class PriceChange:
    """Prices that apply from an instant on; `where` is the path, for messages."""

    where: str
    valid_from_ms: int
    prices_usd: Mapping[str, Decimal]


def read_prices(*sections: Section) -> Mapping[str, Decimal]:
    """Read the prices of `litellm_params` and `model_info`; the last section wins."""
    prices: dict[str, Decimal] = {}
    for section in sections:
        for key in section.names():
            if PRICE_KEY.fullmatch(key) or key == CITATION_PRICE_KEY:
                price = section.decimal(key)
                if price is not None and price > MAX_PRICE_USD_PER_TOKEN:
                    section.problem(
                        key,
                        f"expected USD per token, at most {MAX_PRICE_USD_PER_TOKEN}, got {price}"
                        f" (USD per million tokens? then {price / 1_000_000:f})",
                    )
                elif price is not None:
                    prices[key] = price
            elif key in (*UNIT_PRICE_KEYS, *TOOL_PRICE_KEYS):
                price = section.decimal(key, maximum=1000)
                if price is not None:
                    prices[key] = price
            elif key == "search_context_cost_per_query":
                fees = section.section(key)
                for size in SEARCH_PRICE_KEYS:
                    fee = fees.decimal(size, maximum=100)
                    if fee is not None:
                        prices[size] = fee
                fees.finish()
            elif key in _OTHER_PRICES and section.has(key):
                section.problem(key, f"cannot be ignored: {_OTHER_PRICES[key]}")
                section.skip(key)
            elif FOREIGN_PRICE.fullmatch(key):
                if key not in litellm_keys.IGNORED["prices"] and section.refuse_misspelt(key, PRICE_NAMES):
                    section.skip(key)
                else:
                    section.ignore(key, "a price that is not charged here; it is ignored")
    return prices


def read_price_changes(info: Section) -> tuple[PriceChange, ...]:
    """Read `model_info.prices`, a list of `valid_from` with the prices that change then."""
    changes: list[PriceChange] = []
    for located in info.items("prices"):
        step = info.nested(located)
        valid_from_ms = step.instant_ms("valid_from")
        prices = read_prices(step)
        step.finish()
        step.require("valid_from", "a date or a time")
        if valid_from_ms is None:
            continue
        if not prices:
            step.findings.problem(located.where, "expected a price beside valid_from, got none")
        elif changes and valid_from_ms <= changes[-1].valid_from_ms:
            step.problem("valid_from", "expected a later time than that of the step before")
        else:
            changes.append(PriceChange(located.where, valid_from_ms, prices))
    return tuple(changes)
