"""Keys decide tenants; nothing of one is seen, spent or changed by another."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.database.tables import decisions, feedback, sessions
from tests.e2e.test_dashboard import PAGES, signed_in
from tests.harness.gateway import Served, serving
from tests.harness.scenario import HELLO, playing, seqroute, session, turn


async def key_for(gateway: Served, tenant_id: str, **fields: Any) -> dict[str, Any]:
    async with gateway.http() as http:
        made = await http.post("/admin/keys", json={"tenant_id": tenant_id} | fields)
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()
    return found


def written(folder: Path, *, besides: Path) -> bytes:
    """Every byte of the files below a folder: the database with its log, policies, journals."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != besides)


async def until_unauthorized(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while (await http.get("/v1/models")).status_code != 401:  # noqa: ASYNC110 - what is waited for is elsewhere
            await asyncio.sleep(0.1)


async def test_one_session_id_in_two_tenants_is_two_sessions_and_foreign_ids_look_unknown(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        acme_id, acme_key = await play.gateway.tenant("acme")
        rival_id, rival_key = await play.gateway.tenant("rival")
        async with play.gateway.http(acme_key) as acme, play.gateway.http(rival_key) as rival:
            mine = await turn(acme, headers=session("s", budget_usd="0.5"))
            theirs = await turn(rival, headers=session("s", budget_usd="0.2"))
            shown = (await acme.get("/v1/sessions/s")).json()
            assert (shown["tenant_id"], shown["budget_usd"], shown["turns"]) == (acme_id, "0.5", 1)
            shown = (await rival.get("/v1/sessions/s")).json()
            assert (shown["tenant_id"], shown["budget_usd"], shown["turns"]) == (rival_id, "0.2", 1)
            assert {row["tenant_id"] for row in play.rows(sessions, session_id="s")} == {acme_id, rival_id}

            await turn(acme, headers=session("only-mine"))
            decision, completion = seqroute(mine, "decision-id"), mine.json()["id"]
            assert (await acme.get(f"/v1/decisions/{decision}")).json()["tenant_id"] == acme_id
            for foreign, unknown in (
                ("/v1/sessions/only-mine", "/v1/sessions/no-such"),
                (f"/v1/decisions/{decision}", "/v1/decisions/dec_nosuch"),
            ):
                refused, missing = await rival.get(foreign), await rival.get(unknown)
                assert refused.status_code == missing.status_code == 404
                assert refused.content == missing.content
            for foreign_id, unknown_id in (
                ({"decision_id": decision}, {"decision_id": "dec_nosuch"}),
                ({"completion_id": completion}, {"completion_id": "chatcmpl-nosuch"}),
                ({"session_id": "only-mine"}, {"session_id": "no-such"}),
            ):
                refused = await rival.post("/v1/feedback", json=foreign_id | {"score": 1})
                missing = await rival.post("/v1/feedback", json=unknown_id | {"score": 1})
                assert refused.status_code == missing.status_code == 404
                assert refused.content == missing.content
            assert play.rows(feedback) == []

            once = {"Idempotency-Key": "order-1"}
            mine, theirs = await turn(acme, headers=once), await turn(rival, headers=once)
            assert mine.status_code == theirs.status_code == 200
            assert mine.json()["id"] != theirs.json()["id"]
            assert "x-seqroute-replayed" not in theirs.headers


async def test_nothing_in_a_body_or_header_names_another_payer(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        acme_id, acme_key = await play.gateway.tenant("acme")
        rival_id, _ = await play.gateway.tenant("rival")
        async with play.gateway.http(acme_key) as acme:
            labels = {
                "x-litellm-customer-id": rival_id, "x-litellm-end-user-id": rival_id, "OpenAI-Organization": rival_id,
                "x-litellm-tags": rival_id, "X-Forwarded-User": rival_id,
            }  # fmt: skip
            answer = await turn(
                acme, headers=labels | session("s"), user=rival_id, safety_identifier=rival_id, tenant_id=rival_id,
                metadata={"tenant_id": rival_id, "user_api_key": "sk-x"},
            )  # fmt: skip
            assert answer.status_code == 200
            for name in ("X-Tenant-Id", "X-Tenant-Budget-USD"):
                refused = await turn(acme, headers={name: rival_id if name.endswith("Id") else "5"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert {row["tenant_id"] for row in play.rows(sessions)} == {acme_id}


async def test_a_service_key_acts_for_tenants_by_header_and_their_budgets_bind(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        _, service = await play.gateway.tenant("backend", budget_usd="1", role="service")
        async with play.gateway.http(service) as http:
            as_customer = {"X-Tenant-Id": "customer-1", "X-Tenant-Budget-USD": "0.01"}
            first = await turn(http, headers=as_customer | session("s"))
            assert first.status_code == 200
            assert float(seqroute(first, "tenant-remaining-usd")) < 0.01
            shown = (await http.get("/v1/sessions/s", headers={"X-Tenant-Id": "customer-1"})).json()
            assert shown["turns"] == 1
            assert (await http.get("/v1/sessions/s")).status_code == 404
            unknown = {"X-Tenant-Id": "customer-3", "X-Tenant-Budget-USD": "1"}
            for path, status in (("models", 200), ("prices", 200), ("sessions", 404), ("sessions/s", 404)):
                assert (await http.get(f"/v1/{path}", headers=unknown)).status_code == status
            dry = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
            assert (await http.post("/v1/route", json=dry, headers=unknown)).status_code == 404
            penniless = await turn(http, headers={"X-Tenant-Id": "customer-2"})
            assert (penniless.status_code, penniless.json()["error"]["code"]) == (402, "tenant_budget_exceeded")
            lowered = await turn(http, headers=as_customer | {"X-Tenant-Budget-USD": "0.000001"})
            error = lowered.json()["error"]
            assert (lowered.status_code, error["param"]) == (400, "X-Tenant-Budget-USD")
            assert error["message"].startswith("X-Tenant-Budget-USD: ")
            own = await turn(http, headers=session("s"))
            assert own.status_code == 200
        async with play.gateway.http() as http:
            names = {t["name"]: t for t in (await http.get("/admin/tenants")).json()["data"]}
        assert set(names) == {"default", "backend", "customer-1", "customer-2"}
        assert float(names["backend"]["spent_usd"]) == float(seqroute(own, "cost-usd"))
        assert names["customer-2"]["spent_usd"] == "0"


async def test_a_service_key_with_a_budget_of_its_own_is_bound_by_it_whoever_pays(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, _ = await play.gateway.tenant("backend")
        made = await key_for(play.gateway, tenant_id, role="service", budget_usd="0.001")
        async with play.gateway.http(made["key"]) as http:
            spent_nano_usd, status = 0, 200
            while status == 200:
                answer = await turn(http, headers={"X-Tenant-Id": "customer-1", "X-Tenant-Budget-USD": "5"})
                status = answer.status_code
                if status == 200:
                    spent_nano_usd += round(float(seqroute(answer, "cost-usd")) * 1e9)
            error = answer.json()["error"]
            assert (status, error["code"]) == (402, "tenant_budget_exceeded")
            assert "key" in error["message"]
            assert error["remaining_nano_usd"] == 1_000_000 - spent_nano_usd


async def test_a_read_only_key_reads_and_changes_nothing(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            answer = await turn(http, headers=session("s"))
        reader = await key_for(play.gateway, tenant_id, role="read-only")
        decision = seqroute(answer, "decision-id")
        async with play.gateway.http(reader["key"]) as http:
            for path in ("/v1/models", "/v1/models/auto", "/v1/sessions/s", f"/v1/decisions/{decision}"):
                assert (await http.get(path)).status_code == 200
            before = await play.gateway.entries()
            dry_run = await http.post("/v1/route", json={"model": "auto", "messages": HELLO})
            assert dry_run.status_code == 200
            for path, body in (
                ("/v1/chat/completions", {"model": "auto", "messages": HELLO}),
                ("/v1/feedback", {"decision_id": decision, "score": 1}),
                ("/v1/sessions/s", {"budget_usd": "1"}),
            ):
                refused = await http.post(path, json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
            assert await play.gateway.entries() == before


async def test_a_key_s_and_its_tenant_s_lists_of_models_hide_the_others(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"words": "ok:tokens=30"}) as play:
        tenant_id, _ = await play.gateway.tenant("acme", models=["small", "big"])
        made = await key_for(play.gateway, tenant_id, models=["small", "words"])
        async with play.gateway.http(made["key"]) as http:
            listed = {m["id"] for m in (await http.get("/v1/models")).json()["data"]}
            assert listed == {"auto", "auto@cheap", "auto@balanced", "auto@best", "small"}
            for name in ("big", "words"):
                refused, unknown = await http.get(f"/v1/models/{name}"), await http.get("/v1/models/none")
                assert (refused.status_code, refused.content) == (404, unknown.content)
                pinned = await turn(http, name)
                assert (pinned.status_code, pinned.json()["error"]["code"]) == (404, "model_not_found")
            chosen = await turn(http, "auto@best")
            assert (chosen.json()["model"], seqroute(chosen, "reason")) == ("small", "capability")


async def test_a_revoked_a_rotated_and_an_expired_key_stop_within_seconds(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http() as admin, play.gateway.http(key) as http:
            assert (await turn(http)).status_code == 200
            assert (await admin.post("/admin/keys/revoke", json={"key": key})).status_code == 200
            await until_unauthorized(http)
            refused = await turn(http)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert key not in refused.text

            made = await key_for(play.gateway, tenant_id)
            rotated = (await admin.post("/admin/keys/rotate", json={"id": made["id"]})).json()
            assert rotated["id"] == made["id"]
            async with play.gateway.http(made["key"]) as old, play.gateway.http(rotated["key"]) as new:
                await until_unauthorized(old)
                assert (await turn(new)).status_code == 200

            made = await key_for(play.gateway, tenant_id, expires=time.time() + 1.0)
            async with play.gateway.http(made["key"]) as short_lived:
                await until_unauthorized(short_lived)


async def test_a_key_revoked_at_one_replica_stops_at_the_other(tmp_path: Path, postgres_url: str) -> None:
    """How soon, by an injected clock: tests/gateway/accounts/test_auth.py."""
    async with playing(tmp_path, postgres_url) as play, serving(play.path) as second:
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http() as admin, second.http(key) as http:
            assert (await turn(http)).status_code == 200
            assert (await admin.post("/admin/keys/revoke", json={"key": key})).status_code == 200
            await until_unauthorized(http)
        await second.settled()


async def test_a_key_revoked_during_its_stream_still_settles_it(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"slow": "ok:tokens=40,delay=0.02"}) as play:
        _, key = await play.gateway.tenant("acme")
        body = {"model": "slow", "messages": HELLO, "stream": True}
        async with play.gateway.http(key) as http, play.gateway.http() as admin:
            async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                await admin.post("/admin/keys/revoke", json={"key": key})
                rest = [line async for line in lines]
            assert "data: [DONE]" in rest
            await until_unauthorized(http)
        await play.gateway.settled()
        assert [e["usage_source"] for e in await play.gateway.entries() if e["kind"] == "settle"] == ["reported"]


async def test_the_master_key_spends_as_the_tenant_default(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers=session("s"))
        assert (await http.get("/v1/sessions/s")).json()["tenant_id"] == "default"
        assert (await http.get("/admin/tenants/default")).json()["spent_nano_usd"] > 0


async def test_texts_are_stored_for_a_tenant_that_opted_in_and_for_nobody_else(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        for name, stores in (("open", True), ("closed", False)):
            tenant_id, key = await play.gateway.tenant(name, store_text=stores)
            async with play.gateway.http(key) as http:
                asked: list[dict[str, Any]] = [{"role": "user", "content": "a canary \0 named Tweety"}]
                whole = await turn(http, messages=asked)
                streamed = await turn(http, messages=asked, stream=True)
                assert whole.status_code == streamed.status_code == 200
            await play.gateway.settled()
            for row in play.rows(decisions, tenant_id=tenant_id):
                if stores:
                    assert "Tweety" in row["request_text"]
                    assert "the of and" in row["response_text"]
                else:
                    assert row["request_text"] is row["response_text"] is None


async def test_secrets_and_prompts_reach_no_log_no_error_no_metric_no_page_and_no_file(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    modes = {"echo": "e401echo", "cut": "rst", "down": "e500", "inband": "inband-mid", "absurd": "huge"}
    canary = "the-prompt-of-Tweety"
    asked: list[dict[str, Any]] = [{"role": "user", "content": canary}]
    async with playing(tmp_path, sqlite_url, modes=modes) as play:
        _, key = await play.gateway.tenant("acme")
        answers: list[httpx.Response] = []
        async with play.gateway.http(key) as http:
            for model in ("small", "echo", "cut", "down", "inband", "absurd"):
                for stream in (False, True):
                    answers.append(await turn(http, model, asked, stream=stream))
            answers.append(await turn(http, "big", asked, headers=session("poor", budget_usd="0.000001")))
            answers.append(await turn(http, "small", asked, temperature=canary))
            answers.append(await turn(http, "small", asked, headers={"X-Session-Id": canary + "/"}))
            answers.append(await http.post("/v1/chat/completions", content=b'{"model": "' + canary.encode()))
            unknown = await turn(http, canary, asked)
            assert unknown.status_code == 404, "a caller reads the name that it asked for, nobody else does"
        async with play.gateway.http("sk-unknown-" + canary) as http:
            answers.append(await turn(http, "small", asked))
        assert {a.status_code for a in answers} >= {200, 400, 401, 402, 502}
        await play.gateway.settled()
        explained = [f"decisions/{row['decision_id']}" for row in play.rows(decisions)]
        assert len(explained) > 10
        async with play.gateway.http() as http:
            for path in ("metrics", "admin/keys", "admin/ledger", "admin/audit", *(f"v1/{path}" for path in explained)):
                answers.append(await http.get(f"/{path}"))
        async with signed_in(play, play.gateway.master_key) as http:
            for path in (*PAGES, *(f"/ui/{path}" for path in explained)):
                answers.append(await http.get(path))
        spoken = "\n".join([caplog.text, *(f"{a.headers}\n{a.text}" for a in answers)])
        kept = written(tmp_path, besides=play.path)
        assert explained[0].removeprefix("decisions/").encode() in kept
        for secret in (canary, key, "sk-provider-canary", play.gateway.master_key):
            assert secret not in spoken
            assert secret.encode() not in kept


async def test_one_tenant_s_flood_does_not_keep_another_from_its_answers(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, loud_key = await play.gateway.tenant("loud", budget_usd="0.001")
        _, quiet_key = await play.gateway.tenant("quiet")
        async with play.gateway.http(loud_key) as loud, play.gateway.http(quiet_key) as quiet:
            flood = [asyncio.create_task(turn(loud)) for _ in range(80)]
            answers = [await turn(quiet, headers=session(f"q{n}")) for n in range(5)]
            await asyncio.gather(*flood)
        assert [a.status_code for a in answers] == [200] * 5
        assert {task.result().status_code for task in flood} <= {200, 402, 429}


async def test_models_that_a_tenant_may_not_use_are_named_to_its_operator_alone(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("acme", models=["small"])
        async with play.gateway.http(key) as acme, play.gateway.http() as operator:
            dry_run = await acme.post("/v1/route", json={"model": "auto", "messages": HELLO})
            answered = await turn(acme, "auto")
            shown = await acme.get(f"/v1/decisions/{seqroute(answered, 'decision-id')}")
            for told in (dry_run.json(), shown.json()):
                assert [candidate["model"] for candidate in told["candidates"]] == ["small"]
            assert "big" not in dry_run.text + shown.text
            whole = (await operator.get(f"/v1/decisions/{seqroute(answered, 'decision-id')}")).json()
            verdicts = [(candidate["model"], candidate["why_not"]) for candidate in whole["candidates"]]
            assert verdicts == [("small", None), ("big", "not allowed")]
