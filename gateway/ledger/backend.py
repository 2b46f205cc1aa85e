"""Interface of the ledger to a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

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

    def reserve(self, op: Reserve) -> asyncio.Future[ReserveOutcome]:
        """Hold money, or refuse without a change."""

    def settle(self, op: Settle, *, again: bool = False) -> asyncio.Future[Resolved]:
        """Post a bill; `again` when an earlier try may have been committed."""

    def release(self, op: Release, *, again: bool = False) -> asyncio.Future[Resolved]:
        """Give a hold back; `again` when an earlier try may have been committed."""

    def checkpoint(self, points: tuple[Checkpoint, ...]) -> asyncio.Future[None]:
        """Raise checkpoints and extend leases; ignores resolved holds."""

    def sweep_hold(self, hold_id: str) -> asyncio.Future[str | None]:
        """Resolve a hold whose lease ran out; the entry kind, or None if there was nothing to do."""

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

    async def due(self, limit: int) -> tuple[list[str], list[ResetWindow]]:
        """Ids of holds whose lease ran out, and windows that ended."""

    async def tidy(self, abandoned_after_ms: int) -> tuple[int, int]:
        """Close abandoned decisions and delete expired idempotency rows; the number of each."""

    async def start(self) -> None:
        """Make the backend ready for operations."""

    async def close(self) -> None:
        """Finish submitted operations and stop."""
