"""Tools and parts of other APIs in a chat body, as chat writes them.

Clients that change between APIs send Anthropic's and OpenAI's Responses' forms to chat completions, and those of open
models' servers. Only a body that the schema of chat refuses is read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.fields import need, read, refused, unknown, within
from gateway.dialects.messages_content import content_parts, system_messages, tool_result, tool_use
from gateway.dialects.messages_request import MESSAGES_TOOL_FIELDS, chat_tool
from gateway.dialects.messages_unsent import unsent_of_blocks
from gateway.dialects.responses_items import chat_part
from gateway.errors import InvalidRequest
from gateway.unchecked import at, listed

_FLAT_FIELDS: Mapping[str, type] = {
    "name": str, "description": str, "parameters": dict, "strict": bool, "format": dict,
}  # fmt: skip
_OF_RESPONSES = frozenset({"input_text", "output_text", "input_image", "input_file"})
_OF_CLAUDE = frozenset({"document", "search_result", "tool_reference"})
_NUMBERS = ("max_tokens", "max_completion_tokens", "n", "seed", "top_logprobs", "top_k")
"""Integers that languages with one kind of number write as 5.0."""
_THOUGHT = frozenset({"type", "text", "reasoning", "thinking"})
_MEDIA_NAMES = ("mimeType", "mime_type", "mediaType", "media_type")
_INLINE = frozenset({"image", "audio", "file"})
_INLINE_FIELDS = frozenset({"type", "data", "base64", "source_type", "filename", *_MEDIA_NAMES})
_SYSTEM = -1
"""In place of a message's index, for Anthropic's system prompt beside the messages."""
_PLACE = re.compile(r"messages\[(\d+)\](?:\.content\[(\d+)\])?")
_SOUND_FORMATS: Mapping[str, str] = {"mpeg": "mp3", "wave": "wav", "vnd.wave": "wav"}


@dataclass(frozen=True, slots=True)
class ConvertedBody:
    """A body as chat writes it.

    `lost`: names of fields that chat cannot express. `origins`: for each message the index of the client's message, and
    for each of its parts the place of the client's part in the content.
    """

    fields: dict[str, Any]
    lost: tuple[str, ...]
    origins: Sequence[tuple[int, Sequence[str]]]

    def at_origin(self, error: InvalidRequest) -> InvalidRequest:
        """The error under the place that it has in the client's body."""
        found = _PLACE.match(error.param or "")
        if found is None or int(found[1]) >= len(self.origins):
            return error
        message, parts = self.origins[int(found[1])]
        place = "system" if message == _SYSTEM else f"messages[{message}]"
        if found[2] is not None:
            place += ".content" + (parts[int(found[2])] if int(found[2]) < len(parts) else "")
        param = place + str(error.param)[found.end() :]
        return InvalidRequest(error.message.replace(str(error.param), param, 1), param=param)


def converted(fields: Mapping[str, Any]) -> ConvertedBody | None:
    """The body as chat writes it; None if no tool or part is in another form.

    Raises InvalidRequest.
    """
    lost: set[str] = set()
    made = dict(fields)
    told = system_messages(fields.get("system"), "system") if isinstance(fields.get("messages"), list) else []
    if told:
        del made["system"]
    origins: list[tuple[int, Sequence[str]]] = [(_SYSTEM, ())] * len(told)
    if isinstance(fields.get("tools"), list):
        made["tools"] = _each(fields["tools"], "tools", lambda _, tool: [_tool(tool, lost)])
    if isinstance(fields.get("messages"), list):
        made["messages"] = told + _each(
            fields["messages"], "messages", lambda index, message: _messages(message, index, lost, origins)
        )
    whole = {name: int(fields[name]) for name in _NUMBERS if _is_whole(fields.get(name))}
    made |= whole
    choice = fields.get("tool_choice")
    if isinstance(choice, dict) and "disable_parallel_tool_use" in choice:
        made["tool_choice"] = {name: value for name, value in choice.items() if name != "disable_parallel_tool_use"}
        if choice["disable_parallel_tool_use"]:
            made["parallel_tool_calls"] = False
    return None if made == fields and not whole else ConvertedBody(made, tuple(sorted(lost)), origins)


def _is_whole(number: Any) -> bool:
    return isinstance(number, float) and number.is_integer()


def _each(items: list[Any], where: str, convert: Callable[[int, Any], list[Any]]) -> list[Any]:
    made = []
    for index, item in enumerate(items):
        try:
            made += convert(index, item)
        except InvalidRequest as error:
            raise within(f"{where}[{index}]", error) from None
    return made


def _tool(tool: Any, lost: set[str]) -> Any:
    if not isinstance(tool, dict):
        return tool
    kind = tool.get("type")
    if kind in (None, "custom") and isinstance(tool.get("input_schema"), dict):
        lost.update(unknown(tool, MESSAGES_TOOL_FIELDS, "tools[]."))
        return chat_tool(tool)
    if kind is None:
        kind = "custom" if "custom" in tool else "function"
    if kind not in ("function", "custom"):
        return tool
    if kind in tool or "name" not in tool:
        return {"type": kind} | tool
    typed: dict[str, Any] = {name: read(tool, name, wanted) for name, wanted in _FLAT_FIELDS.items()}
    flat = {name: value for name, value in typed.items() if value is not None}
    shape: Any = flat.get("format")
    if at(shape, "type") == "grammar" and "grammar" not in shape:
        flat["format"] = {"type": "grammar", "grammar": {name: shape[name] for name in shape if name != "type"}}
    rest = {name: value for name, value in tool.items() if name not in _FLAT_FIELDS}
    return rest | {"type": kind, kind: flat}


def _messages(
    message: Any, number: int, lost: set[str], origins: list[tuple[int, Sequence[str]]]
) -> list[dict[str, Any]]:
    """The message, behind the results of tools in it."""
    given = at(message, "content")
    message = _with_texts(message)
    role, content = at(message, "role"), listed(at(message, "content"))
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    parts: list[Any] = []
    places: list[str] = []
    for place, part in _spread(content, single=content is not given):
        kind = _kind(part)
        try:
            if role == "assistant" and (thought := _thought(part, kind)):
                thoughts.append(thought)
                lost.update(unknown(part, _THOUGHT, "messages[].content[]."))
                continue
            if kind == "tool_result" and role == "user":
                result, shown = tool_result(part)
                results.append(result)
                origins.append((number, ()))
                parts += shown
            elif kind == "tool_use" and role == "assistant":
                calls.append(tool_use(part))
            elif kind in _OF_CLAUDE or (kind == "image" and "source" in part):
                parts += content_parts(part)
            else:
                parts.append(_part(part, kind))
                places.append(place)
                if kind in _INLINE and _inline(part):
                    lost.update(unknown(part, _INLINE_FIELDS, "messages[].content[]."))
                continue
            places += [place] * (len(parts) - len(places))
            lost.update(unsent_of_blocks([part], "messages[].content[]"))
        except InvalidRequest as error:
            raise within(f"content{place}", error) from None
    if results and not parts:
        return results
    origins.append((number, places))
    if not (results or calls or thoughts) and parts == content:
        return [message]
    made = message | {"content": parts or None}
    if thoughts:
        made["reasoning_content"] = "\n".join([*filter(None, [message.get("reasoning_content")]), *thoughts])
    if calls:
        made["tool_calls"] = [*listed(message.get("tool_calls")), *calls]
    return [*results, made]


def _with_texts(message: Any) -> Any:
    """The message with its only part in a list, and with arguments and results of tools as the text of their JSON."""
    if not isinstance(message, dict):
        return message
    content, made = message.get("content"), dict(message)
    if isinstance(content, dict) and "type" in content:
        made["content"] = [content]
    elif message.get("role") in ("tool", "function") and isinstance(content, dict | int | float):
        made["content"] = orjson.dumps(content).decode()
    if isinstance(message.get("tool_calls"), list):
        made["tool_calls"] = [
            call | {"function": _called(call["function"])} if at(call, "function") else call
            for call in message["tool_calls"]
        ]
    if message.get("function_call"):
        made["function_call"] = _called(message["function_call"])
    return made


def _called(function: Any) -> Any:
    arguments = at(function, "arguments")
    return function | {"arguments": orjson.dumps(arguments).decode()} if isinstance(arguments, dict) else function


def _spread(content: list[Any], *, single: bool) -> Iterator[tuple[str, Any]]:
    """The parts with their places in the client's content, which is the only part if `single`."""
    for index, outer in enumerate(content):
        place = "" if single else f"[{index}]"
        if isinstance(outer, list):
            yield from ((f"{place}[{inner}]", part) for inner, part in enumerate(outer))
        else:
            yield place, outer


def _thought(part: Any, kind: str | None) -> str:
    """The text of a part of reasoning as LangChain, the AI SDK and Mistral write it; empty for any other."""
    told = part.get("text") or part.get("reasoning") if kind == "reasoning" else None
    if kind == "thinking" and isinstance(part.get("thinking"), list):
        told = "".join(str(at(each, "text") or "") for each in part["thinking"])
    return told if isinstance(told, str) else ""


def _kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else None


def _part(part: Any, kind: str | None) -> Any:
    """The part as chat's; one that is chat's, or unknown, as it is."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    for name in ("text", "image_url"):
        if "type" not in part and name in part:
            return {"type": name} | part
    if kind in _OF_RESPONSES:
        return chat_part(part)
    if kind in _INLINE and (data := _inline(part)):
        if kind == "image":
            return {"type": "image_url", "image_url": {"url": data}}
        named = {"filename": part["filename"]} if part.get("filename") is not None else {}
        if kind == "file":
            return {"type": "file", "file": {"file_data": data} | named}
        return _sound({"audio_url": data})
    if kind in ("image", "video") and isinstance(address := part.get(kind) or part.get("url"), str):
        return {"type": f"{kind}_url", f"{kind}_url": {"url": address}}
    return _sound(part) if kind == "audio_url" else part


def _inline(part: Mapping[str, Any]) -> str:
    """The content of a part of MCP, LangChain or the AI SDK as a data URL; empty where none is in it."""
    data = part.get("data") or part.get("base64")
    media = next((part[name] for name in _MEDIA_NAMES if part.get(name)), None)
    return f"data:{media};base64,{data}" if isinstance(data, str) and isinstance(media, str) else ""


def _sound(part: Mapping[str, Any]) -> dict[str, Any]:
    address = part.get("audio_url")
    url = address if isinstance(address, str) else need(need(part, "audio_url", dict), "url", str, "audio_url.")
    media, found, data = url.partition(";base64,")
    if not found or not media.startswith("data:audio/"):
        raise refused("audio_url", 'expected "data:audio/...;base64,..."; sounds are not fetched from an address')
    subtype = media.removeprefix("data:audio/").partition(";")[0].removeprefix("x-")
    return {"type": "input_audio", "input_audio": {"data": data, "format": _SOUND_FORMATS.get(subtype, subtype)}}
