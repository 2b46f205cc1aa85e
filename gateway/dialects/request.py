"""The dialect of `POST /chat/completions`: OpenAI's body in, a checked `ChatRequest` out.

Everything malformed or out of range is refused here, with the parameter's name, before any money moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.config.settings import LimitSettings
from gateway.dialects.arguments import ALLOWED_PARAMS, outgoing_messages, outgoing_params
from gateway.errors import InvalidRequest

# https://platform.openai.com/docs/api-reference/chat/create
_NUMBER_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_TYPES: Mapping[str, Any] = {
    "user": str, "safety_identifier": str, "prompt_cache_key": str, "reasoning_effort": str, "verbosity": str,
    "audio": dict, "logit_bias": dict, "modalities": list, "functions": list, "tool_choice": str | dict,
    "function_call": str | dict,
}  # fmt: skip
_MESSAGE_TYPES: Mapping[str, Any] = {
    "name": str, "refusal": str, "reasoning_content": str, "encrypted_content": str, "tool_call_id": str,
    "tool_calls": list, "function_call": dict, "audio": dict, "cache_control": dict, "thinking_blocks": list,
    "reasoning_items": list,
}  # fmt: skip
_FUNCTION_TYPES: Mapping[str, Any] = {"description": str, "parameters": dict, "strict": bool}
_CALL_TYPES: Mapping[str, Any] = {"id": str, "type": str, "function": dict, "custom": dict}
_CALLED_TYPES: Mapping[str, Any] = {"name": str, "arguments": str, "input": str}
_INNER_TYPES: Mapping[str, Any] = {
    "url": str, "detail": str, "format": str, "data": str, "file_data": str, "filename": str, "file_id": str,
}  # fmt: skip
_WORDS: Mapping[Any, str] = {
    str: "a string", dict: "an object", list: "a list", bool: "true or false", str | dict: "a string or an object",
}  # fmt: skip
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_SESSION_FIELDS = ("session_id", "litellm_session_id")
_PART_TYPES = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
MAX_OUTPUT_TOKENS = 10_000_000
MAX_MESSAGES = 10_000
MAX_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One checked chat body. `params` are the allow-listed parameters as the provider shall see them."""

    model: str
    messages: tuple[dict[str, Any], ...]
    params: Mapping[str, Any]
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None
    max_tokens_param: str
    capabilities: frozenset[str]
    images: int
    open_tool_loop: bool
    provider_bound: bool
    session_hint: str | None
    body_sha256: bytes
    dropped: tuple[str, ...] = ()
    """The client's parameters that leave for no provider, by name."""

    @property
    def last_user_text(self) -> str:
        """What the user asked last: the text of this turn."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                return message_text(message)
        return ""

    def opening(self) -> bytes:
        """What identifies a conversation without an id: system prompt, tools and first user message."""
        first_user = next((message_text(m) for m in self.messages if m["role"] == "user"), "")
        system = [message_text(m) for m in self.messages if m["role"] in ("system", "developer")][:1]
        return orjson.dumps([system, self.params.get("tools"), first_user], option=orjson.OPT_SORT_KEYS)


def parse_chat(body: bytes, limits: LimitSettings) -> ChatRequest:
    """Check a chat-completions body. Raises InvalidRequest naming the parameter that is wrong."""
    fields = parse_object(body, limits)
    model = _string(fields, "model", required=True)
    messages = _messages(fields.get("messages"), limits)
    stream = _boolean(fields, "stream")
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options: expected an object", param="stream_options")
    include_usage = _boolean(options, "include_usage", "stream_options.include_usage")
    if options and not stream:
        raise InvalidRequest("stream_options: only allowed when stream is true", param="stream_options")
    n = _integer(fields, "n", 1, limits.choices) or 1
    new_style = "max_completion_tokens" in fields and fields["max_completion_tokens"] is not None
    max_tokens_param = "max_completion_tokens" if new_style else "max_tokens"
    max_tokens = _integer(fields, max_tokens_param, 1, MAX_OUTPUT_TOKENS)
    for name, (low, high) in _NUMBER_RANGES.items():
        _number(fields, name, low, high)
    _integer(fields, "top_logprobs", 0, 20)
    _integer(fields, "seed", -(2**63), 2**63 - 1)
    _integer(fields, "top_k", -1, 2**31)
    _number(fields, "min_p", 0.0, 1.0)
    _number(fields, "repetition_penalty", 0.0, 10.0)
    _boolean(fields, "logprobs")
    _boolean(fields, "parallel_tool_calls")
    _typed(fields, _TYPES)
    _stop(fields.get("stop"))
    _entries(fields)
    _choice(fields.get("tool_choice"))
    tools = _tools(fields)
    response_format = _response_format(fields.get("response_format"))
    params = {name: fields[name] for name in ALLOWED_PARAMS if fields.get(name) is not None and name != "n"}
    # What may not leave the house is refused here, before any money; what does leave is built again for its provider.
    outgoing_params(params)
    outgoing_messages(messages, by_reference=True)
    images = sum(1 for part in _parts(messages) if part.get("type") == "image_url")
    return ChatRequest(
        model=model,
        messages=tuple(messages),
        params=params | ({"n": n} if n > 1 else {}),
        stream=stream,
        include_usage=include_usage,
        n=n,
        max_tokens=max_tokens,
        max_tokens_param=max_tokens_param,
        capabilities=_capabilities(tools, response_format, messages, fields),
        images=images,
        open_tool_loop=messages[-1]["role"] in ("tool", "function"),
        provider_bound=any(_is_provider_bound(message) for message in messages),
        session_hint=_session_hint(fields),
        body_sha256=hashlib.sha256(body).digest(),
    )


def parse_object(body: bytes, limits: LimitSettings) -> dict[str, Any]:
    """Parse a JSON object of bounded depth. Raises InvalidRequest."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("body: expected a JSON object in UTF-8") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("body: expected a JSON object")
    if _deeper_than(fields, limits.json_depth):
        raise InvalidRequest(f"body: nested deeper than {limits.json_depth} levels")
    return fields


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("type") == "text")
    return ""


def _messages(value: object, limits: LimitSettings) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest("messages: expected a list with at least one message", param="messages")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(f"messages: expected at most {MAX_MESSAGES}, got {len(value)}", param="messages")
    for index, message in enumerate(value):
        _message(message, f"messages[{index}]")
    return value


def _message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where}: expected an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{where}.role: expected one of {', '.join(sorted(_ROLES))}", param=f"{where}.role")
    _typed(message, _MESSAGE_TYPES, f"{where}.")
    content = message.get("content")
    calls = message.get("tool_calls")
    for position, call in enumerate(calls or ()):
        _tool_call(call, f"{where}.tool_calls[{position}]")
    if role == "tool" and message.get("tool_call_id") is None:
        raise InvalidRequest(f"{where}.tool_call_id: expected a string", param=f"{where}.tool_call_id")
    if content is None:
        if role == "assistant" and (calls or message.get("function_call") or message.get("refusal")):
            return
        raise InvalidRequest(f"{where}.content: expected a string or a list of parts", param=f"{where}.content")
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content: expected a string or a list of parts", param=f"{where}.content")
    for position, part in enumerate(content):
        _part(part, f"{where}.content[{position}]")


def _tool_call(call: object, where: str) -> None:
    if not isinstance(call, dict):
        raise InvalidRequest(f"{where}: expected an object", param=where)
    _typed(call, _CALL_TYPES, f"{where}.")
    for kind in ("function", "custom"):
        _typed(call.get(kind) or {}, _CALLED_TYPES, f"{where}.{kind}.")


def _part(part: object, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _PART_TYPES:
        raise InvalidRequest(f"{where}.type: expected one of {', '.join(sorted(_PART_TYPES))}", param=f"{where}.type")
    _typed(part, {"cache_control": dict}, f"{where}.")
    inner = part.get(kind)
    if kind in ("text", "refusal"):
        if not isinstance(inner, str):
            raise InvalidRequest(f"{where}.{kind}: expected a string", param=f"{where}.{kind}")
        return
    if not isinstance(inner, dict):
        raise InvalidRequest(f"{where}.{kind}: expected an object", param=f"{where}.{kind}")
    _typed(inner, _INNER_TYPES, f"{where}.{kind}.")
    if kind == "image_url" and inner.get("url") is None:
        raise InvalidRequest(f"{where}.image_url.url: expected a string", param=f"{where}.image_url.url")


def _parts(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if isinstance(message.get("content"), list):
            yield from message["content"]


def _tools(fields: Mapping[str, Any]) -> list[Any]:
    tools = fields.get("tools")
    if tools is None:
        return []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools: expected a list of at most {MAX_TOOLS} tools", param="tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise InvalidRequest(f"tools[{index}].type: expected a string", param=f"tools[{index}].type")
        if tool["type"] in ("function", "custom"):
            _function(tool.get(tool["type"]), f"tools[{index}].{tool['type']}")
    return tools


def _entries(fields: Mapping[str, Any]) -> None:
    """What is inside the lists and objects that are passed on as they are."""
    functions = fields.get("functions") or ()
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(f"functions: expected at most {MAX_TOOLS}, got {len(functions)}", param="functions")
    for index, function in enumerate(functions):
        _function(function, f"functions[{index}]")
    if not all(isinstance(name, str) for name in fields.get("modalities") or ()):
        raise InvalidRequest("modalities: expected a list of strings", param="modalities")
    biases = (fields.get("logit_bias") or {}).values()
    if not all(isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100 for bias in biases):
        raise InvalidRequest("logit_bias: expected numbers from -100 to 100", param="logit_bias")


def _choice(choice: object) -> None:
    if not isinstance(choice, dict):
        return
    named = [kind for kind in ("function", "custom") if isinstance(choice.get(kind), dict)]
    if choice.get("type") not in ("auto", "none", "required", "function", "custom") or (
        choice["type"] in ("function", "custom") and named != [choice["type"]]
    ):
        raise InvalidRequest('tool_choice: expected {"type": "function", "function": {"name"}}', param="tool_choice")
    for kind in named:
        _function(choice[kind], f"tool_choice.{kind}")


def _function(function: object, where: str) -> None:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where}.name: expected a string", param=f"{where}.name")
    _typed(function, _FUNCTION_TYPES, f"{where}.")


def _response_format(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise InvalidRequest(
            "response_format.type: expected text, json_object or json_schema", param="response_format.type"
        )
    if value["type"] == "json_schema":
        where, schema = "response_format.json_schema", value.get("json_schema")
        if not isinstance(schema, dict):
            raise InvalidRequest(f"{where}: expected an object", param=where)
        _typed(schema, {"name": str, "schema": dict, **_FUNCTION_TYPES}, f"{where}.")
    return value


def _stop(value: object) -> None:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list) or len(value) > 16 or not all(isinstance(item, str) for item in value):
        raise InvalidRequest("stop: expected a string or a list of at most 16 strings", param="stop")


def _capabilities(
    tools: list[Any], response_format: dict[str, Any] | None, messages: list[dict[str, Any]], fields: Mapping[str, Any]
) -> frozenset[str]:
    """What the request needs of a model, in the catalogue's words."""
    needed = set()
    if tools or fields.get("functions"):
        needed.add("tools")
    if response_format and response_format["type"] == "json_schema":
        needed.add("response_schema")
    kinds = {part.get("type") for part in _parts(messages)}
    if "image_url" in kinds:
        needed.add("vision")
    modalities = fields.get("modalities")
    if "input_audio" in kinds or (isinstance(modalities, list) and "audio" in modalities):
        needed.add("audio")
    return frozenset(needed)


def _is_provider_bound(message: Mapping[str, Any]) -> bool:
    """Thinking signatures and encrypted reasoning are only valid at the provider that made them."""
    return any(message.get(name) for name in ("thinking_blocks", "reasoning_items", "encrypted_content"))


def _session_hint(fields: Mapping[str, Any]) -> str | None:
    metadata = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    candidates = [fields.get(name) for name in _SESSION_FIELDS]
    candidates += [metadata.get("session_id"), metadata.get("user_id")] if metadata else []
    conversation = fields.get("conversation")
    candidates += [
        fields.get("tensorzero::episode_id"),
        conversation.get("id") if isinstance(conversation, dict) else conversation,
        fields.get("previous_response_id"),
        fields.get("prompt_cache_key"),
    ]
    return next((value for value in candidates if isinstance(value, str) and value), None)


def _typed(fields: Mapping[str, Any], types: Mapping[str, Any], where: str = "") -> None:
    """Each field that is there has its type."""
    for name, kind in types.items():
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise InvalidRequest(f"{where}{name}: expected {_WORDS[kind]}", param=f"{where}{name}")


def _string(fields: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or (required and not value) or len(value) > 256:
        raise InvalidRequest(f"{name}: expected a string of 1 to 256 characters", param=name)
    return value


def _boolean(fields: Mapping[str, Any], name: str, param: str | None = None) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"{param or name}: expected true or false", param=param or name)
    return value


def _integer(fields: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name}: expected an integer from {low} to {high}", param=name)
    return value


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = fields.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(f"{name}: expected a number from {low:g} to {high:g}", param=name)


def _deeper_than(value: dict[str, Any], limit: int) -> bool:
    """Whether containers nest deeper than `limit`; level by level, so that no input can exhaust the stack."""
    level: list[dict[str, Any] | list[Any]] = [value]
    for _ in range(limit + 1):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
