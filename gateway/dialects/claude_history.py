"""The messages of a Messages request that goes to a model as its client wrote it.

A conversation may have had answers of other models. What those sealed is left out for every server. Claude's servers
also refuse thinking without a signature, which is left out, and the ids of other models' tool calls; a conversation
with those is translated. Other servers of the dialect have thinking without signatures, and ids, of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.dialects import sealed_state
from gateway.dialects.citations import is_made_here
from gateway.dialects.fields import refused
from gateway.unchecked import objects_in

_ID = re.compile(r"[a-zA-Z0-9_-]+")
_IDS: Mapping[str, str] = {"tool_use": "id", "tool_result": "tool_use_id"}
TOOL_CHANGES = ("tool_addition", "tool_removal")
"""Blocks of system messages that change which tools may be called from there on."""
_MARKS: Mapping[str, str] = {"thinking": "signature", "redacted_thinking": "data"}


def own_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages without what other providers sealed or cited, and without empty texts.

    Raises InvalidRequest for a message of which nothing is left.
    """
    return uncited([_without(message, _says_nothing, f"messages[{index}]") for index, message in enumerate(messages)])


def uncited(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages without citations that were made here of another model's."""
    return [_uncited(message) if message.get("role") == "assistant" else message for message in messages]


def claude_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages without thinking that no Claude model signed.

    Raises InvalidRequest for what Claude's servers refuse.
    """
    return [_of_claude(message, f"messages[{index}]") for index, message in enumerate(messages)]


def has_system_turns(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if the conversation has system messages of its own, beside the system prompt."""
    return any(message.get("role") == "system" for message in messages)


def tool_changes(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The blocks of the conversation's system messages that offer or withdraw a tool."""
    told = [message.get("content") for message in messages if message.get("role") == "system"]
    return [block for content in told for block in objects_in(content) if block.get("type") in TOOL_CHANGES]


def without_tool_changes(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages for a model whose tools never change, without empty ones."""
    made = []
    for message in messages:
        content = message.get("content")
        if message.get("role") == "system" and isinstance(content, list):
            content = [block for block in content if block.get("type") not in TOOL_CHANGES]
            if not content:
                continue
            message = {**message, "content": content}
        made.append(message)
    return made


def lacks_thinking(messages: Sequence[Mapping[str, Any]], *, anywhere: bool = False) -> bool:
    """True if the last answer called tools and has no thinking before it.

    `anywhere`: if any answer called tools, and has none in it. A Claude model with a budget refuses to continue
    such an answer.
    """
    answers = [message["content"] for message in messages if message.get("role") == "assistant"]
    return any(
        any(block.get("type") == "tool_use" for block in blocks)
        and not any(block.get("type") in _MARKS for block in (blocks if anywhere else blocks[:1]))
        for blocks in (answers if anywhere else answers[-1:])
        if isinstance(blocks, list)
    )


def _of_claude(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    kept = _without(message, lambda block: block.get("type") in _MARKS and not _mark(block), where)
    for block in kept["content"] if isinstance(kept["content"], list) else ():
        kind = block.get("type")
        if kind in _IDS and not _ID.fullmatch(str(block.get(_IDS[kind]))):
            raise refused(f"{where}.content", f"expected ids of {_ID.pattern}")
    return kept


def _without(message: Mapping[str, Any], left_out: Callable[[Any], bool], where: str) -> Mapping[str, Any]:
    content = message.get("content")
    if message.get("role") == "system" and message.get("output_config"):
        return message  # it may change the effort alone
    kept = [block for block in content if not left_out(block)] if isinstance(content, list) else content
    if not kept:
        raise refused(f"{where}.content", "expected content, and more than another model's thinking")
    return message if not isinstance(content, list) or len(kept) == len(content) else {**message, "content": kept}


def _uncited(message: Mapping[str, Any]) -> Mapping[str, Any]:
    blocks = message["content"]
    if not isinstance(blocks, list) or not any(isinstance(block.get("citations"), list) for block in blocks):
        return message
    made = []
    for block in blocks:
        given = block.get("citations")
        kept = [each for each in given if not is_made_here(each)] if isinstance(given, list) else given
        plain = {name: value for name, value in block.items() if name != "citations"}
        made.append(block if kept == given else plain | ({"citations": kept} if kept else {}))
    return {**message, "content": made}


def _says_nothing(block: Mapping[str, Any]) -> bool:
    """True for another provider's sealed thinking, and for an empty text."""
    mark = _mark(block)
    return (isinstance(mark, str) and sealed_state.unseal(mark) is not None) or (
        block.get("type") == "text" and not block.get("text")
    )


def _mark(block: Mapping[str, Any]) -> object:
    """The signature of thinking, whose text may be redacted."""
    return block.get(_MARKS.get(str(block.get("type")), ""))
