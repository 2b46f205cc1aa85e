"""Access data that several deployments share: `credential_list`, `default_litellm_params`."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.config.model_entry import PROVIDER_PARAMS
from gateway.config.reader import Section
from gateway.config.request_defaults import LIMIT_KEYS

OTHER_NAMES: Mapping[str, str] = {
    "base_url": "api_base",
    "vertex_ai_project": "vertex_project",
    "vertex_ai_location": "vertex_location",
    "vertex_ai_credentials": "vertex_credentials",
}
"""LiteLLM's second names of access data, and the first ones."""

HEADER_KEYS = ("headers", "extra_headers")
"""LiteLLM's two names for the same setting; the later one wins."""

_REGIONS = frozenset({"aws_region_name", "oci_region", "region_name", "vertex_location", "watsonx_region_name"})
CREDENTIAL_KEYS = ("api_key", "api_base", "api_version", "organization", *PROVIDER_PARAMS)
_HOSTS = frozenset({"api_base", "aws_bedrock_runtime_endpoint", "aws_sts_endpoint", "gigachat_auth_url"})
_OF_A_KEY = frozenset({"aws_external_id", "aws_role_name", "aws_session_name", "organization"})
"""What a key is used as: an entry may state it for the defaults' key, and is not given it for its own."""
_ACCESS = frozenset(CREDENTIAL_KEYS) - _REGIONS - {
    "api_version", "custom_llm_provider", "project_id", "space_id", "vertex_project",
}  # fmt: skip
"""Hosts, and the keys for them: together an entry's own or together the defaults'."""
_KINDS: Mapping[str, str] = (
    dict.fromkeys(HEADER_KEYS, "headers") | dict.fromkeys(LIMIT_KEYS, "limit") | dict.fromkeys(_REGIONS, "region")
)
"""What several keys state: one of them in an entry stands before any of them in its credential or the defaults."""


def read_credentials(document: Section) -> Mapping[str, Section]:
    """The values of each credential of `credential_list`, by name."""
    credentials: dict[str, Section] = {}
    for located in document.items("credential_list"):
        section = document.nested(located)
        name = section.text("credential_name")
        values = section.section("credential_values")
        section.section("credential_info").ignore_all()
        section.finish()
        section.require("credential_name", "a string")
        if name is not None and name in credentials:
            section.problem("credential_name", f'"{name}" is listed twice')
        elif name is not None:
            credentials[name] = values
            use_first_names(values)
            for key in values.names():
                if key not in CREDENTIAL_KEYS:
                    values.ignore(key, "a LiteLLM key that is not supported here; it is ignored")
    return credentials


def _credential(section: Section, credentials: Mapping[str, Section]) -> Section | None:
    name = section.text("litellm_credential_name")
    if name is not None and name not in credentials:
        known = ", ".join(sorted(credentials)) or "none"
        section.problem("litellm_credential_name", f'expected a name of credential_list ({known}), got "{name}"')
    return credentials.get(name) if name is not None else None


def use_first_names(section: Section) -> None:
    """Rename LiteLLM's second names; the first wins, as there, but two addresses are a problem."""
    for other, name in OTHER_NAMES.items():
        found = section.entries.pop(other, None)
        if found is None or found.raw is None:
            continue
        if not section.has(name):
            section.entries[name] = found
        elif name == "api_base" and section.entries[name].raw != found.raw:
            section.findings.problem(
                found.where, f"a second name of {name}, which has another value: write only one of them"
            )


def _stated(section: Section) -> set[str]:
    return {_KINDS.get(key, key) for key in section.entries if section.has(key)}


def add_credential(section: Section, credentials: Mapping[str, Section]) -> None:
    """Add what a section does not state itself from the credential that it names.

    Each value keeps the path of its own place in the file.
    """
    credential = _credential(section, credentials)
    section.entries.pop("litellm_credential_name", None)
    stated = _stated(section)
    for key, found in () if credential is None else credential.entries.items():
        if key in CREDENTIAL_KEYS and _KINDS.get(key, key) not in stated:
            section.entries[key] = found


def add_defaults(params: Section, defaults: Section, stated_beside: set[str]) -> None:
    """Add the defaults of all deployments that neither this one nor its credential states.

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
