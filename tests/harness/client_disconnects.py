"""Clients that leave: at random moments, from streams and from whole answers. Small in the tests, large in the soak."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from gateway.database.database import transaction
from gateway.database.tables import holds
from tests.harness.auditor import Verdict
from tests.harness.clients import Client, Turn
from tests.harness.cluster import Ground


@dataclass(frozen=True, slots=True)
class DepartureFigures:
    """Seconds from the moment a client left: until its provider connection was closed, until its hold was resolved."""

    departures: int
    closed_s: Sequence[float]
    settled_s: Sequence[float]
    verdict: Verdict


async def departures(
    scene: Ground, client: Client, *, seed: int, count: int, at_once: int = 20, model: str = "slow", most_s: float = 0.6
) -> DepartureFigures:
    """`count` clients that leave after a random time; then the books. A few whole answers come first: the gateway knows
    the speed of a model that it has seen, and estimates by it what a call without an answer has cost."""
    seen = await asyncio.gather(*(client.turn(model, session="warm") for _ in range(5)))
    assert [turn.fate for turn in seen] == ["ok"] * 5
    draw = random.Random(seed)
    gate = asyncio.Semaphore(at_once)

    async def one(number: int, stream: bool, leave_after_s: float) -> tuple[Turn, float]:
        async with gate:
            turn = await client.turn(model, stream=stream, session=f"leaver-{number}", leave_after_s=leave_after_s)
            return turn, time.time()

    plans = [(number, draw.random() < 0.6, draw.uniform(0.0, most_s)) for number in range(count)]
    left = await asyncio.gather(*(one(*plan) for plan in plans))
    await scene.at_rest()
    verdict = await scene.judge()
    wall_of_zero = time.time() - scene.provider.now_s()
    ended = {a.tag: wall_of_zero + a.ended_s for a in scene.provider.bill if a.ended_s is not None}
    with transaction(scene.database_url, read_only=True) as connection:
        resolved: dict[str, float] = {}
        for row in connection.execute(select(holds.c.session_id, holds.c.resolved_at_ms)):
            resolved[row.session_id] = max(resolved.get(row.session_id, 0.0), row.resolved_at_ms / 1000)
    closed_s = [max(0.0, ended[turn.tag] - at) for turn, at in left if turn.tag in ended and turn.fate == "left"]
    settled_s = [
        max(0.0, resolved[turn.session] - at) for turn, at in left if turn.session in resolved and turn.fate == "left"
    ]
    return DepartureFigures(len(closed_s), closed_s, settled_s, verdict)
