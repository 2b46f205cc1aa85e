"""Keep the holds of live calls alive, and say about once a second what each has cost so far.

A hold's lease runs out `ttl_s` after its last renewal; then the sweeper of any replica resolves it, but never the one
of the process that still carries the call. So a process that dies leaves at most one lease of silence, and what was
streamed until about a second before is posted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gateway.clock import Clock, Uniform
from gateway.errors import LedgerUnavailable
from gateway.ledger.ledger import Ledger
from gateway.ledger.types import Checkpoint, Swept

BATCH = 500

CHECKPOINT_S = 1.0
_log = logging.getLogger("seqroute.leases")


@dataclass(slots=True)
class _Lease:
    checkpoint_nanousd: int
    written_nanousd: int
    renewed_s: float


class Leases:
    """The holds this process answers for. `run` is the one loop that writes them. `clock` never steps."""

    def __init__(self, ledger: Ledger, clock: Clock, *, ttl_s: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ttl_s = ttl_s
        self._live: dict[str, _Lease] = {}

    @property
    def ttl_ms(self) -> int:
        """How long a lease runs when nobody renews it."""
        return int(self._ttl_s * 1000)

    @property
    def carried(self) -> Collection[str]:
        """The holds whose calls this process still carries."""
        return self._live.keys()

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
        await self._ledger.checkpoint([Checkpoint(h, lease.checkpoint_nanousd, self.ttl_ms) for h, lease in due])
        for _, lease in due:
            lease.written_nanousd, lease.renewed_s = lease.checkpoint_nanousd, now_s


async def sweep_all(ledger: Ledger, carried: Collection[str] = ()) -> Swept:
    """Sweep until nothing is due any more, however much a long outage left behind."""
    total = Swept(0, 0, 0)
    while True:
        swept = await ledger.sweep(BATCH, carried=carried)
        total = Swept(
            total.expired + swept.expired,
            total.orphaned + swept.orphaned,
            total.reset + swept.reset,
            total.abandoned + swept.abandoned,
            total.forgotten + swept.forgotten,
        )
        if swept.expired + swept.orphaned + swept.reset < BATCH // 2:
            return total


async def sweep_forever(
    ledger: Ledger,
    leases: Leases,
    *,
    uniform: Uniform,
    interval_s: float,
    report: Callable[[Swept], None] | None = None,
) -> None:
    """Sweep about every `interval_s` until cancelled; replicas drift apart by a random fraction of it.

    An outage is waited out. `report` gets the figures of each sweep (for metrics).
    """
    while True:
        try:
            swept = await sweep_all(ledger, leases.carried)
        except LedgerUnavailable:
            _log.warning("the sweep waits for the database")
        else:
            if swept.expired or swept.orphaned or swept.abandoned:
                _log.info(
                    "swept: %d expired, %d orphaned, %d abandoned", swept.expired, swept.orphaned, swept.abandoned
                )
            if report is not None:
                report(swept)
        await asyncio.sleep(interval_s * (0.75 + 0.25 * uniform()))
