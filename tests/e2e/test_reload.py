"""A gateway that serves takes over a changed file within moments, and goes on with the old one when the new is bad."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.database.tables import decisions
from tests.harness.scenario import HELLO, Play, playing, seqroute, session, turn


def changed(play: Play, change: Callable[[dict[str, Any]], object]) -> None:
    """Put a new file in the old one's place, as editors and deployment tools do."""
    tree = yaml.safe_load(play.path.read_text())
    change(tree)
    replacement = play.path.with_suffix(".new")
    replacement.write_text(yaml.safe_dump(tree))
    os.replace(replacement, play.path)


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await met():  # noqa: ASYNC110 - what is waited for is on the other side of a socket
            await asyncio.sleep(0.05)


async def listed(http: httpx.AsyncClient) -> set[str]:
    return {model["id"] for model in (await http.get("/v1/models")).json()["data"]} - {"auto"}


def add_model(tree: dict[str, Any]) -> None:
    tree["model_list"].append(tree["model_list"][0] | {"model_name": "added"})


async def test_models_prices_budgets_and_modes_change_while_turns_go_on(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url, audited=False) as play, play.gateway.http() as http:
        assert (await turn(http, "added")).status_code == 404
        body = {"model": "small", "messages": HELLO, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            changed(play, add_model)

            async def is_there() -> bool:
                return "added" in await listed(http)

            await until(is_there)
            rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert (await turn(http, "added")).json()["model"] == "added"

        def dearer(tree: dict[str, Any]) -> None:
            tree["model_list"][0]["model_info"]["output_cost_per_token"] = "0.00002"
            tree["session_settings"]["default_budget_usd"] = 0.5
            tree["policy_settings"]["mode"] = "off"

        changed(play, dearer)

        async def is_off() -> bool:
            return seqroute(await turn(http, "auto"), "reason") in ("policy-off", "explore")

        await until(is_off)
        answer = await turn(http, headers=session("fresh"))
        usage = answer.json()["usage"]
        cost_nano_usd = usage["prompt_tokens"] * 1_000 + usage["completion_tokens"] * 20_000
        assert play.rows(decisions, session_id="fresh")[0]["cost_nanousd"] == cost_nano_usd
        assert (await http.get("/v1/sessions/fresh")).json()["budget_usd"] == "0.5"
        await play.gateway.audit()


async def test_a_bad_file_is_named_in_the_log_and_the_old_one_serves_on(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        before = await listed(http)
        good = play.path.read_text()

        def noticed() -> int:
            return sum("configuration not reloaded" in record.message for record in caplog.records)

        for bad in ("model_list: 5", "{", good.replace("0.000001", "free"), good + "\nsurprise: 1\n"):
            problems = noticed()
            play.path.write_text(bad)

            async def refused(problems: int = problems) -> bool:
                return noticed() > problems

            await until(refused)
            assert await listed(http) == before
            assert (await turn(http, "auto")).status_code == 200
            assert (await http.get("/readyz")).status_code == 200
        play.path.write_text(good)
        changed(play, add_model)

        async def is_there() -> bool:
            return "added" in await listed(http)

        await until(is_there)
        assert play.gateway.master_key not in caplog.text
        assert "sk-provider-canary" not in caplog.text


async def test_a_model_that_is_taken_away_ends_its_tool_loops_and_nothing_else(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"tools": "tools"}) as play, play.gateway.http() as http:
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
        first = await turn(http, "tools", headers=session("s"), tools=tools)
        message = first.json()["choices"][0]["message"]
        loop = [*HELLO, message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}]
        changed(play, lambda tree: tree["model_list"].pop())

        async def is_gone() -> bool:
            return "tools" not in await listed(http)

        await until(is_gone)
        answer = await turn(http, "auto@best", loop, headers=session("s"), tools=tools)
        assert (answer.status_code, answer.json()["model"]) == (200, "big")
        assert (await http.get("/v1/sessions/s")).json()["turns"] == 2
