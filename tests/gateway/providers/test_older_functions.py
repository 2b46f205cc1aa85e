"""Requests with `functions`, which tools replaced, to providers that know them and to others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince211

from gateway.dialects.assembly import Assembly
from gateway.dialects.older_functions import PARAMETERS, messages_with_tool_calls
from gateway.providers.accepted_parameters import Target
from gateway.providers.parameters import takes_effort, takes_functions
from gateway.providers.providers import Call, Upstream
from gateway.turn.wrap_up import closing_request
from tests.gateway.providers.test_provider_dialects import (
    CLAUDE_ANSWER,
    CLAUDE_BILL,
    CLAUDE_END,
    CLAUDE_START,
    CLAUDE_TEXT,
    GEMINI_USAGE,
    tool_delta,
)
from tests.gateway.providers.test_responses_route import CALL, response
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer
from tests.harness.models import chat, deployment

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::pydantic.warnings.{PydanticDeprecatedSince211.__name__}"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
PARAMS: dict[str, Any] = {"functions": [FUNCTION], "function_call": {"name": "weather"}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    {"role": "function", "name": "weather", "content": "sunny"},
]
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
CALLED = {"name": "weather", "arguments": {"city": "Paris"}}


def call(provider: CannedProvider, model: str, **more: Any) -> Call:
    base = provider.address + ("" if model.startswith("anthropic") else "/v1")
    arguments: dict[str, Any] = {"messages": HISTORY, "params": PARAMS, "max_tokens": 64, "drop_params": True}
    return Call(model, api_base=base, api_key="k", timeout_s=20.0, **arguments | more)


def read(message: dict[str, Any]) -> dict[str, Any]:
    called = message["function_call"]
    return {"name": called["name"], "arguments": json.loads(called["arguments"])}


async def test_claude_is_asked_with_tools_and_its_call_comes_back_as_a_function_call(upstream: Upstream) -> None:
    answer = CLAUDE_ANSWER | {"content": [USE, USE | {"id": "toolu_2"}], "stop_reason": "tool_use"}
    async with CannedProvider(json_answer(answer)) as provider:
        outgoing = upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5"))
        reply = await upstream.complete(outgoing)
    assert outgoing.left_out == ()
    sent = provider.received[0][1]
    assert sent["tools"][0]["name"] == "weather"
    assert sent["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    assistant, result = sent["messages"][1:]
    assert (assistant["content"][0]["name"], assistant["content"][0]["input"]) == ("weather", {"city": "Rome"})
    assert result["content"][0]["tool_use_id"] == assistant["content"][0]["id"]
    message = reply.body["choices"][0]["message"]
    assert read(message) == CALLED
    assert "tool_calls" not in message
    assert reply.finish_reason == reply.body["choices"][0]["finish_reason"] == "function_call"


async def test_claude_s_streamed_call_comes_back_as_a_function_call(upstream: Upstream) -> None:
    block = {"type": "content_block_start", "index": 0, "content_block": USE | {"input": {}}}
    parts = [tool_delta('{"city":'), tool_delta(' "Paris"}')]
    end = [CLAUDE_END[0], CLAUDE_END[1] | {"delta": {"stop_reason": "tool_use"}}, CLAUDE_END[2]]
    second = {"index": 1, "content_block": USE | {"id": "toolu_2", "input": {}}}
    more = [CLAUDE_END[0], block | second, tool_delta('{"city": "Rome"}') | {"index": 1}]
    async with CannedProvider(event_answer(CLAUDE_START, block, *parts, *more, *end)) as provider:
        stream = await upstream.open_stream(upstream.outgoing(call(provider, "anthropic/claude-sonnet-4-5")))
        whole = Assembly()
        async for chunk in stream:
            assert all("tool_calls" not in choice["delta"] for choice in chunk["choices"])
            whole.add(chunk)
    assert read(whole.body()["choices"][0]["message"]) == CALLED
    assert stream.finish_reason == "function_call"
    assert stream.usage == CLAUDE_BILL  # of both calls, though the form has room for one


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("closing", [False, True])
async def test_a_history_of_function_calls_is_one_of_tools_to_claude_whatever_the_turn_offers(
    upstream: Upstream, closing: bool, stream: bool
) -> None:
    offered = PARAMS if closing else {}
    asked = closing_request(chat(messages=[*HISTORY, HISTORY[0]], **offered))
    answer = event_answer(CLAUDE_START, *CLAUDE_TEXT, *CLAUDE_END) if stream else json_answer(CLAUDE_ANSWER)
    async with CannedProvider(answer) as provider:
        wanted = call(provider, "anthropic/claude-sonnet-4-5", messages=asked.messages, params=asked.params)
        outgoing = upstream.outgoing(wanted)
        await (upstream.open_stream if stream else upstream.complete)(outgoing)
    sent = provider.received[0][1]
    assistant, result = sent["messages"][1:3]
    assert result["content"][0]["tool_use_id"] == assistant["content"][0]["id"]
    assert len(sent["tools"]) == 1
    assert (sent["tools"][0]["name"] == "weather", sent.get("tool_choice")) == (
        (True, {"type": "none"}) if closing else (False, None)
    )
    assert outgoing.left_out == ()


def test_results_belong_to_the_newest_call_of_their_name() -> None:
    other = {"role": "assistant", "content": None, "function_call": {"name": "time", "arguments": "{}"}}
    unnamed = {"role": "function", "content": "noon"}
    history = [*HISTORY, *HISTORY[1:], other, HISTORY[0], unnamed]
    made = messages_with_tool_calls(history)
    calls = [message["tool_calls"][0]["id"] for message in made if message.get("tool_calls")]
    assert len(set(calls)) == 3
    assert [message["tool_call_id"] for message in made if message["role"] == "tool"] == calls


async def test_tools_beside_a_history_of_function_calls_come_back_as_tool_calls(upstream: Upstream) -> None:
    params = {"tools": [{"type": "function", "function": FUNCTION}]}
    answer = CLAUDE_ANSWER | {"content": [USE], "stop_reason": "tool_use"}
    async with CannedProvider(json_answer(answer)) as provider:
        asked = call(provider, "anthropic/claude-sonnet-4-5", params=params)
        reply = await upstream.complete(upstream.outgoing(asked))
    assert reply.body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert reply.finish_reason == "tool_calls"


def test_no_effort_is_added_where_claude_cannot_think() -> None:
    """It refuses to think when a tool is forced, and after a call whose thoughts are not in the history."""
    claude = deployment(litellm_model="anthropic/claude-sonnet-4-5")
    assert takes_effort(claude, chat(functions=[FUNCTION], function_call="auto"))
    assert not takes_effort(claude, chat(functions=[FUNCTION], function_call={"name": "weather"}))
    assert not takes_effort(claude, chat(messages=HISTORY, functions=[FUNCTION]))


async def test_gemini_which_takes_functions_without_a_choice_is_asked_with_tools(upstream: Upstream) -> None:
    """LiteLLM lists `functions` for it, but not `function_call`, and gives back tool calls."""
    part = {"functionCall": {"name": "weather", "args": {"city": "Paris"}}}
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
    async with CannedProvider(json_answer({"candidates": [candidate], "usageMetadata": GEMINI_USAGE})) as provider:
        outgoing = upstream.outgoing(call(provider, "gemini/gemini-2.5-pro"))
        reply = await upstream.complete(outgoing)
    choice = provider.received[0][1]["toolConfig"]["functionCallingConfig"]
    assert choice == {"mode": "ANY", "allowed_function_names": ["weather"]}
    assert outgoing.left_out == ()
    assert read(reply.body["choices"][0]["message"]) == CALLED
    assert reply.finish_reason == "function_call"


async def test_a_model_of_openai_s_other_route_is_asked_with_tools(upstream: Upstream) -> None:
    async with CannedProvider(json_answer(response([CALL]))) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, "openai/gpt-5-codex")))
    assert provider.received[0][0] == "/v1/responses"
    assert provider.received[0][1]["tools"][0]["name"] == "weather"
    assert reply.body["choices"][0]["message"]["function_call"]["name"] == "read"


@pytest.mark.parametrize("model", ["openai/qwen", "hosted_vllm/qwen", "openai/gpt-4o", "groq/qwen", "openrouter/a/b"])
@pytest.mark.parametrize("stream", [False, True])
async def test_servers_that_may_ignore_functions_are_asked_with_tools(
    upstream: Upstream, model: str, stream: bool
) -> None:
    """vLLM, llama.cpp and Ollama read tools alone; a server with OpenAI's names is not OpenAI's."""
    made = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    told = {"role": "assistant", "content": None, "tool_calls": [made | ({"index": 0} if stream else {})]}
    choice = {"index": 0, "delta" if stream else "message": told, "finish_reason": "tool_calls"}
    async with CannedProvider((event_answer if stream else json_answer)({"choices": [choice]})) as provider:
        outgoing = upstream.outgoing(call(provider, model))
        if stream:
            whole, opened = Assembly(), await upstream.open_stream(outgoing)
            async for chunk in opened:
                whole.add(chunk)
            answer, finish = whole.body(), opened.finish_reason
        else:
            reply = await upstream.complete(outgoing)
            answer, finish = reply.body, reply.finish_reason
    sent = provider.received[0][1]
    assert "functions" not in sent
    assert "function_call" not in sent
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "tool"]
    assert outgoing.left_out == ()
    assert read(answer["choices"][0]["message"]) == CALLED
    assert finish == "function_call"


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("azure/gpt-4o", {"api_version": "2024-02-01"}),
        ("openai/functionary", {"allowed_params": frozenset({"functions"})}),
    ],
)
async def test_who_surely_takes_functions_gets_them_as_they_are(
    upstream: Upstream, model: str, more: dict[str, Any]
) -> None:
    message = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "function_call"}]}
    version = more.pop("api_version", None)
    more |= {"options": {"api_version": version}} if version else {}
    async with CannedProvider(json_answer(answer)) as provider:
        reply = await upstream.complete(upstream.outgoing(call(provider, model, **more)))
    sent = provider.received[0][1]
    assert (sent["functions"], sent["messages"]) == ([FUNCTION], HISTORY)
    assert reply.body["choices"][0]["message"]["function_call"]["name"] == "weather"


@pytest.mark.parametrize(
    ("address", "takes"), [(None, True), ("https://eu.api.openai.com/v1", True), ("http://127.0.0.1:8000/v1", False)]
)
def test_openai_s_own_servers_take_functions(address: str | None, takes: bool) -> None:
    target = Target("openai", True, PARAMETERS)
    assert takes_functions(Call("openai/gpt-4o", HISTORY, api_base=address), target) is takes
