"""Parameters go to the providers that know them, in the form these take; what is left out is named."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.errors import http_status
from gateway.providers.accepted_parameters import Target, target_of
from gateway.providers.errors import CallRefused, MessagesRefused, UpstreamFault
from gateway.providers.litellm_setup import import_litellm
from gateway.providers.parameters import header_names, shaped
from gateway.providers.providers import Call, Upstream
from gateway.turn.fallback import cause_of
from tests.gateway.providers.test_provider_dialects import CLAUDE_ANSWER, GEMINI_USAGE, gemini
from tests.harness.fixed_answers import CannedProvider, event_answer, json_answer

HELLO = [{"role": "user", "content": "hello"}]
OPENAI_ANSWER = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
}  # fmt: skip
OLLAMA_ANSWER = {
    "model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "hi"},
    "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 4,
}  # fmt: skip
ANSWERS: dict[str, Any] = {
    "anthropic": CLAUDE_ANSWER, "gemini": gemini("x", "STOP", GEMINI_USAGE), "ollama_chat": OLLAMA_ANSWER,
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
ONE_TOOL = {"type": "function", "function": {"name": "f"}}
COMPATIBLE = Target("openai_compatible", True, frozenset({"temperature", "tools", "n"}))


async def sent(upstream: Upstream, model: str, **more: Any) -> tuple[dict[str, Any], set[str]]:
    """What the provider of `model` was sent, and the names of what it was not."""
    provider = model.partition("/")[0]
    async with CannedProvider(json_answer(ANSWERS.get(provider, OPENAI_ANSWER))) as canned:
        base = canned.address + ("/v1beta" if provider == "gemini" else "")
        given: dict[str, Any] = {"messages": HELLO, "max_tokens": 4000, "drop_params": True} | more
        call = Call(litellm_model=model, api_base=base, api_key="k", timeout_s=20.0, **given)
        outgoing = upstream.outgoing(call)
        await upstream.complete(outgoing)
    return canned.received[0][1], set(outgoing.left_out)


@pytest.mark.parametrize("model", ["openai/qwen", "hosted_vllm/qwen"])
async def test_servers_of_open_models_are_sent_their_switches(upstream: Upstream, model: str) -> None:
    extras = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"x": 1}, "guided_regex": "a+",
        "guided_json": {"type": "object"}, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [1],
        "skip_special_tokens": False, "include_reasoning": True, "reasoning": {"effort": "low"}, "grammar": "g",
    }  # fmt: skip
    body, left_out = await sent(upstream, model, extras=extras)
    assert extras.items() <= body.items()
    assert left_out == set()


OPEN_FORMATS = [
    {"type": "grammar", "grammar": 'root ::= "a"'}, {"type": "regex", "pattern": "a+"},
    {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]},
    {"type": "structural_tag", "format": {"type": "any_text"}},
    {"type": "json", "value": {"type": "object"}},
]  # fmt: skip


@pytest.mark.parametrize("wanted", OPEN_FORMATS)
@pytest.mark.parametrize("model", ["openai/qwen", "hosted_vllm/qwen", "fireworks_ai/qwen", "together_ai/qwen"])
async def test_servers_of_open_models_are_sent_their_formats(
    upstream: Upstream, model: str, wanted: dict[str, Any]
) -> None:
    body, left_out = await sent(upstream, model, params={"response_format": wanted})
    assert (body["response_format"], left_out) == (wanted, set())


@pytest.mark.parametrize("wanted", OPEN_FORMATS)
@pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash"])
async def test_a_format_of_open_models_is_refused_elsewhere(
    upstream: Upstream, model: str, wanted: dict[str, Any]
) -> None:
    error = (await refusal(upstream, model, params={"response_format": wanted}, drop_params=True)).answer()
    assert (error.param, http_status(error)) == ("response_format", 400)
    assert wanted["type"] in error.message


async def test_thinking_is_switched_off_where_vllm_looks_for_it(upstream: Upstream) -> None:
    extras = {"enable_thinking": False, "chat_template_kwargs": {"x": 1}}
    body, _ = await sent(upstream, "hosted_vllm/qwen", extras=extras)
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "x": 1}


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/gpt-5"])
async def test_openai_is_sent_no_parameter_of_others(upstream: Upstream, model: str) -> None:
    extras = {"top_k": 5, "thinking": {"type": "enabled"}, "provider": {"order": ["a"]}, "unheard_of": 1}
    body, left_out = await sent(upstream, model, extras=extras)
    assert not extras.keys() & body.keys()
    assert left_out == extras.keys()


async def test_anthropic_takes_top_k_beside_the_messages(upstream: Upstream) -> None:
    body, left_out = await sent(upstream, "anthropic/claude-sonnet-4-5", extras={"top_k": 5, "min_p": 0.1})
    assert body["top_k"] == 5
    assert "extra_body" not in body
    assert "min_p" not in body
    assert left_out == {"min_p"}


async def test_gemini_takes_top_k_among_its_generation_settings(upstream: Upstream) -> None:
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    body, left_out = await sent(upstream, "gemini/gemini-2.5-pro", extras={"top_k": 5, "safety_settings": settings})
    assert body["generationConfig"]["top_k"] == 5
    assert body["safetySettings"] == settings
    assert left_out == set()


async def test_ollama_takes_its_options_but_for_the_length_of_the_answer(upstream: Upstream) -> None:
    extras = {"options": {"mirostat": 1, "num_predict": 9}, "num_ctx": 4096, "keep_alive": "5m", "min_p": 0.1}
    body, left_out = await sent(upstream, "ollama_chat/qwen", extras=extras)
    assert body["options"] == {"num_predict": 4000, "mirostat": 1, "num_ctx": 4096, "min_p": 0.1}
    assert body["keep_alive"] == "5m"
    assert left_out == set()


@pytest.mark.parametrize(
    ("model", "extras"),
    [
        ("ollama_chat/qwen", {"think": "low", "format": {"type": "object", "properties": {"a": {"type": "string"}}}}),
        ("ollama_chat/qwen", {"think": False, "format": "json"}),
        ("zai/glm-4.6", {"do_sample": False, "tool_stream": True}),
        (
            "perplexity/sonar",
            {"search_mode": "academic", "search_domain_filter": ["a.example", "-b.example"], "return_images": True,
             "search_recency_filter": "week", "search_language_filter": ["en"], "search_after_date_filter": "3/1/2026",
             "return_related_questions": True, "disable_search": True, "language_preference": "de"},
        ),
        ("cerebras/zai-glm-4.7", {"disable_reasoning": True, "clear_thinking": False}),
        ("mistral/magistral-small-latest", {"prompt_mode": "reasoning"}),
        ("fireworks_ai/m", {"context_length_exceeded_behavior": "error", "prompt_truncate_len": 100}),
        ("hosted_vllm/qwen", {"return_token_ids": True}),
    ],
)  # fmt: skip
async def test_parameters_of_one_provider_reach_it_alone(
    upstream: Upstream, model: str, extras: dict[str, Any]
) -> None:
    body, left_out = await sent(upstream, model, extras=extras)
    assert extras.items() <= body.items()
    assert left_out == set()
    elsewhere, left_out = await sent(upstream, "groq/llama-3.3-70b-versatile", extras=extras)
    assert not extras.keys() & elsewhere.keys()
    assert left_out == extras.keys()


@pytest.mark.parametrize(("model", "takes"), [("openrouter/a/b", True), ("openai/qwen", False), ("groq/q", False)])
async def test_openrouter_alone_is_told_which_provider_to_take(upstream: Upstream, model: str, takes: bool) -> None:
    extras = {"provider": {"order": ["a"], "api_base": "http://x"}, "transforms": ["middle-out"]}
    body, left_out = await sent(upstream, model, extras=extras)
    assert body.get("provider") == ({"order": ["a"]} if takes else None)
    assert left_out == (set() if takes else {"provider", "transforms"})


async def test_parameters_of_the_openai_reference_reach_openai(upstream: Upstream) -> None:
    params: dict[str, Any] = {
        "metadata": {"team": "blue"}, "store": True, "prediction": {"type": "content", "content": "x"},
        "web_search_options": {"search_context_size": "low"}, "prompt_cache_key": "k", "user": "u",
        "prompt_cache_retention": "24h", "safety_identifier": "s", "service_tier": "default",
    }  # fmt: skip
    body, left_out = await sent(upstream, "openai/gpt-4o", params=params, search_priced=True)
    assert params.items() <= body.items()
    assert left_out == set()


async def test_a_session_s_cache_key_goes_to_openai_where_the_caller_has_none(upstream: Upstream) -> None:
    allowed: dict[str, Any] = {"cache_key": "of-the-session", "allowed_params": frozenset({"prompt_cache_key"})}
    body, left_out = await sent(upstream, "openai/gpt-4o", **allowed)
    assert (body["prompt_cache_key"], left_out) == ("of-the-session", set())
    own, _ = await sent(upstream, "openai/gpt-4o", **allowed, params={"prompt_cache_key": "own"})
    assert own["prompt_cache_key"] == "own"
    # A server with the name of one of OpenAI's models may be anybody's.
    for model in ("openai/gpt-4o", "openai/qwen", "hosted_vllm/qwen", "anthropic/claude-sonnet-4-5"):
        body, left_out = await sent(upstream, model, cache_key="of-the-session")
        assert ("prompt_cache_key" in body, left_out) == (False, set()), model


@pytest.mark.parametrize(
    ("provider", "api_base", "version", "keyed"),
    [
        ("openai", None, None, True),
        ("openai", "https://api.openai.com/v1", None, True),
        ("openai", "https://eu.api.openai.com/v1", None, True),
        ("openai", "https://notopenai.com/v1", None, False),
        ("openai", "https://openai.com.example/v1", None, False),
        ("azure", "https://a.openai.azure.com", "v1", True),
        ("azure", "https://a.openai.azure.com", "2024-10-21", False),
        ("azure", "https://a.openai.azure.com", None, False),
    ],
)
def test_a_session_s_cache_key_goes_by_the_address(
    provider: str, api_base: str | None, version: str | None, keyed: bool
) -> None:
    options = {} if version is None else {"api_version": version}
    call = Call(f"{provider}/gpt-4o", HELLO, api_base=api_base, cache_key="k", options=options)
    target = target_of(import_litellm(), "gpt-4o", provider, api_base)
    assert shaped(call, target).arguments.get("prompt_cache_key") == ("k" if keyed else None)


async def test_moonshot_takes_a_cache_key_and_a_label_as_openai_does(upstream: Upstream) -> None:
    params = {"prompt_cache_key": "k", "safety_identifier": "s"}
    body, left_out = await sent(upstream, "moonshot/kimi-k2.5", params=params)
    assert params.items() <= body.items()
    assert left_out == set()


async def test_labels_go_to_openai_with_an_answer_that_it_shall_store_alone(upstream: Upstream) -> None:
    body, left_out = await sent(upstream, "openai/gpt-4o", params={"metadata": {"session_id": "s"}})
    assert "metadata" not in body
    assert left_out == {"metadata"}


@pytest.mark.parametrize("tier", ["flex", "priority", "scale"])
async def test_a_tier_with_a_price_of_its_own_is_left_out(upstream: Upstream, tier: str) -> None:
    body, left_out = await sent(upstream, "openai/gpt-4o", params={"service_tier": tier})
    assert "service_tier" not in body
    assert left_out == {"service_tier"}


async def test_a_tier_with_a_known_price_is_sent(upstream: Upstream) -> None:
    priced = {"params": {"service_tier": "priority"}, "service_tiers": ("flex", "priority")}
    body, left_out = await sent(upstream, "openai/gpt-4o", **priced)
    assert body["service_tier"] == "priority"
    assert left_out == set()


async def test_gemini_is_not_asked_for_its_priority_tier_by_auto(upstream: Upstream) -> None:
    tiers: dict[str, Any] = {"service_tiers": ("flex", "priority")}
    body, left_out = await sent(upstream, "gemini/gemini-2.5-pro", params={"service_tier": "auto"}, **tiers)
    assert ("serviceTier" in body, left_out) == (False, {"service_tier"})
    body, left_out = await sent(upstream, "gemini/gemini-2.5-pro", params={"service_tier": "flex"}, **tiers)
    assert (body["serviceTier"], left_out) == ("flex", set())


async def test_a_tier_without_a_price_gives_way_to_the_operator_s(upstream: Upstream) -> None:
    call: dict[str, Any] = {"params": {"service_tier": "scale"}, "defaults": {"service_tier": "default"}}
    body, left_out = await sent(upstream, "openai/gpt-4o", **call)
    assert (body["service_tier"], left_out) == ("default", {"service_tier"})
    body, left_out = await sent(upstream, "openai/gpt-4o", **call, dropped_params=frozenset({"service_tier"}))
    assert ("service_tier" in body, left_out) == (False, {"service_tier"})


@pytest.mark.parametrize(
    ("asked", "most"),
    [({}, 5), ({"search_context_size": "low"}, 1), ({"search_context_size": "high"}, 10)],
)
async def test_claude_is_told_how_often_it_may_search(upstream: Upstream, asked: dict[str, Any], most: int) -> None:
    params = {"web_search_options": asked}
    body, left_out = await sent(upstream, "anthropic/claude-sonnet-4-5", params=params, search_priced=True)
    [tool] = body["tools"]
    assert (tool["name"], tool["max_uses"], left_out) == ("web_search", most, set())


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("openai/gpt-4o", {"params": {"web_search_options": {}}}),
        ("xai/grok-4", {"extras": {"search_parameters": {"mode": "auto"}}}),
        ("openrouter/a/b", {"extras": {"plugins": [{"id": "web"}]}}),
    ],
)
async def test_a_search_is_asked_for_only_where_its_price_is_known(
    upstream: Upstream, model: str, asked: dict[str, Any]
) -> None:
    [name] = [name for names in asked.values() for name in names]
    body, left_out = await sent(upstream, model, **asked)
    assert (name in body, left_out) == (False, {name})
    body, left_out = await sent(upstream, model, **asked, search_priced=True)
    assert (name in body, left_out) == (True, set())


async def test_a_plugin_that_does_not_search_is_sent_without_a_price(upstream: Upstream) -> None:
    body, left_out = await sent(upstream, "openrouter/a/b", extras={"plugins": [{"id": "file-parser"}]})
    assert (body["plugins"], left_out) == ([{"id": "file-parser"}], set())


async def test_a_temperature_that_litellm_leaves_out_is_named(upstream: Upstream) -> None:
    body, left_out = await sent(upstream, "openai/gpt-5", params={"temperature": 0.5})
    assert "temperature" not in body
    assert left_out == {"temperature"}


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/qwen", "openai/gpt-5"])
async def test_allowed_tools_reach_openai_as_they_are(upstream: Upstream, model: str) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    }
    body, left_out = await sent(upstream, model, params={"tools": TOOLS, "tool_choice": choice})
    assert body["tool_choice"] == choice
    assert [tool["function"]["name"] for tool in body["tools"]] == ["f", "g"]
    assert left_out == set()


async def test_elsewhere_the_allowed_tools_are_the_tools(upstream: Upstream) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]},
    }
    body, _ = await sent(upstream, "hosted_vllm/q", params={"tools": TOOLS, "tool_choice": choice})
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["g"]


@pytest.mark.parametrize("lane", ["auto", "litellm"])
async def test_history_goes_back_up_as_it_was_handed_out(upstream: Upstream, lane: str) -> None:
    call = {
        "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "S"}},
    }  # fmt: skip
    history: list[dict[str, Any]] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "assistant", "content": None, "reasoning_content": "t"},
        {"role": "assistant", "audio": {"id": "a1"}},
        {"role": "assistant", "content": "x", "reasoning_details": [{"type": "reasoning.encrypted", "data": "E"}]},
        {"role": "assistant", "content": "y", "reasoning": "r", "annotations": []},
        {"role": "user", "content": "go on"},
    ]
    body, _ = await sent(upstream, "openai/qwen", messages=history, lane=lane)
    assert body["messages"] == history


async def test_a_signature_of_gemini_s_openai_like_api_reaches_its_own_one(upstream: Upstream) -> None:
    call = {
        "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "S"}},
    }  # fmt: skip
    history = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
    ]
    body, _ = await sent(upstream, "gemini/gemini-2.5-pro", messages=history)
    assert body["contents"][1]["parts"][0]["thoughtSignature"] == "S"


async def test_thinking_blocks_among_the_parts_go_to_claude_and_nowhere_else(upstream: Upstream) -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "S"}, {"type": "text", "text": "four"}]
    history = [*HELLO, {"role": "assistant", "content": blocks}, {"role": "user", "content": "why?"}]
    body, left_out = await sent(upstream, "openai/qwen", messages=history)
    assert body["messages"][1]["content"] == blocks[1:]
    assert left_out == {"messages[].content[].thinking"}
    body, left_out = await sent(upstream, "anthropic/claude-sonnet-4-5", messages=history)
    assert body["messages"][1]["content"][0] == blocks[0]
    assert left_out == set()


def test_the_operator_s_defaults_stand_behind_the_caller_and_the_fixed_body_before_both() -> None:
    call = Call(
        "openai/q", HELLO, params={"temperature": 0.1}, extras={"top_k": 3}, drop_params=True,
        defaults={"temperature": 0.9, "top_k": 9, "min_p": 0.2, "extra_body": {"top_k": 1, "max_tokens": 10**6}},
    )  # fmt: skip
    made = shaped(call, COMPATIBLE)
    assert made.arguments == {"temperature": 0.1, "extra_body": {"min_p": 0.2, "top_k": 1}}
    assert made.dropped == ()


def test_the_operator_s_lists_let_a_parameter_through_or_keep_it_back() -> None:
    call = Call("openai/q", HELLO, params={"temperature": 0.1}, extras={"unheard_of": 1, "api_base": "http://x"})
    assert shaped(call, COMPATIBLE).dropped == ("unheard_of", "api_base")
    listed = Call(
        "openai/q", HELLO, params=call.params, extras=call.extras, allowed_params=frozenset({"unheard_of", "api_base"}),
        dropped_params=frozenset({"temperature"}),
    )  # fmt: skip
    made = shaped(listed, COMPATIBLE)
    assert made.arguments == {"extra_body": {"unheard_of": 1}}
    assert made.dropped == ("temperature", "api_base")


def test_where_nothing_is_to_be_left_out_the_parameter_is_refused_by_name() -> None:
    call = Call("openai/q", HELLO, params={"seed": 1}, drop_params=False)
    with pytest.raises(CallRefused, match="seed"):
        shaped(call, COMPATIBLE)


def test_thinking_fits_into_the_answer_that_the_money_allows() -> None:
    thinking = {"type": "enabled", "budget_tokens": 8000}
    call = Call("openai/q", HELLO, extras={"thinking": thinking}, max_tokens=4000)
    assert shaped(call, COMPATIBLE).arguments["extra_body"]["thinking"]["budget_tokens"] == 2000
    small = Call("openai/q", HELLO, extras={"thinking": thinking}, max_tokens=500)
    assert shaped(small, COMPATIBLE).dropped == ("thinking",)


def test_names_of_a_caller_s_are_told_only_where_a_header_can_hold_them() -> None:
    assert header_names(("top_k", "top_k", "a\r\nb", "é")) == ("top_k", "(unprintable)")
    assert len(header_names(tuple(f"n{i}" for i in range(100)))) == 41


@pytest.mark.parametrize(
    ("model", "asked", "reached"),
    [
        ("openai/gpt-5-mini", "xhigh", "high"), ("openai/gpt-5-mini", "max", "high"),
        ("openai/gpt-5.2", "max", "xhigh"), ("openai/gpt-5.2", "minimal", "low"),
        ("openai/gpt-5.2", "xhigh", "xhigh"), ("hosted_vllm/qwen", "max", "max"),
    ],
)  # fmt: skip
async def test_an_effort_that_a_model_does_not_take_is_the_nearest_one(
    upstream: Upstream, model: str, asked: str, reached: str
) -> None:
    body, left_out = await sent(upstream, model, params={"reasoning_effort": asked})
    assert (body["reasoning_effort"], left_out) == (reached, set())


async def test_an_operator_s_effort_may_be_an_object(upstream: Upstream) -> None:
    effort = {"effort": "high", "summary": "auto"}
    body, _ = await sent(upstream, "openai/gpt-5", defaults={"reasoning_effort": effort})
    assert body["reasoning_effort"] == "high"


async def test_the_other_lane_sends_what_a_failed_try_of_the_direct_one_left_alone(upstream: Upstream) -> None:
    """LiteLLM's transform takes parameters out of its arguments before it refuses one."""
    call = Call(
        litellm_model="openai/gpt-5.1", messages=HELLO, api_base="http://127.0.0.1:9", api_key="k", max_tokens=40,
        params={"temperature": 0.5, "reasoning_effort": "low"}, defaults={"extra_body": {"custom": 1}},
    )  # fmt: skip
    outgoing = upstream.outgoing(call)
    before = copy.deepcopy(outgoing.arguments)
    upstream._prepared(outgoing)
    assert outgoing.arguments == before
    assert outgoing.arguments["temperature"] == 0.5


@pytest.mark.parametrize("effort", ["xhigh", "max"])
async def test_providers_with_words_of_their_own_think_as_much_as_they_can(upstream: Upstream, effort: str) -> None:
    params = {"reasoning_effort": effort}
    high, _ = await sent(upstream, "gemini/gemini-2.5-flash", params={"reasoning_effort": "high"})
    body, _ = await sent(upstream, "gemini/gemini-2.5-flash", params=params)
    assert body["generationConfig"] == high["generationConfig"]
    body, _ = await sent(upstream, "ollama_chat/qwen3", params=params)
    assert body["think"] is True


async def refusal(upstream: Upstream, model: str, **more: Any) -> CallRefused:
    """The fault of a call that was refused without being sent."""
    call = Call(litellm_model=model, api_base="http://127.0.0.1:9", api_key="k", **{"messages": HELLO} | more)
    with pytest.raises(CallRefused) as refused:
        await upstream.complete(upstream.outgoing(call))
    return refused.value


def called(arguments: str) -> list[dict[str, Any]]:
    """A conversation with the call of a tool and its result."""
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [*HELLO, answer, {"role": "tool", "tool_call_id": "t", "content": "r"}]


async def test_messages_that_a_provider_s_form_cannot_say_are_refused_unsent(upstream: Upstream) -> None:
    fault = await refusal(
        upstream, "gemini/gemini-2.5-flash", messages=[{"role": "tool", "tool_call_id": "t", "content": "r"}]
    )
    assert isinstance(fault, MessagesRefused)
    assert "cannot be written in the form of the model's provider" in fault.message
    assert cause_of(fault) == "failure"  # another provider may have a form for them


@pytest.mark.parametrize("model", ["gemini/gemini-2.5-flash", "anthropic/claude-sonnet-4-5", "ollama_chat/qwen3"])
async def test_arguments_that_were_cut_off_are_refused_by_their_place(upstream: Upstream, model: str) -> None:
    fault = await refusal(upstream, model, messages=called('{"a": '))
    assert isinstance(fault, MessagesRefused)
    assert fault.answer().param == "messages[1].tool_calls[0].function.arguments"


async def test_a_call_without_arguments_is_one_in_every_dialect(upstream: Upstream) -> None:
    body, _ = await sent(upstream, "ollama_chat/qwen3", messages=called(""))
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == {}
    body, _ = await sent(upstream, "anthropic/claude-sonnet-4-5", messages=called(""))
    assert body["messages"][1]["content"][0]["input"] == {}
    body, _ = await sent(upstream, "openai/qwen", messages=called(""))
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == ""


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_instructions_alone_are_claude_s_first_turn(upstream: Upstream, role: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": role, "content": "Greet me."}]
    body, _ = await sent(upstream, "anthropic/claude-sonnet-4-5", messages=messages)
    assert [block["text"] for block in body["system"]] == ["Be brief."]
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Greet me."}]}]


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("cohere/command-r-plus", "response_format", {"type": "json_object"}),
        ("text-completion-openai/gpt-3.5-turbo-instruct", "tools", TOOLS),
        ("anthropic/claude-sonnet-4-5", "reasoning_effort", "weird"),
        ("gemini/gemini-2.5-flash", "reasoning_effort", "weird"), ("ollama_chat/qwen3", "reasoning_effort", "weird"),
    ],
)  # fmt: skip
async def test_what_a_provider_does_not_know_is_refused_by_its_name(
    upstream: Upstream, model: str, name: str, value: Any
) -> None:
    fault = await refusal(upstream, model, params={name: value}, drop_params=True)
    error = fault.answer()
    assert (error.param, http_status(error)) == (name, 400)
    assert error.message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("model", "sent_as"),
    [("openai/gpt-5", {"reasoning_effort": "high"}), ("openrouter/x", {"reasoning": {"effort": "high"}})],
)
async def test_an_effort_in_openrouter_s_form_reaches_providers_in_theirs(
    upstream: Upstream, model: str, sent_as: dict[str, Any]
) -> None:
    reasoning = {"effort": "high"}
    body, left_out = await sent(upstream, model, extras={"reasoning": reasoning})
    assert {name: body[name] for name in ("reasoning_effort", "reasoning") if name in body} == sent_as
    assert left_out == set()
    if model == "openai/gpt-5":
        body, left_out = await sent(upstream, model, extras={"reasoning": {"effort": "high", "exclude": True}})
        assert (body["reasoning_effort"], left_out) == ("high", {"reasoning"})
        body, left_out = await sent(
            upstream, model, params={"reasoning_effort": "low"}, extras={"reasoning": reasoning}
        )
        assert (body["reasoning_effort"], left_out) == ("low", {"reasoning"})


REFUSALS: list[list[dict[str, Any]]] = [
    [{"role": "assistant", "content": None, "refusal": "I will not."}],
    [{"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]}],
]


@pytest.mark.parametrize("said", REFUSALS)
async def test_what_a_model_refused_is_told_to_every_provider(upstream: Upstream, said: list[dict[str, Any]]) -> None:
    messages = [*HELLO, *said, *HELLO]
    for model in ("anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "hosted_vllm/qwen", "openai/qwen"):
        body, _ = await sent(upstream, model, messages=messages)
        turns = body["contents"] if model.startswith("gemini") else body["messages"]
        assert len(turns) == 3
        assert "I will not." in str(turns[1])
        assert "refusal" not in str(turns[1])
    body, _ = await sent(upstream, "openai/gpt-4o", messages=messages)
    assert body["messages"] == messages


@pytest.mark.parametrize("model", ["openai/gpt-4o", "azure/gpt-4o"])
async def test_a_choice_of_a_custom_tool_reaches_openai_s_models_in_every_lane(upstream: Upstream, model: str) -> None:
    params = {"tools": [{"type": "custom", "custom": {"name": "c"}}]}
    choice = {"type": "custom", "custom": {"name": "c"}}
    body, _ = await sent(
        upstream, model, params=params | {"tool_choice": choice}, lane="litellm", options={"api_version": "2024-10-21"}
    )
    assert body["tool_choice"] == choice


async def test_a_json_answer_that_litellm_cannot_read_again_is_read_here(upstream: Upstream) -> None:
    """Its code for Groq expects a field that other servers of the same form leave out."""
    async with CannedProvider(json_answer(OPENAI_ANSWER)) as canned:
        wanted = Call(
            "groq/llama-3.3-70b-versatile", HELLO, api_base=canned.address + "/v1", api_key="k", timeout_s=20.0,
            params={"response_format": {"type": "json_object"}},
        )  # fmt: skip
        reply = await upstream.complete(upstream.outgoing(wanted))
    assert reply.body["choices"][0]["message"]["content"] == "Hello"


async def test_a_tool_that_moonshot_is_only_asked_for_in_words_is_named(upstream: Upstream) -> None:
    body, left_out = await sent(upstream, "moonshot/m", params={"tools": TOOLS, "tool_choice": "required"})
    assert ("tool_choice" in body, left_out) == (False, {"tool_choice"})


@pytest.mark.parametrize(
    ("model", "thinking"),
    [("hosted_vllm/q", {"type": "disabled"}), ("deepseek/deepseek-chat", {"type": "adaptive"})],
)
async def test_thinking_that_litellm_leaves_out_is_named(
    upstream: Upstream, model: str, thinking: dict[str, Any]
) -> None:
    assert (await sent(upstream, model, extras={"thinking": thinking}))[1] == {"thinking"}


@pytest.mark.parametrize("lane", ["auto", "litellm"])
async def test_openai_alone_is_told_not_to_obfuscate_a_stream(upstream: Upstream, lane: str) -> None:
    options = {"include_obfuscation": False}
    for model, told, lost in (
        ("openai/gpt-4o", {**options, "include_usage": True}, ()),
        ("openai/qwen", {"include_usage": True}, ("stream_options.include_obfuscation",)),
    ):
        ended = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
        async with CannedProvider(event_answer(ended)) as canned:
            call = Call(
                model, HELLO, api_base=canned.address, api_key="k", timeout_s=20.0, stream=True, drop_params=True,
                extras={"stream_options": options}, lane=lane,
            )  # fmt: skip
            outgoing = upstream.outgoing(call)
            await (await upstream.open_stream(outgoing)).aclose()
        assert (canned.received[0][1]["stream_options"], outgoing.left_out) == (told, lost)


VIDEO = "data:video/mp4;base64," + "AAAAIGZ0eXBpc29tAAACAGlzb21pc28y"


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("openai/qwen", {"type": "video_url", "video_url": {"url": VIDEO}}),
        ("openrouter/google/gemini", {"type": "video_url", "video_url": {"url": VIDEO}}),
        ("hosted_vllm/qwen", {"type": "video_url", "video_url": {"url": VIDEO}}),
        ("gemini/gemini-2.5-flash", {"inline_data": {"mime_type": "video/mp4", "data": VIDEO.partition(",")[2]}}),
    ],
)
async def test_a_video_reaches_providers_that_have_a_form_for_it(
    upstream: Upstream, model: str, shown: dict[str, Any]
) -> None:
    part = {"type": "video_url", "video_url": {"url": VIDEO}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}]
    body, _ = await sent(upstream, model, messages=messages)
    [message] = body.get("messages") or body["contents"]
    assert (message.get("content") or message["parts"])[1] == shown


PDF = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjcK"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRiQAAABXQVZF", "format": "wav"}}


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("deepseek/deepseek-chat", PDF), ("ollama_chat/llama3", PDF),
        ("deepseek/deepseek-chat", {"type": "video_url", "video_url": {"url": VIDEO}}),
        ("anthropic/claude-sonnet-4-5", SOUND), ("ollama_chat/llama3", SOUND),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_a_file_that_a_provider_s_form_has_no_place_for_is_refused_unsent(
    upstream: Upstream, model: str, part: dict[str, Any], stream: bool
) -> None:
    """LiteLLM leaves it out, and the model would answer about a file that it never saw."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "read"}, part]}]
    async with CannedProvider(json_answer({})) as provider:
        call = Call(model, messages, api_base=provider.address, api_key="k", timeout_s=20.0, max_tokens=9)
        with pytest.raises(MessagesRefused) as refused:
            await (upstream.open_stream if stream else upstream.complete)(upstream.outgoing(call))
    assert provider.received == []
    error = refused.value.answer()
    assert (error.param, http_status(error)) == ("messages[0].content[1]", 400)


SPEECHLESS = [
    "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "mistral/mistral-large-latest", "ollama_chat/llama3",
    "bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0",
]  # fmt: skip
AWS = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s", "aws_region_name": "us-east-1"}


def spoken(**audio: str) -> list[dict[str, Any]]:
    """A history in which the model answered aloud."""
    return [*HELLO, {"role": "assistant", "content": None, "audio": {"id": "audio_1", **audio}}, *HELLO]


@pytest.mark.parametrize("model", SPEECHLESS)
async def test_what_a_model_said_aloud_is_told_by_its_words_or_refused_unsent(upstream: Upstream, model: str) -> None:
    options = AWS if model.startswith("bedrock") else {}
    async with CannedProvider(json_answer({})) as provider:
        call = Call(
            model, spoken(), api_base=provider.address, api_key="k", timeout_s=20.0, max_tokens=9, options=options
        )
        with pytest.raises(MessagesRefused) as refused:
            await upstream.complete(upstream.outgoing(call))
        assert provider.received == []
        error = refused.value.answer()
        assert (error.param, http_status(error)) == ("messages[1].audio", 400)
        with pytest.raises(UpstreamFault):
            await upstream.complete(upstream.outgoing(replace(call, messages=spoken(transcript="Good day"))))
    assert "Good day" in str(provider.received[0][1])


async def test_who_takes_sounds_of_the_history_gets_their_ids(upstream: Upstream) -> None:
    for lane in ("thin", "litellm"):
        body, _ = await sent(upstream, model="openai/gpt-4o-audio-preview", messages=spoken(), lane=lane)
        assert body["messages"][1]["audio"] == {"id": "audio_1"}


@pytest.mark.parametrize("model", [*SPEECHLESS, "openai/gpt-4o", "groq/llama-3.3-70b-versatile"])
async def test_a_name_that_a_provider_is_not_told_is_named_to_the_client(upstream: Upstream, model: str) -> None:
    options = AWS if model.startswith("bedrock") else {}
    messages = [{"role": "user", "name": "Zoe", "content": "hi"}]
    async with CannedProvider(json_answer({})) as provider:
        call = Call(
            model, messages, api_base=provider.address, api_key="k", timeout_s=20.0, max_tokens=9, options=options
        )
        outgoing = upstream.outgoing(call)
        with pytest.raises(UpstreamFault):
            await upstream.complete(outgoing)
    assert ("Zoe" in str(provider.received[0][1])) == (model not in SPEECHLESS)
    assert ("messages[].name" in outgoing.left_out) == (model in SPEECHLESS)


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "openai/gpt-4o"])
async def test_a_file_reaches_the_providers_that_take_it(upstream: Upstream, model: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "read"}, PDF]}]
    body, _ = await sent(upstream, model, messages=messages, lane="litellm")
    assert "JVBERi0xLjcK" in str(body)


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro"])
async def test_a_file_in_lines_of_base64_is_sent(upstream: Upstream, model: str) -> None:
    """As Python's `base64.encodebytes`, `base64` and MIME write it."""
    lines = base64.encodebytes(b"%PDF-1.7\n" + bytes(range(256)) * 2).decode()
    for written in (lines, lines.replace("\n", "\r\n")):
        part = {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{written}"}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "read"}, part]}]
        body, _ = await sent(upstream, model, messages=messages)
        assert lines.split()[3] in str(body)


def with_schema(schema: Any) -> dict[str, Any]:
    return {"tools": [*TOOLS[:1], {"type": "function", "function": {"name": "s", "parameters": schema}}]}


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


LIST_OF_TWO = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
TEXTS = {"type": "array", "items": {"type": "string"}}
EITHER = {"anyOf": [fields(a={"type": "string"}), fields(b={"type": "string"})]}
BOTH = fields(a={"type": "string"}, b={"type": "string"})
NAMED = {"$ref": "#/$defs/x", "$defs": {"x": fields(a={"type": "string"})}}
ANYTHING = {"anyOf": [*({"type": name} for name in ("string", "number", "boolean", "object")), TEXTS]}


@pytest.mark.parametrize(
    ("schema", "sent_as"),
    [
        (fields(a=True), fields(a=ANYTHING)),
        (fields(a=False, b={"type": "string"}), fields(b={"type": "string"})),
        (fields(a={"type": "array", "items": True}), fields(a={"type": "array", "items": ANYTHING})),
        (fields(a={"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}), fields(a=LIST_OF_TWO)),
        (fields(a={"type": "array", "prefixItems": [{"type": "string"}], "items": False}),
         fields(a=TEXTS | {"maxItems": 1})),
        (fields(a={"anyOf": [{"type": "null"}]}), fields(a={"type": "null"})),
        (fields(a={"const": 5}, b={"const": "x"}),
         fields(a={"type": "integer"}, b={"type": "string", "enum": ["x"]})),
        (fields(a={"allOf": [{"type": "string"}, {"description": "d"}]}),
         fields(a={"type": "string", "description": "d"})),
        (EITHER, BOTH), ({}, {"type": "object"}), (BOTH | {"type": ["object", "null"]}, BOTH),
    ],
)  # fmt: skip
async def test_google_gets_tools_in_words_that_its_schemas_have(upstream: Upstream, schema: Any, sent_as: Any) -> None:
    body, _ = await sent(upstream, "gemini/gemini-2.5-flash", params=with_schema(schema))
    assert body["tools"][0]["function_declarations"][1]["parameters"] == sent_as


@pytest.mark.parametrize(
    ("schema", "sent_as"),
    [
        (EITHER, BOTH),
        ({"oneOf": [fields(a={"type": "string"}) | {"required": ["a"]}, fields(a={"type": "integer"})]},
         fields(a={"anyOf": [{"type": "string"}, {"type": "integer"}]})),
        ({"allOf": [fields(a={"type": "string"}) | {"required": ["a"]}, fields(b={"type": "string"})]},
         BOTH | {"required": ["a"]}),
        (NAMED, fields(a={"type": "string"}) | {"$defs": NAMED["$defs"]}),
        (fields(a=True, b={"items": [{"const": 1}]}), fields(a=True, b={"items": [{"const": 1}]})),
    ],
)  # fmt: skip
async def test_claude_gets_the_fields_of_every_branch_of_a_tool(upstream: Upstream, schema: Any, sent_as: Any) -> None:
    body, _ = await sent(upstream, "anthropic/claude-sonnet-4-5", params=with_schema(schema))
    assert body["tools"][1]["input_schema"] == sent_as


async def test_a_schema_without_a_form_is_refused_by_its_place(upstream: Upstream) -> None:
    fault = await refusal(
        upstream, "gemini/gemini-2.5-flash", params=with_schema({"type": "object", "properties": [1]})
    )
    assert isinstance(fault, MessagesRefused)
    assert fault.answer().param == "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("model", "name", "value", "is_lost"),
    [
        ("anthropic/claude-sonnet-4-5", "response_format", {"type": "json_object"}, True),
        ("gemini/gemini-2.5-flash", "response_format", {"type": "json_object"}, False),
        ("gemini/gemini-2.5-flash", "parallel_tool_calls", False, True),
        ("anthropic/claude-sonnet-4-5", "parallel_tool_calls", False, False),
        ("mistral/mistral-large-latest", "tool_choice", ONE_TOOL, False),
        ("deepinfra/m", "tool_choice", ONE_TOOL, True),
        ("ollama_chat/m", "tool_choice", ONE_TOOL, True),
        ("anthropic/claude-sonnet-4-5", "tool_choice", "perhaps", True),
        ("anthropic/claude-sonnet-4-5", "tool_choice", "required", False),
        ("anthropic/claude-sonnet-4-5", "tool_choice", "none", False),
        ("gemini/gemini-2.5-flash", "tool_choice", "required", False),
        ("gemini/gemini-robotics-er-2-preview", "frequency_penalty", 0.5, True),
        ("gemini/gemini-2.5-flash", "frequency_penalty", 0.5, False),
        ("moonshot/kimi-k2.5", "temperature", 0.5, True),
        ("openai/qwen", "temperature", 0.5, False),
    ],
)
async def test_what_litellm_accepts_and_does_not_write_is_named(
    upstream: Upstream, model: str, name: str, value: Any, is_lost: bool
) -> None:
    body, left_out = await sent(upstream, model, params={name: value, "tools": TOOLS})
    without, _ = await sent(upstream, model, params={"tools": TOOLS})
    assert (name in left_out) is is_lost
    assert (body == without) is is_lost


async def test_values_that_ask_for_nothing_are_not_named(upstream: Upstream) -> None:
    params = {"parallel_tool_calls": True, "frequency_penalty": 0, "temperature": 1, "tools": TOOLS}
    _, left_out = await sent(upstream, "gemini/gemini-robotics-er-2-preview", params=params)
    assert left_out == set()


async def test_a_parameter_that_the_operator_allows_is_sent_and_not_named(upstream: Upstream) -> None:
    params = {"frequency_penalty": 0.5}
    allowed = frozenset(params)
    body, left_out = await sent(upstream, "anthropic/claude-sonnet-4-5", params=params, allowed_params=allowed)
    assert body["frequency_penalty"] == 0.5
    assert left_out == set()


@pytest.mark.parametrize("model", ["anthropic/claude-sonnet-4-5", "ollama_chat/qwen", "mistral/mistral-large-latest"])
async def test_every_word_that_ends_an_answer_is_sent(upstream: Upstream, model: str) -> None:
    body, left_out = await sent(upstream, model, params={"stop": list("abcde")})
    assert list("abcde") in (body.get("stop"), body.get("stop_sequences"), body.get("options", {}).get("stop"))
    assert left_out == set()


@pytest.mark.parametrize(
    ("named", "base_model"),
    [
        ("my-dep", "gpt-5"), ("my-dep", "gpt-5-search-api"), ("gpt-4o", "gpt-5"), ("gpt-5", "gpt-4o"),
        ("gpt-5", "gpt-5.1"), ("gpt-5.1", "gpt-4o"), ("gpt-5-search-api", "gpt-4o"), ("gpt-5.1", "gpt-5.2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "params",
    [
        {"verbosity": "low", "reasoning_effort": "low"}, {"reasoning_effort": "none"}, {"n": 2, "seed": 3},
        {"temperature": 0.5, "top_p": 0.9, "stop": ["x"], "presence_penalty": 0.5, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0.5, "top_p": 0.9, "logprobs": True, "reasoning_effort": "low"},
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    ],
)  # fmt: skip
async def test_what_a_model_behind_another_name_takes_is_sent_and_the_rest_is_named(
    upstream: Upstream, named: str, base_model: str, params: dict[str, Any]
) -> None:
    async with CannedProvider(json_answer(OPENAI_ANSWER)) as canned:
        call = Call(
            f"openai/{named}", HELLO, api_base=canned.address, api_key="k", params=params, base_model=base_model,
            drop_params=True,
        )  # fmt: skip
        outgoing = upstream.outgoing(call)
        await upstream.complete(outgoing)
    body = canned.received[0][1]
    assert params.keys() & body.keys() == params.keys() - set(outgoing.left_out)
    if base_model == "gpt-5" and "verbosity" in params:
        assert outgoing.left_out == ()
    if "tools" in params:
        assert body["tools"] == TOOLS
