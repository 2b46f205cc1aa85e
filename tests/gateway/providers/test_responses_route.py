"""Models that are called at /v1/responses, always or for tools, through LiteLLM's bridge from chat."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.catalog.build import bundled_price_map, load
from gateway.catalog.own_api import calls_functions_in_own_api
from gateway.catalog.price_map import PriceMap
from gateway.catalog.usage import Usage
from gateway.providers.errors import BrokenFault, CallRefused, FailedFault, ThrottledFault, UpstreamFault
from gateway.providers.litellm_setup import import_litellm
from gateway.providers.providers import Call, Upstream
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer

# LiteLLM's wrapper reads attributes that pydantic wants to give up, and puts a usage of another type into an event.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}]
BILL = Usage(50, 22, cached_tokens=10, reasoning_tokens=7)
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
MESSAGE = {
    "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}  # fmt: skip
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "read", "arguments": '{"path":"a"}'}
ANSWER: list[dict[str, Any]] = [REASONING, MESSAGE, CALL]


def response(output: Sequence[Mapping[str, Any]], status: str = "completed") -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": status, "output": list(output),
        "usage": {
            "input_tokens": 50, "input_tokens_details": {"cached_tokens": 10}, "output_tokens": 22,
            "output_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 72,
        },
    }  # fmt: skip


def events() -> list[dict[str, Any]]:
    """The stream of ANSWER, as OpenAI's server writes it."""
    text = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    arguments = {"item_id": "fc_1", "output_index": 2}
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": response([], "in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": REASONING | {"summary": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": REASONING},
        {"type": "response.output_item.added", "output_index": 1, "item": MESSAGE | {"content": []}},
        {"type": "response.output_text.delta", **text, "delta": "Hel"},
        {"type": "response.output_text.delta", **text, "delta": "lo"},
        {"type": "response.output_item.done", "output_index": 1, "item": MESSAGE},
        {"type": "response.output_item.added", "output_index": 2, "item": CALL | {"arguments": ""}},
        {"type": "response.function_call_arguments.delta", **arguments, "delta": '{"path"'},
        {"type": "response.function_call_arguments.delta", **arguments, "delta": ':"a"}'},
        {"type": "response.output_item.done", "output_index": 2, "item": CALL},
        {"type": "response.completed", "response": response(ANSWER)},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(found)]


def call(provider: CannedProvider, model: str, **more: Any) -> Call:
    arguments: dict[str, Any] = {
        "api_base": f"{provider.address}/v1", "api_key": "sk-ours", "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 64, "params": {"tools": TOOLS, "reasoning_effort": "low"}, "timeout_s": 20.0,
        "stream_timeout_s": 15.0,
    }  # fmt: skip
    return Call(model, **arguments | more)


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    "model", ["openai/gpt-5-codex", "openai/gpt-5-pro", "openai/gpt-5.4", "openai/responses/gpt-5-mini"]
)
async def test_a_whole_answer_has_its_text_calls_and_bill(upstream: Upstream, model: str, limit: str) -> None:
    async with CannedProvider(json_answer(response(ANSWER))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, model, max_tokens_param=limit)))
    [(path, sent)] = provider.received
    assert path == "/v1/responses"
    assert (sent["model"], sent["max_output_tokens"]) == (model.rpartition("/")[2], 64)
    assert (sent["reasoning"], sent["store"]) == ({"effort": "low"}, False)
    assert sent["tools"][0]["name"] == "read"
    message = reply.body["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == ("Hello", CALL["arguments"])
    assert (reply.usage, reply.finish_reason) == (BILL, "tool_calls")


@pytest.mark.parametrize("model", ["openai/gpt-5-codex", "openai/gpt-5-pro", "openai/gpt-5.4"])
async def test_a_streamed_answer_has_each_call_s_arguments_once(upstream: Upstream, model: str) -> None:
    """gpt-5-pro does not stream: LiteLLM's imitation of a stream would give its arguments twice."""
    whole = model.endswith("pro")
    async with CannedProvider(json_answer(response(ANSWER)) if whole else event_answer(*events())) as provider:
        stream = await upstream.open_stream(upstream.outgoing(call(provider, model, stream=True)))
        deltas = [chunk["choices"][0]["delta"] async for chunk in stream if chunk["choices"]]
    assert provider.received[0][1]["stream"] is not whole
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
    calls = [each["function"] for delta in deltas for each in delta.get("tool_calls") or ()]
    assert "".join(each.get("arguments") or "" for each in calls) == CALL["arguments"]
    assert (stream.usage, stream.finish_reason, stream.ended_properly) == (BILL, "tool_calls", True)


@pytest.mark.parametrize(
    "entry",
    [
        "litellm_params: {model: openai/house-codex}, model_info: {mode: responses, PRICES}",
        "litellm_params: {model: house-codex, custom_llm_provider: openai}, model_info: {mode: responses, PRICES}",
        "litellm_params: {model: openai/house-codex}, model_info: {base_model: gpt-5-codex}",
        "litellm_params: {model: openai/gpt-4.1}, model_info: {mode: responses}",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_whose_mode_the_operator_states_is_called_there(
    upstream: Upstream, tmp_path: Path, entry: str, stream: bool
) -> None:
    """LiteLLM does not know that such a model streams, so it is asked for a whole answer."""
    prices = "input_cost_per_token: 0.000001, output_cost_per_token: 0.000002"
    file = tmp_path / "gateway.yaml"
    file.write_text(f"model_list: [{{model_name: a, {entry.replace('PRICES', prices)}}}]")
    [deployment] = load(file, {"OPENAI_API_KEY": "sk-ours"})[1].models["a"].deployments
    assert deployment.own_api_only
    options = {name: value.reveal() for name, value in deployment.provider_params.items()}
    async with CannedProvider(json_answer(response(ANSWER))) as provider:
        made = call(provider, deployment.litellm_model, options=options, stream=stream, params={"tools": TOOLS})
        asked = upstream.outgoing(made)
        if stream:
            answer = await upstream.open_stream(asked)
            deltas = [chunk["choices"][0]["delta"] async for chunk in answer if chunk["choices"]]
            assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
            assert (answer.usage, answer.finish_reason, answer.ended_properly) == (BILL, "tool_calls", True)
        else:
            reply = await upstream.complete(asked)
            assert reply.body["choices"][0]["message"]["content"] == "Hello"
            assert (reply.usage, reply.finish_reason) == (BILL, "tool_calls")
    [(path, sent)] = provider.received
    assert (path, sent["store"], sent.get("stream") or False) == ("/v1/responses", False, False)
    assert sent["model"] in ("house-codex", "gpt-4.1")


async def test_the_result_of_a_call_goes_back_with_it(upstream: Upstream) -> None:
    asked = {"id": "fc_1", "type": "function", "function": {"name": "read", "arguments": '{"path":"a"}'}}
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "fc_1", "content": "green"},
    ]
    async with CannedProvider(json_answer(response([MESSAGE]))) as provider:
        await upstream.complete(upstream.outgoing(call(provider, "openai/gpt-5.4", messages=history)))
    _, *items = provider.received[0][1]["input"]
    assert [(item["type"], item["call_id"]) for item in items] == [
        ("function_call", "fc_1"), ("function_call_output", "fc_1"),
    ]  # fmt: skip
    assert "green" in json.dumps(items[1])


async def test_what_the_route_does_not_carry_is_named_and_no_unbilled_search_is_asked_for(upstream: Upstream) -> None:
    params = {"seed": 7, "stop": ["x"], "web_search_options": {}, "temperature": 1}
    async with CannedProvider(json_answer(response([MESSAGE]))) as provider:
        outgoing = upstream.outgoing(
            call(provider, "openai/responses/gpt-4.1", params=params, extras={"top_k": 3}, search_priced=True)
        )
        await upstream.complete(outgoing)
    sent = provider.received[0][1]
    assert not {"seed", "stop", "top_k", "tools"} & sent.keys()
    assert sent["temperature"] == 1
    assert {"seed", "stop", "web_search_options", "top_k"} <= set(outgoing.left_out)


async def test_several_answers_are_refused_there(upstream: Upstream) -> None:
    async with CannedProvider(b"") as provider:
        with pytest.raises(CallRefused, match="n: expected 1 for a model"):
            upstream.outgoing(call(provider, "openai/gpt-5-codex", params={"n": 2}))


async def test_a_failed_response_is_billed_as_it_reports(upstream: Upstream) -> None:
    failed = response([], "failed") | {"error": {"code": "server_error", "message": "broke"}}
    async with CannedProvider(json_answer(failed)) as provider:
        with pytest.raises(UpstreamFault) as caught:
            await upstream.complete(upstream.outgoing(call(provider, "openai/gpt-5-codex")))
    assert caught.value.usage == BILL


@pytest.mark.parametrize("left", [{"response.output_item.done"}, set()])
async def test_a_stream_without_its_smaller_events_has_all_of_its_answer(upstream: Upstream, left: set[str]) -> None:
    """Some servers send finished items, or the finished response, alone."""
    kept = [event for event in events() if event["type"] in {"response.created", "response.completed", *left}]
    async with CannedProvider(event_answer(*kept)) as provider:
        stream = await upstream.open_stream(upstream.outgoing(call(provider, "openai/gpt-5-codex", stream=True)))
        deltas = [choice["delta"] async for chunk in stream for choice in chunk["choices"]]
        await stream.aclose()
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello"
    calls = [each["function"] for delta in deltas for each in delta.get("tool_calls") or ()]
    assert "".join(each.get("arguments") or "" for each in calls) == CALL["arguments"]
    assert stream.usage == BILL


@pytest.mark.parametrize(("code", "fault"), [("rate_limit_exceeded", ThrottledFault), ("server_error", FailedFault)])
async def test_a_stream_that_fails_at_once_costs_nothing_and_says_why(
    upstream: Upstream, code: str, fault: type[UpstreamFault]
) -> None:
    failed = response([], "failed") | {"error": {"code": code, "message": "m"}, "usage": None}
    async with CannedProvider(event_answer({"type": "response.failed", "response": failed})) as provider:
        made = upstream.outgoing(call(provider, "openai/gpt-5-codex", stream=True))
        with pytest.raises(fault) as caught:
            await upstream.open_stream(made)
    assert (type(caught.value), caught.value.dispatched) == (fault, False)


async def test_a_refusal_and_citations_are_read(upstream: Upstream) -> None:
    cited = {"type": "url_citation", "url": "https://a.test", "title": "t", "start_index": 0, "end_index": 1}
    said = MESSAGE | {"content": [{"type": "output_text", "text": "x", "annotations": [cited]}]}
    refused = MESSAGE | {"content": [{"type": "refusal", "refusal": "no"}]}
    async with CannedProvider(json_answer(response([said]))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "openai/gpt-5-codex")))
    inner = {name: value for name, value in cited.items() if name != "type"}
    assert reply.body["choices"][0]["message"]["annotations"] == [{"type": "url_citation", "url_citation": inner}]
    async with CannedProvider(json_answer(response([refused]))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "openai/gpt-5-codex")))
    assert reply.body["choices"][0]["message"]["refusal"] == "no"
    whole = [{"type": "response.completed", "response": response([refused])}]
    async with CannedProvider(event_answer(*whole)) as provider:
        stream = await upstream.open_stream(upstream.outgoing(call(provider, "openai/gpt-5-codex", stream=True)))
        deltas = [choice["delta"] async for chunk in stream for choice in chunk["choices"]]
        await stream.aclose()
    assert "".join(delta.get("content") or "" for delta in deltas) == "no"


async def test_a_stream_that_is_cut_off_is_no_answer(upstream: Upstream) -> None:
    async with CannedProvider(event_answer(*events()[:6])) as provider:
        stream = await upstream.open_stream(upstream.outgoing(call(provider, "openai/gpt-5-codex", stream=True)))
        with pytest.raises(BrokenFault):
            async for _ in stream:
                pass


def test_a_name_with_the_route_has_the_model_s_prices() -> None:
    prices = PriceMap(bundled_price_map())
    assert prices.find("openai/responses/gpt-5-mini") == prices.find("openai/gpt-5-mini") != {}
    assert prices.find("azure/responses/gpt-5-codex") == prices.find("azure/gpt-5-codex") != {}


def test_the_catalogue_knows_which_models_litellm_calls_there_for_functions() -> None:
    """At OpenAI's address; elsewhere only when an effort is asked for."""
    litellm: Any = import_litellm()
    bridged: Any = importlib.import_module("litellm.main").responses_api_bridge_check
    names = [name for name, known in litellm.model_cost.items() if known.get("litellm_provider") == "openai"]
    chats = [name for name in names if litellm.model_cost[name].get("mode") == "chat"]
    found = {
        name
        for name in chats
        if bridged(model=name, custom_llm_provider="openai", tools=TOOLS, reasoning_effort="low")[0].get("mode")
        == "responses"
    }
    assert found == {name for name in chats if calls_functions_in_own_api(name)}
    assert {"gpt-5.4", "gpt-5.4-mini"} < found


@pytest.mark.parametrize(
    ("model", "there"),
    [
        ("gpt-35-turbo", False), ("azure/gpt-35-turbo-16k", False), ("gpt-41", False), ("gpt-41-mini", False),
        ("gpt-4-0613", False), ("gpt-5", False), ("gpt-54", True), ("gpt-5.4-mini", True), ("gpt-10", True),
    ],
)  # fmt: skip
def test_azure_s_names_without_a_dot_have_the_same_version(model: str, there: bool) -> None:
    assert calls_functions_in_own_api(model) is there
