"""Requests of `POST /v1/messages`: Anthropic's body as a chat body.

https://docs.claude.com/en/api/messages. Everything that a chat request can express is translated. A request for
features of Anthropic's servers (their tools, MCP servers, containers) is forwarded; files by id are refused, because
they belong to the operator's account. Fields for the client's side or Anthropic's billing are dropped and named in
`dropped`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.catalog.hosted_tools import kind_of
from gateway.dialects import carried
from gateway.dialects.arguments import checked_url
from gateway.dialects.fields import copied, need, objects, read, refused, unknown, within
from gateway.dialects.forwarded import ForwardedRequest, HostedTool, attach_hosted
from gateway.dialects.messages_forwarded import forwarded_request
from gateway.dialects.messages_schema import CountedBody, MessagesBody
from gateway.dialects.messages_unsent import unsent_inside
from gateway.dialects.request import SESSION_FIELDS, session_hint
from gateway.dialects.schema_reader import check_body
from gateway.errors import InvalidRequest

_PLAIN: Mapping[str, str] = {
    "model": "model", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stream": "stream",
    "stop_sequences": "stop", "max_tokens": "max_tokens",
}  # fmt: skip
_SERVED = ("mcp_servers", "container")
"""Fields that only Anthropic's servers understand."""
_KNOWN = frozenset(_PLAIN) | frozenset(SESSION_FIELDS) | frozenset(_SERVED) | {
    "messages", "system", "tools", "tool_choice", "metadata", "thinking", "output_config", "output_format",
}  # fmt: skip
_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "compaction")
_BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block. It names the build and would change every cached prefix."""
_OWN_TOOL = (None, "custom")
_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_LEGACY_SESSION = "_session_"
_PLAIN_RESULT = frozenset({"type", "tool_use_id", "content"})
# LiteLLM's and Anthropic's mapping from a thinking budget to an effort.
_EFFORTS = ((2_048, "low"), (8_192, "medium"))


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
    """The chat body of an Anthropic body. Raises InvalidRequest with Anthropic's field name.

    `counting`: the body is for `/v1/messages/count_tokens`, which has no `max_tokens`. `betas`: the header
    `anthropic-beta`, which is passed on with what is forwarded.
    """
    check_body(fields, CountedBody if counting else MessagesBody)
    hosted = [HostedTool(name, name) for name in _SERVED if fields.get(name)]
    stops = () if counting else fields.get("stop_sequences") or ()
    chat: dict[str, Any] = {"model": fields["model"]} if counting else copied(fields, _PLAIN)
    chat["messages"] = [*_system(fields.get("system"), "system"), *_messages(fields["messages"], hosted)]
    if not chat["messages"]:
        raise refused("messages", "expected a message with content")
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
    if hosted and not counting:
        system = _unbilled(fields.get("system"))
        forwarded = forwarded_request(fields, hosted, betas, dropped, system, chat.get("user"))
    thinks = (fields.get("thinking") or {}).get("type") != "disabled"
    return MessagesRequest(chat, tuple(stops), dropped, forwarded, thinks, _own_names(fields))


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


def _unbilled(system: object) -> object:
    """The system prompt without Claude Code's billing header."""
    if not isinstance(system, list):
        return system
    return [block for block in system if not str(block.get("text", "")).startswith(_BILLING)]


def _system(system: object, where: str) -> list[dict[str, Any]]:
    """The system prompt as one message; its blocks keep their cache marks."""
    if system is None:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}] if system else []
    parts = []
    for index, block in enumerate(objects(system, where)):
        if not str(block.get("text", "")).startswith(_BILLING):
            try:
                parts.append(_text(block))
            except InvalidRequest as error:
                raise within(f"{where}[{index}]", error) from None
    return [{"role": "system", "content": _simplest(parts)}] if parts else []


def _messages(messages: Sequence[Mapping[str, Any]], hosted: list[HostedTool]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        try:
            role, content = need(message, "role", str), message.get("content")
            if type(content) is not str and type(content) is not list:
                raise refused("content", "expected a string or a list of blocks")
            if role == "user":
                made += _user(content)
            elif role == "assistant":
                made.append(_assistant(content, f"messages[{index}].content", hosted))
            elif role == "system":
                made += _system(content, "content")
            else:
                raise refused("role", "expected user, assistant or system")
        except InvalidRequest as error:
            raise within(f"messages[{index}]", error) from None
    return made


# -- user messages -----------------------------------------------------------------------------------------------------


def _user(content: str | list[Any]) -> list[dict[str, Any]]:
    """Tool results become tool messages; the rest becomes a user message after them.

    Chat tool messages contain only text; images in a tool's result follow as parts of the user message.
    """
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    messages: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for index, block in enumerate(objects(content, "content")):
        try:
            if block.get("type") == "tool_result":
                message, shown = _tool_result(block)
                messages.append(message)
                pictures += shown
            else:
                parts += _content(block)
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
    if parts or pictures:
        messages.append({"role": "user", "content": _simplest([*pictures, *parts])})
    return messages


def _tool_result(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tool message of a result, and the images and files in it."""
    call_id = need(block, "tool_use_id", str)
    content = block.get("content")
    if type(content) is str and block.keys() <= _PLAIN_RESULT:  # almost every result
        return {"role": "tool", "tool_call_id": call_id, "content": content}, []
    shown: list[dict[str, Any]] = []
    if content is None or isinstance(content, str):
        texts: list[dict[str, Any]] = [{"type": "text", "text": content or ""}]
    else:
        parts = _parts(content)
        texts = [part for part in parts if part["type"] == "text"]
        shown = [part for part in parts if part["type"] != "text"]
        if shown:
            shown = [{"type": "text", "text": f"Pictures and files in the result of tool call {call_id}:"}, *shown]
            texts = texts or [{"type": "text", "text": "The result is in the next user message."}]
        texts = texts or [{"type": "text", "text": ""}]
    if read(block, "is_error", bool) and "error" not in texts[0]["text"][:64].lower():
        # Chat has no field for a failed call, so the text says it.
        texts[0] = texts[0] | {"text": "Error: " + texts[0]["text"]}
    texts[-1] = _marked(texts[-1], block)
    return {"role": "tool", "tool_call_id": call_id, "content": _simplest(texts)}, shown


def _parts(content: object) -> list[dict[str, Any]]:
    """The parts of a list of blocks in the field `content`."""
    parts: list[dict[str, Any]] = []
    for index, block in enumerate(objects(content, "content")):
        try:
            parts += _content(block)
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
    return parts


def _content(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    kind = block.get("type")
    if kind == "text":
        return [_text(block)]
    if kind == "image":
        return [_marked({"type": "image_url", "image_url": {"url": _picture(block)}}, block)]
    if kind == "document":
        *parts, last = _document(block)
        return [*parts, _marked(last, block)]
    if kind == "search_result":
        return _search_result(block)
    if kind == "tool_reference":
        return [_marked({"type": "text", "text": f"Tool: {need(block, 'tool_name', str)}"}, block)]
    raise refused("type", f"{_shown(kind)} is not served here; expected text, image, document or tool_result")


def _search_result(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A found text under its title and address; a part ends at each cache mark within it."""
    lines = [text for name in ("title", "source") if (text := read(block, name, str))]
    parts: list[dict[str, Any]] = []
    for index, inner in enumerate(objects(block.get("content"), "content")):
        try:
            if inner.get("type") != "text":
                raise refused("type", "expected text")
            part = _marked({"type": "text", "text": read(inner, "text", str) or ""}, inner)
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
        lines.append(part["text"])
        if "cache_control" in part:
            parts.append(part | {"text": "\n".join(lines)})
            lines = []
    if lines or not parts:
        parts.append({"type": "text", "text": "\n".join(lines)})
    parts[-1] = _marked(parts[-1], block)
    return parts


def _text(block: Mapping[str, Any]) -> dict[str, Any]:
    if block.get("type") != "text":
        raise refused("type", "expected text")
    return _marked({"type": "text", "text": need(block, "text", str)}, block)


def _picture(block: Mapping[str, Any]) -> str:
    source = need(block, "source", dict)
    if source.get("type") == "base64":
        media = need(source, "media_type", str, "source.")
        return f"data:{media};base64,{need(source, 'data', str, 'source.')}"
    if source.get("type") == "url":
        return checked_url(need(source, "url", str, "source."), "source.url")
    raise refused("source.type", f"{_shown(source.get('type'))} is not served here; expected base64 or url")


def _document(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A document's parts in their order, or the file; what is said about it comes first."""
    source = need(block, "source", dict)
    kind = source.get("type")
    title, context = read(block, "title", str), read(block, "context", str)
    head = [text for text in (title, context) if text]
    if kind == "text":
        return [{"type": "text", "text": "\n".join([*head, need(source, "data", str, "source.")])}]
    if kind == "content":
        inner = source.get("content")
        try:
            parts = [{"type": "text", "text": inner}] if isinstance(inner, str) else _parts(inner)
        except InvalidRequest as error:
            raise within("source", error) from None
        if head and parts and parts[0]["type"] == "text":
            parts[0] = parts[0] | {"text": "\n".join([*head, parts[0]["text"]])}
        elif head:
            parts = [{"type": "text", "text": "\n".join(head)}, *parts]
        return [part for part in parts if part.get("text") != ""] or [{"type": "text", "text": ""}]
    if kind == "base64":
        media = need(source, "media_type", str, "source.")
        data = need(source, "data", str, "source.")
        inline = {"filename": title or "document.pdf", "file_data": f"data:{media};base64,{data}"}
        file = {"type": "file", "file": inline}
        return [{"type": "text", "text": context}, file] if context else [file]
    raise refused("source.type", f"{_shown(kind)} is not served here; expected base64, text or content")


# -- assistant messages ------------------------------------------------------------------------------------------------


def _assistant(content: str | list[Any], where: str, hosted: list[HostedTool]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if isinstance(content, str):
        return message | {"content": content}
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for index, block in enumerate(objects(content, "content")):
        kind = block.get("type")
        try:
            if kind == "text":
                parts.append(_text(block))
            elif kind == "tool_use":
                calls.append(_tool_use(block))
            elif kind in ("thinking", "redacted_thinking"):
                _thinking(block, message, reasoning)
            elif kind in _SERVER_BLOCKS or (isinstance(kind, str) and kind.endswith("_tool_result")):
                hosted.append(HostedTool(f"{where}[{index}].type", kind))
                attach_hosted(message, block)
            else:
                raise refused("type", f"{_shown(kind)} is not served here; expected text, tool_use or thinking")
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
    message["content"] = _simplest(parts) if parts else (None if calls else "")
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    carried.attach_extra_content(message)
    return message


def _tool_use(block: Mapping[str, Any]) -> dict[str, Any]:
    call_id, name = need(block, "id", str), need(block, "name", str)
    arguments = orjson.dumps(read(block, "input", dict) or {}).decode()
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return _marked(call, block)


def _thinking(block: Mapping[str, Any], message: dict[str, Any], reasoning: list[str]) -> None:
    """Keep Anthropic's signed thinking; restore another provider's sealed state."""
    redacted = block.get("type") == "redacted_thinking"
    text = read(block, "thinking", str)
    mark = need(block, "data", str) if redacted else read(block, "signature", str) or ""
    state = carried.unseal(mark)
    if state is not None:
        carried.restore(message, state)
    elif mark:
        names = ("type", "data") if redacted else ("type", "thinking", "signature")
        kept = {name: block.get(name, "") for name in names}
        message.setdefault("thinking_blocks", []).append(kept)
        return
    if text:
        reasoning.append(text)


# -- tools and parameters ----------------------------------------------------------------------------------------------


def _tools(fields: Mapping[str, Any], hosted: list[HostedTool]) -> dict[str, Any]:
    tools, names = [], set()
    for index, tool in enumerate(fields.get("tools") or ()):
        kind = tool.get("type")
        if kind is not None and kind_of(kind, "messages_api") is not None:
            hosted.append(HostedTool(f"tools[{index}].type", kind))
            names.add(tool.get("name"))
            continue
        try:
            tools.append(_tool(tool))
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
            unsent |= unknown(tool, _TOOL_FIELDS, "tools[].")
    if fields.get("tool_choice") is not None and not fields.get("tools"):
        unsent.add("tool_choice")
    metadata = fields.get("metadata") or {}
    if metadata.get("user_id") and not _person(metadata):
        unsent.add("metadata.user_id")
    return tuple(sorted(unsent))


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in _OWN_TOOL:
        raise refused(
            "type", f"{_shown(kind)} is a tool of Anthropic's own and not served here; give a name and a schema"
        )
    function: dict[str, Any] = {"name": need(tool, "name", str)}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    function["parameters"] = need(tool, "input_schema", dict)
    return _marked({"type": "function", "function": function}, tool)


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
    if chat.get("reasoning_effort") in ("xhigh", "max"):
        chat["reasoning_effort"] = "high"  # the highest effort that all providers know
    shape = config.get("format") or fields.get("output_format")
    if shape is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": shape["schema"]}}
    return chat


def _person(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The session that Claude Code packs into `user_id` (JSON, or after `_session_`), else the user."""
    user_id = metadata.get("user_id")
    if not user_id:
        return {}
    if user_id.startswith("{"):
        try:
            packed = orjson.loads(user_id)
        except orjson.JSONDecodeError:
            packed = None
        session = packed.get("session_id") if isinstance(packed, dict) else None
        return {"session_id": session} if isinstance(session, str) and session else {}
    _, found, session = user_id.rpartition(_LEGACY_SESSION)
    return {"session_id": session} if found and session else {"user": user_id}


def _marked(part: dict[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """`part` with the block's cache mark, which only Anthropic's providers receive."""
    if "cache_control" not in block:  # almost every block
        return part
    mark = read(block, "cache_control", dict)
    if mark is None:
        return part
    said = {name: value for name in ("type", "ttl") if (value := read(mark, name, str, "cache_control.")) is not None}
    return part | {"cache_control": said}


def _simplest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text as a string, which every server accepts; everything else as parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _shown(kind: object) -> str:
    return f'"{kind[:64]}"' if isinstance(kind, str) else "a block without a type"
