"""The messages of a Messages request that goes to a Claude model as its client wrote it.

A conversation may have had answers of other models. Claude's servers refuse the thinking of those, the ids of their
tool calls and texts without a word. The first is left out; a conversation with the others is translated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.dialects import carried
from gateway.dialects.fields import refused

_ID = re.compile(r"[a-zA-Z0-9_-]+")
_IDS: Mapping[str, str] = {"tool_use": "id", "tool_result": "tool_use_id"}
_MARKS: Mapping[str, str] = {"thinking": "signature", "redacted_thinking": "data"}


def claude_messages(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages without the thinking of other models.

    Raises InvalidRequest for what Claude's servers refuse.
    """
    return [_fitted(message, f"messages[{index}]") for index, message in enumerate(messages)]


def has_system_turns(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if the conversation has system messages of its own, beside the system prompt."""
    return any(message.get("role") == "system" for message in messages)


def lacks_thinking(messages: Sequence[Mapping[str, Any]]) -> bool:
    """True if the last answer called tools and has no thinking before it.

    A Claude model with a thinking budget refuses to continue such an answer.
    """
    answers = [message["content"] for message in messages if message.get("role") == "assistant"]
    blocks = answers[-1] if answers and isinstance(answers[-1], list) else []
    called = any(block.get("type") == "tool_use" for block in blocks)
    return called and blocks[0].get("type") not in _MARKS


def _fitted(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    content = message.get("content")
    if not content:
        raise refused(f"{where}.content", "expected content")
    if not isinstance(content, list):
        return message
    kept = [block for block in content if not _is_foreign(block)]
    if not kept:
        raise refused(f"{where}.content", "expected more than another model's thinking")
    for block in kept:
        kind = block.get("type")
        if kind == "text" and not block.get("text"):
            raise refused(f"{where}.content", "expected no empty text")
        if kind in _IDS and not _ID.fullmatch(str(block.get(_IDS[kind]))):
            raise refused(f"{where}.content", f"expected ids of {_ID.pattern}")
    return message if len(kept) == len(content) else {**message, "content": kept}


def _is_foreign(block: Mapping[str, Any]) -> bool:
    """True for thinking that no Claude model signed."""
    name = _MARKS.get(str(block.get("type")))
    if name is None:
        return False
    mark = block.get(name)
    return not mark or (isinstance(mark, str) and carried.unseal(mark) is not None)
