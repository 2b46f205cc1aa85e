"""Leases on the holds of live calls, renewed with a cost checkpoint about every second.

A lease runs out `ttl_s` after its last renewal; then any replica's sweeper resolves the hold, except that of the
process that still carries the call. So the holds of a dead process are resolved within one lease and two sweeps, and
what was streamed until about a second before its death is posted. On Postgres a sweeper also waits until it has seen
the lease unchanged for longer than a live call leaves it (`lease_watch`), because the database's clock may be set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass

from gateway.clock import Clock, Uniform
from gateway.errors import LedgerUnavailable
from gateway.ledger.lease_watch import RENEW_S, LeaseWatch
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Checkpoint, Swept

BATCH = 500

CHECKPOINT_S = 1.0
_log = logging.getLogger("seqroute.ledger")


@dataclass(slots=True)
class _Lease:
    checkpoint_nanousd: int
    written_nanousd: int
    renewed_s: float


class Leases:
    """The holds of this process's live calls; `run` writes them, `clock` must be monotonic."""

    def __init__(self, ledger: Ledger, clock: Clock, *, ttl_s: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ttl_s = ttl_s
        self._live: dict[str, _Lease] = {}
        self.watch = LeaseWatch(clock, ttl_s=ttl_s)

    @property
    def ttl_ms(self) -> int:
        """Duration of a lease that is not renewed, in milliseconds."""
        return int(self._ttl_s * 1000)

    @property
    def carried(self) -> Collection[str]:
        """Ids of the holds whose calls this process still carries."""
        return self._live.keys()

    def take(self, hold_id: str, checkpoint_nanousd: int) -> None:
        """Start renewing a newly reserved hold."""
        self._live[hold_id] = _Lease(checkpoint_nanousd, checkpoint_nanousd, self._clock())

    def progress(self, hold_id: str, checkpoint_nanousd: int) -> None:
        """Raise a call's checkpoint; ignores a dropped hold."""
        lease = self._live.get(hold_id)
        if lease is not None:
            lease.checkpoint_nanousd = max(lease.checkpoint_nanousd, checkpoint_nanousd)

    def drop(self, hold_id: str) -> None:
        """Stop renewing a hold that was resolved."""
        self._live.pop(hold_id, None)

    @property
    def count(self) -> int:
        """Number of live holds."""
        return len(self._live)

    async def run(self) -> None:
        """Renew until cancelled; an outage is retried at the next beat."""
        while True:
            await asyncio.sleep(min(CHECKPOINT_S, self._ttl_s / 4))
            try:
                await self.beat()
            except LedgerUnavailable:
                _log.warning("leases not renewed: the ledger is unavailable; %d holds live", len(self._live))

    async def beat(self) -> None:
        """Write changed checkpoints, and leases after a quarter of their time, at most `RENEW_S`."""
        now_s = self._clock()
        renew_s = min(self._ttl_s / 4, RENEW_S)
        due = [
            (hold_id, lease)
            for hold_id, lease in self._live.items()
            if lease.checkpoint_nanousd != lease.written_nanousd or now_s - lease.renewed_s >= renew_s
        ]
        if not due:
            return
        await self._ledger.checkpoint([Checkpoint(h, lease.checkpoint_nanousd, self.ttl_ms) for h, lease in due])
        for _, lease in due:
            lease.written_nanousd, lease.renewed_s = lease.checkpoint_nanousd, now_s


async def sweep_all(ledger: Ledger, carried: Collection[str] = (), watch: LeaseWatch | None = None) -> Swept:
    """Sweep in batches until nothing is due, as after a long outage."""
    total = Swept(0, 0, 0)
    while True:
        swept = await ledger.sweep(BATCH, carried=carried, watch=watch)
        total = Swept(
            total.expired + swept.expired,
            total.orphaned + swept.orphaned,
            total.reset + swept.reset,
            total.abandoned + swept.abandoned,
            total.forgotten + swept.forgotten,
        )
        if swept.expired + swept.orphaned + swept.reset < BATCH // 2:
            return total


async def sweep_forever(ledger: Ledger, leases: Leases, *, uniform: Uniform, interval_s: float) -> None:
    """Sweep about every `interval_s` until cancelled, with jitter to spread the replicas."""
    while True:
        try:
            swept = await sweep_all(ledger, leases.carried, leases.watch)
        except LedgerUnavailable:
            _log.warning("holds not swept: the database is unavailable")
        else:
            if swept.expired or swept.orphaned or swept.abandoned:
                _log.info(
                    "swept: %d expired, %d orphaned, %d abandoned", swept.expired, swept.orphaned, swept.abandoned
                )
        await asyncio.sleep(interval_s * (0.75 + 0.25 * uniform()))
