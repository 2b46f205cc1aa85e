"""The last answer of a session: what its request is, and what is kept for it."""

from __future__ import annotations

from typing import Any

from gateway.catalog.answer_length import OutputForecast
from gateway.dialects.request import ChatRequest
from gateway.routing.guard import BUSY, Eligibility
from gateway.turn.wrap_up import KEPT_SHARE, closing_request, last_answer
from tests.harness.models import chat, model, prices

TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
LOOP: list[Any] = [
    {"role": "user", "content": "read it"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "text"},
]


def test_a_closing_request_has_no_tools() -> None:
    asked = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, temperature=0.5)
    closing = closing_request(asked)
    assert dict(closing.params) == {"temperature": 0.5}
    assert "tools" in asked.capabilities
    assert "tools" not in closing.capabilities
    assert closing.messages == asked.messages


def test_a_conversation_with_tool_calls_keeps_their_definitions_and_may_call_none() -> None:
    closing = closing_request(chat(messages=LOOP, tools=[TOOL], tool_choice="required"))
    assert closing.params["tool_choice"] == "none"
    assert len(closing.params["tools"]) == 1
    assert "tools" in closing.capabilities


def test_so_does_one_with_calls_of_the_older_functions() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "read", "arguments": "{}"}}
    result = {"role": "function", "name": "read", "content": "text"}
    for history in ([LOOP[0], called, result], [LOOP[0], called, LOOP[0]], [LOOP[0], result]):
        closing = closing_request(chat(messages=history, functions=[TOOL["function"]], function_call={"name": "read"}))
        assert dict(closing.params) == {"functions": [TOOL["function"]], "function_call": "none"}
        assert "tools" in closing.capabilities


RICH_NANOUSD = 10**9


def kept(
    options: list[Eligibility], asked: ChatRequest, forecast: OutputForecast, budget_nanousd: int = RICH_NANOUSD
) -> int:
    """The amount kept by a turn with a prompt of at most 100 tokens."""
    return last_answer(options, asked, forecast, 100, budget_nanousd).kept_nanousd


def test_the_cheapest_model_that_may_answer_sets_the_kept_amount() -> None:
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    both = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    only = [Eligibility(cheap, cheap.deployments, "unhealthy"), both[1]]
    assert kept(both, asked, forecast) == kept(both[:1], asked, forecast)
    assert kept(only, asked, forecast) > kept(both, asked, forecast)
    assert kept(only[:1], asked, forecast) == 0


def test_a_model_that_is_only_busy_sets_the_kept_amount_too() -> None:
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    free = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    busy = [Eligibility(cheap, cheap.deployments, BUSY, wait_s=7), free[1]]
    assert kept(busy, asked, forecast) == kept(free, asked, forecast)


def test_a_model_that_is_only_assumed_to_have_tools_sets_the_kept_amount_too() -> None:
    """When the surer one is too expensive, it serves: the session goes on."""
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    sure = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    unsure = [Eligibility(cheap, cheap.deployments, "", certain=False), sure[1]]
    assert kept(unsure, asked, forecast) == kept(sure, asked, forecast)


def test_the_kept_amount_follows_the_model_s_answers_and_the_client_s_limit() -> None:
    cheap, forecast = model("cheap"), OutputForecast()
    options = [Eligibility(cheap, cheap.deployments, "")]
    before = kept(options, chat(), forecast)
    assert kept(options, chat(max_tokens=10), forecast) < before
    for _ in range(300):
        forecast.observe("cheap", 3_000)
    assert kept(options, chat(), forecast) > before


def test_a_small_budget_keeps_a_quarter_of_it_and_never_less_than_a_short_answer() -> None:
    """At 1 and 2 USD per million; the prior's answer is 793 tokens at the 90th percentile.

    The prompt of the closing turn: 100 + 12 (an eighth) + 2 * (793 + 512) = 2,722 tokens, 2,722,000 nano-USD. With an
    answer of 793 tokens 4,308,000, with one of 256 tokens 3,234,000.
    """
    cheap, asked, forecast = model("cheap"), chat(), OutputForecast()
    options = [Eligibility(cheap, cheap.deployments, "")]
    assert kept(options, asked, forecast) == 4_308_000
    assert kept(options, asked, forecast, 4 * 4_308_000) == 4_308_000
    # A quarter of 0.016 USD pays for 639 tokens: (4,000,000 - 2,722,000) / 2,000.
    assert kept(options, asked, forecast, 16_000_000) == 4_000_000 == 16_000_000 // KEPT_SHARE
    assert kept(options, asked, forecast, 5_000_000) == 3_234_000
    assert kept(options, chat(max_tokens=10), forecast, 1) == (100 + 12 + 2 * (10 + 512)) * 1_000 + 10 * 2_000


def test_each_token_of_a_long_answer_adds_two_to_the_prompt_of_the_closing_turn() -> None:
    cheap, asked, forecast = model("cheap"), chat(n=3), OutputForecast()
    last = last_answer([Eligibility(cheap, cheap.deployments, "")], asked, forecast, 100, RICH_NANOUSD)
    assert last.growth_femtousd == 2 * 3 * cheap.prices.input_femtousd
