"""Makes the model catalogue from the configuration and the price map of LiteLLM.

Values that the configuration omits come from the price map that LiteLLM ships as a file, read without importing
LiteLLM and without network access. A model without a price is a configuration error, never free.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from gateway.catalog.addresses import (
    ADDRESS_CAPABILITIES,
    CUSTOM_TOOLED,
    fetched_addresses,
    is_openai_address,
    provider_of,
)
from gateway.catalog.assumptions import assumed_capabilities, limits_of, unstated
from gateway.catalog.cache_hits import CacheTerms
from gateway.catalog.efforts import quality_prior
from gateway.catalog.hosted_tools import WEB_SEARCH, searching
from gateway.catalog.models import Catalog, Deployment, Model
from gateway.catalog.own_api import (
    calls_functions_in_own_api,
    capabilities_of,
    own_api,
    runs_tools,
    states_api,
)
from gateway.catalog.price_map import RESPONSES_ROUTE, PriceMap, is_entry_of
from gateway.catalog.price_reading import (
    DatedPrices,
    in_its_region,
    listed_prices,
    read_prices,
    stated_tiers,
    uncharged_fees,
    unstated_region,
    upper_bounds,
)
from gateway.catalog.prices import Prices
from gateway.catalog.service_tiers import STANDARD, UNPRICED, tier_named
from gateway.catalog.web_search import bills_one_search
from gateway.clock import Clock, now_ms
from gateway.config.load import read_settings
from gateway.config.model_entry import CAPABILITY_KEYS, EFFORTS, MODES, WITHOUT_OUTPUT, ModelEntry
from gateway.config.prices import SEARCH_PRICE_KEYS, TOOL_PRICE_KEYS
from gateway.config.reader import SettingsError
from gateway.config.settings import RateQuota, Settings
from gateway.config.values import shown

PRICE_MAP_FILE = "model_prices_and_context_window_backup.json"
DEFAULT_QUALITY_PRIOR = 0.5
LONGEST_KEYS = ("max_output_tokens", "max_tokens")
"""Keys of the price map for a model's longest answer."""


@dataclass(frozen=True, slots=True)
class CatalogDraft:
    """A configuration and its catalogue as far as readable; usable only without `problems`."""

    settings: Settings
    catalog: Catalog
    problems: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Findings that are logged without stopping the start."""
        return (*self.settings.warnings, *self.catalog.warnings)


def draft(
    path: Path | str,
    environ: Mapping[str, str],
    clock: Clock = time.time,
    *,
    price_map: Mapping[str, Any] | None = None,
) -> CatalogDraft:
    """Read the configuration at `path` as far as it can be read."""
    read = read_settings(path, environ)
    listed = bundled_price_map() if price_map is None else price_map
    catalog, unpriced = _build(read.settings, listed, now_ms(clock), environ)
    return CatalogDraft(read.settings, catalog, (*read.problems, *unpriced))


def load(
    path: Path | str,
    environ: Mapping[str, str],
    clock: Clock = time.time,
    *,
    price_map: Mapping[str, Any] | None = None,
) -> tuple[Settings, Catalog]:
    """Settings and catalogue of the configuration at `path`.

    `price_map` replaces LiteLLM's bundled file; `environ` has the locations that the configuration does not state.
    Raises SettingsError with the problems of both at once.
    """
    read = draft(path, environ, clock, price_map=price_map)
    if read.problems:
        raise SettingsError(read.problems)
    return read.settings, read.catalog


def bundled_price_map() -> Mapping[str, msgspec.Raw]:
    """LiteLLM's price map of the installed version; empty when LiteLLM is not installed."""
    spec = importlib.util.find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        file = Path(folder) / PRICE_MAP_FILE
        if file.is_file():
            return msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    return {}


def _build(
    settings: Settings, price_map: Mapping[str, Any], at_ms: int, environ: Mapping[str, str]
) -> tuple[Catalog, tuple[str, ...]]:
    problems: list[str] = []
    warnings: list[str] = []
    groups: dict[str, list[Model]] = {}
    coming: list[tuple[str, DatedPrices]] = []
    listed = PriceMap(price_map)
    listed_as: dict[str, list[ModelEntry]] = {}
    for entry in settings.models:
        listed_as.setdefault(entry.model_name, []).append(entry)
    for position, entry in enumerate(settings.models):
        known = _map_entry(entry, listed)
        mode = entry.info.mode or str(known.get("mode") or _kind(entry, listed))
        if mode not in MODES:
            warnings.append(f"{entry.where}.model_info.mode: {mode} models are not served here; the entry is ignored")
            continue
        warnings += unstated_region(entry, known, environ)
        known = in_its_region(entry, known, environ)
        read = read_prices(entry, known, at_ms, problems)
        warnings += uncharged_fees(entry, known)
        if mode not in WITHOUT_OUTPUT:
            warnings += unstated(entry, known, *_stated_limits(entry, known))
        if read is not None:
            prices, later = read
            coming += [(entry.model_name, dated) for dated in later]
            _check_tier(entry, prices, problems)
            weight = _weight(entry, listed_as[entry.model_name])
            model = _model(entry, position, known, mode, prices, settings, weight)
            groups.setdefault(entry.model_name, []).append(_with_siblings(model, entry, listed, environ))
    models = {name: _merged(members) for name, members in groups.items()}
    for name, entries in listed_as.items():
        if name in models and models[name].mode == "chat":
            models[name] = replace(models[name], efforts=_levels(models[name], entries))
    problems += [
        f'{entry.where}.model_name: "{entry.model_name}" is also the name of an effort of another model'
        for entry in settings.models
        if any(entry.model_name == level.action for model in models.values() for level in model.efforts)
    ]
    if not models and not problems and any(entry.info.prices_read for entry in settings.models):
        problems.append(f"{settings.path.name}: model_list: expected at least one chat model")
    problems += _mixed_modes(groups)
    aliases = {alias: name for alias, name in settings.router.model_group_alias.items() if name in models}
    digest = _digest(models.values(), aliases)
    coming.sort(key=lambda change: change[1].valid_from_ms)
    warnings += [
        f'{dated.where}: other prices of "{name}" apply from {_utc(dated.valid_from_ms)}' for name, dated in coming
    ]
    catalog = Catalog(
        models,
        aliases,
        digest,
        tuple(warnings),
        settings.router.hidden_aliases & aliases.keys(),
        tuple(coming),
        lambda: _build(settings, price_map, coming[0][1].valid_from_ms, environ)[0],
    )
    return catalog, tuple(problems)


def _utc(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def _map_entry(entry: ModelEntry, listed: PriceMap) -> Mapping[str, Any]:
    """The price map's entry for `base_model`, else for the model, by LiteLLM's own rules."""
    named = (entry.params.provider_params or {}).get("custom_llm_provider")
    provider = None if named is None else named.reveal()
    base = entry.info.base_model
    if base is not None:
        found = listed.find(base) or listed.find(base, provider or entry.params.model.partition("/")[0])
        if found:
            return found
    return listed.find(entry.params.model, provider)


_EVIDENT = re.compile(
    r"(?:^|[-_/.])(?:(dall-e|gpt-image|stable-diffusion|sdxl|imagen)|(whisper|transcribe)|(tts|speech)|(realtime)|(rerank(?:er)?))"
    r"(?:$|[-_/.\d])"
)
_EVIDENT_KINDS = ("image_generation", "audio_transcription", "audio_speech", "realtime", "rerank")


def _kind(entry: ModelEntry, listed: PriceMap) -> str:
    """The mode of a model without an entry of its own: that of its name elsewhere, or an evident one."""
    name = (entry.info.base_model or entry.params.model).lower()
    if entry.info.prices_usd:
        return "chat"  # the operator says what its tokens cost
    kinds = listed.kinds(name)
    if kinds:
        return next(iter(kinds)) if len(kinds) == 1 and kinds.isdisjoint(MODES) else "chat"
    evident = _EVIDENT.search(name)
    return "chat" if evident is None else _EVIDENT_KINDS[(evident.lastindex or 1) - 1]


def _weight(entry: ModelEntry, group: Sequence[ModelEntry]) -> float:
    """A deployment's share of its group: without any stated weight its rpm, else its tpm, as in LiteLLM."""
    if all(each.params.weight is None for each in group):
        for limits in ([each.params.rpm for each in group], [each.params.tpm for each in group]):
            if all(limits):
                return float(limits[group.index(entry)] or 0)
    return 1.0 if entry.params.weight is None else entry.params.weight


def _model(
    entry: ModelEntry,
    position: int,
    known: Mapping[str, Any],
    mode: str,
    prices: Prices,
    settings: Settings,
    weight: float,
) -> Model:
    info, params, router = entry.info, entry.params, settings.router
    timeout_s = params.timeout_s or router.timeout_s
    claimed = {name for key, name in CAPABILITY_KEYS.items() if known.get(key) is True}
    claimed |= {name for name, has in info.capabilities.items() if has}
    denied = {name for name, has in info.capabilities.items() if not has}
    if not {"vision", "video"}.isdisjoint(claimed - denied):
        claimed |= {ADDRESS_CAPABILITIES[each] for each in fetched_addresses(provider_of(entry, known))}
    if provider_of(entry, known) in CUSTOM_TOOLED:
        claimed.add("custom_tools")
    own = own_api(entry, known)
    claimed |= capabilities_of(entry, known)
    if own is not None and WEB_SEARCH in denied:
        denied.add(searching(own))
    window, longest = _stated_limits(entry, known)
    limits = limits_of(window, longest, _tokens(known, *LONGEST_KEYS), prices)
    stated = [params.request_defaults.get(name) for name in ("max_tokens", "max_completion_tokens")]
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
        capabilities=frozenset(claimed - denied),
        possible_capabilities=assumed_capabilities(known, info.capabilities),
        quality_prior=DEFAULT_QUALITY_PRIOR if info.quality_prior is None else info.quality_prior,
        cache=CacheTerms(info.cache_min_tokens, info.cache_ttl_s),
        deployments=(
            Deployment(
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
                provider_params=params.provider_params or {},
                lane=info.lane or router.lane,
                request_defaults=_request_defaults(entry, known, mode, prices),
                allowed_params=params.allowed_params,
                dropped_params=params.dropped_params,
                base_model=info.base_model,
                unasked_tiers=_unasked_tiers(entry, known, prices),
                one_search_billed=bills_one_search(
                    provider_of(entry, known), f"{params.model} {info.base_model or ''}", known
                ),
                tool_prices_usd=_tool_prices(entry, known),
                api_stated=own is not None and (states_api(entry) or is_openai_address(params.api_base)),
                own_api_only=own == "responses_api" and (mode == "responses" or RESPONSES_ROUTE in params.model),
                functions_in_own_api=own == "responses_api"
                and calls_functions_in_own_api(info.base_model or params.model),
                runs_tools=own is not None and runs_tools(entry, own, known),
            ),
        ),
    )


def _litellm_model(entry: ModelEntry, known: Mapping[str, Any], mode: str) -> str:
    """The name by which LiteLLM calls the model: with the route where it would not know of it.

    LiteLLM reads the mode in the map's entry of the model's own name, never in `model_info` or for `base_model`.
    """
    model, provider = entry.params.model, provider_of(entry, known)
    listed = known.get("mode") == "responses" and entry.info.base_model is None
    if mode != "responses" or listed or RESPONSES_ROUTE in model or provider not in ("openai", "azure"):
        return model
    return f"{provider}/{RESPONSES_ROUTE}{model.removeprefix(f'{provider}/')}"


def _stated_limits(entry: ModelEntry, known: Mapping[str, Any]) -> tuple[int | None, int | None]:
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


def _check_tier(entry: ModelEntry, prices: Prices, problems: list[str]) -> None:
    """A default tier without prices would be billed at unknown ones."""
    tier = entry.params.request_defaults.get("service_tier")
    if tier is None or tier in UNPRICED or tier_named(tier) in prices.tier_names:
        return
    named = ", ".join((*UNPRICED, *prices.tier_names))
    problems.append(
        f"{entry.where}.litellm_params.service_tier: expected a tier with known prices ({named}), got {shown(tier)}; "
        "write its prices as input_cost_per_token_priority, ..."
    )


def _with_siblings(model: Model, entry: ModelEntry, listed: PriceMap, environ: Mapping[str, str]) -> Model:
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


def _merged(members: list[Model]) -> Model:
    """One model from the deployments that share its name: smallest limits, common capabilities."""
    first = members[0]
    return replace(
        first,
        prices=upper_bounds([member.prices for member in members]),
        max_input_tokens=min(member.max_input_tokens for member in members),
        max_output_tokens=min(member.max_output_tokens for member in members),
        capabilities=frozenset.intersection(*(member.capabilities for member in members)),
        possible_capabilities=frozenset.intersection(*(member.possible_capabilities for member in members)),
        quality_prior=min(member.quality_prior for member in members),
        cache=CacheTerms(
            max((m.cache.min_tokens for m in members if m.cache.min_tokens is not None), default=None),
            min((m.cache.ttl_s for m in members if m.cache.ttl_s is not None), default=None),
        ),
        deployments=tuple(deployment for member in members for deployment in member.deployments),
        longest_answer_tokens=_largest(member.longest_answer_tokens for member in members),
        longest_prompt_tokens=_largest(member.longest_prompt_tokens for member in members),
        unasked_tokens=min(filter(None, (member.unasked_tokens for member in members)), default=None),
        default_max_tokens=min(filter(None, (member.default_max_tokens for member in members)), default=None),
    )


def _largest(limits: Iterable[int | None]) -> int | None:
    """The largest of the deployments' limits; None if one of them is unknown."""
    known = list(limits)
    return None if None in known else max(filter(None, known))


def _levels(model: Model, entries: Sequence[ModelEntry]) -> tuple[Model, ...]:
    """The model at each effort that all its deployments have, with the lowest of the stated priors."""
    found = []
    for level in EFFORTS:
        if all(level in entry.info.efforts for entry in entries):
            stated = [prior for entry in entries if (prior := entry.info.efforts[level]) is not None]
            prior = min(stated, default=quality_prior(model.quality_prior, level))
            found.append(replace(model, effort=level, quality_prior=prior))
    return tuple(found)


def _mixed_modes(groups: Mapping[str, list[Model]]) -> list[str]:
    return [
        f'model_list: "{name}": expected one mode for all its deployments, got '
        + " and ".join(sorted({member.mode for member in members}))
        for name, members in groups.items()
        if len({member.mode for member in members}) > 1
    ]


def _digest(models: Iterable[Model], aliases: Mapping[str, str]) -> str:
    """SHA-256 over everything that affects routing and billing; keys, hosts and secrets are left out."""
    rows = [
        (
            model.name, model.mode, repr(model.prices), model.max_input_tokens, model.max_output_tokens,
            sorted(model.possible_capabilities), sorted(model.capabilities), model.quality_prior,
            model.longest_answer_tokens, model.longest_prompt_tokens, model.unasked_tokens, model.default_max_tokens,
            [
                (
                    d.deployment_id, d.litellm_model, d.weight, d.order, repr(d.prices),
                    sorted((key, str(price)) for key, price in d.tool_prices_usd.items()),
                )
                for d in model.deployments
            ],
            [(level.effort, level.quality_prior) for level in model.efforts],
        )
        for model in models
    ]  # fmt: skip
    return hashlib.sha256(json.dumps([rows, sorted(aliases.items())]).encode()).hexdigest()
