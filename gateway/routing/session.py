"""Which session a turn belongs to, and what the session remembers between turns.

The id comes from our header, else from an alias another gateway or a coding agent sends, else from the body, else from
a fingerprint of how the conversation opens. It is always scoped to the tenant, so two tenants never meet in one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from gateway.accounts.sessions import SESSION_ID, normalize_id
from gateway.errors import InvalidRequest
from gateway.ledger.records import SessionRow
from policy.mdp import SessionView

OWN_HEADER = "x-session-id"
ALIAS_HEADERS: tuple[str, ...] = (
    "x-litellm-session-id",
    "x-litellm-trace-id",
    "x-portkey-trace-id",
    "helicone-session-id",
    "x-bf-session-id",
    "agent-session-id",
    "x-model-affinity",
    "x-conversation-id",
    "x-claude-code-session-id",
    "session_id",
    "session-id",
    "thread-id",
    "conversation_id",
    "x-opencode-session",
    "x-session-affinity",
    "x-amp-thread-id",
    "x-grok-conv-id",
)
PROMPT_CACHE_S = 300.0
"""Providers drop a prompt cache about five minutes after its last use."""


@dataclass(frozen=True, slots=True)
class SessionKey:
    """How a turn names its session; a fingerprint stands for the newest conversation that opened alike."""

    session_id: str
    fingerprint: bool = False


@dataclass(frozen=True, slots=True)
class WarmPrefix:
    """What a model's provider has cached of this conversation: its first `messages` messages, `tokens` long."""

    messages: int
    digest: str
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn that `model` answered: the digest of its `messages` messages."""

    messages: int
    digest: str
    model: str


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """What the next turn's observation needs; stored as JSON beside the session's balance."""

    last_model: str | None = None
    last_at_ms: int | None = None
    last_request: str | None = None
    """Digest of the last turn's messages: the same again is a regeneration, a signal of a bad answer."""
    tokens_so_far: int = 0
    failures: int = 0
    regenerations: int = 0
    tool_errors: int = 0
    explores: bool = True
    """False: the client asked that nothing of this session is left to chance (X-Route-Explore: off)."""
    warm: Mapping[str, WarmPrefix] = field(default_factory=dict)
    answered: tuple[Answered, ...] = ()
    """The newest turns, oldest first: agents run helpers under one session id, each with a conversation of its own."""

    @classmethod
    def from_json(cls, text: str) -> SessionMemory:
        """Read what the ledger merged; what a newer version added is left out, so that replicas of both can serve."""
        stored = orjson.loads(text)
        values = {name.name: stored[name.name] for name in fields(cls) if name.name in stored}
        values["warm"] = {model: WarmPrefix(**prefix) for model, prefix in values.get("warm", {}).items()}
        values["answered"] = tuple(Answered(**turn) for turn in values.get("answered", ()))
        return cls(**values)


def identify(
    headers: Mapping[str, str], hint: str | None, opening: bytes, key_id: str, extra_headers: Sequence[str] = ()
) -> SessionKey:
    """The session of a turn; the first match wins. Raises InvalidRequest for a bad value in our own header."""
    own = headers.get(OWN_HEADER)
    if own is not None:
        if not SESSION_ID.fullmatch(own):
            raise InvalidRequest("X-Session-Id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="X-Session-Id")
        return SessionKey(own)
    for name in (*extra_headers, *ALIAS_HEADERS):
        value = headers.get(name.lower())
        if value:
            return SessionKey(normalize_id(value))
    if hint:
        return SessionKey(normalize_id(hint))
    return SessionKey("fp:" + hashlib.sha256(key_id.encode() + b"\0" + opening).hexdigest()[:40], fingerprint=True)


def is_over(row: SessionRow, idle_timeout_s: float, at_ms: int) -> bool:
    """Whether a conversation that opens alike is another one: the last was closed, or nothing happened for long."""
    idle = at_ms - row.updated_at_ms > idle_timeout_s * 1000 and row.balance.reserved_nanousd == 0
    return idle or row.state == "closed"


def next_of(session_id: str) -> str:
    """The session after `session_id` under the same fingerprint: two replicas that ask begin the same one."""
    fingerprint, _, number = session_id.partition(".")
    return f"{fingerprint}.{int(number or 0) + 1:06d}"


def messages_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """What identifies messages. Cache marks do not count: agents move them to the newest message on every turn."""
    written = orjson.dumps(list(messages))
    if b'"content":[' in written or b'"cache_control"' in written:
        written = orjson.dumps([_without_marks(message) for message in messages])
    return hashlib.blake2b(written, digest_size=12).hexdigest()


def _without_marks(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without `cache_control`, and one plain text as a string: the dialects write it so without a mark."""
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


def warm_tokens(memory: SessionMemory, model: str, messages: Sequence[Mapping[str, Any]], at_ms: int) -> int:
    """Prompt tokens this model would read from its cache: only an unchanged, recently used prefix counts."""
    prefix = memory.warm.get(model)
    if prefix is None or at_ms - prefix.at_ms > PROMPT_CACHE_S * 1000 or prefix.messages > len(messages):
        return 0
    return prefix.tokens if messages_digest(messages[: prefix.messages]) == prefix.digest else 0


def answered_by(memory: SessionMemory, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The model that answered the longest beginning of this conversation, else the one of the session's last turn."""
    longest_first = sorted(enumerate(memory.answered), key=lambda placed: (placed[1].messages, placed[0]), reverse=True)
    for _, turn in longest_first:
        if turn.messages < len(messages) and messages_digest(messages[: turn.messages]) == turn.digest:
            return turn.model
    return memory.last_model


def news(
    *,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    prompt_tokens: int,
    output_tokens: int,
    failed: bool,
    regenerated: bool,
    tool_error: bool,
    at_ms: int,
    explores: bool = True,
) -> str:
    """What a turn on `model` adds to its session's memory, as `records.merge_memory` merges it."""
    digest = messages_digest(messages)
    added = {
        "tokens_so_far": prompt_tokens + output_tokens,
        "failures": int(failed),
        "regenerations": int(regenerated),
        "tool_errors": int(tool_error),
    }
    warm = WarmPrefix(messages=len(messages), digest=digest, tokens=prompt_tokens, at_ms=at_ms)
    told = {
        "add": added,
        "set": {"last_model": model, "last_at_ms": at_ms, "last_request": digest, "explores": explores},
        "warm": {} if failed else {model: warm},
        "answered": [] if failed else [Answered(len(messages), digest, model)],
    }
    return orjson.dumps(told).decode()


def view(
    memory: SessionMemory,
    *,
    turn: int,
    expected_turns: int | None,
    budget_usd: float,
    remaining_usd: float,
    tenant_remaining_usd: float,
    spent_usd: float,
    quality_count: int,
    quality_sum: float,
    last_quality: float | None,
    tool_loop: bool,
    at_ms: int,
) -> SessionView:
    """The session as a policy sees it; the quality arguments sum up the scores that feedback brought so far."""
    return SessionView(
        turn=turn,
        expected_turns=expected_turns,
        budget_usd=budget_usd,
        remaining_usd=remaining_usd,
        tenant_remaining_usd=tenant_remaining_usd,
        spent_usd=spent_usd,
        tokens_so_far=memory.tokens_so_far,
        failures=memory.failures,
        regenerations=memory.regenerations,
        tool_errors=memory.tool_errors,
        last_quality=last_quality,
        mean_quality=quality_sum / quality_count if quality_count else None,
        last_model=memory.last_model,
        seconds_since_last=None if memory.last_at_ms is None else max(0.0, (at_ms - memory.last_at_ms) / 1000),
        tool_loop=tool_loop,
    )
