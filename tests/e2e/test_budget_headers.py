"""A budget that was set by hand holds while agents send their budget headers with every turn, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.money import until
from tests.harness.scenario import playing, seqroute, session, turn

ROUTER: dict[str, Any] = {"fallbacks": [{"bad": ["big"]}], "num_retries": 2, "allowed_fails": 100}
BUDGET, SHARE = "X-Session-Budget-USD", "X-Session-Budget-Share"


async def budget(http: httpx.AsyncClient, name: str = "s") -> str:
    found: str = (await http.get(f"/v1/sessions/{name}")).json()["budget_usd"]
    return found


async def set_by_hand(http: httpx.AsyncClient, budget_usd: str, name: str = "s") -> None:
    assert (await http.post(f"/v1/sessions/{name}", json={"budget_usd": budget_usd})).status_code == 200


@pytest.mark.parametrize("served", [True, False])
async def test_a_budget_set_by_hand_holds_while_the_agent_repeats_its_header(
    tmp_path: Path, database_url: str, served: bool
) -> None:
    first = "0.01" if served else "0.0000001"
    agent, set_by_hand = session("s") | {"X-Session-Budget-USD": first}, "/v1/sessions/s"
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:

        async def budget() -> str:
            found: str = (await http.get(set_by_hand)).json()["budget_usd"]
            return found

        assert (await turn(http, headers=agent)).status_code == (200 if served else 402)
        for raised in ("0.5", "0.7"):
            await http.post(set_by_hand, json={"budget_usd": raised})
            for _ in range(2):
                assert (await turn(http, headers=agent)).status_code == 200
                assert await budget() == raised
        await http.post(set_by_hand, json={"budget_usd": "0"})
        refused = await turn(http, headers=agent)
        lowered = await budget()
        assert (refused.status_code, refused.json()["error"]["remaining_nano_usd"]) == (402, 0)
        other = agent | {"X-Session-Budget-USD": "0.3"}
        assert (await turn(http, headers=other)).status_code == 200
        assert lowered != await budget() == "0.3"
        # Another value was in force since, so the first one is a change again.
        assert (await turn(http, headers=agent | {"X-Session-Budget-USD": "0.02"})).status_code == 200
        assert await budget() == "0.02"
        await http.post(set_by_hand, json={"budget_usd": "0.015"})
        told = await turn(http, headers=other | {"X-Session-Budget-USD": "0.02"})
        assert (seqroute(told, "session-budget-usd"), await budget()) == ("0.015", "0.015")
        await play.gateway.audit()


async def test_a_lower_budget_in_the_header_of_a_refused_turn_counts_and_leaves_nothing(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        served = await turn(http, headers=session("s") | {"X-Session-Budget-USD": "0.5"})
        lower = await turn(http, headers=session("s") | {"X-Session-Budget-USD": "0.0000001"})
        error = lower.json()["error"]
        assert (lower.status_code, error["remaining_nano_usd"]) == (402, 0)
        assert "has 0 USD left" in error["message"]
        shown = (await http.get("/v1/sessions/s")).json()
        assert shown["budget_usd"] == shown["spent_usd"] == seqroute(served, "cost-usd")
        assert (await turn(http, headers=session("s"))).status_code == 402


@pytest.mark.parametrize(("name", "first", "later", "other"), [(BUDGET, "1", "2", "0.2"), (SHARE, "10%", "20%", "2%")])
async def test_a_turn_under_way_and_its_retries_and_fallback_leave_a_budget_set_by_hand(
    tmp_path: Path, database_url: str, name: str, first: str, later: str, other: str
) -> None:
    modes = {"bad": "e500:gate=1"}
    async with playing(tmp_path, database_url, modes=modes, router=ROUTER) as play, play.gateway.http() as http:
        await turn(http, headers=session("root", budget_usd="10"))
        agent = session("s") | {"X-Parent-Session-Id": "root"}
        assert (await turn(http, headers=agent | {name: first})).status_code == 200
        assert await budget(http) == "1"
        under_way = asyncio.create_task(turn(http, "bad", headers=agent | {name: later}, max_tokens=100))
        await until(lambda: play.provider.bill[-1].mode == "e500", seconds=20)
        assert await budget(http) == "2"
        await set_by_hand(http, "0.1")
        play.provider.gate.set()
        answer = await under_way
        assert (answer.status_code, seqroute(answer, "model"), await budget(http)) == (200, "big", "0.1")
        for repeated in (later, first):
            assert (await turn(http, headers=agent | {name: repeated})).status_code == 200
            assert await budget(http) == "0.1"
        assert (await turn(http, headers=agent | {name: other})).status_code == 200
        assert await budget(http) == "0.2"


async def test_a_first_turn_s_header_leaves_the_budget_of_a_session_that_was_opened_by_hand(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        await set_by_hand(http, "0.1")
        for _ in range(2):
            told = await turn(http, headers=session("s", budget_usd="1"))
            assert (seqroute(told, "session-budget-usd"), await budget(http)) == ("0.1", "0.1")
        await turn(http, headers=session("s", budget_usd="0.2"))
        assert await budget(http) == "0.2"
        # One that is refused is a first turn too, and so are those that come together.
        await set_by_hand(http, "0.0000001", "poor")
        assert (await turn(http, headers=session("poor", budget_usd="1"))).status_code == 402
        assert (await turn(http, headers=session("poor", budget_usd="1"))).status_code == 402
        assert (await turn(http, headers=session("poor", budget_usd="0.5"))).status_code == 200
        await set_by_hand(http, "0.1", "crowd")
        await asyncio.gather(*(turn(http, headers=session("crowd", budget_usd="1")) for _ in range(8)))
        assert (await budget(http, "poor"), await budget(http, "crowd")) == ("0.5", "0.1")
        # A session that is opened without a budget has its header's.
        await http.post("/v1/sessions/open", json={"expected_turns": 4})
        await turn(http, headers=session("open", budget_usd="0.7"))
        assert await budget(http, "open") == "0.7"
        # An agent that begins to send a header later asks for a change.
        assert (await turn(http, headers=session("later"))).status_code == 200
        await set_by_hand(http, "0.1", "later")
        await turn(http, headers=session("later", budget_usd="0.3"))
        assert await budget(http, "later") == "0.3"
