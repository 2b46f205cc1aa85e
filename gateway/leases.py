"""Keeps the holds of live calls alive, and says about once a second what each has cost so far.

A hold's lease runs out `ttl_s` after its last renewal; then the sweeper of any replica resolves it. So a process that
dies leaves at most one lease of silence, and what was streamed until about a second before is posted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from gateway.clock import Clock, now_ms
from gateway.errors import LedgerUnavailable
from gateway.ledger import Ledger
from gateway.operations import Checkpoint

CHECKPOINT_S = 1.0
_log = logging.getLogger("seqroute.leases")


@dataclass(slots=True)
class _Lease:
    checkpoint_nanousd: int
    written_nanousd: int
    renewed_s: float


class Leases:
    """The holds this process answers for. `run` is the one loop that writes them."""

    def __init__(self, ledger: Ledger, clock: Clock, *, ttl_s: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ttl_s = ttl_s
        self._live: dict[str, _Lease] = {}

    def expiry_ms(self) -> int:
        """When a lease taken now runs out."""
        return now_ms(self._clock) + int(self._ttl_s * 1000)

    def take(self, hold_id: str, checkpoint_nanousd: int) -> None:
        self._live[hold_id] = _Lease(checkpoint_nanousd, checkpoint_nanousd, self._clock())

    def progress(self, hold_id: str, checkpoint_nanousd: int) -> None:
        lease = self._live.get(hold_id)
        if lease is not None:
            lease.checkpoint_nanousd = max(lease.checkpoint_nanousd, checkpoint_nanousd)

    def drop(self, hold_id: str) -> None:
        self._live.pop(hold_id, None)

    @property
    def count(self) -> int:
        return len(self._live)

    async def run(self) -> None:
        """Renew until cancelled. A database that cannot answer is tried again at the next beat."""
        while True:
            await asyncio.sleep(min(CHECKPOINT_S, self._ttl_s / 4))
            try:
                await self.beat()
            except LedgerUnavailable:
                _log.warning("leases not renewed: the ledger is unavailable; %d holds live", len(self._live))

    async def beat(self) -> None:
        """Write every checkpoint that moved and every lease a quarter of whose time has passed."""
        now_s = self._clock()
        due = [
            (hold_id, lease)
            for hold_id, lease in self._live.items()
            if lease.checkpoint_nanousd != lease.written_nanousd or now_s - lease.renewed_s >= self._ttl_s / 4
        ]
        if not due:
            return
        expires_at_ms = self.expiry_ms()
        await self._ledger.checkpoint([Checkpoint(h, lease.checkpoint_nanousd, expires_at_ms) for h, lease in due])
        for _, lease in due:
            lease.written_nanousd, lease.renewed_s = lease.checkpoint_nanousd, now_s
