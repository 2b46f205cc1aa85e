"""Streams of real LiteLLM calls: what came is given, and an end is an end only when the provider ended."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.usage import PartialUsage, Usage
from gateway.providers.errors import (
    BrokenFault,
    FailedFault,
    RejectedFault,
    ThrottledFault,
    TimeoutFault,
    UpstreamFault,
)
from gateway.providers.providers import Call, Upstream, UpstreamStream
from tests.harness.lanes import LANES
from tests.harness.upstream import FaultUpstream
from tests.harness.words import words


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(provider: FaultUpstream, mode: str, **more: Any) -> Call:
    arguments: dict[str, Any] = {
        "litellm_model": f"openai/{mode}",
        "api_base": provider.url,
        "api_key": "sk-ours",
        "messages": [{"role": "user", "content": "hello there"}],
        "stream": True,
        "timeout_s": 20.0,
        "stream_timeout_s": 10.0,
        "idle_timeout_s": 5.0,
    }
    return Call(**arguments | more)


async def text_of(stream: UpstreamStream) -> str:
    pieces = []
    async for chunk in stream:
        pieces += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
    return "".join(pieces)


def said(count: int) -> str:
    return "".join(words(count))


@pytest.mark.parametrize("mode", ["ok", "crlf", "bom", "1xx", "nodone", "dup-usage", "long", "wrongtype"])
async def test_a_stream_that_ends_properly_gives_everything(
    upstream: Upstream, provider: FaultUpstream, mode: str
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, mode)))
    assert await text_of(stream) == said(provider.bill[0].output_tokens)
    assert stream.ended_properly
    assert stream.finish_reason == "stop"
    assert stream.usage == Usage(provider.bill[0].prompt_tokens, provider.bill[0].output_tokens)


async def test_characters_cut_in_two_by_the_network_come_whole(upstream: Upstream, provider: FaultUpstream) -> None:
    text = await text_of(await upstream.open_stream(upstream.outgoing(call(provider, "split-utf8"))))
    assert text == "".join(word + "ä€🙂" for word in words(20))


async def test_chunks_come_as_the_provider_sent_them(upstream: Upstream, provider: FaultUpstream) -> None:
    chunks = [chunk async for chunk in await upstream.open_stream(upstream.outgoing(call(provider, "tools")))]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["function"]["name"] == "get_weather"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Berlin"}'
    assert chunks[-1]["choices"] == []
    assert provider.received[0].body["stream_options"] == {"include_usage": True}


async def test_several_choices_keep_their_numbers(upstream: Upstream, provider: FaultUpstream) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "ok:tokens=4", params={"n": 3})))
    texts = {0: "", 1: "", 2: ""}
    finished = set()
    async for chunk in stream:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            finished |= {choice["index"]} if choice["finish_reason"] else set()
    assert texts == dict.fromkeys(range(3), said(4))
    assert finished == {0, 1, 2}
    assert stream.usage == Usage(provider.bill[0].prompt_tokens, 12)


@pytest.mark.parametrize(
    ("mode", "usage"),
    [
        ("nousage", None),
        ("zero", PartialUsage(Usage(0, 0), has_prompt=False, has_output=False)),
        ("neg", None),
        (
            "huge",
            PartialUsage(
                Usage(9, 0), has_prompt=True, has_output=False, fault="completion_tokens is implausibly large"
            ),
        ),
    ],
)
async def test_usage_is_only_what_the_provider_said(
    upstream: Upstream, provider: FaultUpstream, mode: str, usage: object
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, mode)))
    assert await text_of(stream) == said(20)
    assert stream.usage == usage
    assert (await upstream.complete(upstream.outgoing(call(provider, mode)))).usage == usage


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("nofinish", BrokenFault),
        ("nofinish-done", BrokenFault),
        ("half", BrokenFault),
        ("rst", BrokenFault),
        ("badjson", BrokenFault),
        ("nul", BrokenFault),
        ("inband-mid", BrokenFault),
        ("stall", TimeoutFault),
        ("drip", TimeoutFault),
    ],
)
async def test_a_stream_that_breaks_gives_what_came_and_then_fails(
    upstream: Upstream, provider: FaultUpstream, mode: str, kind: type[UpstreamFault]
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, mode, idle_timeout_s=0.3)))
    received = ""
    with pytest.raises(kind) as caught:
        async for chunk in stream:
            received += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    assert said(20).startswith(received)
    assert received.startswith(said(3))
    assert not stream.ended_properly
    assert caught.value.dispatched
    assert not caught.value.retryable
    await stream.aclose()
    if mode in ("half", "rst", "stall", "drip"):
        await _until(lambda: provider.open_connections == 0)


async def test_an_error_as_the_last_event_is_no_proper_end(upstream: Upstream, provider: FaultUpstream) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "inband-last")))
    with pytest.raises(BrokenFault):
        await text_of(stream)


@pytest.mark.parametrize(
    ("mode", "kind", "retryable"),
    [
        ("inband-first", FailedFault, True),
        ("e500", FailedFault, True),
        ("e429", ThrottledFault, True),
        ("e400", RejectedFault, False),
        ("html", BrokenFault, False),
        ("comments", BrokenFault, False),
        ("40mb-line", BrokenFault, False),
        ("gzip-bomb", BrokenFault, False),
        ("stall:after=0", TimeoutFault, False),
        ("slow-first-byte", TimeoutFault, False),
    ],
)
async def test_a_failure_before_the_first_chunk_fails_the_opening(
    upstream: Upstream, provider: FaultUpstream, mode: str, kind: type[UpstreamFault], retryable: bool
) -> None:
    wait_s = 0.5 if kind is TimeoutFault else 10.0
    with pytest.raises(kind) as caught:
        await upstream.open_stream(upstream.outgoing(call(provider, mode, stream_timeout_s=wait_s)))
    assert caught.value.retryable is retryable
    assert len(provider.bill) == 1
    assert caught.value.__cause__ is None
    if mode in ("40mb-line", "stall:after=0", "slow-first-byte"):
        await _until(lambda: provider.open_connections == 0)


async def test_a_stream_has_a_deadline_of_its_own(upstream: Upstream, provider: FaultUpstream) -> None:
    stream = await upstream.open_stream(
        upstream.outgoing(call(provider, "ok:tokens=1000,delay=0.02", stream_timeout_s=0.5))
    )
    with pytest.raises(TimeoutFault):
        await text_of(stream)
    await stream.aclose()


async def test_leaving_a_stream_stops_the_provider_at_once(upstream: Upstream, provider: FaultUpstream) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "ok:tokens=100000,delay=0.001")))
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    await _until(lambda: provider.bill[0].cut and provider.open_connections == 0)
    assert provider.bill[0].output_tokens < 1_000


async def test_cancelling_the_reader_in_mid_read_and_closing_stops_the_provider(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "stall")))
    task = asyncio.create_task(text_of(stream))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    await _until(lambda: provider.bill[0].cut and provider.open_connections == 0)


async def test_cancelling_the_opening_stops_the_provider(upstream: Upstream, provider: FaultUpstream) -> None:
    for mode in ("stall:after=0", "slow-first-byte"):
        task = asyncio.create_task(upstream.open_stream(upstream.outgoing(call(provider, mode))))
        await _until(lambda: bool(provider.bill))
        task.cancel()
        await asyncio.wait({task})
        provider.bill.clear()
        await _until(lambda: provider.open_connections == 0)


@pytest.mark.parametrize("mode", ["ok", "stall", "e429", "e500", "rst", "inband-mid", "half", "nofinish"])
async def test_the_pool_is_whole_after_many_cut_and_failed_streams(provider: FaultUpstream, mode: str) -> None:
    """With room for four connections, one leaked by any ending would stop the others."""
    upstream = Upstream(max_connections=4, max_connections_per_host=4)
    await upstream.start()

    async def one() -> None:
        try:
            stream = await upstream.open_stream(upstream.outgoing(call(provider, mode, idle_timeout_s=0.05)))
        except UpstreamFault:
            return
        try:
            async for _ in stream:
                if mode == "ok":
                    break
        except UpstreamFault:
            pass
        finally:
            await stream.aclose()

    await asyncio.gather(*(one() for _ in range(8)))
    await _settled()
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await asyncio.gather(*(one() for _ in range(20)))
    assert await text_of(await upstream.open_stream(upstream.outgoing(call(provider, "ok")))) == said(20)
    await _settled()
    assert len(os.listdir("/proc/self/fd")) <= handles + 5
    assert len(asyncio.all_tasks()) <= 12
    await upstream.close()
    await _until(lambda: provider.open_connections == 0)


# LiteLLM's own wrapper, which Mistral's dialect goes through, reads attributes that pydantic wants to give up.
wrapped = pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}")


@wrapped
@pytest.mark.parametrize(
    "model", ["mistral/ok:usage=always", "groq/ok", "deepseek/ok", "hosted_vllm/ok", "together_ai/ok"]
)
async def test_providers_behind_litellms_own_dialects_stream_through_it(
    upstream: Upstream, provider: FaultUpstream, model: str
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "", litellm_model=model)))
    assert await text_of(stream) == said(20)
    assert stream.ended_properly
    assert stream.finish_reason == "stop"
    assert stream.usage == Usage(provider.bill[0].prompt_tokens, 20)


@wrapped
@pytest.mark.parametrize(
    "model",
    [
        "mistral/nofinish",
        "mistral/half",
        "mistral/rst",
        "mistral/inband-mid",
        "groq/half",
        "deepseek/rst",
        "hosted_vllm/nofinish",
    ],
)
async def test_a_cut_is_a_cut_there_too(upstream: Upstream, provider: FaultUpstream, model: str) -> None:
    """LiteLLM's wrapper would end such a stream with a `stop` of its own."""
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "", litellm_model=model)))
    finishes = []
    with pytest.raises(BrokenFault):
        async for chunk in stream:
            finishes += [choice.get("finish_reason") for choice in chunk["choices"]]
    assert set(finishes) == {None}
    assert not stream.ended_properly
    await stream.aclose()


@wrapped
@pytest.mark.parametrize("model", ["mistral/nousage", "groq/nousage", "deepseek/nousage", "hosted_vllm/nousage"])
async def test_no_usage_is_invented_there_either(upstream: Upstream, provider: FaultUpstream, model: str) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, "", litellm_model=model)))
    assert await text_of(stream) == said(20)
    assert stream.usage is None
    reply = await upstream.complete(upstream.outgoing(call(provider, "", litellm_model=model)))
    assert reply.usage is None


@pytest.mark.parametrize("model", ["mistral/e500", "groq/e429", "deepseek/e500", "hosted_vllm/e503"])
async def test_failures_there_take_one_request_too(upstream: Upstream, provider: FaultUpstream, model: str) -> None:
    with pytest.raises(UpstreamFault) as caught:
        await upstream.complete(upstream.outgoing(call(provider, "", litellm_model=model)))
    assert (caught.value.dispatched, caught.value.retryable, len(provider.bill)) == (False, True, 1)
    with pytest.raises(UpstreamFault):
        await upstream.open_stream(upstream.outgoing(call(provider, "", litellm_model=model)))
    assert len(provider.bill) == 2


async def _settled() -> None:
    gc.collect()
    await asyncio.sleep(0.1)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the provider's books have no event
            await asyncio.sleep(0.005)
