"""What coding agents send, exactly, and the odd parts of their dialects, over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gateway.database.tables import decisions, holds, responses
from tests.harness.scenario import Play, playing, session

SESSION = "5f0c7f5e-8b0f-4c57-9f3e-111111111111"
CLAUDE_CODE_HEADERS = {
    "anthropic-version": "2023-06-01", "x-app": "cli", "X-Claude-Code-Session-Id": SESSION,
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,mid-conversation-system-2026-04-07",
}  # fmt: skip
MARK = {"type": "ephemeral"}
CLAUDE_CODE: dict[str, Any] = {
    "model": "small", "stream": True, "max_tokens": 2000, "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": SESSION})},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197"},
        {"type": "text", "text": "You are an agent.", "cache_control": MARK},
        {"type": "text", "text": "Be brief.", "cache_control": MARK},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "fix the test", "cache_control": MARK}]},
        {"role": "system", "content": "The working directory is /src."},
    ],
    "tools": [{"name": "Read", "description": "Read a file", "input_schema": {"type": "object", "properties": {}}}],
}  # fmt: skip
FILE_BY_ID = {"type": "document", "source": {"type": "file", "file_id": "f"}}
CODEX: dict[str, Any] = {
    "model": "small", "stream": True, "tool_choice": "auto", "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"}, "store": False, "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "thread", "client_metadata": {"session_id": "codex-1", "thread_id": "codex-1"},
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be an agent."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "fix the test"}]},
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "done"},
    ],
    "tools": [
        {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object", "properties": {}}},
        {"type": "namespace", "name": "files", "tools": [
            {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}},
        ]},
        {"type": "custom", "name": "apply_patch", "description": "Patch", "format": {"type": "text"}},
        {"type": "web_search", "external_web_access": False},
    ],
}  # fmt: skip


@pytest.fixture
async def play(tmp_path: Path, sqlite_url: str) -> AsyncIterator[Play]:
    async with playing(tmp_path, sqlite_url, policy={"mode": "off"}) as made:
        yield made


@pytest.fixture
async def http(play: Play) -> AsyncIterator[httpx.AsyncClient]:
    async with play.gateway.http() as client:
        yield client


# -- Messages ----------------------------------------------------------------------------------------------------------


async def test_claude_code_s_request_is_served_in_its_session(play: Play, http: httpx.AsyncClient) -> None:
    assert (await http.head("/")).status_code == 200
    answer = await http.post("/v1/messages?beta=true", json=CLAUDE_CODE, headers=CLAUDE_CODE_HEADERS)
    assert (answer.status_code, answer.headers["x-seqroute-session-id"]) == (200, SESSION)
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    assert {"content_block_start", "content_block_delta", "content_block_stop", "message_delta"} <= set(names)
    assert "context_management" in answer.headers["x-seqroute-dropped"]
    sent = play.provider.received[-1].body
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "system"]
    assert "billing" not in json.dumps(sent)
    assert sent["messages"][2]["content"] == "The working directory is /src."
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["Read"]
    assert not {"anthropic-beta", "x-app"} & play.provider.received[-1].headers.keys()


async def test_tokens_of_claude_code_s_request_are_counted(play: Play, http: httpx.AsyncClient) -> None:
    fields = {name: value for name, value in CLAUDE_CODE.items() if name not in ("stream", "max_tokens")}
    counted = await http.post("/v1/messages/count_tokens?beta=true", json=fields, headers=CLAUDE_CODE_HEADERS)
    assert (counted.status_code, list(counted.json())) == (200, ["input_tokens"])
    assert counted.json()["input_tokens"] > 20
    assert play.rows(holds) == []


async def test_signed_thinking_keeps_its_model(http: httpx.AsyncClient) -> None:
    hello: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    body = {"model": "small", "max_tokens": 50, "messages": hello}
    first = await http.post("/v1/messages", json=body, headers=session("s"))
    signed = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk"}
    turns = [*hello, {"role": "assistant", "content": [signed, *first.json()["content"]]}, *hello]
    body |= {"model": "auto@best"}
    free = await http.post("/v1/messages", json=body, headers=session("other"))
    bound = await http.post("/v1/messages", json=body | {"messages": turns}, headers=session("s"))
    assert (free.json()["model"], bound.status_code, bound.json()["model"]) == ("big", 200, "small")


async def test_models_are_listed_in_anthropic_s_shape_for_its_clients(http: httpx.AsyncClient) -> None:
    theirs = (await http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    assert {"data", "has_more", "first_id", "last_id"} <= theirs.keys()
    assert {"type", "id", "display_name", "created_at"} <= theirs["data"][0].keys()
    one = (await http.get(f"/v1/models/{theirs['data'][0]['id']}", headers={"anthropic-version": "2023-06-01"})).json()
    assert one["type"] == "model"
    assert (await http.get("/v1/models")).json()["object"] == "list"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "file",
        ),
    ],
)
async def test_what_anthropic_s_servers_run_is_refused_by_name_before_any_money(
    play: Play, http: httpx.AsyncClient, fields: dict[str, Any], named: str
) -> None:
    answer = await http.post("/v1/messages", json=CLAUDE_CODE | fields)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert named in answer.json()["error"]["message"]
    assert play.rows(holds) == []


# -- Responses ---------------------------------------------------------------------------------------------------------


async def test_codex_s_request_is_served_and_nothing_of_it_is_stored(play: Play, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/responses", json=CODEX, headers={"session-id": "codex-1", "originator": "codex"})
    assert (answer.status_code, answer.headers["x-seqroute-session-id"]) == (200, "codex-1")
    events = [orjson.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    opened = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    assert {f"response.{kind}" for kind in (*opened, "output_item.done")} <= set(kinds)
    assert "tools.web_search" in answer.headers["x-seqroute-dropped"]
    sent = play.provider.received[-1].body
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["shell", "files__read", "apply_patch"]
    assert play.rows(responses) == []
    (decision,) = play.rows(decisions)
    assert (decision["request_text"], decision["response_text"]) == (None, None)
    final = events[-1]["response"]
    again = await http.get(f"/v1/responses/{final['id']}")
    assert (again.status_code, final["store"]) == (404, False)


async def test_what_is_stored_is_found_listed_and_deleted_and_cannot_be_cancelled(
    play: Play, http: httpx.AsyncClient
) -> None:
    made = (await http.post("/v1/responses", json={"model": "small", "input": "hello"})).json()
    path = f"/v1/responses/{made['id']}"
    assert (await http.get(path)).json()["output"] == made["output"]
    (item,) = (await http.get(f"{path}/input_items")).json()["data"]
    assert (item["role"], item["content"]) == ("user", "hello")
    cancelled = await http.post(f"{path}/cancel")
    assert (cancelled.status_code, "background" in cancelled.json()["error"]["message"]) == (400, True)
    assert (await http.post("/v1/responses/resp_none/cancel")).status_code == 404
    compact = await http.post("/v1/responses/compact", json={"model": "small", "input": "x"})
    assert (compact.status_code, "compact" in compact.json()["error"]["message"]) == (404, True)
    referred = [{"type": "item_reference", "id": made["output"][0]["id"]}, {"role": "user", "content": "and?"}]
    assert (await http.post("/v1/responses", json={"model": "small", "input": referred})).status_code == 200
    assert play.provider.received[-1].body["messages"][0]["role"] == "assistant"
    assert (await http.delete(path)).json() == {"id": made["id"], "object": "response", "deleted": True}
    gone = await http.post("/v1/responses", json={"model": "small", "input": "x", "previous_response_id": made["id"]})
    assert gone.status_code == 404


async def test_encrypted_reasoning_keeps_its_model(http: httpx.AsyncClient) -> None:
    first = (await http.post("/v1/responses", json={"model": "small", "input": "hi"}, headers=session("s"))).json()
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": base64.b64encode(b"x").decode()}
    history = [{"role": "user", "content": "hi"}, sealed, *first["output"], {"role": "user", "content": "go on"}]
    free = await http.post("/v1/responses", json={"model": "auto@best", "input": "hi"}, headers=session("other"))
    bound = await http.post("/v1/responses", json={"model": "auto@best", "input": history}, headers=session("s"))
    assert (free.json()["model"], bound.status_code, bound.json()["model"]) == ("big", 200, "small")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(({"tools": [{"type": kind}]}, "tools[0].type") for kind in
          ("web_search", "file_search", "code_interpreter", "computer_use_preview", "mcp", "image_generation")),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "msg_none"}]}, None),
        ({"input": [{"type": "web_search_call", "id": "ws"}]}, "input[0].type"),
    ],
)  # fmt: skip
async def test_what_openai_s_servers_run_is_refused_by_name_before_any_money(
    play: Play, http: httpx.AsyncClient, fields: dict[str, Any], param: str | None
) -> None:
    answer = await http.post("/v1/responses", json={"model": "small", "input": "hello"} | fields)
    assert answer.status_code in (400, 404)
    assert param is None or answer.json()["error"]["param"] == param
    assert play.rows(holds) == []
