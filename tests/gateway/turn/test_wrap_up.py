"""The last answer of a session: what its request is, and what is kept for it."""

from __future__ import annotations

from typing import Any

from gateway.catalog.answer_length import OutputForecast
from gateway.routing.guard import BUSY, Eligibility
from gateway.turn.wrap_up import closing_request, kept_nanousd
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


def test_the_cheapest_model_that_may_answer_sets_the_kept_amount() -> None:
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    both = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    only = [Eligibility(cheap, cheap.deployments, "unhealthy"), both[1]]
    assert kept_nanousd(both, asked, forecast, 100) == kept_nanousd(both[:1], asked, forecast, 100)
    assert kept_nanousd(only, asked, forecast, 100) > kept_nanousd(both, asked, forecast, 100)
    assert kept_nanousd(only[:1], asked, forecast, 100) == 0


def test_a_model_that_is_only_busy_sets_the_kept_amount_too() -> None:
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    free = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    busy = [Eligibility(cheap, cheap.deployments, BUSY, wait_s=7), free[1]]
    assert kept_nanousd(busy, asked, forecast, 100) == kept_nanousd(free, asked, forecast, 100)


def test_a_model_that_is_only_assumed_to_have_tools_sets_the_kept_amount_too() -> None:
    """When the surer one is too expensive, it serves: the session goes on."""
    cheap, good = model("cheap"), model("good", prices(10.0, 20.0))
    asked, forecast = chat(), OutputForecast()
    sure = [Eligibility(cheap, cheap.deployments, ""), Eligibility(good, good.deployments, "")]
    unsure = [Eligibility(cheap, cheap.deployments, "", certain=False), sure[1]]
    assert kept_nanousd(unsure, asked, forecast, 100) == kept_nanousd(sure, asked, forecast, 100)


def test_the_kept_amount_follows_the_model_s_answers_and_the_client_s_limit() -> None:
    cheap, forecast = model("cheap"), OutputForecast()
    options = [Eligibility(cheap, cheap.deployments, "")]
    before = kept_nanousd(options, chat(), forecast, 100)
    assert kept_nanousd(options, chat(max_tokens=10), forecast, 100) < before
    for _ in range(300):
        forecast.observe("cheap", 3_000)
    assert kept_nanousd(options, chat(), forecast, 100) > before
