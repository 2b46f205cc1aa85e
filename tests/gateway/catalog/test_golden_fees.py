"""Invoices worked out by hand for what is billed beside plain tokens: tiers, searches, several models, images.

Prices are those of LiteLLM's bundled map for the named models; the arithmetic in the comments is in nano-USD.
"""

from __future__ import annotations

import importlib.resources
import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway.catalog.build import PRICE_MAP_FILE, load
from gateway.catalog.call_cost import billable_tiers, call_bounds, deployment_terms, expected_prices, sent_tier
from gateway.catalog.cost import CostBounds, bill_nanousd, settlement
from gateway.catalog.models import Catalog, Model
from gateway.catalog.prices import Prices
from gateway.catalog.usage import PartialUsage, Usage, with_facts
from gateway.catalog.usage_reading import read_usage
from gateway.catalog.web_search import SearchTerms
from gateway.config.prices import PREMIUMS, PRICE_KEY, PRICE_NAMES, TIERS
from gateway.config.reader import SettingsError

NAMES = (
    "gpt-5", "claude-sonnet-4-5", "gemini-2.5-pro", "gemini-3.1-pro", "gpt-4o-search-preview", "sonar", "gpt-audio",
    "gemini-2.5-flash", "sonar-deep-research", "claude-opus-4-6", "claude-opus-4-8", "proxied", "azured",
)  # fmt: skip
MODELS = dict(
    zip(
        NAMES,
        (
            "openai/gpt-5", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-pro", "gemini/gemini-3.1-pro-preview",
            "openai/gpt-4o-search-preview", "perplexity/sonar", "openai/gpt-audio", "gemini/gemini-2.5-flash",
            "perplexity/sonar-deep-research", "anthropic/claude-opus-4-6", "anthropic/claude-opus-4-8",
            "openai/gpt-5, api_base: 'https://proxy.example/v1'", "azure/gpt-5, api_base: 'https://a.example'",
        ),
        strict=True,
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    path = tmp_path_factory.mktemp("fees") / "gateway.yaml"
    entries = [f"  - {{model_name: {name}, litellm_params: {{model: {MODELS[name]}}}}}\n" for name in NAMES]
    path.write_text("model_list:\n" + "".join(entries))
    return load(path, {})[1]


def invoice(model: Model, reported: dict[str, Any], **params: Any) -> int:
    """What the model's first deployment is billed for a response with this usage."""
    [deployment] = model.deployments
    bill = settlement(
        deployment.prices,
        read_usage(reported),
        held_nanousd=10**12,
        prompt_tokens=7,
        output_tokens=7,
        sent_tier=sent_tier(deployment, params.get("service_tier")),
        search=deployment_terms(deployment, params, {}),
        prices_of=deployment.prices_of,
    )
    assert (bill.usage_source, bill.alarm) == ("reported", None)
    return bill.amount_nanousd


PLAIN = {"prompt_tokens": 1_000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}}


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        # 600 * 1,250 + 400 * 125 + 100 * 10,000
        ("default", 750_000 + 50_000 + 1_000_000),
        # 600 * 2,500 + 400 * 250 + 100 * 20,000
        ("priority", 1_500_000 + 100_000 + 2_000_000),
        # 600 * 625 + 400 * 62.5 + 100 * 5,000
        ("flex", 375_000 + 25_000 + 500_000),
        ("batch", 375_000 + 25_000 + 500_000),
        # No tier of the list: the standard price.
        ("scale", 750_000 + 50_000 + 1_000_000),
    ],
)
def test_the_reported_tier_is_billed(catalog: Catalog, tier: str, expected: int) -> None:
    """Whichever tier was asked for: a provider may serve a priority call as a standard one."""
    for asked in (None, "auto", "priority"):
        assert invoice(catalog.models["gpt-5"], PLAIN | {"service_tier": tier}, service_tier=asked) == expected


def test_without_a_report_the_tier_that_was_sent_is_billed(catalog: Catalog) -> None:
    assert invoice(catalog.models["gpt-5"], PLAIN, service_tier="priority") == 3_600_000
    assert invoice(catalog.models["gpt-5"], PLAIN, service_tier="scale") == 1_800_000
    assert invoice(catalog.models["gpt-5"], PLAIN, service_tier="auto") == 1_800_000


def test_gemini_names_the_tier_by_its_traffic_and_has_long_prompts_in_each(catalog: Catalog) -> None:
    usage = {"promptTokenCount": 200_001, "candidatesTokenCount": 10, "totalTokenCount": 200_011}
    # 200,001 * 4,500 + 10 * 27,000, against 200,001 * 2,500 + 10 * 15,000
    gemini = catalog.models["gemini-2.5-pro"]
    assert invoice(gemini, usage | {"trafficType": "ON_DEMAND_PRIORITY"}) == 900_004_500 + 270_000
    assert invoice(gemini, usage | {"trafficType": "ON_DEMAND"}) == 500_002_500 + 150_000


def test_a_tier_beside_the_usage_counts_where_the_usage_names_none() -> None:
    assert with_facts(Usage(1, 1), "priority", 0) == Usage(1, 1, service_tier="priority")
    assert with_facts(Usage(1, 1, service_tier="standard"), "priority", 0) == Usage(1, 1, service_tier="standard")
    half = with_facts(PartialUsage(Usage(1, 0), has_prompt=True, has_output=False), "flex", 2)
    assert isinstance(half, PartialUsage)
    assert half.completed(9, 9) == Usage(1, 9, service_tier="flex", web_searches=2)
    assert with_facts(None, "priority", 1) is None


@pytest.mark.parametrize(
    ("asked", "tiers"),
    [
        (None, set()),  # OpenAI is told `default`
        ("default", set()),
        ("auto", {"batches", "flex", "priority"}),
        ("priority", {"priority"}),
        ("flex", {"flex"}),
        ("scale", set()),  # not sent
    ],
)
def test_a_hold_covers_every_tier_that_can_be_billed(catalog: Catalog, asked: str | None, tiers: set[str]) -> None:
    model = catalog.models["gpt-5"]
    assert billable_tiers(model.deployments[0], asked) == tiers
    params = {"service_tier": asked} if asked else {}
    held = call_bounds(model, 1_000, params, {}).worst_nanousd(100)
    for tier in (None, *tiers):
        assert bill_nanousd(model.prices, Usage(1_000, 100, service_tier=tier)) <= held
    assert held == (4_500_000 if "priority" in tiers else 2_250_000)


def test_where_another_tier_may_be_the_default_the_hold_covers_it(catalog: Catalog) -> None:
    """Behind an address of its own and at Azure a call without a tier is served in the one of their settings."""
    for name in ("proxied", "azured"):
        model = catalog.models[name]
        assert "priority" in billable_tiers(model.deployments[0], None)
        assert billable_tiers(model.deployments[0], "default") == set()
        held = call_bounds(model, 1_000, {}, {}).worst_nanousd(100)
        assert invoice(model, PLAIN | {"service_tier": "priority"}) == 3_600_000 <= held == 4_500_000


def opus(**more: Any) -> dict[str, Any]:
    """Usage of 1,000 tokens in and 500 out: 1,000 * 5,000 + 500 * 25,000 = 17,500,000 at the standard price."""
    return {"input_tokens": 1_000, "output_tokens": 500, "service_tier": "standard"} | more


@pytest.mark.parametrize(
    ("name", "reported", "expected"),
    [
        ("claude-opus-4-6", opus(inference_geo="global"), 17_500_000),
        ("claude-opus-4-6", opus(inference_geo="not_available"), 17_500_000),
        ("claude-opus-4-6", opus(inference_geo="us"), 19_250_000),  # * 1.1
        # 300 of them written: 1.1 * (1,000 * 5,000 + 300 * 6,250 + 500 * 25,000)
        ("claude-opus-4-6", opus(inference_geo="US", cache_creation_input_tokens=300), 21_312_500),
        ("claude-opus-4-8", opus(speed="fast"), 35_000_000),  # * 2
        ("claude-opus-4-8", opus(speed="fast", inference_geo="us"), 38_500_000),  # * 2.2
        ("claude-opus-4-6", opus(speed="fast", inference_geo="us"), 19_250_000),  # has no fast mode
        ("claude-sonnet-4-5", opus(inference_geo="us"), 10_500_000),  # has no premium
        # An inner call without a place of its own was where the others were.
        (
            "claude-opus-4-6",
            opus(inference_geo="us", iterations=[{"input_tokens": 1_000, "output_tokens": 500}] * 2),
            38_500_000,
        ),
    ],
)
def test_anthropic_s_premiums_are_billed(catalog: Catalog, name: str, reported: dict[str, Any], expected: int) -> None:
    assert invoice(catalog.models[name], reported) == expected


@pytest.mark.parametrize("asked", [None, "auto", "default", "priority"])
def test_a_hold_covers_where_a_workspace_has_its_calls_served(catalog: Catalog, asked: str | None) -> None:
    model = catalog.models["claude-opus-4-8"]
    assert billable_tiers(model.deployments[0], asked) - {"batches"} == {"us"}
    plain, held = CostBounds(model.prices, 1_000), call_bounds(model, 1_000, {"service_tier": asked}, {})
    assert held.worst_nanousd(500) * 10 == plain.worst_nanousd(500) * 11


def test_a_hold_covers_the_fast_mode_that_an_operator_lets_clients_choose(tmp_path: Path) -> None:
    model = model_of(tmp_path, "model: anthropic/claude-opus-4-8, allowed_openai_params: [speed]", "")
    assert billable_tiers(model.deployments[0], None) == {"us", "fast", "fast_us"}
    held = call_bounds(model, 1_000, {}, {}).worst_nanousd(500)
    assert bill_nanousd(model.prices, Usage(1_000, 500, premiums=("fast", "us"))) <= held


def test_every_tier_and_factor_of_the_price_map_is_known_and_held_for(tmp_path: Path) -> None:
    """A price of a kind that is new in LiteLLM's map fails here, before a bill exceeds its hold."""
    listed = msgspec.json.decode(importlib.resources.files("litellm").joinpath(PRICE_MAP_FILE).read_bytes())
    listed.pop("sample_spec")
    suffix = re.compile(rf"(?:{'|'.join(PRICE_NAMES)})(?:_above_\d+k_tokens)?_(?P<tier>[a-z_]+)")
    found = [match["tier"] for entry in listed.values() for match in map(suffix.fullmatch, entry) if match]
    assert set(found) <= {*TIERS, "cache_hit"} | {"per_token", "above_1hr"}, set(found)
    factors = [
        (name, entry["provider_specific_entry"])
        for name, entry in listed.items()
        if entry.get("mode") in ("chat", "responses") and isinstance(entry.get("provider_specific_entry"), dict)
    ]
    factors = [(name, {k: v for k, v in each.items() if isinstance(v, int | float)}) for name, each in factors]
    assert len(factors) > 5
    assert {premium for _, each in factors for premium in each} <= set(PREMIUMS)
    tiered = [
        name
        for name, entry in listed.items()
        if entry.get("mode") in ("chat", "responses")
        and "input_cost_per_token" in entry
        and any(PRICE_KEY.fullmatch(key) and key.endswith(TIERS) for key in entry)
    ]
    assert len(tiered) > 50
    names = sorted({*tiered, *(name for name, _ in factors)})
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"model_list": [
        {"model_name": name, "litellm_params": {
            "model": name, "custom_llm_provider": listed[name]["litellm_provider"], "allowed_openai_params": ["speed"],
            "api_base": "https://own.example/v1",
        }} for name in names
    ]}))  # fmt: skip
    models = load(path, {})[1].models
    known = dict(factors)
    for name in names:
        model = models[name]
        [deployment] = model.deployments
        prompt = min(300_000, model.longest_prompt_tokens or 300_000)
        for asked in (None, "auto", *model.prices.tier_names):
            held = call_bounds(model, prompt, {"service_tier": asked}, {})
            sent = sent_tier(deployment, asked)
            # The provider's choice: where none is sent, any that its settings may have as their default.
            served = {None, sent} | (deployment.unasked_tiers if asked is None else set())
            served |= set(model.prices.tier_names) - set(PREMIUMS) if asked == "auto" else set()
            for tier, premiums in itertools.product(served, ((), ("us",), ("fast",), ("fast", "us"))):
                usage = Usage(prompt, 9_000, cache_write_tokens=900, service_tier=tier, premiums=premiums)
                assert bill_nanousd(model.prices, usage) <= held.worst_nanousd(9_000), (name, asked, tier)
        for premium in known.get(name, ()):
            assert model.prices.of(premium) is not model.prices


def test_openai_is_told_the_tier_that_is_held_for(catalog: Catalog) -> None:
    defaults = {name: model.deployments[0].request_defaults for name, model in catalog.models.items()}
    assert defaults["gpt-5"] == {"service_tier": "default"}
    assert defaults["gemini-2.5-pro"] == {}


def model_of(folder: Path, params: str, info: str) -> Model:
    path = folder / "gateway.yaml"
    path.write_text(f"model_list: [{{model_name: a, litellm_params: {{{params}}}, model_info: {{{info}}}}}]")
    return load(path, {})[1].models["a"]


FILE_PRICES = "input_cost_per_token: 1e-6, output_cost_per_token: 2e-6"


def test_a_tier_priced_in_the_file_is_held_for_unless_a_request_excludes_it(tmp_path: Path) -> None:
    priced = f"{FILE_PRICES}, input_cost_per_token_priority: 3e-6"
    model = model_of(tmp_path, "model: openai/own, api_base: 'http://127.0.0.1:1/v1'", priced)
    [deployment] = model.deployments
    assert deployment.request_defaults == {}
    assert billable_tiers(deployment, None) == {"priority"}
    assert billable_tiers(deployment, "default") == set()
    # 10 * 3,000 + 5 * 2,000: the output has no price of its own in the tier.
    assert bill_nanousd(model.prices, Usage(10, 5, service_tier="priority")) == 40_000
    assert expected_prices(model, {"service_tier": "priority"}).input_femtousd == 3 * 10**9
    assert expected_prices(model, {}).input_femtousd == 10**9


PRIORITY = f"{FILE_PRICES}, input_cost_per_token_priority: 3e-6"


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ("model: gpt-5", True),
        ("model: openai/gpt-5, api_base: 'https://eu.api.openai.com/v1'", True),
        ("model: gpt-5, custom_llm_provider: openai", True),
        ("model: openai/gpt-5, api_base: 'https://notopenai.com/v1'", False),
        ("model: gpt-5, custom_llm_provider: azure", False),
        ("model: claude-sonnet-4-5", False),
        ("model: gemini-2.5-pro", False),
        ("model: anthropic.claude-sonnet-4-5-20250929-v1:0", False),
        ("model: unheard-of", False),
    ],
)
def test_only_openai_itself_is_told_a_tier_that_nobody_asked_for(tmp_path: Path, params: str, told: bool) -> None:
    [deployment] = model_of(tmp_path, params, PRIORITY).deployments
    assert deployment.request_defaults == ({"service_tier": "default"} if told else {})


def test_an_operator_s_default_tier_is_held_for_and_needs_a_price(tmp_path: Path) -> None:
    model = model_of(tmp_path, "model: openai/gpt-5, service_tier: flex", "")
    assert sent_tier(model.deployments[0], None) == "flex"
    assert sent_tier(model.deployments[0], "default") is None
    with pytest.raises(SettingsError) as refused:
        model_of(tmp_path, "model: openai/own, service_tier: priority", FILE_PRICES)
    [problem] = refused.value.problems
    assert problem.startswith("gateway.yaml: model_list[0].litellm_params.service_tier: expected a tier with known")


def test_a_tier_without_a_price_gives_way_to_the_operator_s(tmp_path: Path) -> None:
    own = model_of(tmp_path, "model: openai/gpt-5", "").deployments[0]
    assert billable_tiers(own, "scale") == set()
    flex = model_of(tmp_path, "model: openai/gpt-5, service_tier: flex", "").deployments[0]
    assert sent_tier(flex, "scale") == "flex"
    assert billable_tiers(flex, "scale") == {"flex"}
    assert sent_tier(flex, "scale", ("service_tier",)) == "flex"


def test_a_tier_that_was_not_sent_is_not_billed(tmp_path: Path) -> None:
    own = model_of(tmp_path, "model: openai/gpt-5", "").deployments[0]
    assert sent_tier(own, "priority") == "priority"
    assert sent_tier(own, "priority", ("top_k", "service_tier")) is None
    never = "model: openai/gpt-5, service_tier: flex, additional_drop_params: [service_tier]"
    assert sent_tier(model_of(tmp_path, never, "").deployments[0], None) is None


def test_a_group_is_held_for_at_its_highest_tier(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    params = "litellm_params: {model: openai/own, api_base: 'http://127.0.0.1:1/v1'}"
    path.write_text(
        f"model_list: [{{model_name: a, {params}, model_info: {{{FILE_PRICES}, input_cost_per_token_priority: 5e-6}}}},"
        f" {{model_name: a, {params}, model_info: {{input_cost_per_token: 2e-6, output_cost_per_token: 2e-6}}}}]"
    )
    group = load(path, {})[1].models["a"]
    assert call_bounds(group, 10, {}, {}).worst_nanousd(0) == 50_000
    assert call_bounds(group, 10, {"service_tier": "default"}, {}).worst_nanousd(0) == 20_000


# Searches.


def test_anthropic_s_searches_are_billed_by_their_count(catalog: Catalog) -> None:
    usage = {"input_tokens": 1_000, "output_tokens": 100, "server_tool_use": {"web_search_requests": 3}}
    # 1,000 * 3,000 + 100 * 15,000 + 3 * 0.01 USD
    assert invoice(catalog.models["claude-sonnet-4-5"], usage, web_search_options={}) == 4_500_000 + 30_000_000


def test_gemini_2_bills_one_fee_for_all_searches_of_a_call_and_gemini_3_each(catalog: Catalog) -> None:
    usage = {
        "prompt_tokens": 1_000, "completion_tokens": 100, "prompt_tokens_details": {"web_search_requests": 4},
    }  # fmt: skip
    # 1,000 * 1,250 + 100 * 10,000 + 0.035 USD, whether or not the client asked for the search
    assert invoice(catalog.models["gemini-2.5-pro"], usage, web_search_options={}) == 37_250_000
    assert invoice(catalog.models["gemini-2.5-pro"], usage) == 37_250_000
    # 1,000 * 2,000 + 100 * 12,000 + 4 * 0.014 USD
    assert invoice(catalog.models["gemini-3.1-pro"], usage, web_search_options={}) == 3_200_000 + 56_000_000


@pytest.mark.parametrize(
    ("name", "size", "searches"),
    [
        ("claude-sonnet-4-5", None, 5),
        ("claude-sonnet-4-5", "low", 1),
        ("gemini-2.5-pro", None, 1),  # one fee, however many
        ("gemini-2.5-pro", "high", 1),
        ("gemini-3.1-pro", None, 10),  # no limit can be sent
        ("gemini-3.1-pro", "low", 10),
    ],
)
def test_a_hold_covers_as_many_searches_as_can_be_billed(
    catalog: Catalog, name: str, size: str | None, searches: int
) -> None:
    options = {} if size is None else {"search_context_size": size}
    terms = deployment_terms(catalog.models[name].deployments[0], {"web_search_options": options}, {})
    assert terms.most == searches


@pytest.mark.parametrize(
    "reported",
    [
        {"prompt_tokens_details": {"web_search_requests": 2}},
        {"server_side_tool_usage_details": {"web_search_calls": 2}},
        {"tool_usage": {"web_search": {"num_requests": 2}}},
        {"num_search_queries": 2},
    ],
)
def test_searches_are_read_by_every_provider_s_name(reported: dict[str, Any]) -> None:
    usage = read_usage({"prompt_tokens": 1, "completion_tokens": 1} | reported)
    assert isinstance(usage, Usage)
    assert usage.web_searches == 2


def test_a_model_that_always_searches_is_billed_one_though_it_reports_none(catalog: Catalog) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    # 100 * 2,500 + 10 * 10,000 + 0.025 USD
    assert invoice(catalog.models["gpt-4o-search-preview"], usage) == 350_000 + 25_000_000
    # 100 * 1,000 + 10 * 1,000 + 0.005, or 0.012 for a high context size
    high = {"search_context_size": "high"}
    assert invoice(catalog.models["sonar"], usage) == 110_000 + 5_000_000
    assert invoice(catalog.models["sonar"], usage, web_search_options=high) == 110_000 + 12_000_000


def test_a_hold_covers_the_searches_of_a_request_and_what_they_find(catalog: Catalog) -> None:
    claude = catalog.models["claude-sonnet-4-5"]
    plain = call_bounds(claude, 1_000, {}, {}).worst_nanousd(100)
    low = call_bounds(claude, 1_000, {"web_search_options": {"search_context_size": "low"}}, {}).worst_nanousd(100)
    # one search for 0.01 USD; its 10,000 tokens at the price of a cache write for an hour
    assert low - plain == 10_000_000 + 10_000 * 6_000
    assert call_bounds(catalog.models["sonar"], 100, {}, {}).worst_nanousd(10) == 110_000 + 5_000_000


def test_queries_of_google_maps_are_billed_as_searches_are(catalog: Catalog) -> None:
    usage = {
        "prompt_tokens": 1_000, "completion_tokens": 100,
        "prompt_tokens_details": {"google_maps_grounding_requests": 3, "web_search_requests": 2},
    }  # fmt: skip
    # 1,000 * 1,250 + 100 * 10,000 + 0.035 USD for the searches + 0.025 for the queries of maps
    assert invoice(catalog.models["gemini-2.5-pro"], usage) == 2_250_000 + 35_000_000 + 25_000_000
    # 1,000 * 2,000 + 100 * 12,000 + 2 * 0.014 + 3 * 0.014
    assert invoice(catalog.models["gemini-3.1-pro"], usage) == 3_200_000 + 28_000_000 + 42_000_000


def test_deep_research_is_billed_for_the_pages_that_it_cites_and_held_for(catalog: Catalog) -> None:
    usage = {
        "prompt_tokens": 30, "completion_tokens": 1_000, "reasoning_tokens": 4_000, "citation_tokens": 12_000,
        "num_search_queries": 6,
    }  # fmt: skip
    # 30 * 2,000 + 1,000 * 8,000 + 4,000 * 3,000 + 12,000 * 2,000 + 6 * 0.005 USD
    bill = 60_000 + 8_000_000 + 12_000_000 + 24_000_000 + 30_000_000
    assert invoice(catalog.models["sonar-deep-research"], usage) == bill
    # 30 searches, 100,000 cited tokens, 100,000 of reasoning beside the output.
    held = call_bounds(catalog.models["sonar-deep-research"], 30, {}, {}).worst_nanousd(5_000)
    assert held == 60_000 + 5_000 * 8_000 + 100_000 * 2_000 + 100_000 * 3_000 + 150_000_000
    # Its smaller models are not billed for them.
    assert invoice(catalog.models["sonar"], {"prompt_tokens": 9, "completion_tokens": 1, "citation_tokens": 500}) == (
        10_000 + 5_000_000
    )


def test_the_hold_of_deep_research_covers_an_ordinary_call(catalog: Catalog) -> None:
    model = catalog.models["sonar-deep-research"]
    usage = {
        "prompt_tokens": 33, "completion_tokens": 7_163, "total_tokens": 7_196, "reasoning_tokens": 73_997,
        "citation_tokens": 20_016, "num_search_queries": 18,
    }  # fmt: skip
    # 33 * 2,000 + 7,163 * 8,000 + 73,997 * 3,000 + 20,016 * 2,000 + 18 * 0.005 USD
    bill = 66_000 + 57_304_000 + 221_991_000 + 40_032_000 + 90_000_000
    assert invoice(model, usage) == bill
    assert call_bounds(model, 33, {}, {}).worst_nanousd(7_163) >= bill


def test_reasoning_of_deep_research_is_beside_the_output_however_little(catalog: Catalog) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 1_000, "total_tokens": 1_030, "reasoning_tokens": 400}
    # 30 * 2,000 + 1,000 * 8,000 + 400 * 3,000 + 50 * 2,000 + 0.005 USD
    for citations in ({"citation_tokens": 50}, {"prompt_tokens_details": {"citation_tokens": 50}}):
        bill = 60_000 + 8_000_000 + 1_200_000 + 100_000 + 5_000_000
        assert invoice(catalog.models["sonar-deep-research"], usage | citations) == bill
    # Everyone else's reasoning is a part of the output.
    assert invoice(catalog.models["gpt-5"], usage) == 30 * 1_250 + 1_000 * 10_000


@pytest.mark.parametrize("name", ["perplexity/own-research", "openai/sonar-deep-research"])
@pytest.mark.parametrize("searches", ["", ", search_context_cost_per_query: {search_context_size_low: 0.005}"])
def test_cited_pages_are_held_for_wherever_they_have_a_price(tmp_path: Path, name: str, searches: str) -> None:
    prices = "input_cost_per_token: 1e-6, output_cost_per_token: 2e-6, citation_cost_per_token: 3e-6"
    model = model_of(tmp_path, f"model: {name}, api_base: https://pages.example/v1", f"{prices}{searches}")
    usage = {
        "prompt_tokens": 10, "completion_tokens": 100, "reasoning_tokens": 500, "citation_tokens": 20_000,
        "num_search_queries": 4,
    }  # fmt: skip
    fee = 5_000_000 if searches else 0
    # 10 * 1,000 + (100 + 500) * 2,000 + 20,000 * 3,000
    assert invoice(model, usage) == 10_000 + 1_200_000 + 60_000_000 + 4 * fee
    # 10 * 1,000 + (100 + 100,000) * 2,000 + 100,000 * 3,000
    assert call_bounds(model, 10, {}, {}).worst_nanousd(100) == 10_000 + 200_200_000 + 300_000_000 + 30 * fee


def test_reasoning_of_deep_research_is_held_for_at_the_prices_of_the_file(tmp_path: Path) -> None:
    prices = "input_cost_per_token: 1e-6, output_cost_per_token: 2e-6"
    model = model_of(tmp_path, "model: perplexity/sonar-deep-research", prices)
    assert call_bounds(model, 10, {}, {}).worst_nanousd(100) == 10_000 + 100_100 * 2_000


def test_an_estimate_of_a_searching_call_has_its_fee() -> None:
    search = SearchTerms(most=5, unreported=1)
    prices = Prices(10**9, 2 * 10**9, search_femtousd=(1, 5 * 10**12, 9))
    bill = settlement(prices, None, held_nanousd=10**9, prompt_tokens=10, output_tokens=5, search=search)
    assert (bill.amount_nanousd, bill.usage_source) == (20_000 + 5_000_000, "estimated")


def test_search_fees_of_the_file_are_read(tmp_path: Path) -> None:
    fees = "search_context_cost_per_query: {search_context_size_low: 0.001, search_context_size_high: 0.004}"
    model = model_of(tmp_path, "model: openai/own", f"{FILE_PRICES}, {fees}")
    assert model.prices.search_femtousd == (10**12, 4 * 10**12, 4 * 10**12)
    with pytest.raises(SettingsError) as refused:
        model_of(tmp_path, "model: openai/own", f"{FILE_PRICES}, search_context_cost_per_query: {{size_low: free}}")
    assert "model_info.search_context_cost_per_query.size_low" in refused.value.problems[0]


# Several calls behind one answer.


def test_each_call_of_an_answer_is_billed_at_its_own_model_s_prices(catalog: Catalog) -> None:
    """Anthropic's iterations: a compaction, the message, and an advisor of another model."""
    usage = {
        "input_tokens": 1_000,
        "output_tokens": 100,
        "iterations": [
            {"type": "compaction", "input_tokens": 250_000, "output_tokens": 500},
            {"type": "message", "input_tokens": 1_000, "output_tokens": 100, "cache_read_input_tokens": 2_000},
            {"type": "advisor_message", "model": "claude-opus-4-5", "input_tokens": 3_000, "output_tokens": 200},
        ],
    }
    # Sonnet above 200k: 250,000 * 6,000 + 500 * 22,500; below: 1,000 * 3,000 + 2,000 * 300 + 100 * 15,000;
    # Opus 4.5: 3,000 * 5,000 + 200 * 25,000
    assert invoice(catalog.models["claude-sonnet-4-5"], usage) == (
        1_500_000_000 + 11_250_000 + 3_000_000 + 600_000 + 1_500_000 + 15_000_000 + 5_000_000
    )


def test_a_model_without_prices_is_billed_at_the_asked_one_s_with_an_alarm(catalog: Catalog) -> None:
    [deployment] = catalog.models["claude-sonnet-4-5"].deployments
    reported = {"input_tokens": 5, "output_tokens": 5,
                "iterations": [{"model": "unheard-of", "input_tokens": 10, "output_tokens": 1}]}  # fmt: skip
    bill = settlement(
        deployment.prices, read_usage(reported), held_nanousd=10**9, prompt_tokens=1, output_tokens=1,
        prices_of=deployment.prices_of,
    )  # fmt: skip
    assert (bill.amount_nanousd, bill.usage_source, bill.alarm) == (45_000, "reported", "unpriced_model")


@pytest.mark.parametrize(
    "absurd",
    [
        {"server_tool_use": {"web_search_requests": 1_000_000}},
        {"iterations": [{"model": "claude-opus-4-5", "input_tokens": 9_000_000, "output_tokens": 1}]},
    ],
)
def test_absurd_counts_cost_our_own_estimate_with_an_alarm(catalog: Catalog, absurd: dict[str, Any]) -> None:
    [deployment] = catalog.models["claude-sonnet-4-5"].deployments
    bill = settlement(
        deployment.prices, read_usage({"input_tokens": 5, "output_tokens": 5} | absurd), held_nanousd=10**6,
        prompt_tokens=1, output_tokens=1, prices_of=deployment.prices_of,
    )  # fmt: skip
    assert (bill.amount_nanousd, bill.usage_source, bill.alarm) == (3_000 + 15_000, "estimated", "implausible_usage")


# Audio and images.


def test_audio_has_its_own_prices(catalog: Catalog) -> None:
    usage = {
        "prompt_tokens": 200, "completion_tokens": 500, "prompt_tokens_details": {"audio_tokens": 150},
        "completion_tokens_details": {"audio_tokens": 400},
    }  # fmt: skip
    # 50 * 2,500 + 150 * 32,000 + 100 * 10,000 + 400 * 64,000
    assert invoice(catalog.models["gpt-audio"], usage) == 125_000 + 4_800_000 + 1_000_000 + 25_600_000


@pytest.mark.parametrize(
    "usage",
    [
        {
            "prompt_tokens": 1_000, "completion_tokens": 100,
            "prompt_tokens_details": {
                "cached_tokens": 600, "audio_tokens": 700, "cached_tokens_details": {"audio_tokens": 500},
            },
        },
        {
            "promptTokenCount": 1_000, "candidatesTokenCount": 100, "totalTokenCount": 1_100,
            "cachedContentTokenCount": 600,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 300}, {"modality": "AUDIO", "tokenCount": 700},
            ],
            "cacheTokensDetails": [
                {"modality": "TEXT", "tokenCount": 100}, {"modality": "AUDIO", "tokenCount": 500},
            ],
        },
    ],
)  # fmt: skip
def test_audio_from_the_cache_has_its_own_price(catalog: Catalog, usage: dict[str, Any]) -> None:
    # Text: 200 * 300 + 100 cached * 30; audio: 200 * 1,000 + 500 cached * 100; 100 * 2,500
    assert invoice(catalog.models["gemini-2.5-flash"], usage) == 60_000 + 3_000 + 200_000 + 50_000 + 250_000
    # Without a price of its own, audio is read from the cache at the price of text: 125,000 for 1,000,000 of Pro's.
    pro = invoice(catalog.models["gemini-2.5-pro"], usage)
    assert pro == 400 * 1_250 + 600 * 125 + 100 * 10_000


def test_fees_of_the_file_are_read(tmp_path: Path) -> None:
    fees = "cache_read_input_audio_token_cost: 5e-7, citation_cost_per_token: 3e-6"
    model = model_of(
        tmp_path, "model: openai/own", f"{FILE_PRICES}, {fees}, google_maps_grounding_cost_per_query: 0.02"
    )
    assert (model.prices.maps_femtousd, model.prices.citation_femtousd) == (2 * 10**13, 3 * 10**9)
    assert model.prices.at(0).cached_audio_femtousd == 5 * 10**8
    with pytest.raises(SettingsError) as refused:
        model_of(tmp_path, "model: openai/own", f"{FILE_PRICES}, citation_cost_per_token: 3")
    assert "citation_cost_per_token: expected USD per token, at most 0.01, got 3" in refused.value.problems[0]


def test_image_tokens_have_their_own_prices_in_both_directions(tmp_path: Path) -> None:
    images = "input_cost_per_image_token: 3e-6, output_cost_per_image_token: 3e-5"
    model = model_of(tmp_path, "model: openai/own", f"{FILE_PRICES}, {images}")
    usage = {
        "prompt_tokens": 1_000, "completion_tokens": 1_300, "prompt_tokens_details": {"image_tokens": 258},
        "completion_tokens_details": {"image_tokens": 1_290},
    }  # fmt: skip
    # 742 * 1,000 + 258 * 3,000 + 10 * 2,000 + 1,290 * 30,000
    expected = 742_000 + 774_000 + 20_000 + 38_700_000
    assert invoice(model, usage) == expected
    assert call_bounds(model, 1_000, {}, {}, images=1).worst_nanousd(1_300) >= expected
