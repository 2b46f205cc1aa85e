"""Readers of `model_list` and `credential_list`: deployments, access data and prices.

One entry is one deployment; entries that share a `model_name` are a load-balanced group. The catalogue looks up what an
entry omits (prices, limits, capabilities).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from gateway.config import litellm_keys
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
from gateway.config.values import Secret, shown
from gateway.errors import InvalidRequest
from gateway.schema.fields import KNOWN_FIELDS, OWN_FIELDS
from gateway.schema.reader import left_out, read_default

MAX_MODEL_NAME_CHARS = 256

OTHER_NAMES: Mapping[str, str] = {
    "base_url": "api_base",
    "vertex_ai_project": "vertex_project",
    "vertex_ai_location": "vertex_location",
    "vertex_ai_credentials": "vertex_credentials",
}
"""LiteLLM's second names of access data, and the first ones."""

HEADER_KEYS = ("headers", "extra_headers")
"""LiteLLM's two names for the same setting; the later one wins."""

_LIMITS = frozenset({"max_tokens", "max_completion_tokens"})
"""Names of an answer's limit, for which money is held."""
_REGIONS = frozenset({"aws_region_name", "oci_region", "region_name", "vertex_location", "watsonx_region_name"})
_CREDENTIAL_KEYS = ("api_key", "api_base", "api_version", "organization", *PROVIDER_PARAMS)
_HOSTS = frozenset({"api_base", "aws_bedrock_runtime_endpoint", "aws_sts_endpoint", "gigachat_auth_url"})
_OF_A_KEY = frozenset({"aws_external_id", "aws_role_name", "aws_session_name", "organization"})
"""What a key is used as: an entry may state it for the defaults' key, and is not given it for its own."""
_ACCESS = frozenset(_CREDENTIAL_KEYS) - _REGIONS - {
    "api_version", "custom_llm_provider", "project_id", "space_id", "vertex_project",
}  # fmt: skip
"""Hosts, and the keys for them: together an entry's own or together the defaults'."""
_KINDS: Mapping[str, str] = (
    dict.fromkeys(HEADER_KEYS, "headers") | dict.fromkeys(_LIMITS, "limit") | dict.fromkeys(_REGIONS, "region")
)
"""What several keys state: one of them in an entry stands before any of them in its credential or the defaults."""
_AZURE = frozenset({"azure", "azure_ai", "azure_text"})
_VERSIONED = _AZURE | {"watsonx"}
"""Providers whose addresses have an `api_version`."""


def read_model_list(document: Section) -> tuple[ModelEntry, ...]:
    """All readable entries; the others are problems in the document's findings."""
    credentials = _read_credentials(document)
    located = document.items("model_list")
    if not located and not document.has("model_list"):
        document.findings.problem(document.path("model_list"), "expected at least one model, got nothing")
    elif not located:
        document.findings.problem(document.path("model_list"), "expected at least one model")
    defaults = document.section("router_settings").section("default_litellm_params")
    if defaults.has("model"):
        defaults.ignore("model", "not a default: every entry names its own model; it is ignored")
    _use_first_names(defaults)
    _add_credential(defaults, credentials)
    entries = tuple(entry for item in located for entry in _read_entry(document, item, credentials, defaults))
    _check_ids(entries, document.findings)
    return entries


def _read_entry(
    document: Section, located: Located, credentials: Mapping[str, Section], defaults: Section
) -> tuple[ModelEntry, ...]:
    """The deployment of an item, or one for each of its organizations; none if it is invalid or no model."""
    if not isinstance(located.raw, dict):
        document.nested(located)
        return ()
    section = document.nested(located)
    name = section.text("model_name")
    if name is None and not section.has("model_name"):
        section.findings.problem(section.path("model_name"), "expected a text, got nothing")
    params_section = section.section("litellm_params")
    info_section = section.section("model_info")
    limits = {key: section.optional_integer(key, minimum=1) for key in ("rpm", "tpm")}
    _use_first_names(params_section)
    _add_credential(params_section, credentials)
    _add_defaults(params_section, defaults, {key for key, limit in limits.items() if limit is not None})
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
        params = replace(params, rpm=params.rpm or limits["rpm"], tpm=params.tpm or limits["tpm"])
    if params is not None:
        params = replace(params, request_defaults=_read_request_defaults(params_section, info_section))
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
            section.findings.problem(section.path(key), "a price: expected under litellm_params or model_info")
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
    return tuple(ModelEntry(located.where, name, replace(params, organization=o), info) for o in organizations)


def _use_first_names(section: Section) -> None:
    """Rename LiteLLM's second names. The first name wins, as in LiteLLM; two addresses are a problem."""
    for other, name in OTHER_NAMES.items():
        found = section.entries.pop(other, None)
        if found is None or found.raw is None:
            continue
        if not section.has(name):
            section.entries[name] = found
        elif name == "api_base" and section.entries[name].raw != found.raw:
            section.findings.problem(found.where, f"a second name of {name}, which has another value: write one")


def _stated(section: Section) -> set[str]:
    return {_KINDS.get(key, key) for key in section.entries if section.has(key)}


def _add_credential(section: Section, credentials: Mapping[str, Section]) -> None:
    """Add the values of the credential that a section names and does not state itself, each with its own path."""
    credential = _credential(section, credentials)
    section.entries.pop("litellm_credential_name", None)
    stated = _stated(section)
    for key, found in () if credential is None else credential.entries.items():
        if key in _CREDENTIAL_KEYS and _KINDS.get(key, key) not in stated:
            section.entries[key] = found


def _add_defaults(params: Section, defaults: Section, stated_beside: set[str]) -> None:
    """Add the defaults of all deployments that this one and its credential do not state, each with its own path.

    A key is for a host: an entry with either of its own is given neither of the defaults'.
    """
    stated = _stated(params) | stated_beside
    own = sorted(stated & _ACCESS - _OF_A_KEY)
    for key, found in defaults.entries.items():
        kind = _KINDS.get(key, key)
        if kind in stated or key == "model":
            continue
        if (own and key in _ACCESS) or (kind == "headers" and stated & _HOSTS):
            params.findings.warn(
                params.where,
                f"has its own {', '.join(own)}, so router_settings.default_litellm_params.{key} is not used here: a "
                "host and its key belong together; state both in the entry",
            )
        else:
            params.entries[key] = found


def _is_one_model(section: Section, name: str, params: ModelParams) -> bool:
    """True for a callable model; reports a wildcard or a LiteLLM router."""
    if "*" in name or "*" in params.model:
        section.findings.problem(
            section.path("model_name"),
            f'"{name if "*" in name else params.model}" is a wildcard: write one entry for each model, because the '
            "policy chooses among named models with known prices",
        )
        return False
    if params.model.startswith("auto_router/"):
        section.findings.warn(
            section.path("model_name"), 'a router of LiteLLM; it is ignored: clients ask for "auto" here'
        )
        return False
    return True


_NEVER_SENT = ("_", "health_check_")
"""Beginnings of LiteLLM's own names: its marks on a call, and how it probes a deployment."""
_FOREIGN_LIMITS = _LIMITS | {
    "max_output_tokens", "max_new_tokens", "max_tokens_to_sample", "max_gen_len", "maxOutputTokens", "maxTokens",
    "num_predict", "n_predict",
}  # fmt: skip
"""Names of the same limit in providers' own requests, at any depth of them."""


_SCHEMA_NAMES = (".properties", ".$defs")
"""Ends of the paths of objects whose names are those of a JSON schema's author."""


def _unheld_in(body: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The paths of all fields of a provider's own request that would cost more than is held, each with the reason."""
    if isinstance(body, list):
        for place, each in enumerate(body):
            yield from _unheld_in(each, f"{path}[{place}]")
    elif isinstance(body, dict):
        for name, value in body.items():
            if path.endswith(_SCHEMA_NAMES):
                yield from _unheld_in(value, f"{path}.{name}")
            elif name in _FOREIGN_LIMITS:
                yield (
                    f"{path}.{name}",
                    "would exceed what is held for an answer: write litellm_params.max_tokens instead",
                )
            elif why := litellm_keys.unheld(name, value, nested=bool(path)):
                yield f"{path}.{name}", f"cannot be a default: {why}"
            else:
                yield from _unheld_in(value, f"{path}.{name}")


def _refuse_unheld(section: Section, key: str, body: Mapping[str, Any], above: str = "") -> None:
    """Report what could make a bill higher than its hold; `above` is the part of the paths that `key` stands for."""
    for path, why in sorted(_unheld_in(body)):
        section.findings.problem(section.path(key) + path.removeprefix(above), why)


def _read_request_defaults(section: Section, info: Section) -> Mapping[str, Any]:
    """The remaining `litellm_params`: request parameters, including those only the provider knows."""
    defaults: dict[str, Any] = {}
    extra = section.json("extra_body")
    if extra is not None and not isinstance(extra, dict):
        section.findings.problem(section.path("extra_body"), f"expected a mapping, got {shown(extra)}")
    elif extra:
        _refuse_unheld(section, "extra_body", extra)
        defaults["extra_body"] = extra
    for key in sorted(_LIMITS):
        limit = section.optional_integer(key, minimum=1)
        if limit is not None:
            defaults[key] = limit
    known = {*litellm_keys.IGNORED["litellm_params"], *litellm_keys.PROTECTIONS["litellm_params"]}
    of_info = {*litellm_keys.IGNORED["model_info"], *litellm_keys.PROTECTIONS["model_info"], *info.read()}
    for key in section.unread():
        if key in known:
            if key in litellm_keys.PRICED_PARAMETERS and litellm_keys.costs_nothing(key, section.entries[key].raw):
                section.ignore(key, "what every request is held for; it is ignored")
            continue
        if key not in litellm_keys.REQUEST_PARAMETERS and key not in KNOWN_FIELDS:
            if key in of_info or key.startswith(_NEVER_SENT):
                _refuse_or_ignore(section, key)
                continue
            if section.refuse_misspelt(key):
                section.skip(key)
                continue
            section.findings.warn(section.path(key), "unknown parameter; it is sent to the provider unchanged")
        value = section.json(key)
        if key != "service_tier":
            _refuse_unheld(section, key, {key: value}, f".{key}")
        if key in OWN_FIELDS:
            section.findings.warn(section.path(key), "every request has its own; it is ignored")
            continue
        if value is not None:
            try:
                defaults[key] = read_default(key, value)
            except InvalidRequest as error:
                _report_type(section, key, value, error)
                continue
            for path in left_out(value, defaults[key]):
                where = section.path(key) + path
                section.findings.warn(where, "not sent: the parameter has no such field; extra_body may have any")
    return defaults


def _report_type(section: Section, key: str, value: Any, error: InvalidRequest) -> None:
    """Report a request parameter of another type than the schema's, at its place within the value as it is written."""
    expected, place, got = str(error).partition(": expected ")[2], "", value
    for step in re.findall(r"\.[^.\[]+|\[[^\]]*\]", (error.param or key).removeprefix(key)):
        if step.startswith("."):
            if got is not None and not isinstance(got, dict):
                expected = f"an object whose {step[1:]} is {expected}"
                break
            got = None if got is None else got.get(step[1:])
        else:
            got = None  # one of several
        place += step
    alike = "a list" if isinstance(got, list) else "an object" if isinstance(got, dict) else None
    found = "" if got is None or (alike is not None and alike in expected) else f", got {shown(got)}"
    section.findings.problem(section.path(key) + place, f"expected {expected}{found}")


def _refuse_or_ignore(section: Section, key: str) -> None:
    """Report a key that describes the model and would be no parameter of a request."""
    if key in litellm_keys.PROTECTIONS["model_info"] and section.entries[key].raw:
        section.findings.problem(section.path(key), "cannot be ignored: it belongs under model_info")
        section.skip(key)
    else:
        section.ignore(key, "not a parameter of a request: it belongs under model_info; it is ignored")


def _checked_name(section: Section, name: str) -> str | None:
    if name == "auto" or name.startswith("auto@"):
        section.findings.problem(section.path("model_name"), f'"{name}" is reserved: it lets the policy choose')
        return None
    if len(name) > MAX_MODEL_NAME_CHARS or not name.isprintable():
        section.findings.problem(
            section.path("model_name"), f"expected at most {MAX_MODEL_NAME_CHARS} printable characters"
        )
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
    if model is None and not section.has("model"):
        section.findings.problem(section.path("model"), 'expected "provider/model", got nothing')
    found = {key: _read_credential(section, key) for key in _CREDENTIAL_KEYS if key != "organization"}
    values = {key: value for key, value in found.items() if value is not None}
    weight = section.decimal("weight")
    provider = _plain(values.get("custom_llm_provider")) or (model or "").partition("/")[0]
    api_base, api_version = _checked_url(section, values.get("api_base"), provider)
    if "api_version" in values and provider not in _VERSIONED and section.path("api_version").startswith(section.where):
        section.findings.warn(
            section.path("api_version"), "not sent: only the addresses of Azure and watsonx have a version"
        )
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
        section.findings.problem(
            section.path("api_base"), "expected http(s)://host[:port][/path] without query or fragment"
        )
        return None, None
    return url.rstrip("/"), None if version is None else version[1]


def _read_headers(section: Section) -> Mapping[str, Secret]:
    found: dict[str, Secret] = {}
    for headers, name in [(part, name) for part in map(section.section, HEADER_KEYS) for name in part.names()]:
        value = headers.secret(name)
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) is None:
            headers.findings.problem(headers.path(name), "expected the name of an HTTP header")
        elif why := litellm_keys.unheld_header(name):
            headers.findings.problem(headers.path(name), f"cannot be a default: {why}")
        elif value is not None and not (value.reveal().isascii() and value.reveal().isprintable()):
            headers.findings.problem(headers.path(name), "expected printable ASCII characters")
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
    )


def _read_efforts(section: Section) -> Mapping[str, float | None]:
    """`efforts`: a list of levels, or a mapping of levels to their `quality_prior`."""
    stated = section.json("efforts")
    if stated is None:
        return {}
    efforts = dict.fromkeys(stated) if isinstance(stated, list) and all(isinstance(e, str) for e in stated) else stated
    if not isinstance(efforts, dict) or not efforts.keys() <= set(EFFORTS):
        section.findings.problem(
            section.path("efforts"), f"expected some of {', '.join(EFFORTS)}, or each with its quality_prior"
        )
        return {}
    for level, prior in efforts.items():
        number = isinstance(prior, int | float) and not isinstance(prior, bool)
        if prior is not None and not (number and 0 <= prior <= 1):
            where = section.path(f"efforts.{level}")
            section.findings.problem(where, f"expected a number from 0 to 1, got {shown(prior)}")
            return {}
    return {level: efforts[level] for level in EFFORTS if level in efforts}


def _read_credentials(document: Section) -> Mapping[str, Section]:
    credentials: dict[str, Section] = {}
    for located in document.items("credential_list"):
        section = document.nested(located)
        name = section.text("credential_name")
        values = section.section("credential_values")
        section.section("credential_info").ignore_all()
        section.finish()
        if name is None:
            section.findings.problem(section.path("credential_name"), "expected a text, got nothing")
        elif name in credentials:
            section.findings.problem(section.path("credential_name"), f'"{name}" is listed twice')
        else:
            credentials[name] = values
            _use_first_names(values)
            for key in values.names():
                if key not in _CREDENTIAL_KEYS:
                    values.ignore(key, "a LiteLLM key that is not supported here; it is ignored")
    return credentials


def _credential(section: Section, credentials: Mapping[str, Section]) -> Section | None:
    name = section.text("litellm_credential_name")
    if name is not None and name not in credentials:
        known = ", ".join(sorted(credentials)) or "none"
        section.findings.problem(
            section.path("litellm_credential_name"), f'expected a name of credential_list ({known}), got "{name}"'
        )
    return credentials.get(name) if name is not None else None


def _check_ids(entries: tuple[ModelEntry, ...], findings: Findings) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        wanted = entry.info.deployment_id
        if wanted is None:
            continue
        if wanted in seen:
            findings.problem(f"{entry.where}.model_info.id", f'"{wanted}" is already the id of {seen[wanted]}')
        seen[wanted] = entry.where
