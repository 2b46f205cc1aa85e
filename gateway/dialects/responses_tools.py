"""Tools of the Responses dialect as chat functions, and back.

A chat function has one flat name. A tool in a namespace becomes `namespace__name`. A free-form tool becomes a function
with one string, `input`, and its grammar in the description, because only OpenAI knows free-form tools and a session
may change its model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.catalog.hosted_tools import kind_of
from gateway.dialects.fields import copied, need, objects, read, refused
from gateway.dialects.forwarded import HostedTool

MAX_NAME = 64
_CALLED = ("function", "custom")
_FREE_FORM = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """The Responses tool behind a chat function."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The chat tools of a request, their Responses tools by name, and those of OpenAI's servers.

    `optional` ones are lost by name where no model has them.
    """

    tools: list[dict[str, Any]]
    by_name: Mapping[str, OfferedTool]
    hosted: tuple[HostedTool, ...]
    optional: tuple[HostedTool, ...]


def function_name(name: str, namespace: str | None) -> str:
    """The flat name of a tool; long names end in a digest."""
    flat = name if not namespace else f"{namespace.rstrip('_')}__{name}"
    if len(flat) <= MAX_NAME:
        return flat
    return flat[: MAX_NAME - 9] + "_" + hashlib.sha256(flat.encode()).hexdigest()[:8]


def offered_tools(tools: Iterable[Mapping[str, Any]]) -> OfferedTools:
    """The chat functions for `tools`, and OpenAI's own tools. Raises InvalidRequest.

    Codex adds `web_search` with `external_web_access: false` to every request, without the user asking for it: this
    form is optional.
    """
    made: list[dict[str, Any]] = []
    by_name: dict[str, OfferedTool] = {}
    hosted: list[HostedTool] = []
    optional: list[HostedTool] = []

    def offer(tool: Mapping[str, Any], where: str, namespace: str | None) -> None:
        kind = tool.get("type")
        name = need(tool, "name", str, f"{where}.")
        flat = function_name(name, namespace)
        function: dict[str, Any] = {"name": flat} | copied(tool, {"description": "description"})
        if kind == "custom":
            function["description"] = _described(tool, where)
            function["parameters"] = _FREE_FORM
            by_name[flat] = OfferedTool("custom", name, namespace)
        else:
            read(tool, "parameters", dict, f"{where}.")
            read(tool, "strict", bool, f"{where}.")
            function |= copied(tool, {"parameters": "parameters", "strict": "strict"})
            by_name[flat] = OfferedTool("function", name, namespace)
        made.append({"type": "function", "function": function})

    for index, tool in enumerate(tools):
        where, kind = f"tools[{index}]", tool.get("type")
        if kind in _CALLED:
            offer(tool, where, None)
        elif kind == "namespace":
            namespace = need(tool, "name", str, f"{where}.")
            for position, inner in enumerate(objects(tool.get("tools"), f"{where}.tools")):
                at = f"{where}.tools[{position}]"
                if inner.get("type") not in _CALLED:
                    raise refused(f"{at}.type", "expected function or custom")
                offer(inner, at, namespace)
        elif isinstance(kind, str) and kind_of(kind, "responses_api") is not None:
            left = kind == "web_search" and tool.get("external_web_access") is False
            (optional if left else hosted).append(HostedTool(f"{where}.type", kind))
        else:
            named = f'"{kind[:64]}"' if isinstance(kind, str) else "a tool without a type"
            raise refused(f"{where}.type", f"{named} is not served here; expected function, custom or a hosted tool")
    return OfferedTools(made, by_name, tuple(hosted), tuple(optional))


def choice_of(choice: object, offered: OfferedTools) -> dict[str, Any]:
    """`tool_choice` as chat parameters; `allowed_tools` also restricts the tools."""
    if choice is None:
        return {}
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise refused("tool_choice", "expected auto, none, required or an object")
        return {"tool_choice": choice}
    if not isinstance(choice, Mapping):
        raise refused("tool_choice", "expected a string or an object")
    kind = choice.get("type")
    if kind in _CALLED:
        return {"tool_choice": {"type": "function", "function": {"name": _flat(choice, "tool_choice.")}}}
    if kind == "allowed_tools":
        mode = choice.get("mode", "auto")
        if mode not in ("auto", "required"):
            raise refused("tool_choice.mode", "expected auto or required")
        listed = objects(choice.get("tools"), "tool_choice.tools")
        allowed = {_flat(tool, "tool_choice.tools.") for tool in listed if tool.get("type") in (None, *_CALLED)}
        return {"tool_choice": mode, "tools": [t for t in offered.tools if t["function"]["name"] in allowed]}
    if any(kind_of(kind, "responses_api") == kind_of(tool.kind, "responses_api") for tool in offered.hosted):
        return {}  # a hosted tool, which is forwarded
    raise refused("tool_choice.type", "expected function, custom, allowed_tools or one of the hosted tools")


def call_arguments(item: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Flat name and JSON arguments of a `function_call` or `custom_tool_call` item."""
    if item.get("type") == "custom_tool_call":
        return _flat(item, where), orjson.dumps({"input": need(item, "input", str, where)}).decode()
    return _flat(item, where), need(item, "arguments", str, where)


def free_form_input(arguments: str) -> str:
    """The text of a free-form call from its JSON arguments; invalid JSON is returned unchanged."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def _flat(fields: Mapping[str, Any], where: str) -> str:
    return function_name(need(fields, "name", str, where), read(fields, "namespace", str, where))


def _described(tool: Mapping[str, Any], where: str) -> str:
    description = read(tool, "description", str, f"{where}.") or ""
    shape = read(tool, "format", dict, f"{where}.") or {}
    if shape.get("type") == "grammar":
        description += f"\n\n`input` must match this {shape.get('syntax', '')} grammar:\n{shape.get('definition', '')}"
    return description.strip()
