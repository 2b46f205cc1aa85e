"""Requests of `POST /v1/messages`: Anthropic's body as a chat body.

https://docs.claude.com/en/api/messages. Everything that a chat request can express is translated, for models of every
provider; a Claude model at an `anthropic/` deployment is sent the request as it was written instead. One for features
of Anthropic's servers (their tools, MCP servers, containers) is only forwarded; files by id are refused, because they
belong to the operator's account. Fields for the client's side or Anthropic's billing are dropped and named in
`dropped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.catalog.hosted_tools import kind_of
from gateway.dialects.fields import copied, names_of, need, refused, unknown, within
from gateway.dialects.forwarded import ForwardedRequest, HostedTool
from gateway.dialects.messages_content import conversation, marked, marked_last, shown_kind, unbilled
from gateway.dialects.messages_forwarded import forwarded_request
from gateway.dialects.messages_schema import CountedBody, MessagesBody, OfferedMessagesTool
from gateway.dialects.messages_unsent import unsent_inside
from gateway.dialects.session_names import SESSION_FIELDS, session_hint, session_in_user_id
from gateway.errors import InvalidRequest, NotFound
from gateway.schema.reader import check_body
from gateway.unchecked import at

_PLAIN: Mapping[str, str] = {
    "model": "model", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stream": "stream",
    "stop_sequences": "stop", "max_tokens": "max_tokens",
}  # fmt: skip
_SERVED = ("mcp_servers", "container")
"""Fields that only Anthropic's servers understand."""
_KNOWN = frozenset(_PLAIN) | frozenset(SESSION_FIELDS) | frozenset(_SERVED) | {
    "messages", "system", "tools", "tool_choice", "metadata", "thinking", "output_config", "output_format",
    "cache_control",
}  # fmt: skip
_OWN_TOOL = (None, "custom")
MESSAGES_TOOL_FIELDS = names_of(OfferedMessagesTool)
_LEGACY_SESSION = "_session_"
# LiteLLM's and Anthropic's mapping from a thinking budget to an effort.
_EFFORTS = ((2_048, "low"), (8_192, "medium"))
_HIGHEST = ("xhigh", "max")


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """An Anthropic request: its chat body, stop sequences, dropped fields, forwarded form."""

    chat: dict[str, Any]
    stop_sequences: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    forwarded: ForwardedRequest | None = None
    thinks: bool = True
    """False: the client turned thinking off."""
    own_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Anthropic's names of the chat body's parameters."""


def to_chat(fields: Mapping[str, Any], *, counting: bool = False, betas: str = "") -> MessagesRequest:
    """The chat body of an Anthropic body. Raises InvalidRequest (with its name), NotFound.

    `counting`: the body is for `/v1/messages/count_tokens`, which has no `max_tokens`. `betas`: the header
    `anthropic-beta`, which is passed on with what is forwarded.
    """
    _refuse_missing_conversation(fields)
    check_body(fields, CountedBody if counting else MessagesBody)
    hosted = [HostedTool(name, name) for name in _SERVED if fields.get(name)]
    stops = () if counting else fields.get("stop_sequences") or ()
    chat: dict[str, Any] = {"model": fields["model"]} if counting else copied(fields, _PLAIN)
    chat["messages"] = conversation(fields.get("system"), fields["messages"], hosted)
    if not chat["messages"]:
        raise refused("messages", "expected a message with content")
    chat["messages"][-1] = marked_last(chat["messages"][-1], fields)
    chat |= _tools(fields, hosted)
    chat |= _output(fields)
    chat |= _person(fields.get("metadata") or {})
    session = session_hint(fields)
    if session is not None:
        chat["session_id"] = session
    if not stops:
        chat.pop("stop", None)
    dropped = _unsent(fields)
    forwarded = None
    if not counting:
        system = unbilled(fields.get("system"))
        try:
            forwarded = forwarded_request(fields, hosted, betas, dropped, system, chat.get("user"))
        except InvalidRequest:
            if hosted:
                raise  # else it is translated, which has what Claude's servers refuse
    thinks = (fields.get("thinking") or {}).get("type") != "disabled"
    return MessagesRequest(chat, tuple(stops), dropped, forwarded, thinks, _own_names(fields))


def _refuse_missing_conversation(fields: Mapping[str, Any]) -> None:
    """Refuse what Anthropic's servers would do with a conversation that they hold, or with the whole of it.

    A thread may be lost at any time, and its clients then send the conversation whole. Raises NotFound, InvalidRequest.
    """
    if at(fields.get("thread"), "type") == "continue":
        raise NotFound(
            'thread: no conversation is held here; send all of it, with {"type": "create"} or without thread',
            param="thread",
            details={"details": {"error_code": "thread_not_found"}},
        )
    if fields.get("compaction") is not None:
        raise refused("compaction", "conversations are compacted by Anthropic only; ask a model for a summary instead")


def _own_names(fields: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """The fields that this body's chat parameters come from; one may come from several."""
    config, thinking = fields.get("output_config") or {}, fields.get("thinking")
    efforts = {"thinking": thinking, "output_config.effort": config.get("effort")}
    return {
        "stop": ("stop_sequences",),
        "reasoning_effort": tuple(name for name, value in efforts.items() if value),
        "response_format": ("output_config.format" if config.get("format") else "output_format",),
        "parallel_tool_calls": ("tool_choice.disable_parallel_tool_use",),
        "user": ("metadata.user_id",),
    }


def _tools(fields: Mapping[str, Any], hosted: list[HostedTool]) -> dict[str, Any]:
    tools, names = [], set()
    for index, tool in enumerate(fields.get("tools") or ()):
        kind = tool.get("type")
        if kind is not None and kind_of(kind, "messages_api") is not None:
            hosted.append(HostedTool(f"tools[{index}].type", kind))
            names.add(tool.get("name"))
            continue
        try:
            tools.append(chat_tool(tool))
        except InvalidRequest as error:
            raise within(f"tools[{index}]", error) from None
    chat: dict[str, Any] = {"tools": tools} if tools else {}
    choice = fields.get("tool_choice")
    if choice is None or not (tools or names):
        return chat
    if choice["type"] == "tool":
        name = need(choice, "name", str, "tool_choice.")
        if name in names:
            return chat  # a tool of Anthropic's, which is forwarded
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        chat["tool_choice"] = {"auto": "auto", "any": "required", "none": "none"}[choice["type"]]
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _unsent(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that are not translated."""
    unsent = unknown(fields, _KNOWN, "") | unsent_inside(fields)
    for tool in fields.get("tools") or ():
        if tool.get("type") in _OWN_TOOL:
            unsent |= unknown(tool, MESSAGES_TOOL_FIELDS, "tools[].")
    if fields.get("tool_choice") is not None and not fields.get("tools"):
        unsent.add("tool_choice")
    if (fields.get("output_config") or {}).get("effort") in _HIGHEST:
        unsent.add("output_config.effort")
    metadata = fields.get("metadata") or {}
    if metadata.get("user_id") and not _person(metadata):
        unsent.add("metadata.user_id")
    return tuple(sorted(unsent))


def chat_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool of the client's own as a chat function. Raises InvalidRequest."""
    kind = tool.get("type")
    if kind not in _OWN_TOOL:
        raise refused(
            "type", f"{shown_kind(kind)} is a tool of Anthropic's own and not served here; give a name and a schema"
        )
    function: dict[str, Any] = {"name": need(tool, "name", str)}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    function["parameters"] = need(tool, "input_schema", dict)
    return marked({"type": "function", "function": function}, tool)


def _output(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Thinking and effort as a reasoning effort; a schema as a response format."""
    config, thinking = fields.get("output_config") or {}, fields.get("thinking") or {}
    chat: dict[str, Any] = {}
    effort, kind = config.get("effort"), thinking.get("type")
    if kind == "enabled":
        budget = need(thinking, "budget_tokens", int, "thinking.")
        chat["reasoning_effort"] = effort or next((name for most, name in _EFFORTS if budget <= most), "high")
    elif effort is not None and kind != "disabled":
        chat["reasoning_effort"] = effort
    elif kind == "adaptive":
        chat["reasoning_effort"] = "medium"
    if chat.get("reasoning_effort") in _HIGHEST:
        chat["reasoning_effort"] = "high"  # the highest effort that all providers know
    shape = config.get("format") or fields.get("output_format")
    if shape is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": shape["schema"]}}
    return chat


def _person(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The session that Claude Code packs into `user_id`, in one of two forms, else the user."""
    user_id = metadata.get("user_id") or ""
    _, found, session = user_id.rpartition(_LEGACY_SESSION)
    session = session_in_user_id(user_id) or (session if found else None)
    if isinstance(session, str) and session:
        return {"session_id": session}
    return {"user": user_id} if user_id and not user_id.startswith("{") else {}
