"""The order of Claude's events: a block ends once, before the next and before the message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_STOP = "content_block_stop"
_ENDS = ("content_block_start", "message_delta", "message_stop")


@dataclass(slots=True)
class OpenBlock:
    """The block of a stream that has begun and not ended; some servers never say that one ended."""

    _index: float | None = None
    _ended: set[float] = field(default_factory=set)

    def in_order(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The event, after an end that is missing; nothing for the second end of a block."""
        kind, index = event.get("type"), _index_in(event)
        if kind == _STOP:
            index = self._index if index is None else index
            if index in self._ended:
                return []
            self._end(index)
        if kind not in _ENDS:
            return [event]
        ends = [] if self._index is None else [{"type": _STOP, "index": self._index}]
        self._end(self._index)
        if kind == "content_block_start":
            self._index = index or 0
            self._ended.discard(self._index)
        return [*ends, event]

    def _end(self, index: float | None) -> None:
        if index is not None:
            self._ended.add(index)
        if index == self._index:
            self._index = None


def _index_in(event: Mapping[str, Any]) -> float | None:
    index = event.get("index")
    return index if isinstance(index, int | float) else None
