"""A judge behind real turns: what it says is feedback, what it costs is its own, and it teaches nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.database.tables import decisions, feedback, tenants
from tests.harness.scenario import playing, seqroute, session, turn


async def test_sampled_answers_are_graded_in_the_background_on_the_judge_s_budget(
    tmp_path: Path, database_url: str
) -> None:
    policy = {"judge": {"model": "grader", "sample": 1.0, "budget_usd_per_day": 0.5}}
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=policy) as play:
        async with play.gateway.http() as http:
            whole = await turn(http, headers=session("s"))
            stream = await turn(http, headers=session("s"), stream=True)
        for _ in range(400):
            if len(play.rows(feedback)) == 2:
                break
            await asyncio.sleep(0.05)
        graded = {(r["decision_id"], r["tenant_id"], r["source"], r["name"], r["score"]) for r in play.rows(feedback)}
        assert graded == {
            (seqroute(answer, "decision-id"), "default", "judge", "grader", 0.75) for answer in (whole, stream)
        }
        own = play.rows(decisions, tenant_id="judge")
        assert {row["origin"] for row in own} == {"judge"}
        assert [row["request_text"] for row in own] == [None, None]
        assert {row["session_id"] for row in own} == {f"judge:{row[0]}" for row in graded}
        [judge] = play.rows(tenants, tenant_id="judge")
        assert judge["granted_nanousd"] == 500_000_000
        assert judge["spent_nanousd"] == sum(row["cost_nanousd"] for row in own) > 0
