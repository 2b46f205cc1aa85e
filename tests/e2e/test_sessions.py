"""A session's life: opened by its first turn or ahead of it, raised, lowered, closed; recognised by any client's id."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from gateway.accounts.sessions import normalize_id
from gateway.database.database import transaction
from gateway.database.tables import decisions, refused_turns, sessions
from gateway.decisions.report import report
from gateway.routing.session import ALIAS_HEADERS
from tests.harness.scenario import HELLO, playing, seqroute, session, turn

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


async def test_a_session_is_opened_raised_lowered_closed_and_opened_again(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        _, key = await play.gateway.tenant("acme", max_session_usd="2")
        async with play.gateway.http(key) as http:
            assert (await http.get("/v1/sessions/s")).status_code == 404
            opened = (await http.post("/v1/sessions/s", json={"budget_usd": "0.5", "expected_turns": 4})).json()
            assert (opened["state"], opened["turns"], opened["expected_turns"]) == ("open", 0, 4)
            assert (opened["budget_nano_usd"], opened["remaining_usd"], opened["spent_usd"]) == (
                500_000_000,
                "0.5",
                "0",
            )
            spent = float(seqroute(await turn(http, headers=session("s")), "cost-usd"))
            shown = (await http.get("/v1/sessions/s")).json()
            assert (shown["turns"], shown["expected_turns"], float(shown["spent_usd"])) == (1, 4, spent)
            assert shown["reserved_nano_usd"] == 0
            assert shown["spent_nano_usd"] + shown["remaining_nano_usd"] == 500_000_000

            lowered = (await http.post("/v1/sessions/s", json={"budget_usd": 0})).json()
            assert lowered["remaining_usd"] == "0"
            assert lowered["budget_nano_usd"] == shown["spent_nano_usd"]
            broke = await turn(http, headers=session("s"))
            assert (broke.status_code, broke.json()["error"]["code"]) == (402, "session_budget_exceeded")
            assert broke.json()["error"]["message"].endswith("X-Session-Budget-USD or POST /v1/sessions/s")
            assert broke.headers["x-should-retry"] == "false"
            raised = (await http.post("/v1/sessions/s", json={"budget_usd": "0.75"})).json()
            assert raised["budget_usd"] == "0.75"
            assert (await turn(http, headers=session("s"))).status_code == 200
            by_header = await turn(http, headers=session("s", budget_usd="0.9"))
            assert by_header.status_code == 200
            assert (await http.get("/v1/sessions/s")).json()["budget_usd"] == "0.9"

            closed = (await http.post("/v1/sessions/s", json={"state": "closed"})).json()
            assert closed["state"] == "closed"
            refused = await turn(http, headers=session("s"))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Session-Id")
            assert (await http.get("/v1/sessions/s")).json()["turns"] == 3

            for fields, param in (
                ({"budget_usd": "2.01"}, "budget_usd"),
                ({"budget_usd": -1}, "budget_usd"),
                ({"budget_usd": "NaN"}, "budget_usd"),
                ({"budget_usd": True}, "budget_usd"),
                ({"expected_turns": 0}, "expected_turns"),
                ({"expected_turns": 1.5}, "expected_turns"),
                ({"state": "deleted"}, "state"),
                ({"spent_nano_usd": 0}, "spent_nano_usd"),
                ({"tenant_id": "default"}, "tenant_id"),
            ):
                answer = await http.post("/v1/sessions/s", json=fields)
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), fields
            for strange in ("a b", "x" * 129, "%2e%2e%2f", "ü", "{{7*7}}"):
                answer = await http.post(f"/v1/sessions/{strange}", json={"budget_usd": 1})
                assert answer.status_code in (400, 404), strange
            assert {row["session_id"] for row in play.rows(sessions)} == {"s"}


async def test_a_budget_by_header_is_bounded_by_what_the_tenant_allows(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, session={"default_budget_usd": 1, "max_budget_usd": 3}) as play:
        _, bounded = await play.gateway.tenant("acme", max_session_usd="0.5")
        _, plain = await play.gateway.tenant("plain")
        before = await play.gateway.entries()
        for key, most in ((bounded, "0.5"), (plain, "3")):
            async with play.gateway.http(key) as http:
                refused = await turn(http, headers=session("s", budget_usd=most + "1"))
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Session-Budget-USD")
                assert most in refused.json()["error"]["message"]
        assert await play.gateway.entries() == before
        for key, budget in ((bounded, "0.5"), (plain, "1")):
            async with play.gateway.http(key) as http:
                await turn(http, headers=session("s"))
                assert (await http.get("/v1/sessions/s")).json()["budget_usd"] == budget


async def test_the_last_turn_closes_its_session_and_the_count_of_turns_is_bounded(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url, session={"max_turns": 2}) as play, play.gateway.http() as http:
        await turn(http, headers=session("s", expected="2"))
        assert play.rows(decisions)[0]["expected_turns"] == 2
        last = await turn(http, headers=session("s", end="true"), stream=True)
        assert last.status_code == 200
        await play.gateway.settled()
        shown = (await http.get("/v1/sessions/s")).json()
        assert (shown["state"], shown["turns"]) == ("closed", 2)
        assert (await turn(http, headers=session("s"))).status_code == 400
        for _ in range(2):
            assert (await turn(http, headers=session("long"))).status_code == 200
        third = await turn(http, headers=session("long"))
        assert third.status_code == 400
        assert "maximum number of turns" in third.json()["error"]["message"]


async def test_every_client_s_way_to_name_a_session_is_understood(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, session={"id_headers": ["X-Flow-Id"]}) as play:
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            for name in (*ALIAS_HEADERS, "X-Flow-Id", "Helicone-Session-Id", "X-Amp-Thread-Id"):
                answer = await turn(http, headers={name: f"id-of-{name.lower()}"})
                assert seqroute(answer, "session-id") == f"id-of-{name.lower()}", name
            strange = await turn(http, headers={"session_id": "user 1/2"})
            assert seqroute(strange, "session-id") == normalize_id("user 1/2")
            bodies: list[dict[str, Any]] = [
                {"session_id": "b1"},
                {"litellm_session_id": "b2"},
                {"metadata": {"session_id": "b3"}},
                {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "b4"})}},
                {"tensorzero::episode_id": "b5"},
                {"conversation": "b6"},
                {"conversation": {"id": "b7"}},
                {"metadata": {"conversation_id": "b8"}},
                {"metadata": {"thread_id": "b9"}},
                {"metadata": {"chat_id": "b10"}},
                {"metadata": {"langfuse_session_id": "b11"}},
                {"conversation_id": "b12"},
                {"thread_id": "b13"},
                {"chat_id": "b14"},
            ]
            for number, body in enumerate(bodies, start=1):
                assert seqroute(await turn(http, **body), "session-id") == f"b{number}", body
            both = await turn(http, headers={"session_id": "from-header"}, session_id="from-body")
            assert seqroute(both, "session-id") == "from-header"
            ours = await turn(http, headers=session("ours") | {"session_id": "from-header"})
            assert seqroute(ours, "session-id") == "ours"

            for body in ({"metadata": {"user_id": "u"}}, {"previous_response_id": "r"}, {"prompt_cache_key": "k"}):
                first, second = await turn(http, **body), await turn(http, **body)
                assert seqroute(first, "session-id") != seqroute(second, "session-id"), body
        assert [a.status_code for a in (strange, both, ours)] == [200] * 3


def said(*texts: str) -> list[dict[str, Any]]:
    """A conversation, user and assistant by turns."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


async def test_a_conversation_without_an_id_goes_on_in_the_session_of_its_longest_beginning(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:

        async def asked(messages: list[dict[str, Any]], **more: Any) -> str:
            answer = await turn(http, messages=messages, **more)
            assert answer.status_code == 200
            return seqroute(answer, "session-id")

        first = await asked(said("a task"))
        assert await asked(said("a task", "one", "go on")) == first
        # A hand-off: another system prompt and other tools before the same words.
        handed = [{"role": "system", "content": "another agent"}, *said("a task", "one", "go on", "two", "and?")]
        assert await asked(handed, tools=TOOLS) == first
        assert await asked(said("a task", "one", "go on", "two", "and?", "three", "end"), stream=True) == first
        # Sent again, edited: the same conversation.
        await play.gateway.settled()
        assert await asked(said("a task", "one", "go on", "two", "and?", "three", "end")) == first
        assert await asked(said("a task", "one", "something else")) == first
        # A second run of the same tool.
        second = await asked(said("a task"))
        assert second != first
        assert await asked(said("a task", "other words", "go on")) == second
        third = await asked(said("a task"))
        assert len({first, second, third}) == 3
        # Who is told apart by the answer alone, and has no session of its own yet.
        fourth = await asked(said("a task", "words of a stranger", "go on"))
        assert fourth == third
        assert await asked(said("a task", "words of nobody", "go on")) not in {first, second, third}
        labels = {"user": "u-1", "safety_identifier": "u-2", "headers": {"x-litellm-customer-id": "u-3"}}
        assert await asked(said("a task", "one", "go on", "two", "more"), **labels) == first


async def test_different_pictures_are_different_conversations(tmp_path: Path, sqlite_url: str) -> None:
    def captioned(picture: str) -> list[dict[str, Any]]:
        url = {"url": f"data:image/png;base64,{picture}"}
        parts = [{"type": "text", "text": "describe it"}, {"type": "image_url", "image_url": url}]
        return [{"role": "user", "content": parts}]

    info = {"supports_vision": True}
    async with playing(tmp_path, sqlite_url, model_info=info) as play, play.gateway.http() as http:
        more = said("", "a cat", "what colour?")[1:]
        cat = seqroute(await turn(http, messages=captioned("AAAA")), "session-id")
        dog = seqroute(await turn(http, messages=captioned("BBBB")), "session-id")
        assert cat != dog
        assert seqroute(await turn(http, messages=[*captioned("AAAA"), *more]), "session-id") == cat
        assert seqroute(await turn(http, messages=[*captioned("BBBB"), *more]), "session-id") == dog


async def test_a_first_turn_that_got_no_answer_is_tried_again_in_its_session(tmp_path: Path, sqlite_url: str) -> None:
    modes = {"failing": "status500"}
    async with playing(tmp_path, sqlite_url, modes=modes, audited=False) as play, play.gateway.http() as http:
        # Whatever became of the first, an SDK that tries again says so.
        first = seqroute(await turn(http), "session-id")
        again = await turn(http, headers={"x-stainless-retry-count": "1"})
        assert seqroute(again, "session-id") == first
        assert seqroute(await turn(http, headers={"x-stainless-retry-count": "0"}), "session-id") != first


@pytest.mark.parametrize("named", [True, False])
async def test_a_first_turn_that_is_refused_keeps_the_budget_that_it_asked_for(
    tmp_path: Path, database_url: str, named: bool
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        headers = session("s") if named else {}
        refused = await turn(http, headers=headers | {"X-Session-Budget-USD": "0.0000001"})
        assert refused.status_code == 402
        [row] = play.rows(sessions)
        assert (row["granted_nanousd"], row["turns"]) == (100, 0)
        assert (await turn(http, headers=headers)).status_code == 402
        raised = await turn(http, headers=headers | {"X-Session-Budget-USD": "0.5"})
        assert (raised.status_code, seqroute(raised, "session-id")) == (200, row["session_id"])
        [row] = play.rows(sessions)
        assert (row["granted_nanousd"], row["turns"]) == (500_000_000, 1)
    with transaction(database_url, read_only=True) as connection:
        found = report(connection)
    assert (found["bankrupt_sessions"], found["refused_turns"], found["sessions_with_turns"]) == (1, 2, 1)


async def test_a_conversation_that_is_refused_at_first_goes_on_when_the_session_that_the_error_names_gets_money(
    tmp_path: Path, database_url: str
) -> None:
    """An agent without session ids, whose first turn costs more than the default budget."""
    settings = {"default_budget_usd": "0.0000001"}
    async with playing(tmp_path, database_url, session=settings) as play, play.gateway.http() as http:
        refused = [await turn(http) for _ in range(3)]
        assert [each.status_code for each in refused] == [402] * 3
        [named] = {each.json()["error"]["session_id"] for each in refused}
        [row] = play.rows(sessions)
        assert (row["session_id"], row["granted_nanousd"], row["turns"]) == (named, 100, 0)
        assert (await http.post(f"/v1/sessions/{named}", json={"budget_usd": "1"})).status_code == 200
        answer = await turn(http)
        assert (answer.status_code, seqroute(answer, "session-id")) == (200, named)


async def test_refusals_of_a_client_that_names_no_session_are_one_row(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        tenant_id, key = await play.gateway.tenant("poor", budget_usd="0.0000001")
        async with play.gateway.http(key) as http:
            for _ in range(3):
                assert (await turn(http)).status_code == 402
    [row] = play.rows(refused_turns)
    assert (row["tenant_id"], row["session_id"], row["turns"]) == (tenant_id, "", 3)


async def test_first_turns_at_once_open_one_session_and_are_numbered_once_each(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        answers = await asyncio.gather(*(turn(http, headers=session("s", budget_usd="0.7")) for _ in range(12)))
        assert [a.status_code for a in answers] == [200] * 12
        [row] = play.rows(sessions)
        assert (row["turns"], row["granted_nanousd"]) == (12, 700_000_000)
        logged = play.rows(decisions)
        assert sorted(row["turn"] for row in logged) == list(range(12))
        grants = [e for e in await play.gateway.entries(session="s") if e["kind"] == "grant"]
        assert sum(e["amount_nano_usd"] for e in grants) == 700_000_000
        by_turn = {row["turn"]: row for row in logged}
        assert by_turn[0]["previous_decision_id"] is None
        assert all(by_turn[t]["previous_decision_id"] == by_turn[t - 1]["decision_id"] for t in range(1, 12))


async def test_a_dry_run_tells_the_decision_and_leaves_nothing_behind(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        before = await play.gateway.entries()
        body = {"model": "auto@best", "messages": HELLO, "max_tokens": 50, "stream": True}
        told = (await http.post("/v1/route", json=body, headers=session("s", budget_usd="0.3"))).json()
        assert (told["model"], told["reason"], told["turn"], told["lambda"]) == ("big", "policy", 0, 0.0)
        assert told["max_tokens"] == 50
        assert [c["model"] for c in told["candidates"]] == ["small", "big"]
        assert {"feasible", "why_not", "probability", "quality", "cost_nano_usd"} <= set(told["candidates"][0])
        assert await play.gateway.entries() == before
        assert play.rows(sessions) == play.rows(decisions) == []
        assert play.provider.received == []
        real = await turn(http, "auto@best", max_tokens=50, headers=session("s", budget_usd="0.3"))
        assert seqroute(real, "reserved-usd") == told["reserve_usd"]
        broke = await http.post("/v1/route", json=body, headers=session("t", budget_usd="0"))
        assert broke.status_code == 402


async def test_cached_tokens_are_billed_at_their_price_and_make_the_next_turn_warm(
    tmp_path: Path, database_url: str
) -> None:
    info = {"cache_read_input_token_cost": "0.0000001"}
    modes = {"caching": "ok:prompt=1000,cached=800,tokens=10"}
    async with (
        playing(tmp_path, database_url, modes=modes, model_info=info, audited=False) as play,
        play.gateway.http() as http,
    ):
        first = await turn(http, "caching", headers=session("s"))
        assert first.status_code == 200
        [settle] = [e for e in await play.gateway.entries() if e["kind"] == "settle"]
        assert settle["amount_nano_usd"] == 200 * 1_000 + 800 * 100 + 10 * 2_000
        [logged] = play.rows(decisions)
        assert (logged["input_tokens"], logged["cached_tokens"], logged["output_tokens"]) == (1000, 800, 10)
        longer = [*HELLO, {"role": "assistant", "content": "w0"}, {"role": "user", "content": "more " * 2000}]
        cold: list[dict[str, Any]] = [{"role": "user", "content": "unlike"}, *longer[1:]]

        async def predicted(messages: list[dict[str, Any]]) -> dict[str, int]:
            body = {"model": "auto", "messages": messages}
            told = (await http.post("/v1/route", json=body, headers=session("s"))).json()
            return {c["model"]: c["cost_nano_usd"] for c in told["candidates"]}

        warm_cost, cold_cost = await predicted(longer), await predicted(cold)
        # The thousand tokens read before cost 900 nano-USD less each on the model that holds them, and on no other.
        assert cold_cost["caching"] - warm_cost["caching"] == pytest.approx(1000 * 900, rel=0.02)
        assert cold_cost["small"] - warm_cost["small"] == pytest.approx(0, abs=10_000)


async def test_an_open_tool_loop_keeps_its_model_and_says_so(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"tools": "tools"}) as play, play.gateway.http() as http:
        first = await turn(http, "tools", headers=session("s"), tools=TOOLS)
        message = first.json()["choices"][0]["message"]
        assert message["tool_calls"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
        loop = [*HELLO, message, result]
        for preset in ("auto", "auto@best", "auto@cheap"):
            second = await turn(http, preset, loop, headers=session("s"), tools=TOOLS)
            assert (second.json()["model"], seqroute(second, "reason")) == ("tools", "tool-loop")
        pinned = await turn(http, "big", loop, headers=session("s"), tools=TOOLS)
        assert (pinned.json()["model"], seqroute(pinned, "reason")) == ("big", "pinned")
        fresh = await turn(http, "auto@best", loop, headers=session("elsewhere"), tools=TOOLS)
        assert (fresh.json()["model"], seqroute(fresh, "reason")) == ("big", "policy")
        row = play.rows(decisions, reason="tool-loop")[0]
        assert (row["propensity"], row["model"]) == (1.0, "tools")


@pytest.mark.parametrize(
    ("over_budget", "signed", "status"), [("degrade", False, 200), ("degrade", True, 402), ("refuse", False, 402)]
)
async def test_a_tool_loop_whose_model_is_too_expensive_now_goes_on_with_one_that_fits(
    tmp_path: Path, database_url: str, over_budget: str, signed: bool, status: int
) -> None:
    info = {"tools": {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}}
    async with (
        playing(
            tmp_path, database_url, modes={"tools": "tools"}, infos=info, session={"over_budget": over_budget},
            audited=False,
        ) as play,
        play.gateway.http() as http,
    ):  # fmt: skip
        first = await turn(http, "tools", headers=session("s", budget_usd="50"), tools=TOOLS, max_tokens=50)
        message = first.json()["choices"][0]["message"]
        if signed:
            message |= {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}]}
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
        spent = float(seqroute(first, "cost-usd"))
        lowered = session("s", budget_usd=f"{spent + 0.005:.6f}")
        second = await turn(http, "auto", [*HELLO, message, result], headers=lowered, tools=TOOLS, max_tokens=50)
        assert second.status_code == status, second.text
        if status == 200:
            assert second.json()["model"] in ("small", "big")
            assert seqroute(second, "reason") == "only-affordable"
            assert play.rows(decisions, reason="only-affordable")[0]["status"] == "completed"
        else:
            assert second.json()["error"]["code"] == "session_budget_exceeded"


async def test_state_that_only_its_provider_understands_keeps_the_model_too(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, "small", headers=session("s"))
        signed = {"role": "assistant", "content": "hm", "thinking_blocks": [{"type": "thinking", "signature": "x"}]}
        again = [*HELLO, signed, {"role": "user", "content": "go on"}]
        answer = await turn(http, "auto@best", again, headers=session("s"))
        assert (answer.json()["model"], seqroute(answer, "reason")) == ("small", "tool-loop")


async def test_a_tool_loop_stays_with_the_model_that_opened_it_while_another_agent_shares_the_session(
    tmp_path: Path, sqlite_url: str
) -> None:
    """Coding agents run helpers under the session id of their main agent."""
    async with playing(tmp_path, sqlite_url, modes={"tools": "tools"}) as play, play.gateway.http() as http:
        for stream in (False, True):
            names = session(f"s-{stream}")
            opened = await turn(http, "tools", headers=names, tools=TOOLS, stream=stream)
            assert opened.status_code == 200
            await play.gateway.settled()
            await turn(http, "big", [{"role": "user", "content": "a helper's question"}], headers=names)
            call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
            loop = [
                *HELLO,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ]
            answer = await turn(http, "auto@best", loop, headers=names, tools=TOOLS)
            assert (answer.json()["model"], seqroute(answer, "reason")) == ("tools", "tool-loop"), stream


async def test_a_conversation_without_an_id_begins_anew_after_the_idle_timeout_or_a_close(
    tmp_path: Path, database_url: str
) -> None:
    """Who names a session continues it, however long it was quiet."""

    def grow_older(by_ms: int) -> None:
        with transaction(play.url) as connection:
            connection.execute(update(sessions).values(updated_at_ms=sessions.c.updated_at_ms - by_ms))

    async with playing(tmp_path, database_url, session={"idle_timeout": "30m"}) as play, play.gateway.http() as http:

        async def asked(*texts: str, **more: Any) -> str:
            return seqroute(await turn(http, messages=said(*texts), **more), "session-id")

        first = await asked("x")
        grow_older(1_700_000)
        assert await asked("x", "y", "z") == first
        grow_older(1_800_001)
        fresh = await asked("x", "y", "z", "a", "b")
        assert fresh != first
        longer = said("x", "y", "z", "a", "b", "c", "d")
        assert (await http.post("/v1/route", json={"model": "small", "messages": longer})).json()["turn"] == 1
        assert (await http.post(f"/v1/sessions/{fresh}", json={"state": "closed"})).status_code == 200
        assert await asked("x", "y", "z", "a", "b", "c", "d") not in {first, fresh}
        assert await asked("x", headers=session(first)) == first
        turns = {row["session_id"]: row["turns"] for row in play.rows(sessions)}
        assert (turns[first], turns[fresh]) == (3, 1)
