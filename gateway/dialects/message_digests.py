"""Digests of the beginnings of a conversation, which tell what was sent before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

Messages = Sequence[Mapping[str, Any]]


class MessageDigests:
    """Digests of one request's messages, each beginning's made at most once."""

    __slots__ = ("_found", "_messages")

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._found: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def whole(self) -> str:
        """The digest of all messages."""
        return self.of(len(self._messages))

    def of(self, count: int) -> str:
        """The digest of the first `count` messages."""
        found = self._found.get(count)
        if found is None:
            found = self._found[count] = messages_digest(self._messages[:count])
        return found


def messages_digest(messages: Messages) -> str:
    """Digest of messages, without cache marks, which agents move on every turn."""
    written = orjson.dumps(list(messages))
    if b'"content":[' in written or b'"cache_control"' in written:
        written = orjson.dumps([_without_marks(message) for message in messages])
    return hashlib.blake2b(written, digest_size=12).hexdigest()


def _without_marks(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without `cache_control`; a single plain text becomes a string, as without the mark."""
    made = {name: value for name, value in message.items() if name != "cache_control"}
    content = made.get("content")
    if isinstance(content, list):
        parts = [
            {name: value for name, value in part.items() if name != "cache_control"} if isinstance(part, dict) else part
            for part in content
        ]
        plain = len(parts) == 1 and isinstance(parts[0], dict) and parts[0].keys() == {"type", "text"}
        made["content"] = parts[0]["text"] if plain else parts
    return made
