"""The front door: places and who holds them, slow and large bodies, browsers, doubled keys, wrong addresses."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.api.slots import STARTING
from tests.harness.gateway import Served, config, serving
from tests.harness.upstream import FaultUpstream

BODY: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "x"}]}


@asynccontextmanager
async def served(
    folder: Path, url: str, modes: Mapping[str, str] | None = None, **general: Any
) -> AsyncIterator[tuple[Served, FaultUpstream]]:
    async with (
        FaultUpstream() as provider,
        serving(config(folder, provider.url, database_url=url, modes=modes, general=general)) as gateway,
    ):
        yield gateway, provider


@asynccontextmanager
async def trickling(gateway: Served, key: str, count: int) -> AsyncIterator[None]:
    """Connections that have sent a head and the first byte of a body."""
    address = urlsplit(gateway.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    )
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode())
        await writer.drain()
        writers.append(writer)
    await asyncio.sleep(0.2)
    yield
    for writer in writers:
        writer.close()


async def test_bodies_that_trickle_take_no_places_and_a_tenant_without_money_keeps_nobody_out(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with served(tmp_path, sqlite_url, global_max_parallel_requests=4) as (gateway, _):
        _, poor = await gateway.tenant("poor", budget_usd="0")
        _, rich = await gateway.tenant("rich")
        async with trickling(gateway, poor, 30), gateway.http(poor) as theirs, gateway.http(rich) as ours:
            flood = [asyncio.create_task(theirs.post("/v1/chat/completions", json=BODY)) for _ in range(60)]
            answers = [(await ours.post("/v1/chat/completions", json=BODY)).status_code for _ in range(10)]
            assert answers == [200] * 10
            assert {answer.status_code for answer in await asyncio.gather(*flood)} <= {402, 429}


async def test_a_tenants_parallel_turns_are_its_own_limit(tmp_path: Path, sqlite_url: str) -> None:
    modes = {"held": "ok:tokens=20,delay=0.1"}
    async with served(tmp_path, sqlite_url, modes, tenant_max_parallel_requests=2) as (gateway, provider):
        _, first = await gateway.tenant("first")
        _, second = await gateway.tenant("second")
        async with gateway.http(first) as http, gateway.http(second) as other:
            held = [asyncio.create_task(http.post("/v1/chat/completions", json=BODY | {"model": "held"})) for _ in "ab"]
            while len(provider.bill) < 2:  # noqa: ASYNC110 - the provider has no event
                await asyncio.sleep(0.02)
            refused = await http.post("/v1/chat/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"] == "1"
            assert (await other.post("/v1/chat/completions", json=BODY)).status_code == 200
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]
            assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200
            assert 'seqroute_refused_total{code="rate_limited"} 1.0' in (await http.get("/metrics")).text


async def test_every_refusal_is_counted_once_by_its_code(tmp_path: Path, sqlite_url: str) -> None:
    async with served(tmp_path, sqlite_url) as (gateway, _):
        _, poor = await gateway.tenant("poor", budget_usd="0")
        chat: dict[str, Any] = {"json": BODY}
        messages: dict[str, Any] = {"json": BODY | {"max_tokens": 9}}
        asked: list[tuple[str, str, dict[str, Any], str]] = [
            (poor, "/v1/chat/completions", chat, "tenant_budget_exceeded"),
            (poor, "/v1/messages", messages, "tenant_budget_exceeded"),
            (poor, "/v1/responses", {"json": {"model": "small", "input": "x"}}, "tenant_budget_exceeded"),
            (poor, "/v1/completions", {"json": {"model": "small", "prompt": "x"}}, "tenant_budget_exceeded"),
            (poor, "/v1/chat/completions", {"json": BODY | {"model": "none"}}, "model_not_found"),
            (poor, "/v1/chat/completions", {"content": b"{"}, "invalid_request"),
            (poor, "/v1/messages", {"content": b"{}", "headers": {"content-type": "text/plain"}},
             "unsupported_media_type"),
            ("sk-none", "/v1/chat/completions", chat, "invalid_api_key"),
            ("sk-none", "/v1/messages", messages, "invalid_api_key"),
            (poor, "/v1/nowhere", chat, "not_found"),
            (poor, "/v1/models", chat, "method_not_allowed"),
            (poor, "/admin/tenants", chat, "forbidden"),
        ]  # fmt: skip
        expected: Counter[str] = Counter()
        for key, path, sent, code in asked:
            async with gateway.http(key) as http:
                answer = await http.post(path, **sent)
            assert answer.status_code >= 400, path
            expected[code] += 1
        reader, writer = await asyncio.open_connection(*gateway.url.removeprefix("http://").split(":"))
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: h\r\nx: " + b"x" * 40_000 + b"\r\n\r\n")
        assert b" 431 " in await reader.readline()
        writer.close()
        expected["headers_too_large"] += 1
        async with gateway.http() as http:
            lines = (await http.get("/metrics")).text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("seqroute_refused_total{"))
        assert found == {f'seqroute_refused_total{{code="{code}"}}': f"{n}.0" for code, n in expected.items()}


async def test_turns_that_wait_for_their_provider_keep_no_other_from_being_started(
    tmp_path: Path, sqlite_url: str
) -> None:
    modes = {"held": "ok:tokens=60,delay=0.1"}
    async with served(tmp_path, sqlite_url, modes) as (gateway, provider), gateway.http() as http:
        asked = BODY | {"model": "held"}
        keys: list[dict[str, str]] = [{}, {"Idempotency-Key": "k"}]
        turns = [
            asyncio.create_task(
                http.post(
                    "/v1/chat/completions",
                    json=asked | {"stream": number % 3 == 0},
                    headers={name: f"{value}{number}" for name, value in keys[number % 2].items()},
                )
            )
            for number in range(3 * STARTING)
        ]
        while len(provider.bill) < 3 * STARTING:  # noqa: ASYNC110 - the provider has no event
            await asyncio.sleep(0.02)
        assert not any(turn.done() for turn in turns)
        assert {answer.status_code for answer in await asyncio.gather(*turns)} == {200}


async def test_a_full_process_refuses_in_time_and_lets_operators_and_machines_in(
    tmp_path: Path, sqlite_url: str
) -> None:
    modes = {"held": "ok:tokens=20,delay=0.1"}
    limits = {"global_max_parallel_requests": 1, "admission_queue_timeout_seconds": 0.2}
    async with served(tmp_path, sqlite_url, modes, **limits) as (gateway, provider), gateway.http() as http:
        _, other = await gateway.tenant("other")
        held = asyncio.create_task(http.post("/v1/chat/completions", json=BODY | {"model": "held"}))
        while not provider.bill:  # noqa: ASYNC110 - the provider has no event
            await asyncio.sleep(0.02)
        async with gateway.http(other) as theirs:
            refused = await theirs.post("/v1/chat/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            listed = await theirs.get("/v1/models")
            assert (listed.status_code, listed.json()["error"]["code"]) == (503, "overloaded")
        for path in ("/admin/tenants", "/readyz", "/metrics"):
            assert (await http.get(path)).status_code == 200
        assert (await held).status_code == 200


async def test_a_large_body_is_taken_up_to_32_mib_and_all_bodies_together_are_bounded(
    tmp_path: Path, sqlite_url: str
) -> None:
    text = "x" * (32 * 2**20 - 200)
    async with served(tmp_path, sqlite_url) as (gateway, _), gateway.http() as http:
        fits = await http.post("/v1/feedback", content=json.dumps({"score": 1, "comment": text}), timeout=60)
        assert fits.status_code != 413
        beyond = await http.post("/v1/feedback", content=b"x" * (32 * 2**20 + 1), timeout=60)
        assert (beyond.status_code, beyond.json()["error"]["code"]) == (413, "request_too_large")
    async with served(tmp_path, sqlite_url, max_body_bytes=100_000) as (gateway, _), gateway.http() as http:
        async with trickling_bodies(gateway, 99_999, 12):
            refused = await http.post("/v1/chat/completions", content=b"x" * 99_000)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        await gateway.settled()
        assert (await http.post("/v1/chat/completions", json=BODY)).status_code == 200


@asynccontextmanager
async def trickling_bodies(gateway: Served, sent: int, count: int) -> AsyncIterator[None]:
    """Connections that have sent all of a body but its last byte."""
    address = urlsplit(gateway.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {gateway.master_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {sent + 1}\r\n\r\n"
    )
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head.encode() + b"x" * sent)
        await writer.drain()
        writers.append(writer)
    await asyncio.sleep(0.3)
    yield
    for writer in writers:
        writer.close()


async def test_two_keys_are_400_whichever_of_them_is_good(tmp_path: Path, sqlite_url: str) -> None:
    async with served(tmp_path, sqlite_url) as (gateway, _), httpx.AsyncClient(base_url=gateway.url) as http:
        good, bad = f"Bearer {gateway.master_key}", "Bearer sk-somebody-else"
        doubled: list[list[tuple[str, str]]] = [
            [("authorization", good), ("authorization", bad)],
            [("authorization", bad), ("authorization", good)],
            [("authorization", good), ("authorization", good)],
            [("authorization", good), ("x-api-key", "sk-somebody-else")],
            [("x-api-key", gateway.master_key), ("x-api-key", "sk-somebody-else")],
            [("authorization", good), ("x-session-id", "a"), ("x-session-id", "b")],
        ]
        for path, verb in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/admin/tenants", "GET")):
            for headers in doubled[: None if verb == "POST" else 5]:
                refused = await http.request(verb, path, headers=headers, json=BODY if verb == "POST" else None)
                assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request"), headers
        same = [("authorization", good), ("x-api-key", gateway.master_key)]
        assert (await http.post("/v1/chat/completions", headers=same, json=BODY)).status_code == 200


async def test_pages_of_the_named_origins_may_call_the_api_and_never_the_admins(
    tmp_path: Path, sqlite_url: str
) -> None:
    ours, theirs = "https://chat.example.com", "https://evil.example.com"
    async with served(tmp_path, sqlite_url, cors_origins=[ours]) as (gateway, _), gateway.http() as http:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-session-id"}
        allowed = await http.options("/v1/chat/completions", headers=asks | {"Origin": ours})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ours
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        answered = await http.post("/v1/chat/completions", json=BODY, headers={"Origin": ours})
        assert answered.headers["access-control-allow-origin"] == ours
        assert answered.headers["access-control-expose-headers"] == "*"
        refused = await http.post("/v1/chat/completions", content=b"{", headers={"Origin": ours})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, ours)
        for path, origin in (("/v1/models", theirs), ("/admin/tenants", ours), ("/v1/admin/keys", ours), ("/ui", ours)):
            found = await http.get(path, headers={"Origin": origin})
            assert "access-control-allow-origin" not in found.headers, path
            preflight = await http.options(path, headers=asks | {"Origin": origin})
            assert "access-control-allow-origin" not in preflight.headers, path


async def test_without_named_origins_no_page_may_call(tmp_path: Path, sqlite_url: str) -> None:
    async with served(tmp_path, sqlite_url) as (gateway, _), gateway.http() as http:
        found = await http.get("/v1/models", headers={"Origin": "https://chat.example.com"})
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("/v1/v1/chat/completions", "a base URL that ends in /v1 once"),
        ("/v1//chat/completions", "a base URL that does not end in one"),
        ("/v1/chat/completions/", "without the slash"),
        ("/openai/deployments/gpt/chat/completions", "POST /v1/chat/completions"),
        ("/api/chat", "POST /v1/chat/completions"),
        ("/v1beta/models/gemini-pro:generateContent", "POST /v1/chat/completions"),
        ("/key/generate", "POST /admin/keys"),
        ("/v1/images/generations", "the provider itself"),
        ("/nothing", "GET / lists the entry points"),
    ],
)
async def test_a_wrong_address_says_what_to_use(stranger: httpx.AsyncClient, path: str, use: str) -> None:
    answer = await stranger.post(path, json={})
    assert answer.status_code == 404
    assert use in answer.json()["error"]["message"]


async def test_errors_below_anthropics_address_have_its_shape(stranger: httpx.AsyncClient) -> None:
    answer = await stranger.post("/v1/messages/batches", json={})
    assert (answer.status_code, answer.json()["type"]) == (404, "error")
    assert answer.json()["error"]["type"] == "not_found_error"
    refused = await stranger.get("/v1/messages?x=%00")
    assert (refused.status_code, refused.json()["type"]) == (400, "error")


async def test_the_root_and_the_probes_of_other_gateways_are_answered(stranger: httpx.AsyncClient) -> None:
    root = (await stranger.get("/")).json()
    assert root["name"] == "seqroute"
    assert root["base_url"] == f"{stranger.base_url}/v1".replace("//v1", "/v1")
    assert set(root["docs"]) == {"openapi", "dashboard", "models", "health"}
    head = await stranger.head("/")
    assert (head.status_code, head.content) == (200, b"")
    for path in ("/health", "/health/liveliness", "/health/liveness", "/health/readiness"):
        assert (await stranger.get(path)).status_code == 200


@pytest.fixture
async def stranger(tmp_path: Path, sqlite_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with served(tmp_path, sqlite_url) as (gateway, _), httpx.AsyncClient(base_url=gateway.url) as http:
        yield http


async def test_a_stream_that_our_own_end_cuts_is_draining_and_counts_against_nobody(
    tmp_path: Path, database_url: str
) -> None:
    modes = {"long": "ok:tokens=4000,delay=0.02"}
    async with served(tmp_path, database_url, modes) as (gateway, provider), gateway.http() as http:
        lines: list[str] = []
        asked = BODY | {"model": "long", "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            decision_id = answer.headers["x-seqroute-decision-id"]
            async for line in answer.aiter_lines():
                lines.append(line)
                if len(lines) == 10:
                    for pump in list(gateway.parts.turns.live_streams):
                        gateway.parts.turns.live_streams.discard(pump)
                        pump._task.get_loop().call_soon_threadsafe(pump.stop)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["error"]["code"] == "draining"
        assert "data: [DONE]" not in lines
        await gateway.settled()
        decision = (await http.get(f"/v1/decisions/{decision_id}")).json()
        assert (decision["status"], decision["signals"].get("upstream_failure")) == ("cancelled", None)
        assert provider.bill[0].cut
        await gateway.audit()
