"""The dialect besides chat completions that a deployment's provider serves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.catalog.addresses import is_anthropic_address, is_openai_address, provider_of
from gateway.catalog.claude_hosts import ClaudeHost, carries, claude_host, tools_of
from gateway.catalog.hosted_tools import WEB_SEARCH, Api, searching
from gateway.config.model_entry import ModelEntry

_VERSION = re.compile(r"\bgpt-([3-9](?=\d)|\d+)(?:\.?(\d+))?(?![\d.])(?!.*search)")
"""Azure's names have no dot: gpt-35-turbo, gpt-41."""
_LISTED_AS: Mapping[str, str] = {"bedrock_converse": "bedrock"}
"""Provider as the price map lists it -> the provider, for models that are configured without one."""
_FUNCTIONS_ELSEWHERE = (5, 4)
"""From this version on, OpenAI's models that reason call functions only at /v1/responses."""


def own_api(entry: ModelEntry, known: Mapping[str, Any]) -> Api | None:
    """The dialect besides chat completions that the entry's provider serves; None: no other.

    Messages: at Claude's hosts. Responses: at OpenAI's address, for a model that the price map lists as OpenAI's, and
    where the operator says so by `supported_endpoints`, mode `responses`, or a hosted tool among the capabilities.
    """
    provider, info = provider_of(entry, known), entry.info
    if host_of(entry, known) is not None:
        return "messages_api"
    if provider != "openai":
        return None
    if info.supported_endpoints is not None:
        return "responses_api" if any(path.endswith("/responses") for path in info.supported_endpoints) else None
    ours = known.get("litellm_provider") == "openai" and known.get("mode") in ("chat", "responses")
    return "responses_api" if states_api(entry) or ours or is_openai_address(entry.params.api_base) else None


def host_of(entry: ModelEntry, known: Mapping[str, Any]) -> ClaudeHost | None:
    """The host that takes the entry's Messages, with the operator's parameters and options."""
    provider, params = provider_of(entry, known), entry.params
    host = claude_host(_LISTED_AS.get(provider, provider), params.model, entry.info.base_model)
    options = {name: value.reveal() for name, value in (params.provider_params or {}).items()}
    return host if host is not None and carries(host, params.request_defaults, options) else None


def capabilities_of(entry: ModelEntry, known: Mapping[str, Any]) -> frozenset[str]:
    """The capabilities that come with the provider's own dialect."""
    own, host = own_api(entry, known), host_of(entry, known)
    if own is None:
        return frozenset()
    return frozenset({own}) | ({searching(own)} if host is None else tools_of(host))


def calls_functions_in_own_api(model: str) -> bool:
    """True for a model that, while it reasons, calls functions only in OpenAI's Responses."""
    version = _VERSION.search(model)
    return version is not None and (int(version[1]), int(version[2] or 0)) >= _FUNCTIONS_ELSEWHERE


def runs_tools(entry: ModelEntry, own: Api, known: Mapping[str, Any]) -> bool:
    """True if the server surely runs hosted tools; others may have the dialect alone.

    It does at the provider's own address and at Claude's other hosts, and where the operator says that it searches the
    web.
    """
    base = entry.params.api_base
    if own == "messages_api" and provider_of(entry, known) != "anthropic":
        return True
    at_home = is_openai_address(base) if own == "responses_api" else is_anthropic_address(base)
    return at_home or bool(entry.info.capabilities.get(WEB_SEARCH))


def states_api(entry: ModelEntry) -> bool:
    """True if the operator says that an `openai/` deployment has Responses."""
    info = entry.info
    return (
        any(path.endswith("/responses") for path in info.supported_endpoints or ())
        or info.mode == "responses"
        or bool(info.capabilities.get(WEB_SEARCH))
    )
