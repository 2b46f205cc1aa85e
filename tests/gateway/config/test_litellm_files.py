"""LiteLLM proxy configurations as people write them: each is read, and refused only for money, safety or prices.

The files are our own inventions in the manner of public ones; a file that is refused is named with the key paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.__main__ import run
from gateway.catalog.build import draft, load
from gateway.config.reader import AssumedEnvironment

FOLDER = Path(__file__).with_name("litellm_files")
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PRICE = "model_list[{}].model_info.input_cost_per_token"
REFUSED: dict[str, Sequence[str]] = {
    "agents": ["litellm_settings.default_key_generate_params.max_budget"],
    "budget_cfg": [
        "router_settings.provider_budget_config", "litellm_settings.max_budget", "litellm_settings.budget_duration",
    ],
    "daily_limits": [
        "model_list[0].model_info.pricing_provider",
        "model_list[0].litellm_params.rpd", "model_list[0].litellm_params.tpd",
    ],
    "custom_auth": ["general_settings.allowed_routes"],
    "guardrails": ["guardrails"],
    "k8s_secret": ["general_settings.master_key"],
    "mock": ["model_list[0].litellm_params.mock_response", PRICE.format(0)],
    "model_budget": ["model_list[0].litellm_params.max_budget", "model_list[0].litellm_params.budget_duration"],
    "prompts": [PRICE.format(0)],
    "spend_custom": ["litellm_settings.cost_discount_config", PRICE.format(0)],
    "team_model": ["model_list[0].model_info.team_id"],
    "teams": [
        "litellm_settings.default_internal_user_params.max_budget",
        "litellm_settings.upperbound_key_generate_params.max_budget",
        "litellm_settings.upperbound_key_generate_params.tpm_limit",
    ],
    "wildcards": [f"model_list[{number}].model_name" for number in range(3)],
}  # fmt: skip
NOT_IMPORTED = {"mock": 1, "wildcards": 1, "include_main": 2}
"""Exit status where no model is left, or where the file has to be joined with its includes first."""


def test_at_least_thirty_kinds_of_files_are_tried() -> None:
    assert len(FILES) >= 30
    assert set(REFUSED) <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_wild_is_read_and_refused_only_with_key_paths(name: str) -> None:
    read = draft(FOLDER / f"{name}.yaml", AssumedEnvironment())
    assert [problem.split(": ")[1] for problem in read.problems] == REFUSED.get(name, [])


@pytest.mark.parametrize("name", FILES)
def test_import_litellm_makes_a_file_that_loads(name: str, tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"
    status = run(["import-litellm", str(FOLDER / f"{name}.yaml"), "--out", str(out)])
    assert status == NOT_IMPORTED.get(name, 0)
    if status == 0:
        assert load(out, AssumedEnvironment())[0].models


def test_several_organizations_are_as_many_deployments() -> None:
    read = draft(FOLDER / "keepalive.yaml", AssumedEnvironment())
    assert [each.organization for each in read.catalog.models["gpt-4o"].deployments] == ["org-1", "org-2"]


def test_the_second_names_of_vertex_s_access_data_are_read() -> None:
    [deployment] = draft(FOLDER / "bedrock_vertex.yaml", AssumedEnvironment()).catalog.models["gemini"].deployments
    read = {name: value.reveal() for name, value in deployment.provider_params.items()}
    assert read == {"vertex_project": "my-project", "vertex_location": "us-central1"}
