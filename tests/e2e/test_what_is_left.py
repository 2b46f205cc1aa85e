"""What is left of a session is told in every dialect's usage, to a tool, and in the words that clients know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.gateway import config, serving
from tests.harness.routes import ROUTES, ask
from tests.harness.scenario import playing, session, turn
from tests.harness.scripted import Line, ScriptedProvider

VISIBLE = {"X-Budget-Visible": "usage"}


def usage_in(route: str, text: str) -> dict[str, Any]:
    """The last usage object of an answer, whole or streamed."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    found = None
    for body in map(json.loads, lines or [text]):
        found = body.get("usage") or body.get("response", {}).get("usage") or found
    assert isinstance(found, dict), text
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_the_usage_of_every_dialect_tells_the_bill_and_what_is_left(
    tmp_path: Path, sqlite_url: str, stream: bool
) -> None:
    async with ScriptedProvider([Line(chunks=2) if stream else Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            for number, route in enumerate(ROUTES):
                wants = {"stream_options": {"include_usage": True}} if stream and "completions" in route else {}
                answer = await ask(
                    http, route, session(f"s{number}", budget_usd="0.5") | VISIBLE, stream=stream, **wants
                )
                told = usage_in(route, answer.text)["seqroute"]
                shown = (await http.get(f"/v1/sessions/s{number}")).json()
                assert told["cost_nano_usd"] == shown["spent_nano_usd"] > 0, route
                assert told["session_remaining_nano_usd"] == shown["remaining_nano_usd"]
                assert told.keys() == {
                    f"{name}_nano_usd"
                    for name in ("cost", "reserved", "session_spent", "session_remaining", "tenant_remaining")
                }
                assert {type(amount) for amount in told.values()} == {int}, told


async def test_a_tool_call_is_answered_with_what_is_left(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        _, key = await play.gateway.tenant("acme")
        _, other = await play.gateway.tenant("other")
        async with play.gateway.http(key) as http, play.gateway.http(other) as stranger:
            tool = (await http.get("/v1/tools/check_budget")).json()
            assert tool["chat"]["function"]["name"] == tool["messages"]["name"] == tool["responses"]["name"]
            # A provider's answer may call it: the definition is a valid tool of each dialect.
            offered = await turn(http, headers=session("s", budget_usd="0.5", expected="5"), tools=[tool["chat"]])
            assert offered.status_code == 200
            told = (await http.post("/v1/tools/check_budget", json={}, headers={"X-Session-Id": "s"})).json()
            shown = (await http.get("/v1/sessions/s")).json()
            assert told["remaining_nano_usd"] == shown["remaining_nano_usd"]
            assert (told["turns"], told["turns_left"], told["turns_left_known"]) == (1, 4, True)
            assert (told["stop_reason"], told["spend_control"]) == (None, {"reached": False})
            assert told["text"].startswith(f"Budget of this session: {told['remaining_usd']} USD of 0.5 USD are left")
            by_body = await http.post("/v1/tools/check_budget", json={"session_id": "s"})
            assert by_body.json() == told
            assert (await stranger.post("/v1/tools/check_budget", json={"session_id": "s"})).status_code == 404
            for body in ({}, {"session_id": 5}, {"session_id": "a b"}, {"session_id": "s", "x": 1}):
                assert (await http.post("/v1/tools/check_budget", json=body)).status_code == 400, body


async def test_a_tenant_s_sessions_end_with_a_last_answer_and_in_words_that_clients_know(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as admin:
        tenant, key = await play.gateway.tenant("acme", wrap_up=True)
        assert (await admin.get(f"/admin/tenants/{tenant}")).json()["wrap_up"] is True
        poor = session("s", budget_usd="0.0008")
        async with play.gateway.http(key) as http:
            last = await turn(http, headers=poor)
            assert (last.status_code, last.headers.get("x-seqroute-finish")) == (200, "wrap-up")
            while (refused := await turn(http, headers=poor)).status_code == 200:
                assert refused.headers["x-seqroute-finish"] == "wrap-up"
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (402, "session_budget_exceeded")
            assert (error["stop_reason"], error["spend_control"]) == ("budget_reached", {"reached": True})
            ended = (await http.get("/v1/sessions/s")).json()
            assert (ended["stop_reason"], ended["spend_control"]["reached"]) == ("budget_reached", True)
            raised = (await http.post("/v1/sessions/s", json={"budget_usd": "0.5"})).json()
            assert (raised["stop_reason"], raised["spend_control"]["reached"]) == (None, False)
            assert (await turn(http, headers=session("s"))).status_code == 200
            kept = (await http.get("/v1/sessions/s")).json()
            assert 0 < kept["kept_nano_usd"] < kept["remaining_nano_usd"]
            # The client decides before its tenant.
            off = await turn(http, headers=session("t", budget_usd="0.002") | {"X-Wrap-Up": "off"})
            assert "x-seqroute-finish" not in off.headers
        changed = await admin.patch(f"/admin/tenants/{tenant}", json={"wrap_up": None})
        assert changed.json()["wrap_up"] is None
        wrong = await admin.patch(f"/admin/tenants/{tenant}", json={"wrap_up": "on"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "wrap_up")


async def test_a_title_call_leaves_what_the_conversation_of_its_session_keeps(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        headers = session("s", budget_usd="0.5") | {"X-Wrap-Up": "on"}
        long = [{"role": "user", "content": "word " * 2_000}]
        assert (await turn(http, messages=long, headers=headers)).status_code == 200
        kept = (await http.get("/v1/sessions/s")).json()["kept_nano_usd"]
        assert (await turn(http, headers=headers)).status_code == 200
        assert (await http.get("/v1/sessions/s")).json()["kept_nano_usd"] >= kept > 0


async def test_a_charge_leaves_what_the_last_answer_needs(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, audited=False) as play, play.gateway.http() as http:
        headers = session("s", budget_usd="0.05") | {"X-Wrap-Up": "on"}
        assert (await turn(http, headers=headers)).status_code == 200
        shown = (await http.get("/v1/sessions/s")).json()
        all_of_it = {"charge_id": "c", "amount_usd": shown["remaining_usd"]}
        refused = await http.post("/v1/sessions/s/charges", json=all_of_it)
        assert refused.status_code == 402
        free = shown["remaining_nano_usd"] - shown["kept_nano_usd"]
        assert refused.json()["error"]["remaining_nano_usd"] == free
        taken = await http.post("/v1/sessions/s/charges", json={"charge_id": "d", "amount_usd": f"{free / 1e9:.9f}"})
        assert taken.status_code == 200
        last = await turn(http, headers=headers)
        assert (last.status_code, last.headers["x-seqroute-finish"]) == (200, "wrap-up")
