"""Models that neither the file nor the price map describes: what is assumed, and that it is said."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.build import draft
from gateway.catalog.call_cost import call_bounds
from gateway.catalog.cost import bill_nanousd
from gateway.catalog.models import Model
from gateway.catalog.usage import Usage

OWN = "openai/qwen-of-ours"
PRICED = "input_cost_per_token: 0.000001, output_cost_per_token: 0.000002"
FREE = "input_cost_per_token: 0, output_cost_per_token: 0"


def described(folder: Path, info: str, model: str = OWN) -> tuple[Model, tuple[str, ...]]:
    path = folder / "gateway.yaml"
    path.write_text(f"model_list:\n  - {{model_name: a, litellm_params: {{model: {model}}}, model_info: {{{info}}}}}\n")
    found = draft(path, {})
    assert not found.problems
    return found.catalog.models["a"], found.warnings


def test_a_server_of_ones_own_may_have_tools_and_a_long_context(tmp_path: Path) -> None:
    model, (warning,) = described(tmp_path, PRICED)
    assert not {"tools", "response_schema", "vision"} & model.capabilities
    assert model.possible_capabilities - model.capabilities == {"tools", "response_schema"}
    assert (model.max_input_tokens, model.max_output_tokens) == (128_000, 128_000)
    assert (model.unasked_tokens, model.longest_answer_tokens) == (4_096, None)
    assert "max_input_tokens, max_output_tokens, supports_function_calling, supports_response_schema of" in warning
    assert warning.endswith(
        '"openai/qwen-of-ours": assumed are 128,000 tokens of context, answers as long as the client asks, tools, '
        "JSON schemas; state what differs"
    )


def test_free_answers_need_no_limit_of_the_gateways(tmp_path: Path) -> None:
    model, _ = described(tmp_path, FREE)
    assert model.longest_answer_tokens == 128_000


def test_what_the_file_states_is_not_assumed(tmp_path: Path) -> None:
    stated = "max_input_tokens: 8000, max_output_tokens: 900, supports_function_calling: false"
    model, warnings = described(tmp_path, f"{PRICED}, {stated}, supports_response_schema: true")
    assert "response_schema" in model.capabilities
    assert model.possible_capabilities == model.capabilities
    assert (model.max_input_tokens, model.max_output_tokens, model.unasked_tokens) == (8_000, 900, None)
    assert warnings == ()


def test_a_hold_without_a_limit_covers_what_a_server_of_ones_own_can_write(tmp_path: Path) -> None:
    """Only its context window ends its answers; `max_output_tokens` is no one's limit but the gateway's."""
    model, _ = described(tmp_path, f"{PRICED}, max_input_tokens: 8000, max_output_tokens: 900")
    assert model.longest_answer_tokens == 8_000
    model, _ = described(tmp_path, f"{PRICED}, max_output_tokens: 900")
    assert model.longest_answer_tokens is None


@pytest.mark.parametrize(
    ("model", "info", "longest"),
    [
        (OWN, PRICED, None),
        (OWN, f"{PRICED}, max_input_tokens: 8000", None),  # the operator's limit for routing, not the server's
        (OWN, f"{PRICED}, base_model: anthropic/claude-haiku-4-5", None),  # another provider's
        ("azure/ours", "base_model: azure/gpt-4o", 128_000),
        ("azure/ours", f"{PRICED}, max_input_tokens: 8000", None),
        ("litellm_proxy/gpt-4o", PRICED, None),  # a name on someone's proxy
        ("ollama/llama3", PRICED, None),  # num_ctx is its operator's
        ("anthropic/claude-haiku-4-5", "", 200_000),
        ("anthropic/claude-haiku-4-5", "max_input_tokens: 50000", 200_000),  # the provider takes more than the operator
        ("anthropic/claude-haiku-4-5", "max_input_tokens: 900000", 900_000),
        ("vertex_ai/claude-sonnet-4-5", "", None),  # the map has prices above its own window
        ("gemini/gemini-2.5-pro", "", 1_048_576),
        ("openai/text-embedding-3-small", "", None),
    ],
)
def test_a_prompt_is_billed_at_no_more_than_the_window_that_the_price_map_states(
    model: str, info: str, longest: int | None, tmp_path: Path
) -> None:
    found, _ = described(tmp_path, info, model)
    assert found.longest_prompt_tokens == longest


def test_the_deployment_with_the_largest_window_bounds_the_prompts_of_its_group(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    haiku, gpt = "anthropic/claude-haiku-4-5", "openai/gpt-4o-mini"
    for models, longest in (((haiku, gpt), 200_000), ((gpt, OWN), None)):
        entries = [f"{{model_name: a, litellm_params: {{model: {each}}}, model_info: {{{PRICED}}}}}" for each in models]
        path.write_text("model_list:\n" + "".join(f"  - {entry}\n" for entry in entries))
        assert draft(path, {}).catalog.models["a"].longest_prompt_tokens == longest


@given(stated=st.integers(1, 40_000), bound=st.integers(1, 40_000), known=st.booleans(), data=st.data())
def test_a_hold_covers_every_prompt_that_a_server_may_take(
    stated: int, bound: int, known: bool, data: st.DataObject
) -> None:
    """The window of the price map closes a provider's prompts; one that only the file states closes nobody's."""
    window = 16_000
    listed = {"openai/known": {"litellm_provider": "openai", "mode": "chat", "max_input_tokens": window}}
    with tempfile.TemporaryDirectory() as folder:
        path, info = Path(folder) / "gateway.yaml", f"{PRICED}, max_input_tokens: {stated}"
        name = "openai/known" if known else OWN
        path.write_text(f"model_list: [{{model_name: a, litellm_params: {{model: {name}}}, model_info: {{{info}}}}}]")
        model = draft(path, {}, price_map=listed).catalog.models["a"]
    longest = min(bound, max(window, stated)) if known else bound
    billed = bill_nanousd(model.prices, Usage(data.draw(st.integers(0, longest)), 0))
    assert billed <= call_bounds(model, bound, {}, {}).worst_nanousd(0) == longest * 1_000


def test_a_hold_without_a_limit_covers_the_longest_answer_that_the_provider_ends(tmp_path: Path) -> None:
    model, _ = described(tmp_path, "max_output_tokens: 900", "openai/gpt-4o-mini")
    assert (model.max_output_tokens, model.longest_answer_tokens) == (900, 16_384)


@pytest.mark.parametrize("model", ["perplexity/sonar", "openai/gpt-4o-mini"])
def test_a_model_of_the_price_map_has_what_the_map_says(model: str, tmp_path: Path) -> None:
    known, _ = described(tmp_path, "", model)
    assert known.possible_capabilities == known.capabilities
