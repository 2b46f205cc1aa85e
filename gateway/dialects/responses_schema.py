"""The schema of Responses bodies: types and bounds of everything outside the input's items.

Errors name this dialect's fields (`max_output_tokens`, `text.format.strict`), so that no translated request is refused
under chat's names. Items are checked where they are translated, because their fields depend on their type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta, Struct

from gateway.schema.reader import check_body
from gateway.schema.shapes import MOST_TOOLS, Name, Share, Temperature, Tokens

_MOST_CALLS = 10_000


class OfferedResponsesTool(TypedDict, total=False):
    """A tool; hosted ones have other fields of their own."""

    type: Required[str]
    name: str | None
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None
    format: dict[str, Any] | None
    tools: list[dict[str, Any]] | None


def check_tool(tool: dict[str, Any]) -> None:
    """Check a tool inside a namespace. Raises InvalidRequest."""
    check_body(tool, OfferedResponsesTool)


class ResponsesToolChoice(TypedDict, total=False):
    """The object form of `tool_choice`."""

    type: Required[str]
    name: str | None
    namespace: str | None
    mode: Literal["auto", "required"] | None
    tools: list[dict[str, Any]] | None


class TextFormat(TypedDict, total=False):
    """The requested format of the text."""

    type: Required[Literal["text", "json_object", "json_schema"]]
    name: str | None
    description: str | None
    schema: dict[str, Any] | None
    strict: bool | None


class TextConfig(TypedDict, total=False):
    """Format and length of the text."""

    format: TextFormat | None
    verbosity: str | None


class ResponsesReasoning(TypedDict, total=False):
    """The effort of reasoning, and its summary."""

    effort: str | None
    summary: str | None
    generate_summary: str | None


class ConversationName(TypedDict, total=False):
    """The conversation that a response belongs to."""

    id: Required[str]


class ResponsesStreamOptions(TypedDict, total=False):
    """Options of a stream; the usage is in its last event anyway."""

    include_obfuscation: bool | None
    include_usage: bool | None


class ResponsesBody(Struct, kw_only=True):
    """A body of `/v1/responses`."""

    model: Name
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationName | None = None
    include: list[str] | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=_MOST_CALLS)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[OfferedResponsesTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ResponsesReasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    session_id: str | None = None
    litellm_session_id: str | None = None
