"""Our look-up in LiteLLM's price map against LiteLLM's own, over every name that it might be asked for."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.catalog.build import bundled_price_map
from gateway.catalog.price_map import PriceMap

CHATS = ("chat", "completion", "responses")
# LiteLLM asks for a person's sign-in before it looks these up.
SIGNED_IN = ("chatgpt/", "github_copilot/")
# A price of its own for a region stands in the map, and LiteLLM takes the one of all regions.
REGIONAL = re.compile(r"bedrock/(converse|invoke)/[a-z-]+-\d/|bedrock_mantle/us-gov-")
# LiteLLM takes `perplexity/` for its own prefix twice.
MAKERS = ("perplexity/perplexity/",)


@pytest.fixture(scope="module")
def entries() -> dict[str, Any]:
    return {name: msgspec.json.decode(entry) for name, entry in bundled_price_map().items()}


def names(entries: dict[str, Any]) -> Iterator[str]:
    """The map's chat models as a configuration may write them."""
    for key, entry in entries.items():
        provider = str(entry.get("litellm_provider") or "")
        if entry.get("mode", "chat") not in CHATS or not provider or key.startswith(SIGNED_IN):
            continue
        family = next((name for name in ("vertex_ai", "bedrock") if provider.startswith(name)), provider)
        if "/" in key:
            yield key
        if not key.startswith((f"{family}/", "bedrock_mantle/")):
            yield f"{family}/{key}"
        if family == "cohere_chat":
            yield f"cohere/{key}"
        if family == "bedrock" and not key.startswith("bedrock_mantle/"):
            plain = key.removeprefix("bedrock/")
            yield from (f"bedrock/converse/{plain}", f"bedrock/us.{plain}", f"bedrock/us-east-1/{plain}")
            yield from (f"bedrock/invoke/{plain}", f"bedrock/eu.{plain}")
        if family in ("openai", "azure"):
            yield f"{family}/{key.removeprefix(f'{family}/')}-2031-02-03"


def test_every_price_that_litellm_finds_is_the_one_that_is_found(entries: dict[str, Any]) -> None:
    litellm = importlib.import_module("litellm")
    info = importlib.import_module("litellm.utils").get_model_info_helper
    ours = PriceMap(entries)
    compared, wrong = 0, []
    for name in dict.fromkeys(names(entries)):
        try:
            model, provider, _, _ = litellm.get_llm_provider(name)
            theirs = info(model, provider)
        except Exception:  # noqa: BLE001 - LiteLLM raises many kinds for a name that it does not know
            continue
        if REGIONAL.match(name) or name.startswith(MAKERS):
            continue
        found = ours.find(name)
        keys = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
        prices = [float(found.get(key) or 0) for key in keys]
        compared += 1
        if prices != [float(theirs.get(key) or 0) for key in keys]:
            wrong.append((name, theirs["key"], prices))
    assert wrong == []
    assert compared > 4_000


@pytest.mark.parametrize(
    "name",
    [
        "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "bedrock/amazon.nova-lite-v1:0",
        "bedrock/us.amazon.nova-pro-v1:0", "bedrock/converse/us.amazon.nova-pro-v1:0", "vertex_ai/gemini-2.5-pro",
        "vertex_ai_beta/gemini-2.5-pro", "vertex_ai/claude-sonnet-4-5", "cohere/command-r-plus-08-2024",
        "cohere_chat/command-a-03-2025", "gemini/gemini-2.5-flash", "azure/gpt-4o", "openai/gpt-4o", "gpt-4o",
        "groq/openai/gpt-oss-120b", "fireworks_ai/llama-v3p1-8b-instruct", "openai/GPT-4o", "ft:gpt-4o-2024-08-06:o::1",
    ],
)  # fmt: skip
def test_names_of_the_wild_have_a_price(entries: dict[str, Any], name: str) -> None:
    assert PriceMap(entries).find(name).get("input_cost_per_token")


def test_models_without_an_entry_have_the_price_of_their_size_as_litellm_has_it(entries: dict[str, Any]) -> None:
    together = importlib.import_module("litellm.llms.together_ai.cost_calculator").get_model_params_and_category
    fireworks = importlib.import_module("litellm.llms.fireworks_ai.cost_calculator").get_base_model_for_pricing
    kinds = importlib.import_module("litellm.types.utils").CallTypes
    ours, found = PriceMap(entries), []
    for size in ("1b", "3B", "1.5b", "8b", "9b", "21b", "32B", "70b", "110b", "8x7b", "8x22B", "120m", "340M", "none"):
        name = f"someone/unlisted-{size}-chat"
        for provider, model, theirs, mode in (
            ("together_ai", name, together(name, kinds.completion), "chat"),
            ("together_ai", f"together_ai/{name}", together(name, kinds.embedding), "embedding"),
            ("fireworks_ai", f"fireworks_ai/accounts/fireworks/models/{name}", fireworks(name), "chat"),
        ):
            listed = entries.get(theirs, {}) if theirs != "fireworks-ai-default" else {}  # which says 0
            chosen, prices = ours.find_size(model, provider, mode)
            assert prices == listed, (model, theirs)
            assert ours.find(f"{provider}/{name}") == {}
            found += [chosen] if listed else []
    assert len(set(found)) == 13
    assert ours.find_size("someone/unlisted-8b-chat", "openrouter", "chat") == ("", {})
    own = "together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo"
    assert ours.find(own) == entries[own]


def test_databricks_older_names_of_endpoints_have_the_price_of_the_newer(entries: dict[str, Any]) -> None:
    registry_key = importlib.import_module("litellm.llms.databricks.cost_calculator")._registry_key
    for name in ("dbrx-instruct-071224", "meta-llama-3.1-70b-instruct-082724", "mixtral-8x7b-instruct-v0.1", "none"):
        assert PriceMap(entries).find(f"databricks/{name}") == entries.get(f"databricks/{registry_key(name)}", {})


def test_a_provider_does_not_borrow_the_price_of_another() -> None:
    listed = PriceMap({"gpt-4o": {"litellm_provider": "openai", "input_cost_per_token": 1}})
    assert listed.find("openrouter/gpt-4o") == {}
    assert listed.find("my-model") == {}
    assert listed.find("gpt-4o", "groq") == {}
    assert listed.find("gpt-4o", "openai")["input_cost_per_token"] == 1
    assert listed.find("openai/GPT-4o")["input_cost_per_token"] == 1


def test_a_region_with_a_price_of_its_own_has_it() -> None:
    listed = PriceMap(
        {
            "m.x": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 1},
            "bedrock/eu-west-1/m.x": {"litellm_provider": "bedrock", "input_cost_per_token": 2},
        }
    )
    found = [listed.find(f"bedrock/{name}")["input_cost_per_token"] for name in ("m.x", "eu-west-1/m.x", "us.m.x")]
    assert found == [1, 2, 1]
    assert listed.find("bedrock/converse/eu-west-1/m.x")["input_cost_per_token"] == 2
