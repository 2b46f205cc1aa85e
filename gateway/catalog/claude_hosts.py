"""Hosts of Claude's Messages API, and what of Anthropic's own API each of them supports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from gateway.catalog.addresses import AWS_REGION
from gateway.catalog.hosted_tools import searching

ClaudeHost = Literal["anthropic", "bedrock", "vertex_ai", "azure_ai"]

AZURE_TOKEN = "azure_ad_token"
CLIENT_TOOLS = "messages_api.client_tools"
"""The capability of Anthropic's tools that the client runs: bash, text_editor, computer, memory."""
SEARCH_RESULTS = "messages_api.search_results"
"""The capability of reading the results of an earlier search."""
SERVER_TOOLS = "messages_api.server_tools"
"""The capability of all other tools that Anthropic's servers run, of MCP servers and of containers."""
_SEARCHING = frozenset({CLIENT_TOOLS, SEARCH_RESULTS, searching("messages_api")})
_TOOLS: Mapping[ClaudeHost, frozenset[str]] = {
    "anthropic": _SEARCHING | {SERVER_TOOLS}, "azure_ai": _SEARCHING | {SERVER_TOOLS}, "vertex_ai": _SEARCHING,
    "bedrock": frozenset({CLIENT_TOOLS}),
}  # fmt: skip
_UNFOLLOWED: Mapping[ClaudeHost, frozenset[str]] = {
    "anthropic": frozenset(), "bedrock": frozenset({"region_name"}), "vertex_ai": frozenset({"region_name"}),
    "azure_ai": frozenset({
        "azure_password", "azure_scope", "azure_username", "client_id", "client_secret", "tenant_id",
    }),
}  # fmt: skip
"""The operator's options that chat requests apply and Messages requests would ignore."""
_DEFAULTS = frozenset({
    "max_completion_tokens", "max_tokens", "reasoning_effort", "temperature", "thinking", "top_k", "top_p",
})  # fmt: skip
"""The operator's parameters that a Messages request can have; Anthropic itself accepts `service_tier` too."""
OIDC = "oidc/"
"""Prefix of a reference that is exchanged for an Azure token, which only chat requests do."""
_NAME = "claude"
INVOKE = "invoke/"
_ARN = "arn:"
_REGION = re.compile(rf"({AWS_REGION})/(.+)")


def claude_host(provider: str, model: str, base_model: str | None) -> ClaudeHost | None:
    """The host of a deployment that takes Messages; None for all others.

    At Bedrock only those that LiteLLM calls by InvokeModel take them, not `converse/`. A region may stand before the
    name. An ARN may not name its model, and then `base_model` must name a Claude.
    """
    name = model.lower().removeprefix(f"{provider}/")
    if provider == "anthropic":
        return "anthropic"
    if provider == "bedrock":
        name = placed(name)[1]
        names = f"{name} {(base_model or '').lower()}" if name.startswith(_ARN) else name
        return "bedrock" if _NAME in names and (name.startswith(_ARN) or "/" not in name) else None
    if provider == "vertex_ai":
        return "vertex_ai" if name.startswith(_NAME) else None
    return "azure_ai" if provider == "azure_ai" and _NAME in name else None


def placed(model: str) -> tuple[str | None, str]:
    """The region before a name of Bedrock's, if there is one, and the name.

    `invoke/` may stand on either side of the region.
    """
    name = model.removeprefix(INVOKE)
    found = _REGION.fullmatch(name)
    return (None, name) if found is None else (found[1], found[2].removeprefix(INVOKE))


def carries(host: ClaudeHost, defaults: Iterable[str], options: Mapping[str, str]) -> bool:
    """True if Messages at the host apply all of the operator's parameters and options.

    Otherwise a guardrail among them would have no effect: such a deployment gets its requests translated to chat.
    """
    known = _DEFAULTS | {"service_tier"} if host == "anthropic" else _DEFAULTS
    exchanged = options.get(AZURE_TOKEN, "").startswith(OIDC)
    return known.issuperset(defaults) and _UNFOLLOWED[host].isdisjoint(options) and not exchanged


def tools_of(host: ClaudeHost) -> frozenset[str]:
    """The capabilities of a host in addition to Messages."""
    return _TOOLS[host]
