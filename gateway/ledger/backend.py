"""Interface of the ledger to a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.ledger.lease_watch import OpenLease
from gateway.ledger.records import AccountSnapshot
from gateway.ledger.types import (
    BodyMismatch,
    Checkpoint,
    InFlight,
    KnownBeginning,
    Release,
    Replay,
    Reserve,
    ReserveOutcome,
    ResetWindow,
    Resolved,
    Settle,
    SoughtBeginning,
)


class LedgerBackend(Protocol):
    """A database's operations; their futures complete after the commit, cancelled or not."""

    clock_may_be_set: bool
    """True when leases end by a clock other than this process's elapsed time."""

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        """Hold money, or refuse without a change."""

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        """Post a bill; `again` when an earlier try may have been committed."""

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        """Give a hold back; `again` when an earlier try may have been committed."""

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        """Raise checkpoints and extend leases; ignores resolved holds."""

    def sweep_hold(self, hold_id: str, lease_ms: int) -> asyncio.Future[str | None]:
        """Resolve a hold whose lease still ends at `lease_ms`; the entry kind, else None."""

    def reset_window(self, op: ResetWindow) -> asyncio.Future[bool]:
        """Start the next budget window; False when another replica already did."""

    def snapshot(self, tenant_id: str, session_id: str) -> asyncio.Future[AccountSnapshot | None]:
        """Tenant and session in one read; None for an unknown tenant."""

    def idempotent(
        self, tenant_id: str, key: str, body_sha256: bytes
    ) -> asyncio.Future[Replay | InFlight | BodyMismatch | None]:
        """State of an idempotency key; None when it is free."""

    def beginnings(
        self, tenant_id: str, key_id: str, sought: Sequence[SoughtBeginning]
    ) -> asyncio.Future[list[KnownBeginning]]:
        """Read the turns of a key that left the first or the longest known of these beginnings."""

    async def open_leases(self, limit: int, *, ahead_ms: int, beyond_ms: int) -> list[OpenLease]:
        """Leases with at most `ahead_ms` or more than `beyond_ms` left, the earliest first."""

    async def due_windows(self, limit: int) -> list[ResetWindow]:
        """Budget windows that ended."""

    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]:
        """Close abandoned decisions and delete expired idempotency rows; the number of each."""

    async def start(self) -> None:
        """Make the backend ready for operations."""

    async def close(self) -> None:
        """Finish submitted operations and stop."""
