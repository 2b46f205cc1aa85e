"""Items of the Responses dialect as chat messages.

A model's output of one turn is several items (reasoning, message, calls), but one assistant message in chat. The
translation depends only on earlier items, so a longer conversation starts with the messages of a shorter one; prompt
caches and the session's memory rely on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.dialects import sealed_state
from gateway.dialects.answer_parts import provider_id
from gateway.dialects.arguments import checked_url
from gateway.dialects.fields import kind_of_item, need, objects, read, read_each, refused, within
from gateway.dialects.forwarded import HostedTool, attach_hosted, has_hosted
from gateway.dialects.pictures import own_picture
from gateway.dialects.responses_tools import call_arguments
from gateway.errors import InvalidRequest

_INPUT_ROLES = frozenset({"user", "system", "developer"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})
_HOSTED_CALLS = frozenset({
    "apply_patch_call", "code_interpreter_call", "compaction", "computer_call", "file_search_call",
    "image_generation_call", "local_shell_call", "mcp_approval_request", "mcp_call", "mcp_list_tools", "shell_call",
    "tool_search_call", "tool_search_output", "web_search_call",
})  # fmt: skip
"""Items that OpenAI's models and servers make; no chat message can express them."""
_HOSTED_OUTPUTS = frozenset({
    "apply_patch_call_output", "computer_call_output", "local_shell_call_output", "mcp_approval_response",
    "shell_call_output",
})  # fmt: skip
"""The client's answers to such calls."""


class MessageBuilder:
    """Builds chat messages from items in order."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._assistant: dict[str, Any] | None = None
        self._shown: list[dict[str, Any]] = []
        self.hosted: list[HostedTool] = []
        """Items that only OpenAI's own servers understand."""

    def system(self, text: str) -> None:
        """Add the request's instructions."""
        self._messages.append({"role": "system", "content": text})

    def add_all(self, items: Sequence[Mapping[str, Any]], where: str) -> None:
        """Add the items of the list `where`. Raises InvalidRequest for what is not supported."""
        for index, item in enumerate(items):
            try:
                self._add(item, where, index)
            except InvalidRequest as error:
                raise within(f"{where}[{index}]", error) from None

    def _add(self, item: Mapping[str, Any], where: str, index: int) -> None:
        kind = kind_of_item(item)
        if type(kind) is not str:
            raise refused("type", "expected the type of an item")
        if kind == "message":
            self._message(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item)
        elif kind in _OUTPUTS:
            self._output(item)
        elif kind == "reasoning":
            self._reasoning(item)
        elif (picture := own_picture(item)) is not None:
            self._picture(picture)
        elif kind in _HOSTED_CALLS or kind in _HOSTED_OUTPUTS:
            self._hosted(item, kind, f"{where}[{index}].type")
        elif kind == "item_reference":
            raise refused("id", "no such item; send the item itself, or store the response that has it")
        else:
            raise refused("type", f'"{kind[:64]}" is not served here; expected an item of OpenAI\'s Responses')

    def messages(self) -> list[dict[str, Any]]:
        """All messages; call it once, at the end."""
        self._end_assistant()
        self._end_results()
        return self._messages

    def _message(self, item: Mapping[str, Any]) -> None:
        role, content = need(item, "role", str), item.get("content")
        if type(content) is str:
            simplest: str | list[dict[str, Any]] = content
        elif type(content) is list:
            simplest = _simplest(_parts(content, "content"))
        else:
            raise refused("content", "expected a string or a list of parts")
        if role == "assistant":
            self._next_assistant()["content"] = simplest
            return
        if role not in _INPUT_ROLES:
            raise refused("role", "expected user, assistant, system or developer")
        self._end_assistant()
        self._end_results()
        self._messages.append({"role": role, "content": simplest})

    def _call(self, item: Mapping[str, Any]) -> None:
        name, arguments = call_arguments(item)
        call_id = need(item, "call_id", str)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._open_assistant().setdefault("tool_calls", []).append(call)

    def _output(self, item: Mapping[str, Any]) -> None:
        self._end_assistant()
        call_id, output = provider_id(need(item, "call_id", str)), item.get("output")
        if type(output) is str:
            self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
            return
        if type(output) is not list:
            raise refused("output", "expected a string or a list of parts")
        parts = _parts(output, "output")
        texts = [part for part in parts if part["type"] == "text"]
        shown = [part for part in parts if part["type"] != "text"]
        if shown:  # chat tool messages contain only text
            self._shown += [
                {"type": "text", "text": f"Pictures and files in the result of tool call {call_id}:"}, *shown
            ]  # fmt: skip
            texts = texts or [{"type": "text", "text": "The result is in the next user message."}]
        content = _simplest(texts or [{"type": "text", "text": ""}])
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _picture(self, url: str) -> None:
        """Show a picture that an earlier answer had; assistant messages of chat contain only text."""
        said = {"type": "text", "text": "A picture that the assistant generated:"}
        self._shown += [said, {"type": "image_url", "image_url": {"url": url}}]

    def _hosted(self, item: Mapping[str, Any], kind: str, where: str) -> None:
        """Keep what the prompt count and the conversation need of an item that is forwarded as it is."""
        self.hosted.append(HostedTool(where, kind))
        if kind in _HOSTED_CALLS:
            attach_hosted(self._next_assistant(), item)
            return
        self._end_assistant()
        output = item.get("output")
        picture = output.get("image_url") if isinstance(output, Mapping) else None
        if isinstance(picture, str):
            url = checked_url(picture, "output.image_url")
            content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}}]
        else:
            content = [{"type": "text", "text": orjson.dumps(item).decode()}]
        self._messages.append({"role": "user", "content": content})

    def _reasoning(self, item: Mapping[str, Any]) -> None:
        """Restore sealed state; keep other encrypted content as an item."""
        message = self._next_assistant()
        sealed = read(item, "encrypted_content", str)
        state = None if sealed is None else sealed_state.unseal(sealed)
        if state is not None:
            sealed_state.restore(message, state)
        elif sealed:
            kept = {name: item.get(name) for name in ("type", "id", "summary", "encrypted_content")}
            given = {name: value for name, value in kept.items() if value is not None}
            message.setdefault("reasoning_items", []).append(given)
        if not message.get("thinking_blocks") and not message.get("reasoning_items"):
            texts = [
                need(part, "text", str, f"{name}.")
                for name in ("content", "summary")
                for part in objects(item.get(name), name)
            ]
            if texts:
                message["reasoning_content"] = "\n".join([*filter(None, [message.get("reasoning_content")]), *texts])

    def _next_assistant(self) -> dict[str, Any]:
        """The open message while it has reasoning alone; else a new one."""
        if self._assistant is not None and ("content" in self._assistant or "tool_calls" in self._assistant):
            self._end_assistant()
        return self._open_assistant()

    def _open_assistant(self) -> dict[str, Any]:
        if self._assistant is None:
            self._end_results()
            self._assistant = {"role": "assistant"}
        return self._assistant

    def _end_assistant(self) -> None:
        message, self._assistant = self._assistant, None
        if message is None:
            return
        if "content" not in message:
            if "tool_calls" not in message and not has_hosted(message):
                return  # reasoning without its response
            message["content"] = None if "tool_calls" in message else ""
        sealed_state.attach_extra_content(message)
        self._messages.append(message)

    def _end_results(self) -> None:
        """Append images of tool results as a user message after all results."""
        if self._shown:
            self._messages.append({"role": "user", "content": self._shown})
            self._shown = []


def _parts(content: list[Any], where: str) -> list[dict[str, Any]]:
    return read_each(objects(content, where), where, chat_part)


def chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a message or an output as a part of chat. Raises InvalidRequest."""
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text", "summary_text"):
        return {"type": "text", "text": need(part, "text", str)}
    if kind == "refusal":
        return {"type": "refusal", "refusal": need(part, "refusal", str)}
    if kind == "input_image":
        if part.get("file_id") is not None:
            raise refused("file_id", "files by id are kept by OpenAI and not served here; send image_url")
        picture: dict[str, Any] = {"url": checked_url(need(part, "image_url", str), "image_url")}
        detail = read(part, "detail", str)
        return {"type": "image_url", "image_url": picture | ({"detail": detail} if detail else {})}
    if kind == "input_file":
        for name in ("file_id", "file_url"):
            if part.get(name) is not None:
                raise refused(name, "is not served here; send the file itself as file_data")
        file: dict[str, Any] = {"file_data": need(part, "file_data", str)}
        if "://" in file["file_data"][:64] and not file["file_data"].startswith("data:"):
            raise refused("file_data", "expected inline data")
        filename = read(part, "filename", str)
        return {"type": "file", "file": file | ({"filename": filename} if filename else {})}
    if kind == "input_audio":
        sound = need(part, "input_audio", dict)
        heard = {name: need(sound, name, str, "input_audio.") for name in ("data", "format")}
        return {"type": "input_audio", "input_audio": heard}
    named = f'"{kind[:64]}"' if isinstance(kind, str) else "a part without a type"
    raise refused("type", f"{named} is not served here; expected input_text, input_image or input_file")


def _simplest(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single plain text as a string, which every server accepts; everything else as parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts
