"""The hosts of Claude's Messages, and what each of them has of Anthropic's own servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from gateway.catalog.hosted_tools import searching

ClaudeHost = Literal["anthropic", "bedrock", "vertex_ai", "azure_ai"]

CLIENT_TOOLS = "messages_api.client_tools"
"""The capability of Anthropic's tools that the client runs: bash, text_editor, computer, memory."""
SEARCH_RESULTS = "messages_api.search_results"
"""The capability of reading what an earlier search brought."""
SERVER_TOOLS = "messages_api.server_tools"
"""The capability of all other tools that Anthropic's servers run, of MCP servers and of containers."""
_SEARCHING = frozenset({CLIENT_TOOLS, SEARCH_RESULTS, searching("messages_api")})
_TOOLS: Mapping[ClaudeHost, frozenset[str]] = {
    "anthropic": _SEARCHING | {SERVER_TOOLS}, "azure_ai": _SEARCHING | {SERVER_TOOLS}, "vertex_ai": _SEARCHING,
    "bedrock": frozenset({CLIENT_TOOLS}),
}  # fmt: skip
_NAME = "claude"
_INVOKED = "invoke/"
_ARN = "arn:"


def claude_host(provider: str, model: str, base_model: str | None) -> ClaudeHost | None:
    """The host of a deployment that takes Messages; None for all others.

    At Bedrock those that LiteLLM would call by another route than InvokeModel do not: `converse/` and a region before
    the name. Behind an ARN `base_model` says that there is a Claude.
    """
    name = model.lower().removeprefix(f"{provider}/")
    if provider == "anthropic":
        return "anthropic"
    if provider == "bedrock":
        name = name.removeprefix(_INVOKED)
        names = f"{name} {(base_model or '').lower()}" if name.startswith(_ARN) else name
        return "bedrock" if _NAME in names and (name.startswith(_ARN) or "/" not in name) else None
    if provider == "vertex_ai":
        return "vertex_ai" if name.startswith(_NAME) else None
    return "azure_ai" if provider == "azure_ai" and _NAME in name else None


def tools_of(host: ClaudeHost) -> frozenset[str]:
    """The capabilities of a host beside Messages."""
    return _TOOLS[host]
