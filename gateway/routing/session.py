"""The session of a turn, and the session's memory between turns.

The id comes from our header, else from a header of another gateway or coding agent, else from the body. Without one the
conversation itself identifies it (`gateway.routing.conversations`). It is always scoped to the tenant, so two tenants
never meet in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from msgspec import Struct, convert, field

from gateway.accounts.sessions import SESSION_ID, normalize_id
from gateway.catalog.cache_hits import LONGEST_CACHE_S, PROMPT_CACHE_S
from gateway.dialects.message_digests import MessageDigests
from gateway.errors import InvalidRequest
from gateway.ledger.budget_headers import BudgetHeaders
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
    "x-openwebui-chat-id",
    "x-chat-id",
    "x-thread-id",
    "langfuse-session-id",
    "x-opencode-session-id",
    "x-codex-thread-id",
    "x-client-session-id",
    "x-kilocode-taskid",
    "x-kilo-session",
    "x-task-id",
    "x-roo-task-id",
    "x-continue-session-id",
    "x-coder-chat-id",
    "x-goose-session-id",
    "x-hermes-session-id",
    "x-cagent-session-id",
)

_TITLE = "title-"
_TITLED = f"{_TITLE}ses_"
"""How Kilo Code names the session of a turn that asks for a title of its session `ses_...`."""


@dataclass(frozen=True, slots=True)
class WarmPrefix:
    """The cached prefix of a conversation at a model's provider: messages and tokens."""

    messages: int
    digest: str
    tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn that `model` answered, with the digest of its messages."""

    messages: int
    digest: str
    model: str


class SessionMemory(Struct, frozen=True):
    """Data for the next turn's observation, stored as JSON with the session's balance."""

    last_model: str | None = None
    last_at_ms: int | None = None
    last_request: str | None = None
    """Digest of the last turn's messages; a repetition is a regeneration, a sign of a bad response."""
    tokens_so_far: int = 0
    failures: int = 0
    regenerations: int = 0
    tool_errors: int = 0
    explores: bool = True
    """False: the client turned exploration off for this session (X-Route-Explore: off)."""
    wrapped_nanousd: int | None = None
    """The session's budget when its last answer was served in wrap-up; None again after an ordinary one."""
    closed: bool = False
    """True if the newest answer was served in wrap-up, whichever account's money had ended."""
    budget: BudgetHeaders = BudgetHeaders()
    stalled_messages: int | None = None
    """The length of the conversation when its stall was reported (gateway.turn.stall_rule)."""
    warm: Mapping[str, WarmPrefix] = field(default_factory=dict)
    homes: Mapping[str, str] = field(default_factory=dict)
    """By model, the id of the deployment that answered last."""
    answered: tuple[Answered, ...] = ()
    """The newest turns, oldest first; agents run several conversations under one session id."""

    @classmethod
    def from_json(cls, text: str) -> SessionMemory:
        """Parse the merged memory, ignoring fields of newer versions that serve at the same time."""
        stored = orjson.loads(text)
        values = {name: stored[name] for name in cls.__struct_fields__ if name in stored}
        values["budget"] = convert(values.get("budget", {}), BudgetHeaders)
        values["warm"] = {model: WarmPrefix(**prefix) for model, prefix in values.get("warm", {}).items()}
        values["answered"] = tuple(Answered(**turn) for turn in values.get("answered", ()))
        return cls(**values)


def identify(headers: Mapping[str, str], hint: str | None, extra_headers: Sequence[str] = ()) -> str | None:
    """The session that a turn names; the first match wins. Raises InvalidRequest."""
    own = headers.get(OWN_HEADER)
    if own is not None:
        if not SESSION_ID.fullmatch(own):
            raise InvalidRequest("X-Session-Id: expected 1 to 128 of A-Z a-z 0-9 . _ : -", param="X-Session-Id")
        return own.removeprefix(_TITLE) if own.startswith(_TITLED) else own
    for name in (*extra_headers, *ALIAS_HEADERS):
        value = headers.get(name.lower())
        if value:
            return normalize_id(value)
    return normalize_id(hint) if hint else None


def is_over(row: SessionRow, idle_timeout_s: float, at_ms: int) -> bool:
    """True if the session was closed or idle, so its conversation continues in a new one.

    A paused session waits to be resumed, however long it is idle.
    """
    if row.state == "paused":
        return False
    idle = at_ms - row.updated_at_ms > idle_timeout_s * 1000 and row.balance.reserved_nanousd == 0
    return idle or row.state == "closed"


def matching_prefix(memory: SessionMemory, model: str, digests: MessageDigests, at_ms: int) -> tuple[int, float]:
    """Prompt tokens that this model has seen unchanged, and the seconds since then."""
    prefix = memory.warm.get(model)
    if prefix is None or at_ms - prefix.at_ms > LONGEST_CACHE_S * 1000 or prefix.messages > len(digests):
        return 0, 0.0
    if digests.of(prefix.messages) != prefix.digest:
        return 0, 0.0
    return prefix.tokens, max(0, at_ms - prefix.at_ms) / 1000


def home_of(memory: SessionMemory, model: str, at_ms: int, ttl_s: float | None = None) -> str | None:
    """The deployment whose provider has the session's prompt in its cache, which lasts `ttl_s`."""
    prefix = memory.warm.get(model)
    if prefix is None or at_ms - prefix.at_ms > (PROMPT_CACHE_S if ttl_s is None else ttl_s) * 1000:
        return None
    return memory.homes.get(model)


def answered_by(memory: SessionMemory, digests: MessageDigests) -> str | None:
    """The model that answered the longest prefix of this conversation, else the last model."""
    longest_first = sorted(enumerate(memory.answered), key=lambda placed: (placed[1].messages, placed[0]), reverse=True)
    for _, turn in longest_first:
        if turn.messages < len(digests) and digests.of(turn.messages) == turn.digest:
            return turn.model
    return memory.last_model


def memory_update(
    *,
    model: str,
    digests: MessageDigests,
    prompt_tokens: int,
    output_tokens: int,
    failed: bool,
    regenerated: bool,
    tool_error: bool,
    at_ms: int,
    explores: bool = True,
    closed: bool | None = None,
    wrapped_nanousd: int | None = None,
    homes: Mapping[str, str] | None = None,
) -> str:
    """The update of the session's memory after a turn, as `records.merge_memory` merges it.

    `closed`: whether the answer was served in wrap-up; None leaves what is known. `wrapped_nanousd`: the session's
    budget, if it has no money for another turn. `homes`: the deployments that answered last.
    """
    digest = digests.whole
    added = {
        "tokens_so_far": prompt_tokens + output_tokens,
        "failures": int(failed),
        "regenerations": int(regenerated),
        "tool_errors": int(tool_error),
    }
    warm = WarmPrefix(messages=len(digests), digest=digest, tokens=prompt_tokens, at_ms=at_ms)
    facts: dict[str, Any] = {"last_model": model, "last_at_ms": at_ms, "last_request": digest, "explores": explores}
    if homes is not None and not failed:
        facts["homes"] = dict(homes)
    if closed is not None:
        facts |= {"closed": closed, "wrapped_nanousd": wrapped_nanousd}
    update = {
        "add": added,
        "set": facts,
        "warm": {} if failed else {model: warm},
        "answered": [] if failed else [Answered(len(digests), digest, model)],
    }
    return orjson.dumps(update).decode()


def view(
    memory: SessionMemory,
    *,
    turn: int,
    expected_turns: int | None,
    budget_usd: float,
    remaining_usd: float,
    tenant_remaining_usd: float,
    spent_usd: float,
    at_ms: int,
    quality_count: int = 0,
    quality_sum: float = 0.0,
    last_quality: float | None = None,
    tool_loop: bool = False,
) -> SessionView:
    """The policy's view of the session; the quality arguments summarise the feedback so far."""
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
