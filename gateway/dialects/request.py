"""Requests of `POST /chat/completions`: validates OpenAI's body into a `ChatRequest`.

Malformed or out-of-range values are refused here, with the parameter's name, before any reservation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, cast

import msgspec
import orjson
from msgspec import Struct, structs

from gateway.catalog.addresses import ADDRESS_CAPABILITIES, ANY_ADDRESS
from gateway.catalog.hosted_tools import PROVIDER_FILES
from gateway.config.settings import LimitSettings
from gateway.dialects.arguments import check_addresses
from gateway.dialects.chat_messages import message_text, read_messages
from gateway.dialects.forwarded import ForwardedRequest
from gateway.dialects.message_digests import MessageDigests
from gateway.dialects.mixed_forms import converted
from gateway.dialects.session_names import session_hint
from gateway.errors import InvalidRequest
from gateway.schema import reader
from gateway.schema.fields import CHAT_FIELDS, KNOWN_FIELDS, OWN_FIELDS, VENDOR_FIELDS
from gateway.schema.shapes import MAX_STOPS, MAX_TOOLS

MAX_METADATA = 16
"""OpenAI's limit of entries in `metadata`."""
_METADATA_CHARS = 512
_CALLED = ("function", "custom")
_CHOICES = (*_CALLED, "allowed_tools")
_FLAT = frozenset({"name", "mode", "tools"})
_SCHEMA_FIELDS = frozenset({"name", "description", "schema", "strict"})
_SCHEMA_WORDS = frozenset({"type", "properties", "anyOf", "$ref", "$defs"})
_FORMAT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "json_schema": ("json_schema",), "grammar": ("grammar", "value"), "regex": ("pattern", "value"),
    "structural_tag": ("structures", "format"), "json": ("value",),
}  # fmt: skip
"""For a type of `response_format`, the fields of which one says what is wanted."""
_WORDS = ("auto", "none", "required")
_OTHER_WORDS = {"any": "required"}
"""Mistral's and Anthropic's word, which other providers refuse or lose."""
# Fields with arbitrary JSON: only these can nest deeper than the schema.
_FREE_PARAMS = (
    "tools", "functions", "response_format", "guided_json", "structured_outputs", "json_schema", "format",
    "provider", "metadata", "conversation", "session_id", "litellm_session_id", "tensorzero::episode_id",
)  # fmt: skip
_OTHER_REASONING = ("thinking", "thinking_budget", "enable_thinking", "think", "chat_template_kwargs")


class ChatRequest(Struct, frozen=True, dict=True):
    """A validated chat body. `params` are OpenAI's parameters, `extras` all others.

    The provider determines which parameters are sent, and in which form.
    """

    model: str
    messages: tuple[dict[str, Any], ...]
    params: Mapping[str, Any]
    body_sha256: bytes
    session_hint: str | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None
    max_tokens_param: str = "max_tokens"
    capabilities: frozenset[str] = frozenset()
    images: int = 0
    open_tool_loop: bool = False
    provider_bound: bool = False
    extras: Mapping[str, Any] = msgspec.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    """Names of the client's parameters that are sent to no provider."""
    own_names: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """The client's names of translated parameters, by those of chat."""
    mode: str = "chat"
    """The kind of model that can answer: "chat", "embedding" or "moderation"."""
    token_ids: int = 0
    """Number of prompt tokens given as ids instead of text."""
    effort: str | None = None
    """The client's effort of reasoning; "": it sets its reasoning in other words; None: it leaves it open."""
    file_by_id: str | None = None
    """Where it names a file of the operator's account at the provider."""
    forwarded: ForwardedRequest | None = None
    """The request in its own dialect, for providers that have it and run the tools that it asks for."""

    @cached_property
    def digests(self) -> MessageDigests:
        """Digests of the beginnings of its messages."""
        return MessageDigests(self.messages)

    @cached_property
    def has_sound(self) -> bool:
        """True if sounds may be billed: of the prompt, the answer, or an earlier answer by its id."""
        return "audio" in self.capabilities or (
            self.provider_bound and any("id" in (message.get("audio") or {}) for message in self.messages)
        )

    @cached_property
    def route(self) -> int:
        """A number of 24 bits for its first system messages and its tools; 0 without any.

        Digits do not count: a prompt that states the date is the same every day.
        """
        told = [message_text(m) for m in takewhile(lambda m: m["role"] in ("system", "developer"), self.messages)]
        tools = self.params.get("tools") or ()
        if not (told or tools):
            return 0
        written = orjson.dumps([told, tools]).translate(None, b"0123456789")
        return max(zlib.crc32(written) >> 8, 1)


def parse_chat(body: bytes, limits: LimitSettings) -> ChatRequest:
    """Validate a chat-completions body. Raises InvalidRequest with the parameter's name.

    Tools and parts in the forms of other APIs are read only once the body is refused: others pay nothing for it. A
    system prompt in Anthropic's form would be lost instead.
    """
    fields, body_sha256 = _object(body), hashlib.sha256(body).digest()
    if fields.get("system") is not None:
        return _converted_chat(fields, limits, body_sha256)
    try:
        return chat_of(fields, limits, body_sha256)
    except InvalidRequest:
        return _converted_chat(fields, limits, body_sha256)


def _converted_chat(fields: dict[str, Any], limits: LimitSettings, body_sha256: bytes) -> ChatRequest:
    """The chat of a body that may have forms of other APIs. Raises InvalidRequest."""
    _check_depth([fields], limits)
    body_of_chat = converted(fields)
    if body_of_chat is None:
        return chat_of(fields, limits, body_sha256)
    try:
        chat = chat_of(body_of_chat.fields, limits, body_sha256)
    except InvalidRequest as error:
        raise body_of_chat.at_origin(error) from None
    return structs.replace(chat, dropped=tuple(dict.fromkeys([*chat.dropped, *body_of_chat.lost])))


def chat_of(fields: dict[str, Any], limits: LimitSettings, body_sha256: bytes, *, shallow: bool = False) -> ChatRequest:
    """Validate a chat-completions body's fields. Raises InvalidRequest with their names.

    `shallow`: the body that they were translated from is of bounded depth (`parse_object`).
    """
    fields, dropped = _with_extra_body(fields)
    if isinstance(choice := fields.get("tool_choice"), dict):
        fields = fields | {"tool_choice": _plain_choice(choice)}
    if isinstance(shape := fields.get("response_format"), dict) and shape.get("type") != "text":
        fields = fields | {"response_format": _plain_format(shape)}
    read = reader.read_body(fields)
    given = [name for name, value in fields.items() if value is not None]
    params = reader.given(read, [name for name in given if name in CHAT_FIELDS])
    extras = reader.given(read, [name for name in given if name in VENDOR_FIELDS])
    for name in ("messages", "stream_options"):
        dropped += reader.left_out(fields.get(name), getattr(read, name), name)
    for name, value in (params | extras).items():
        dropped += reader.left_out(fields[name], value, name)
    extras |= {name: fields[name] for name in given if name not in KNOWN_FIELDS}
    options = read.stream_options or {}
    if "include_obfuscation" in options:
        extras["stream_options"] = {"include_obfuscation": options["include_obfuscation"]}
    dropped += read_labels(params)
    messages = cast(list[dict[str, Any]], read.messages)
    seen = read_messages(messages)
    fetched = check_addresses(seen.with_parts, by_reference=ANY_ADDRESS)
    dropped += ["messages[].images"] if seen.left_out else []
    if not shallow:
        _check_counts(params)
        free = (fields[name] for name in _FREE_PARAMS if name in fields)
        _check_depth([*seen.free, *free, *extras.values()], limits)
    _check_choices(params)
    dropped += _without_tools(params)
    if read.stream_options is not None and not read.stream:
        raise InvalidRequest("stream_options: only allowed when stream is true", param="stream_options")
    if read.n is not None and not 1 <= read.n <= limits.choices:
        raise InvalidRequest(f"n: expected an integer from 1 to {limits.choices}", param="n")
    n = read.n or 1
    new_style = read.max_completion_tokens is not None
    return ChatRequest(
        model=read.model,
        messages=tuple(messages),
        params=params | ({"n": n} if n > 1 else {}),
        stream=read.stream is True,
        include_usage=bool((read.stream_options or {}).get("include_usage")),
        n=n,
        max_tokens=read.max_completion_tokens if new_style else read.max_tokens,
        max_tokens_param="max_completion_tokens" if new_style else "max_tokens",
        capabilities=_capabilities(params, frozenset(seen.kinds), has_custom=seen.has_custom)
        | {ADDRESS_CAPABILITIES[each] for each in fetched}
        | (set() if seen.file_by_id is None else {PROVIDER_FILES}),
        images=seen.kinds.count("image_url") + seen.generated_pictures,
        open_tool_loop=messages[-1]["role"] in ("tool", "function"),
        provider_bound=seen.bound,
        session_hint=session_hint(fields),
        body_sha256=body_sha256,
        extras=extras,
        dropped=tuple(dict.fromkeys(dropped)),
        effort=_effort(params, extras),
        file_by_id=seen.file_by_id,
    )


def _effort(params: Mapping[str, Any], extras: Mapping[str, Any]) -> str | None:
    """The client's own effort, also where it is set in the words of one provider."""
    if "reasoning_effort" in params:
        return str(params["reasoning_effort"])
    reasoning = extras.get("reasoning") or {}
    if reasoning.get("effort"):
        return str(reasoning["effort"])
    return "" if any(name in extras for name in _OTHER_REASONING) or reasoning else None


def with_forwarded(chat: ChatRequest, forwarded: ForwardedRequest) -> ChatRequest:
    """The request with its forwarded form, which may make it serve with fewer models.

    What a translation loses is told with the attempt that is translated.
    """
    lost = (*chat.dropped, *forwarded.lost)
    chat = structs.replace(chat, dropped=(), forwarded=dataclasses.replace(forwarded, lost=tuple(dict.fromkeys(lost))))
    if not forwarded.required:
        return chat
    return structs.replace(chat, capabilities=chat.capabilities | forwarded.needs)


def parse_object(body: bytes, limits: LimitSettings) -> dict[str, Any]:
    """Parse a JSON object of bounded depth. Raises InvalidRequest."""
    fields = _object(body)
    _check_depth([fields], limits)
    return fields


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("body: expected a JSON object in UTF-8") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("body: expected a JSON object")
    return fields


def _with_extra_body(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body with the parameters of `extra_body` merged in, under the same rules.

    A parameter in both places keeps the outer value; the gateway's own fields are not read from `extra_body`.
    """
    extra = fields.get("extra_body")
    if extra is None:
        return fields, []
    if not isinstance(extra, dict):
        raise InvalidRequest("extra_body: expected an object", param="extra_body")
    barred = [name for name in extra if name in OWN_FIELDS or name in fields or name == "extra_body"]
    kept = {name: value for name, value in fields.items() if name != "extra_body"}
    return {name: value for name, value in extra.items() if name not in barred} | kept, [
        f"extra_body.{name}" for name in barred
    ]


def _check_counts(params: Mapping[str, Any]) -> None:
    """Check OpenAI's limits of a chat request; other dialects may have more."""
    for name, most in (("tools", MAX_TOOLS), ("functions", MAX_TOOLS), ("stop", MAX_STOPS)):
        value = params.get(name)
        if isinstance(value, list) and len(value) > most:
            raise InvalidRequest(f"{name}: expected a list of at most {most} items, got {len(value)}", param=name)


def _check_choices(params: dict[str, Any]) -> None:
    """Check tools and tool choice, written in OpenAI's words: only functions and custom tools, which the client runs.

    A hosted tool or an MCP server would be run, and billed, by the provider, beyond the reservation.
    """
    for index, tool in enumerate(params.get("tools") or ()):
        kind = tool["type"]
        if kind not in _CALLED:
            where = f"tools[{index}].type"
            raise InvalidRequest(
                f'{where}: "{kind[:64]}" is run by a provider; expected a function or a custom tool', param=where
            )
        if kind not in tool:
            where = f"tools[{index}].{kind}.name"
            raise InvalidRequest(f"{where}: expected a string", param=where)
    choice = params.get("tool_choice")
    if isinstance(choice, str):
        choice = params["tool_choice"] = _OTHER_WORDS.get(choice, choice)
    if choice is None or choice in _WORDS:
        return
    kind = None if isinstance(choice, str) else choice.get("type")
    if kind not in _CHOICES or {*choice} != {"type", kind}:
        raise InvalidRequest(
            'tool_choice: expected none, auto, required, {"type": "function", "function": {"name"}}, the same with '
            'custom, or {"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}',
            param="tool_choice",
        )


def _plain_choice(choice: dict[str, Any]) -> Any:
    """A choice of tools in the form of chat; other APIs write the word, or what `type` says, without an object."""
    kind, rest = choice.get("type"), {name: value for name, value in choice.items() if name != "type"}
    if not rest:
        return _OTHER_WORDS.get(kind, kind) if isinstance(kind, str) else choice
    named = "function" if kind == "tool" else kind
    if named not in _CHOICES or not rest.keys() <= _FLAT:
        return choice
    if isinstance(tools := rest.get("tools"), list):
        rest["tools"] = [_plain_choice(tool) if isinstance(tool, dict) else tool for tool in tools]
    return {"type": named, named: rest}


def _plain_format(shape: dict[str, Any]) -> dict[str, Any]:
    """A format in the form of chat: Responses writes its fields beside the type, LM Studio and others the schema alone.

    OpenAI and vLLM ask for a name.
    """
    if shape.get("type") != "json_schema":
        return shape
    inner = shape.get("json_schema")
    if inner is None and isinstance(shape.get("schema"), dict):
        inner = {name: value for name, value in shape.items() if name in _SCHEMA_FIELDS}
        shape = {name: value for name, value in shape.items() if name not in _SCHEMA_FIELDS}
    if not isinstance(inner, dict):
        return shape
    if "schema" not in inner and not _SCHEMA_WORDS.isdisjoint(inner):
        inner = {"schema": inner}
    return shape | {"json_schema": inner if inner.get("name") else inner | {"name": "answer"}}


def _check_format(shape: Mapping[str, Any]) -> None:
    """Check that a format says what it wants. Raises InvalidRequest."""
    wanted = _FORMAT_FIELDS.get(shape["type"], ())
    if wanted and all(shape.get(name) is None for name in wanted):
        where = f"response_format.{wanted[0]}"
        raise InvalidRequest(f"{where}: expected it with the type {shape['type']}", param=where)


def _without_tools(params: dict[str, Any]) -> list[str]:
    """Remove empty lists of tools, and what says how to use tools from a request without any.

    Returns the names for `x-seqroute-dropped`. Providers refuse an empty list, which says no more than none.
    """
    for name in ("tools", "functions"):
        if params.get(name) == []:
            del params[name]
    if params.get("tools") or params.get("functions"):
        return []
    names = [name for name in ("tool_choice", "parallel_tool_calls", "function_call") if params.get(name) is not None]
    for name in names:
        del params[name]
    return names


def _capabilities(params: Mapping[str, Any], parts: frozenset[str], *, has_custom: bool) -> frozenset[str]:
    """The capabilities that the request needs, under the catalogue's names."""
    needed = set()
    if params.get("tools") or params.get("functions"):
        needed.add("tools")
    if has_custom or any("custom" in tool for tool in params.get("tools") or ()):
        needed.add("custom_tools")
    response_format = params.get("response_format")
    if response_format:
        _check_format(response_format)
        if response_format["type"] == "json_schema":
            needed.add("response_schema")
    if "image_url" in parts:
        needed.add("vision")
    if "video_url" in parts:
        needed.add("video")
    if "input_audio" in parts or "audio" in (params.get("modalities") or ()):
        needed.add("audio")
    return frozenset(needed)


def read_labels(params: dict[str, Any]) -> list[str]:
    """Keep the `metadata` that OpenAI accepts, a few short texts; return the names of the rest."""
    dropped: list[str] = []
    labels = params.pop("metadata", None)
    if isinstance(labels, dict):
        kept = {
            name: value for name, value in labels.items() if isinstance(value, str) and len(value) <= _METADATA_CHARS
        }
        if len(kept) > MAX_METADATA:
            return ["metadata"]
        dropped += [f"metadata.{name}" for name in labels if name not in kept]
        if kept:
            params["metadata"] = kept
    elif labels is not None:
        dropped.append("metadata")
    return dropped


def _check_depth(values: Sequence[Any], limits: LimitSettings) -> None:
    """Raise when a value nests too deeply. Iterative, so that no input can exhaust the stack."""
    level = [value for value in values if isinstance(value, dict | list)]
    for _ in range(limits.json_depth + 1):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise InvalidRequest(f"body: nested deeper than {limits.json_depth} levels")
