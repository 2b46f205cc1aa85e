"""Makes a model with one deployment from an entry of `model_list` and the price map."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

from gateway.catalog.addresses import (
    ADDRESS_CAPABILITIES,
    CUSTOM_TOOLED,
    fetched_addresses,
    is_openai_address,
    provider_of,
)
from gateway.catalog.assumptions import assumed_capabilities, limits_of
from gateway.catalog.cache_hits import CacheTerms
from gateway.catalog.claude_hosts import INVOKE, placed
from gateway.catalog.hosted_tools import WEB_SEARCH, Api, searching
from gateway.catalog.models import Deployment, Model
from gateway.catalog.own_api import calls_functions_in_own_api, capabilities_of, own_api, runs_tools, states_api
from gateway.catalog.price_map import RESPONSES_ROUTE, PriceMap, is_entry_of
from gateway.catalog.price_reading import (
    in_its_region,
    listed_prices,
    stated_tiers,
)
from gateway.catalog.prices import Prices
from gateway.catalog.service_tiers import STANDARD, UNPRICED, tier_named
from gateway.catalog.web_search import bills_one_search
from gateway.config.model_entry import CAPABILITY_KEYS, MODES, WITHOUT_OUTPUT, ModelEntry
from gateway.config.prices import SEARCH_PRICE_KEYS, TOOL_PRICE_KEYS
from gateway.config.settings import RateQuota, RouterSettings, Settings
from gateway.config.values import Secret, shown
from gateway.schema.fields import INPUT_FIELDS

DEFAULT_QUALITY_PRIOR = 0.5
_INVOKE_REGION = re.compile(r"bedrock/(?:invoke/[a-z-]+-\d/|[a-z-]+-\d/invoke/)")
LONGEST_KEYS = ("max_output_tokens", "max_tokens")
"""Keys of the price map for a model's longest answer."""


def model_of(
    entry: ModelEntry,
    position: int,
    known: Mapping[str, Any],
    mode: str,
    prices: Prices,
    settings: Settings,
    weight: float,
) -> Model:
    """The model of an entry with its one deployment; `known` is its entry in the price map."""
    info = entry.info
    own = own_api(entry, known)
    window, longest = stated_limits(entry, known)
    limits = limits_of(window, longest, _tokens(known, *LONGEST_KEYS), prices)
    stated = [entry.params.request_defaults.get(name) for name in ("max_tokens", "max_completion_tokens")]
    return Model(
        name=entry.model_name,
        mode=mode if mode in WITHOUT_OUTPUT else "chat",  # how it is called is the providers' business
        prices=prices,
        max_input_tokens=limits.max_input_tokens,
        max_output_tokens=limits.max_output_tokens,
        longest_answer_tokens=limits.longest_answer_tokens,
        longest_prompt_tokens=_longest_prompt(entry, known, mode, prices),
        unasked_tokens=limits.unasked_tokens,
        default_max_tokens=min(filter(None, stated), default=None),
        capabilities=_capabilities(entry, known, own),
        possible_capabilities=assumed_capabilities(known, info.capabilities),
        quality_prior=DEFAULT_QUALITY_PRIOR if info.quality_prior is None else info.quality_prior,
        cache=CacheTerms(info.cache_min_tokens, info.cache_ttl_s),
        deployments=(_deployment(entry, position, known, mode, own, prices, settings.router, weight),),
    )


def _capabilities(entry: ModelEntry, known: Mapping[str, Any], own: Api | None) -> frozenset[str]:
    """What the file or the price map says that the model can, without what the file denies."""
    claimed = {name for key, name in CAPABILITY_KEYS.items() if known.get(key) is True}
    claimed |= {name for name, has in entry.info.capabilities.items() if has}
    denied = {name for name, has in entry.info.capabilities.items() if not has}
    if not {"vision", "video"}.isdisjoint(claimed - denied):
        claimed |= {ADDRESS_CAPABILITIES[each] for each in fetched_addresses(provider_of(entry, known))}
    if provider_of(entry, known) in CUSTOM_TOOLED:
        claimed.add("custom_tools")
    claimed |= capabilities_of(entry, known)
    if own is not None and WEB_SEARCH in denied:
        denied.add(searching(own))
    return frozenset(claimed - denied)


def _deployment(
    entry: ModelEntry,
    position: int,
    known: Mapping[str, Any],
    mode: str,
    own: Api | None,
    prices: Prices,
    router: RouterSettings,
    weight: float,
) -> Deployment:
    info, params = entry.info, entry.params
    timeout_s = params.timeout_s or router.timeout_s
    in_own_api = own == "responses_api"
    return Deployment(
        deployment_id=info.deployment_id or f"{entry.model_name}#{position}",
        litellm_model=_litellm_model(entry, known, mode),
        prices=prices,
        api_base=params.api_base,
        api_key=params.api_key,
        api_version=params.api_version,
        organization=params.organization,
        timeout_s=timeout_s,
        stream_timeout_s=params.stream_timeout_s or router.stream_timeout_s or timeout_s,
        weight=weight,
        order=params.order,
        limits=RateQuota(params.rpm, params.tpm, params.parallel or router.deployment_parallel),
        extra_headers=params.extra_headers or {},
        provider_params=_provider_params(entry, known),
        lane=info.lane or router.lane,
        request_defaults=_request_defaults(entry, known, mode, prices),
        allowed_params=params.allowed_params,
        dropped_params=params.dropped_params,
        base_model=info.base_model,
        unasked_tiers=_unasked_tiers(entry, known, prices),
        one_search_billed=bills_one_search(provider_of(entry, known), f"{params.model} {info.base_model or ''}", known),
        tool_prices_usd=_tool_prices(entry, known),
        api_stated=own is not None and (states_api(entry) or is_openai_address(params.api_base)),
        own_api_only=in_own_api and (mode == "responses" or RESPONSES_ROUTE in params.model),
        functions_in_own_api=in_own_api and calls_functions_in_own_api(info.base_model or params.model),
        runs_tools=own is not None and runs_tools(entry, own, known),
    )


def map_entry(entry: ModelEntry, listed: PriceMap) -> Mapping[str, Any]:
    """The price map's entry for `base_model`, else for the model, by LiteLLM's own rules."""
    named = (entry.params.provider_params or {}).get("custom_llm_provider")
    provider = None if named is None else named.reveal()
    base = entry.info.base_model
    if base is not None:
        found = listed.find(base) or listed.find(base, provider or entry.params.model.partition("/")[0])
        if found:
            return found
    return listed.find(entry.params.model, provider)


def prices_of_size(entry: ModelEntry, listed: PriceMap, mode: str, warnings: list[str]) -> Mapping[str, Any]:
    """The price map's entry for all models of this size, for one without prices of its own."""
    if "input_cost_per_token" in entry.info.prices_usd:
        return {}
    provider = provider_of(entry, {})
    for model in (entry.info.base_model or "", entry.params.model):
        name, found = listed.find_size(model, provider, mode)
        if found:
            warnings.append(
                f'{entry.where}.model_info: the price map does not list "{entry.params.model[:120]}", and its price is '
                f'that of all models of its size, "{name}"; give its own prices where they differ'
            )
            return found
    return {}


_EVIDENT = re.compile(
    r"(?:^|[-_/.])(?:(dall-e|gpt-image|stable-diffusion|sdxl|imagen)|(whisper|transcribe)|(tts|speech)|(realtime)|(rerank(?:er)?))"
    r"(?:$|[-_/.\d])"
)
_EVIDENT_KINDS = ("image_generation", "audio_transcription", "audio_speech", "realtime", "rerank")


def evident_mode(entry: ModelEntry, listed: PriceMap) -> str:
    """The mode of a model that the price map lacks, from its name elsewhere or its own words."""
    name = (entry.info.base_model or entry.params.model).lower()
    if entry.info.prices_usd:
        return "chat"  # the operator says what its tokens cost
    kinds = listed.kinds(name)
    if kinds:
        return next(iter(kinds)) if len(kinds) == 1 and kinds.isdisjoint(MODES) else "chat"
    evident = _EVIDENT.search(name)
    return "chat" if evident is None else _EVIDENT_KINDS[(evident.lastindex or 1) - 1]


def _litellm_model(entry: ModelEntry, known: Mapping[str, Any], mode: str) -> str:
    """The name by which LiteLLM calls the model: with the route where it would not know of it.

    LiteLLM reads the mode in the map's entry of the model's own name, never in `model_info` or for `base_model`.
    """
    model, provider = entry.params.model, provider_of(entry, known)
    if _INVOKE_REGION.match(model) and provider == "bedrock":
        return f"bedrock/{INVOKE}{placed(model.removeprefix('bedrock/'))[1]}"
    listed = known.get("mode") == "responses" and entry.info.base_model is None
    if mode != "responses" or listed or RESPONSES_ROUTE in model or provider not in ("openai", "azure"):
        return model
    return f"{provider}/{RESPONSES_ROUTE}{model.removeprefix(f'{provider}/')}"


def _provider_params(entry: ModelEntry, known: Mapping[str, Any]) -> Mapping[str, Secret]:
    """The operator's options; a region beside `invoke/` is one, because LiteLLM would send it as part of the name."""
    stated = entry.params.provider_params or {}
    model = entry.params.model
    region = placed(model.removeprefix("bedrock/"))[0] if _INVOKE_REGION.match(model) else None
    if region is None or provider_of(entry, known) != "bedrock":
        return stated
    return {"aws_region_name": Secret(region), **stated}


def stated_limits(entry: ModelEntry, known: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The context window and the longest answer that the file or the price map states."""
    window = entry.info.max_input_tokens or _tokens(known, "max_input_tokens")
    return window, entry.info.max_output_tokens or _tokens(known, *LONGEST_KEYS)


def _longest_prompt(entry: ModelEntry, known: Mapping[str, Any], mode: str, prices: Prices) -> int | None:
    """The longest prompt that can be billed: the window that the price map states for this very model.

    A number in the file may be the operator's own limit: a smaller one closes no provider's window, and alone it proves
    none. Unknown too where the map's entry is another provider's (`base_model`, a proxy's alias), at Ollama, whose
    window is its operator's choice, where prices are listed for longer prompts than the window, and for the inputs of
    an embedding, each of which has a window of its own.
    """
    window, provider = _tokens(known, "max_input_tokens"), provider_of(entry, known)
    of_another = not is_entry_of(str(known.get("litellm_provider") or ""), provider)
    if window is None or mode in WITHOUT_OUTPUT or provider.startswith("ollama") or of_another:
        return None
    longest = max(window, entry.info.max_input_tokens or 0)
    return longest if longest > prices.highest_threshold_tokens else None


def _tool_prices(entry: ModelEntry, known: Mapping[str, Any]) -> Mapping[str, Decimal]:
    """The fees of hosted tools that the file or the price map states; of searches only the file's, which may be 0."""
    listed = {key: known[key] for key in TOOL_PRICE_KEYS if isinstance(known.get(key), int | Decimal)}
    stated = {
        key: entry.info.prices_usd[key] for key in TOOL_PRICE_KEYS + SEARCH_PRICE_KEYS if key in entry.info.prices_usd
    }
    return {key: Decimal(price) for key, price in (listed | stated).items()}


def _request_defaults(entry: ModelEntry, known: Mapping[str, Any], mode: str, prices: Prices) -> Mapping[str, Any]:
    """The operator's defaults; OpenAI itself is told to serve the tier that is held for.

    Without `service_tier` OpenAI takes the tier of the project's settings, which are not known here.
    """
    defaults = entry.params.request_defaults
    if mode != "embedding":
        defaults = {name: value for name, value in defaults.items() if name not in INPUT_FIELDS}
    if mode != "chat" or "service_tier" in defaults or not prices.tier_names:
        return defaults
    if provider_of(entry, known) != "openai" or not is_openai_address(entry.params.api_base):
        return defaults
    return {**defaults, "service_tier": STANDARD}


def _unasked_tiers(entry: ModelEntry, known: Mapping[str, Any], prices: Prices) -> frozenset[str]:
    """The tiers that a call may be billed at which names none: those priced in the file.

    Behind an address of its own, or at Azure, OpenAI's models may have another default, so there all of them.
    """
    provider = provider_of(entry, known)
    if provider == "azure" or (provider == "openai" and not is_openai_address(entry.params.api_base)):
        return frozenset(prices.tier_names)
    stated = (entry.info.prices_usd, *(change.prices_usd for change in entry.info.price_changes))
    return frozenset[str]().union(*map(stated_tiers, stated))


def check_tier(entry: ModelEntry, prices: Prices, problems: list[str]) -> None:
    """A default tier without prices would be billed at unknown ones."""
    tier = entry.params.request_defaults.get("service_tier")
    if tier is None or tier in UNPRICED or tier_named(tier) in prices.tier_names:
        return
    named = ", ".join((*UNPRICED, *prices.tier_names))
    problems.append(
        f"{entry.where}.litellm_params.service_tier: expected a tier with known prices ({named}), got {shown(tier)}; "
        "write its prices as input_cost_per_token_priority, ..."
    )


def with_siblings(model: Model, entry: ModelEntry, listed: PriceMap, environ: Mapping[str, str]) -> Model:
    """The model, whose deployment knows the price map's prices of its provider's other models."""
    provider, separator, own = entry.params.model.partition("/")
    own_names = {entry.params.model, own, entry.info.base_model}

    @cache
    def prices_of(name: str) -> Prices | None:
        if name in own_names:
            return model.prices
        found = listed.find(name, provider) if separator else listed.find(name)
        return listed_prices(in_its_region(entry, found, environ))

    return replace(model, deployments=(replace(model.deployments[0], prices_of=prices_of),))


def _tokens(known: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = known.get(key)
        if isinstance(value, int | Decimal | str) and str(value).isdigit() and int(value) > 0:
            return int(value)
    return None
