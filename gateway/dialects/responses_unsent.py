"""Fields of a Responses body that its chat body does not have, for `x-seqroute-dropped`.

The body was translated before, so its types are known to be right. What clients send back of answers without a meaning
for models (ids, states, log probabilities) is not named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.dialects.fields import kind_of_item, names_of, unknown
from gateway.dialects.responses_schema import (
    OfferedResponsesTool,
    ResponsesReasoning,
    ResponsesStreamOptions,
    ResponsesToolChoice,
    TextConfig,
    TextFormat,
)
from gateway.dialects.responses_tools import CALLED
from gateway.dialects.session_names import SESSION_FIELDS

_ELSEWHERE = frozenset(SESSION_FIELDS) | {
    "input", "include", "store", "stream_options", "client_metadata", "background", "prompt",
}  # fmt: skip
_TOP: Mapping[str, frozenset[str]] = {
    "reasoning": names_of(ResponsesReasoning), "text": names_of(TextConfig),
    "stream_options": names_of(ResponsesStreamOptions), "tool_choice": names_of(ResponsesToolChoice),
}  # fmt: skip
_FORMAT = names_of(TextFormat)
_TOOL = names_of(OfferedResponsesTool) - {"tools"}
_NAMESPACE = frozenset({"type", "name", "tools"})
_HANDED_OUT = frozenset({"type", "id", "status", "object", "created_by"})
_CALL = _HANDED_OUT | {"call_id", "name", "namespace", "arguments"}
_OUTPUT = _HANDED_OUT | {"call_id", "output"}
_ITEMS: Mapping[str, frozenset[str]] = {
    "message": _HANDED_OUT | {"role", "content"},
    "function_call": _CALL, "custom_tool_call": _CALL - {"arguments"} | {"input"},
    "function_call_output": _OUTPUT, "custom_tool_call_output": _OUTPUT,
    "reasoning": _HANDED_OUT | {"summary", "content", "encrypted_content"},
}  # fmt: skip
"""Fields of the items that are translated; all others are forwarded as they are."""
_LISTS: Mapping[str, str] = {
    "message": "content", "function_call_output": "output", "custom_tool_call_output": "output",
}  # fmt: skip
"""Items with a list of parts, and its field."""
_SAID = frozenset({"type", "text"})
_PARTS: Mapping[str, frozenset[str]] = {
    "input_text": _SAID, "text": _SAID, "summary_text": _SAID, "output_text": _SAID | {"logprobs"},
    "refusal": frozenset({"type", "refusal"}),
    "input_image": frozenset({"type", "image_url", "detail"}),
    "input_file": frozenset({"type", "file_data", "filename"}),
    "input_audio": frozenset({"type", "input_audio"}),
}  # fmt: skip
_SOUND = frozenset({"data", "format"})
_SAYS_NOTHING: Sequence[Any] = ([], {}, "")
_OF_ANY_ANSWER = ("reasoning.encrypted_content", "message.output_text.logprobs")
"""What `include` may ask for of any answer."""
_OF_HOSTED_TOOLS = ("web_search_call.", "file_search_call.", "code_interpreter_call.", "computer_call_output.")
"""What it may ask for of tools whose results a translated request does not have."""


def unsent(fields: Mapping[str, Any], own: Sequence[Mapping[str, Any]], translated: frozenset[str]) -> list[str]:
    """Paths, without indexes, of what is not translated.

    `own` are the items of this request, `translated` the names of the fields that its chat body or its answer has.
    """
    unsent = unknown(fields, translated | _ELSEWHERE, "")
    if fields.get("truncation") == "auto":
        unsent.add("truncation")
    for where, known in _TOP.items():
        inner = fields.get(where)
        if isinstance(inner, Mapping):
            unsent |= unknown(inner, known, f"{where}.")
    unsent |= unknown((fields.get("text") or {}).get("format") or {}, _FORMAT, "text.format.")
    for tool in fields.get("tools") or ():
        if tool["type"] in CALLED:
            unsent |= unknown(tool, _TOOL, "tools[].")
        elif tool["type"] == "namespace":
            told = {name: value for name, value in tool.items() if value != ""}
            unsent |= unknown(told, _NAMESPACE, "tools[].")
            for inner in tool.get("tools") or ():
                unsent |= unknown(inner, _TOOL, "tools[].tools[].")
    if fields.get("tool_choice") is not None and not fields.get("tools"):
        unsent.add("tool_choice")
    asked = (
        name
        for name in fields.get("include") or ()
        if name not in _OF_ANY_ANSWER and not name.startswith(_OF_HOSTED_TOOLS)
    )
    unsent.update(f"include.{name[:64]}" for name in asked)
    for item in own:
        unsent.update(_of_item(item))
    return sorted(unsent)


def _of_item(item: Mapping[str, Any]) -> Iterator[str]:
    kind = kind_of_item(item)
    known = _ITEMS.get(kind)
    if known is None:
        return
    if not item.keys() <= known:
        yield from _saying(item, known, "input[].")
    listed = _LISTS.get(kind)
    parts = item.get(listed) if listed is not None else None
    if type(parts) is list:
        for part in parts:
            expected = _PARTS[part["type"]]
            if not part.keys() <= expected:
                yield from _saying(part, expected, f"input[].{listed}[].")
            if "input_audio" in part:
                yield from _saying(part["input_audio"], _SOUND, f"input[].{listed}[].input_audio.")


def _saying(fields: Mapping[str, Any], known: frozenset[str], where: str) -> Iterator[str]:
    return (where + name for name in unknown(fields, known, "") if fields[name] not in _SAYS_NOTHING)
