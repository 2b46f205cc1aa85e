"""Both lanes send a provider the same request: LiteLLM's own, made with its transforms or by all of it."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.providers import direct as lanes
from gateway.providers.direct import PLAIN_PROVIDERS, DirectClient
from gateway.providers.errors import BrokenFault, CallRefused
from gateway.providers.providers import Call, Upstream
from gateway.providers.responses_route import ResponsesRoute
from tests.harness.upstream import FaultUpstream, Received

ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks it up.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"q": {"type": "string", "enum": ["a", "b"]}},
            "required": ["q"],
            "additionalProperties": False,
        },
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "a"}'}}
LOOP = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "look at this"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "found"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "found, too"}]},
]
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8=", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
    }
]
CACHED = [
    {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    *HELLO,
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True},
    "limit": {"max_tokens": 7},
    "limit by the newer name": {"max_tokens": 7, "max_tokens_param": "max_completion_tokens"},
    "sampling": {"params": {"temperature": 0, "top_p": 0.9, "stop": ["x"], "seed": 3, "n": 2, "presence_penalty": 0.1}},
    "user": {"params": {"user": "ann"}},
    "logprobs": {"params": {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}}},
    "open weights": {"params": {"top_k": 5, "min_p": 0.1}, "stream": True},
    "tools": {"params": {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}, "messages": LOOP},
    "tools in a stream": {"params": {"tools": [TOOL]}, "messages": LOOP, "stream": True},
    "forced tool": {
        "params": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
    },
    "a choice without tools": {"params": {"tool_choice": "none"}},
    "functions": {"params": {"functions": [TOOL["function"]], "function_call": "auto"}},
    "schema": {"params": {"response_format": SCHEMA}},
    "json": {"params": {"response_format": {"type": "json_object"}}, "stream": True},
    "effort": {"params": {"reasoning_effort": "low"}},
    "picture": {"messages": PICTURE},
    "prompt cache": {"messages": CACHED, "params": {"prompt_cache_key": "k"}},
    "operator's headers": {"extra_headers": {"x-team": "blue"}, "options": {"organization": "org-7"}},
}
MODELS = [
    *(f"{provider}/ok" for provider in PLAIN_PROVIDERS),
    "openai/gpt-4o",
    "openai/gpt-5",
    "openai/o3-mini",
    "openrouter/anthropic/claude",
    "deepseek/deepseek-reasoner",
]
# The transports' own, and how LiteLLM introduces itself to OpenRouter.
_TRANSPORT = frozenset({"connection", "host", "content-length", "accept", "http-referer", "x-title"})


@pytest.fixture
async def taken() -> list[str]:
    return []


@pytest.fixture
async def upstream(taken: list[str]) -> AsyncIterator[Upstream]:
    upstream = Upstream(on_call=taken.append)
    await upstream.start()
    yield upstream
    await upstream.close()


async def sent(upstream: Upstream, provider: FaultUpstream, call: Call) -> Received | str:
    """The request that arrived at the provider, or that none did."""
    before = len(provider.received)
    try:
        if call.stream:
            await (await upstream.open_stream(upstream.outgoing(call))).aclose()
        else:
            await upstream.complete(upstream.outgoing(call))
    except (CallRefused, InvalidRequest):
        return "refused"
    except BrokenFault:
        pass  # asked for a tool's answer and given a text: the request is what matters here
    assert len(provider.received) == before + 1
    return provider.received[-1]


def without_no(body: dict[str, Any]) -> dict[str, Any]:
    """A body without its default: LiteLLM says `"stream": false` for some."""
    return {key: value for key, value in body.items() if (key, value) != ("stream", False)}


@pytest.mark.parametrize("model", MODELS)
async def test_both_lanes_send_the_same(
    upstream: Upstream, provider: FaultUpstream, taken: list[str], model: str
) -> None:
    carried = 0
    for name, arguments in CALLS.items():
        given = copy.deepcopy({"messages": HELLO, **arguments})
        call: dict[str, Any] = {"litellm_model": model, "api_base": provider.url, "api_key": "sk-ours", **given}
        other = await sent(upstream, provider, Call(**call, lane="litellm"))
        thin = await sent(upstream, provider, Call(**call))
        assert given == {"messages": HELLO, **arguments}, "what the caller sent is not to be changed"
        carried += taken[-1] == "thin"
        if isinstance(thin, str) or isinstance(other, str):
            assert thin == other, name
            continue
        assert thin.path == other.path, name
        assert without_no(thin.body) == without_no(other.body), name
        headers = {key: value for key, value in other.headers.items() if key not in _TRANSPORT}
        assert {key: value for key, value in thin.headers.items() if key not in _TRANSPORT} == headers, name
    assert carried >= 10


def test_each_lane_is_the_one_that_the_documentation_says() -> None:
    page = (ROOT / "docs" / "providers.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    documented = {row[1].strip().strip("`"): row[2].strip() for row in rows if row[2].strip() in ("thin", "litellm")}
    assert {name for name, lane in documented.items() if lane == "thin"} == set(PLAIN_PROVIDERS)
    litellm = importlib.import_module("litellm")
    assert DirectClient(litellm, ResponsesRoute()).plain == set(PLAIN_PROVIDERS)


async def test_what_the_thin_lane_does_not_know_goes_through_litellm(
    upstream: Upstream, provider: FaultUpstream, taken: list[str]
) -> None:
    base: dict[str, Any] = {"api_base": provider.url, "api_key": "k", "messages": HELLO}
    for call in (
        Call(litellm_model="mistral/ok", **base),
        Call(litellm_model="groq/ok", params={"response_format": {"type": "json_object"}}, **base),
        Call(litellm_model="ok", options={"custom_llm_provider": "openai"}, **base),
        Call(litellm_model="openai/ok", lane="litellm", **base),
    ):
        await sent(upstream, provider, call)
    assert taken == ["litellm"] * 4


async def test_a_forced_thin_lane_refuses_what_it_cannot_carry(upstream: Upstream, provider: FaultUpstream) -> None:
    call = Call(litellm_model="mistral/ok", api_base=provider.url, api_key="k", messages=HELLO, lane="thin")
    with pytest.raises(CallRefused, match="direct client"):
        await upstream.complete(upstream.outgoing(call))
    assert provider.bill == []


async def test_another_version_of_litellm_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lanes, "VERIFIED_LITELLM", "1.0.0")
    assert DirectClient(None, ResponsesRoute()).plain == frozenset()
    assert "is not the verified 1.0.0" in caplog.text


async def test_a_provider_whose_rehearsal_differs_takes_the_other_lane(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    litellm = importlib.import_module("litellm")
    monkeypatch.setattr(litellm.GroqChatConfig, "map_openai_params", lambda *_, **__: {"temperature": 1.0})
    monkeypatch.setattr(litellm.XAIChatConfig, "transform_request", lambda self, model, words: {})
    assert set(PLAIN_PROVIDERS) - DirectClient(litellm, ResponsesRoute()).plain == {"groq", "xai"}
    assert "groq" in caplog.text


def test_the_verified_version_is_the_pinned_one() -> None:
    assert importlib.metadata.version("litellm") == lanes.VERIFIED_LITELLM
    assert f'"litellm=={lanes.VERIFIED_LITELLM}"' in (ROOT / "pyproject.toml").read_text()
