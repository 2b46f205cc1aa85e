"""Rounds of load and kill -9: used small by the tests and large by `make soak`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.harness.auditor import Verdict
from tests.harness.clients import Client
from tests.harness.cluster import Ground
from tests.harness.processes import Replica

KINDS: Sequence[tuple[str, bool]] = (("words", True), ("words", False), ("small", False), ("small", True))


@dataclass(frozen=True, slots=True)
class CrashFigures:
    kills: int
    verdict: Verdict


async def keep_asking(client: Client, seed: int, stop: asyncio.Event, *, tries: int = 1) -> None:
    """Turns one after the other, of every kind; now and then the client leaves in the middle."""
    draw = random.Random(seed)
    while not stop.is_set():
        model, stream = draw.choice(KINDS)
        leave_after_s = draw.uniform(0.0, 0.4) if draw.random() < 0.1 else None
        turn = await client.turn(
            model,
            stream=stream,
            session=f"s{draw.randrange(20)}",
            leave_after_s=leave_after_s,
            tries=tries,
        )
        await asyncio.sleep(draw.uniform(0.0, 0.02) if turn.fate != "refused" else 0.1)


async def crash_rounds(
    scene: Ground, *, seed: int, kills: int, clients: int, life_s: tuple[float, float] = (0.05, 1.0)
) -> CrashFigures:
    """Kill the gateway `kills` times, each after a random time; then rest, and let the auditor judge."""
    draw = random.Random(seed)
    replica: Replica = await scene.fleet.start()
    asking = await scene.client(budget_usd="100000")
    stop = asyncio.Event()
    load = [asyncio.create_task(keep_asking(asking, draw.randrange(2**32), stop)) for _ in range(clients)]
    try:
        for _ in range(kills):
            await asyncio.sleep(draw.uniform(*life_s))
            replica.kill()
            await replica.ended()
            scene.fleet.replicas.remove(replica)
            replica = await scene.fleet.start(port=replica.port)
    finally:
        stop.set()
        await asyncio.gather(*load)
    return CrashFigures(kills, await scene.judge())
