"""The schema of Messages bodies: types and bounds of all outside the messages' content.

Errors name Anthropic's fields (`stop_sequences`, `tools[0].description`), so that no translated request is refused
under chat's names. Blocks are checked where they are translated, because their fields depend on their type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta, Struct

from gateway.schema.shapes import (
    MAX_MESSAGES,
    MOST_STOPS,
    MOST_TOOLS,
    CacheControl,
    Count,
    Name,
    Share,
    Temperature,
    Tokens,
)

Effort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]


class OfferedMessagesTool(TypedDict, total=False):
    """A tool of the client's own, or one of Anthropic's, whose other fields are its own."""

    type: str | None
    name: str | None
    description: str | None
    input_schema: dict[str, Any] | None
    strict: bool | None
    cache_control: CacheControl | None


class MessagesToolChoice(TypedDict, total=False):
    """The tools that may be called."""

    type: Required[Literal["auto", "any", "tool", "none"]]
    name: str | None
    disable_parallel_tool_use: bool | None


class MessagesThinking(TypedDict, total=False):
    """Permission to think, and its length."""

    type: Required[Literal["adaptive", "enabled", "disabled"]]
    budget_tokens: Count | None
    display: str | None


class OutputFormat(TypedDict, total=False):
    """A JSON schema for the answer."""

    type: Required[Literal["json_schema"]]
    schema: Required[dict[str, Any]]


class OutputConfig(TypedDict, total=False):
    """Effort and format of the answer."""

    effort: Effort | None
    format: OutputFormat | None


class MessagesMetadata(TypedDict, total=False):
    """The person, or what Claude Code packs into its id."""

    user_id: str | None


class CountedBody(Struct, kw_only=True):
    """A body of `/v1/messages/count_tokens`."""

    model: Name
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[dict[str, Any]] | None = None
    tools: Annotated[list[OfferedMessagesTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: MessagesThinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: MessagesMetadata | None = None
    mcp_servers: list[dict[str, Any]] | None = None
    container: str | dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    cache_control: CacheControl | None = None
    service_tier: str | None = None
    inference_geo: str | None = None


class MessagesBody(CountedBody, kw_only=True):
    """A body of `/v1/messages`."""

    max_tokens: Tokens
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MOST_STOPS)] | None = None
