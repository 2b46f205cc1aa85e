"""The catalogue: prices from the file, else from the bundled map, else no start; groups never undercharge."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import litellm
import pytest
from litellm.llms.vertex_ai.vertex_llm_base import VertexBase

from gateway.catalog.build import bundled_price_map, draft, load
from gateway.catalog.claude_hosts import tools_of
from gateway.catalog.models import Catalog
from gateway.catalog.prices import Prices, PriceTier
from gateway.config.reader import SettingsError

PRICE_MAP: dict[str, Any] = {
    "gpt-4o-mini": {
        "litellm_provider": "openai", "mode": "chat", "max_input_tokens": 128_000, "max_output_tokens": 16_384,
        "input_cost_per_token": Decimal("1.5E-7"), "output_cost_per_token": Decimal("6E-7"),
        "cache_read_input_token_cost": Decimal("7.5E-8"), "supports_function_calling": True, "supports_vision": True,
    },
    "claude": {
        "litellm_provider": "anthropic", "mode": "chat", "max_input_tokens": 1_000_000, "max_tokens": 64_000,
        "input_cost_per_token": Decimal("3E-6"), "output_cost_per_token": Decimal("1.5E-5"),
        "cache_creation_input_token_cost": Decimal("3.75E-6"),
        "cache_creation_input_token_cost_above_1hr": Decimal("6E-6"),
        "cache_read_input_token_cost": Decimal("3E-7"),
        "input_cost_per_token_above_200k_tokens": Decimal("6E-6"),
        "output_cost_per_token_above_200k_tokens": Decimal("2.25E-5"),
    },
    "free-or-unknown": {
        "litellm_provider": "x", "mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0,
    },
    "embed": {"litellm_provider": "openai", "mode": "embedding", "input_cost_per_token": Decimal("2E-8")},
    "dash/stepped": {
        "litellm_provider": "dash", "mode": "chat",
        "tiered_pricing": [
            {"range": [0, 32_000], "input_cost_per_token": Decimal("1E-6"), "output_cost_per_token": Decimal("5E-6")},
            {"range": [32_000, 0], "input_cost_per_token": Decimal("2E-6"), "output_cost_per_token": Decimal("6E-6")},
        ],
    },
}  # fmt: skip


def catalog_of(folder: Path, text: str) -> Catalog:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load(path, {}, price_map=PRICE_MAP)[1]


def entry(model: str, name: str = "a", **info: object) -> str:
    fields = ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in info.items()
    )
    return f"  - {{model_name: {name}, litellm_params: {{model: {model}}}, model_info: {{{fields}}}}}\n"


def test_a_known_model_has_its_prices_limits_and_abilities_from_the_map(tmp_path: Path) -> None:
    model = catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini")).models["a"]
    assert model.prices == Prices(
        input_femtousd=150_000_000, output_femtousd=600_000_000, cached_input_femtousd=75_000_000
    )
    assert (model.max_input_tokens, model.max_output_tokens) == (128_000, 16_384)
    assert model.capabilities == {
        "tools",
        "custom_tools",
        "vision",
        "responses_api",
        "responses_api.web_search",
        "image_addresses",
        "insecure_image_addresses",
    }
    assert model.deployments[0].litellm_model == "openai/gpt-4o-mini"
    assert model.deployments[0].timeout_s == 600.0


@pytest.mark.parametrize("mode", ["responses", "completion"])
def test_a_model_of_another_route_answers_chats_too(tmp_path: Path, mode: str) -> None:
    catalog = catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini", mode=mode) + entry("embed", "b"))
    assert [model.name for model in catalog.chat_models] == ["a"]


@pytest.mark.parametrize(
    ("model", "base", "info", "runs"),
    [
        ("openai/gpt-4o-mini", None, "", True), ("openai/gpt-4o-mini", "https://eu.api.openai.com/v1", "", True),
        ("openai/gpt-4o-mini", "http://vllm:8000/v1", "supported_endpoints: [/v1/responses]", False),
        ("openai/gpt-4o-mini", "http://proxy/v1", "supports_web_search: true", True),
        ("anthropic/claude", None, "", True), ("anthropic/claude", "https://api.minimax.io/anthropic", "", False),
    ],
)  # fmt: skip
def test_hosted_tools_are_certain_at_their_provider_s_own_address(
    tmp_path: Path, model: str, base: str | None, info: str, runs: bool
) -> None:
    params = f"model: {model}" + (f", api_base: '{base}', api_key: k" if base else "")
    prices = "input_cost_per_token: 0.000001, output_cost_per_token: 0.000002" + (f", {info}" if info else "")
    text = f"model_list:\n  - {{model_name: a, litellm_params: {{{params}}}, model_info: {{{prices}}}}}\n"
    [deployment] = catalog_of(tmp_path, text).models["a"].deployments
    assert deployment.runs_tools is runs


@pytest.mark.parametrize(
    ("params", "host"),
    [
        ("model: anthropic/glm-4.6", "anthropic"), ("model: bedrock/us.anthropic.claude-opus-4-6-v1", "bedrock"),
        ("model: bedrock/converse/us.anthropic.claude-opus-4-6-v1", None),
        ("model: vertex_ai/claude-opus-4-6", "vertex_ai"),
        ("model: us.anthropic.claude-opus-4-6-v1, custom_llm_provider: bedrock", "bedrock"),
        ("model: azure_ai/claude-opus-4-6", "azure_ai"), ("model: openrouter/anthropic/claude-opus-4-6", None),
        ("model: bedrock/anthropic.claude-opus-4-6-v1, temperature: 0.5, vertex_project: p", "bedrock"),
        ("model: bedrock/anthropic.claude-opus-4-6-v1, guardrailConfig: {guardrailIdentifier: g}", None),
        ("model: bedrock/anthropic.claude-opus-4-6-v1, extra_body: {guardrailConfig: {}}, order: 1", None),
        ("model: anthropic/claude-opus-4-6, safety_identifier: x", None),
        ("model: vertex_ai/claude-opus-4-6, region_name: us-east5", None),
        ("model: azure_ai/claude-opus-4-6, tenant_id: t, client_id: c, client_secret: s", None),
        ("model: azure_ai/claude-opus-4-6, azure_ad_token: oidc/env/TOKEN", None),
        ("model: azure_ai/claude-opus-4-6, azure_ad_token: t, api_version: v", "azure_ai"),
    ],
)  # fmt: skip
def test_messages_go_as_written_to_the_hosts_of_claude_that_can_have_all_that_the_operator_adds(
    tmp_path: Path, params: str, host: Any
) -> None:
    prices = "input_cost_per_token: 0.000001, output_cost_per_token: 0.000002"
    text = f"model_list:\n  - {{model_name: a, litellm_params: {{{params}}}, model_info: {{{prices}}}}}\n"
    model = catalog_of(tmp_path, text).models["a"]
    found = {name for name in model.capabilities if name.startswith("messages_api")}
    assert found == ({"messages_api"} | tools_of(host) if host else set())


def test_free_form_tools_are_for_providers_that_know_them(tmp_path: Path) -> None:
    for written, knows in (
        (entry("openai/gpt-4o-mini"), True),
        (entry("claude"), False),
        (entry("claude", supports_custom_tools=True), True),
    ):
        models = catalog_of(tmp_path, "model_list:\n" + written).models
        assert ("custom_tools" in models["a"].capabilities) is knows


def test_parameters_of_embeddings_are_defaults_of_embedding_models_alone(tmp_path: Path) -> None:
    params = "input_type: query, dimensions: 256, temperature: 0.5"
    info = "{mode: embedding, input_cost_per_token: 1e-6, output_cost_per_token: 0}"
    text = (
        f"model_list:\n  - {{model_name: e, litellm_params: {{model: openai/own, {params}}}, model_info: {info}}}\n"
        f"  - {{model_name: c, litellm_params: {{model: openai/gpt-4o-mini, {params}}}}}\n"
    )
    catalog = catalog_of(tmp_path, text)
    (chat,), (embedding,) = (catalog.models[name].deployments for name in ("c", "e"))
    assert not {"input_type", "dimensions"} & chat.request_defaults.keys()
    assert (embedding.request_defaults["input_type"], embedding.request_defaults["dimensions"]) == ("query", 256)
    said = [warning.partition("model_list")[2] for warning in catalog.warnings if "not sent to a model" in warning]
    assert [line.partition(":")[0] for line in said] == [
        "[0].litellm_params.temperature", "[1].litellm_params.dimensions", "[1].litellm_params.input_type",
    ]  # fmt: skip


def test_prices_in_the_file_replace_the_map_s_whole_list(tmp_path: Path) -> None:
    text = "model_list:\n" + entry(
        "anthropic/claude", input_cost_per_token="1e-6", output_cost_per_token="2e-6", max_input_tokens=9,
        supports_vision=True,
    )  # fmt: skip
    model = catalog_of(tmp_path, text).models["a"]
    assert model.prices == Prices(input_femtousd=1_000_000_000, output_femtousd=2_000_000_000)
    assert (model.max_input_tokens, model.max_output_tokens) == (9, 64_000)
    assert model.capabilities == {"vision", "messages_api", "image_addresses"} | tools_of("anthropic")


def test_a_single_special_price_in_the_file_amends_the_map(tmp_path: Path) -> None:
    model = catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini", cache_read_input_token_cost="1e-8"))
    assert model.models["a"].prices == Prices(150_000_000, 600_000_000, cached_input_femtousd=10_000_000)


def test_tiers_and_cache_prices_come_from_the_map(tmp_path: Path) -> None:
    prices = catalog_of(tmp_path, "model_list:\n" + entry("anthropic/claude")).models["a"].prices
    assert prices == Prices(
        input_femtousd=3_000_000_000,
        output_femtousd=15_000_000_000,
        cached_input_femtousd=300_000_000,
        cache_write_femtousd=3_750_000_000,
        cache_write_1h_femtousd=6_000_000_000,
        tiers=(PriceTier(200_000, input_femtousd=6_000_000_000, output_femtousd=22_500_000_000),),
    )


def test_stepped_price_lists_become_tiers(tmp_path: Path) -> None:
    prices = catalog_of(tmp_path, "model_list:\n" + entry("dash/stepped")).models["a"].prices
    assert prices == Prices(
        1_000_000_000, 5_000_000_000,
        tiers=(PriceTier(32_000, input_femtousd=2_000_000_000, output_femtousd=6_000_000_000),),
    )  # fmt: skip


@pytest.mark.parametrize("model", ["openai/unheard-of", "x/free-or-unknown", "openrouter/gpt-4o-mini"])
def test_a_model_without_a_price_stops_the_start(tmp_path: Path, model: str) -> None:
    with pytest.raises(SettingsError) as caught:
        catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini") + entry(model, "b"))
    (problem,) = caught.value.problems
    assert problem.startswith(
        "gateway.yaml: model_list[1].model_info.input_cost_per_token: expected a price, got nothing"
    )


def test_half_a_price_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini", input_cost_per_token=0))
    assert caught.value.problems == (
        "gateway.yaml: model_list[0].model_info.output_cost_per_token: expected a number, got nothing",
    )


@pytest.mark.parametrize(
    ("prices", "found"),
    [
        ({"input_cost_per_token": "free", "output_cost_per_token": 0.00001}, ['a number, got "free"']),
        ({"input_cost_per_token": 0.00001, "output_cost_per_token": 5}, ["USD per token, at most 0.01, got 5"]),
        ({"input_cost_per_token": "x", "output_cost_per_token": "y"}, ['a number, got "x"', 'a number, got "y"']),
    ],
)
@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "openai/unheard-of"])
def test_a_wrong_price_is_reported_once(
    tmp_path: Path, model: str, prices: dict[str, object], found: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        catalog_of(tmp_path, "model_list:\n" + entry(model, "a", **prices))
    told = [problem.partition("expected ")[2] for problem in caught.value.problems]
    assert [line.partition(" (")[0] for line in told] == found


def test_a_stated_price_of_zero_is_a_price(tmp_path: Path) -> None:
    text = "model_list:\n" + entry("ollama/llama", input_cost_per_token=0, output_cost_per_token=0)
    assert catalog_of(tmp_path, text).models["a"].prices == Prices(0, 0)


def test_base_model_names_the_map_s_entry(tmp_path: Path) -> None:
    model = catalog_of(tmp_path, "model_list:\n" + entry("azure/my-own-name", base_model="gpt-4o-mini")).models["a"]
    assert model.prices.output_femtousd == 600_000_000


def test_a_group_is_bounded_by_its_most_expensive_member_and_shares_what_all_can_do(tmp_path: Path) -> None:
    text = (
        "model_list:\n"
        + entry("openai/gpt-4o-mini", id="cheap")
        + entry("anthropic/claude", id="dear", supports_function_calling=True, max_input_tokens=500_000)
    )
    model = catalog_of(tmp_path, text).models["a"]
    assert [deployment.deployment_id for deployment in model.deployments] == ["cheap", "dear"]
    assert (model.max_input_tokens, model.max_output_tokens) == (128_000, 16_384)
    assert model.capabilities == {"tools"}
    for prompt_tokens in (0, 200_000, 200_001, 900_000):
        bound = model.prices.at(prompt_tokens)
        for deployment in model.deployments:
            own = deployment.prices.at(prompt_tokens)
            assert bound.max_input_femtousd >= own.max_input_femtousd
            assert bound.max_output_femtousd >= own.max_output_femtousd
            assert bound.cached_input_femtousd >= own.cached_input_femtousd


def test_embeddings_are_served_and_never_chosen_for_a_chat(tmp_path: Path) -> None:
    catalog = catalog_of(tmp_path, "model_list:\n" + entry("openai/gpt-4o-mini") + entry("openai/embed", "e"))
    assert [model.name for model in catalog.chat_models] == ["a"]
    assert catalog.models["e"].prices == Prices(20_000_000, 0)


def test_other_kinds_of_model_are_ignored_with_a_warning(tmp_path: Path) -> None:
    text = "model_list:\n" + entry("openai/gpt-4o-mini") + entry("openai/pictures", "p", mode="image_generation")
    catalog = catalog_of(tmp_path, text)
    assert list(catalog.models) == ["a"]
    assert catalog.warnings == (
        "gateway.yaml: model_list[1].model_info.mode: image_generation models are not served here;"
        " the entry is ignored",
    )


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("dall-e-3", "image_generation"),
        ("openai/dall-e-3", "image_generation"),
        ("azure/my-dall-e-3", "image_generation"),
        ("gpt-4o-realtime-preview", "realtime"),
        ("openai/whisper-large-v9", "audio_transcription"),
        ("azure/tts", "audio_speech"),
        ("openai/gpt-4o-mini-tts-2030-01-01", "audio_speech"),
        ("hosted_vllm/BAAI/bge-reranker-v2-m3", "rerank"),
    ],
)
def test_a_model_whose_name_says_that_it_is_no_chat_is_ignored_without_a_price(
    tmp_path: Path, model: str, kind: str
) -> None:
    text = "model_list:\n" + entry("openai/gpt-4o-mini") + entry(model, "p")
    (tmp_path / "gateway.yaml").write_text(text)
    read = draft(tmp_path / "gateway.yaml", {}, price_map=bundled_price_map())
    assert (read.problems, list(read.catalog.models)) == ((), ["a"])
    assert any(f"{kind} models are not served here" in warning for warning in read.catalog.warnings)


def test_a_name_is_no_proof_where_the_operator_states_prices(tmp_path: Path) -> None:
    priced = entry("hosted_vllm/chat-speech-7b", "p", input_cost_per_token=0, output_cost_per_token=0)
    catalog = catalog_of(tmp_path, "model_list:\n" + priced)
    assert list(catalog.models) == ["p"]


def test_an_alias_resolves_to_its_model(tmp_path: Path) -> None:
    text = "model_list:\n" + entry("openai/gpt-4o-mini") + "router_settings: {model_group_alias: {mini: a}}\n"
    catalog = catalog_of(tmp_path, text)
    assert catalog.resolve("mini") is catalog.resolve("a") is catalog.models["a"]
    assert catalog.resolve("nothing") is None


@pytest.mark.parametrize(
    ("entries", "group", "means", "told"),
    [
        ([("a", "[x]"), ("b", "[x, y]"), ("c", "[]")], "x", {"a", "b"}, None),
        ([("a", "x"), ("a", "[x]")], "x", {"a"}, None),
        ([("a", "[x]"), ("a", "[]"), ("b", "[x]")], "x", {"b"}, 'not every entry of "a" names the group "x"'),
        ([("a", "[b]"), ("b", "[]")], "b", {"b"}, '"b" is the name of a model or alias'),
        ([("a", "[mini]")], "mini", {"a"}, '"mini" is the name of a model or alias'),
        ([("a", "[a]")], "a", {"a"}, None),
    ],
)
def test_a_group_never_grants_more_than_the_file_surely_says(
    entries: list[tuple[str, str]], group: str, means: set[str], told: str | None, tmp_path: Path
) -> None:
    listed = "".join(entry("openai/gpt-4o-mini", name, access_groups=groups) for name, groups in entries)
    catalog = catalog_of(tmp_path, f"model_list:\n{listed}router_settings: {{model_group_alias: {{mini: a}}}}\n")
    assert catalog.resolve_all(frozenset({group})) == frozenset(means)
    assert group in catalog.names
    warnings = [warning for warning in catalog.warnings if "access_groups" in warning]
    assert [bool(told and told in warning) for warning in warnings] == [True] * (told is not None)


@pytest.mark.parametrize("group", ["all", "auto", "auto@cheap"])
def test_a_group_cannot_have_a_name_that_means_every_model(group: str, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry("openai/gpt-4o-mini", access_groups=f"['{group}']"))
    [problem] = draft(path, {}).problems
    assert f'model_list[0].model_info.access_groups: "{group}" is reserved' in problem


@pytest.mark.parametrize("route", ["eu-west-1/invoke", "invoke/eu-west-1"])
def test_a_region_beside_invoke_is_an_option_and_no_part_of_the_name(route: str, tmp_path: Path) -> None:
    """LiteLLM calls `/model/eu-west-1/...` in another region for such a name."""
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry(f"bedrock/{route}/anthropic.claude-sonnet-4-5-20250929-v1:0"))
    settings, catalog = load(path, {})
    assert settings.models
    [deployment] = catalog.models["a"].deployments
    assert deployment.litellm_model == "bedrock/invoke/anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert {name: each.reveal() for name, each in deployment.provider_params.items()} == {
        "aws_region_name": "eu-west-1"
    }
    assert catalog.warnings == ()


@pytest.mark.parametrize(
    ("model", "params", "environ", "warned"),
    [
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", "", {}, True),
        ("bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0", "", {}, True),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", ", aws_region_name: eu-west-1", {}, False),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", ", api_base: 'http://127.0.0.1:1'", {}, False),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", "", {"AWS_REGION": "eu-west-1"}, False),
        ("bedrock/eu-west-1/anthropic.claude-sonnet-4-5-20250929-v1:0", "", {}, False),
    ],
)
def test_a_bedrock_model_without_a_region_is_named(
    model: str, params: str, environ: dict[str, str], warned: bool, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"model_list:\n  - {{model_name: a, litellm_params: {{model: '{model}'{params}}}}}\n")
    warnings = draft(path, environ).catalog.warnings
    assert any("aws_region_name: expected a region" in each for each in warnings) == warned


def test_the_digest_follows_prices_and_not_secrets(tmp_path: Path) -> None:
    def digest(price: str, key: str) -> str:
        text = f"model_list: [{{model_name: a, litellm_params: {{model: x, api_key: {key}}}, model_info: {{input_cost_per_token: {price}, output_cost_per_token: 1e-6}}}}]"  # noqa: E501
        return catalog_of(tmp_path, text).digest

    assert digest("1e-7", "one") == digest("0.0000001", "two")
    assert digest("1e-7", "one") != digest("2e-7", "one")


def test_the_digest_follows_the_fees_of_hosted_tools(tmp_path: Path) -> None:
    def digest(fee: str) -> str:
        text = "model_list:\n" + entry("openai/gpt-4o-mini", code_interpreter_cost_per_session=fee)
        return catalog_of(tmp_path, text).digest

    assert digest("0.03") != digest("0.5")


def test_problems_of_settings_and_of_prices_come_together(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry("openai/unheard-of-model") + "policy_settings: {mode: 7}\n")
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "policy_settings.mode", "model_list[0].model_info.input_cost_per_token",
    ]  # fmt: skip


def test_the_bundled_map_prices_the_models_people_use(tmp_path: Path) -> None:
    price_map = bundled_price_map()
    assert len(price_map) > 1000
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "model_list:\n"
        + entry("openai/gpt-4o-mini", "m")
        + entry("anthropic/claude-sonnet-4-5", "s")
        + entry("gemini/gemini-2.5-pro", "g")
    )
    _, catalog = load(path, {})
    assert catalog.models["m"].prices.at(0).output_femtousd == 600_000_000
    assert catalog.models["s"].prices.at(200_001).input_femtousd == 6_000_000_000
    assert catalog.models["g"].prices.at(0).cached_input_femtousd == 125_000_000


def test_fees_of_the_map_that_nobody_is_charged_are_named(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    video = "gemini/gemini-omni-flash-preview"
    free = entry(video, "f", input_cost_per_token="1e-6", output_cost_per_token="1e-6")
    path.write_text("model_list:\n" + entry(video, "r") + free)
    _, catalog = load(path, {})
    [warning] = catalog.warnings
    assert warning.startswith(f'gateway.yaml: model_list[0]: the price map has fees for "{video}"')
    assert warning.endswith("not charged here: output_cost_per_video_token")


def test_tokens_cost_more_where_the_deployment_s_region_does(tmp_path: Path) -> None:
    listed = dict(PRICE_MAP["gpt-4o-mini"]) | {
        "regional_processing_uplift_multiplier_eu": Decimal("1.1"),
        "regional_endpoint_uplift_multiplier": Decimal("1.2"),
        "input_cost_per_token_flex": Decimal("1E-7"),
    }  # fmt: skip
    calls = {
        "openai/m": 150_000_000, "openai/m, api_base: https://eu.api.openai.com/v1": 165_000_000,
        "openai/m, api_base: https://us.api.openai.com/v1": 150_000_000,
        "vertex_ai/v, vertex_location: global": 150_000_000, "vertex_ai/v, vertex_location: europe-west1": 180_000_000,
    }  # fmt: skip
    path = tmp_path / "gateway.yaml"
    rows = [f"  - {{model_name: m{n}, litellm_params: {{model: {call}}}}}\n" for n, call in enumerate(calls)]
    path.write_text("model_list:\n" + "".join(rows))
    price_map = {"m": listed, "v": listed | {"litellm_provider": "vertex_ai"}}
    _, catalog = load(path, {}, price_map=price_map)
    assert [catalog.models[f"m{n}"].prices.input_femtousd for n in range(len(calls))] == list(calls.values())
    assert catalog.models["m1"].prices.of("flex").input_femtousd == 110_000_000
    assert catalog.warnings == ()


UPLIFTED = dict(PRICE_MAP["gpt-4o-mini"]) | {
    "litellm_provider": "vertex_ai-anthropic_models",
    "regional_endpoint_uplift_multiplier": Decimal("1.2"),
}


@pytest.mark.parametrize(
    ("environ", "regions", "costs", "named"),
    [
        ({}, None, 180_000_000, "us-central1"),
        ({}, ["global"], 150_000_000, None),
        ({}, ["europe-west1"], 180_000_000, "europe-west1"),
        ({"VERTEXAI_LOCATION": "global"}, None, 150_000_000, None),
        ({"VERTEXAI_LOCATION": "global"}, ["us-east5"], 180_000_000, None),
        ({"VERTEXAI_LOCATION": "us-east5"}, None, 180_000_000, None),
    ],
)
def test_a_model_of_google_s_is_priced_where_litellm_calls_it(
    tmp_path: Path, environ: dict[str, str], regions: list[str] | None, costs: int, named: str | None
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry("vertex_ai/v"))
    price_map = {"vertex_ai/v": UPLIFTED | {"supported_regions": regions}, "vertex_ai/w": UPLIFTED}
    _, catalog = load(path, environ, price_map=price_map)
    [model] = catalog.models.values()
    assert model.prices.input_femtousd == costs
    sibling = model.deployments[0].prices_of("w")
    assert sibling is not None
    assert sibling.input_femtousd == (150_000_000 if environ.get("VERTEXAI_LOCATION") == "global" else 180_000_000)
    if named is None:
        assert catalog.warnings == ()
    else:
        [warning] = catalog.warnings
        assert named in warning
        assert "write vertex_location: global" in warning


def test_litellm_calls_a_model_of_google_s_where_it_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(litellm.model_cost, "vertex_ai/v", {"supported_regions": ["europe-west1"]})
    assert VertexBase.get_vertex_region(None, "gemini-3.5-flash") == "us-central1"
    assert VertexBase.get_vertex_region("global", "v") == VertexBase.get_vertex_region(None, "v") == "europe-west1"


def test_cheaper_hours_that_are_not_charged_are_named(tmp_path: Path) -> None:
    listed = PRICE_MAP["gpt-4o-mini"] | {"off_peak_pricing": {"input_cost_per_token": Decimal("1E-8")}}
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry("openai/gpt-4o-mini"))
    [warning] = load(path, {}, price_map={"gpt-4o-mini": listed})[1].warnings
    assert "costs less at certain hours" in warning


def test_base_model_has_the_price_and_reaches_the_deployment(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    azure = [entry("azure/mine", name, base_model=base) for name, base in (("a", "azure/o3-mini"), ("b", "o3-mini"))]
    path.write_text("model_list:\n" + "".join(azure))
    _, catalog = load(path, {})
    assert {m.deployments[0].base_model for m in catalog.models.values()} == {"azure/o3-mini", "o3-mini"}
    assert all(model.prices.input_femtousd for model in catalog.models.values())


def test_a_router_of_which_the_map_has_only_the_fee_needs_prices(tmp_path: Path) -> None:
    listed = PRICE_MAP | {
        "azure_ai/model-router": {
            "litellm_provider": "azure_ai", "mode": "chat", "input_cost_per_token": Decimal("1.4E-7"),
            "output_cost_per_token": 0,
        },
    }  # fmt: skip
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list:\n" + entry("azure_ai/model-router"))
    (problem,) = draft(path, {}, price_map=listed).problems
    assert problem.startswith(
        "gateway.yaml: model_list[0].model_info.output_cost_per_token: expected a price, got nothing"
    )
    path.write_text(
        "model_list:\n" + entry("azure_ai/model-router", input_cost_per_token=0.00001, output_cost_per_token=0.00004)
    )
    assert draft(path, {}, price_map=listed).problems == ()


def test_a_model_that_has_the_price_of_its_size_is_otherwise_unknown_and_named(tmp_path: Path) -> None:
    size = {"litellm_provider": "together_ai", "mode": "chat", "max_tokens": 8, "input_cost_per_token": Decimal("9E-7")}
    listed = PRICE_MAP | {"together-ai-41.1b-80b": size | {"output_cost_per_token": Decimal("9E-7")}}
    path, sized = tmp_path / "gateway.yaml", "together_ai/someone/unlisted-70b"
    own = entry(sized, "own", input_cost_per_token=0.000001, output_cost_per_token=0.000002)
    path.write_text("model_list:\n" + entry(sized) + own)
    made = draft(path, {}, price_map=listed)
    of_size, stated = made.catalog.models["a"], made.catalog.models["own"]
    assert (of_size.prices.input_femtousd, stated.prices.output_femtousd) == (900_000_000, 2_000_000_000)
    assert of_size.possible_capabilities == stated.possible_capabilities == {"tools", "response_schema"}
    assert of_size.max_input_tokens == stated.max_input_tokens == 128_000
    told = [warning for warning in made.warnings if "of all models of its size" in warning]
    assert len(told) == 1
    assert told[0].startswith("gateway.yaml: model_list[0].model_info: ")
    assert '"together-ai-41.1b-80b"' in told[0]
