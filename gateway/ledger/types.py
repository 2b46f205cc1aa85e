"""Operations and outcomes of the ledger: frozen values, the same for SQLite and Postgres.

Life cycle of the money of one attempt:

    reserve --> open, dispatched --> settle        the bill, exact or estimated
                                 --> release       no bill
                                 --> orphan_post   by the sweeper: the last checkpoint
                                       +--> late_post   the bill arrived later, once: what the checkpoint missed
                                       +--> refund      it was below the checkpoint: the excess

A hold without a checkpoint was never dispatched: the sweeper expires it at no cost. Each hold has exactly one terminal
entry; a second resolution gets "already" and changes nothing.

Operations carry durations (`ttl_ms`, `kept_ms`), not points in time: one clock decides whether a lease, a window or an
idempotency key has expired, the database's on Postgres, the process's steady clock on SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from gateway.catalog.usage import UsageSource
from gateway.ledger.rates import Limited, RateReading, TurnLimits

AccountKind = Literal["tenant", "session", "key"]
RefusingAccount = AccountKind | Literal["parent"]
"""An account that cannot pay; "parent" is any session above the turn's own."""
EntryKind = Literal[
    "grant", "reserve", "settle", "release", "expire", "orphan_post", "late_post", "refund", "overage", "reset"
]
"""Every kind of ledger entry; `docs/budget.md` says what each does to an account."""
SPENDING_KINDS: tuple[EntryKind, ...] = ("settle", "orphan_post", "late_post", "overage", "refund")
"""The kinds that change what was spent, a reset apart."""
MAX_DEPTH = 16
"""Sessions above a session, at most."""


class Balance(Struct, frozen=True):
    """One account at one read: `granted = available + reserved + spent`, always."""

    granted_nanousd: int
    reserved_nanousd: int
    spent_nanousd: int
    overage_nanousd: int = 0
    above_nanousd: int | None = None
    """The least that the sessions above this one have left; None for an account without a parent."""

    @property
    def available_nanousd(self) -> int:
        """Money that can still be reserved; negative after an overage."""
        return self.granted_nanousd - self.reserved_nanousd - self.spent_nanousd

    @property
    def spendable_nanousd(self) -> int:
        """The available money, at most what the sessions above have."""
        available = self.available_nanousd
        return available if self.above_nanousd is None else min(available, self.above_nanousd)


def free_nanousd(available_nanousd: int, kept_nanousd: int) -> int:
    """The money available without the amount kept for a last answer; a deficit stays one."""
    return min(available_nanousd, max(0, available_nanousd - kept_nanousd))


def kept_from_now_on(kept_nanousd: int, asked_nanousd: int | None) -> int:
    """The amount that a session keeps for its last answer; None asks for nothing new.

    The conversations of a session keep the most that one of them needs; 0 gives it up.
    """
    return 0 if asked_nanousd == 0 else max(kept_nanousd, asked_nanousd or 0)


class SessionTerms(Struct, frozen=True):
    """Terms on which a session's first turn opens it.

    `ceiling_nanousd` (a client's X-Session-Budget-USD or -Share) sets the session's granted amount when given, never
    below what is already spent and reserved, unless a budget that was set by hand holds against it
    (gateway/ledger/budget_headers.py). `expected_turns` replaces an earlier hint when given.
    """

    default_nanousd: int
    ceiling_nanousd: int | None = None
    expected_turns: int | None = None
    max_turns: int | None = None
    share_percent: int | None = None
    """Set if the client asked for the ceiling as a share of the parent's budget."""
    times_by_hand: int = 0
    """How often the session's budget had been set by hand when the turn came; 0 for a session's first turn."""

    @property
    def asked(self) -> str:
        """The ceiling in the client's words: the same share again is no change."""
        return str(self.ceiling_nanousd) if self.share_percent is None else f"{self.share_percent}%"


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """Claim of a tenant's idempotency key, made with the first reservation, for `kept_ms`."""

    key: str
    body_sha256: bytes
    kept_ms: int


class Reserve(Struct, frozen=True):
    """Hold an amount on tenant, session and (if it has a budget) key; log the pending decision.

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
    limits: TurnLimits | None = None
    """Checked before the money by a new turn, and counted; a further attempt is only counted, with its tokens."""
    parent_session_id: str | None = None
    """The session whose money a new session spends too; None leaves a known session's parent as it is."""
    repeatable: bool = False
    """True for a charge: the client chose its ids, so it may be committed already and keeps its answer."""
    kept_nanousd: int | None = None
    """The least that the session keeps for its last answer, from now on; 0: nothing; None: as the turn before it."""
    closing: bool = False
    """True for the last answer: it may hold what the session keeps."""


class Reserved(Struct, frozen=True):
    """The hold is committed. `turn` counts the session's turns from 0."""

    turn: int
    session: Balance
    tenant: Balance
    reading: RateReading | None = None
    """What is left of the rate limits; None: there is none, or this is a further attempt."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Not enough left on `account`; nothing changed."""

    account: RefusingAccount
    balance: Balance
    pending: bool
    """True when other turns hold money there that may come back: a retry can help."""
    kept_nanousd: int = 0
    """The part of the available money that is kept for a session's last answer."""

    @property
    def free_nanousd(self) -> int:
        """The available money that is not kept."""
        return free_nanousd(self.balance.available_nanousd, self.kept_nanousd)


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """The session, or one above it, takes no more turns; nothing changed."""

    reason: Literal["closed", "paused", "max_turns", "parent_closed", "parent_paused"]


@dataclass(frozen=True, slots=True)
class ParentRefused:
    """The named parent cannot be this session's: unknown, too deep, or another than it has."""

    reason: Literal["unknown", "depth", "other"]


@dataclass(frozen=True, slots=True)
class TenantMissing:
    """No such tenant; nothing changed."""

    tenant_id: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Stored answer to an earlier request with the same tenant, key and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class InFlight:
    """An earlier request with this idempotency key still runs."""

    decision_id: str


@dataclass(frozen=True, slots=True)
class BodyMismatch:
    """An earlier request with this idempotency key had another body."""

    decision_id: str


ReserveOutcome = (
    Reserved | Refused | Limited | ParentRefused | SessionClosed | TenantMissing | Replay | InFlight | BodyMismatch
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to store for idempotent retries."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Beginning(Struct, frozen=True):
    """A turn of a conversation without an id, stored so that the next finds its session.

    `digest` is of its `messages` messages, `answer` of its answer (None: it got none). `continues` is the beginning of
    an earlier turn that this one is the first to continue, `continued_with` the message that it brings behind it.
    """

    key_id: str
    digest: str
    messages: int
    opening: bool
    answer: str | None
    continues: str | None = None
    continued_with: str | None = None


@dataclass(frozen=True, slots=True)
class SoughtBeginning:
    """A beginning to look up, and the answer that followed it, if any."""

    digest: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class KnownBeginning:
    """A beginning that an earlier turn left; `continued`: what a later turn brought behind it."""

    digest: str
    session_id: str
    messages: int
    opening: bool
    answer: str | None
    continued: str | None
    at_ms: int


class Settle(Struct, frozen=True):
    """Turn a hold into its bill; `decision` has decision columns to set (status, tokens, ...).

    `session_memory` is the turn's update to the session's memory (`records.merge_memory`). `close_session` closes the
    session in the same transaction.
    """

    hold_id: str
    amount_nanousd: int
    usage_source: UsageSource
    decision: Mapping[str, Any] | None = None
    session_memory: str | None = None
    close_session: bool = False
    answer: Answer | None = None
    beginning: Beginning | None = None
    tokens: int = 0
    """What the call used, for the limits that it was counted under."""


class Release(Struct, frozen=True):
    """Give a hold back in full: nothing was billed.

    `drop_idempotency` frees the idempotency claim: no answer is stored for it.
    """

    hold_id: str
    decision: Mapping[str, Any] | None = None
    drop_idempotency: bool = True
    beginning: Beginning | None = None


class Resolved(Struct, frozen=True):
    """Outcome of a settle or release; `kind` is "already" for a hold resolved before."""

    kind: Literal["settle", "release", "late_post", "refund", "already"]
    overage_nanousd: int
    session: Balance
    tenant: Balance


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Amount to post if the hold is never resolved; extends its lease to `ttl_ms` from now."""

    hold_id: str
    checkpoint_nanousd: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class ResetWindow:
    """Start the next budget window of a tenant (`key_id` None) or a key, if it is due."""

    tenant_id: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Swept:
    """Counts of a sweep: holds, windows, abandoned decisions, forgotten idempotency rows."""

    expired: int
    orphaned: int
    reset: int
    abandoned: int = 0
    forgotten: int = 0
