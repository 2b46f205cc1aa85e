"""The operator's routes: closed to every other role, exact in money, and left with a trail."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.api.admission import Admission
from gateway.app import build
from gateway.catalog.build import load
from gateway.database.database import transaction
from gateway.database.tables import audit_trail, keys, policies, refusing_accounts
from tests.e2e.conftest import Stage
from tests.harness.scenario import HELLO, Play, playing, session, turn

PUBLIC = {
    "/livez", "/readyz", "/metrics", "/openapi.json", "/health", "/health/liveliness", "/health/liveness",
    "/health/readiness",
}  # fmt: skip
PUBLIC |= {"/"} | {f"/v1{path}" for path in PUBLIC}
"""What needs no key. A new route that needs none has to be named here."""
READ_BY_POST = {"/forecast", "/tools/check_budget", "/route", "/messages/count_tokens"}
"""Questions with a body: a read-only key may ask them."""


def routes(play: Play) -> list[tuple[str, str]]:
    """(method, path) of every route the application has, path parameters filled in."""
    app = build(*load(play.path, {}))
    assert isinstance(app, Admission)
    assert isinstance(app.app, Starlette)
    found = []
    for route in app.app.routes:
        assert isinstance(route, Route), f"{route}: a kind of route that this walk does not know"
        path = route.path
        for parameter in route.param_convertors:
            path = path.replace("{" + parameter + ":path}", "x").replace("{" + parameter + "}", "x")
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


async def asked(http: httpx.AsyncClient, method: str, path: str) -> int:
    content = b"{}" if method in ("POST", "PATCH", "PUT") else None
    answer = await http.request(method, path, content=content, headers={"Content-Type": "application/json"})
    return answer.status_code


async def key_of_role(play: Play, tenant_id: str, role: str) -> str:
    async with play.gateway.http() as http:
        made = await http.post("/admin/keys", json={"tenant_id": tenant_id, "role": role})
    key: str = made.json()["key"]
    return key


async def test_every_route_but_the_public_ones_is_closed_to_strangers_and_admin_to_every_other_role(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        # The dashboard's pages take a cookie, not a key: tests/e2e/test_dashboard.py walks them.
        table = [(method, path) for method, path in routes(play) if not path.startswith("/ui")]
        assert len(table) > 40
        tenant_id, tenant_key = await play.gateway.tenant("acme")
        before = await play.gateway.entries()
        async with httpx.AsyncClient(base_url=play.gateway.url) as stranger:
            open_to_all = {path for method, path in table if await asked(stranger, method, path) != 401}
            described = (await stranger.get("/openapi.json")).json()["paths"]
        assert open_to_all == PUBLIC
        assert {path for path, methods in described.items() if methods.get("get", {}).get("security") == []} == PUBLIC
        for role in ("tenant", "service", "read-only"):
            key = tenant_key if role == "tenant" else await key_of_role(play, tenant_id, role)
            async with play.gateway.http(key) as http:
                for method, path in table:
                    reads = method in ("GET", "HEAD") or path.removeprefix("/v1") in READ_BY_POST
                    changes = role == "read-only" and not reads
                    if changes or path.removeprefix("/v1").startswith("/admin"):
                        assert await asked(http, method, path) == 403, (role, method, path)
        assert await play.gateway.entries() == before
        async with play.gateway.http(await key_of_role(play, tenant_id, "admin")) as http:
            for method, path in table:
                assert await asked(http, method, path) not in (401, 403, 500), (method, path)


async def test_unknown_routes_and_methods_answer_in_openai_s_shape(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        for method, path, status, code in (
            ("GET", "/nope", 404, "not_found"),
            ("GET", "/v1/", 404, "not_found"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("DELETE", "/v1/sessions/s", 405, "method_not_allowed"),
            ("PUT", "/admin/tenants", 405, "method_not_allowed"),
            ("OPTIONS", "/admin/tenants", 405, "method_not_allowed"),
            ("TRACE", "/v1/models", 405, "method_not_allowed"),
            ("POST", "/v1/chat/completions/", 404, "not_found"),
            ("GET", "/admin/tenants/", 404, "not_found"),
            ("POST", "/admin/policies/p/explode", 404, "not_found"),
        ):
            answer = await http.request(method, path)
            assert answer.status_code == status, (method, path, answer.status_code)
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code
            assert "access-control-allow-origin" not in answer.headers


async def test_liveness_readiness_and_metrics(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        async with play.gateway.http() as http:
            await turn(http, headers=session("a-session-of-nobody-s-business"))
        async with httpx.AsyncClient(base_url=play.gateway.url) as http:
            assert (await http.get("/livez")).json() == {"status": "ok"}
            assert (await http.get("/readyz")).json() == {"status": "ok"}
            text = (await http.get("/metrics")).text
            assert 'seqroute_turns_total{model="small",status="completed"} 1.0' in text
            values = {
                sample.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            assert (values["seqroute_live_holds"], values["seqroute_waiting_requests"]) == (0, 0)
            assert (values["seqroute_added_seconds_count"], values["seqroute_turn_seconds_count"]) == (1, 1)
            assert values["seqroute_prompt_tokens_total"] > values["seqroute_cached_prompt_tokens_total"] == 0
            assert "nobody-s-business" not in text
            play.gateway.parts.services.lifecycle.draining = True
            try:
                assert (await http.get("/livez")).status_code == 200
                ready = await http.get("/readyz")
                assert (ready.status_code, ready.json()) == (503, {"status": "draining"})
                refused = await http.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO})
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
                assert refused.headers["Retry-After"] == "1"
            finally:
                play.gateway.parts.services.lifecycle.draining = False


async def test_a_tenant_s_life_over_http_is_exact_in_money_and_leaves_a_trail(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        wanted = {
            "name": "acme", "budget_usd": "2.5", "budget_duration": "30d", "max_session_usd": 0.1, "models": ["small"],
            "outage": "open", "store_text": True,
        }  # fmt: skip
        made = (await http.post("/admin/tenants", json=wanted)).json()
        tenant_id = made["id"]
        assert (made["budget_nano_usd"], made["spent_nano_usd"], made["remaining_usd"]) == (2_500_000_000, 0, "2.5")
        assert (made["models"], made["outage"], made["store_text"]) == (["small"], "open", True)
        key = (await http.post("/admin/keys", json={"tenant_id": "acme"})).json()  # by its name, as on a command line
        assert (key["key"][:3], key["tenant_id"]) == ("sk-", tenant_id)
        async with play.gateway.http(key["key"]) as client:
            spent = round(float((await turn(client)).headers["x-seqroute-cost-usd"]) * 1e9)
        shown = (await http.get(f"/admin/tenants/{tenant_id}")).json()
        assert (shown["spent_nano_usd"], shown["remaining_nano_usd"]) == (spent, 2_500_000_000 - spent)
        assert (await http.get("/admin/tenants/acme")).json() == shown
        changed = (await http.patch("/admin/tenants/acme", json={"budget_usd": "3", "models": None})).json()
        assert (changed["budget_usd"], changed["models"], changed["max_session_usd"]) == ("3", None, "0.1")
        below = await http.patch(f"/admin/tenants/{tenant_id}", json={"budget_usd": "0"})
        assert (below.status_code, below.json()["error"]["param"]) == (400, "budget_usd")
        shown = (await http.get(f"/admin/tenants/{tenant_id}")).json()
        assert shown["budget_usd"] == "3"
        assert "acme" in {t["name"] for t in (await http.get("/admin/tenants")).json()["data"]}
        trail = [row["action"] for row in play.rows(audit_trail) if row["subject"] in (tenant_id, key["id"])]
        assert trail == ["tenant.create", "key.create", "tenant.change"]
        [listed] = (await http.get("/admin/keys", params={"tenant": tenant_id})).json()["data"]
        assert listed["key_prefix"] == key["key"][:8]
        assert "key" not in listed
        [stored] = play.rows(keys)
        assert key["key"].encode() not in b"".join(v for v in stored.values() if isinstance(v, bytes))


BAD_TENANTS: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": "x"}, "budget_usd"),
    ({"name": "", "budget_usd": 1}, "name"),
    ({"name": 5, "budget_usd": 1}, "name"),
    ({"name": "n" * 129, "budget_usd": 1}, "name"),
    ({"name": "a\0b", "budget_usd": 1}, "name"),
    ({"name": "x", "budget_usd": -1}, "budget_usd"),
    ({"name": "x", "budget_usd": "NaN"}, "budget_usd"),
    ({"name": "x", "budget_usd": 2**63}, "budget_usd"),
    ({"name": "x", "budget_usd": True}, "budget_usd"),
    ({"name": "x", "budget_usd": [1]}, "budget_usd"),
    ({"name": "x", "budget_usd": 1, "max_session_usd": "lots"}, "max_session_usd"),
    ({"name": "x", "budget_usd": 1, "budget_duration": "soon"}, "budget_duration"),
    ({"name": "x", "budget_usd": 1, "budget_duration": 30}, "budget_duration"),
    ({"name": "x", "budget_usd": 1, "budget_duration": "30d" + 50 * " "}, "budget_duration"),
    ({"name": "x", "budget_usd": 1, "models": "small"}, "models"),
    ({"name": "x", "budget_usd": 1, "models": [5]}, "models"),
    ({"name": "x", "budget_usd": 1, "models": ["a\0b"]}, "models"),
    ({"name": "x", "budget_usd": 1, "outage": "wide"}, "outage"),
    ({"name": "x", "budget_usd": 1, "store_text": "yes"}, "store_text"),
    ({"name": "x", "budget_usd": 1, "spent_nano_usd": 0}, "spent_nano_usd"),
    ({"name": "x", "budget_usd": 1, "id": "ten_mine"}, "id"),
    ({"name": "x", "budget_usd": 1, "created_at_ms": 5}, "created_at_ms"),
    ({"name": "default", "budget_usd": 1}, "name"),
]


async def test_a_bad_tenant_is_refused_by_its_field_and_nothing_is_made(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        tenant_id, _ = await play.gateway.tenant("acme")
        before = await play.gateway.entries()
        for fields, param in BAD_TENANTS:
            answer = await http.post("/admin/tenants", json=fields)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), fields
            if len(fields) > 1:
                changes = {name: value for name, value in fields.items() if name == param}
                answer = await http.patch(f"/admin/tenants/{tenant_id}", json=changes)
                assert answer.status_code == 400, changes
        assert len((await http.get("/admin/tenants")).json()["data"]) == 2
        assert await play.gateway.entries() == before


BAD_KEYS: list[tuple[dict[str, Any], int, str | None]] = [
    ({}, 400, "tenant_id"),
    ({"tenant_id": 5}, 400, "tenant_id"),
    ({"tenant_id": "ten_nosuch"}, 404, None),
    ({"tenant_id": "a\0b"}, 400, "tenant_id"),
    ({"tenant_id": "default", "role": "root"}, 400, "role"),
    ({"tenant_id": "default", "role": ["admin"]}, 400, "role"),
    ({"tenant_id": "default", "expires": "yesterday"}, 400, "expires"),
    ({"tenant_id": "default", "expires": "2001-01-01"}, 400, "expires"),
    ({"tenant_id": "default", "expires": "0001-01-01T00:00:00+14:00"}, 400, "expires"),
    ({"tenant_id": "default", "expires": 1e300}, 400, "expires"),
    ({"tenant_id": "default", "expires": True}, 400, "expires"),
    ({"tenant_id": "default", "models": {"a": 1}}, 400, "models"),
    ({"tenant_id": "default", "models": 5}, 400, "models"),
    ({"tenant_id": "default", "budget_usd": "-5"}, 400, "budget_usd"),
    ({"tenant_id": "default", "budget_duration": "30d"}, 400, "budget_duration"),
    ({"tenant_id": "default", "key": "sk-mine"}, 400, "key"),
    ({"tenant_id": "default", "is_admin": True}, 400, "is_admin"),
]


async def test_a_bad_key_is_refused_by_its_field_and_nothing_is_made(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        for fields, status, param in BAD_KEYS:
            answer = await http.post("/admin/keys", json=fields)
            assert answer.status_code == status, (fields, answer.text)
            assert param is None or answer.json()["error"]["param"] == param
        for body in ({}, {"id": "key_nosuch"}, {"id": "a\0b"}, {"key": "sk-none"}, {"id": "x", "key": "y"}, {"id": 5}):
            for path in ("/admin/keys/revoke", "/admin/keys/rotate"):
                answer = await http.post(path, json=body)
                assert answer.status_code in (400, 404), (path, body, answer.text)
        assert play.rows(keys) == []


STRANGE = [
    "%00",
    "a%00b",
    "' OR 1=1 --",
    "%F0%9F%99%82",
    "x" * 3000,
    "..%2f..%2fetc",
    "%ff",
    "{{7*7}}",
    "a;b",
    "%0d%0a",
]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_strange_ids_and_queries_are_unknown_and_never_a_fault(
    tmp_path: Path, database_url: str, prefix: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        for strange in STRANGE:
            for path in ("/sessions/", "/decisions/", "/models/", "/admin/tenants/"):
                answer = await http.get(prefix + path + strange)
                assert answer.status_code in (400, 404), (path, strange, answer.text)
                assert "7*7" not in answer.text
            answer = await http.patch(f"{prefix}/admin/tenants/{strange}", json={"budget_usd": 1})
            assert answer.status_code in (400, 404), (strange, answer.text)
            answer = await http.post(f"{prefix}/admin/policies/{strange}/promote", json={})
            assert answer.status_code in (400, 404), (strange, answer.text)
            for query in ("session", "tenant", "hold"):
                answer = await http.get(f"{prefix}/admin/ledger?{query}={strange}")
                found = 404 if query == "tenant" else 200
                assert answer.status_code == (400 if "%00" in strange else found), (query, strange)
                assert answer.json().get("data") in ([], None)
            answer = await http.get(f"{prefix}/admin/keys?tenant={strange}")
            assert answer.status_code == (400 if "%00" in strange else 404), strange
            assert (await http.get(f"{prefix}/admin/ledger?limit={strange}")).status_code == 400


async def test_the_ledger_is_shown_oldest_first_and_by_session_tenant_and_hold(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            for name in ("a", "b", "a"):
                await turn(http, headers=session(name))
        rows = await play.gateway.entries(tenant=tenant_id)
        assert await play.gateway.entries(tenant="acme") == rows
        async with play.gateway.http() as admin:
            by_name, by_id = [(await admin.get(f"/admin/keys?tenant={t}")).json()["data"] for t in ("acme", tenant_id)]
        assert by_name == by_id != []
        assert [r["kind"] for r in rows] == [
            "grant", "grant", "reserve", "settle", "grant", "reserve", "settle", "reserve", "settle",
        ]  # fmt: skip
        names = {
            "hold_id", "attempt_id", "kind", "amount_nano_usd", "session_id", "tenant_id", "decision_id", "model",
            "usage_source", "created_at",
        }  # fmt: skip
        assert names <= set(rows[2])
        of_a = await play.gateway.entries(session="a")
        assert [r["kind"] for r in of_a] == ["grant", "reserve", "settle", "reserve", "settle"]
        held = await play.gateway.entries(hold=of_a[1]["hold_id"])
        assert [r["kind"] for r in held] == ["reserve", "settle"]
        assert [r["kind"] for r in await play.gateway.entries(session="a", limit=2)] == ["grant", "reserve"]
        assert await play.gateway.entries(session="c") == []


async def test_policies_are_staged_and_rolled_back_over_http(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        with transaction(play.url) as connection:
            for policy_id, kind in (("rule:cheapest", "rule"), ("rule:strongest", "rule"), ("gone", "network")):
                connection.execute(
                    insert(policies).values(
                        policy_id=policy_id, kind=kind, stage="candidate", created_at_ms=1, staged_at_ms=1
                    )
                )
        assert (await http.get("/admin/policies")).json()["serving"] == "pretrained-1"
        for policy_id in ("rule:cheapest", "rule:strongest"):
            assert (await http.post(f"/admin/policies/{policy_id}/promote")).json()["stage"] == "champion"
            assert (await http.get("/admin/policies")).json()["serving"] == policy_id
            assert (await turn(http, "auto")).headers["x-seqroute-policy"] == policy_id
        assert (await turn(http, "auto")).json()["model"] == "big"
        back = await http.post("/admin/policies/rollback")
        assert back.json()["champion"]["policy_id"] == "rule:cheapest"
        assert (await turn(http, "auto")).json()["model"] == "small"
        assert (await http.post("/admin/policies/rollback")).json() == {"champion": None}
        assert (await turn(http, "auto")).headers["x-seqroute-policy"] == "pretrained-1"
        assert (await http.post("/admin/policies/rollback")).status_code == 400
        for action in ("promote", "pin", "canary", "shadow"):
            refused = await http.post(f"/admin/policies/gone/{action}")
            assert refused.status_code == 400
            assert refused.json()["error"]["message"].startswith("policy gone: its checkpoint cannot be used: "), action
        assert (await http.get("/admin/policies/gone")).json()["stage"] == "candidate"
        assert (await turn(http, "auto")).headers["x-seqroute-policy"] == "pretrained-1"
        assert (await http.post("/admin/policies/nope/promote")).status_code == 404


async def test_no_route_reaches_a_provider_when_the_budget_is_used_up(tmp_path: Path, sqlite_url: str) -> None:
    """Every route there is, streamed and not: one that calls providers beside the budget would be found here."""
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("broke", budget_usd="0")
        refused = set()
        async with play.gateway.http(key) as http:
            for method, path in routes(play):
                for stream in (False, True):
                    for more in ({}, {"Idempotency-Key": f"{path}-{stream}"}):
                        body = {
                            "model": "auto", "messages": HELLO, "input": "hello", "prompt": "hello", "max_tokens": 5,
                            "stream": stream,
                        }  # fmt: skip
                        answer = await http.request(method, path, json=body, headers=session("s") | more)
                        assert answer.status_code < 500, (method, path, answer.text)
                        if answer.status_code == 402:
                            refused.add(path)
        assert play.provider.bill == []
        assert {"/v1/chat/completions", "/chat/completions"} <= refused


ALIASES = {"model_group_alias": {"gpt-4": "small", "quiet": {"model": "big", "hidden": True}}}


async def test_aliases_are_listed_and_stand_in_allow_lists_for_their_models(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, router=ALIASES) as play:
        tenant_id, key = await play.gateway.tenant("acme", models=["gpt-4"])
        async with play.gateway.http(key) as http:
            listed = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
            assert [name for name in listed if not name.startswith("auto")] == ["small", "gpt-4"]
            assert (await http.get("/v1/models/gpt-4")).json()["id"] == "gpt-4"
            assert (await turn(http, "gpt-4")).json()["model"] == "small"
            assert (await turn(http, "auto")).json()["model"] == "small"
            assert (await turn(http, "big")).status_code == 404
        async with play.gateway.http() as http:
            made = await http.post("/admin/keys", json={"tenant_id": tenant_id, "models": ["quiet"]})
            assert made.status_code == 200
        async with play.gateway.http(made.json()["key"]) as http:
            assert (await turn(http, "quiet")).status_code == 404  # the tenant's list holds too


async def test_allow_lists_name_groups_of_models_that_no_request_can_name(tmp_path: Path, sqlite_url: str) -> None:
    groups = {"small": {"access_groups": ["beta", "cheap"]}, "big": {"access_groups": ["beta"]}}
    async with playing(tmp_path, sqlite_url, modes={"third": "small"}, infos=groups) as play:
        tenant_id, key = await play.gateway.tenant("acme", models=["beta"])
        async with play.gateway.http() as http:
            body = {"tenant_id": tenant_id, "models": ["cheap", "third"]}
            narrower = (await http.post("/admin/keys", json=body)).json()["key"]
        for used, allowed in ((key, ["small", "big"]), (narrower, ["small"])):
            async with play.gateway.http(used) as http:
                listed = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
                assert [name for name in listed if not name.startswith("auto")] == allowed
                served = {name: (await turn(http, name)).status_code for name in ("small", "big", "third", "beta")}
                assert served == {name: 200 if name in allowed else 404 for name in served}
                assert (await turn(http, "auto")).json()["model"] in allowed


@pytest.mark.parametrize("verb", ["create tenant", "change tenant", "create key"])
async def test_an_allow_list_that_names_no_model_is_refused(tmp_path: Path, sqlite_url: str, verb: str) -> None:
    async with playing(tmp_path, sqlite_url, router=ALIASES) as play, play.gateway.http() as http:
        tenant_id, _ = await play.gateway.tenant("acme")
        models = {"models": ["small", "smal"]}
        answer = await {
            "create tenant": lambda: http.post("/admin/tenants", json={"name": "b", "budget_usd": 1} | models),
            "change tenant": lambda: http.patch(f"/admin/tenants/{tenant_id}", json=models),
            "create key": lambda: http.post("/admin/keys", json={"tenant_id": tenant_id} | models),
        }[verb]()
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "models"
        assert 'got "smal"; did you mean "small"?' in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["bad name!", "", "x" * 129, "tab\t", "a/b"])
async def test_a_tenant_s_name_can_be_typed_and_sent(tmp_path: Path, sqlite_url: str, name: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        answer = await http.post("/admin/tenants", json={"name": name, "budget_usd": 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
        assert (await http.post("/admin/tenants", json={"name": "Müller-2", "budget_usd": 1})).status_code == 200


@pytest.mark.parametrize("verb", ["POST", "PATCH"])
async def test_a_key_s_budget_is_given_raised_and_ended(tmp_path: Path, sqlite_url: str, verb: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        tenant_id, _ = await play.gateway.tenant("acme")
        async with play.gateway.http() as http:
            made = (await http.post("/admin/keys", json={"tenant_id": tenant_id, "budget_usd": "0.000001"})).json()
            path = f"/admin/keys/{made['id']}"
            async with play.gateway.http(made["key"]) as client:
                assert (await turn(client)).status_code == 402
                raised = (await http.request(verb, path, json={"budget_usd": "2", "budget_duration": "30d"})).json()
                assert (raised["budget_usd"], raised["remaining_usd"], raised["budget_duration"]) == ("2", "2", "30d")
                assert (await turn(client)).status_code == 200
            kept = (await http.request(verb, path, json={"budget_usd": "3"})).json()
            assert (kept["budget_duration"], kept["reset_at_ms"]) == ("30d", raised["reset_at_ms"])
            freed = (await http.request(verb, path, json={"budget_usd": None})).json()
            assert (freed["budget_usd"], freed["budget_duration"]) == (None, None)
            refused = await http.request(verb, path, json={"budget_duration": "1d"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "budget_duration")
            assert (await http.request(verb, "/admin/keys/none", json={"budget_usd": 1})).status_code == 404
            assert (await http.request(verb, path, json={})).status_code == 400
    assert [(row["account"], row["account_id"]) for row in play.rows(refusing_accounts)] == [("key", made["id"])]


async def test_a_tenant_lists_its_own_sessions(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("acme")
        _, other = await play.gateway.tenant("umbrella")
        async with play.gateway.http(key) as http:
            for name in ("first", "second"):
                await turn(http, headers=session(name))
            await http.post("/v1/sessions/first", json={"state": "closed"})
            listed = (await http.get("/v1/sessions")).json()["data"]
            assert {row["session_id"]: row["state"] for row in listed} == {"first": "closed", "second": "open"}
            assert [row["session_id"] for row in (await http.get("/v1/sessions?state=open")).json()["data"]] == [
                "second"
            ]
            assert (await http.get("/v1/sessions?state=asleep")).status_code == 400
        async with play.gateway.http(other) as http:
            assert (await http.get("/v1/sessions")).json()["data"] == []


async def test_the_ledger_pages_both_ways_and_its_newest_entries_are_reachable(stage: Stage) -> None:
    _, key = await stage.gateway.tenant("paged")
    client = stage.gateway.client(key)
    for _ in range(3):
        await client.chat.completions.create(model="small", messages=cast(Any, HELLO))
    async with stage.gateway.http() as http:
        whole = (await http.get("/admin/ledger")).json()
        assert whole["next_cursor"] is None
        ids = [entry["entry_id"] for entry in whole["data"]]
        assert ids == sorted(ids)
        for order, wanted in (("asc", ids), ("desc", ids[::-1])):
            found: list[int] = []
            query: dict[str, Any] = {"order": order, "limit": 3}
            while True:
                page = (await http.get("/admin/ledger", params=query)).json()
                found += [entry["entry_id"] for entry in page["data"]]
                if page["next_cursor"] is None:
                    break
                query["after"] = page["next_cursor"]
            assert found == wanted
        for wrong in ("order=up", "after=x", "after=-1", "after=" + "9" * 19):
            assert (await http.get(f"/admin/ledger?{wrong}")).status_code == 400


async def test_an_unknown_filter_is_refused_where_a_route_has_filters(stage: Stage) -> None:
    async with stage.gateway.http() as http:
        for path in ("/admin/ledger", "/v1/admin/keys", "/admin/tenants", "/v1/sessions"):
            refused = await http.get(path, params={"tenant_id": "acme"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant_id"), path
            assert (await http.get(f"{path}?beta=true&api-version=2024-10-21")).status_code == 200, path
        for path in ("/v1/models?client_version=1&limit=1000", "/admin/policies?x=1", "/livez?x=1"):
            assert (await http.get(path)).status_code == 200, path
        body = {"model": "small", "messages": HELLO, "max_tokens": 5}
        for path in ("/v1/messages?beta=true", "/v1/chat/completions?api-version=2024-10-21&x=1"):
            assert (await http.post(path, json=body)).status_code == 200, path
