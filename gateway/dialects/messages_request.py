"""Requests of `POST /v1/messages`: Anthropic's body as a chat body.

https://docs.claude.com/en/api/messages. Everything that a chat request can express is translated. A request for
features of Anthropic's servers (their tools, MCP servers, containers) is forwarded; files by id are refused, because
they belong to the operator's account. Fields for the client's side or Anthropic's billing are dropped and named in
`dropped`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.catalog.hosted_tools import kind_of
from gateway.dialects import carried
from gateway.dialects.fields import checked, copied, need, objects, read, refused
from gateway.dialects.forwarded import ForwardedRequest, HostedTool, attach_hosted
from gateway.dialects.messages_forwarded import forwarded_request

_PLAIN: Mapping[str, str] = {
    "model": "model", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stream": "stream",
    "stop_sequences": "stop", "max_tokens": "max_tokens",
}  # fmt: skip
_KNOWN = frozenset(_PLAIN) | {
    "messages", "system", "tools", "tool_choice", "metadata", "thinking", "output_config", "output_format",
}  # fmt: skip
_SERVED = ("mcp_servers", "container")
"""Fields that only Anthropic's servers understand."""
_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "compaction")
_BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block. It names the build and would change every cached prefix."""
_LEGACY_SESSION = "_session_"
# LiteLLM's and Anthropic's mapping from a thinking budget to an effort.
_EFFORTS = ((2_048, "low"), (8_192, "medium"))
_EFFORT_NAMES = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """An Anthropic request: its chat body, stop sequences, dropped fields, forwarded form."""

    chat: dict[str, Any]
    stop_sequences: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    forwarded: ForwardedRequest | None = None
    thinks: bool = True
    """False: the client turned thinking off."""


def to_chat(fields: Mapping[str, Any], *, counting: bool = False, betas: str = "") -> MessagesRequest:
    """The chat body of an Anthropic body. Raises InvalidRequest with Anthropic's field name.

    `counting`: the body is for `/v1/messages/count_tokens`, which has no `max_tokens`. `betas`: the header
    `anthropic-beta`, which is passed on with what is forwarded.
    """
    hosted = [HostedTool(name, name) for name in _SERVED if fields.get(name)]
    need(fields, "model", str)
    if not counting:
        need(fields, "max_tokens", int)
    for name in ("temperature", "top_p"):
        read(fields, name, float)
    read(fields, "stream", bool)
    stops = [checked(stop, str, "stop_sequences") for stop in read(fields, "stop_sequences", list) or ()]
    chat: dict[str, Any] = copied(fields, _PLAIN)
    chat["messages"] = [*_system(fields.get("system"), "system"), *_messages(fields, hosted)]
    chat |= _tools(fields, hosted)
    chat |= _output(fields)
    chat |= _person(read(fields, "metadata", dict) or {})
    if not stops:
        chat.pop("stop", None)
    known = _KNOWN.union(_SERVED)
    dropped = tuple(sorted(name for name, value in fields.items() if name not in known and value is not None))
    forwarded = None
    if hosted and not counting:
        system = _unbilled(fields.get("system"))
        forwarded = forwarded_request(fields, hosted, betas, dropped, system, chat.get("user"))
    thinks = (fields.get("thinking") or {}).get("type") != "disabled"
    return MessagesRequest(chat, tuple(stops), dropped, forwarded, thinks)


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
    blocks = objects(system, where)
    parts = [
        _text(block, f"{where}[{index}]")
        for index, block in enumerate(blocks)
        if not str(block.get("text", "")).startswith(_BILLING)
    ]
    return [{"role": "system", "content": _simplest(parts)}] if parts else []


def _messages(fields: Mapping[str, Any], hosted: list[HostedTool]) -> Iterable[dict[str, Any]]:
    messages = objects(need(fields, "messages", list), "messages")
    if not messages:
        raise refused("messages", "expected at least one message")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = need(message, "role", str, f"{where}.")
        content = message.get("content")
        if not isinstance(content, str | list):
            raise refused(f"{where}.content", "expected a string or a list of blocks")
        if role == "system":
            yield from _system(content, f"{where}.content")
        elif role == "user":
            yield from _user(content, f"{where}.content")
        elif role == "assistant":
            yield _assistant(content, f"{where}.content", hosted)
        else:
            raise refused(f"{where}.role", "expected user, assistant or system")


# -- user messages -----------------------------------------------------------------------------------------------------


def _user(content: str | list[Any], where: str) -> Iterable[dict[str, Any]]:
    """Tool results become tool messages; the rest becomes a user message after them.

    Chat tool messages contain only text; images in a tool's result follow as parts of the user message.
    """
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    parts: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for index, block in enumerate(objects(content, where)):
        at = f"{where}[{index}]"
        if block.get("type") == "tool_result":
            message, shown = _tool_result(block, at)
            yield message
            pictures += shown
        else:
            parts.append(_content(block, at))
    if parts or pictures:
        yield {"role": "user", "content": _simplest([*pictures, *parts])}


def _tool_result(block: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tool message of a result, and the images and files in it."""
    call_id = need(block, "tool_use_id", str, f"{where}.")
    content = block.get("content")
    if content is None or isinstance(content, str):
        texts: list[dict[str, Any]] = [{"type": "text", "text": content or ""}]
        shown: list[dict[str, Any]] = []
    else:
        parts = [
            _content(inner, f"{where}.content[{index}]")
            for index, inner in enumerate(objects(content, f"{where}.content"))
        ]
        texts = [part for part in parts if part["type"] == "text"]
        shown = [part for part in parts if part["type"] != "text"]
        if shown:
            shown = [{"type": "text", "text": f"Pictures and files in the result of tool call {call_id}:"}, *shown]
            texts = texts or [{"type": "text", "text": "The result is in the next user message."}]
        texts = texts or [{"type": "text", "text": ""}]
    if read(block, "is_error", bool, f"{where}.") and "error" not in texts[0]["text"][:64].lower():
        # Chat has no field for a failed call, so the text says it.
        texts[0] = texts[0] | {"text": "Error: " + texts[0]["text"]}
    message = {"role": "tool", "tool_call_id": call_id, "content": _simplest(texts)}
    if isinstance(block.get("cache_control"), Mapping):
        texts[-1] = texts[-1] | {"cache_control": block["cache_control"]}
        message["content"] = texts
    return message, shown


def _content(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return _text(block, where)
    if kind == "image":
        return _marked({"type": "image_url", "image_url": {"url": _picture(block, where)}}, block)
    if kind == "document":
        return _marked(_document(block, where), block)
    if kind == "search_result":
        parts = objects(block.get("content"), f"{where}.content")
        head = [text for text in (block.get("title"), block.get("source")) if isinstance(text, str)]
        return _marked({"type": "text", "text": "\n".join([*head, *(str(p.get("text", "")) for p in parts)])}, block)
    raise refused(f"{where}.type", f"{_shown(kind)} is not served here; expected text, image, document or tool_result")


def _text(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    if block.get("type") != "text":
        raise refused(f"{where}.type", "expected text")
    return _marked({"type": "text", "text": need(block, "text", str, f"{where}.")}, block)


def _picture(block: Mapping[str, Any], where: str) -> str:
    source = need(block, "source", dict, f"{where}.")
    if source.get("type") == "base64":
        media = need(source, "media_type", str, f"{where}.source.")
        return f"data:{media};base64,{need(source, 'data', str, f'{where}.source.')}"
    if source.get("type") == "url":
        return need(source, "url", str, f"{where}.source.")
    raise refused(f"{where}.source.type", f"{_shown(source.get('type'))} is not served here; expected base64 or url")


def _document(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    source = need(block, "source", dict, f"{where}.")
    kind = source.get("type")
    head = [text for text in (block.get("title"), block.get("context")) if isinstance(text, str)]
    if kind == "text":
        return {"type": "text", "text": "\n".join([*head, need(source, "data", str, f"{where}.source.")])}
    if kind == "content":
        inner = source.get("content")
        texts = [inner] if isinstance(inner, str) else [
            need(part, "text", str, f"{where}.source.content.") for part in objects(inner, f"{where}.source.content")
        ]  # fmt: skip
        return {"type": "text", "text": "\n".join([*head, *texts])}
    if kind == "base64":
        media = need(source, "media_type", str, f"{where}.source.")
        data = need(source, "data", str, f"{where}.source.")
        name = head[0] if head else "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:{media};base64,{data}"}}
    raise refused(f"{where}.source.type", f"{_shown(kind)} is not served here; expected base64, text or content")


# -- assistant messages ------------------------------------------------------------------------------------------------


def _assistant(content: str | list[Any], where: str, hosted: list[HostedTool]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    if isinstance(content, str):
        return message | {"content": content}
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for index, block in enumerate(objects(content, where)):
        at, kind = f"{where}[{index}]", block.get("type")
        if kind == "text":
            parts.append(_text(block, at))
        elif kind == "tool_use":
            calls.append(_tool_use(block, at))
        elif kind in ("thinking", "redacted_thinking"):
            _thinking(block, at, message, reasoning)
        elif kind in _SERVER_BLOCKS or (isinstance(kind, str) and kind.endswith("_tool_result")):
            hosted.append(HostedTool(f"{at}.type", kind))
            attach_hosted(message, block)
        else:
            raise refused(f"{at}.type", f"{_shown(kind)} is not served here; expected text, tool_use or thinking")
    message["content"] = _simplest(parts) if parts else (None if calls else "")
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    carried.attach_extra_content(message)
    return message


def _tool_use(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = orjson.dumps(block.get("input") if block.get("input") is not None else {}).decode()
    name = need(block, "name", str, f"{where}.")
    return {
        "id": need(block, "id", str, f"{where}."),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _thinking(block: Mapping[str, Any], where: str, message: dict[str, Any], reasoning: list[str]) -> None:
    """Keep Anthropic's signed thinking; restore another provider's sealed state."""
    redacted = block.get("type") == "redacted_thinking"
    mark = need(block, "data", str, f"{where}.") if redacted else read(block, "signature", str, f"{where}.") or ""
    state = carried.unseal(mark)
    if state is not None:
        carried.restore(message, state)
    elif mark:
        names = ("type", "data") if redacted else ("type", "thinking", "signature")
        kept = {name: block.get(name, "") for name in names}
        message.setdefault("thinking_blocks", []).append(kept)
        return
    text = read(block, "thinking", str, f"{where}.")
    if text:
        reasoning.append(text)


# -- tools and parameters ----------------------------------------------------------------------------------------------


def _tools(fields: Mapping[str, Any], hosted: list[HostedTool]) -> dict[str, Any]:
    tools, names = [], set()
    for index, tool in enumerate(objects(fields.get("tools"), "tools")):
        kind = tool.get("type")
        if kind_of(kind, "messages_api") is None:
            tools.append(_tool(tool, f"tools[{index}]"))
        else:
            hosted.append(HostedTool(f"tools[{index}].type", str(kind)))
            names.add(read(tool, "name", str, f"tools[{index}]."))
    chat: dict[str, Any] = {"tools": tools} if tools else {}
    choice = read(fields, "tool_choice", dict)
    if choice is None or not (tools or names):
        return chat
    kind = choice.get("type")
    if kind == "tool":
        name = need(choice, "name", str, "tool_choice.")
        if name in names:
            return chat  # a tool of Anthropic's, which is forwarded
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in ("auto", "any", "none"):
        chat["tool_choice"] = {"auto": "auto", "any": "required", "none": "none"}[kind]
    else:
        raise refused("tool_choice.type", "expected auto, any, tool or none")
    if read(choice, "disable_parallel_tool_use", bool, "tool_choice."):
        chat["parallel_tool_calls"] = False
    return chat


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise refused(
            f"{where}.type",
            f"{_shown(kind)} is a tool of Anthropic's own and not served here; give a name and a schema",
        )
    function: dict[str, Any] = {"name": need(tool, "name", str, f"{where}.")}
    function |= copied(tool, {"description": "description", "strict": "strict"})
    function["parameters"] = need(tool, "input_schema", dict, f"{where}.")
    return _marked({"type": "function", "function": function}, tool)


def _output(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Thinking and effort as a reasoning effort; a schema as a response format."""
    config = read(fields, "output_config", dict) or {}
    thinking = read(fields, "thinking", dict) or {}
    chat: dict[str, Any] = {}
    effort = read(config, "effort", str, "output_config.")
    if effort is not None and effort not in _EFFORT_NAMES:
        raise refused("output_config.effort", f"expected one of {', '.join(sorted(_EFFORT_NAMES))}")
    kind = thinking.get("type")
    if thinking and kind not in ("adaptive", "enabled", "disabled"):
        raise refused("thinking.type", "expected adaptive, enabled or disabled")
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
        shape = checked(shape, dict, "output_config.format")
        if shape.get("type") != "json_schema":
            raise refused("output_config.format.type", "expected json_schema")
        schema = need(shape, "schema", dict, "output_config.format.")
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return chat


def _person(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The session that Claude Code packs into `user_id` (JSON, or after `_session_`), else the user."""
    user_id = read(metadata, "user_id", str, "metadata.")
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
    mark = block.get("cache_control")
    return part | {"cache_control": mark} if isinstance(mark, Mapping) else part


def _simplest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text as a string, which every server accepts; everything else as parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _shown(kind: object) -> str:
    return f'"{kind[:64]}"' if isinstance(kind, str) else "a block without a type"
