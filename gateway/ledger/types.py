"""What can be asked of the ledger, and what it answers: frozen values, the same for SQLite and Postgres.

The life of money for one attempt at a turn:

    reserve --> open, dispatched --> settle        the bill, exact or estimated
                                 --> release       no bill
                                 --> orphan_post   by the sweeper: the last checkpoint
                                       +--> late_post   the bill arrived after all, once: what the checkpoint missed
                                       +--> refund      it was below the checkpoint: what was posted too much

A hold that was reserved without a checkpoint was never to be dispatched: the sweeper expires it, at no cost.

Exactly one terminal entry per hold; whoever comes second is told so and changes nothing.

Operations carry intervals (`ttl_ms`, `kept_ms`), no moments: whether a lease, a window or an idempotency key has run
out is decided by one clock for everybody, the database's own on Postgres, the one process's steady clock on SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gateway.catalog.usage import UsageSource

AccountKind = Literal["tenant", "session", "key"]


@dataclass(frozen=True, slots=True)
class Balance:
    """One account at one read: `granted = available + reserved + spent`, always."""

    granted_nanousd: int
    reserved_nanousd: int
    spent_nanousd: int
    overage_nanousd: int = 0

    @property
    def available_nanousd(self) -> int:
        return self.granted_nanousd - self.reserved_nanousd - self.spent_nanousd


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """With what a session is opened when its first turn comes.

    `ceiling_nanousd` (a client's X-Session-Budget-USD) sets the session's granted amount when given, never below what
    is already spent and reserved. `expected_turns` replaces an earlier hint when given.
    """

    default_nanousd: int
    ceiling_nanousd: int | None = None
    expected_turns: int | None = None
    max_turns: int | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """Scope (tenant, key). The claim is made in the transaction of the first reservation and kept for `kept_ms`."""

    key: str
    body_sha256: bytes
    kept_ms: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Hold `amount_nanousd` on tenant, session and (if it has a budget) key, and log the pending decision.

    `decision` holds the remaining columns of the `decisions` row; None for a further attempt of the same decision
    (retry or fallback). The ledger itself fills turn, previous_decision_id, session budget and remaining_before.
    `checkpoint_nanousd` marks the hold as dispatched: the call leaves right after the commit, and from then on a crash
    costs that much instead of nothing; None when no call follows. The lease runs for `ttl_ms` from the commit.
    """

    hold_id: str
    attempt_id: str
    decision_id: str
    tenant_id: str
    session_id: str
    key_id: str | None
    model: str
    amount_nanousd: int
    ttl_ms: int
    terms: SessionTerms
    decision: Mapping[str, Any] | None = None
    idempotency: IdempotencyClaim | None = None
    checkpoint_nanousd: int | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """The hold is committed. `turn` counts the session's turns from 0."""

    turn: int
    session: Balance
    tenant: Balance


@dataclass(frozen=True, slots=True)
class Refused:
    """Not enough left on `account` ("session", "tenant" or "key"); nothing changed."""

    account: AccountKind
    balance: Balance
    pending: bool
    """True when money of other turns is still reserved there: it may come back, so trying again can help."""


@dataclass(frozen=True, slots=True)
class SessionClosed:
    reason: Literal["closed", "max_turns"]


@dataclass(frozen=True, slots=True)
class TenantMissing:
    tenant_id: str


@dataclass(frozen=True, slots=True)
class Replay:
    """The same tenant, key and body was answered before: give the same answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class InFlight:
    decision_id: str


@dataclass(frozen=True, slots=True)
class BodyMismatch:
    decision_id: str


ReserveOutcome = Reserved | Refused | SessionClosed | TenantMissing | Replay | InFlight | BodyMismatch


@dataclass(frozen=True, slots=True)
class Answer:
    """What an idempotent retry will be given."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Settle:
    """Turn a hold into its bill. `decision` holds decision columns to set (status, tokens, latency, finish...).

    `session_memory` is what the turn adds to the session's memory (`ledger_records.remembered`). `close_session` closes
    it in the same transaction.
    """

    hold_id: str
    amount_nanousd: int
    usage_source: UsageSource
    decision: Mapping[str, Any] | None = None
    session_memory: str | None = None
    close_session: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Give a hold back whole: nothing was billed. `final` is False when another attempt of the turn follows."""

    hold_id: str
    decision: Mapping[str, Any] | None = None
    answer: Answer | None = None
    drop_idempotency: bool = True


@dataclass(frozen=True, slots=True)
class Resolved:
    """`kind` is the entry made now, or "already" when the hold had been resolved before."""

    kind: Literal["settle", "release", "late_post", "refund", "already"]
    overage_nanousd: int
    session: Balance
    tenant: Balance


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the sweeper shall post for this hold if nobody resolves it; also extends the lease to `ttl_ms` from now."""

    hold_id: str
    checkpoint_nanousd: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class ResetWindow:
    """Start the next window of a tenant's (`key_id` None) or a key's budget, if `reset_at_ms` is still due."""

    tenant_id: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Swept:
    """`abandoned`: decisions left pending without an open hold; `forgotten`: idempotency rows past their day."""

    expired: int
    orphaned: int
    reset: int
    abandoned: int = 0
    forgotten: int = 0
