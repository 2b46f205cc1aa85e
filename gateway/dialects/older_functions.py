"""The older `functions` and `function_call` for providers that only know tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.unchecked import listed, objects_in

PARAMETER = "functions"
PARAMETERS = frozenset({PARAMETER, "function_call"})
_CALL = "function_call"


def calls_functions(messages: Iterable[Mapping[str, Any]]) -> bool:
    """True if the history has a function call or the result of one."""
    return any(message["role"] == "function" or message.get(_CALL) for message in messages)


def calls_in(message: Mapping[str, Any]) -> list[Any]:
    """The calls of a message or a delta, of tools and of a function; they may be malformed."""
    called = message.get(_CALL)
    return [*listed(message.get("tool_calls")), *([{"function": called}] if called else ())]


def is_result(message: Mapping[str, Any]) -> bool:
    """True for the result of a call."""
    return message.get("role") in ("tool", "function")


def offered_functions(params: Mapping[str, Any]) -> list[Any]:
    """The functions that a request offers, as tools or in the older form; they may be malformed."""
    return [*(tool.get("function") for tool in objects_in(params.get("tools"))), *listed(params.get(PARAMETER))]


def params_with_tools(params: Mapping[str, Any], supported: frozenset[str]) -> dict[str, Any]:
    """The parameters with `functions` as tools, called one at a time if that is `supported`."""
    if PARAMETER not in params:
        return dict(params)
    made = {name: value for name, value in params.items() if name not in (PARAMETER, _CALL)}
    tools = [{"type": "function", "function": function} for function in params[PARAMETER]]
    made["tools"] = [*(params.get("tools") or ()), *tools]
    if "parallel_tool_calls" in supported:
        made["parallel_tool_calls"] = False
    choice = params.get(_CALL)
    if choice is not None and "tool_choice" not in params:
        made["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", "function": choice}
    return made


def messages_with_tool_calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with function calls and their results as tool calls and theirs."""
    made: list[dict[str, Any]] = []
    open_calls: dict[str, str] = {}
    call_id = "call_0"
    for number, message in enumerate(messages):
        rest = dict(message)
        called = rest.pop(_CALL, None)
        if called and not rest.get("tool_calls"):
            open_calls[called["name"]] = call_id = f"call_{number}"
            function = {"name": called["name"], "arguments": called.get("arguments") or "{}"}
            rest["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        elif rest["role"] == "function":
            name = rest.pop("name", None) or ""
            rest |= {"role": "tool", "tool_call_id": open_calls.get(name, call_id)}
        made.append(rest)
    return made


def call_functions(choices: Iterable[dict[str, Any]]) -> None:
    """Write the first tool call of each choice, whole or in a delta, as a function call.

    The form has one. A model that makes several at once, although told not to, asks for the others again when it has
    the first one's result.
    """
    for choice in choices:
        for part in (choice.get("message"), choice.get("delta")):
            if not isinstance(part, dict):
                continue
            for call in reversed(part.pop("tool_calls", None) or ()):
                if call.get("index", 0) == 0 and "function" in call:
                    part[_CALL] = call["function"]
        if choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = _CALL
