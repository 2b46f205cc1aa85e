"""The cost law: worst case, clamp, bill and settlement, as pure integers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.cost import (
    UNLIMITED_TOKENS,
    CostBounds,
    bill_nanousd,
    estimated,
    settlement,
)
from gateway.catalog.prices import Prices, PriceTier
from gateway.catalog.usage import PartialUsage, Usage

MICRO = 10**9  # femto-USD in a micro-USD: "1 USD per million tokens" is one of these per token

SMALL = Prices(input_femtousd=150_000_000, output_femtousd=600_000_000, cached_input_femtousd=75_000_000)
"""0.15 and 0.60 USD per million tokens, cached 0.075."""

TIERED = Prices(
    input_femtousd=2 * MICRO,
    output_femtousd=10 * MICRO,
    tiers=(PriceTier(200_000, input_femtousd=4 * MICRO, output_femtousd=15 * MICRO),),
)

amounts = st.one_of(st.integers(0, 10**6), st.integers(0, 10**12))
optional = st.one_of(st.none(), amounts)


def worst_case_nanousd(prices: Prices, bound: int, limit: int, **call: Any) -> int:
    return CostBounds(prices, bound, **call).worst_nanousd(limit)


@st.composite
def price_lists(draw: st.DrawFn) -> Prices:
    thresholds = sorted(draw(st.sets(st.integers(0, 400_000), max_size=3)))
    return Prices(
        input_femtousd=draw(amounts),
        output_femtousd=draw(amounts),
        cached_input_femtousd=draw(optional),
        cache_write_femtousd=draw(optional),
        cache_write_1h_femtousd=draw(optional),
        reasoning_femtousd=draw(optional),
        audio_input_femtousd=draw(optional),
        audio_output_femtousd=draw(optional),
        image_femtousd=draw(amounts),
        request_femtousd=draw(amounts),
        tiers=tuple(
            PriceTier(
                threshold,
                input_femtousd=draw(optional),
                output_femtousd=draw(optional),
                cached_input_femtousd=draw(optional),
                cache_write_femtousd=draw(optional),
                reasoning_femtousd=draw(optional),
            )
            for threshold in thresholds
        ),
    )


@st.composite
def usages(draw: st.DrawFn, prompt_bound: int, output_bound: int) -> Usage:
    prompt, output = draw(st.integers(0, prompt_bound)), draw(st.integers(0, output_bound))
    cached = draw(st.integers(0, prompt))
    written = draw(st.integers(0, prompt - cached))
    reasoning = draw(st.integers(0, output))
    return Usage(
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)),
        reasoning_tokens=reasoning,
        audio_input_tokens=draw(st.integers(0, prompt)),
        audio_output_tokens=draw(st.integers(0, output)),
    )


def test_worst_case_is_prompt_plus_all_answers_rounded_up_once() -> None:
    # 1,001 * 0.15 + 3 * 500 * 0.60 USD per million = 150.15 + 900 micro-USD
    assert worst_case_nanousd(SMALL, 1_001, 500, n=3) == 1_050_150
    # one cached-price token alone would be 75 nano-USD; the worst case takes the full input price
    assert worst_case_nanousd(SMALL, 1, 0) == 150


def test_a_fraction_of_a_nano_usd_is_rounded_up_at_the_end_and_only_there() -> None:
    odd = Prices(input_femtousd=37_500_001, output_femtousd=1)
    assert bill_nanousd(odd, Usage(2, 0)) == 76  # 75.000002
    assert bill_nanousd(odd, Usage(0, 1)) == 1
    assert bill_nanousd(odd, Usage(0, 0)) == 0


def test_worst_case_takes_the_most_expensive_tier_a_prompt_can_fall_into() -> None:
    assert worst_case_nanousd(TIERED, 200_000, 0) == 200_000 * 2_000
    assert worst_case_nanousd(TIERED, 200_001, 10) == 200_001 * 4_000 + 10 * 15_000


def test_a_cheaper_upper_tier_does_not_lower_the_worst_case() -> None:
    falling = Prices(input_femtousd=10 * MICRO, output_femtousd=0, tiers=(PriceTier(100, input_femtousd=MICRO),))
    assert worst_case_nanousd(falling, 200, 0) == 200 * 10_000


def test_worst_case_covers_cache_writes_reasoning_images_and_the_price_of_a_request() -> None:
    prices = Prices(
        input_femtousd=MICRO,
        output_femtousd=2 * MICRO,
        cache_write_femtousd=MICRO * 5 // 4,
        reasoning_femtousd=3 * MICRO,
        image_femtousd=7 * MICRO,
        request_femtousd=11 * MICRO,
    )
    assert worst_case_nanousd(prices, 100, 10, images=2) == 100 * 1_250 + 10 * 3_000 + 2 * 7_000 + 11_000


def test_worst_case_with_audio_takes_the_price_of_audio() -> None:
    prices = Prices(
        input_femtousd=MICRO, output_femtousd=MICRO, audio_input_femtousd=40 * MICRO, audio_output_femtousd=80 * MICRO
    )
    assert worst_case_nanousd(prices, 10, 10) == 20_000
    assert worst_case_nanousd(prices, 10, 10, audio=True) == 10 * 40_000 + 10 * 80_000


def test_the_clamp_of_an_exact_budget_is_exact() -> None:
    budget = worst_case_nanousd(SMALL, 1_000, 77)
    assert CostBounds(SMALL, 1_000).affordable_output_tokens(budget) == 77
    assert CostBounds(SMALL, 1_000).affordable_output_tokens(budget - 1) == 76
    assert CostBounds(SMALL, 1_000).affordable_output_tokens(149_999) == 0


def test_a_free_answer_is_not_limited() -> None:
    assert CostBounds(Prices(0, 0), 10**6).affordable_output_tokens(0) == UNLIMITED_TOKENS


@given(
    prices=price_lists(),
    bound=st.integers(0, 500_000),
    budget=st.integers(0, 10**13),
    n=st.integers(1, 8),
    images=st.integers(0, 20),
    audio=st.booleans(),
)
def test_affordable_is_the_exact_inverse_of_the_worst_case(
    prices: Prices, bound: int, budget: int, n: int, images: int, audio: bool
) -> None:
    tokens = CostBounds(prices, bound, n=n, images=images, audio=audio).affordable_output_tokens(budget)
    if tokens:
        assert worst_case_nanousd(prices, bound, tokens, n=n, images=images, audio=audio) <= budget
    if tokens < UNLIMITED_TOKENS:
        assert worst_case_nanousd(prices, bound, tokens + 1, n=n, images=images, audio=audio) > budget


@given(data=st.data(), prices=price_lists(), n=st.integers(1, 8), images=st.integers(0, 5))
def test_no_bill_within_the_bounds_exceeds_the_worst_case(
    data: st.DataObject, prices: Prices, n: int, images: int
) -> None:
    bound, limit = data.draw(st.integers(0, 500_000)), data.draw(st.integers(0, 20_000))
    usage = data.draw(usages(bound, n * limit))
    worst = worst_case_nanousd(prices, bound, limit, n=n, images=images, audio=True)
    assert bill_nanousd(prices, usage, images=images) <= worst


@given(data=st.data(), prices=price_lists())
def test_every_token_is_billed_once(data: st.DataObject, prices: Prices) -> None:
    """At one price for everything the bill is the number of tokens times that price, however they are divided."""
    usage = data.draw(usages(10_000, 10_000))
    flat = Prices(input_femtousd=3 * 10**6, output_femtousd=3 * 10**6)
    assert bill_nanousd(flat, usage) == 3 * (usage.prompt_tokens + usage.output_tokens)
    assert bill_nanousd(prices, usage) >= 0


def test_missing_usage_is_estimated_and_never_zero_nor_above_the_hold() -> None:
    bill = settlement(SMALL, None, held_nanousd=10**9, prompt_tokens=100, output_tokens=50)
    assert (bill.amount_nanousd, bill.usage_source, bill.alarm) == (100 * 150 + 50 * 600, "estimated", None)
    capped = settlement(SMALL, None, held_nanousd=1_000, prompt_tokens=100, output_tokens=50)
    assert capped.amount_nanousd == 1_000


def test_zero_usage_is_zero() -> None:
    bill = settlement(SMALL, Usage(0, 0), held_nanousd=10**9, prompt_tokens=100, output_tokens=50)
    assert (bill.amount_nanousd, bill.usage_source, bill.output_tokens) == (0, "reported", 0)


def test_an_impossible_usage_is_our_estimate_with_an_alarm() -> None:
    known = PartialUsage(Usage(0, 50), has_prompt=False, has_output=True, fault="prompt_tokens is not a whole number")
    huge = PartialUsage(Usage(9_000_000, 0), has_prompt=True, has_output=False)
    for reported in (known, huge, Usage(10, 5_000_000), Usage(9_000_000, 1)):
        bill = settlement(SMALL, reported, held_nanousd=300_000, prompt_tokens=100, output_tokens=50)
        assert (bill.amount_nanousd, bill.usage_source, bill.alarm) == (45_000, "estimated", "implausible_usage")


def test_a_provider_that_overruns_its_limit_is_billed_in_full_with_an_alarm() -> None:
    bill = settlement(SMALL, Usage(10, 400), held_nanousd=20_000, prompt_tokens=10, output_tokens=16)
    assert (bill.amount_nanousd, bill.usage_source, bill.alarm) == (10 * 150 + 400 * 600, "reported", "overage")


def test_a_settlement_without_a_report_is_marked() -> None:
    assert estimated(500).usage_source == "estimated"
