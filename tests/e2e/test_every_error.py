"""Every error on every route: in its dialect's shape, with the client's own field, and no money lost.

One gateway serves all cases; each case is a tenant of its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.harness.scenario import HELLO
from tests.harness.spending import BODIES, UNSTREAMED, WAYS, Case, Routes, routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{way: body for way, body in BODIES.items() if "hosted" not in way},
    "count_tokens": ("/messages/count_tokens", {"messages": HELLO, "model": "small"}),
}
"""Every route with a body, and a body that is fine."""
ANTHROPIC = ("messages", "messages, hosted", "count_tokens")
MAX_BODY_BYTES = 100_000
WRONG: Mapping[str, Mapping[str, Any]] = {
    "chat": {
        "model": 5, "messages": "x", "stream": "x", "max_tokens": "x", "max_completion_tokens": 0, "temperature": "x",
        "top_p": 2, "n": 0, "stop": 5, "tools": 5, "tool_choice": 5, "response_format": 5, "logprobs": "x",
        "top_logprobs": 99, "seed": "x", "user": 5, "parallel_tool_calls": "x", "reasoning_effort": 5,
    },
    "messages": {
        "model": 5, "messages": "x", "stream": "x", "max_tokens": "x", "temperature": "x", "top_p": 2, "top_k": "x",
        "stop_sequences": "x", "system": 5, "tools": 5, "tool_choice": 5, "metadata": 5, "thinking": 5,
        "output_config": 5, "output_format": 5, "mcp_servers": 5, "container": 5, "context_management": 5,
        "service_tier": 5, "cache_control": 5,
    },
    "responses": {
        "model": 5, "input": 5, "instructions": 5, "stream": "x", "store": "x", "background": "x", "include": 5,
        "previous_response_id": 5, "conversation": 5, "max_output_tokens": "x", "max_tool_calls": 0,
        "temperature": "x", "top_p": 2, "top_logprobs": 99, "tools": 5, "tool_choice": 5, "parallel_tool_calls": "x",
        "text": 5, "reasoning": 5, "truncation": 5, "metadata": 5, "client_metadata": 5, "user": 5,
        "safety_identifier": 5, "prompt_cache_key": 5, "service_tier": 5, "stream_options": 5, "prompt": 5,
        "session_id": 5,
    },
    "completions": {
        "model": 5, "prompt": 5, "suffix": 5, "echo": "x", "best_of": "x", "n": 0, "logprobs": "x", "stream": "x",
        "max_tokens": "x", "temperature": "x", "top_p": 2, "stop": 5, "seed": "x", "user": 5, "logit_bias": 5,
        "presence_penalty": 9, "frequency_penalty": 9, "stream_options": 5,
    },
    "embeddings": {
        "model": 5, "input": 5, "encoding_format": "hex", "dimensions": 0, "user": 5, "session_id": 5,
        "input_type": 5, "truncate": 5,
    },
    "moderations": {"model": 5, "input": 5, "session_id": 5},
}  # fmt: skip
"""A wrong value for every field of a dialect: the error names that field."""
INSIDE: Mapping[str, tuple[tuple[Mapping[str, Any], str], ...]] = {
    "messages": (
        ({"messages": []}, "messages"),
        ({"messages": [*HELLO, {"role": "judge", "content": "x"}]}, "messages[1].role"),
        ({"system": "s", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        (
            {"system": "s", "messages": [{"role": "user", "content": [
                {"type": "text", "text": "x"},
                {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}},
            ]}]},
            "messages[0].content[1].source.url",
        ),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "sound"}]}
            ]}]},
            "messages[0].content[0].content[0].type",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "f", "input": 5}
            ]}]},
            "messages[1].content[0].input",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": 5}]}]},
            "messages[0].content[0].cache_control",
        ),
        ({"tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
    ),
    "responses": (
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"instructions": "s", "input": [{"role": "judge", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "no_such_item"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}, "input[0].output"),
        (
            {"instructions": "s", "input": [{"role": "user", "content": [
                {"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "ftp://x"}
            ]}]},
            "input[0].content[1].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "description": 5}]}, "tools[0].description"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": 5}]}]},
            "tools[0].tools[0].name",
        ),
        ({"tools": [{"type": "no_such_tool"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}, "strict": 5}}}, "text.format.strict"),
        ({"reasoning": {"summary": 5}}, "reasoning.summary"),
        ({"conversation": {"id": 5}}, "conversation.id"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": [5]}, "include[0]"),
    ),
    "completions": (
        ({"prompt": ""}, "prompt"), ({"prompt": ["a", "b"]}, "prompt"), ({"prompt": [[1, 2]]}, "prompt"),
        ({"suffix": "end"}, "suffix"), ({"best_of": 3}, "best_of"), ({"logprobs": 99}, "logprobs"),
    ),
    "embeddings": (
        ({"input": []}, "input"), ({"input": [""]}, "input"), ({"input": ["a", 5]}, "input"),
        ({"input": [[1], "a"]}, "input"), ({"model": "auto"}, "model"),
    ),
    "moderations": (
        ({"input": []}, "input"), ({"input": [{"type": "sound"}]}, "input[0]"), ({"model": "auto"}, "model"),
    ),
}  # fmt: skip
"""Wrong values deeper inside, by the path that the client sent."""
ALSO: Mapping[str, str] = {"count_tokens": "messages"}
"""Routes that read the same body."""
NO_SUCH_FIELD = {"messages": ("stream", "max_tokens", "temperature", "top_p", "top_k", "stop_sequences")}
"""What the body of `count_tokens` does not have."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Routes]:
    general = {"max_body_bytes": MAX_BODY_BYTES, "upstream_idle_seconds": 1}
    folder = tmp_path_factory.mktemp("gateway")
    async with routes(folder, general=general, router={"timeout": 1, "stream_timeout": 1}) as made:
        yield made


def told(route: str, answer: httpx.Response) -> Mapping[str, Any]:
    """The error object, after a check of the dialect's shape."""
    return shaped(route, answer.json())


def shaped(route: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    error: Mapping[str, Any] = body["error"]
    if route in ANTHROPIC:
        assert body["type"] == "error", body
        assert error["type"].endswith("_error") or error["type"] == "request_too_large", body
    else:
        assert set(body) == {"error"}, body
        assert {"message", "type", "param", "code"} <= set(error), body
    assert error["message"]
    return error


async def moved_nothing(case: Case) -> None:
    """No hold was made, and no provider was asked."""
    assert await case.resolved() == []
    assert case.attempts == []


@pytest.mark.parametrize("route", PATHS)
async def test_a_wrong_field_is_named_in_the_dialects_shape_before_any_money(server: Routes, route: str) -> None:
    path, body = PATHS[route]
    own = ALSO.get(route, route)
    wrong = [({name: value}, name) for name, value in WRONG[own].items()]
    missing = [({name: None}, name) for name in body if not (route == "moderations" and name == "model")]
    left_out = NO_SUCH_FIELD.get(own, ()) if route in ALSO else ()
    async with server.case() as case:
        for fields, param in (*wrong, *missing, *INSIDE.get(own, ())):
            if param in left_out:
                continue
            answer = await case.http.post(f"/v1{path}", json={**body, **fields})
            assert answer.status_code == 400, (fields, answer.text)
            error = told(route, answer)
            # An object of a wrong type is named itself, or by the field that says what it is.
            assert error["param"] in (param, f"{param}.type"), (fields, error)
            assert error["message"].startswith(error["param"] + ":")
        await moved_nothing(case)


@pytest.mark.parametrize("route", PATHS)
async def test_a_request_that_cannot_be_served_says_why_before_any_money(server: Routes, route: str) -> None:
    path, body = PATHS[route]
    sent = json.dumps(body).encode()
    deep = json.dumps({**body, "metadata": json.loads("[" * 70 + "]" * 70)}).encode()
    cases: list[tuple[bytes, Mapping[str, str], int]] = [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (deep, {}, 400),
        (b" " * (MAX_BODY_BYTES + 1), {}, 413),
        (sent, {"Content-Type": "text/plain"}, 415),
        (sent, {"Content-Encoding": "gzip"}, 415),
        (sent, {"Authorization": "Bearer sk-unknown"}, 401),
        (sent, {"Authorization": ""}, 401),
        (json.dumps({**body, "model": "no-such-model"}).encode(), {}, 404),
        *([] if route == "count_tokens" else [(sent, {"X-Session-Id": "a b"}, 400)]),
    ]
    async with server.case() as case:
        for content, headers, status in cases:
            answer = await case.http.post(
                f"/v1{path}", content=content, headers={"Content-Type": "application/json", **headers}
            )
            assert (answer.status_code, content[:20], headers) == (status, content[:20], headers), answer.text
            told(route, answer)
        await moved_nothing(case)


@pytest.mark.parametrize("route", BODIES)
async def test_a_spent_budget_is_told_as_the_dialects_clients_show_it(server: Routes, route: str) -> None:
    async with server.case(budget_usd="0.000001") as case:
        answer = await case.post(route, stream=False)
        error = told(route, answer)
        assert error["code"] == "tenant_budget_exceeded"
        assert answer.status_code == (400 if route.startswith("responses") else 402)
        assert answer.headers["x-should-retry"] == "false"
        assert route not in ANTHROPIC or error["type"] == "billing_error"
        await moved_nothing(case)


async def test_what_has_no_body_is_refused_in_its_dialect_too(server: Routes) -> None:
    async with server.case() as case:
        compact = await case.http.post("/v1/responses/compact", json={"model": "small", "input": "x"})
        assert (compact.status_code, told("responses", compact)["code"]) == (404, "not_found")
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            answer = await case.http.request(method, f"/v1/responses/resp_none{path}")
            assert (answer.status_code, told("responses", answer)["code"]) == (404, "not_found")
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        socket = await case.http.get("/v1/responses", headers=upgrade)
        assert (socket.status_code, told("responses", socket)["code"]) == (405, "method_not_allowed")
        wrong = await case.http.get("/v1/messages")
        assert (wrong.status_code, told("messages", wrong)["code"]) == (405, "method_not_allowed")
        await moved_nothing(case)


FAULTS: Mapping[str, tuple[int, int]] = {
    "e400": (400, 400), "e401echo": (502, 502), "e403": (502, 502), "e404": (404, 404), "e422": (422, 422),
    "e429": (429, 429), "e500": (502, 502), "e529": (503, 529), "ok:first=30": (504, 504), "html": (502, 502),
}  # fmt: skip
"""What a provider does, and the status of its error in OpenAI's dialects and in Anthropic's."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_providers_fault_is_an_error_of_the_dialect_and_one_hold_given_back(server: Routes, fault: str) -> None:
    for way, stream in WAYS:
        async with server.case(fault) as case:
            answer = await case.post(way, stream)
            error = told(way, answer)
            assert answer.status_code == FAULTS[fault][way in ANTHROPIC], (way, stream, answer.text)
            assert "sk-provider-canary" not in answer.text
            assert answer.headers["x-seqroute-decision-id"]
            assert error["code"]
            (hold,) = await case.resolved()
            assert hold["state"] in ("released", "settled"), (way, stream)
            # A provider that refused has not worked; one that said nothing in time, or no error, may have.
            assert not fault.startswith("e") or hold["state"] == "released", (way, stream)


@pytest.mark.parametrize("fault", ["badjson", "half", "rst"])
async def test_a_malformed_answer_is_an_error_of_the_dialect_and_one_hold_resolved(server: Routes, fault: str) -> None:
    for way in BODIES:
        async with server.case(fault) as case:
            answer = await case.post(way, stream=False)
            assert answer.status_code == 502, (way, answer.text)
            told(way, answer)
            (hold,) = await case.resolved()
            assert hold["state"] in ("released", "settled"), way


@pytest.mark.parametrize("fault", ["rst", "half", "inband-mid", "badjson", "stall", "nul"])
async def test_a_stream_that_breaks_ends_with_an_error_of_the_dialect_and_is_paid(server: Routes, fault: str) -> None:
    for way in BODIES:
        if way in UNSTREAMED:
            continue
        async with server.case(fault) as case:
            path, body = BODIES[way]
            async with case.http.stream("POST", f"/v1{path}", json={**body, "stream": True}) as answer:
                assert answer.status_code == 200
                events = events_of((await answer.aread()).decode())
            last = events[-1]
            if way in ANTHROPIC:
                assert last["type"] == "error", (way, last)
                shaped(way, last)
                assert "message_stop" not in {event["type"] for event in events}
            elif way.startswith("responses"):
                assert last["type"] == "response.failed", (way, last)
                assert last["response"]["error"].keys() >= {"code", "message"}
                assert "response.completed" not in {event["type"] for event in events}
            else:
                shaped(way, last)
                finishes = [choice["finish_reason"] for event in events for choice in event.get("choices", ())]
                assert not any(finishes), "an ending was invented"
            assert await case.chain(["settled"]) > 0, way


def events_of(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
