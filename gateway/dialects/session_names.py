"""Names of the session in the body of a request of any dialect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.unchecked import at, mapping

_SESSION_NAMES = ("conversation_id", "thread_id", "chat_id")
SESSION_METADATA = ("session_id", *_SESSION_NAMES, "langfuse_session_id")
"""Names of the session in a body's `metadata`."""
SESSION_FIELDS = ("session_id", "litellm_session_id", "tensorzero::episode_id", "conversation", *_SESSION_NAMES)
"""Names of the session in a body of any dialect."""
_MAY_NAME = frozenset(("metadata", *SESSION_FIELDS))
# How Claude Code wrote `metadata.user_id` before it became JSON.
_CLAUDE_CODE_SESSION = re.compile(r"_session_([0-9a-f-]{36})$")


def session_hint(fields: Mapping[str, Any]) -> str | None:
    """The session id in a body. A cache key, a user and an earlier response are not sessions."""
    if _MAY_NAME.isdisjoint(fields):
        return None
    metadata = mapping(fields.get("metadata"))
    conversation = fields.get("conversation")
    candidates = [
        fields.get("session_id"),
        fields.get("litellm_session_id"),
        *(metadata.get(name) for name in SESSION_METADATA),
        session_in_user_id(metadata.get("user_id")),
        fields.get("tensorzero::episode_id"),
        conversation.get("id") if isinstance(conversation, dict) else conversation,
        *(fields.get(name) for name in _SESSION_NAMES),
    ]
    return next((value for value in candidates if isinstance(value, str) and value), None)


def session_in_user_id(user_id: object) -> object:
    """Claude Code's session in `metadata.user_id`: JSON, or text that ends with it."""
    if not isinstance(user_id, str) or len(user_id) > 4096:
        return None
    if user_id.startswith("{"):
        try:
            return at(orjson.loads(user_id), "session_id")
        except orjson.JSONDecodeError:
            return None
    found = _CLAUDE_CODE_SESSION.search(user_id)
    return found[1] if found else None
