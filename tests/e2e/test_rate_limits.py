"""Rate limits of tenants and keys over HTTP: refusals in every dialect, headers, defaults, changes, two replicas."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.database.tables import holds
from tests.harness.gateway import serving
from tests.harness.scenario import playing, session, turn

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "small"} | QUESTION),
    "chat stream": ("/v1/chat/completions", {"model": "small", "stream": True} | QUESTION),
    "messages": ("/v1/messages", {"model": "small", "max_tokens": 20} | QUESTION),
    "responses": ("/v1/responses", {"model": "small", "input": "hello"}),
    "completions": ("/v1/completions", {"model": "small", "prompt": "hello"}),
    "embeddings": ("/v1/embeddings", {"model": "vectors", "input": "hello"}),
    "moderations": ("/v1/moderations", {"model": "watch", "input": "hello"}),
}
INFOS = {"vectors": {"mode": "embedding"}, "watch": {"mode": "moderation"}}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_request_above_the_limit_is_429_in_its_dialect_and_holds_nothing(
    tmp_path: Path, sqlite_url: str, dialect: str
) -> None:
    path, body = DIALECTS[dialect]
    async with playing(tmp_path, sqlite_url, modes=dict.fromkeys(INFOS, "ok"), infos=INFOS) as play:
        _, key = await play.gateway.tenant("acme", rpm=2)
        async with play.gateway.http(key) as http:
            answers = [await http.post(path, json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["2", "2", "2"]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 61
        assert answers[2].headers["x-ratelimit-reset-requests"].endswith("s")
        error = answers[2].json()["error"]
        if dialect == "messages":
            assert (answers[2].json()["type"], error["type"]) == ("error", "rate_limit_error")
        else:
            assert error["code"] in ("rate_limited", "rate_limit_exceeded")
        assert len(play.provider.bill) == 2
        assert len(play.rows(holds)) == 2


async def test_tokens_are_counted_as_billed_and_told(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"words": "ok:tokens=30"}) as play:
        _, key = await play.gateway.tenant("acme", tpm_limit=100)
        async with play.gateway.http(key) as http:
            answers: list[httpx.Response] = []
            while len(answers) < 10:
                answers.append(await turn(http, "words", max_tokens=40))
                await play.gateway.settled()
                if answers[-1].status_code != 200:
                    break
        assert 2 <= len(answers) < 10
        refused = answers[-1]
        assert (refused.status_code, refused.json()["error"]["limit"]) == (429, "tokens")
        assert refused.headers["x-ratelimit-limit-tokens"] == "100"
        billed = sum(attempt.prompt_tokens + attempt.output_tokens for attempt in play.provider.bill)
        assert int(refused.headers["x-ratelimit-remaining-tokens"]) == max(0, 100 - billed)


async def test_a_prompt_that_no_minute_allows_is_not_to_be_tried_again(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("acme", tpm=50)
        async with play.gateway.http(key) as http:
            refused = await turn(http, "small", [{"role": "user", "content": "many words " * 100}])
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
        assert play.provider.bill == []


async def test_turns_at_once_are_limited_for_tenant_and_key(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"held": "ok:tokens=5,delay=0.2"}) as play:
        _, key = await play.gateway.tenant("acme", max_parallel_requests=2)
        async with play.gateway.http(key) as http:
            answers = await asyncio.gather(*(turn(http, "held", headers=session(f"s{n}")) for n in range(6)))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200, 200, 429, 429, 429, 429]
            assert {a.headers["retry-after"] for a in answers if a.status_code == 429} == {"1"}
            await play.gateway.settled()
            assert (await turn(http, "held")).status_code == 200


async def test_limits_are_shown_changed_and_ended_and_defaults_hold_for_the_others(
    tmp_path: Path, sqlite_url: str
) -> None:
    general = {"tenant_limits": {"rpm": 1}, "key_limits": {"parallel": 5}}
    async with playing(tmp_path, sqlite_url, general=general) as play, play.gateway.http() as admin:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            assert [(await turn(http)).status_code for _ in range(2)] == [200, 429]
            changed = await admin.patch(f"/admin/tenants/{tenant_id}", json={"rpm": 3, "tpm": 100_000})
            assert (changed.json()["rpm"], changed.json()["tpm"], changed.json()["parallel"]) == (3, 100_000, None)
            assert [(await turn(http)).status_code for _ in range(3)] == [200, 200, 429]
            (row,) = (await admin.get("/admin/keys", params={"tenant": tenant_id})).json()["data"]
            await admin.patch(f"/admin/tenants/{tenant_id}", json={"rpm": 1000})
            narrowed = await admin.patch(f"/admin/keys/{row['id']}", json={"rpm_limit": 4, "expires": "2099-01-01"})
            assert (narrowed.json()["rpm"], narrowed.json()["expires_at_ms"]) == (4, 4_070_908_800_000)
            limited = [await turn(http) for _ in range(2)]
            assert [answer.status_code for answer in limited] == [200, 429]
            assert limited[1].json()["error"]["account"] == "key"
            await admin.patch(f"/admin/keys/{row['id']}", json={"rpm": None})
            assert (await turn(http)).status_code == 200
        for wrong in ({"rpm": 0}, {"tpm": "many"}, {"parallel": True}, {"rpm": 1.5}, {"rpm": 1, "rpm_limit": 2}):
            refused = await admin.patch(f"/admin/tenants/{tenant_id}", json=wrong)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, list(wrong)[-1])


async def test_two_replicas_admit_a_tenant_s_limit_together(tmp_path: Path, postgres_url: str) -> None:
    async with playing(tmp_path, postgres_url) as play, AsyncExitStack() as stack:
        second = await stack.enter_async_context(serving(play.path))
        _, key = await play.gateway.tenant("acme", rpm=7)
        clients = [await stack.enter_async_context(each.http(key)) for each in (play.gateway, second)]

        async def ask(number: int) -> httpx.Response:
            return await turn(clients[number % 2], headers=session(f"s{number}"))

        answers = await asyncio.gather(*(ask(number) for number in range(30)))
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 23
        await second.settled()


async def test_a_soft_budget_shows_in_the_headers_and_refuses_nothing(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        tenant_id, key = await play.gateway.tenant("acme", soft_budget_usd="0.00001")
        async with play.gateway.http(key) as http, play.gateway.http() as admin:
            first, second = await turn(http), await turn(http, stream=True)
            assert (first.headers["x-seqroute-soft-budget-exceeded"], first.status_code) == ("tenant", 200)
            assert (second.headers["x-seqroute-soft-budget-exceeded"], second.status_code) == ("tenant", 200)
            await admin.patch(f"/admin/tenants/{tenant_id}", json={"soft_budget_usd": None})
            assert "x-seqroute-soft-budget-exceeded" not in (await turn(http)).headers


async def test_a_failed_attempt_s_tokens_come_back_and_retries_are_no_requests(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"down": "e500"}, router={"num_retries": 1}) as play:
        _, key = await play.gateway.tenant("acme", rpm=2, tpm=1000)
        async with play.gateway.http(key) as http:
            assert (await turn(http, "down", max_tokens=500)).status_code == 502
            assert len(play.provider.bill) == 2
            answer = await turn(http, max_tokens=500)
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 450
