"""A judge and second answers behind real turns: what they say is feedback, what they cost is their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.database.tables import decisions, feedback, sessions, tenants
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


async def test_a_second_model_answers_unseen_on_a_budget_of_its_own_and_is_graded(
    tmp_path: Path, database_url: str
) -> None:
    policy = {
        "judge": {"model": "grader", "sample": 1.0, "budget_usd_per_day": 0.5},
        "shadow_answers": {"sample": 1.0, "budget_usd_per_day": 0.25},
    }
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=policy) as play:
        async with play.gateway.http() as http:
            answer = await turn(http, "auto", headers=session("s"))
        for _ in range(400):
            if len(play.rows(feedback)) == 2:
                break
            await asyncio.sleep(0.05)
        [served] = play.rows(decisions, session_id="s")
        [second] = play.rows(decisions, tenant_id="shadow")
        assert second["origin"] == "shadow"
        assert second["session_id"] == f"shadow:{served['decision_id']}"
        assert second["model"] != served["model"]
        by_name = {candidate["model"]: candidate for candidate in json.loads(served["candidates"])}
        assert by_name[second["model"]]["shadow"] > 0.0
        assert sum(candidate["shadow"] for candidate in by_name.values()) == pytest.approx(1.0)
        assert {row["decision_id"] for row in play.rows(feedback)} == {served["decision_id"], second["decision_id"]}
        [shadow] = play.rows(tenants, tenant_id="shadow")
        assert shadow["granted_nanousd"] == 250_000_000
        assert shadow["spent_nanousd"] == second["cost_nanousd"] > 0
        [paid] = play.rows(sessions, session_id="s")
        assert paid["spent_nanousd"] == served["cost_nanousd"]
        assert answer.json()["choices"][0]["message"]["content"]
