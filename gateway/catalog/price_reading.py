"""Prices of a deployment, from the configuration file and from LiteLLM's price map."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from gateway.catalog.addresses import AWS_REGION, provider_of, stated_location
from gateway.catalog.prices import NO_SEARCH, Prices, PriceTier
from gateway.catalog.web_search import SIZES
from gateway.config.model_entry import WITHOUT_OUTPUT, ModelEntry
from gateway.config.prices import (
    CITATION_PRICE_KEY,
    FAST,
    FAST_US,
    MAPS_PRICE_KEY,
    PRICE_KEY,
    SEARCH_PRICE_KEYS,
    TOOL_PRICE_KEYS,
    UNIT_PRICE_KEYS,
    US,
)
from gateway.money import femtousd_from_usd

_FEE = re.compile(
    r"(?!tiered_pricing|off_peak_pricing|.*_cache_hit$|.*_dbu_)[a-z0-9_]*(?:cost|pricing|uplift)[a-z0-9_]*"
)
"""Price keys of the map, except duplicates of another key."""
_BATCHES = re.compile(r".*_batches")
"""Prices of batches, which no request here starts."""

_FIELDS: Mapping[str, str] = {
    "input_cost_per_token": "input_femtousd",
    "output_cost_per_token": "output_femtousd",
    "cache_read_input_token_cost": "cached_input_femtousd",
    "cache_creation_input_token_cost": "cache_write_femtousd",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_femtousd",
    "output_cost_per_reasoning_token": "reasoning_femtousd",
    "input_cost_per_audio_token": "audio_input_femtousd",
    "output_cost_per_audio_token": "audio_output_femtousd",
    "cache_read_input_audio_token_cost": "cached_audio_femtousd",
    "input_cost_per_image_token": "image_input_femtousd",
    "output_cost_per_image_token": "image_output_femtousd",
    "input_cost_per_image": "image_femtousd",
    "input_cost_per_request": "request_femtousd",
}
_FEES: Mapping[str, str] = {CITATION_PRICE_KEY: "citation_femtousd", MAPS_PRICE_KEY: "maps_femtousd"}
_PER_CALL = ("image_femtousd", "request_femtousd")
_SEARCH = "search_context_cost_per_query"
_FACTORS = "provider_specific_entry"
_OFF_PEAK = "off_peak_pricing"
_BEDROCK = frozenset({"bedrock", "bedrock_converse"})
_REGION_OPTIONS = frozenset({"aws_region_name", "region_name", "aws_profile_name", "aws_bedrock_runtime_endpoint"})
_REGION_VARIABLES = (
    "AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_BEDROCK_RUNTIME_ENDPOINT"
)  # fmt: skip
_AWS_REGION = re.compile(rf"(?<![a-z0-9]){AWS_REGION}")
"""A region in a model's name or ARN."""
_OPENAI_REGIONS: Mapping[str, str] = {"eu.api.openai.com": "eu", "us.api.openai.com": "us"}
_VERTEX = "vertex_ai"
_VERTEX_DEFAULT = "us-central1"
"""LiteLLM's location for a Google model without one."""
_VERTEX_UPLIFT = "regional_endpoint_uplift_multiplier"
_UPLIFTS = (
    _VERTEX_UPLIFT, "regional_processing_uplift_multiplier_eu",
    "regional_processing_uplift_multiplier_us",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DatedPrices:
    """Prices that apply from an instant on; `where` is their path in the file."""

    where: str
    valid_from_ms: int
    prices: Prices


def read_prices(
    entry: ModelEntry, known: Mapping[str, Any], at_ms: int, problems: list[str]
) -> tuple[Prices, tuple[DatedPrices, ...]] | None:
    """The entry's prices at an instant, and those that follow.

    The file's base prices replace the map's whole list, tiers and cache included.
    """
    # A price that could not be read was reported already: do not report it as missing too.
    first = _first_prices(entry, known, problems if entry.info.prices_read else [])
    if first is None:
        return None
    usd, later = dict(first), []
    made = _build_or_report(entry, usd, problems)
    for change in entry.info.price_changes:
        usd |= change.prices_usd
        changed = _build_or_report(entry, usd, problems)
        if changed is None or made is None:
            return None
        if change.valid_from_ms <= at_ms:
            made = changed
        else:
            later.append(DatedPrices(change.where, change.valid_from_ms, changed))
    return None if made is None else (made, tuple(later))


def _first_prices(entry: ModelEntry, known: Mapping[str, Any], problems: list[str]) -> Mapping[str, Decimal] | None:
    """The prices before the first dated change, by LiteLLM's keys."""
    stated = dict(entry.info.prices_usd)
    has_input, has_output = "input_cost_per_token" in stated, "output_cost_per_token" in stated
    mode = entry.info.mode or known.get("mode", "chat")
    needs_output = mode not in WITHOUT_OUTPUT
    if has_input and (has_output or not needs_output):
        return stated
    if has_input != has_output and needs_output:
        missing = "output_cost_per_token" if has_input else "input_cost_per_token"
        problems.append(f"{entry.where}.model_info.{missing}: expected a number, got nothing")
        return None
    mapped = mapped_prices(known)
    if "input_cost_per_token" not in mapped or (needs_output and "output_cost_per_token" not in mapped):
        problems.append(
            f"{entry.where}.model_info.input_cost_per_token: expected a price, got nothing: "
            f'"{entry.params.model[:120]}" is not in the bundled price map, so give its prices here'
        )
        return None
    if not any(mapped.values()) and mode != "moderation":  # OpenAI's moderation is free
        problems.append(
            f"{entry.where}.model_info.input_cost_per_token: expected a price, got nothing: the bundled price map "
            f'says 0 for "{entry.params.model[:120]}"; write 0 here if it is free'
        )
        return None
    if needs_output and mapped["input_cost_per_token"] and not (mapped | stated)["output_cost_per_token"]:
        problems.append(  # a router to other models, of which the map has only the fee
            f"{entry.where}.model_info.output_cost_per_token: expected a price, got nothing: the bundled price map "
            f'says 0 for the answers of "{entry.params.model[:120]}", though not for its prompts; give its prices here'
        )
        return None
    return mapped | stated


def in_its_region(entry: ModelEntry, known: Mapping[str, Any], environ: Mapping[str, str]) -> Mapping[str, Any]:
    """The price map's entry at the prices of the deployment's own region.

    OpenAI's regional hosts and Google's regional endpoints cost a fixed part more for every token.
    """
    region = _OPENAI_REGIONS.get(urlsplit(entry.params.api_base or "").hostname or "", "")
    uplift = known.get(f"regional_processing_uplift_multiplier_{region}") if region else None
    if provider_of(entry, known).startswith(_VERTEX) and _location(entry, known, environ).lower() != "global":
        uplift = known.get(_VERTEX_UPLIFT)
    factor = Decimal(uplift) if isinstance(uplift, int | Decimal) else Decimal(1)
    return {
        name: value * factor if PRICE_KEY.fullmatch(name) and isinstance(value, int | Decimal) else value
        for name, value in known.items()
        if name not in _UPLIFTS
    }


def unstated_region(entry: ModelEntry, known: Mapping[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Warn of the default location of a deployment: at Bedrock, or if it costs more."""
    if provider_of(entry, known) in _BEDROCK:
        return _unstated_at_bedrock(entry, environ)
    if (
        "input_cost_per_token" in entry.info.prices_usd
        or not known.get(_VERTEX_UPLIFT)
        or not provider_of(entry, known).startswith(_VERTEX)
        or stated_location(entry, environ)
    ):
        return []
    location = _location(entry, known, environ)
    if location.lower() == "global":
        return []
    return [
        f'{entry.where}.litellm_params.vertex_location: expected a location, got nothing: "{entry.params.model[:120]}" '
        f"is called in {location}, a regional endpoint, at {known[_VERTEX_UPLIFT]} times its price; write "
        "vertex_location: global for the plain price"
    ]


def _unstated_at_bedrock(entry: ModelEntry, environ: Mapping[str, str]) -> list[str]:
    params = entry.params.provider_params or {}
    elsewhere = entry.params.api_base or not _REGION_OPTIONS.isdisjoint(params)
    if elsewhere or any(map(environ.get, _REGION_VARIABLES)) or _AWS_REGION.search(entry.params.model):
        return []
    return [
        f"{entry.where}.litellm_params.aws_region_name: expected a region, got nothing: "
        f'"{entry.params.model[:120]}" is called in the region of the AWS configuration, else in us-west-2'
    ]


def _location(entry: ModelEntry, known: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Where LiteLLM calls a Google model; it replaces a location that does not serve the model."""
    stated, served = stated_location(entry, environ), known.get("supported_regions") or ()
    if served and stated not in served:
        return str(served[0])
    return stated or _VERTEX_DEFAULT


def listed_prices(known: Mapping[str, Any]) -> Prices | None:
    """The prices of an entry of the price map; None when it has none."""
    mapped = mapped_prices(known)
    return build_prices(mapped) if "input_cost_per_token" in mapped and any(mapped.values()) else None


def mapped_prices(known: Mapping[str, Any]) -> dict[str, Decimal]:
    """Those prices of a price map's entry that are charged here, by their keys."""
    prices: dict[str, Decimal] = {}
    for key, value in known.items():
        if (PRICE_KEY.fullmatch(key) or key in UNIT_PRICE_KEYS) and isinstance(value, int | Decimal):
            prices[key] = Decimal(value)
    for step in known.get("tiered_pricing") or ():
        # Dashscope's form: [{"range": [from, to], "input_cost_per_token": ...}, ...], thousands or single tokens.
        start = int(step.get("range", [0])[0]) // 1000
        for key, value in step.items():
            if PRICE_KEY.fullmatch(key) and isinstance(value, int | Decimal):
                prices[f"{key}_above_{start}k_tokens" if start else key] = Decimal(value)
    prices |= _with_premiums(prices, known.get(_FACTORS))
    searches = known.get(_SEARCH)
    for size, key in zip(SIZES, SEARCH_PRICE_KEYS, strict=True):
        value = searches.get(f"search_context_size_{size}") if isinstance(searches, Mapping) else None
        if isinstance(value, int | Decimal):
            prices[key] = Decimal(value)
    return prices


def _with_premiums(prices: Mapping[str, Decimal], factors: Any) -> dict[str, Decimal]:
    """The standard prices at each of Anthropic's premiums, of which two may apply to one call."""
    given = {
        name: Decimal(str(factors[name])) for name in (US, FAST) if isinstance(factors, Mapping) and name in factors
    }
    if US in given and FAST in given:
        given[FAST_US] = given[US] * given[FAST]
    matches = [match for match in map(PRICE_KEY.fullmatch, prices) if match and not match["tier"]]
    return {f"{m[0]}_{name}": prices[m[0]] * factor for name, factor in given.items() for m in matches}


def stated_tiers(prices_usd: Mapping[str, Decimal]) -> frozenset[str]:
    """The service tiers that have a price among the keys."""
    matches = filter(None, map(PRICE_KEY.fullmatch, prices_usd))
    return frozenset(match["tier"] for match in matches if match["tier"])


def build_prices(prices_usd: Mapping[str, Decimal]) -> Prices:
    """Build a price list from prices by LiteLLM's keys. Raises ValueError for implausible ones.

    A service tier keeps the standard price of whatever it has no price for.
    """
    standard: dict[str, Decimal] = {}
    services: dict[str, dict[str, Decimal]] = {}
    for key, price in prices_usd.items():
        match = PRICE_KEY.fullmatch(key)
        if match and match["tier"]:
            services.setdefault(match["tier"], {})[key.removesuffix(f"_{match['tier']}")] = price
        else:
            standard[key] = price
    lists = tuple((name, _price_list(standard | services[name])) for name in sorted(services))
    return _price_list(standard, lists)


def uncharged_fees(entry: ModelEntry, known: Mapping[str, Any]) -> list[str]:
    """Warnings that name fees and discounts of the price map that are not charged here."""
    if "input_cost_per_token" in entry.info.prices_usd:
        return []
    names = sorted(
        name
        for name, value in known.items()
        if _FEE.fullmatch(name)
        and value
        and not PRICE_KEY.fullmatch(name)
        and name not in (*UNIT_PRICE_KEYS, *TOOL_PRICE_KEYS)
        and name != _SEARCH
        and not _BATCHES.fullmatch(name)
    )
    model = entry.params.model[:120]
    warnings = []
    if names:
        warnings.append(
            f'{entry.where}: the price map has fees for "{model}" that are not charged here: {", ".join(names)}'
        )
    if known.get(_OFF_PEAK):
        warnings.append(
            f'{entry.where}: "{model}" costs less at certain hours ({_OFF_PEAK} of the price map); '
            "its full price is charged at every hour"
        )
    return warnings


def upper_bounds(lists: list[Prices]) -> Prices:
    """A price list at least as high as each of `lists`, at any prompt length and service tier."""
    if all(prices == lists[0] for prices in lists):
        return lists[0]
    tiers = sorted({name for prices in lists for name in prices.tier_names})
    services = tuple((name, _highest([prices.of(name) for prices in lists])) for name in tiers)
    return _highest(lists, services)


def _highest(lists: list[Prices], services: tuple[tuple[str, Prices], ...] = ()) -> Prices:
    thresholds = sorted({tier.above_prompt_tokens for prices in lists for tier in prices.tiers})

    def at(prompt_tokens: int) -> dict[str, int]:
        rates = [prices.at(prompt_tokens) for prices in lists]
        return {name: max(getattr(rate, name) for rate in rates) for name in _FIELDS.values()}

    tiers = tuple(
        PriceTier(above, **{name: price for name, price in at(above + 1).items() if name not in _PER_CALL})
        for above in thresholds
    )
    low, medium, high = (max(by_list) for by_list in zip(*(prices.search_femtousd for prices in lists), strict=True))
    fees = {name: max(getattr(prices, name) for prices in lists) for name in _FEES.values()}
    return Prices(**at(0), **fees, tiers=tiers, search_femtousd=(low, medium, high), service_tiers=services)


def _build_or_report(entry: ModelEntry, prices_usd: Mapping[str, Decimal], problems: list[str]) -> Prices | None:
    try:
        return build_prices(prices_usd)
    except ValueError as error:
        problems.append(f"{entry.where}.model_info: {error}")
        return None


def _price_list(prices_usd: Mapping[str, Decimal], services: tuple[tuple[str, Prices], ...] = ()) -> Prices:
    plain: dict[str, int] = {}
    tiers: dict[int, dict[str, int]] = {}
    for key, price in prices_usd.items():
        if key in SEARCH_PRICE_KEYS or key in TOOL_PRICE_KEYS:
            continue
        match = PRICE_KEY.fullmatch(key)
        name = _FIELDS[match["name"]] if match else {**_FIELDS, **_FEES}[key]
        if match and match["above"]:
            tiers.setdefault(int(match["above"]) * 1000, {})[name] = femtousd_from_usd(price)
        else:
            plain[name] = femtousd_from_usd(price)
    plain.setdefault("output_femtousd", 0)
    steps = tuple(PriceTier(above_prompt_tokens=above, **tiers[above]) for above in sorted(tiers))
    search = NO_SEARCH
    if any(key in prices_usd for key in SEARCH_PRICE_KEYS):
        most = max(prices_usd[key] for key in SEARCH_PRICE_KEYS if key in prices_usd)
        low, medium, high = (femtousd_from_usd(prices_usd.get(key, most)) for key in SEARCH_PRICE_KEYS)
        search = (low, medium, high)
    return Prices(**plain, search_femtousd=search, tiers=steps, service_tiers=services)
