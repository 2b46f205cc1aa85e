"""Many turns at once against a session, or a tree of sessions, that affords a few."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from tests.harness.auditor import billed_nanousd
from tests.harness.clients import Client, Turn
from tests.harness.cluster import Ground


@dataclass(frozen=True, slots=True)
class CrowdFigures:
    asked: int
    dispatched: int
    answered: int
    refused: int
    budget_nanousd: int
    billed_nanousd: int

    @property
    def overshoot_nanousd(self) -> int:
        """What the provider billed beyond the session's budget."""
        return max(0, self.billed_nanousd - self.budget_nanousd)


async def ended(tasks: Sequence[asyncio.Task[Any]], count: int, within_s: float = 60.0) -> None:
    """Wait until so many of the tasks are done; however many there are once the time is over."""
    end = asyncio.Event()
    open_count = count

    def note(_: asyncio.Task[Any]) -> None:
        nonlocal open_count
        open_count -= 1
        if open_count <= 0:
            end.set()

    for task in tasks:
        task.add_done_callback(note)
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await end.wait()


async def crowd(
    scene: Ground, client: Client, *, session: str, asking: int, affordable: int, model: str = "held"
) -> CrowdFigures:
    """`asking` turns at once in one session whose budget is `affordable` times a turn's worst case.

    The provider holds its answers back (a mode with `gate=1`) until everybody else is answered, or settlements would
    free money for more.
    """
    scene.provider.gate.clear()
    before = len(scene.provider.bill)
    width = len(str(asking))
    question = {"model": model, "messages": [{"role": "user", "content": f"{session}/{0:0{width}}"}], "max_tokens": 40}
    headers = {"Authorization": f"Bearer {client.key}", "X-Session-Id": f"{session}-look"}
    async with httpx.AsyncClient(headers=headers, timeout=30.0) as http:
        dry_run = (await http.post(client.urls[0] + "/v1/route", json=question)).json()
    budget_nanousd = affordable * int(dry_run["reserve_nano_usd"])
    asked = [
        asyncio.create_task(
            client.turn(
                model,
                session=session,
                max_tokens=40,
                budget_usd=f"{budget_nanousd / 1e9:.9f}",
                tag=f"{session}/{number:0{width}}",
            )
        )
        for number in range(asking)
    ]
    return await _figures(scene, asked, asking - affordable, before, budget_nanousd)


async def crowd_of_a_tree(
    scene: Ground, client: Client, *, root: str, asking: int, budget_usd: str, children: int = 5, model: str = "held"
) -> CrowdFigures:
    """`asking` turns at once of a session, its children and four children of each, all on the money of the first.

    Everything that the tree spends counts, also the turns that made its sessions.
    """
    before = len(scene.provider.bill)
    parents: dict[str, str | None] = {root: None} | {f"{root}-{child}": root for child in range(children)}
    parents |= {f"{root}-{child}-{below}": f"{root}-{child}" for child in range(children) for below in range(4)}
    for session, parent in parents.items():
        first = await client.turn(
            "words",
            session=session,
            parent=parent,
            max_tokens=5,
            budget_usd=budget_usd if parent is None else None,
            tag=f"{session}/first",
        )
        assert first.fate == "ok", first
    scene.provider.gate.clear()
    family = list(parents)
    asked = [
        asyncio.create_task(
            client.turn(model, session=family[number % len(family)], max_tokens=40, tag=f"{root}/{number}")
        )
        for number in range(asking)
    ]
    return await _figures(scene, asked, asking, before, round(float(budget_usd) * 1e9), patience_s=5.0)


async def _figures(
    scene: Ground,
    asked: Sequence[asyncio.Task[Turn]],
    refusals: int,
    before: int,
    budget_nanousd: int,
    patience_s: float = 60.0,
) -> CrowdFigures:
    """Open the provider's gate once so many are refused, and count."""
    await ended(asked, refusals, patience_s)
    scene.provider.gate.set()
    turns = await asyncio.gather(*asked)
    calls = scene.provider.bill[before:]
    return CrowdFigures(
        asked=len(asked),
        dispatched=len(calls),
        answered=sum(turn.fate == "ok" for turn in turns),
        refused=sum(turn.status in (402, 429) for turn in turns),
        budget_nanousd=budget_nanousd,
        billed_nanousd=sum(map(billed_nanousd, calls)),
    )
