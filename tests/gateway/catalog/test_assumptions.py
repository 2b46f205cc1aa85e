"""Models that neither the file nor the price map describes: what is assumed, and that it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog.build import draft
from gateway.catalog.models import Model

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


def test_a_hold_without_a_limit_covers_the_longest_answer_that_the_provider_ends(tmp_path: Path) -> None:
    model, _ = described(tmp_path, "max_output_tokens: 900", "openai/gpt-4o-mini")
    assert (model.max_output_tokens, model.longest_answer_tokens) == (900, 16_384)


@pytest.mark.parametrize("model", ["perplexity/sonar", "openai/gpt-4o-mini"])
def test_a_model_of_the_price_map_has_what_the_map_says(model: str, tmp_path: Path) -> None:
    known, _ = described(tmp_path, "", model)
    assert known.possible_capabilities == known.capabilities
