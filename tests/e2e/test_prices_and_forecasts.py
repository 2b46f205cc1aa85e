"""Prices, forecasts and the API's own description, over real HTTP."""

from __future__ import annotations

import re
from pathlib import Path

from tests.harness.scenario import playing, session, turn


async def test_prices_are_those_that_bills_are_made_of(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        listed = (await http.get("/v1/prices")).json()
        (small,) = [row for row in listed["data"] if row["model"] == "small"]
        answer = await turn(http, headers=session("s"))
        usage = answer.json()["usage"]
        price = [small[f"{name}_usd_per_million_tokens"] for name in ("input", "output")]
        expected = (usage["prompt_tokens"] * price[0] + usage["completion_tokens"] * price[1]) / 1e6
        assert abs(float(answer.headers["x-seqroute-cost-usd"]) - expected) < 1e-9


async def test_prices_are_told_of_a_model_that_a_key_may_use_by_its_alias(tmp_path: Path, sqlite_url: str) -> None:
    aliased = {"model_group_alias": {"gpt-4o": "small"}}
    async with playing(tmp_path, sqlite_url, router=aliased) as play:
        _, key = await play.gateway.tenant("acme", models=["gpt-4o"])
        async with play.gateway.http(key) as http:
            assert [row["model"] for row in (await http.get("/v1/prices")).json()["data"]] == ["small"]


async def test_a_forecast_needs_finished_sessions_and_is_the_tenant_s_own(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        _, key = await play.gateway.tenant("acme")
        _, other = await play.gateway.tenant("other")
        async with play.gateway.http(key) as http, play.gateway.http(other) as stranger:
            await turn(http, headers=session("now", budget_usd="0.5"))
            empty = (await http.post("/v1/forecast", json={"session_id": "now"})).json()
            assert (empty["available"], empty["sessions_read"]) == (False, 0)
            for number in range(9):
                for end in ("false", "true"):
                    await turn(http, headers=session(f"past-{number}", end=end))
            found = (await http.post("/v1/forecast", json={"session_id": "now"})).json()
            assert (found["available"], found["references"], found["turns_to_go"]["p50"]) == (True, 9, 1)
            assert found["finishes_within_budget"] == 1.0
            assert set(found["at_lambda"]) == {"cheap", "balanced", "best"}
            assert found["cost_to_go"]["p50_nano_usd"] > 0
            for row in found["at_lambda"].values():
                assert set(row["cost_to_go"]) >= {"p50_nano_usd", "p90_nano_usd", "p99_nano_usd"}
                assert row["finishes_within_budget"] == 1.0
            asked = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
            dry = (await http.post("/v1/route", json=asked, headers=session("now"))).json()["forecast"]
            assert {name: dry[name] for name in ("available", "turns", "turns_to_go", "at_lambda")} == {
                name: found[name] for name in ("available", "turns", "turns_to_go", "at_lambda")
            }
            fresh = (await http.post("/v1/route", json=asked, headers=session("not-yet"))).json()["forecast"]
            assert (fresh["turns"], fresh["turns_to_go"]["p50"], fresh["references"]) == (0, 2, 9)
            assert (await stranger.post("/v1/forecast", json={"session_id": "now"})).status_code == 404
            for budget_usd, left_usd, share in (("0.000001", "-", 0.0), ("0.5", "0", 1.0)):
                asked_of = {"session_id": "now", "budget_usd": budget_usd}
                other = (await http.post("/v1/forecast", json=asked_of)).json()
                assert (other["budget_usd"], other["remaining_usd"][0]) == (budget_usd, left_usd)
                assert other["finishes_within_budget"] == share
            assert (await http.get("/v1/sessions/now")).json()["budget_usd"] == "0.5"
            for body in (
                {},
                {"session_id": "now", "budget_usd": "much"},
                {"session_id": 5},
                {"session_id": "a b"},
                {"session_id": "now", "x": 1},
            ):
                assert (await http.post("/v1/forecast", json=body)).status_code == 400, body


async def test_the_description_names_every_route_with_a_summary(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        document = (await http.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        for path in ("/v1/chat/completions", "/v1/prices", "/v1/sessions/{session_id}", "/admin/tenants", "/livez"):
            assert path in document["paths"]
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        names = [operation["operationId"] for operation in operations]
        assert len(names) == len(set(names))
        for path, methods in document["paths"].items():
            for operation in methods.values():
                inside = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
                assert inside == re.findall(r"{(\w+)}", path)


async def test_the_description_names_the_filters_that_each_list_takes(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        document = (await http.get("/openapi.json")).json()
        lists = 0
        for path, methods in document["paths"].items():
            if "get" not in methods or "{" in path:
                continue
            filters = sorted(p["name"] for p in methods["get"].get("parameters", []))
            refused = await http.get(path, params={"zzz": "1"})
            if filters:
                expected = filters[0] if len(filters) == 1 else f"one of {', '.join(filters)}"
                assert refused.status_code == 400
                assert refused.json()["error"]["message"] == f"zzz: expected {expected}"
                lists += 1
            else:
                assert refused.status_code == 200, path
        assert lists == 8  # sessions, tenants, keys and ledger; each under /v1 too
