"""`X-Wrap-Up: on`: every session that ends is answered once more, without tools, and then refused."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.turn.wrap_up import WRAP_UP_NOTE
from tests.harness.gateway import config, serving
from tests.harness.routes import ROUTES, ask, error_of
from tests.harness.scenario import playing, session, turn
from tests.harness.scripted import OK, Line, ScriptedProvider

ON = {"X-Wrap-Up": "on"}
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
TOOLS = {
    "/v1/chat/completions": [TOOL],
    "/v1/messages": [{"name": "read", "input_schema": {"type": "object", "properties": {}}}],
    "/v1/responses": [{"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}],
}
CALL = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
SESSIONS = 100


async def play_to_the_end(http: httpx.AsyncClient, number: int) -> tuple[list[str | None], int, int]:
    """An agent's session until its first refusal: the `x-seqroute-finish` of every answer, and what is left."""
    dice = random.Random(number)
    headers = session(f"agent-{number}", budget_usd=f"{dice.uniform(0.008, 0.03):.6f}") | ON
    messages: list[dict[str, Any]] = [{"role": "user", "content": "word " * dice.randint(1, 400)}]
    finishes: list[str | None] = []
    while True:
        answer = await turn(http, "auto", messages, headers=headers, tools=[TOOL], stream=False)
        if answer.status_code != 200:
            assert (answer.status_code, answer.json()["error"]["code"]) == (402, "session_budget_exceeded"), answer.text
            again = await turn(http, "auto", messages, headers=headers, tools=[TOOL])
            assert again.status_code == 402
            shown = (await http.get(f"/v1/sessions/agent-{number}")).json()
            return finishes, shown["remaining_nano_usd"], answer.json()["error"]["needed_nano_usd"]
        finishes.append(answer.headers.get("x-seqroute-finish"))
        messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        if number % 2:
            messages[-1]["tool_calls"] = [CALL]
            messages.append({"role": "tool", "tool_call_id": "c1", "content": "word " * dice.randint(1, 200)})
        else:
            messages.append({"role": "user", "content": "word " * dice.randint(1, 200)})


async def test_a_hundred_sessions_that_end_are_all_answered_with_a_wrap_up(tmp_path: Path, database_url: str) -> None:
    modes = {"small": "ok:tokens=800", "big": "ok:tokens=600"}
    async with playing(tmp_path, database_url, modes=modes) as play, play.gateway.http() as http:
        crowd = asyncio.Semaphore(8)

        async def one(number: int) -> tuple[list[str | None], int, int]:
            async with crowd:
                return await play_to_the_end(http, number)

        played = await asyncio.gather(*(one(number) for number in range(SESSIONS)))
        assert [finishes[-1:] for finishes, _, _ in played] == [["wrap-up"]] * SESSIONS
        # What remains pays for no further answer of a useful length.
        assert all(left_nanousd < needed_nanousd for _, left_nanousd, needed_nanousd in played)
        assert sum(finishes.count(None) for finishes, _, _ in played) > SESSIONS


async def test_a_small_session_spends_its_money_on_turns(tmp_path: Path, sqlite_url: str) -> None:
    """0.012 USD at 1 and 2 USD per million: the first turn keeps no more than a quarter, 0.003 USD.

    A prompt of 300 tokens and an answer of 100 cost 0.0005 USD, so that 24 turns are the most. The kept 0.003 USD and a
    hold of 0.0012 USD (a prompt of at most 700 tokens, 256 of answer) leave at least 14 ordinary turns:
    (0.012 - 0.0042) / 0.00055. Then closing turns, each of which may have 256 tokens, until 0.0012 USD are left.
    """
    async with playing(tmp_path, sqlite_url, modes={"small": "ok:tokens=100"}) as play, play.gateway.http() as http:
        for _ in range(30):  # so many answers tell how long they are
            assert (await turn(http)).status_code == 200
        headers = session("s", budget_usd="0.012") | ON
        asked = [{"role": "user", "content": "word " * 290}]
        finishes = []
        while (answer := await turn(http, messages=asked, headers=headers)).status_code == 200:
            finishes.append(answer.headers.get("x-seqroute-finish"))
        ordinary = finishes.count(None)
        assert finishes == [None] * ordinary + ["wrap-up"] * (len(finishes) - ordinary)
        assert (ordinary, len(finishes)) >= (14, 20)
        assert (await http.get("/v1/sessions/s")).json()["remaining_nano_usd"] < 1_200_000


async def test_every_child_of_a_spent_session_ends_with_a_last_answer(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, modes={"small": "ok:tokens=100"}) as play, play.gateway.http() as http:
        parent = session("parent", budget_usd="0.006") | ON
        assert (await turn(http, headers=parent)).status_code == 200
        finishes: dict[str, list[str | None]] = {name: [] for name in ("a", "b", "c")}
        going = list(finishes)
        while going:
            for name in tuple(going):
                headers = session(name) | ON | {"X-Parent-Session-Id": "parent"}
                answer = await turn(http, messages=[{"role": "user", "content": "word " * 200}], headers=headers)
                if answer.status_code == 200:
                    finishes[name].append(answer.headers.get("x-seqroute-finish"))
                else:
                    assert "served in wrap-up" in answer.json()["error"]["message"]
                    going.remove(name)
        for seen in finishes.values():
            ordinary = seen.count(None)
            assert seen == [None] * ordinary + ["wrap-up"] * (len(seen) - ordinary) != [None] * ordinary
        own = await turn(http, headers=parent)  # of what it kept for itself
        assert (own.status_code, own.headers["x-seqroute-finish"]) == (200, "wrap-up")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_closing_turn_has_no_tools_and_one_note_in_every_dialect(
    tmp_path: Path, sqlite_url: str, stream: bool
) -> None:
    async with ScriptedProvider([Line(chunks=2) if stream else Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            for number, route in enumerate(ROUTES):
                offered = {"tools": TOOLS[route]} if route in TOOLS else {}
                headers = session(f"s{number}", budget_usd="0.0008") | ON
                last = await ask(http, route, headers, stream=stream, **offered)
                assert last.headers["x-seqroute-finish"] == "wrap-up"
                if stream and route == "/v1/chat/completions":
                    told = next(line for line in last.text.splitlines() if line.startswith(": seqroute "))
                    assert json.loads(told.removeprefix(": seqroute "))["finish"] == "wrap-up"
                body = provider.bodies[-1]
                assert "tools" not in body
                assert body["messages"][0] == {"role": "system", "content": WRAP_UP_NOTE}
                while (refused := await ask(http, route, headers, **offered)).status_code == 200:
                    assert refused.headers["x-seqroute-finish"] == "wrap-up"  # what the first did not use
                assert refused.status_code == (400 if route == "/v1/responses" else 402)
                assert "wrap-up" in error_of(refused)["message"]
            await gateway.audit()


async def test_a_raised_budget_continues_a_session_that_was_wrapped_up(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        poor = session("s", budget_usd="0.0008")
        last = await turn(http, headers=poor | ON)
        assert last.headers["x-seqroute-finish"] == "wrap-up"
        # A client that forgets the header goes on as it began.
        while (refused := await turn(http, headers=poor)).status_code == 200:
            assert refused.headers["x-seqroute-finish"] == "wrap-up"
        assert refused.status_code == 402
        more = await turn(http, headers=session("s", budget_usd="0.5") | ON)
        assert more.status_code == 200
        assert "x-seqroute-finish" not in more.headers


async def test_the_operator_turns_it_on_and_a_client_off(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, session={"wrap_up": True}) as play, play.gateway.http() as http:
        on = await turn(http, headers=session("a", budget_usd="0.0008"))
        off = await turn(http, headers=session("b", budget_usd="0.0008") | {"X-Wrap-Up": "off"})
        assert on.headers["x-seqroute-finish"] == "wrap-up"
        assert off.status_code == 200
        assert "x-seqroute-finish" not in off.headers
        wrong = await turn(http, headers={"X-Wrap-Up": "yes"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "X-Wrap-Up")


async def test_a_closing_turn_that_fails_leaves_the_last_answer_to_the_next(tmp_path: Path, sqlite_url: str) -> None:
    async with ScriptedProvider([Line(400, {"error": {"message": "no"}}), Line(200, OK)]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            headers = session("s", budget_usd="0.0008") | ON
            assert (await turn(http, headers=headers)).status_code == 400
            last = await turn(http, headers=headers)
            assert (last.status_code, last.headers["x-seqroute-finish"]) == (200, "wrap-up")
            while (refused := await turn(http, headers=headers)).status_code == 200:
                assert refused.headers["x-seqroute-finish"] == "wrap-up"
            assert refused.status_code == 402


async def test_the_tool_definitions_of_an_open_loop_stay_and_none_may_be_called(
    tmp_path: Path, sqlite_url: str
) -> None:
    loop: list[dict[str, Any]] = [
        {"role": "user", "content": "read it"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "text"},
    ]
    async with ScriptedProvider([Line()]) as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        async with serving(path) as gateway, gateway.http() as http:
            last = await turn(http, "small", loop, headers=session("s", budget_usd="0.004") | ON, tools=[TOOL])
            assert last.headers["x-seqroute-finish"] == "wrap-up"
            assert (provider.bodies[-1]["tool_choice"], len(provider.bodies[-1]["tools"])) == ("none", 1)
