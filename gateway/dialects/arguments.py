"""What may leave the house: outgoing call arguments, built from allow-lists at every depth.

LiteLLM reads some 350 arguments of its own out of whatever it is given (`api_base`, `mock_response`, `fallbacks`,
`input_cost_per_token`, MCP servers named inside `tools`, ...). So nothing a caller sent is passed on because it was not
known to be bad; it is passed on because it is named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.errors import InvalidRequest

# OpenAI's documented chat parameters, less what would change the price or the payer: `service_tier` (priority costs
# double), `web_search_options` (billed per search), `prediction` (rejected tokens are billed beyond max_tokens),
# `store` and `metadata` (the provider would keep the text).
_PLAIN = frozenset(
    {
        "temperature", "top_p", "n", "stop", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
        "top_logprobs", "seed", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key", "modalities",
        "reasoning_effort", "verbosity",
    }
)  # fmt: skip
# Sampling parameters of open-weight servers; LiteLLM forwards what its providers do not know inside `extra_body`.
_EXTRA = frozenset({"top_k", "min_p", "repetition_penalty"})
_SHAPED = frozenset({"tools", "functions", "tool_choice", "function_call", "response_format", "audio"})

ALLOWED_PARAMS = _PLAIN | _EXTRA | _SHAPED
"""Every caller's parameter that can reach a provider; messages, model, token limit and streaming are ours to set."""

_FUNCTION = ("name", "description", "parameters", "strict")
_CUSTOM_TOOL = ("name", "description", "format")
_JSON_SCHEMA = ("name", "description", "schema", "strict")
_MESSAGE = (
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio", "reasoning_content",
    "thinking_blocks", "reasoning_items", "encrypted_content", "cache_control",
)  # fmt: skip
_PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "refusal": ("refusal",),
    "image_url": ("url", "detail", "format"),
    "input_audio": ("data", "format"),
    "file": ("file_data", "filename", "file_id", "format"),
}
_CACHE_CONTROL = ("type", "ttl")


def outgoing_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The allow-listed part of `params`, shaped for LiteLLM; sampling extras go into `extra_body`.

    Schemas are copies: LiteLLM rewrites them for a provider, and the next attempt may be another provider's.

    Raises InvalidRequest for a tool that is neither a function nor a custom tool: provider tools and MCP servers
    would be run, and billed, outside of what was reserved.
    """
    outgoing: dict[str, Any] = {name: params[name] for name in _PLAIN if params.get(name) is not None}
    if params.get("tools"):
        outgoing["tools"] = _copied([_tool(tool, f"tools[{index}]") for index, tool in enumerate(params["tools"])])
    if params.get("functions"):
        outgoing["functions"] = _copied([_picked(function, _FUNCTION) for function in params["functions"]])
    for name in ("tool_choice", "function_call"):
        if params.get(name) is not None:
            outgoing[name] = _choice(params[name], name)
    if params.get("response_format") is not None:
        outgoing["response_format"] = _copied(_response_format(params["response_format"]))
    if isinstance(params.get("audio"), Mapping):
        outgoing["audio"] = _picked(params["audio"], ("voice", "format"))
    extra = {name: params[name] for name in _EXTRA if isinstance(params.get(name), int | float)}
    if extra:
        outgoing["extra_body"] = extra
    return outgoing


def outgoing_messages(messages: Sequence[Mapping[str, Any]], *, by_reference: bool) -> list[dict[str, Any]]:
    """Messages with known fields only. `by_reference`: the provider fetches picture addresses itself.

    Raises InvalidRequest for an address that LiteLLM would otherwise fetch from here.
    """
    return [_message(message, f"messages[{index}]", by_reference) for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str, by_reference: bool) -> dict[str, Any]:
    outgoing = _picked(message, _MESSAGE)
    if isinstance(outgoing.get("cache_control"), Mapping):
        outgoing["cache_control"] = _picked(outgoing["cache_control"], _CACHE_CONTROL)
    if isinstance(outgoing.get("content"), list):
        outgoing["content"] = [
            _content_part(part, f"{where}.content[{index}]", by_reference)
            for index, part in enumerate(outgoing["content"])
        ]
    if isinstance(outgoing.get("tool_calls"), list):
        outgoing["tool_calls"] = [_tool_call(call) for call in outgoing["tool_calls"]]
    return outgoing


def _content_part(part: Mapping[str, Any], where: str, by_reference: bool) -> dict[str, Any]:
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PARTS:
        raise InvalidRequest(f"{where}.type: expected one of {', '.join(sorted(_PARTS))}", param=f"{where}.type")
    outgoing: dict[str, Any] = {"type": kind}
    if kind in ("text", "refusal"):
        outgoing[kind] = part.get(kind)
    else:
        inner = part.get(kind)
        inner = {"url": inner} if kind == "image_url" and isinstance(inner, str) else inner
        if not isinstance(inner, Mapping):
            raise InvalidRequest(f"{where}.{kind}: expected an object", param=f"{where}.{kind}")
        outgoing[kind] = _picked(inner, _PARTS[kind])
        _check_addresses(outgoing[kind], f"{where}.{kind}", by_reference)
    if isinstance(part.get("cache_control"), Mapping):
        outgoing["cache_control"] = _picked(part["cache_control"], _CACHE_CONTROL)
    return outgoing


def _check_addresses(inner: Mapping[str, Any], where: str, by_reference: bool) -> None:
    """A picture is given inline (`data:`) or by an https address that the provider fetches; files inline or by id."""
    url = inner.get("url")
    if url is not None:
        inline = isinstance(url, str) and url.startswith("data:")
        referenced = by_reference and isinstance(url, str) and url.startswith(("https://", "http://"))
        if not inline and not referenced:
            expected = "a data: or https: address" if by_reference else "a data: address with this model"
            raise InvalidRequest(f"{where}.url: expected {expected}", param=f"{where}.url")
    for name in ("file_id", "file_data"):
        value = inner.get(name)
        if isinstance(value, str) and "://" in value[:64] and not value.startswith("data:"):
            raise InvalidRequest(f"{where}.{name}: expected inline data or an id", param=f"{where}.{name}")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind == "function" and isinstance(tool.get("function"), Mapping):
        outgoing: dict[str, Any] = {"type": "function", "function": _picked(tool["function"], _FUNCTION)}
    elif kind == "custom" and isinstance(tool.get("custom"), Mapping):
        outgoing = {"type": "custom", "custom": _picked(tool["custom"], _CUSTOM_TOOL)}
    else:
        raise InvalidRequest(f"{where}.type: expected a function or a custom tool", param=f"{where}.type")
    if isinstance(tool.get("cache_control"), Mapping):
        outgoing["cache_control"] = _picked(tool["cache_control"], _CACHE_CONTROL)
    return outgoing


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    outgoing = _picked(call, ("id", "type", "index"))
    if isinstance(call.get("function"), Mapping):
        outgoing["function"] = _picked(call["function"], ("name", "arguments"))
    if isinstance(call.get("custom"), Mapping):
        outgoing["custom"] = _picked(call["custom"], ("name", "input"))
    return outgoing


def _choice(choice: object, where: str) -> Any:
    if isinstance(choice, str):
        return choice
    if isinstance(choice, Mapping):
        outgoing = _picked(choice, ("type", "name"))
        for kind in ("function", "custom"):
            if isinstance(choice.get(kind), Mapping):
                outgoing[kind] = _picked(choice[kind], ("name",))
        return outgoing
    raise InvalidRequest(f"{where}: expected a string or an object", param=where)


def _response_format(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.get("type") not in ("text", "json_object", "json_schema"):
        where = "response_format.type"
        raise InvalidRequest(f"{where}: expected text, json_object or json_schema", param=where)
    outgoing = _picked(value, ("type",))
    if isinstance(value.get("json_schema"), Mapping):
        outgoing["json_schema"] = _picked(value["json_schema"], _JSON_SCHEMA)
    return outgoing


def _picked(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _copied(schema: Any) -> Any:
    return orjson.loads(orjson.dumps(schema))
