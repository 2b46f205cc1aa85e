"""Chat turns through the official SDK: answers, streams, tools, errors, budgets and what the headers say."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway.errors import InvalidRequest
from tests.e2e.conftest import Stage
from tests.harness.concurrent_turns import ended
from tests.harness.words import words

HELLO: Any = [{"role": "user", "content": "hello there"}]


async def client_of(stage: Stage, **tenant: Any) -> AsyncOpenAI:
    _, key = await stage.gateway.tenant("acme", **tenant)
    return stage.gateway.client(key)


async def test_a_turn_is_answered_billed_exactly_and_explained_in_headers(stage: Stage) -> None:
    client = await client_of(stage)
    raw = await client.chat.completions.with_raw_response.create(
        model="small", messages=HELLO, extra_headers={"X-Session-Id": "s-1", "X-Session-Budget-USD": "0.5"}
    )
    completion = raw.parse()
    assert completion.model == "small"
    assert completion.usage is not None
    cost = completion.usage.prompt_tokens * 1_000 + completion.usage.completion_tokens * 2_000
    headers = raw.headers
    assert headers["x-seqroute-model"] == "small"
    assert headers["x-seqroute-reason"] == "pinned"
    assert headers["x-seqroute-session-id"] == "s-1"
    assert float(headers["x-seqroute-cost-usd"]) == pytest.approx(cost / 1e9, abs=1e-12)
    assert float(headers["x-seqroute-session-remaining-usd"]) == pytest.approx(0.5 - cost / 1e9, abs=1e-12)
    assert float(headers["x-seqroute-reserved-usd"]) >= cost / 1e9


async def test_auto_chooses_a_model_and_the_body_names_the_one_that_answered(stage: Stage) -> None:
    client = await client_of(stage)
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    chosen = raw.headers["x-seqroute-model"]
    assert raw.parse().model == chosen
    async with stage.gateway.http(client.api_key) as http:
        explained = (await http.get(f"/v1/decisions/{raw.headers['x-seqroute-decision-id']}")).json()
    assert explained["model"] == chosen
    assert explained["policy"] == raw.headers["x-seqroute-policy"]
    feasible = [c for c in explained["candidates"] if c["feasible"]]
    assert sum(c["probability"] for c in feasible) == pytest.approx(1.0)
    [executed] = [c for c in feasible if c["model"] == chosen]
    assert executed["probability"] == pytest.approx(explained["probability"])


async def test_a_stream_ends_with_usage_the_bill_and_done(stage: Stage) -> None:
    client = await client_of(stage)
    stream = await client.chat.completions.create(
        model="words", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "".join(words(30))
    assert {c.model for c in chunks} == {"words"}
    last = chunks[-1]
    assert last.usage is not None
    assert last.usage.completion_tokens == 30
    report = (last.model_extra or {})["seqroute"]
    assert report["cost_nano_usd"] == last.usage.prompt_tokens * 1_000 + 30 * 2_000
    async with stage.gateway.http(client.api_key) as http:
        answer = await http.post("/v1/chat/completions", json={"model": "words", "messages": HELLO, "stream": True})
    frames = answer.text.strip().split("\n\n")
    bill, done = frames[-1].split("\n")
    assert (bill.startswith(": seqroute {"), done) == (True, "data: [DONE]")
    # Decoders that take every blank line for an event find data in each of them.
    assert all("data: " in frame for frame in frames)
    assert '"usage"' not in "".join(f for f in frames if f.startswith("data: {"))


async def test_tools_and_structured_output_pass_through(stage: Stage) -> None:
    client = await client_of(stage)
    completion = await client.chat.completions.create(
        model="small",
        messages=HELLO,
        tools=[
            {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
        ],
        response_format={"type": "json_object"},
        seed=7,
    )
    assert completion.choices[0].message.content
    sent = stage.provider.received[-1].body
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["seed"] == 7
    assert "max_tokens" not in sent  # neither the client nor the money asked for a limit


async def test_a_session_budget_binds_with_402_and_says_what_is_left(stage: Stage) -> None:
    client = await client_of(stage)
    headers = {"X-Session-Id": "poor", "X-Session-Budget-USD": "0.00005"}
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(model="big", messages=HELLO, max_tokens=100, extra_headers=headers)
    error = refused.value
    assert error.status_code == 402
    assert error.code == "session_budget_exceeded"
    assert error.response.headers["x-should-retry"] == "false"
    body: Any = error.body
    assert body["remaining_nano_usd"] == 50_000
    assert body["needed_nano_usd"] > 50_000
    assert stage.provider.bill == []


async def test_a_tenant_budget_binds_across_its_sessions(stage: Stage) -> None:
    client = await client_of(stage, budget_usd="0.0003")
    spent = 0
    with pytest.raises(openai.APIStatusError) as refused:
        for number in range(50):
            await client.chat.completions.create(
                model="words", messages=HELLO, max_tokens=40, extra_headers={"X-Session-Id": f"s{number}"}
            )
            spent += 1
    assert refused.value.code == "tenant_budget_exceeded"
    assert 1 <= spent <= 5


async def test_max_tokens_is_clamped_to_the_reservation_and_the_client_is_told(stage: Stage) -> None:
    client = await client_of(stage)
    raw = await client.chat.completions.with_raw_response.create(
        model="small",
        messages=HELLO,
        max_tokens=4_000,
        extra_headers={"X-Session-Id": "tight", "X-Session-Budget-USD": "0.002"},
    )
    clamped = int(raw.headers["x-seqroute-max-tokens"])
    assert 16 <= clamped < 1_000
    assert stage.provider.received[-1].body["max_tokens"] == clamped
    assert float(raw.headers["x-seqroute-reserved-usd"]) <= 0.002
    body = {"model": "small", "messages": HELLO, "max_tokens": 4_000, "stream": True}
    tight = {"X-Session-Id": "tight-too", "X-Session-Budget-USD": "0.002"}
    async with stage.gateway.http(client.api_key) as http:
        explained = (await http.get(f"/v1/decisions/{raw.headers['x-seqroute-decision-id']}")).json()
        assert explained["lowered_max_tokens"] == clamped
        streamed = await http.post("/v1/chat/completions", json=body, headers=tight)
    report = json.loads(streamed.text.rpartition(": seqroute ")[2].partition("\n")[0])
    assert report["max_tokens"] == int(streamed.headers["x-seqroute-max-tokens"]) < 1_000


async def test_two_hundred_concurrent_turns_of_a_session_that_affords_twenty_dispatch_exactly_twenty(
    stage: Stage,
) -> None:
    client = await client_of(stage)
    question: dict[str, Any] = {"model": "held", "messages": HELLO, "max_tokens": 40}
    async with stage.gateway.http(client.api_key) as http:
        dry_run = (await http.post("/v1/route", json=question)).json()
    budget_nano_usd = 20 * dry_run["reserve_nano_usd"]
    headers = {"X-Session-Id": "crowd", "X-Session-Budget-USD": f"{budget_nano_usd / 1e9:.9f}"}

    async def turn() -> int | str:
        try:
            await client.chat.completions.create(**question, extra_headers=headers)
        except openai.APIStatusError as error:
            held = "other turns hold" in error.message and error.response.headers["retry-after"] == "1"
            return error.status_code if held else f"{error.status_code} {error.message}"
        return 200

    turns = [asyncio.create_task(turn()) for _ in range(200)]
    await ended(turns, 180)  # until then the provider answers nobody, so that no settlement frees money
    stage.provider.gate.set()
    answers = await asyncio.gather(*turns)
    assert Counter(answers) == {200: 20, 429: 180}
    assert len(stage.provider.bill) == 20
    spent = sum(a.prompt_tokens * 1_000 + a.output_tokens * 2_000 for a in stage.provider.bill)
    assert spent <= budget_nano_usd


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("down", 502, "upstream_error"),
        ("busy", 429, "rate_limited"),
        ("echo", 502, "upstream_error"),
        ("wrong", 400, "upstream_rejected"),
        ("cut", 502, "upstream_error"),
    ],
)
async def test_a_failing_provider_becomes_one_documented_error_and_no_charge_it_did_not_make(
    stage: Stage, model: str, status: int, code: str
) -> None:
    client = await client_of(stage)
    with pytest.raises(openai.APIStatusError) as failed:
        await client.chat.completions.create(model=model, messages=HELLO)
    assert failed.value.status_code == status
    assert failed.value.code == code
    assert "sk-provider-canary" not in failed.value.response.text
    await stage.gateway.settled()
    kinds = [e["kind"] for e in await stage.gateway.entries() if e["hold_id"]]
    assert kinds in (["reserve", "release"], ["reserve", "settle"])


@pytest.mark.parametrize("model", ["cut", "unfinished", "inband"])
async def test_a_stream_that_breaks_ends_with_one_error_event_and_no_invented_stop(stage: Stage, model: str) -> None:
    client = await client_of(stage)
    async with stage.gateway.http(client.api_key) as http:
        answer = await http.post("/v1/chat/completions", json={"model": model, "messages": HELLO, "stream": True})
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1].startswith('data: {"error"')
    assert '"finish_reason":"stop"' not in answer.text
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("model", ["unreported", "free", "absurd", "negative"])
async def test_a_usage_that_is_missing_or_cannot_be_is_estimated_and_marked(stage: Stage, model: str) -> None:
    """Also zeros beside an answer; an impossible count costs no more than the answer."""
    client = await client_of(stage)
    raw = await client.chat.completions.with_raw_response.create(model=model, messages=HELLO)
    assert 0 < float(raw.headers["x-seqroute-cost-usd"]) < float(raw.headers["x-seqroute-reserved-usd"])
    sources = [e["usage_source"] for e in await stage.gateway.entries() if e["kind"] == "settle"]
    assert sources == ["estimated"]


async def test_a_client_that_leaves_mid_stream_pays_for_what_came_and_the_provider_is_stopped(stage: Stage) -> None:
    client = await client_of(stage)
    stream = await client.chat.completions.create(model="slow", messages=HELLO, stream=True)
    received = 0
    async for chunk in stream:
        received += bool(chunk.choices and chunk.choices[0].delta.content)
        if received == 5:
            break
    await stream.close()
    await stage.gateway.settled()
    [attempt] = stage.provider.bill
    assert attempt.cut
    [settle] = [e for e in await stage.gateway.entries() if e["kind"] == "settle"]
    assert settle["usage_source"] == "estimated"
    assert settle["amount_nano_usd"] >= 5 * 2_000


async def test_one_idempotency_key_means_one_call_one_charge_and_the_same_answer(stage: Stage) -> None:
    client = await client_of(stage)
    headers = {"Idempotency-Key": "order-1", "X-Session-Id": "idem"}
    first = await client.chat.completions.create(model="small", messages=HELLO, extra_headers=headers)
    again = await client.chat.completions.create(model="small", messages=HELLO, extra_headers=headers)
    assert again == first
    assert len(stage.provider.bill) == 1
    other: Any = [{"role": "user", "content": "something else"}]
    with pytest.raises(openai.APIStatusError) as mismatch:
        await client.chat.completions.create(model="small", messages=other, extra_headers=headers)
    assert mismatch.value.status_code == 422
    assert mismatch.value.code == "idempotency_mismatch"
    slow_headers = {"Idempotency-Key": "order-2"}
    running = asyncio.create_task(
        client.chat.completions.create(model="slow", messages=HELLO, stream=True, extra_headers=slow_headers)
    )
    stream = await running
    with pytest.raises(openai.ConflictError) as in_flight:
        await client.chat.completions.create(model="slow", messages=HELLO, stream=True, extra_headers=slow_headers)
    assert in_flight.value.code == "idempotency_in_flight"
    text = [c.choices[0].delta.content async for c in stream if c.choices]
    replay = await client.chat.completions.create(model="slow", messages=HELLO, stream=True, extra_headers=slow_headers)
    assert [c.choices[0].delta.content async for c in replay if c.choices] == text
    assert len(stage.provider.bill) == 2


async def test_whatever_ends_a_call_resolves_its_hold(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await client_of(stage)

    def ending(error: Exception) -> None:
        async def complete(call: Any) -> Any:
            raise error

        monkeypatch.setattr(stage.gateway.parts.services.upstream, "complete", complete)

    ending(InvalidRequest("messages[0]: this provider takes pictures inline only", param="messages[0]"))
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="small", messages=HELLO)
    assert refused.value.param == "messages[0]"
    ending(RuntimeError("a defect"))
    with pytest.raises(openai.InternalServerError) as broken:
        await client.chat.completions.create(model="small", messages=HELLO)
    assert "defect" not in broken.value.response.text
    await stage.gateway.settled()
    kinds = [e["kind"] for e in await stage.gateway.entries() if e["hold_id"]]
    assert kinds == ["reserve", "release", "reserve", "settle"]
