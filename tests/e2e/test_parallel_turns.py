"""Many turns of one session at once: money that others only hold is waited for, what is spent is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.scenario import Play, playing, session, turn

LONG_ANSWERS = {"max_output_tokens": 16_000}
"""Without a limit of the client the worst case of `big` is 0.32 USD: three of them would be a session's dollar."""


async def ask_together(play: Play, http: httpx.AsyncClient, many: int, model: str, **headers: str) -> list[Any]:
    names = session("crowd", **headers)
    return list(await asyncio.gather(*(turn(http, model, headers=names) for _ in range(many))))


async def called(play: Play) -> None:
    """Until the provider has a call."""
    async with asyncio.timeout(10):
        while not play.provider.bill:  # noqa: ASYNC110 - the provider's books have no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("model", ["auto", "auto@best", "big"])
async def test_twenty_first_turns_of_a_fresh_session_all_get_whole_answers(
    tmp_path: Path, database_url: str, model: str
) -> None:
    """One cheap and one expensive model, no `max_tokens`, the default budget of 1 USD."""
    async with playing(tmp_path, database_url, model_info=LONG_ANSWERS) as play:
        play.provider.modes.update({"small": "ok:tokens=300,delay=0.003", "big": "ok:tokens=300,delay=0.003"})
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            answers = await ask_together(play, http, 20, model)
            shown = (await http.get("/v1/sessions/crowd")).json()
        assert [answer.status_code for answer in answers] == [200] * 20, [answer.text for answer in answers]
        for answer in answers:
            assert answer.json()["usage"]["completion_tokens"] == 300
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
        assert shown["reserved_nano_usd"] == 0
        assert shown["spent_nano_usd"] < 200_000_000


async def test_turns_wait_in_order_for_a_session_that_affords_one_at_a_time(tmp_path: Path, database_url: str) -> None:
    """Six turns, each holding nearly all: no overshoot, and every one is answered once the one before is billed."""
    async with playing(tmp_path, database_url) as play:
        play.provider.modes["small"] = "ok:tokens=20,delay=0.01"
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            answers = await ask_together(play, http, 6, "small", budget_usd="0.004")
        assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
        assert all("x-seqroute-max-tokens" in answer.headers for answer in answers)


async def test_money_that_stays_held_is_429_and_money_that_is_spent_402(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        play.provider.modes["big"] = "ok:tokens=40,delay=0.2"
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            first = asyncio.create_task(turn(http, "big", headers=session("s", budget_usd="0.0012"), max_tokens=40))
            await called(play)
            waited = await turn(http, "big", headers=session("s"), max_tokens=40)
            assert (waited.status_code, waited.json()["error"]["code"]) == (429, "rate_limited")
            assert waited.headers["retry-after"] == "1"
            assert "other turns hold" in waited.json()["error"]["message"]
            assert (await first).status_code == 200
            spent = await turn(http, "big", headers=session("s"), max_tokens=40)
            assert (spent.status_code, spent.json()["error"]["code"]) == (402, "session_budget_exceeded")
            assert spent.headers["x-should-retry"] == "false"
        assert len(play.provider.bill) == 1


async def test_turns_that_wait_for_money_keep_no_other_tenant_from_starting(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        play.provider.modes["big"] = "ok:tokens=40,delay=0.2"
        _, poor = await play.gateway.tenant("poor")
        _, rich = await play.gateway.tenant("rich")
        async with play.gateway.http(poor) as many, play.gateway.http(rich) as one:
            names = session("s", budget_usd="0.0012")
            crowd = [asyncio.create_task(turn(many, "big", headers=names, max_tokens=40)) for _ in range(40)]
            await called(play)
            assert (await turn(one)).status_code == 200
            assert not any(task.done() for task in crowd)
            statuses = [(await task).status_code for task in crowd]
        assert (statuses.count(200), statuses.count(429)) == (1, 39)


async def test_a_client_that_leaves_while_it_waits_for_money_is_never_served(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play:
        play.provider.modes["big"] = "ok:tokens=20,delay=0.1"
        _, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http, play.gateway.http(key) as impatient:
            names = session("s", budget_usd="0.0008")
            first = asyncio.create_task(turn(http, "big", headers=names, max_tokens=20))
            await called(play)
            second = asyncio.create_task(turn(impatient, "big", headers=names, max_tokens=20))
            await asyncio.sleep(0.3)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            await impatient.aclose()
            assert (await first).status_code == 200
        await play.gateway.settled()
        assert len(play.provider.bill) == 1
