"""Whatever comes in: a 4xx that names what is wrong, no 5xx, no money moved, nothing the caller chose reaches out."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import inspect
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.schema.fields import CHAT_FIELDS, VENDOR_FIELDS
from tests.harness.scenario import HELLO, playing, session, turn
from tests.harness.upstream import FaultUpstream

USER = HELLO[0]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


RAW_BODIES: list[bytes] = [
    b"", b"[]", b"{", b"null", b"{}", b"\xff\xfe", b"\0", b'{"model": "auto"}', b'{"model": "auto", "messages":',
    b'{"model": "auto", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": NaN}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
    b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    b"[" * 100_000, b'{"a":' * 50_000,
]  # fmt: skip
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [USER] * 10_001}, "messages"),
    ({"n": 9}, "n"),
    ({"n": 10**6}, "n"),
    ({"n": 0}, "n"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": [1]}, "top_p"),
    ({"seed": 2**70}, "seed"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"stream": 1}, "stream"),
    ({"logprobs": "yes"}, "logprobs"),
    ({"tools": {"a": 1}}, "tools"),
    ({"tools": [5]}, "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_url": "http://x"}]}, "tools[0].type"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function.name"),
    ({"tool_choice": 5}, "tool_choice"),
    ({"tool_choice": {}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": 5}}}, "tool_choice.function.name"),
    ({"functions": 5}, "functions"),
    ({"functions": ["f"]}, "functions[0].name"),
    ({"functions": [{"name": 5}]}, "functions[0].name"),
    ({"function_call": 5}, "function_call"),
    ({"response_format": "json"}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"logit_bias": "x"}, "logit_bias"),
    ({"logit_bias": {"a": "b"}}, "logit_bias"),
    ({"user": 5}, "user"),
    ({"safety_identifier": ["x"]}, "safety_identifier"),
    ({"prompt_cache_key": {"x": 1}}, "prompt_cache_key"),
    ({"modalities": "text"}, "modalities"),
    ({"modalities": [5]}, "modalities"),
    ({"audio": "loud"}, "audio"),
    ({"reasoning_effort": 5}, "reasoning_effort"),
    ({"verbosity": {"x": 1}}, "verbosity"),
    ({"top_k": "x"}, "top_k"),
    ({"min_p": [1]}, "min_p"),
    ({"repetition_penalty": True}, "repetition_penalty"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}]},
     "messages[0].content[0].input_audio"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": 5}]}]}, "messages[0].content[0].file"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "http://10.0.0.1/x"}}]}]},
     "messages[0].content[0].file.file_id"),
    ({"messages": [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}, "messages[0].tool_call_id"),
]  # fmt: skip


async def test_malformed_bodies_name_what_is_wrong_and_move_no_money(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        before = await play.gateway.entries()
        for path in ("/v1/chat/completions", "/v1/route"):
            for body in RAW_BODIES:
                answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code == 400, (path, body[:80], answer.text)
                assert answer.json()["error"]["code"] == "invalid_request"
            for fields, param in BAD_FIELDS:
                for stream in (False, True) if "stream" not in fields else (False,):
                    body = json.dumps({"model": "auto", "messages": HELLO, "stream": stream} | fields).encode()
                    answer = await http.post(path, content=body)
                    assert answer.status_code == 400, (path, fields, answer.text)
                    assert answer.json()["error"]["param"] == param, (fields, answer.text)
        for named in ({"previous_response_id": "a\0b"}, {"input": [{"type": "item_reference", "id": "msg_a\0b_0"}]}):
            answer = await http.post("/v1/responses", json={"model": "auto", "input": "hi"} | named)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), answer.text
        assert await play.gateway.entries() == before
        assert play.provider.received == []


async def test_bad_headers_name_themselves_and_move_no_money(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        before = await play.gateway.entries()
        for name, value in (
            ("X-Session-Id", "a b"),
            ("X-Session-Id", ""),
            ("X-Session-Id", "x" * 129),
            ("X-Session-Budget-USD", "-1"),
            ("X-Session-Budget-USD", "1e999"),
            ("X-Session-Budget-USD", "1001"),
            ("X-Session-Expected-Turns", "many"),
            ("X-Session-End", "perhaps"),
            ("X-Route-Lambda", "NaN"),
            ("Idempotency-Key", "k" * 256),
        ):
            answer = await turn(http, headers={name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, name), (name, value)
        assert await play.gateway.entries() == before
        assert play.provider.received == []


async def test_bodies_that_are_too_large_or_of_another_kind_are_refused_unread(tmp_path: Path, sqlite_url: str) -> None:
    async with (
        playing(tmp_path, sqlite_url, general={"max_body_bytes": 20_000}) as play,
        play.gateway.http() as http,
    ):
        path, plain = "/v1/chat/completions", json.dumps({"model": "small", "messages": HELLO}).encode()

        async def pieces() -> Any:
            for _ in range(30):
                yield b" " * 1_000

        async def post(content: Any, **headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await http.post(path, content=content, headers={"Content-Type": "application/json"} | named)

        for answer, status in (
            (await post(b" " * 20_001), 413),
            (await post(pieces()), 413),
            (await post(plain, Content_Type="text/plain"), 415),
            (await post(plain, Content_Type="multipart/form-data; boundary=x"), 415),
            (await post(gzip.compress(plain), Content_Encoding="gzip"), 415),
            (await post(gzip.compress(b" " * 10**8), Content_Encoding="gzip"), 415),
            (await post(plain.ljust(20_000)), 200),
        ):
            assert answer.status_code == status
            if status != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(play.provider.received) == 1


# -- what a caller can never choose ------------------------------------------------------------------------------------

OURS = {"model", "messages", "max_tokens", "stream", "stream_options", "temperature", "n"}


def steering_names() -> list[str]:
    """What LiteLLM reads for itself. Imported when a gateway has set it up: its environment counts at its import."""
    own = importlib.import_module("litellm.types.utils").all_litellm_params
    taken = inspect.signature(importlib.import_module("litellm").acompletion).parameters
    return sorted(
        ({*own, *taken} | {"extra_body", "custom_llm_provider", "api_base"})
        - OURS
        - CHAT_FIELDS
        - VENDOR_FIELDS
        - {"kwargs"}
    )


def hostile_value(name: str, host: str) -> Any:
    if "base" in name or "url" in name or "host" in name or "endpoint" in name or "proxy" in name:
        return host
    if "key" in name or "token" in name or "secret" in name:
        return "sk-canary-of-the-caller"
    if "header" in name:
        return {"X-Canary": "sk-canary-of-the-caller", "Authorization": "Bearer sk-canary-of-the-caller"}
    if "fallback" in name:
        return [{"model": "openai/other", "api_base": host}]
    return {"api_base": host, "callbacks": [host]} if len(name) % 2 else host


async def test_no_parameter_that_steers_litellm_reaches_it_from_a_body(tmp_path: Path, sqlite_url: str) -> None:
    """Every argument the installed LiteLLM reads for itself, one by one, all at once, and inside `extra_body`."""
    async with FaultUpstream() as elsewhere, playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        names = steering_names()
        assert len(names) > 150
        steering = {name: hostile_value(name, elsewhere.url) for name in names}
        plain = await turn(http)
        expected = set(play.provider.received[-1].body)
        limit = asyncio.Semaphore(8)

        async def tried(fields: dict[str, Any]) -> httpx.Response:
            async with limit:
                return await http.post("/v1/chat/completions", json={"model": "small", "messages": HELLO} | fields)

        answers = await asyncio.gather(*(tried({name: value}) for name, value in steering.items()))
        for wrapper in ("extra_body", "metadata", "litellm_params", "optional_params", "extra_headers", "provider"):
            answers.append(await tried({wrapper: steering}))
        answers += await asyncio.gather(*(tried({"metadata": {name: elsewhere.url}}) for name in names))
        answers.append(await tried({"response_format": steering | {"type": "text"}}))
        answers.append(await tried(steering))
        deeper = [{**USER, "api_base": elsewhere.url, "extra_body": steering, "provider_specific_fields": steering}]
        answers.append(await tried({"messages": deeper}))
        tool = {**TOOL, "api_base": elsewhere.url, "function": TOOL["function"] | {"api_base": elsewhere.url}}  # type: ignore[operator]
        answers.append(await tried({"tools": [tool]}))
        assert plain.status_code == 200
        assert {a.status_code for a in answers} <= {200, 400}
        assert sum(a.status_code == 200 for a in answers) > 100
        for received in play.provider.received:
            assert set(received.body) <= expected | {"tools", "response_format", "metadata"}
            assert received.headers["authorization"] == "Bearer sk-provider-canary"
            assert "canary-of-the-caller" not in json.dumps([received.body, received.headers])
            assert elsewhere.url not in json.dumps([received.body, received.headers])
        assert elsewhere.accepted_connections == 0
        assert len(play.provider.received) == sum(a.status_code == 200 for a in answers) + 1


async def test_no_header_of_the_caller_reaches_the_provider_or_moves_the_host(tmp_path: Path, sqlite_url: str) -> None:
    async with FaultUpstream() as elsewhere, playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        for name in (
            "x-portkey-custom-host", "x-portkey-config", "x-litellm-api-base", "x-base-url", "x-api-base",
            "Helicone-Target-Url", "OpenAI-Organization", "OpenAI-Project", "x-stainless-custom", "anthropic-beta",
            "x-litellm-timeout", "x-litellm-num-retries", "X-Forwarded-Host", "Forwarded", "Cookie", "traceparent",
        ):  # fmt: skip
            assert (await turn(http, headers={name: elsewhere.url})).status_code == 200, name
        for received in play.provider.received:
            assert elsewhere.url not in json.dumps(received.headers)
            assert "authorization" in received.headers
            assert received.headers["authorization"] == "Bearer sk-provider-canary"
        assert elsewhere.accepted_connections == 0


# -- fuzz --------------------------------------------------------------------------------------------------------------

WORDS: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 1.5, "", "x", "auto", "small", "user", "tool", "assistant", "text",
    "image_url", "function", "\0", "🙂", "a" * 300, [], {}, [[]], [{}], {"type": "text"}, {"role": "user"},
]  # fmt: skip
NAMES = [
    "model", "messages", "role", "content", "tool_calls", "tool_call_id", "function", "name", "arguments", "type",
    "text", "image_url", "url", "tools", "parameters", "stream", "stream_options", "include_usage", "n", "max_tokens",
    "stop", "response_format", "json_schema", "schema", "metadata", "session_id", "user", "logit_bias", "modalities",
    "audio", "functions", "function_call", "tool_choice", "thinking_blocks", "refusal", "cache_control", "input_audio",
    "file", "conversation", "prompt_cache_key", "top_k", "reasoning_effort", "verbosity", "detail", "reasoning_content",
]  # fmt: skip


def mutated(value: Any, draw: random.Random) -> Any:
    """One random change somewhere in a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.7:
        name = draw.choice([*value, *NAMES[:3]])
        return value | {name: mutated(value.get(name), draw)}
    if isinstance(value, dict):
        return value | {draw.choice(NAMES): draw.choice(WORDS)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], mutated(value[place], draw), *value[place + 1 :]]
    return draw.choice(WORDS)


def seed_body(draw: random.Random) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts if draw.random() < 0.3 else "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    body: dict[str, Any] = {
        "model": draw.choice(["auto", "small", "auto@best"]), "messages": messages[: draw.randrange(2, 5)],
        "tools": [TOOL], "max_tokens": 20, "response_format": {"type": "json_object"}, "stop": ["x"],
        "tool_choice": "auto", "stream": draw.random() < 0.3,
    }  # fmt: skip
    for _ in range(draw.randrange(1, 4)):
        body = mutated(body, draw)
    return body


@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_bodies_are_served_or_refused_and_the_books_stay_sound(
    tmp_path: Path, database_url: str, seed: int
) -> None:
    draw = random.Random(f"{seed}")
    info = {"supports_vision": True}
    async with playing(tmp_path, database_url, model_info=info) as play, play.gateway.http() as http:
        limit = asyncio.Semaphore(8)

        async def tried(body: dict[str, Any]) -> tuple[dict[str, Any], httpx.Response]:
            async with limit:
                return body, await http.post("/v1/chat/completions", json=body, headers=session(f"s{seed}"))

        tries = await asyncio.gather(*(tried(seed_body(draw)) for _ in range(250)))
        for body, answer in tries:
            assert answer.status_code < 500, f"seed {seed}: {json.dumps(body)[:500]} -> {answer.text}"
            if answer.status_code != 200:
                assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
        served = sum(answer.status_code == 200 for _, answer in tries)
        assert 20 < served < 250
        await play.gateway.settled()
        assert reserves(await play.gateway.entries()) == served


def reserves(entries: list[dict[str, Any]]) -> int:
    return sum(entry["kind"] == "reserve" for entry in entries)


async def test_long_prompts_at_once_do_not_stop_the_loop(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        worst = "\u0001 ?" * 60_000
        asking = [asyncio.create_task(turn(http, messages=[{"role": "user", "content": worst}])) for _ in range(4)]
        alive = 0
        while not all(task.done() for task in asking):
            alive += (await http.get("/livez")).status_code == 200
        assert alive > 0
        assert {task.result().status_code for task in asking} <= {200, 400, 402}
