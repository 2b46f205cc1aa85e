"""The order of Claude's events: a block ends before the next one and before the message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ENDS = ("content_block_start", "message_delta", "message_stop")


@dataclass(slots=True)
class OpenBlock:
    """The block of a stream that has begun and not ended; some servers never say that one ended."""

    index: Any = None

    def missing_end(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """The end of the open block that should stand before `event`, if it is missing."""
        kind, open_index = event.get("type"), self.index
        if kind == "content_block_stop":
            self.index = None
        elif kind in _ENDS:
            self.index = event.get("index", 0) if kind == "content_block_start" else None
            if open_index is not None:
                return {"type": "content_block_stop", "index": open_index}
        return None
