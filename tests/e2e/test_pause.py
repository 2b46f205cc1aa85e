"""A paused session takes no turns and no charges until it is resumed, and loses nothing."""

from __future__ import annotations

from pathlib import Path

from tests.harness.routes import ROUTES, ask, error_of
from tests.harness.scenario import playing, session, turn


async def test_a_paused_session_is_refused_in_every_dialect_until_it_is_resumed(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        assert (await turn(http, headers=session("s", budget_usd="0.1"))).status_code == 200
        paused = await http.post("/v1/sessions/s", json={"state": "paused"})
        assert (paused.status_code, paused.json()["state"]) == (200, "paused")
        billed = len(play.provider.bill)
        for route in ROUTES:
            refused = await ask(http, route, session("s"))
            assert refused.status_code == (400 if route == "/v1/responses" else 409)
            assert 'POST /v1/sessions/s {"state": "open"}' in error_of(refused)["message"]
            if route != "/v1/messages":
                assert error_of(refused)["code"] == "session_paused"
            assert refused.headers["x-should-retry"] == "false"
        charge = await http.post("/v1/sessions/s/charges", json={"amount_usd": "0.01"})
        assert (charge.status_code, charge.json()["error"]["code"]) == (409, "session_paused")
        assert len(play.provider.bill) == billed
        assert [row["session_id"] for row in (await http.get("/v1/sessions?state=paused")).json()["data"]] == ["s"]
        resumed = await http.post("/v1/sessions/s", json={"state": "open", "budget_usd": "0.2"})
        assert (resumed.json()["state"], resumed.json()["budget_usd"]) == ("open", "0.2")
        assert (await turn(http, headers=session("s"))).status_code == 200


async def test_a_session_is_opened_paused_or_closed(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        for state, code in (("paused", "session_paused"), ("closed", "invalid_request")):
            assert (await http.post(f"/v1/sessions/{state}", json={"state": state})).status_code == 200
            refused = await turn(http, headers=session(state))
            assert refused.json()["error"]["code"] == code
        wrong = await http.post("/v1/sessions/s", json={"state": "asleep"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "state")


async def test_a_paused_conversation_without_an_id_does_not_continue_in_another_session(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url, session={"idle_timeout": "1s"}) as play, play.gateway.http() as http:
        messages = [{"role": "user", "content": "a tale of one conversation"}]
        first = await turn(http, messages=messages)
        name = first.headers["x-seqroute-session-id"]
        await http.post(f"/v1/sessions/{name}", json={"state": "paused"})
        answer = first.json()["choices"][0]["message"]["content"]
        more = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "and then?"}]
        refused = await turn(http, messages=more)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_paused")
