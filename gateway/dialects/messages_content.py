"""Anthropic's system prompt and messages, block by block, as chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.dialects import sealed_state
from gateway.dialects.answer_parts import provider_id
from gateway.dialects.arguments import checked_url
from gateway.dialects.claude_history import TOOL_CHANGES
from gateway.dialects.fields import need, objects, read, read_each, refused, within
from gateway.dialects.forwarded import HostedTool, attach_hosted
from gateway.errors import InvalidRequest

_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "compaction")
_BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block. It names the build and would change every cached prefix."""
_PLAIN_RESULT = frozenset({"type", "tool_use_id", "content"})


def unbilled(system: object) -> object:
    """The system prompt without Claude Code's billing header."""
    if not isinstance(system, list):
        return system
    return [block for block in system if not _is_billing(block)]


def system_messages(system: object, where: str) -> list[dict[str, Any]]:
    """The system prompt as one message; its blocks keep their cache marks."""
    if system is None:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}] if system else []
    made = read_each(objects(system, where), where, lambda block: None if _is_untold(block) else _text(block))
    parts = [part for part in made if part is not None]
    return [{"role": "system", "content": _simplest(parts)}] if parts else []


def _is_untold(block: Mapping[str, Any]) -> bool:
    """True for Claude Code's billing header, and for a change of tools, all of which other models have all along."""
    return _is_billing(block) or block.get("type") in TOOL_CHANGES


def _is_billing(block: Mapping[str, Any]) -> bool:
    return str(block.get("text", "")).startswith(_BILLING)


def conversation(
    system: object, messages: Sequence[Mapping[str, Any]], hosted: list[HostedTool]
) -> list[dict[str, Any]]:
    """The system prompt and the messages in chat format. Raises InvalidRequest.

    Items of tools that Anthropic's servers ran are added to `hosted`.
    """
    made = system_messages(system, "system")
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
                made += system_messages(content, "content")
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
                message, shown = tool_result(block)
                messages.append(message)
                pictures += shown
            else:
                parts += content_parts(block)
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
    if parts or pictures:
        messages.append({"role": "user", "content": _simplest([*pictures, *parts])})
    return messages


def tool_result(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tool message of a result, and the images and files in it."""
    call_id = provider_id(need(block, "tool_use_id", str))
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
        texts[0] = texts[0] | {"text": ": ".join(filter(None, ("Error", texts[0]["text"])))}
    texts[-1] = marked(texts[-1], block)
    return {"role": "tool", "tool_call_id": call_id, "content": _simplest(texts)}, shown


def _parts(content: object) -> list[dict[str, Any]]:
    """The parts of a list of blocks in the field `content`."""
    return [part for parts in read_each(objects(content, "content"), "content", content_parts) for part in parts]


def content_parts(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a block that says or shows something. Raises InvalidRequest."""
    kind = block.get("type")
    if kind == "text":
        return [_text(block)]
    if kind == "image":
        return [marked({"type": "image_url", "image_url": {"url": _picture(block)}}, block)]
    if kind == "document":
        *parts, last = _document(block)
        return [*parts, marked(last, block)]
    if kind == "search_result":
        return _search_result(block)
    if kind == "tool_reference":
        return [marked({"type": "text", "text": f"Tool: {need(block, 'tool_name', str)}"}, block)]
    raise refused("type", f"{shown_kind(kind)} is not served here; expected text, image, document or tool_result")


def _search_result(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A found text under its title and address; a part ends at each cache mark within it."""
    lines = [text for name in ("title", "source") if (text := read(block, name, str))]
    parts: list[dict[str, Any]] = []
    for part in read_each(objects(block.get("content"), "content"), "content", _found_text):
        lines.append(part["text"])
        if "cache_control" in part:
            parts.append(part | {"text": "\n".join(lines)})
            lines = []
    if lines or not parts:
        parts.append({"type": "text", "text": "\n".join(lines)})
    parts[-1] = marked(parts[-1], block)
    return parts


def _found_text(block: Mapping[str, Any]) -> dict[str, Any]:
    if block.get("type") != "text":
        raise refused("type", "expected text")
    return marked({"type": "text", "text": read(block, "text", str) or ""}, block)


def _text(block: Mapping[str, Any]) -> dict[str, Any]:
    if block.get("type") != "text":
        raise refused("type", "expected text")
    return marked({"type": "text", "text": need(block, "text", str)}, block)


def _picture(block: Mapping[str, Any]) -> str:
    source = need(block, "source", dict)
    if source.get("type") == "base64":
        media = need(source, "media_type", str, "source.")
        return f"data:{media};base64,{need(source, 'data', str, 'source.')}"
    if source.get("type") == "url":
        return checked_url(need(source, "url", str, "source."), "source.url")
    raise refused("source.type", f"{shown_kind(source.get('type'))} is not served here; expected base64 or url")


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
    raise refused("source.type", f"{shown_kind(kind)} is not served here; expected base64, text or content")


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
                calls.append(tool_use(block))
            elif kind in ("thinking", "redacted_thinking"):
                _thinking(block, message, reasoning)
            elif kind in _SERVER_BLOCKS or (isinstance(kind, str) and kind.endswith("_tool_result")):
                hosted.append(HostedTool(f"{where}[{index}].type", kind))
                attach_hosted(message, block)
            else:
                raise refused("type", f"{shown_kind(kind)} is not served here; expected text, tool_use or thinking")
        except InvalidRequest as error:
            raise within(f"content[{index}]", error) from None
    message["content"] = _simplest(parts) if parts else (None if calls else "")
    if reasoning:
        message["reasoning_content"] = "\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    sealed_state.attach_extra_content(message)
    return message


def tool_use(block: Mapping[str, Any]) -> dict[str, Any]:
    """The tool call of a block. Raises InvalidRequest."""
    call_id, name = need(block, "id", str), need(block, "name", str)
    arguments = orjson.dumps(read(block, "input", dict) or {}).decode()
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return marked(call, block)


def _thinking(block: Mapping[str, Any], message: dict[str, Any], reasoning: list[str]) -> None:
    """Keep Anthropic's signed thinking; restore another provider's sealed state."""
    redacted = block.get("type") == "redacted_thinking"
    text = read(block, "thinking", str)
    mark = need(block, "data", str) if redacted else read(block, "signature", str) or ""
    state = sealed_state.unseal(mark)
    if state is not None:
        sealed_state.restore(message, state)
    elif mark:
        names = ("type", "data") if redacted else ("type", "thinking", "signature")
        kept = {name: block.get(name, "") for name in names}
        message.setdefault("thinking_blocks", []).append(kept)
        return
    if text:
        reasoning.append(text)


def marked(part: dict[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """The part with the block's cache mark, which only Anthropic's providers receive."""
    if "cache_control" not in block:  # almost every block
        return part
    mark = read(block, "cache_control", dict)
    if mark is None:
        return part
    said = {name: value for name in ("type", "ttl") if (value := read(mark, name, str, "cache_control.")) is not None}
    return part | {"cache_control": said}


def marked_last(message: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The last message with the cache mark of the whole body, which Anthropic sets there itself."""
    content = message.get("content")
    if fields.get("cache_control") is None or not content:
        return message
    *parts, last = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return message | {"content": [*parts, marked(last, fields) if "cache_control" not in last else last]}


def _simplest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text as a string, which every server accepts; everything else as parts."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def shown_kind(kind: object) -> str:
    """A block's type for an error's text."""
    return f'"{kind[:64]}"' if isinstance(kind, str) else "a block without a type"
