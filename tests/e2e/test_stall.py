"""An agent that goes in circles: its session is reported once, paused where the operator says so, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.database.database import transaction
from gateway.database.tables import webhook_events
from tests.harness.scenario import playing, session, turn

CALL = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}
ROUND: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "text"},
]
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
HOOK = {"webhooks": [{"url": "http://127.0.0.1:9/hook", "secret": "whsec-4fT9kQ2mZ7pL1"}]}


def circling(rounds: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "read it"}, *(ROUND * rounds)]


def told(url: str) -> list[dict[str, Any]]:
    with transaction(url) as connection:
        rows = connection.execute(select(webhook_events.c.body).where(webhook_events.c.account == "stall")).scalars()
        return [json.loads(body) for body in rows]


@pytest.mark.parametrize("action", ["pause", "notify"])
async def test_a_stalled_session_is_told_once_and_paused_where_the_operator_wants_it(
    tmp_path: Path, database_url: str, action: str
) -> None:
    async with playing(tmp_path, database_url, session={"on_stall": action}, general=HOOK) as play:
        async with play.gateway.http() as http:
            assert (await turn(http, "small", circling(2), headers=session("s"), tools=[TOOL])).status_code == 200
            found = await turn(http, "small", circling(3), headers=session("s"), tools=[TOOL])
            shown = (await http.get("/v1/sessions/s")).json()
            assert shown["stall_signals"] == ["repeated_calls"]
            if action == "notify":
                assert (found.status_code, shown["state"]) == (200, "open")
            else:
                error = found.json()["error"]
                assert (found.status_code, error["code"], shown["state"]) == (409, "session_paused", "paused")
                assert error["stall_signals"] == ["repeated_calls"]
                assert (await turn(http, "small", circling(4), headers=session("s"), tools=[TOOL])).status_code == 409
                assert (await http.post("/v1/sessions/s", json={"state": "open"})).status_code == 200
            # Resumed with the same history, it goes on; when that has grown and still circles, it is told again.
            again = await turn(http, "small", circling(4), headers=session("s"), tools=[TOOL])
            assert again.status_code == 200
            assert [event["messages"] for event in told(database_url)] == [7]
            await turn(http, "small", circling(9), headers=session("s"), tools=[TOOL])
        events = told(database_url)
        assert [event["messages"] for event in events] == [7, 19]
        first = events[0]
        assert (first["type"], first["session_id"], first["signals"]) == ("session.stalled", "s", ["repeated_calls"])
        assert first["spent_nano_usd"] > 0


async def test_without_the_rule_a_stall_is_only_logged(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, general=HOOK) as play, play.gateway.http() as http:
        await turn(http, "small", circling(3), headers=session("s"), tools=[TOOL])
        again = await turn(http, "small", circling(4), headers=session("s"), tools=[TOOL])
        decision = (await http.get(f"/v1/decisions/{again.headers['x-seqroute-decision-id']}")).json()
        assert decision["signals"] == {"repeated_calls": True}
        assert told(sqlite_url) == []
