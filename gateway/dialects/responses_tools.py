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
from gateway.dialects.fields import need, read, refused, within
from gateway.dialects.forwarded import HostedTool
from gateway.dialects.responses_schema import check_tool
from gateway.errors import InvalidRequest

MAX_NAME = 64
CALLED = ("function", "custom")
"""Types of tools that the client runs."""
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


def offered_tools(tools: Iterable[Mapping[str, Any]], *, codex: bool = False) -> OfferedTools:
    """The chat functions for `tools`, and OpenAI's own tools. Raises InvalidRequest.

    Codex adds `web_search` to every request, without the user asking for it, with `external_web_access: false` or, if
    it may do anything, `true`: its form is optional. `codex`: the request comes from it.
    """
    made: list[dict[str, Any]] = []
    by_name: dict[str, OfferedTool] = {}
    hosted: list[HostedTool] = []
    optional: list[HostedTool] = []

    def offer(tool: Mapping[str, Any], namespace: str | None) -> None:
        kind, name = tool.get("type"), need(tool, "name", str)
        flat = function_name(name, namespace)
        function: dict[str, Any] = {"name": flat}
        if kind == "custom":
            function |= {"description": _described(tool), "parameters": _FREE_FORM}
            by_name[flat] = OfferedTool("custom", name, namespace)
        else:
            for field in ("description", "parameters", "strict"):
                if tool.get(field) is not None:
                    function[field] = tool[field]
            by_name[flat] = OfferedTool("function", name, namespace)
        made.append({"type": "function", "function": function})

    for index, tool in enumerate(tools):
        kind = tool["type"]
        try:
            if kind in CALLED:
                offer(tool, None)
            elif kind == "namespace":
                namespace = need(tool, "name", str)
                for position, inner in enumerate(tool.get("tools") or ()):
                    try:
                        check_tool(inner)
                        if inner["type"] not in CALLED:
                            raise refused("type", "expected function or custom")
                        offer(inner, namespace)
                    except InvalidRequest as error:
                        raise within(f"tools[{position}]", error) from None
            elif kind_of(kind, "responses_api") is not None:
                access = tool.get("external_web_access") if kind == "web_search" else None
                unasked = access is False or (codex and access is True)
                (optional if unasked else hosted).append(HostedTool(f"tools[{index}].type", kind))
            else:
                raise refused("type", f'"{kind[:64]}" is not served here; expected function, custom or a hosted tool')
        except InvalidRequest as error:
            raise within(f"tools[{index}]", error) from None
    return OfferedTools(made, by_name, tuple(hosted), tuple(optional))


def choice_of(choice: object, offered: OfferedTools) -> dict[str, Any]:
    """The `tool_choice` as chat parameters; `allowed_tools` also restricts the tools."""
    if choice is None:
        return {}
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise refused("tool_choice", "expected auto, none, required or an object")
        return {"tool_choice": choice}
    assert isinstance(choice, Mapping)  # by the schema
    kind = choice["type"]
    if kind in CALLED:
        return {"tool_choice": {"type": "function", "function": {"name": _flat(choice, "tool_choice.")}}}
    if kind == "allowed_tools":
        listed = choice.get("tools") or ()
        allowed = {
            _flat(tool, f"tool_choice.tools[{index}].")
            for index, tool in enumerate(listed)
            if tool.get("type") in (None, *CALLED)
        }
        allowing = [tool for tool in offered.tools if tool["function"]["name"] in allowed]
        return {"tool_choice": choice.get("mode") or "auto", "tools": allowing}
    if any(kind_of(kind, "responses_api") == kind_of(tool.kind, "responses_api") for tool in offered.hosted):
        return {}  # a hosted tool, which is forwarded
    raise refused("tool_choice.type", "expected function, custom, allowed_tools or one of the hosted tools")


def call_arguments(item: Mapping[str, Any]) -> tuple[str, str]:
    """Flat name and JSON arguments of a `function_call` or `custom_tool_call` item."""
    if item.get("type") == "custom_tool_call":
        return _flat(item), orjson.dumps({"input": need(item, "input", str)}).decode()
    return _flat(item), need(item, "arguments", str)


def free_form_input(arguments: str) -> str:
    """The text of a free-form call from its JSON arguments; invalid JSON is returned unchanged."""
    try:
        found = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def _flat(fields: Mapping[str, Any], where: str = "") -> str:
    return function_name(need(fields, "name", str, where), read(fields, "namespace", str, where))


def _described(tool: Mapping[str, Any]) -> str:
    description, shape = tool.get("description") or "", tool.get("format") or {}
    if shape.get("type") == "grammar":
        description += f"\n\n`input` must match this {shape.get('syntax', '')} grammar:\n{shape.get('definition', '')}"
    return str(description).strip()
