"""Many turns at once against a session that affords a few: exactly those are dispatched."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx

from tests.harness.auditor import billed_nanousd
from tests.harness.clients import Client
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


async def crowd(
    scene: Ground, client: Client, *, session: str, asking: int, affordable: int, model: str = "held"
) -> CrowdFigures:
    """`asking` turns at once in one session whose budget is `affordable` times a turn's worst case.

    The provider must hold its answers back until all have asked, or settlements would free money for more.
    """
    before = len(scene.provider.bill)
    width = len(str(asking))
    question = {"model": model, "messages": [{"role": "user", "content": f"{session}/{0:0{width}}"}], "max_tokens": 40}
    headers = {"Authorization": f"Bearer {client.key}", "X-Session-Id": f"{session}-look"}
    async with httpx.AsyncClient(headers=headers, timeout=30.0) as http:
        dry_run = (await http.post(client.urls[0] + "/v1/route", json=question)).json()
    budget_nanousd = affordable * int(dry_run["reserve_nano_usd"])
    turns = await asyncio.gather(
        *(
            client.turn(
                model,
                session=session,
                max_tokens=40,
                budget_usd=f"{budget_nanousd / 1e9:.9f}",
                tag=f"{session}/{number:0{width}}",
            )
            for number in range(asking)
        )
    )
    calls = scene.provider.bill[before:]
    return CrowdFigures(
        asked=asking,
        dispatched=len(calls),
        answered=sum(turn.fate == "ok" for turn in turns),
        refused=sum(turn.status == 402 for turn in turns),
        budget_nanousd=budget_nanousd,
        billed_nanousd=sum(map(billed_nanousd, calls)),
    )
