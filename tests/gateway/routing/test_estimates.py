"""Holds and clamps: what is reserved covers what can be billed, and fits what is left whenever anything does."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.cache_hits import CacheTerms
from gateway.catalog.cost import bill_nanousd
from gateway.catalog.prices import Prices, PriceTier
from gateway.catalog.tokens import PromptTokens
from gateway.catalog.usage import Usage
from gateway.config.settings import RouterSettings
from gateway.providers.cooldown import Breaker
from gateway.routing.estimates import (
    LEAST_LIKELY_TOKENS,
    LEAST_OUTPUT_TOKENS,
    Estimate,
    TurnTerms,
    cache_mark,
    estimate,
)
from gateway.routing.guard import Eligibility
from gateway.routing.session import SessionMemory
from policy.mdp import COST_LEVELS
from tests.harness.models import FEMTOUSD_PER_MTOK_USD, chat, model, prices, remember

# The prior's answer is 220 tokens in the median and 1,715 at the 98th percentile: 220 * exp(2.0537...), rounded up.
MEDIAN_TOKENS, LIKELY_TOKENS = 220, 1_716
FREE_TO_SPEND = 10**12


def estimated(
    *,
    charged: Prices | None = None,
    left_nanousd: int = FREE_TO_SPEND,
    prompt_tokens: int = 1_000,
    bound: int = 2_000,
    memory: SessionMemory | None = None,
    over_budget: Literal["degrade", "refuse"] = "degrade",
    why_not: str = "",
    at_ms: int = 0,
    contended: bool = False,
    patient: bool = False,
    company: int = 1,
    answer_tokens: tuple[float, ...] | None = None,
    request: dict[str, Any] | None = None,
    forecast: OutputForecast | None = None,
    **changes: Any,
) -> Estimate:
    option = Eligibility(model("small", charged, **changes), (), why_not)
    asked = chat(**(request or {}))
    terms = TurnTerms(
        asked, memory or SessionMemory(), PromptTokens(prompt_tokens, bound), at_ms, left_nanousd, over_budget,
        contended=contended, patient=patient, company=company, mark=cache_mark(asked),
    )  # fmt: skip
    return estimate(
        option, terms, forecast or OutputForecast(), Breaker(lambda: 0.0, RouterSettings), answer_tokens
    )  # fmt: skip


# -- lengths predicted from the turn -----------------------------------------------------------------------------------


def test_a_length_predicted_from_the_turn_is_the_cost_distribution() -> None:
    # 1,000 prompt tokens at 1,000 nano-USD, 40 tokens of answer at 2,000 in the median.
    levels = tuple(float(40 + k - COST_LEVELS.index(0.5)) for k in range(len(COST_LEVELS)))
    found = estimated(answer_tokens=levels)
    assert found.view.cost_quantiles_usd[COST_LEVELS.index(0.5)] == pytest.approx(1_080_000 / 1e9)
    assert found.view.output_tokens_mean == pytest.approx(sum(levels) / len(levels))
    assert found.likely_nanousd == 1_080_000


@pytest.mark.parametrize(
    ("tokens", "level"), [(1, COST_LEVELS[0]), (41, COST_LEVELS[1]), (46, 0.5), (47, 0.6), (54, 0.995), (55, 1.0)]
)
def test_a_bill_has_the_lowest_level_that_covers_it(tokens: int, level: float) -> None:
    found = estimated(answer_tokens=tuple(float(40 + k) for k in range(len(COST_LEVELS))))
    assert found.level_of(1_000 * 1_000 + tokens * 2_000) == level


@pytest.mark.parametrize("contended", [False, True])
@pytest.mark.parametrize("left_nanousd", [FREE_TO_SPEND, 30_000_000, 4_000_000])
def test_a_short_predicted_answer_lowers_no_hold_and_no_limit(left_nanousd: int, contended: bool) -> None:
    plain = estimated(left_nanousd=left_nanousd, contended=contended)
    short = estimated(left_nanousd=left_nanousd, contended=contended, answer_tokens=(1.0,) * len(COST_LEVELS))
    assert (short.hold_nanousd, short.max_tokens, short.clamped) == (
        plain.hold_nanousd,
        plain.max_tokens,
        plain.clamped,
    )


def test_a_long_predicted_answer_raises_the_hold() -> None:
    # 3,000 tokens likely: 2,000,000 for the prompt and 6,000,000 for the answer, more than a quarter of the money.
    found = estimated(left_nanousd=12_000_000, answer_tokens=(3_000.0,) * len(COST_LEVELS))
    assert found.hold_nanousd == 8_000_000 > estimated(left_nanousd=12_000_000).hold_nanousd


def test_a_predicted_answer_is_no_longer_than_the_client_allows() -> None:
    found = estimated(request={"max_tokens": 100}, answer_tokens=(5_000.0,) * len(COST_LEVELS))
    assert max(found.view.cost_quantiles_usd) == pytest.approx((1_000_000 + 100 * 2_000) / 1e9)


# -- hand-worked -------------------------------------------------------------------------------------------------------


def test_with_money_to_spare_the_hold_is_the_worst_case_of_what_the_client_asked_for() -> None:
    found = estimated(request={"max_tokens": 500})
    assert (found.max_tokens, found.clamped) == (500, False)
    assert found.hold_nanousd == 2_000 * 1_000 + 500 * 2_000


def test_without_a_limit_of_the_client_the_model_s_own_is_the_worst_case() -> None:
    found = estimated(max_output_tokens=4_000)
    assert (found.max_tokens, found.clamped) == (4_000, False)
    assert found.hold_nanousd == 2_000_000 + 8_000_000


def test_a_quarter_of_what_is_left_is_held_when_that_is_more_than_the_likely_answer() -> None:
    # 30,000,000 / 4 = 7,500,000, less the prompt's 2,000,000, at 2,000 a token.
    found = estimated(left_nanousd=30_000_000)
    assert (found.hold_nanousd, found.max_tokens, found.clamped) == (7_500_000, 2_750, True)


def test_ten_turns_that_read_the_same_balance_beside_others_all_fit_into_it() -> None:
    # 128,000,000 / 16 = 8,000,000, less the prompt's 2,000,000, at 2,000 a token.
    found = estimated(left_nanousd=128_000_000, contended=True, max_output_tokens=16_000)
    assert (found.hold_nanousd, found.max_tokens) == (8_000_000, 3_000)
    assert 10 * found.hold_nanousd <= 128_000_000


def test_the_likely_answer_is_held_even_when_it_is_more_than_a_quarter() -> None:
    found = estimated(left_nanousd=6_000_000)
    assert found.max_tokens == LIKELY_TOKENS
    assert found.hold_nanousd == 2_000_000 + LIKELY_TOKENS * 2_000


def test_the_last_money_buys_a_shorter_answer() -> None:
    found = estimated(left_nanousd=2_201_999)
    assert (found.max_tokens, found.hold_nanousd, found.view.feasible) == (100, 2_200_000, True)


def test_of_the_last_money_each_parallel_turn_takes_half_but_no_stump_of_an_answer() -> None:
    """2,600,000 is the prompt's 2,000,000 and 300 tokens; half of it does not buy the prompt: the least is held."""
    least = 2_000_000 + LEAST_LIKELY_TOKENS * 2_000
    assert estimated(left_nanousd=2_600_000, contended=True).hold_nanousd == least
    assert estimated(left_nanousd=5_200_000, contended=True).max_tokens == 300
    assert estimated(left_nanousd=5_000_000).max_tokens == 1_500
    assert not estimated(left_nanousd=least - 1, contended=True).view.feasible
    assert estimated(left_nanousd=least - 1).max_tokens == LEAST_LIKELY_TOKENS - 1


def test_who_can_wait_for_held_money_takes_no_answer_that_is_cut_short() -> None:
    needed = 2_000_000 + LIKELY_TOKENS * 2_000
    assert not estimated(left_nanousd=needed - 1, contended=True, patient=True).view.feasible
    assert estimated(left_nanousd=needed, contended=True, patient=True).max_tokens == LIKELY_TOKENS
    assert estimated(left_nanousd=needed - 1, patient=True).view.feasible  # nobody holds anything: it is spent
    asked = {"max_tokens": 40}
    assert estimated(left_nanousd=2_080_000, contended=True, patient=True, request=asked).max_tokens == 40


def test_of_a_crowd_each_holds_half_of_its_part_or_what_its_answer_will_likely_need() -> None:
    left = 640_000_000
    crowd = estimated(left_nanousd=left, company=40, max_output_tokens=16_000)
    assert crowd.hold_nanousd == left // 80
    assert 40 * crowd.hold_nanousd <= left
    assert estimated(left_nanousd=left, company=400).max_tokens == LIKELY_TOKENS


def test_the_last_money_is_not_spent_on_half_an_answer_when_the_operator_says_refuse() -> None:
    found = estimated(left_nanousd=2_201_999, over_budget="refuse")
    assert (found.max_tokens, found.view.why_not) == (0, "not affordable")
    assert found.hold_nanousd == 2_000_000 + LIKELY_TOKENS * 2_000


def test_below_the_least_answer_the_turn_is_unaffordable_and_says_what_it_would_need() -> None:
    least = 2_000_000 + LEAST_OUTPUT_TOKENS * 2_000
    found = estimated(left_nanousd=least - 1)
    assert (found.view.feasible, found.view.why_not, found.hold_nanousd) == (False, "not affordable", least)
    assert estimated(left_nanousd=least).view.feasible


def test_a_client_that_asks_for_less_than_the_least_gets_it() -> None:
    found = estimated(left_nanousd=2_002_000, request={"max_tokens": 1})
    assert (found.max_tokens, found.hold_nanousd, found.clamped) == (1, 2_002_000, False)


def test_n_answers_cost_n_times() -> None:
    found = estimated(request={"max_tokens": 100, "n": 3})
    assert found.hold_nanousd == 2_000_000 + 3 * 100 * 2_000
    one = estimated(request={"max_tokens": 100})
    more = found.view.cost_quantiles_usd[-1] - one.view.cost_quantiles_usd[-1]
    assert more == pytest.approx(2 * 100 * 2e-6)


def test_an_answer_that_nobody_limits_is_held_as_long_as_the_model_gives_it_and_no_limit_is_needed() -> None:
    """2,000 prompt tokens at 1,000 and 4,000 answer tokens at 2,000 are 10,000,000: a quarter of 40,000,000."""
    found = estimated(left_nanousd=40_000_000, longest_answer_tokens=4_000)
    assert (found.limited, found.clamped, found.hold_nanousd) == (False, False, 10_000_000)
    # One nano-USD less, and the money needs a limit: 9,999,999 less 2,000,000 buys 3,999 tokens.
    short = estimated(left_nanousd=39_999_999, longest_answer_tokens=4_000)
    assert (short.limited, short.clamped, short.max_tokens) == (True, True, 3_999)
    assert short.hold_nanousd == 2_000_000 + 3_999 * 2_000


def test_the_hold_without_a_limit_covers_the_model_s_longest_answer_and_not_our_count_of_the_room() -> None:
    """Should the prompt be shorter than we think, the answer may be longer than the room that we see."""
    found = estimated(prompt_tokens=98_000, bound=98_000, max_output_tokens=4_000, longest_answer_tokens=4_000)
    assert (found.limited, found.hold_nanousd) == (False, 98_000_000 + 4_000 * 2_000)


def test_without_a_known_longest_answer_there_is_always_a_limit() -> None:
    assert estimated(longest_answer_tokens=None).limited


def test_a_client_s_limit_and_an_operator_s_default_are_limits() -> None:
    default = estimated(longest_answer_tokens=4_000, default_max_tokens=300)
    assert (default.limited, default.max_tokens, default.clamped) == (True, 300, False)
    assert default.hold_nanousd == 2_000_000 + 300 * 2_000
    own = estimated(longest_answer_tokens=4_000, default_max_tokens=300, request={"max_tokens": 500})
    assert (own.limited, own.max_tokens, own.hold_nanousd) == (True, 500, 2_000_000 + 500 * 2_000)


WINDOW = 8_192


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (4_200, 8_192 - 4_200 - 1_400 - 64),  # a third of the prompt and 64 tokens stay free: 2,528
        (5_000, 8_192 - 5_000 - 1_666 - 64),
        (6_000, 2_192 // 8),  # a third would leave less than an eighth of the room
        (7_000, 1_192 // 8),
    ],
)
def test_a_limit_of_ours_leaves_room_for_a_tokenizer_that_counts_more(words: int, limit: int) -> None:
    found = estimated(prompt_tokens=words, bound=words, max_input_tokens=WINDOW, max_output_tokens=WINDOW)
    assert (found.limited, found.max_tokens) == (True, limit)
    assert words * 112 // 100 + found.max_tokens <= WINDOW  # the provider of vllm-project/vllm#19861


def test_what_a_client_asked_for_goes_up_as_it_is_while_it_fits_by_our_count() -> None:
    window: dict[str, Any] = {"max_input_tokens": WINDOW, "max_output_tokens": WINDOW}
    fits = estimated(prompt_tokens=4_000, bound=4_000, request={"max_tokens": 4_192}, **window)
    assert (fits.max_tokens, fits.clamped) == (4_192, False)
    # 4,192 are left; a third of 4,000 and 64 stay free.
    beyond = estimated(prompt_tokens=4_000, bound=4_000, request={"max_tokens": 4_193}, **window)
    assert (beyond.max_tokens, beyond.clamped) == (4_192 - 1_333 - 64, True)


def test_at_the_very_end_of_the_context_the_least_answer_is_asked_for() -> None:
    assert estimated(prompt_tokens=99_900, bound=99_950).max_tokens == LEAST_OUTPUT_TOKENS


def test_the_guard_s_reason_comes_before_the_money_s() -> None:
    assert estimated(left_nanousd=0, why_not="lacks tools").view.why_not == "lacks tools"


def test_costs_are_predicted_from_the_prompt_and_the_quantiles_of_the_answer() -> None:
    view = estimated().view
    assert view.cost_quantiles_usd[COST_LEVELS.index(0.5)] == pytest.approx(0.001 + MEDIAN_TOKENS * 2e-6)
    assert view.cost_max_usd == pytest.approx(0.010)
    assert (view.input_tokens, view.warm_tokens) == (1_000, 0)
    assert (view.input_usd_per_mtok, view.output_usd_per_mtok) == (1.0, 2.0)


def test_the_warm_part_of_the_prompt_is_predicted_at_the_cached_price_and_held_at_the_full_one() -> None:
    request = chat()
    memory = remember(
        SessionMemory(), model="small", messages=request.messages, prompt_tokens=800, output_tokens=5, failed=False,
        regenerated=False, tool_error=False, at_ms=0,
    )  # fmt: skip
    charged = prices(cached_input_femtousd=10**8)  # a tenth of the input price
    warm, cold = estimated(charged=charged, memory=memory), estimated(charged=charged)
    assert (warm.view.warm_tokens, warm.view.served_last) == (800, True)
    assert warm.hold_nanousd == cold.hold_nanousd
    saved = cold.view.cost_quantiles_usd[0] - warm.view.cost_quantiles_usd[0]
    assert saved == pytest.approx(800 * 0.9e-6)
    assert estimated(charged=charged, memory=memory, prompt_tokens=300).view.warm_tokens == 300


def test_the_warm_part_is_as_large_as_the_model_s_bills_have_shown() -> None:
    memory = remember(
        SessionMemory(), model="small", messages=chat().messages, prompt_tokens=800, output_tokens=5, failed=False,
        regenerated=False, tool_error=False, at_ms=0,
    )  # fmt: skip
    forecast = OutputForecast()
    for _ in range(1_000):
        forecast.cache.observe("small", 1_000, 500)
    found = estimated(memory=memory, forecast=forecast)
    assert found.matching_tokens == 800
    assert 395 <= found.view.warm_tokens <= 405
    assert found.hold_nanousd == estimated(memory=memory).hold_nanousd


def test_what_the_client_marks_for_the_cache_is_predicted_at_the_price_of_writing_it() -> None:
    charged = prices(cached_input_femtousd=10**8, cache_write_femtousd=5 * 10**9 // 4)
    marked = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    plain = estimated(charged=charged)
    found = estimated(charged=charged, request={"messages": [{"role": "user", "content": [marked]}]})
    assert found.view.cost_quantiles_usd[0] - plain.view.cost_quantiles_usd[0] == pytest.approx(1_000 * 0.25e-6)
    assert found.hold_nanousd == plain.hold_nanousd  # the hold is at the highest price in any case
    # A plan that compares staying with switching reads the whole prefix at the price of writing it.
    assert (plain.view.input_usd_per_mtok, found.view.input_usd_per_mtok) == (1.0, 1.25)
    assert not cache_mark(chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}]}]))


def test_an_hour_s_mark_is_predicted_at_its_own_price_and_keeps_the_prefix_for_an_hour() -> None:
    charged = prices(
        cached_input_femtousd=10**8, cache_write_femtousd=5 * 10**9 // 4, cache_write_1h_femtousd=2 * 10**9
    )
    hour, short = ({"type": "ephemeral", "ttl": ttl} for ttl in ("1h", "5m"))
    said = [
        {"type": "text", "text": "hello", "cache_control": hour},
        {"type": "text", "text": "x", "cache_control": short},
    ]
    request = {"messages": [{"role": "user", "content": said}]}
    plain, found = estimated(charged=charged), estimated(charged=charged, request=request)
    assert found.view.cost_quantiles_usd[0] - plain.view.cost_quantiles_usd[0] == pytest.approx(1_000 * 1e-6)
    memory = remember(
        SessionMemory(), model="small", messages=chat(**request).messages, prompt_tokens=800, output_tokens=5,
        failed=False, regenerated=False, tool_error=False, at_ms=0,
    )  # fmt: skip
    for at_ms, warm in ((3_600_000, 800), (3_600_001, 0)):
        assert estimated(memory=memory, request=request, at_ms=at_ms).view.warm_tokens == warm
    stated = CacheTerms(ttl_s=60.0)
    assert estimated(memory=memory, request=request, at_ms=61_000, cache=stated).view.warm_tokens == 0


def test_what_a_dead_call_is_charged_is_the_median_answer() -> None:
    found = estimated()
    assert found.likely_nanousd == pytest.approx(1_000_000 + MEDIAN_TOKENS * 2_000, abs=1)


# -- invariants --------------------------------------------------------------------------------------------------------

PRICE = st.integers(0, 10**11)
MAYBE_PRICE = st.none() | PRICE
TIER = st.builds(
    PriceTier, above_prompt_tokens=st.integers(0, 6_000), input_femtousd=MAYBE_PRICE, output_femtousd=MAYBE_PRICE,
    cached_input_femtousd=MAYBE_PRICE, cache_write_femtousd=MAYBE_PRICE, reasoning_femtousd=MAYBE_PRICE,
)  # fmt: skip
PRICES = st.builds(
    Prices, input_femtousd=PRICE, output_femtousd=PRICE, cached_input_femtousd=MAYBE_PRICE,
    cache_write_femtousd=MAYBE_PRICE, cache_write_1h_femtousd=MAYBE_PRICE, reasoning_femtousd=MAYBE_PRICE,
    request_femtousd=PRICE, tiers=st.lists(TIER, max_size=1).map(tuple),
)  # fmt: skip
MONEY = st.integers(0, 10**9) | st.just(FREE_TO_SPEND)
ASKED = st.fixed_dictionaries({}, optional={"max_tokens": st.integers(1, 10_000), "n": st.integers(1, 4)})


@given(charged=PRICES, left=MONEY, request=ASKED, bound=st.integers(1, 8_000), data=st.data())
def test_a_hold_covers_every_bill_of_a_call_that_keeps_to_max_tokens(
    charged: Prices, left: int, request: dict[str, int], bound: int, data: st.DataObject
) -> None:
    found = estimated(charged=charged, left_nanousd=left, request=request, bound=bound, prompt_tokens=bound)
    assume(found.view.feasible)
    prompt = data.draw(st.integers(0, bound))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    output = data.draw(st.integers(0, found.max_tokens * request.get("n", 1)))
    usage = Usage(
        prompt, output, cached_tokens=cached, cache_write_tokens=written,
        cache_write_1h_tokens=data.draw(st.integers(0, written)), reasoning_tokens=data.draw(st.integers(0, output)),
    )  # fmt: skip
    assert bill_nanousd(charged, usage) <= found.hold_nanousd


def test_the_sound_of_an_earlier_answer_is_held_for_at_the_price_of_sounds() -> None:
    """Also where the answer that is asked for is text."""
    charged = prices(audio_input_femtousd=40 * FEMTOUSD_PER_MTOK_USD)
    spoken = [{"role": "user", "content": "a"}, {"role": "assistant", "audio": {"id": "audio_1"}},
              {"role": "user", "content": "b"}]  # fmt: skip
    found = estimated(charged=charged, request={"messages": spoken, "max_tokens": 10}, bound=17_000)
    worst = bill_nanousd(charged, Usage(17_000, 10, audio_input_tokens=16_384))
    assert bill_nanousd(charged, Usage(17_000, 10)) < worst <= found.hold_nanousd


WINDOW_TOKENS = 8_000


@given(charged=PRICES, left=MONEY, request=ASKED, margin=st.integers(0, 9_000), images=st.integers(0, 3),
       data=st.data())  # fmt: skip
def test_a_hold_near_a_full_window_covers_every_prompt_that_the_window_takes(
    charged: Prices, left: int, request: dict[str, Any], margin: int, images: int, data: st.DataObject
) -> None:
    """Whatever the provider's tokenizer makes of the prompt, it refuses what is longer than the window."""
    pictures = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}] * images
    request |= {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, *pictures]}]}
    bound = 7_900 + margin
    found = estimated(
        charged=charged, left_nanousd=left, request=request, prompt_tokens=7_900, bound=bound,
        max_input_tokens=WINDOW_TOKENS, longest_prompt_tokens=WINDOW_TOKENS,
    )  # fmt: skip
    assume(found.view.feasible)
    prompt = data.draw(st.integers(0, min(bound, WINDOW_TOKENS)))
    written = data.draw(st.integers(0, prompt))
    output = data.draw(st.integers(0, found.max_tokens * request.get("n", 1)))
    usage = Usage(
        prompt, output, cache_write_tokens=written, cache_write_1h_tokens=data.draw(st.integers(0, written)),
        reasoning_tokens=data.draw(st.integers(0, output)),
    )  # fmt: skip
    assert bill_nanousd(charged, usage, images=images) <= found.hold_nanousd


def test_a_prompt_near_a_full_window_is_held_at_the_window_where_it_is_stated() -> None:
    near_full: dict[str, Any] = {"prompt_tokens": 98_000, "bound": 196_000, "request": {"max_tokens": 100}}
    assert estimated(**near_full).hold_nanousd == 196_000_000 + 200_000
    assert estimated(**near_full, longest_prompt_tokens=100_000).hold_nanousd == 100_000_000 + 200_000
    assert estimated(**near_full, longest_prompt_tokens=100_000, left_nanousd=110_000_000).view.feasible


def test_a_price_above_the_window_is_not_held_and_one_within_it_is() -> None:
    tiered = Prices(10**9, 10**9, tiers=(PriceTier(100_000, input_femtousd=2 * 10**9),))
    near_full: dict[str, Any] = {
        "charged": tiered,
        "prompt_tokens": 98_000,
        "bound": 196_000,
        "request": {"max_tokens": 100},
    }
    assert estimated(**near_full, longest_prompt_tokens=100_000).hold_nanousd == 100_000_000 + 100_000
    assert estimated(**near_full, longest_prompt_tokens=150_000).hold_nanousd == 300_000_000 + 100_000


@given(charged=PRICES, left=MONEY, request=ASKED, over_budget=st.sampled_from(["degrade", "refuse"]),
       contended=st.booleans())  # fmt: skip
def test_a_hold_never_exceeds_what_is_left_when_the_model_is_feasible_and_always_does_when_it_is_not(
    charged: Prices, left: int, request: dict[str, int], over_budget: Any, contended: bool
) -> None:
    found = estimated(charged=charged, left_nanousd=left, request=request, over_budget=over_budget, contended=contended)
    if found.view.feasible:
        assert found.hold_nanousd <= left
        assert 1 <= found.max_tokens <= min(request.get("max_tokens", 4_000), 4_000)
        assert found.clamped == (found.max_tokens < min(request.get("max_tokens", 4_000), 4_000))
    else:
        assert found.hold_nanousd > left
    assert 0 <= found.likely_nanousd <= found.hold_nanousd


@given(charged=PRICES, one=MONEY, other=MONEY, request=ASKED)
def test_more_money_never_makes_a_model_unaffordable_or_its_answer_shorter(
    charged: Prices, one: int, other: int, request: dict[str, int]
) -> None:
    poor, rich = (estimated(charged=charged, left_nanousd=left, request=request) for left in sorted((one, other)))
    assert poor.view.feasible <= rich.view.feasible
    if poor.view.feasible:
        assert poor.max_tokens <= rich.max_tokens
        assert poor.hold_nanousd <= rich.hold_nanousd


@given(charged=PRICES, shorter=st.integers(1, 50_000), longer=st.integers(1, 50_000))
def test_a_longer_prompt_never_costs_less(charged: Prices, shorter: int, longer: int) -> None:
    assume(not charged.tiers)  # a tier may be cheaper: the file says so, and the bill follows it
    low, high = (estimated(charged=charged, prompt_tokens=tokens, bound=tokens) for tokens in sorted((shorter, longer)))
    assert low.hold_nanousd <= high.hold_nanousd
    pairs = zip(low.view.cost_quantiles_usd, high.view.cost_quantiles_usd, strict=True)
    assert all(a <= b for a, b in pairs)


@given(charged=PRICES, left=MONEY)
def test_predicted_costs_rise_with_their_level(charged: Prices, left: int) -> None:
    costs = estimated(charged=charged, left_nanousd=left).view.cost_quantiles_usd
    assert list(costs) == sorted(costs)
