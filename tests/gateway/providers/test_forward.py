"""Calls in the client's own dialect: what is sent, and what every ending of the provider means."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import pytest_asyncio

from gateway.catalog.usage import PartialUsage, Usage
from gateway.dialects import messages_request, responses_request, sealed_state
from gateway.dialects.dialect import AnswerIdentity
from gateway.dialects.forwarded import FORWARDED
from gateway.dialects.messages import MessagesDialect
from gateway.errors import InvalidRequest, http_status
from gateway.providers.errors import (
    BrokenFault,
    BrokenMidAnswer,
    DialectFault,
    FailedFault,
    RejectedFault,
    TimeoutFault,
    UpstreamFault,
)
from gateway.providers.providers import Call, Upstream, UpstreamStream
from gateway.turn.fallback import cause_of
from tests.gateway.providers.test_provider_dialects import CLAUDE_ANSWER, CLAUDE_END, CLAUDE_START, CLAUDE_TEXT
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer, raw_answer
from tests.harness.upstream import FaultUpstream
from tests.harness.words import words

pytestmark = pytest.mark.asyncio(loop_scope="module")
ROUTES = ("responses", "messages")
SEARCH: Any = [{"type": "web_search"}]
SERVER_SEARCH: Any = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 9}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def provider() -> AsyncIterator[FaultUpstream]:
    async with FaultUpstream() as provider:
        yield provider


def call(provider: FaultUpstream, route: str, mode: str, **more: Any) -> Call:
    if route == "responses":
        forwarded = responses_request.to_chat({"model": "m", "input": "hello", "tools": SEARCH}).forwarded
    else:
        body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
        forwarded = messages_request.to_chat(body | {"tools": SERVER_SEARCH}).forwarded
    arguments: dict[str, Any] = {
        "litellm_model": f"{'openai' if route == 'responses' else 'anthropic'}/{mode}", "api_base": provider.url,
        "api_key": "sk-ours", "messages": [], "forwarded": forwarded, "max_tokens": 50, "tool_calls": 2,
        "timeout_s": 20.0, "stream_timeout_s": 10.0, "idle_timeout_s": 1.0,
    }  # fmt: skip
    return Call(**arguments | more)


@pytest.mark.parametrize("route", ROUTES)
async def test_an_answer_is_chat_for_the_turn_and_its_own_for_the_client(
    upstream: Upstream, provider: FaultUpstream, route: str
) -> None:
    reply = await upstream.complete(upstream.outgoing(call(provider, route, "ok")))
    (attempt,) = provider.bill
    assert reply.body["choices"][0]["message"]["content"] == "".join(words(attempt.output_tokens))
    assert isinstance(reply.usage, Usage)
    assert (reply.usage.prompt_tokens, reply.usage.output_tokens) == (attempt.prompt_tokens, attempt.output_tokens)
    assert (reply.usage.web_searches, reply.finish_reason) == (1, "stop")
    assert reply.body[FORWARDED]["id"].endswith("_provider")
    assert upstream.outgoing(call(provider, route, "ok")).left_out == ()


@pytest.mark.parametrize("route", ROUTES)
async def test_a_stream_carries_every_event_once(upstream: Upstream, provider: FaultUpstream, route: str) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, route, "ok")))
    chunks = [chunk async for chunk in stream]
    (attempt,) = provider.bill
    texts = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == "".join(words(attempt.output_tokens))
    events = [chunk[FORWARDED]["type"] for chunk in chunks if FORWARDED in chunk]
    assert events[0] in ("response.created", "message_start")
    assert events[-1] in ("response.completed", "message_stop")
    assert isinstance(stream.usage, Usage)
    assert (stream.usage.output_tokens, stream.usage.web_searches) == (attempt.output_tokens, 1)
    assert stream.ended_properly


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("e400", RejectedFault),
        ("e503", FailedFault),
        ("badjson", BrokenFault),
        ("rst", BrokenFault),
        ("html", BrokenFault),
    ],
)
async def test_a_failed_answer_is_a_fault(
    upstream: Upstream, provider: FaultUpstream, route: str, mode: str, fault: type[Exception]
) -> None:
    with pytest.raises(fault):
        await upstream.complete(upstream.outgoing(call(provider, route, mode)))


@pytest.mark.parametrize("mode", ["e404", "html"])
async def test_a_server_without_the_route_is_a_refusal_with_the_tool_s_name(
    upstream: Upstream, provider: FaultUpstream, mode: str
) -> None:
    """A hold for it is released, and the client told what no model has. Where the operator says that it has the route,
    its answer is passed on."""
    asked = upstream.outgoing(call(provider, "responses", mode, api_stated=False))
    for fault in (await failed(upstream.complete(asked)), await failed(upstream.open_stream(asked))):
        assert isinstance(fault, DialectFault)
        assert (fault.dispatched, fault.retryable, cause_of(fault)) == (False, False, "failure")
        error = fault.answer()
        assert (http_status(error), error.param) == (400, "tools[0].type")
        assert error.message.startswith('tools[0].type: "web_search" is run by OpenAI')
    stated = await failed(upstream.complete(upstream.outgoing(call(provider, "responses", mode))))
    assert not isinstance(stated, DialectFault)
    assert stated.status == (404 if mode == "e404" else 200)


async def failed(work: Awaitable[Any]) -> UpstreamFault:
    with pytest.raises(UpstreamFault) as raised:
        await work
    return raised.value


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("mode", "fault"),
    [("inband-mid", BrokenMidAnswer), ("rst", BrokenFault), ("half", BrokenFault), ("nofinish", BrokenFault),
     ("badjson", BrokenFault), ("stall", TimeoutFault)],
)  # fmt: skip
async def test_a_stream_that_breaks_is_a_fault(
    upstream: Upstream, provider: FaultUpstream, route: str, mode: str, fault: type[Exception]
) -> None:
    stream = await upstream.open_stream(upstream.outgoing(call(provider, route, mode)))
    with pytest.raises(fault):
        async for _ in stream:
            pass
    await stream.aclose()


async def test_limits_notes_and_the_operator_s_defaults_are_sent(upstream: Upstream, provider: FaultUpstream) -> None:
    defaults = {"service_tier": "default", "temperature": 0.5, "max_tokens": 3, "reasoning_effort": "low"}
    more = {"notes": ("n",), "defaults": defaults, "cache_key": "k"}
    await upstream.complete(upstream.outgoing(call(provider, "responses", "ok", **more)))
    sent = provider.received[-1].body
    assert {name: sent[name] for name in ("max_output_tokens", "max_tool_calls", "store", "instructions")} == {
        "max_output_tokens": 50, "max_tool_calls": 2, "store": False, "instructions": "n"
    }  # fmt: skip
    assert (sent["service_tier"], sent["temperature"], sent["prompt_cache_key"]) == ("default", 0.5, "k")
    assert (sent["reasoning"], "max_tokens" in sent) == ({"effort": "low"}, False)
    await upstream.complete(
        upstream.outgoing(call(provider, "messages", "ok", **more, dropped_params=frozenset({"temperature"})))
    )
    sent = provider.received[-1].body
    assert (sent["max_tokens"], sent["tools"][0]["max_uses"]) == (50, 2)
    assert sent["system"] == [{"type": "text", "text": "n"}]
    assert "temperature" not in sent


async def test_responses_have_what_the_operator_adds_and_what_the_client_labels(
    upstream: Upstream, provider: FaultUpstream
) -> None:
    asked = {
        "model": "m", "input": "hello", "tools": SEARCH, "service_tier": "flex", "prompt_cache_retention": "24h",
        "safety_identifier": "person", "metadata": {"task": "t", "api_key": "x"}, "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "high"}, "top_p": 0.5,
    }  # fmt: skip
    forwarded = responses_request.to_chat(asked).forwarded
    extra = {"truncation": "auto", "store": True, "max_output_tokens": 10**6, "own": 1}
    defaults = {"extra_body": extra, "verbosity": "low", "user": "operator", "service_tier": "default"}
    blocked = frozenset({"reasoning_effort", "top_p"})
    more: dict[str, Any] = {"forwarded": forwarded, "defaults": defaults, "dropped_params": blocked}
    made = upstream.outgoing(call(provider, "responses", "ok", **more))
    await upstream.complete(made)
    sent = provider.received[-1].body
    assert {name: sent.get(name) for name in (*asked, *extra, "user")} == {
        "model": "ok", "input": [{"type": "message", "role": "user", "content": "hello"}], "tools": SEARCH,
        "service_tier": "default", "prompt_cache_retention": "24h", "safety_identifier": "person",
        "metadata": {"task": "t"}, "text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {},
        "top_p": None, "truncation": "auto", "store": False, "max_output_tokens": 50, "own": 1, "user": "operator",
    }  # fmt: skip
    assert sorted(made.left_out) == ["metadata.api_key", "reasoning.effort", "service_tier", "top_p"]
    priced: dict[str, Any] = {"defaults": {}, "forwarded": forwarded, "service_tiers": frozenset({"flex"})}
    made = upstream.outgoing(call(provider, "responses", "ok", **priced))
    await upstream.complete(made)
    assert (provider.received[-1].body["service_tier"], made.left_out) == ("flex", ("metadata.api_key",))


@pytest.mark.parametrize(
    ("labels", "kept", "left"),
    [
        ({"a": 1, "b": "x", "model": "y"}, {"b": "x"}, ("metadata.a", "metadata.model")),
        ({str(place): "v" for place in range(17)}, None, ("metadata",)),
        ({"api_key": "x"}, None, ("metadata.api_key",)),
    ],
)
async def test_labels_that_openai_refuses_are_left_out_of_responses_by_name(
    upstream: Upstream, provider: FaultUpstream, labels: Any, kept: Any, left: tuple[str, ...]
) -> None:
    forwarded = responses_request.to_chat({"model": "m", "input": "hi", "tools": SEARCH, "metadata": labels}).forwarded
    made = upstream.outgoing(call(provider, "responses", "ok", forwarded=forwarded))
    await upstream.complete(made)
    assert (provider.received[-1].body.get("metadata"), made.left_out) == (kept, left)


@pytest.mark.parametrize(
    ("defaults", "sent"),
    [
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low", "summary": "concise"}}),
        ({"reasoning_effort": {"effort": "low", "summary": "auto", "mode": "x"}},
         {"reasoning": {"effort": "low", "summary": "concise", "mode": "x"}}),
        ({"extra_body": {"reasoning_effort": "low", "verbosity": "low"}},
         {"reasoning": {"effort": "low", "summary": "concise"}, "text": {"verbosity": "low"}}),
        ({"extra_body": {"background": True, "conversation": "conv_1", "prompt": {"id": "p"}}}, {}),
    ],
)  # fmt: skip
async def test_an_operator_s_parameters_of_chat_have_their_place_in_responses(
    upstream: Upstream, provider: FaultUpstream, defaults: dict[str, Any], sent: dict[str, Any]
) -> None:
    asked = {"model": "m", "input": "hi", "tools": SEARCH, "reasoning": {"summary": "concise", "effort": None}}
    forwarded = responses_request.to_chat(asked).forwarded
    await upstream.complete(
        upstream.outgoing(call(provider, "responses", "ok", forwarded=forwarded, defaults=defaults))
    )
    added = ("text", "verbosity", "reasoning_effort", "background", "conversation", "prompt")
    body = provider.received[-1].body
    assert {name: body[name] for name in added if name in body} == {k: v for k, v in sent.items() if k != "reasoning"}
    assert body["reasoning"] == sent.get("reasoning", asked["reasoning"])


async def test_no_limit_is_sent_where_none_is_needed(upstream: Upstream, provider: FaultUpstream) -> None:
    for route, name in (("responses", "max_output_tokens"), ("messages", "max_tokens")):
        await upstream.complete(upstream.outgoing(call(provider, route, "ok", limited=False)))
        assert (name in provider.received[-1].body) == (route == "messages")


async def test_reasoning_goes_back_to_its_own_provider_only() -> None:
    def sent(encrypted: str) -> list[dict[str, Any]]:
        items = [{"role": "user", "content": "q"}, {"type": "reasoning", "id": "rs_1", "summary": [],
                 "encrypted_content": encrypted}, {"role": "assistant", "content": "a"}]  # fmt: skip
        read = responses_request.to_chat({"model": "m", "input": items, "tools": SEARCH})
        assert read.forwarded is not None
        return [item for item in read.forwarded.body["input"] if item.get("type") == "reasoning"]

    assert sent("opaque") == [{"type": "reasoning", "summary": [], "encrypted_content": "opaque"}]
    kept = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "theirs"}
    assert sent(sealed_state.seal({"reasoning_items": [kept]})) == [{name: kept[name] for name in kept if name != "id"}]
    foreign = sealed_state.seal({"thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}]})
    with pytest.raises(InvalidRequest, match="another provider's answer"):
        sent(foreign)
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "t", "signature": foreign}]}]  # fmt: skip
    with pytest.raises(InvalidRequest, match="another provider's answer"):
        messages_request.to_chat({"model": "m", "max_tokens": 5, "messages": history, "tools": SERVER_SEARCH})


async def test_a_closing_request_calls_no_tool() -> None:
    for route_call in (
        responses_request.to_chat({"model": "m", "input": "q", "tools": SEARCH}),
        messages_request.to_chat(
            {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "q"}], "tools": SERVER_SEARCH}
        ),
    ):
        assert route_call.forwarded is not None
        closing = route_call.forwarded.closing()
        assert closing.body["tool_choice"] in ("none", {"type": "none"})
        assert closing.tools.asked_calls == 0


async def test_odd_events_of_a_forwarded_stream_are_read(upstream: Upstream) -> None:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}
    answer = {"id": "resp_1", "status": "completed", "model": "m", "output": [item], "usage": {
        "input_tokens": 50, "output_tokens": 9, "total_tokens": 59,
    }}  # fmt: skip
    said = {"type": "response.output_text.delta", "delta": "hi", "logprobs": [{"logprob": "x"}]}
    odd = json.dumps(said).replace('"x"', "-Infinity"), json.dumps({"type": "response.completed", "response": answer})
    body = "data:\n\ndata: ping\n\n: c\n\n" + "".join(f"data: {event},\n\n" for event in odd) + "data: [DONE]\n\n"
    forwarded = responses_request.to_chat({"model": "m", "input": "hello", "tools": SEARCH}).forwarded
    async with CannedProvider(raw_answer(body.encode(), "text/event-stream")) as canned:
        asked = Call("openai/m", [], api_base=canned.address, api_key="k", forwarded=forwarded)
        opened = await upstream.open_stream(upstream.outgoing(asked))
        sent = [chunk[FORWARDED]["type"] async for chunk in opened if FORWARDED in chunk]
    assert sent == ["response.output_text.delta", "response.completed"]
    assert isinstance(opened.usage, Usage)
    assert opened.usage.output_tokens == 9


async def claude_stream(upstream: Upstream, *events: str) -> tuple[list[dict[str, Any]], UpstreamStream]:
    """The events that a client gets of a forwarded stream."""
    body = "".join(f"data: {event}\n\n" for event in events)
    forwarded = messages_request.to_chat(MESSAGES).forwarded
    async with CannedProvider(raw_answer(body.encode(), "text/event-stream")) as canned:
        asked = Call("anthropic/m", [], api_base=canned.address, api_key="k", forwarded=forwarded, max_tokens=64)
        opened = await upstream.open_stream(upstream.outgoing(asked))
        return [chunk[FORWARDED] async for chunk in opened if FORWARDED in chunk], opened


async def test_half_characters_of_a_forwarded_stream_are_joined_over_events(upstream: Upstream) -> None:
    halves = [json.dumps({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": half}})
              for half in ("Hi\ud83d", "\ude00")]  # fmt: skip
    begun, ended = json.dumps(CLAUDE_EVENTS[0]), [json.dumps(event) for event in CLAUDE_END]
    told, _ = await claude_stream(upstream, begun, *halves, *ended)
    said = "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta")
    assert said == "Hi\N{GRINNING FACE}"


async def test_the_output_at_the_start_of_a_forwarded_stream_is_no_count_of_the_answer(upstream: Upstream) -> None:
    ends = [{name: value for name, value in event.items() if name != "usage"} for event in CLAUDE_END]
    _, opened = await claude_stream(upstream, *map(json.dumps, [CLAUDE_EVENTS[0], *CLAUDE_TEXT, *ends]))
    assert isinstance(opened.usage, PartialUsage)
    assert (opened.usage.has_prompt, opened.usage.has_output) == (True, False)


async def test_a_forwarded_answer_whose_content_is_a_text_has_it_as_a_block(upstream: Upstream) -> None:
    forwarded = messages_request.to_chat(MESSAGES).forwarded
    async with CannedProvider(json_answer({**OF_CLAUDE, "content": "Hello"})) as canned:
        asked = Call("anthropic/m", [], api_base=canned.address, api_key="k", forwarded=forwarded, max_tokens=64)
        reply = await upstream.complete(upstream.outgoing(asked))
    assert reply.body[FORWARDED]["content"] == [{"type": "text", "text": "Hello"}]
    assert reply.body["choices"][0]["message"]["content"] == "Hello"


async def test_an_answer_of_another_api_is_billed_and_no_answer(upstream: Upstream) -> None:
    converse = {
        "output": {"message": {"content": [{"text": "Hello"}]}},
        "usage": {"inputTokens": 21, "outputTokens": 7},
    }
    forwarded = messages_request.to_chat(MESSAGES).forwarded
    async with CannedProvider(json_answer(converse)) as canned:
        asked = Call("anthropic/m", [], api_base=canned.address, api_key="k", forwarded=forwarded, max_tokens=64)
        fault = await failed(upstream.complete(upstream.outgoing(asked)))
    assert (type(fault), fault.usage) == (BrokenFault, Usage(21, 7))


@pytest.mark.parametrize(
    "data", ["overloaded", '"overloaded"', '{"message": "overloaded"}', '{"type": "x", "error": "overloaded"}']
)
async def test_an_event_named_error_is_one_whatever_it_says(upstream: Upstream, data: str) -> None:
    created = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}}
    body = f"data: {json.dumps(created)}\n\nevent: error\ndata: {data}\n\n"
    forwarded = responses_request.to_chat({"model": "m", "input": "hello", "tools": SEARCH}).forwarded
    async with CannedProvider(raw_answer(body.encode(), "text/event-stream")) as canned:
        asked = Call("openai/m", [], api_base=canned.address, api_key="k", forwarded=forwarded)
        fault = await failed(upstream.open_stream(upstream.outgoing(asked)))
    assert (type(fault), fault.status) == (FailedFault, 503)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_the_label_of_a_page_is_an_answer(upstream: Upstream, stream: bool) -> None:
    """Its bill was paid: only a page itself tells that a server lacks the route."""
    answer = {
        "id": "resp_1", "object": "response", "status": "completed", "model": "m", "usage": {
            "input_tokens": 50, "output_tokens": 900, "total_tokens": 950,
        }, "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}],
    }  # fmt: skip
    done = {"type": "response.completed", "response": answer}
    body = f"data: {json.dumps(done)}\n\n".encode() if stream else json.dumps(answer).encode()
    forwarded = responses_request.to_chat({"model": "m", "input": "hello", "tools": SEARCH}).forwarded
    async with CannedProvider(raw_answer(body, "text/html; charset=UTF-8")) as canned:
        asked = Call("openai/m", [], api_base=canned.address, api_key="k", forwarded=forwarded, api_stated=False)
        if stream:
            opened = await upstream.open_stream(upstream.outgoing(asked))
            assert [chunk async for chunk in opened]
            usage = opened.usage
        else:
            usage = (await upstream.complete(upstream.outgoing(asked))).usage
    assert isinstance(usage, Usage)
    assert usage.output_tokens == 900


MESSAGES: dict[str, Any] = {
    "model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}], "tools": SERVER_SEARCH,
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "status": "completed", "model": "m",
    "usage": {"input_tokens": 21, "output_tokens": 7, "total_tokens": 28},
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}],
}  # fmt: skip
OF_CLAUDE = CLAUDE_ANSWER | {"usage": {"input_tokens": 21, "output_tokens": 7}}
CLAUDE_EVENTS = [CLAUDE_START | {"message": OF_CLAUDE | {"content": []}}, *CLAUDE_TEXT, *CLAUDE_END]
CHAT = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
    "usage": {"prompt_tokens": 21, "completion_tokens": 7},
}  # fmt: skip


def chat_chunk(delta: dict[str, Any], finish: str | None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


CHAT_CHUNKS = chat_chunk({"content": "Hel"}, None), chat_chunk({"content": "lo"}, "stop", usage=CHAT["usage"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "answer"),
    [
        ("anthropic/m", json_answer(OF_CLAUDE)),
        ("anthropic/m", event_answer(*CLAUDE_EVENTS)),
        ("anthropic/m", json_answer(CLAUDE_EVENTS)),
        ("anthropic/m", json_answer(CHAT)),
        ("anthropic/m", event_answer(*CHAT_CHUNKS)),
        ("openai/m", json_answer(RESPONSE)),
        ("openai/m", event_answer({"type": "response.completed", "response": RESPONSE})),
    ],
)
async def test_a_forwarded_answer_is_read_in_whatever_form_it_comes(
    upstream: Upstream, model: str, answer: bytes, stream: bool
) -> None:
    dialect = MessagesDialect(forwarded=True) if model.startswith("anthropic") else None
    asked_in_responses = {"model": "m", "input": "hello", "tools": SEARCH}
    forwarded = (
        responses_request.to_chat(asked_in_responses).forwarded
        if dialect is None
        else messages_request.to_chat(MESSAGES).forwarded
    )
    async with CannedProvider(answer) as canned:
        asked = Call(model, [], api_base=canned.address, api_key="k", forwarded=forwarded, max_tokens=64)
        if not stream:
            reply = await upstream.complete(upstream.outgoing(asked))
            assert (reply.body["choices"][0]["message"]["content"], reply.finish_reason) == ("Hello", "stop")
            assert isinstance(reply.usage, Usage)
            assert (reply.usage.prompt_tokens, reply.usage.output_tokens) == (21, 7)
            return
        opened = await upstream.open_stream(upstream.outgoing(asked))
        chunks = [chunk async for chunk in opened]
    assert (opened.finish_reason, opened.ended_properly) == ("stop", True)
    assert isinstance(opened.usage, Usage)
    assert (opened.usage.prompt_tokens, opened.usage.output_tokens) == (21, 7)
    if dialect is not None:
        renderer = dialect.stream(AnswerIdentity("dec_1", "m", 0.0, 21))
        told = b"".join(map(renderer.chunk, chunks)).decode()
        texts = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        assert [each["type"] for each in texts].count("message_start") == 1
        starts = [each["content_block"].get("text", "") for each in texts if each["type"] == "content_block_start"]
        deltas = [each["delta"].get("text", "") for each in texts if each["type"] == "content_block_delta"]
        assert "".join([*starts, *deltas]) == "Hello"
