"""Requests of `POST /v1/responses`: OpenAI's Responses body as a chat body.

https://platform.openai.com/docs/api-reference/responses. `instructions` and input items become messages, flat tools
become chat tools. Free-form (`custom`) tools and tools in namespaces become functions, so every model can call them;
responses use their own kind and name. A request with tools that OpenAI's servers run is forwarded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.dialects.fields import copied, need, objects, read, refuse_sounds, refused
from gateway.dialects.forwarded import ForwardedRequest
from gateway.dialects.pictures import names_own_picture
from gateway.dialects.responses_forwarded import forwarded_request
from gateway.dialects.responses_items import MessageBuilder
from gateway.dialects.responses_schema import ResponsesBody
from gateway.dialects.responses_tools import OfferedTool, choice_of, offered_tools
from gateway.dialects.responses_unsent import unsent
from gateway.dialects.session_names import session_hint
from gateway.errors import InvalidRequest
from gateway.schema.reader import check_body

_PLAIN: Mapping[str, str] = {
    "model": "model", "temperature": "temperature", "top_p": "top_p", "stream": "stream", "user": "user",
    "safety_identifier": "safety_identifier", "prompt_cache_key": "prompt_cache_key", "metadata": "metadata",
    "prompt_cache_retention": "prompt_cache_retention", "service_tier": "service_tier",
    "max_output_tokens": "max_tokens", "parallel_tool_calls": "parallel_tool_calls", "top_logprobs": "top_logprobs",
}  # fmt: skip
_ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "metadata", "previous_response_id", "prompt_cache_key",
    "parallel_tool_calls", "reasoning", "safety_identifier", "temperature", "text", "tool_choice", "tools", "top_p",
    "top_logprobs", "truncation", "user",
)  # fmt: skip
_TRANSLATED = (frozenset(_PLAIN) | frozenset(_ECHOED)) - {"max_tool_calls"}  # which counts hosted tools' calls
OWN_NAMES: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_output_tokens",), "reasoning_effort": ("reasoning.effort",),
    "response_format": ("text.format",), "verbosity": ("text.verbosity",),
    "logprobs": ("include.message.output_text.logprobs",),
}  # fmt: skip
"""The names in this dialect of the chat body's parameters."""


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A Responses request: the equivalent chat body, and data for its response and storage."""

    chat: dict[str, Any]
    tools: Mapping[str, OfferedTool]
    echoed: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    """All items of the conversation: earlier ones and this request's."""
    store: bool = True
    dropped: tuple[str, ...] = field(default=())
    forwarded: ForwardedRequest | None = None


def input_items(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The request's input as items; a string is one user message. Raises InvalidRequest."""
    given = fields.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        raise refused("input", "expected a string or a list of items")
    return objects(given, "input")


def is_reference(item: Mapping[str, Any]) -> bool:
    """True for an item that names a stored one; its type may be left out."""
    given = {name for name, value in item.items() if value is not None}
    return item.get("type") == "item_reference" or given == {"id"} or names_own_picture(item)


def referenced_ids(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Ids of referenced items, which must be resolved before `to_chat`."""
    return [need(item, "id", str, f"input[{index}].") for index, item in enumerate(items) if is_reference(item)]


def stores(fields: Mapping[str, Any]) -> bool:
    """True unless the request sets `store: false`."""
    return read(fields, "store", bool) is not False


def to_chat(
    fields: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = (), *, whole: bool = False
) -> ResponsesRequest:
    """The chat body of a Responses body; `earlier` are the items of the continued conversation.

    `whole`: there are models to which it can go as it came, without a hosted tool too.

    `fields["input"]` must have no item references. Raises InvalidRequest with the Responses field name.
    """
    _check(fields)
    own = input_items(fields)
    offered = offered_tools(fields.get("tools") or (), codex="client_metadata" in fields)
    conversation = MessageBuilder()
    if fields.get("instructions"):
        conversation.system(fields["instructions"])
    conversation.add_all(earlier, "previous_response_id")
    conversation.add_all(own, "input")
    messages = conversation.messages()
    if not messages:
        raise refused("input", "expected a string or at least one item")
    chat: dict[str, Any] = copied(fields, _PLAIN)
    chat["messages"] = messages
    if offered.tools:
        chat["tools"] = offered.tools
    if offered.tools or offered.hosted:
        chat |= choice_of(fields.get("tool_choice"), offered)
    chat |= _shape(fields)
    if "message.output_text.logprobs" in (fields.get("include") or ()):
        chat["logprobs"] = True
    else:
        chat.pop("top_logprobs", None)
    options = fields.get("stream_options") or {}
    if "include_obfuscation" in options and fields.get("stream"):
        chat["stream_options"] = {"include_obfuscation": options["include_obfuscation"]}
    session = _session(fields)
    if session:
        chat["session_id"] = session
    needed = (*offered.hosted, *conversation.hosted)
    lost = (*unsent(fields, own, _TRANSLATED), *(f"tools.{tool.kind}" for tool in offered.optional))
    found = (*needed, *offered.optional)
    forwarded = None
    if found or whole:
        try:
            forwarded = forwarded_request(
                fields, [*earlier, *own], found, required=bool(needed), lost=lost, known_items=len(earlier)
            )
        except InvalidRequest:
            if needed:
                raise  # else it is translated, which has what cannot go to OpenAI
    return ResponsesRequest(
        chat=chat,
        tools=offered.by_name,
        echoed={name: fields[name] for name in _ECHOED if fields.get(name) is not None},
        items=[*earlier, *own],
        store=stores(fields),
        dropped=lost,
        forwarded=forwarded,
    )


def _check(fields: Mapping[str, Any]) -> None:
    """Check types and bounds, and refuse what is not served. Raises InvalidRequest."""
    check_body(fields, ResponsesBody)
    refuse_sounds(fields)
    if fields.get("background"):
        raise refused("background", "background responses are not served; leave it out and wait for the answer")
    if fields.get("prompt") is not None:
        raise refused("prompt", "stored prompts are kept by OpenAI and not served here; send instructions and input")


def _shape(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`text` and `reasoning` as chat parameters."""
    text, reasoning = fields.get("text") or {}, fields.get("reasoning") or {}
    chat: dict[str, Any] = {}
    verbosity, effort = text.get("verbosity"), reasoning.get("effort")
    if verbosity:
        chat["verbosity"] = verbosity
    if effort:
        chat["reasoning_effort"] = effort
    shape = text.get("format") or {"type": "text"}
    if shape["type"] != "json_schema":
        return chat if shape["type"] == "text" else chat | {"response_format": {"type": "json_object"}}
    need(shape, "name", str, "text.format.")
    need(shape, "schema", dict, "text.format.")
    names = ("name", "description", "schema", "strict")
    schema = {name: shape[name] for name in names if shape.get(name) is not None}
    return chat | {"response_format": {"type": "json_schema", "json_schema": schema}}


def _session(fields: Mapping[str, Any]) -> str | None:
    """The session id in the body: our field, Codex's client metadata, or another name of it."""
    named = [fields.get("session_id"), fields.get("litellm_session_id")]
    named.append((fields.get("client_metadata") or {}).get("session_id"))
    found = next((value for value in named if isinstance(value, str) and value), None)
    return session_hint(fields) if found is None else found
