"""Our bills against another price list and calculator, the `genai-prices` package.

Both sides price the same usage with their own data. Where they differ, the test names both amounts and the reason, so
that a change on either side is seen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price

from gateway.catalog.build import load
from gateway.catalog.cost import bill_nanousd
from gateway.catalog.models import Catalog
from gateway.catalog.usage import Usage
from gateway.catalog.web_search import search_terms


class Case(NamedTuple):
    """One call: LiteLLM's model, their provider and model, and its usage."""

    model: str
    provider: str
    theirs: str
    usage: Usage


CASES = {
    "cached prompt": Case("openai/gpt-5", "openai", "gpt-5", Usage(2_006, 300, cached_tokens=1_920)),
    "reasoning": Case(
        "openai/o4-mini", "openai", "o4-mini", Usage(4_096, 1_500, cached_tokens=1_024, reasoning_tokens=1_280)
    ),
    "plain": Case("openai/gpt-4o-mini", "openai", "gpt-4o-mini", Usage(1_117, 46)),
    "above 272k": Case("openai/gpt-5.4", "openai", "gpt-5.4", Usage(300_000, 10)),
    "cache written": Case(
        "anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5",
        Usage(188_563, 393, cached_tokens=188_086, cache_write_tokens=456),
    ),
    "above 200k": Case("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5", Usage(250_000, 393)),
    "an advisor": Case("anthropic/claude-opus-4-5", "anthropic", "claude-opus-4-5", Usage(1_000, 393)),
    "gemini cached": Case(
        "gemini/gemini-2.5-pro", "google", "gemini-2.5-pro", Usage(10_000, 2_000, cached_tokens=4_000)
    ),
    "gemini above 200k": Case("gemini/gemini-2.5-pro", "google", "gemini-2.5-pro", Usage(250_000, 2_000)),
    "audio heard": Case(
        "gemini/gemini-2.5-flash", "google", "gemini-2.5-flash", Usage(1_000, 200, audio_input_tokens=400)
    ),
    "audio spoken": Case(
        "openai/gpt-audio", "openai", "gpt-audio", Usage(200, 500, audio_input_tokens=150, audio_output_tokens=400)
    ),
    "perplexity": Case("perplexity/sonar", "perplexity", "sonar", Usage(100, 10, web_searches=1)),
    "mistral": Case("mistral/mistral-large-latest", "mistral", "mistral-large-latest", Usage(100, 10)),
    "deepseek": Case("deepseek/deepseek-chat", "deepseek", "deepseek-chat", Usage(1_000, 700, cached_tokens=512)),
}  # fmt: skip

AT = datetime(2026, 11, 2, 12, tzinfo=UTC)
"""Their prices have dates and hours."""

DIFFERENCES: dict[str, tuple[int, int, str]] = {
    "perplexity": (5_110_000, 12_110_000, "they assume a high search context; Perplexity's default is low"),
    "mistral": (65_000, 260_000, "LiteLLM has the price of Large 3 for `latest`, they that of Large 2"),
    "deepseek": (444_976, 937_600, "they have later prices of deepseek-chat, which double in peak hours"),
}
"""Case -> our nano-USD, theirs, and the reason."""


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("prices") / "gateway.yaml"
    models = sorted({case.model for case in CASES.values()})
    path.write_text(
        "model_list:\n" + "".join(f"  - {{model_name: {m}, litellm_params: {{model: {m}}}}}\n" for m in models)
    )
    return load(Path(path), {})[1]


@pytest.mark.parametrize("name", CASES)
def test_two_price_lists_agree_or_differ_for_a_known_reason(catalog: Catalog, name: str) -> None:
    case = CASES[name]
    prices, usage = catalog.models[case.model].prices, case.usage
    ours = bill_nanousd(prices, usage, search=search_terms(case.model, prices, {}, {}))
    counted = TheirUsage(
        input_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens or None, cache_write_tokens=usage.cache_write_tokens or None,
        input_audio_tokens=usage.audio_input_tokens or None, output_audio_tokens=usage.audio_output_tokens or None,
    )  # fmt: skip
    priced = calc_price(counted, case.theirs, provider_id=case.provider, genai_request_timestamp=AT)
    theirs = float(priced.total_price * 10**9)
    expected = DIFFERENCES.get(name, (ours, ours, ""))
    assert (ours, theirs) == expected[:2]
