"""Reader of `model_list`: deployments with their access data and prices.

One entry is one deployment; entries that share a `model_name` are a load-balanced group. The catalogue looks up what an
entry omits (prices, limits, capabilities).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from urllib.parse import urlsplit

from gateway.config import litellm_keys
from gateway.config.credentials import (
    CREDENTIAL_KEYS,
    HEADER_KEYS,
    add_credential,
    add_defaults,
    read_credentials,
    use_first_names,
)
from gateway.config.model_entry import (
    CAPABILITY_KEYS,
    EFFORTS,
    LANES,
    PROVIDER_PARAMS,
    UNORDERED,
    ModelEntry,
    ModelInfo,
    ModelParams,
)
from gateway.config.prices import FOREIGN_PRICE, PriceChange, read_price_changes, read_prices
from gateway.config.reader import Findings, Located, Section
from gateway.config.request_defaults import read_request_defaults
from gateway.config.values import Secret, shown

MAX_MODEL_NAME_CHARS = 256

_AZURE = frozenset({"azure", "azure_ai", "azure_text"})
_VERSIONED = _AZURE | {"watsonx"}
"""Providers whose addresses have an `api_version`."""


def read_model_list(document: Section) -> tuple[ModelEntry, ...]:
    """All readable entries; the others are problems in the document's findings."""
    credentials = read_credentials(document)
    located = document.items("model_list")
    document.require("model_list", "at least one model")
    if not located and document.has("model_list"):
        document.problem("model_list", "expected at least one model")
    defaults = document.section("router_settings").section("default_litellm_params")
    if defaults.has("model"):
        defaults.ignore("model", "not a default: every entry names its own model; it is ignored")
    use_first_names(defaults)
    add_credential(defaults, credentials)
    entries = tuple(entry for item in located for entry in _read_entry(document, item, credentials, defaults))
    _check_ids(entries, document.findings)
    return entries


def _read_entry(
    document: Section, located: Located, credentials: Mapping[str, Section], defaults: Section
) -> tuple[ModelEntry, ...]:
    """The deployment of an item, or one for each of its organizations; none if it is invalid or no model."""
    section = document.nested(located)
    if not isinstance(located.raw, dict):
        return ()
    name = section.text("model_name")
    section.require("model_name", "a string")
    params_section = section.section("litellm_params")
    info_section = section.section("model_info")
    limits = {key: section.optional_integer(key, minimum=1) for key in ("rpm", "tpm")}
    use_first_names(params_section)
    add_credential(params_section, credentials)
    add_defaults(params_section, defaults, {key for key, limit in limits.items() if limit is not None})
    organizations = _read_organizations(params_section)
    params = _read_params(params_section)
    changes = read_price_changes(info_section)
    problems_before = len(section.findings.problems)
    prices_usd = read_prices(params_section, info_section)
    prices_read = len(section.findings.problems) == problems_before
    info = replace(_read_info(info_section, prices_usd, changes), prices_read=prices_read)
    if info.base_model is None:
        info = replace(info, base_model=params_section.text("base_model"))
    if params is not None:
        defaults_of_requests = read_request_defaults(params_section, info_section)
        rpm, tpm = params.rpm or limits["rpm"], params.tpm or limits["tpm"]
        params = replace(params, rpm=rpm, tpm=tpm, request_defaults=defaults_of_requests)
    params_section.finish(
        litellm_keys.IGNORED["litellm_params"],
        protections=litellm_keys.PROTECTIONS["litellm_params"],
        others_allowed=True,
    )
    info_section.finish(
        litellm_keys.IGNORED["model_info"], protections=litellm_keys.PROTECTIONS["model_info"], others_allowed=True
    )
    for key in section.unread():
        if FOREIGN_PRICE.fullmatch(key):
            section.problem(key, "a price: expected under litellm_params or model_info")
            section.skip(key)
    misplaced = {*litellm_keys.PROTECTIONS["litellm_params"], *litellm_keys.PROTECTIONS["model_info"]}
    section.finish(
        litellm_keys.IGNORED["model_info"],
        protections=dict.fromkeys(misplaced, "it belongs under litellm_params or model_info"),
        others_allowed=True,
    )
    if name is not None:
        name = _checked_name(section, name)
    if name is None or params is None or not _is_one_model(section, name, params):
        return ()
    stated = info.deployment_id
    return tuple(
        ModelEntry(
            located.where, name, replace(params, organization=organization),
            info if stated is None or not number else replace(info, deployment_id=f"{stated}-{number + 1}"),
        )
        for number, organization in enumerate(organizations)
    )  # fmt: skip


def _is_one_model(section: Section, name: str, params: ModelParams) -> bool:
    """True for a callable model; reports a wildcard or a LiteLLM router."""
    if "*" in name or "*" in params.model:
        section.problem(
            "model_name",
            f'"{name if "*" in name else params.model}" is a wildcard: write one entry for each model, because the '
            "policy chooses among named models with known prices",
        )
        return False
    if params.model.startswith("auto_router/"):
        section.warn("model_name", 'a router of LiteLLM; it is ignored: clients ask for "auto" here')
        return False
    return True


def _checked_name(section: Section, name: str) -> str | None:
    if name == "auto" or name.startswith("auto@"):
        section.problem("model_name", f'"{name}" is reserved: it lets the policy choose')
        return None
    if len(name) > MAX_MODEL_NAME_CHARS or not name.isprintable():
        section.problem("model_name", f"expected at most {MAX_MODEL_NAME_CHARS} printable characters")
        return None
    return name


def _read_organizations(section: Section) -> tuple[str | None, ...]:
    """The organizations, each of which is a deployment, as LiteLLM reads such a list."""
    if section.has("organization") and isinstance(section.entries["organization"].raw, list):
        return section.texts("organization") or (None,)
    return (_plain(section.secret("organization")),)


def _read_params(section: Section) -> ModelParams | None:
    """The parameters of a deployment without its organization."""
    model = section.text("model")
    section.require("model", '"provider/model"')
    found = {key: _read_credential(section, key) for key in CREDENTIAL_KEYS if key != "organization"}
    values = {key: value for key, value in found.items() if value is not None}
    weight = section.decimal("weight")
    provider = _plain(values.get("custom_llm_provider")) or (model or "").partition("/")[0]
    api_base, api_version = _checked_url(section, values.get("api_base"), provider)
    if "api_version" in values and provider not in _VERSIONED and section.path("api_version").startswith(section.where):
        section.warn("api_version", "not sent: only the addresses of Azure and watsonx have a version")
    params = ModelParams(
        model=model or "",
        api_base=api_base,
        api_key=values.get("api_key"),
        api_version=_plain(values.get("api_version")) or api_version,
        rpm=section.optional_integer("rpm", minimum=1),
        tpm=section.optional_integer("tpm", minimum=1),
        parallel=section.optional_integer("max_parallel_requests", minimum=1),
        weight=None if weight is None else float(weight),
        order=section.integer("order", UNORDERED),
        timeout_s=section.duration_s("timeout", None, minimum_s=0.1, maximum_s=86400.0),
        stream_timeout_s=section.duration_s("stream_timeout", None, minimum_s=0.1, maximum_s=86400.0),
        extra_headers=_read_headers(section),
        provider_params={key: values[key] for key in PROVIDER_PARAMS if key in values},
        allowed_params=frozenset(section.texts("allowed_openai_params")),
        dropped_params=frozenset(section.texts("additional_drop_params")),
    )
    return None if model is None else params


def _read_credential(section: Section, key: str) -> Secret | None:
    """A credential; a Google key file's content may be an object, as LiteLLM reads it."""
    if key == "vertex_credentials" and section.has(key) and isinstance(section.entries[key].raw, dict):
        return Secret(json.dumps(section.json(key)))
    return section.secret(key)


def _plain(value: Secret | None) -> str | None:
    return None if value is None else value.reveal()


def _checked_url(section: Section, value: Secret | None, provider: str) -> tuple[str | None, str | None]:
    """An address, and the `api-version` that LiteLLM's Azure users write behind it; other providers are sent none."""
    if value is None:
        return None, None
    url, _, query = value.reveal().partition("?")
    version = re.fullmatch(r"api-version=([\w.-]+)", query) if provider in _AZURE else None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:
        good = False
    if not good or (query and version is None):
        section.problem("api_base", "expected http(s)://host[:port][/path] without query or fragment")
        return None, None
    return url.rstrip("/"), None if version is None else version[1]


def _read_headers(section: Section) -> Mapping[str, Secret]:
    found: dict[str, Secret] = {}
    for headers, name in [(part, name) for part in map(section.section, HEADER_KEYS) for name in part.names()]:
        value = headers.secret(name)
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None:
            headers.problem(name, "expected the name of an HTTP header")
        elif why := litellm_keys.unheld_header(name):
            headers.problem(name, f"cannot be a default: {why}")
        elif value is not None and not (value.reveal().isascii() and value.reveal().isprintable()):
            headers.problem(name, "expected printable ASCII characters")
        elif value is not None:
            found[name] = value
    return found


def _read_info(
    section: Section, prices_usd: Mapping[str, Decimal], price_changes: tuple[PriceChange, ...]
) -> ModelInfo:
    capabilities = {}
    for key, capability in CAPABILITY_KEYS.items():
        claimed = section.flag(key)
        if claimed is not None:
            capabilities[capability] = claimed
    quality = section.decimal("quality_prior", maximum=1)
    max_tokens = section.optional_integer("max_tokens", minimum=1)
    max_output_tokens = section.optional_integer("max_output_tokens", minimum=1)
    return ModelInfo(
        deployment_id=section.text("id"),
        mode=section.text("mode"),
        base_model=section.text("base_model"),
        max_input_tokens=section.optional_integer("max_input_tokens", minimum=1),
        max_output_tokens=max_output_tokens if max_output_tokens is not None else max_tokens,
        prices_usd=prices_usd,
        capabilities=capabilities,
        quality_prior=None if quality is None else float(quality),
        lane=section.choice("lane", "", LANES) or None,
        price_changes=price_changes,
        cache_min_tokens=section.optional_integer("prompt_cache_min_tokens"),
        cache_ttl_s=section.duration_s("prompt_cache_ttl", None),
        efforts=_read_efforts(section),
        supported_endpoints=section.texts("supported_endpoints") or None,
        access_groups=frozenset(section.texts("access_groups")),
    )


def _read_efforts(section: Section) -> Mapping[str, float | None]:
    """`efforts`: a list of levels, or a mapping of levels to their `quality_prior`."""
    stated = section.json("efforts")
    if stated is None:
        return {}
    efforts = dict.fromkeys(stated) if isinstance(stated, list) and all(isinstance(e, str) for e in stated) else stated
    if not isinstance(efforts, dict) or not efforts.keys() <= set(EFFORTS):
        section.problem("efforts", f"expected some of {', '.join(EFFORTS)}, or each with its quality_prior")
        return {}
    for level, prior in efforts.items():
        number = isinstance(prior, int | float) and not isinstance(prior, bool)
        if prior is not None and not (number and 0 <= prior <= 1):
            where = section.path(f"efforts.{level}")
            section.findings.problem(where, f"expected a number from 0 to 1, got {shown(prior)}")
            return {}
    return {level: efforts[level] for level in EFFORTS if level in efforts}


def _check_ids(entries: tuple[ModelEntry, ...], findings: Findings) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        wanted = entry.info.deployment_id
        if wanted is None:
            continue
        if wanted in seen:
            findings.problem(f"{entry.where}.model_info.id", f'"{wanted}" is already the id of {seen[wanted]}')
        seen[wanted] = entry.where
