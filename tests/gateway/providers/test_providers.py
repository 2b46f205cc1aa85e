"""Whole answers and failures of real LiteLLM calls against a provider that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import importlib
import logging
from typing import Any

import pytest

from gateway.catalog.usage import Usage
from gateway.errors import GatewayError, RateLimited, UpstreamError, UpstreamRejected, UpstreamTimeout, http_status
from gateway.providers.call import ProviderNames
from gateway.providers.errors import (
    BrokenFault,
    ConnectFault,
    CredentialFault,
    FailedFault,
    RejectedFault,
    ThrottledFault,
    TimeoutFault,
    UpstreamFault,
)
from gateway.providers.outgoing import OutgoingCalls
from gateway.providers.providers import Call, Upstream
from tests.harness.lanes import LANES
from tests.harness.upstream import FaultUpstream

KEY = "sk-canary-7f3a9c"


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(provider: FaultUpstream, mode: str, **more: Any) -> Call:
    arguments: dict[str, Any] = {
        "litellm_model": f"openai/{mode}",
        "api_base": provider.url,
        "api_key": KEY,
        "messages": [{"role": "user", "content": "hello there"}],
        "timeout_s": 20.0,
    }
    return Call(**arguments | more)


async def fault_of(upstream: Upstream, wanted: Call, kind: type[UpstreamFault]) -> UpstreamFault:
    with pytest.raises(kind) as caught:
        await upstream.complete(upstream.outgoing(wanted))
    return caught.value


async def test_an_answer_comes_as_the_provider_sent_it(upstream: Upstream, provider: FaultUpstream) -> None:
    reply = await upstream.complete(upstream.outgoing(call(provider, "ok:tokens=3,cached=2,reasoning=4")))
    attempt = provider.bill[0]
    assert reply.body["choices"][0]["message"]["content"] == " the of and"
    assert reply.finish_reason == "stop"
    assert reply.body["model"] == "ok:tokens=3,cached=2,reasoning=4-2026-01-01"
    assert reply.usage == Usage(attempt.prompt_tokens, attempt.output_tokens + 4, cached_tokens=2, reasoning_tokens=4)


async def test_max_tokens_reaches_the_provider_under_the_name_that_was_asked_for(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = await upstream.complete(upstream.outgoing(call(provider, "ok", max_tokens=5, max_tokens_param=name)))
        assert reply.finish_reason == "length"
        assert provider.received[-1].body[name] == 5


async def test_litellm_computes_no_price_of_its_own(
    upstream: Upstream, provider: FaultUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a quarter of its time, and the bill is ours to make."""
    priced: list[object] = []
    litellm = importlib.import_module("litellm")
    monkeypatch.setattr(litellm, "response_cost_calculator", lambda **told: priced.append(told))
    await upstream.complete(upstream.outgoing(call(provider, "ok:tokens=3")))
    assert priced == []


async def test_tool_calls_and_several_choices_come_through(upstream: Upstream, provider: FaultUpstream) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    reply = await upstream.complete(upstream.outgoing(call(provider, "tools", params={"tools": tools, "n": 3})))
    assert len(reply.body["choices"]) == 3
    assert reply.body["choices"][2]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("mode", "kind", "dispatched", "retryable", "answer", "status"),
    [
        ("e400", RejectedFault, False, False, UpstreamRejected, 400),
        ("e401echo", CredentialFault, False, True, UpstreamError, 502),
        ("e403", CredentialFault, False, True, UpstreamError, 502),
        ("e404", RejectedFault, False, False, UpstreamRejected, 404),
        ("e413", RejectedFault, False, False, UpstreamRejected, 413),
        ("e422", RejectedFault, False, False, UpstreamRejected, 422),
        ("e429", ThrottledFault, False, True, RateLimited, 429),
        ("e500", FailedFault, False, True, UpstreamError, 502),
        ("e502", FailedFault, False, True, UpstreamError, 502),
        ("e503", FailedFault, False, True, UpstreamError, 502),
        ("e504", TimeoutFault, True, False, UpstreamTimeout, 504),
        ("redirect", FailedFault, False, True, UpstreamError, 502),
        ("inband-first", FailedFault, False, True, UpstreamError, 502),
        ("rst", BrokenFault, True, False, UpstreamError, 502),
        ("half", BrokenFault, True, False, UpstreamError, 502),
        ("badjson", BrokenFault, True, False, UpstreamError, 502),
        ("html", BrokenFault, True, False, UpstreamError, 502),
        ("empty", BrokenFault, True, False, UpstreamError, 502),
        ("gzip-bomb", BrokenFault, True, False, UpstreamError, 502),
    ],
)
async def test_every_failure_has_one_documented_outcome_after_one_request(
    upstream: Upstream,
    provider: FaultUpstream,
    mode: str,
    kind: type[UpstreamFault],
    dispatched: bool,
    retryable: bool,
    answer: type[GatewayError],
    status: int,
) -> None:
    fault = await fault_of(upstream, call(provider, mode), kind)
    assert (fault.dispatched, fault.retryable) == (dispatched, retryable)
    assert isinstance(fault.answer(), answer)
    assert http_status(fault.answer()) == status
    assert len(provider.bill) == 1


@pytest.mark.parametrize(
    ("mode", "wish_s"),
    [
        ("e429", 7.0),
        ("e429-absurd", 86_400.0),
        ("e429-negative", 0.0),
        ("e429-missing", None),
        ("e429-garbage", None),
        ("e429-ms", 1.5),
        ("e503", 3.0),
    ],
)
async def test_retry_after_is_read_and_clamped(
    upstream: Upstream, provider: FaultUpstream, mode: str, wish_s: float | None
) -> None:
    assert (await fault_of(upstream, call(provider, mode), UpstreamFault)).retry_after_s == wish_s


async def test_retry_after_as_a_date_is_read(upstream: Upstream, provider: FaultUpstream) -> None:
    fault = await fault_of(upstream, call(provider, "e429-date"), ThrottledFault)
    assert fault.retry_after_s is not None
    assert 0 < fault.retry_after_s <= 21
    assert int(fault.answer().headers["Retry-After"]) >= 1


async def test_a_provider_that_does_not_answer_is_given_up_and_may_have_billed(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    fault = await fault_of(upstream, call(provider, "stall", timeout_s=0.3), TimeoutFault)
    assert (fault.dispatched, fault.retryable) == (True, False)
    await _until(lambda: provider.bill[0].cut)


async def test_an_answer_that_trickles_in_does_not_outlive_the_deadline(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    await fault_of(upstream, call(provider, "drip", timeout_s=0.4), TimeoutFault)
    await _until(lambda: provider.open_connections == 0)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/v1",  # nothing listens there
        "http://no-such-host.invalid/v1",
        "https://127.0.0.1:{port}/v1",  # no TLS spoken there
    ],
)
async def test_what_never_reached_the_provider_is_retryable_and_free(provider: FaultUpstream, address: str) -> None:
    upstream = Upstream(connect_timeout_s=0.5)
    await upstream.start()
    wanted = call(provider, "ok", api_base=address.format(port=provider.port))
    fault = await fault_of(upstream, wanted, ConnectFault)
    assert (fault.dispatched, fault.retryable) == (False, True)
    assert provider.bill == []
    await upstream.close()


async def test_a_cancelled_call_closes_the_connection_at_once(upstream: Upstream, provider: FaultUpstream) -> None:
    task = asyncio.create_task(upstream.complete(upstream.outgoing(call(provider, "stall"))))
    await _until(lambda: len(provider.bill) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: provider.bill[0].cut and provider.open_connections == 0)


async def test_no_fault_repeats_what_the_provider_said(
    upstream: Upstream, provider: FaultUpstream, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A provider that echoes the request's headers puts our own key into its message."""
    caplog.set_level(logging.DEBUG)
    fault = await fault_of(upstream, call(provider, "e401echo"), CredentialFault)
    seen: list[BaseException | None] = [fault, fault.__cause__, fault.__context__]
    assert seen[1:] == [None, None]
    assert KEY not in f"{fault!r} {fault.answer().as_body()} {fault.answer().headers}"
    assert KEY not in caplog.text
    assert KEY not in "".join(capfd.readouterr())


async def test_a_call_does_not_show_its_key() -> None:
    secret = Call("openai/x", [], api_key=KEY, extra_headers={"x-key": KEY}, options={"aws_secret_access_key": KEY})
    assert KEY not in repr(secret)


async def test_a_provider_nobody_knows_is_refused_without_a_request(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    with pytest.raises(UpstreamFault) as caught:
        await upstream.complete(
            upstream.outgoing(call(provider, "x", litellm_model="no-such-provider/model-x", api_base=None))
        )
    assert caught.value.dispatched is False
    assert provider.bill == []


async def test_a_package_that_a_provider_needs_and_is_not_there_is_named(
    upstream: Upstream, provider: FaultUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"vertex_project": "p", "vertex_location": "us-central1"}
    wanted = call(provider, "x", litellm_model="vertex_ai/openai/1234", api_base=None, api_key=None, options=options)
    with pytest.raises(FailedFault, match="a Python package that the gateway lacks") as caught:
        await upstream.complete(upstream.outgoing(wanted))
    assert (caught.value.dispatched, caught.value.retryable) == (False, False)
    assert "needs the Python package vertexai" in caplog.text


@pytest.mark.parametrize("is_chat", [True, False])
async def test_what_breaks_while_a_call_is_made_was_not_sent(
    upstream: Upstream, provider: FaultUpstream, is_chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LiteLLM knows of a model meets a defect."""

    def resolved(calls: OutgoingCalls, call: Call) -> ProviderNames:
        raise KeyError(call.litellm_model)

    monkeypatch.setattr(OutgoingCalls, "_resolved", resolved)
    with pytest.raises(FailedFault) as caught:
        upstream.outgoing(call(provider, "ok", params={"input": ["hello"]}, is_chat=is_chat))
    assert (caught.value.dispatched, caught.value.retryable) == (False, False)
    assert provider.bill == []


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the provider's books have no event
            await asyncio.sleep(0.005)
