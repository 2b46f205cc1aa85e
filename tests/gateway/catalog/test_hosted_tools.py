"""Fees and holds of tools that a provider's servers run."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.call_cost import call_bounds, hosted_calls
from gateway.catalog.cost import bill_nanousd, settlement
from gateway.catalog.hosted_tools import RESULT_TOKENS, Api, HostedTools, fees_of, kind_of, run_by_provider
from gateway.catalog.prices import Prices
from gateway.catalog.usage import PartialUsage, Usage
from gateway.catalog.usage_reading import read_usage
from tests.harness.models import deployment, model

PRICES = Prices(input_femtousd=1_000_000_000, output_femtousd=2_000_000_000)


@pytest.mark.parametrize(
    ("tool", "api", "kind", "served"),
    [
        ("web_search", "responses_api", "web_search", True),
        ("web_search_2025_08_26", "responses_api", "web_search", True),
        ("web_search_preview_2025_03_11", "responses_api", "web_search_preview", True),
        ("computer_use_preview", "responses_api", "computer_use_preview", False),
        ("local_shell", "responses_api", "local_shell", False),
        ("web_search_20250305", "messages_api", "web_search", True),
        ("tool_search_tool_bm25_20251119", "messages_api", "tool_search", True),
        ("mcp_toolset", "messages_api", "mcp", True),
        ("text_editor_20250728", "messages_api", "text_editor", False),
        ("function", "responses_api", None, False),
        ("custom", "messages_api", None, False),
        (None, "messages_api", None, False),
        ("file_search", "messages_api", None, False),
    ],
)
def test_a_tool_is_known_by_its_kind(tool: str | None, api: Api, kind: str | None, served: bool) -> None:
    assert kind_of(tool, api) == kind
    assert bool(run_by_provider([kind] if kind else [], api)) == served


def test_fees_are_the_stated_ones_else_the_published_ones() -> None:
    tools = HostedTools(frozenset({"web_search", "file_search", "code_interpreter", "mcp"}))
    published = fees_of(tools, PRICES, {}, lambda name: None)
    assert published == {
        "web_search": 10**13, "file_search": 25 * 10**11, "code_interpreter": 3 * 10**13, "mcp": 0
    }  # fmt: skip
    listed = replace(PRICES, search_femtousd=(1, 2, 3))
    stated = {"file_search_cost_per_1k_calls": Decimal(1), "code_interpreter_cost_per_session": Decimal("0.5")}
    assert fees_of(tools, listed, stated, lambda name: None) == {
        "web_search": 3, "file_search": 10**12, "code_interpreter": 5 * 10**14, "mcp": 0
    }  # fmt: skip
    free = {"search_context_size_medium": Decimal(0)}
    assert fees_of(tools, PRICES, free, lambda name: None)["web_search"] == 0


def test_an_image_costs_what_its_model_s_largest_one_costs() -> None:
    tools = HostedTools(frozenset({"image_generation"}))
    images = replace(PRICES, image_output_femtousd=40_000_000_000)
    assert fees_of(tools, PRICES, {}, {"gpt-image-1": images}.get) == {"image_generation": 6_240 * 40_000_000_000}


@given(
    calls=st.integers(1, 8),
    made=st.lists(st.sampled_from(["web_search", "file_search", "code_interpreter"]), max_size=8),
    prompt=st.integers(1, 5_000),
    answer=st.integers(0, 500),
)
def test_a_hold_covers_every_bill_within_the_limit_of_calls(
    calls: int, made: list[str], prompt: int, answer: int
) -> None:
    """Each step reads the prompt, the results and the answer so far."""
    made = made[:calls]
    tools = HostedTools(frozenset({"web_search", "file_search", "code_interpreter"}), calls)
    served = model("m", PRICES)
    held = call_bounds(served, prompt, {}, {}, tools=tools, tool_calls=calls).worst_nanousd(500)
    usage = Usage(
        prompt * (1 + len(made)) + RESULT_TOKENS * sum(range(len(made) + 1)) + len(made) * answer,
        answer,
        web_searches=made.count("web_search"),
        hosted_calls=tuple((kind, made.count(kind)) for kind in ("file_search", "code_interpreter")),
    )
    hosted = hosted_calls(served.deployments[0], tools, calls)
    assert bill_nanousd(PRICES, usage, hosted=hosted) <= held


def test_a_hold_of_two_calls_by_hand() -> None:
    """Three steps read 100 tokens each and 0 + 1 + 2 results; the answer of 10 tokens is read twice again."""
    held = call_bounds(model("m", PRICES), 100, {}, {}, tools=HostedTools(frozenset({"web_search"})), tool_calls=2)
    assert held.worst_nanousd(10) == 2 * 10_000_000 + (300 + 30_000 + 20) * 1_000 + 10 * 2_000
    assert held.affordable_output_tokens(held.worst_nanousd(10)) == 10


@pytest.mark.parametrize(
    ("heard", "amount"),
    [
        ((), 10_000_000 + 30_000_000 + (3 * 7 + 30_000) * 1_000),
        ((("web_search", 1), ("steps", 1)), 10_000_000 + (2 * 7 + 10_000) * 1_000),
        ((("web_search", 2), ("code_interpreter", 1), ("steps", 3)), 50_000_000 + (4 * 7 + 60_000) * 1_000),
        ((("steps", 1),), (2 * 7 + 10_000) * 1_000),
    ],
)
def test_a_call_without_a_report_is_billed_what_was_heard_else_one_call_of_every_kind(
    heard: tuple[tuple[str, int], ...], amount: int
) -> None:
    tools = HostedTools(frozenset({"web_search", "code_interpreter", "mcp"}))
    hosted = hosted_calls(deployment("a"), tools, 5)
    partial = PartialUsage(Usage(7, 0, heard_calls=heard), has_prompt=True, has_output=False)
    for reported in (partial, *([] if heard else [None])):
        made = settlement(PRICES, reported, held_nanousd=10**12, prompt_tokens=7, output_tokens=3, hosted=hosted)
        assert (made.amount_nanousd, made.usage_source) == (amount + 3 * 2_000, "estimated")
        capped = settlement(PRICES, reported, held_nanousd=9_000, prompt_tokens=7, output_tokens=3, hosted=hosted)
        assert capped.amount_nanousd == 9_000


def test_a_call_that_may_use_no_tool_is_billed_none() -> None:
    hosted = hosted_calls(deployment("a"), HostedTools(frozenset({"web_search"})), 0)
    made = settlement(PRICES, None, held_nanousd=10**12, prompt_tokens=7, output_tokens=3, hosted=hosted)
    assert made.amount_nanousd == 7 * 1_000 + 3 * 2_000


def test_calls_heard_without_any_count_are_a_partial_report() -> None:
    read = read_usage({"heard_calls": {"web_search": 2, "steps": 2}})
    assert isinstance(read, PartialUsage)
    assert dict(read.known.heard_calls) == {"web_search": 2, "steps": 2}


def test_a_report_counts_the_calls_of_every_kind_and_an_image_at_its_model() -> None:
    usage = read_usage({
        "input_tokens": 10, "output_tokens": 2, "server_tool_use": {"web_search_requests": 2},
        "hosted_calls": {"file_search": 3},
        "iterations": [
            {"input_tokens": 10, "output_tokens": 2},
            {"model": "gpt-image-1", "input_tokens": 1, "output_tokens": 100,
             "output_tokens_details": {"image_tokens": 100}},
        ],
    })  # fmt: skip
    assert isinstance(usage, Usage)
    tools = HostedTools(frozenset({"web_search", "file_search"}))
    images = replace(PRICES, image_output_femtousd=40_000_000_000)
    hosted = hosted_calls(deployment("a"), tools, 5)
    bill = bill_nanousd(PRICES, usage, hosted=hosted, prices_of={"gpt-image-1": images}.get)
    assert bill == 10 * 1_000 + 2 * 2_000 + 2 * 10_000_000 + 3 * 2_500_000 + 1 * 1_000 + 100 * 40_000
