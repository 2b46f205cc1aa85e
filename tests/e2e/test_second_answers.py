"""Second answers behind real turns: unseen, graded, paid by a tenant of their own, and no client's turns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.database.database import transaction
from gateway.database.tables import decisions, feedback, sessions, tenants, usage_hours
from gateway.decisions.report import report
from gateway.routing.router import share
from tests.harness.scenario import Play, playing, seqroute, session, turn

SHARE = 0.1


def drawing(**more: Any) -> dict[str, Any]:
    return {"judge": {"model": "grader", "sample": 0.0, "second_answers": SHARE, **more}}


def drawn(answer: httpx.Response) -> bool:
    return share(f"{seqroute(answer, 'decision-id')}/second") < SHARE


async def until(found: Callable[[], bool]) -> None:
    for _ in range(400):
        if found():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("still waiting")


async def turns(play: Play, key: str, count: int, **fields: Any) -> tuple[list[httpx.Response], list[httpx.Response]]:
    """Turns until `count` of them are drawn, and one more that is not: the drawn ones and the others."""
    yes: list[httpx.Response] = []
    no: list[httpx.Response] = []
    async with play.gateway.http(key) as http:
        while len(yes) < count or not no:
            number = len(yes) + len(no)
            answer = await turn(http, "auto", headers=session(f"s{number}"), stream=number % 2 == 1, **fields)
            assert answer.status_code == 200, answer.text
            (yes if drawn(answer) else no).append(answer)
    return yes, no


def outcomes(play: Play, outcome: str) -> float:
    value = play.gateway.parts.services.metrics.registry.get_sample_value
    return value("seqroute_second_answers_total", {"outcome": outcome}) or 0.0


async def test_drawn_turns_are_answered_once_more_and_both_answers_are_graded(
    tmp_path: Path, database_url: str
) -> None:
    policy = drawing(second_answers_usd_per_day=0.25)
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=policy) as play:
        tenant_id, key = await play.gateway.tenant("acme", models=["small", "big"])
        yes, no = await turns(play, key, 2, user="alice", store=True, max_tokens=50, temperature=0.5)
        await until(lambda: len(play.rows(feedback)) == 4)

        firsts = {row["decision_id"]: row for row in play.rows(decisions, tenant_id=tenant_id)}
        seconds = play.rows(decisions, tenant_id="second~answers")
        assert len(firsts) == len(yes) + len(no)
        assert {row["session_id"] for row in seconds} == {f"second:{seqroute(each, 'decision-id')}" for each in yes}
        for row in seconds:
            first = firsts[row["session_id"].removeprefix("second:")]
            assert (row["origin"], row["reason"], row["status"]) == ("second", "second", "completed")
            assert {first["model"], row["model"]} == {"small", "big"}  # nobody else is allowed
            assert row["propensity"] == SHARE
            chances = {each["model"]: each["second"] for each in json.loads(first["candidates"])}
            mu = {each["model"]: each["probability"] for each in json.loads(first["candidates"])}
            assert chances["grader"] == 0.0
            assert chances[row["model"]] == pytest.approx(SHARE * (1.0 - mu[row["model"]]))
            assert "second" not in row["candidates"]
        graded = [(row["tenant_id"], row["source"], row["score"]) for row in play.rows(feedback)]
        assert sorted(graded) == sorted([(tenant_id, "judge", 0.75), ("second~answers", "judge", 0.75)] * 2)

        asked = [each.body for each in play.provider.received if each.body["messages"][0]["role"] == "user"]
        again = [body for body in asked if "user" not in body]
        assert len(again) == 2
        for body in again:
            assert body["store"] is False
            assert not body.get("stream")
            assert (body["temperature"], body["messages"]) == (0.5, asked[0]["messages"])
            assert 50 in (body.get("max_tokens"), body.get("max_completion_tokens"))

        [paid] = play.rows(tenants, tenant_id="second~answers")
        assert paid["granted_nanousd"] == 250_000_000
        assert paid["spent_nanousd"] == sum(row["cost_nanousd"] for row in seconds) > 0
        [client] = play.rows(tenants, tenant_id=tenant_id)
        assert client["spent_nanousd"] == sum(row["cost_nanousd"] for row in firsts.values())
        for answer in (*yes, *no):
            decision_id = seqroute(answer, "decision-id")
            assert firsts[decision_id]["session_id"] == seqroute(answer, "session-id")
            async with play.gateway.http(key) as http:
                shown = (await http.get(f"/v1/decisions/{decision_id}")).json()
            assert "second" not in json.dumps(shown)
        assert {row["state"] for row in play.rows(sessions, tenant_id="second~answers")} == {"closed"}

        with transaction(play.url, read_only=True) as connection:
            found = report(connection)
        assert (found["turns"], found["sessions"], found["sessions_with_turns"]) == (len(firsts),) * 3
        assert found["second_answers_nano_usd"] == paid["spent_nanousd"]
        assert found["spent_nano_usd"] == sum(row["spent_nanousd"] for row in play.rows(tenants))


async def test_a_spent_budget_pauses_second_answers_and_no_client_notices(tmp_path: Path, database_url: str) -> None:
    policy = drawing(second_answers_usd_per_day=0.000001)
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=policy) as play:
        _, key = await play.gateway.tenant("acme", models=["small", "big"])
        await turns(play, key, 1)
        await until(lambda: outcomes(play, "tenant_budget_exceeded") + outcomes(play, "session_budget_exceeded") == 1)
        assert play.rows(decisions, tenant_id="second~answers") == []
        await turns(play, key, 1)
        [tenant] = play.rows(tenants, tenant_id="second~answers")
        assert (tenant["granted_nanousd"], tenant["spent_nanousd"]) == (1_000, 0)


async def test_a_second_model_that_fails_is_called_once_and_stays_in_service(tmp_path: Path, database_url: str) -> None:
    policy, router = (
        {**drawing(), "exploration_floor": 0.0},
        {"allowed_fails": 0, "num_retries": 2, "fallbacks": [{"broken": ["small"]}]},
    )
    models = {"grader": "judge", "broken": "e500"}
    async with playing(
        tmp_path, database_url, modes=models, policy=policy, router=router, infos={"broken": {"quality_prior": 0.0}}
    ) as play:
        _, key = await play.gateway.tenant("acme", models=["small", "broken"])
        await turns(play, key, 2)
        await until(lambda: len(play.rows(decisions, tenant_id="second~answers", status="failed")) == 2)
        calls = [each for each in play.provider.bill if each.mode == "e500"]
        assert len(calls) == 2
        assert play.rows(feedback, tenant_id="second~answers") == []
        assert {row["model"] for row in play.rows(decisions, origin=None)} == {"small"}


async def test_turns_that_another_model_cannot_be_asked_for_are_never_drawn(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=drawing()) as play:
        _, key = await play.gateway.tenant("acme", models=["small", "big"])
        async with play.gateway.http(key) as http:
            for fields, headers in (
                ({"model": "small"}, {}),
                ({"model": "auto", "n": 2}, {}),
                ({"model": "auto"}, {"X-Budget-Visible": "true"}),
            ):
                answer = await turn(http, headers={"X-Session-Id": "s", **headers}, **fields)
                assert answer.status_code == 200, answer.text
        for row in play.rows(decisions, origin=None):
            assert all("second" not in each for each in json.loads(row["candidates"]))
        assert play.rows(usage_hours, tenant_id="second~answers") == []


@pytest.mark.parametrize("limits", [{"rpm": 1}, {"max_parallel_requests": 1}, {"tpm": 40}])
async def test_a_second_answer_leaves_the_limits_of_its_model_to_clients(
    tmp_path: Path, database_url: str, limits: dict[str, int]
) -> None:
    """The other model's limit admits one call, which is the client's."""
    policy = {**drawing(), "exploration_floor": 0.0}
    async with playing(
        tmp_path, database_url, modes={"grader": "judge"}, params={"big": limits}, policy=policy,
        infos={"big": {"quality_prior": 0.0}},
    ) as play:  # fmt: skip
        _, key = await play.gateway.tenant("acme", models=["small", "big"])
        await turns(play, key, 2)
        await until(lambda: outcomes(play, "busy") == 2)
        assert play.rows(decisions, tenant_id="second~answers") == []
        await until(lambda: len(play.rows(feedback)) == 2)  # the first answers, as ever
        async with play.gateway.http(key) as http:
            assert (await turn(http, "big", headers=session("own"))).status_code == 200


async def test_a_clients_tenant_of_the_older_name_stays_the_clients(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"grader": "judge"}, policy=drawing()) as play:
        client, key = await play.gateway.tenant("second-answers", models=["small", "big"])
        granted = play.rows(tenants, tenant_id=client)[0]["granted_nanousd"]
        await turns(play, key, 1)
        await until(lambda: outcomes(play, "answered") == 1)
        assert play.rows(tenants, tenant_id=client)[0]["granted_nanousd"] == granted
        assert play.rows(tenants, tenant_id="second~answers")[0]["spent_nanousd"] > 0
