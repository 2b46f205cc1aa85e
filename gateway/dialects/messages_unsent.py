"""Fields of a Messages body that its chat body does not have, for `x-seqroute-dropped`.

The body was translated before, so its types are known to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.dialects.claude_history import TOOL_CHANGES
from gateway.dialects.fields import names_of, unknown
from gateway.dialects.messages_schema import (
    MessagesMetadata,
    MessagesThinking,
    MessagesToolChoice,
    OutputConfig,
    OutputFormat,
)
from gateway.dialects.session_names import SESSION_METADATA

_TOP: Mapping[str, frozenset[str]] = {
    "output_config": names_of(OutputConfig), "output_format": names_of(OutputFormat),
    "thinking": names_of(MessagesThinking) - {"display"}, "tool_choice": names_of(MessagesToolChoice),
    "metadata": names_of(MessagesMetadata) | frozenset(SESSION_METADATA),
}  # fmt: skip
_MESSAGE = frozenset({"role", "content"})
_MARK = frozenset({"type", "ttl"})
_THINKING = frozenset({"type", "thinking", "signature", "data"})
_BLOCKS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text", "cache_control"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "title", "context", "cache_control"}),
    "search_result": frozenset({"type", "source", "title", "content", "cache_control"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
    "tool_reference": frozenset({"type", "tool_name", "cache_control"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control"}),
    "thinking": _THINKING, "redacted_thinking": _THINKING,
}  # fmt: skip
_SOURCES: Mapping[str, frozenset[str]] = {
    "base64": frozenset({"type", "media_type", "data"}), "url": frozenset({"type", "url"}),
    "text": frozenset({"type", "media_type", "data"}), "content": frozenset({"type", "content"}),
}  # fmt: skip
_SAYS_NOTHING: Sequence[Any] = ([], {}, {"enabled": False}, {"type": "direct"})
"""Values of `citations` and of a call's `caller` that are the default."""


def unsent_inside(fields: Mapping[str, Any]) -> set[str]:
    """Paths, without indexes, of the fields within `fields` that are not translated."""
    unsent: set[str] = set()
    for name, known in _TOP.items():
        unsent |= unknown(fields.get(name) or {}, known, f"{name}.")
    shape = (fields.get("output_config") or {}).get("format")
    unsent |= unknown(shape or {}, _TOP["output_format"], "output_config.format.")
    unsent.update(unsent_of_blocks(fields.get("system"), "system[]"))
    for message in fields["messages"]:
        unsent |= unknown(message, _MESSAGE, "messages[].")
        unsent.update(unsent_of_blocks(message["content"], "messages[].content[]"))
    return unsent


def unsent_of_blocks(blocks: object, where: str) -> Iterator[str]:
    """Paths, without indexes, of the fields within translated blocks that chat does not have."""
    for block in blocks if isinstance(blocks, list) else ():
        kind = block.get("type")
        if kind in TOOL_CHANGES:
            yield f"{where}.{kind}"
        known = _BLOCKS.get(kind)
        if known is None:
            continue  # forwarded as it is
        if not block.keys() <= known:
            yield from (
                f"{where}.{name}"
                for name in block.keys() - known
                if block[name] is not None and block[name] not in _SAYS_NOTHING
            )
        if isinstance(block.get("cache_control"), Mapping):
            yield from unknown(block["cache_control"], _MARK, f"{where}.cache_control.")
        if kind in ("tool_result", "search_result"):
            yield from unsent_of_blocks(block.get("content"), f"{where}.content[]")
        elif kind in ("document", "image"):
            source = block["source"]
            yield from unknown(source, _SOURCES[source["type"]], f"{where}.source.")
            yield from unsent_of_blocks(source.get("content"), f"{where}.source.content[]")
