"""The sweeper: resolves what crashed processes left open, and turns budget windows over.

Every replica runs one. They do not elect anybody: each resolution is conditional, so the second to come finds nothing
to do. A hold is resolved at most one interval after its lease ran out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.clock import Clock, Uniform, now_ms
from gateway.errors import LedgerUnavailable
from gateway.ledger import Ledger
from gateway.operations import Swept

logger = logging.getLogger(__name__)

BATCH = 500


async def sweep_all(ledger: Ledger, at_ms: int) -> Swept:
    """Sweep until nothing is due any more, however much a long outage left behind."""
    total = Swept(0, 0, 0)
    while True:
        swept = await ledger.sweep(at_ms, BATCH)
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
    ledger: Ledger, *, clock: Clock, uniform: Uniform, interval_s: float, report: Callable[[Swept], None] | None = None
) -> None:
    """Sweep about every `interval_s` until cancelled; replicas drift apart by a random fraction of it.

    An outage is waited out. `report` gets the figures of each sweep (for metrics).
    """
    while True:
        try:
            swept = await sweep_all(ledger, now_ms(clock))
        except LedgerUnavailable:
            logger.warning("the sweep waits for the database")
        else:
            if swept.expired or swept.orphaned or swept.abandoned:
                logger.info(
                    "swept: %d expired, %d orphaned, %d abandoned", swept.expired, swept.orphaned, swept.abandoned
                )
            if report is not None:
                report(swept)
        await asyncio.sleep(interval_s * (0.75 + 0.25 * uniform()))
