"""`seqroute import-litellm`: what it keeps, leaves out, and names as still to mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.__main__ import run
from gateway.catalog.models import load

LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, temperature: 0.2}
general_settings: {master_key: sk-1234, store_model_in_db: true}
litellm_settings: {success_callback: [langfuse], drop_params: true}
router_settings: {routing_strategy: simple-shuffle, num_retries: 1}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(LITELLM)
    return path


def test_the_result_starts_and_keeps_what_has_a_meaning(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    settings, catalog = load(out, {"OPENAI_API_KEY": "sk-own"})
    assert list(catalog.models) == ["gpt-4o"]
    assert settings.router.num_retries == 1
    assert settings.general.master_key is None
    assert settings.warnings == ()
    said = capsys.readouterr().err
    for key in ("general_settings.master_key", "litellm_params.temperature", "store_model_in_db", "success_callback",
                "routing_strategy"):  # fmt: skip
        assert f"{key}: " in said
    assert "sk-1234" not in said


def test_an_unpriced_model_is_still_to_mend(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text(LITELLM.replace("openai/gpt-4o", "openai/homemade"))
    assert run(["import-litellm", str(source), "--out", str(tmp_path / "gateway.yaml")]) == 1
    assert "to mend: gateway.yaml: model_list[0].model_info.input_cost_per_token: " in capsys.readouterr().err


def test_a_file_that_is_there_stays(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gateway.yaml"
    out.write_text("precious")
    assert run(["import-litellm", str(source), "--out", str(out)]) == 2
    assert out.read_text() == "precious"
    assert run(["import-litellm", str(source), "--out", str(out), "--force"]) == 0


def test_what_is_no_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("- nothing")
    assert run(["import-litellm", str(path), "--out", str(tmp_path / "o.yaml")]) == 2
    assert capsys.readouterr().err == "seqroute: config.yaml: expected a mapping, got a list\n"
