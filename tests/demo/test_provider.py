"""The provider over real HTTP, driven with the official SDK, and its books."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from demo.billing import Bill, PrefixCache, Usage, cost_nanousd, cut, pieces
from demo.models import MODELS

QUESTION = "Question 1. Compute 12 + 30."


def client_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def bill_of(url: str) -> dict[str, Any]:
    bill: dict[str, Any] = httpx.get(f"{url}/__bill").json()
    return bill


async def test_an_answer_is_the_same_streamed_and_not(provider_url: str) -> None:
    async with client_of(provider_url) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        whole = await client.chat.completions.create(model="sim-large", messages=messages)
        stream = await client.chat.completions.create(
            model="sim-large", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert "Answer: 42" in "".join(deltas)
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert whole.model == "sim-large"
    texts = [d for d in deltas if d]
    assert max(texts.count(d) for d in texts) < 100, "clients take a hundred equal chunks for a loop"


async def test_max_tokens_is_honoured_and_billed_exactly(provider_url: str) -> None:
    before = bill_of(provider_url)
    async with client_of(provider_url) as client:
        reply = await client.chat.completions.create(
            model="sim-mid", messages=[{"role": "user", "content": QUESTION}], max_tokens=5
        )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    after = bill_of(provider_url)
    # sim-mid: 1 USD per million prompt tokens = 1,000 nano-USD each, 5 USD = 5,000 nano-USD for each of the answer's.
    assert after["total_nano_usd"] - before["total_nano_usd"] == reply.usage.prompt_tokens * 1000 + 5 * 5000
    assert after["calls"] == before["calls"] + 1


async def test_a_growing_conversation_finds_its_prefix_warm_on_the_same_model_only(provider_url: str) -> None:
    async with client_of(provider_url) as client:

        async def cached(model: str, *texts: str) -> int:
            roles = ("user", "assistant")
            messages: list[Any] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
            reply = await client.chat.completions.create(model=model, messages=messages)
            assert reply.usage is not None
            assert reply.usage.prompt_tokens_details is not None
            return reply.usage.prompt_tokens_details.cached_tokens or 0

        long = "A sentence of the opening that both turns share. " * 30
        assert await cached("sim-mini", long) == 0
        warm = await cached("sim-mini", long, "An answer.", QUESTION)
        assert warm > 200
        assert warm % 32 == 0
        assert await cached("sim-large", long, "An answer.", QUESTION) == 0


async def test_several_choices_differ_and_are_all_billed(provider_url: str) -> None:
    async with client_of(provider_url) as client:
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        reply = await client.chat.completions.create(model="sim-mini", messages=messages, n=3)
    texts = [choice.message.content or "" for choice in reply.choices]
    assert len(set(texts)) == 3
    assert reply.usage is not None
    assert reply.usage.completion_tokens == sum(len(pieces(text)) for text in texts)


async def test_a_demanded_tool_is_called_with_arguments_its_schema_allows(provider_url: str) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}}
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    messages: list[Any] = [{"role": "user", "content": "Is it cold?"}]
    async with client_of(provider_url) as client:
        reply = await client.chat.completions.create(
            model="sim-mid", messages=messages, tools=[tool], tool_choice="required"
        )
        calls = reply.choices[0].message.tool_calls
        assert reply.choices[0].finish_reason == "tool_calls"
        assert calls
        assert calls[0].type == "function"
        assert json.loads(calls[0].function.arguments) == {"city": "example", "unit": "C"}
        answered: list[Any] = [
            *messages,
            {"role": "assistant", "tool_calls": [calls[0].model_dump()]},
            {"role": "tool", "tool_call_id": calls[0].id, "content": "-3 C"},
        ]
        after = await client.chat.completions.create(model="sim-mid", messages=answered, tools=[tool])
    assert after.choices[0].finish_reason == "stop"


async def test_stop_cuts_the_answer_before_the_stop_text(provider_url: str) -> None:
    async with client_of(provider_url) as client:
        reply = await client.chat.completions.create(
            model="sim-large", messages=[{"role": "user", "content": QUESTION}], stop=["Answer:"]
        )
    assert "Answer" not in (reply.choices[0].message.content or "")


async def test_a_client_that_leaves_pays_for_what_it_was_sent(provider_url: str) -> None:
    before = bill_of(provider_url)["by_model"].get("sim-coder", {"calls": 0, "completion_tokens": 0})
    async with client_of(provider_url) as client:
        stream = await client.chat.completions.create(
            model="sim-coder", messages=[{"role": "user", "content": QUESTION}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await stream.close()
    async with httpx.AsyncClient() as books:
        for _ in range(200):
            after = (await books.get(f"{provider_url}/__bill")).json()["by_model"].get("sim-coder", before)
            if after["calls"] > before["calls"]:
                break
    assert after["calls"] == before["calls"] + 1
    assert after["completion_tokens"] > before["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}, 404, "model"),
        ({"model": "sim-nano", "messages": []}, 400, "messages"),
        ({"model": "sim-nano", "messages": ["x"]}, 400, "messages[0]"),
        ({"model": "sim-nano", "messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        ({"model": "sim-nano", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "sim-nano", "messages": [{"role": "user", "content": "x"}], "n": 99}, 400, "n"),
    ],
)
def test_malformed_requests_get_openai_shaped_errors(
    provider_url: str, body: dict[str, Any], status: int, param: str
) -> None:
    before = bill_of(provider_url)["calls"]
    reply = httpx.post(f"{provider_url}/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
    assert bill_of(provider_url)["calls"] == before


async def test_models_are_listed_and_unknown_ones_refused(provider_url: str) -> None:
    async with client_of(provider_url) as client:
        assert [m.id async for m in client.models.list()] == [m.name for m in MODELS]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])


def test_prefixes_go_cold_five_minutes_after_their_last_use() -> None:
    now = [1000.0]
    cache = PrefixCache(lambda: now[0])
    tokens = [str(i) for i in range(100)]
    assert cache.look_up("sim-nano", tokens) == 0
    now[0] += 299.0
    assert cache.look_up("sim-nano", tokens) == 96
    now[0] += 299.0
    assert cache.look_up("sim-nano", [*tokens[:40], "other", *tokens[41:]]) == 32
    now[0] += 301.0
    assert cache.look_up("sim-nano", tokens) == 0


def test_a_bill_rounds_each_call_up_once() -> None:
    """sim-nano: 7 fresh at 50 + 32 cached at 5 + 3 out at 400 nano-USD each = 350 + 160 + 1,200 = 1,710."""
    nano = MODELS[0]
    assert cost_nanousd(nano, Usage(prompt_tokens=39, cached_tokens=32, completion_tokens=3)) == 1710
    bill = Bill()
    bill.add(nano, Usage(39, 32, 3))
    bill.add(nano, Usage(39, 0, 3))
    assert bill.as_json()["total_nano_usd"] == 1710 + 39 * 50 + 1200


def test_cut_keeps_whole_tokens_and_says_whether_anything_went() -> None:
    assert cut("one two three", 2) == ("one two ", True)
    assert cut("one two three", 3) == ("one two three", False)
    assert pieces("12345 apples!") == ["123", "45", "apples", "!"]
