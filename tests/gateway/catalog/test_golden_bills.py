"""Invoices worked out by hand, one per usage shape that a provider sends; exact to the nano-USD.

Prices are the public list prices of the named models per million tokens; what matters is the arithmetic.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.catalog.cost import bill_nanousd
from gateway.catalog.prices import Prices, PriceTier
from gateway.catalog.usage import Usage
from gateway.catalog.usage_reading import read_usage
from gateway.money import femtousd_from_usd


def per_million(usd: str) -> int:
    return femtousd_from_usd(usd) // 10**6


GPT_4O_MINI = Prices(per_million("0.15"), per_million("0.60"), cached_input_femtousd=per_million("0.075"))
O4_MINI = Prices(per_million("1.10"), per_million("4.40"), cached_input_femtousd=per_million("0.275"))
GPT_5_4 = Prices(
    per_million("2.50"),
    per_million("15"),
    cached_input_femtousd=per_million("0.25"),
    tiers=(PriceTier(272_000, per_million("5"), per_million("22.5"), per_million("0.5")),),
)
GPT_4O_AUDIO = Prices(
    per_million("2.50"),
    per_million("10"),
    audio_input_femtousd=per_million("40"),
    audio_output_femtousd=per_million("80"),
)
SONNET = Prices(
    per_million("3"),
    per_million("15"),
    cached_input_femtousd=per_million("0.30"),
    cache_write_femtousd=per_million("3.75"),
    cache_write_1h_femtousd=per_million("6"),
    tiers=(
        PriceTier(
            200_000,
            input_femtousd=per_million("6"),
            output_femtousd=per_million("22.50"),
            cached_input_femtousd=per_million("0.60"),
            cache_write_femtousd=per_million("7.50"),
            cache_write_1h_femtousd=per_million("12"),
        ),
    ),
)
GEMINI_PRO = Prices(
    per_million("1.25"),
    per_million("10"),
    cached_input_femtousd=per_million("0.125"),
    tiers=(PriceTier(200_000, per_million("2.50"), per_million("15"), per_million("0.25")),),
)
GEMINI_FLASH_LITE_128K = Prices(
    per_million("0.075"),
    per_million("0.30"),
    tiers=(PriceTier(128_000, per_million("0.15"), per_million("0.60")),),
)
DEEPSEEK = Prices(per_million("0.28"), per_million("0.42"), cached_input_femtousd=per_million("0.028"))
GROK = Prices(per_million("3"), per_million("15"), cached_input_femtousd=per_million("0.75"))

BILLS: dict[str, tuple[Prices, dict[str, Any], int]] = {
    # 1,117 * 150 + 46 * 600
    "openai plain": (
        GPT_4O_MINI,
        {"prompt_tokens": 1_117, "completion_tokens": 46, "total_tokens": 1_163},
        167_550 + 27_600,
    ),
    # (2,006 - 1,920) * 150 + 1,920 * 75 + 300 * 600
    "openai cached": (
        GPT_4O_MINI,
        {
            "prompt_tokens": 2_006,
            "completion_tokens": 300,
            "total_tokens": 2_306,
            "prompt_tokens_details": {"cached_tokens": 1_920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        12_900 + 144_000 + 180_000,
    ),
    # (4,096 - 1,024) * 1,100 + 1,024 * 275 + 1,500 * 4,400; the 1,280 reasoning tokens are within the 1,500
    "openai cached and reasoning": (
        O4_MINI,
        {
            "prompt_tokens": 4_096,
            "completion_tokens": 1_500,
            "total_tokens": 5_596,
            "prompt_tokens_details": {"cached_tokens": 1_024},
            "completion_tokens_details": {"reasoning_tokens": 1_280},
        },
        3_379_200 + 281_600 + 6_600_000,
    ),
    # 272,000 is the last at the low price: 272,000 * 2,500 + 10 * 15,000
    "openai at 272k": (GPT_5_4, {"prompt_tokens": 272_000, "completion_tokens": 10}, 680_000_000 + 150_000),
    # the whole call at the high one: 172,001 * 5,000 + 100,000 * 500 + 10 * 22,500
    "openai above 272k": (
        GPT_5_4,
        {"prompt_tokens": 272_001, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 100_000}},
        860_005_000 + 50_000_000 + 225_000,
    ),
    # text (200 - 150) * 2,500 + audio 150 * 40,000 + text (500 - 400) * 10,000 + audio 400 * 80,000
    "openai audio": (
        GPT_4O_AUDIO,
        {
            "prompt_tokens": 200,
            "completion_tokens": 500,
            "prompt_tokens_details": {"audio_tokens": 150, "text_tokens": 50},
            "completion_tokens_details": {"audio_tokens": 400, "text_tokens": 100},
        },
        125_000 + 6_000_000 + 1_000_000 + 32_000_000,
    ),
    # the Responses dialect: (75 - 25) * 1,100 + 25 * 275 + 1,186 * 4,400
    "openai responses": (
        O4_MINI,
        {
            "input_tokens": 75,
            "input_tokens_details": {"cached_tokens": 25},
            "output_tokens": 1_186,
            "output_tokens_details": {"reasoning_tokens": 1_024},
            "total_tokens": 1_261,
        },
        55_000 + 6_875 + 5_218_400,
    ),
    # Anthropic's own: input excludes the cache. 21 * 3,000 + 188_086 * 300 + 456 * 3,750 + 393 * 15,000
    "anthropic native": (
        SONNET,
        {
            "input_tokens": 21,
            "cache_creation_input_tokens": 456,
            "cache_read_input_tokens": 188_086,
            "output_tokens": 393,
        },
        63_000 + 56_425_800 + 1_710_000 + 5_895_000,
    ),
    # the same call as LiteLLM delivers it: everything in prompt_tokens
    "anthropic through litellm": (
        SONNET,
        {
            "prompt_tokens": 188_563,
            "completion_tokens": 393,
            "total_tokens": 188_956,
            "cache_creation_input_tokens": 456,
            "cache_read_input_tokens": 188_086,
            "prompt_tokens_details": {"cached_tokens": 188_086, "cache_creation_tokens": 456},
        },
        63_000 + 56_425_800 + 1_710_000 + 5_895_000,
    ),
    # two cache lifetimes: 100 * 3,000 + 1,000 * 3,750 + 2,000 * 6,000 + 10 * 15,000
    "anthropic one-hour cache": (
        SONNET,
        {
            "input_tokens": 100,
            "cache_creation_input_tokens": 3_000,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000},
            "output_tokens": 10,
        },
        300_000 + 3_750_000 + 12_000_000 + 150_000,
    ),
    # the same without the sum: 1,000 * 3,000 + 300 * 3,750 + 500 * 15,000, and 300 * 6,000 for an hour
    "anthropic cache writes by lifetime alone": (
        SONNET,
        {"input_tokens": 1_000, "cache_creation": {"ephemeral_5m_input_tokens": 300}, "output_tokens": 500},
        3_000_000 + 1_125_000 + 7_500_000,
    ),
    "anthropic one-hour writes alone": (
        SONNET,
        {
            "input_tokens": 1_000,
            "output_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
        },
        3_000_000 + 1_800_000 + 7_500_000,
    ),
    # long context counts cached tokens too: 1 * 6,000 + 199,999 * 600 + 1 * 7,500 + 2 * 22,500
    "anthropic above 200k": (
        SONNET,
        {
            "input_tokens": 1,
            "cache_read_input_tokens": 199_999,
            "cache_creation_input_tokens": 1,
            "output_tokens": 2,
        },
        6_000 + 119_999_400 + 7_500 + 45_000,
    ),
    # Gemini's own: the prompt includes cached, candidates exclude thoughts.
    # (10,000 - 4,000) * 1,250 + 4,000 * 125 + (200 + 1,800) * 10,000
    "gemini native thoughts": (
        GEMINI_PRO,
        {
            "promptTokenCount": 10_000,
            "cachedContentTokenCount": 4_000,
            "candidatesTokenCount": 200,
            "thoughtsTokenCount": 1_800,
            "totalTokenCount": 12_000,
        },
        7_500_000 + 500_000 + 20_000_000,
    ),
    # as LiteLLM delivers it: thoughts are in the completion. 250,000 > 200k: * 2,500 + 2,000 * 15,000
    "gemini through litellm above 200k": (
        GEMINI_PRO,
        {
            "prompt_tokens": 250_000,
            "completion_tokens": 2_000,
            "total_tokens": 252_000,
            "completion_tokens_details": {"reasoning_tokens": 1_800, "text_tokens": 200},
        },
        625_000_000 + 30_000_000,
    ),
    # its OpenAI dialect: only the total tells of 700 thoughts. 1,000 * 1,250 + (300 + 700) * 10,000
    "gemini openai dialect": (
        GEMINI_PRO,
        {"prompt_tokens": 1_000, "completion_tokens": 300, "total_tokens": 2_000},
        1_250_000 + 10_000_000,
    ),
    # 128,001 * 150 + 10 * 600
    "gemini above 128k": (
        GEMINI_FLASH_LITE_128K,
        {"prompt_tokens": 128_001, "completion_tokens": 10, "total_tokens": 128_011},
        19_200_150 + 6_000,
    ),
    # DeepSeek: hit and miss add up to the prompt. 512 * 28 + 488 * 280 + 700 * 420
    "deepseek hit and miss": (
        DEEPSEEK,
        {
            "prompt_tokens": 1_000,
            "completion_tokens": 700,
            "total_tokens": 1_700,
            "prompt_cache_hit_tokens": 512,
            "prompt_cache_miss_tokens": 488,
            "completion_tokens_details": {"reasoning_tokens": 600},
        },
        14_336 + 136_640 + 294_000,
    ),
    # xAI excludes reasoning: (300 - 100) * 3,000 + 100 * 750 + (50 + 400) * 15,000
    "xai reasoning outside": (
        GROK,
        {
            "prompt_tokens": 300,
            "completion_tokens": 50,
            "total_tokens": 750,
            "prompt_tokens_details": {"cached_tokens": 100},
            "completion_tokens_details": {"reasoning_tokens": 400},
        },
        600_000 + 75_000 + 6_750_000,
    ),
}


@pytest.mark.parametrize("name", BILLS)
def test_the_bill_is_the_invoice(name: str) -> None:
    prices, reported, invoice_nanousd = BILLS[name]
    usage = read_usage(reported)
    assert isinstance(usage, Usage)
    assert bill_nanousd(prices, usage) == invoice_nanousd


def test_reasoning_has_its_own_price_where_the_list_has_one() -> None:
    prices = Prices(per_million("1"), per_million("2"), reasoning_femtousd=per_million("3"))
    # 10 * 1,000 + (100 - 60) * 2,000 + 60 * 3,000
    assert bill_nanousd(prices, Usage(10, 100, reasoning_tokens=60)) == 10_000 + 80_000 + 180_000
