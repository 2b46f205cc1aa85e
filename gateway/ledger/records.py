"""Rows and checks shared by both ledger backends: decisions, sessions, storable text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from msgspec import Struct
from sqlalchemy import Delete, Update, and_, bindparam, delete, exists, or_, select, tuple_, update

from gateway.database.tables import decisions, holds, idempotency
from gateway.ledger.types import Balance, KnownBeginning, Reserve, Settle, free_nanousd
from gateway.money import MAX_NANOUSD

DECISION_COLUMNS: tuple[str, ...] = tuple(str(column.name) for column in decisions.columns)

CHARGE_PREFIX = "chg_"
"""Beginning of the hold ids of charges (gateway/api/charges.py), which have no decision."""

LEDGER_COLUMNS = frozenset(
    {
        "decision_id",
        "tenant_id",
        "session_id",
        "turn",
        "previous_decision_id",
        "session_budget_nanousd",
        "remaining_before_nanousd",
        "remaining_after_nanousd",
        "reserved_nanousd",
        "cost_nanousd",
        "created_at_ms",
        "completed_at_ms",
    }
)
"""Columns of `decisions` that only the ledger writes: money, order of turns, times."""

OUTCOME_COLUMNS: tuple[str, ...] = (
    "model",
    "action",
    "propensity",
    "reason",
    "completion_id",
    "status",
    "usage_source",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "latency_ms",
    "first_byte_ms",
    "finish_reason",
    "error_code",
    "failures",
    "signals",
    "request_text",
    "response_text",
)
"""Columns that a settle or release may set."""

SESSION_FACTS: tuple[str, ...] = (
    "state", "turns", "expected_turns", "memory", "last_decision_id", "quality_count", "quality_sum", "last_quality",
    "created_at_ms", "updated_at_ms", "parent_session_id", "own_limit", "kept_nanousd",
)  # fmt: skip
"""Columns of `sessions` besides the balance, in SessionRow under the same names."""

MAX_ANSWERED = 16
"""Turns whose model a session's memory keeps."""

_DEFAULTS: dict[str, Any] = {"endpoint": "chat", "status": "pending", "signals": "{}"}


class UnknownHold(LookupError):
    """A hold that was never reserved: a bug of the caller, not a race."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Limits from the sessions above one: the least that is free there, and the parent's budget."""

    available_nanousd: int
    unspent_nanousd: int
    """The least of what they have left and what is held there."""
    granted_nanousd: int
    depth: int
    """The number of sessions above."""
    root_id: str
    """The topmost of them."""


class SessionRow(Struct, frozen=True):
    """A session for a turn: its balance and its tenant's, its scores, and its memory (JSON)."""

    tenant_id: str
    session_id: str
    balance: Balance
    state: str
    turns: int
    expected_turns: int | None
    memory: str
    last_decision_id: str | None
    quality_count: int
    quality_sum: float
    last_quality: float | None
    created_at_ms: int
    updated_at_ms: int
    tenant: Balance
    parent_session_id: str | None = None
    own_limit: int = 1
    """0: a child without a budget of its own."""
    kept_nanousd: int = 0
    """What only the session's last answer may hold."""
    chain: Chain | None = None
    above_unspent_nanousd: int | None = None
    """The least amount that a session above has neither spent nor keeps; None: no parent, or not read."""

    @property
    def budget_reached(self) -> bool:
        """True if its last answer was served, or all is spent: a raised budget continues it."""
        wrapped_nanousd = orjson.loads(self.memory).get("wrapped_nanousd")
        wrapped = wrapped_nanousd is not None and self.balance.granted_nanousd <= wrapped_nanousd
        unspent_nanousd = self.balance.granted_nanousd - self.balance.spent_nanousd
        if self.above_unspent_nanousd is not None:
            unspent_nanousd = min(unspent_nanousd, self.above_unspent_nanousd)
        return wrapped or unspent_nanousd <= 0

    @property
    def stall(self) -> list[str]:
        """The signs of the last stall that was reported."""
        found: list[str] = orjson.loads(self.memory).get("stall", [])
        return found

    @property
    def as_parent(self) -> Chain:
        """Limits of this session's children."""
        own, above = self.balance, self.chain
        free = free_nanousd(own.available_nanousd, self.kept_nanousd)
        unspent = free_nanousd(own.available_nanousd + own.reserved_nanousd, self.kept_nanousd)
        return Chain(
            free if above is None else min(free, above.available_nanousd),
            unspent if above is None else min(unspent, above.unspent_nanousd),
            own.granted_nanousd,
            1 if above is None else above.depth + 1,
            self.session_id if above is None else above.root_id,
        )


class AccountSnapshot(Struct, frozen=True):
    """Tenant and session in one read; `session` is None before its first turn."""

    tenant: Balance
    session: SessionRow | None
    at_ms: int
    """Time of the read by the ledger's clock, as in `session.updated_at_ms`."""


def checked_reserve(op: Reserve) -> Reserve:
    """Check amounts and columns before an operation joins a group. Raises ValueError."""
    if not 0 <= op.amount_nanousd <= MAX_NANOUSD:
        raise ValueError(f"reserve: expected 0..{MAX_NANOUSD} nano-USD, got {op.amount_nanousd}")
    if op.kept_nanousd is not None and not 0 <= op.kept_nanousd <= MAX_NANOUSD:
        raise ValueError(f"reserve: expected to keep 0..{MAX_NANOUSD} nano-USD, got {op.kept_nanousd}")
    if op.checkpoint_nanousd is not None and op.checkpoint_nanousd < 0:
        raise ValueError(f"reserve: expected a checkpoint of at least 0 nano-USD, got {op.checkpoint_nanousd}")
    unknown = set(op.decision or ()) - set(DECISION_COLUMNS)
    if unknown:
        raise ValueError(f"reserve: no such columns in decisions: {sorted(unknown)}")
    return op


def checked_settle(op: Settle) -> Settle:
    """Check the amount before an operation joins a group. Raises ValueError."""
    if not 0 <= op.amount_nanousd <= MAX_NANOUSD:
        raise ValueError(f"settle: expected 0..{MAX_NANOUSD} nano-USD, got {op.amount_nanousd}")
    return op


def decision_row(op: Reserve) -> dict[str, Any]:
    """The pending row with every column; turn, money and times are still None."""
    assert op.decision is not None
    row: dict[str, Any] = dict.fromkeys(DECISION_COLUMNS) | _DEFAULTS
    row.update({name: storable(value) for name, value in op.decision.items()})
    row.update(dict.fromkeys(LEDGER_COLUMNS))
    row |= {
        "decision_id": op.decision_id,
        "tenant_id": op.tenant_id,
        "session_id": op.session_id,
        "model": row["model"] or op.model,  # a candidate's name may say more than its model's
        "reserved_nanousd": op.amount_nanousd,
        "status": "pending",
    }
    return row


def outcome_columns(decision: Mapping[str, Any] | None) -> dict[str, Any]:
    """Columns that a settle or release sets, without None. Raises ValueError.

    Columns that the ledger computes are skipped.
    """
    if not decision:
        return {}
    outcome = {
        name: storable(value) for name, value in decision.items() if name not in LEDGER_COLUMNS and value is not None
    }
    unknown = set(outcome) - set(OUTCOME_COLUMNS)
    if unknown:
        raise ValueError(f"settle: not an outcome of a decision: {sorted(unknown)}")
    return outcome


def merge_memory(stored: str, update: str) -> str:
    """Merge a turn's update into its session's memory, both JSON.

    The update has counters to `add`, values to `set`, new `warm` prefixes and `answered` turns (the last MAX_ANSWERED
    are kept). Merging happens in the settle, so that concurrent turns of a session are all recorded; on Postgres by
    `seqroute_remember`. An update without `add` replaces the memory: older gateways send all of it.
    """
    fresh = orjson.loads(update)
    if "add" not in fresh:
        return update
    memory = orjson.loads(stored)
    added = {name: memory.get(name, 0) + number for name, number in fresh["add"].items()}
    answered = [*memory.get("answered", ()), *fresh["answered"]][-MAX_ANSWERED:]
    warm = memory.get("warm", {}) | fresh["warm"]
    return orjson.dumps(memory | fresh["set"] | added | {"warm": warm, "answered": answered}).decode()


def abandon() -> Update:
    """Close old pending decisions without an open hold: their process died between attempts.

    Locked rows are skipped (on Postgres), so this never waits for a turn nor delays one.
    """
    lost = (
        select(decisions.c.decision_id)
        .where(
            decisions.c.status == "pending",
            decisions.c.created_at_ms <= bindparam("before"),
            ~exists().where(holds.c.decision_id == decisions.c.decision_id, holds.c.state == "open"),
        )
        .with_for_update(skip_locked=True)
    )
    ended = {"status": "orphaned", "error_code": "abandoned", "completed_at_ms": bindparam("now")}
    return update(decisions).where(decisions.c.decision_id.in_(lost)).values(ended)


def forget() -> Delete:
    """Delete expired idempotency rows, and claims whose first request never ended."""
    unanswered = and_(
        idempotency.c.status.is_(None),
        idempotency.c.created_at_ms <= bindparam("before"),
        ~exists().where(holds.c.decision_id == idempotency.c.decision_id, holds.c.state == "open"),
    )
    past = (
        select(idempotency.c.tenant_id, idempotency.c.idempotency_key)
        .where(or_(idempotency.c.expires_at_ms <= bindparam("now"), unanswered))
        .with_for_update(skip_locked=True)
    )
    return delete(idempotency).where(tuple_(idempotency.c.tenant_id, idempotency.c.idempotency_key).in_(past))


def known_beginning(row: Sequence[Any]) -> KnownBeginning:
    """A beginning from a row: digest, session, messages, opening, answer, continued, time."""
    digest, session_id, messages, opening, answer, continued, at_ms = row
    return KnownBeginning(digest, session_id, messages, bool(opening), answer, continued, at_ms)


def storable(value: Any) -> Any:
    """A value that both databases can store: no NUL, no lone surrogate, no NaN or infinity."""
    kind = type(value)
    if value is None or kind is int or kind is bytes:
        return value
    if isinstance(value, str):
        if "\x00" not in value and value.isascii():
            return value
        return value.replace("\x00", "").encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return value
