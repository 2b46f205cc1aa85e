"""`seqroute import-litellm`: what it keeps, leaves out, and names as still to fix."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from gateway.__main__ import run
from gateway.catalog.build import draft, load
from gateway.config.reader import AssumedEnvironment

LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, temperature: 0.2}
general_settings: {master_key: sk-1234, store_model_in_db: true}
litellm_settings: {success_callback: [langfuse], drop_params: true}
router_settings: {routing_strategy: least-busy, num_retries: 1, set_verbose: true}
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
    assert (settings.router.num_retries, settings.router.routing_strategy) == (1, "least-busy")
    assert settings.general.master_key is None
    assert settings.warnings == ()
    assert settings.models[0].params.request_defaults == {"temperature": 0.2}
    said = capsys.readouterr().err
    for key in ("general_settings.master_key", "store_model_in_db", "success_callback",
                "set_verbose"):  # fmt: skip
        assert f"{key}: " in said
    assert "sk-1234" not in said


def test_an_unpriced_model_is_kept_as_a_comment(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "  - model_name: homemade\n    litellm_params: {model: openai/homemade}\ngeneral_settings:"
    source.write_text(LITELLM.replace("general_settings:", more))
    out = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    assert list(load(out, {"OPENAI_API_KEY": "sk-own"})[1].models) == ["gpt-4o"]
    assert "# - model_name: homemade\n" in out.read_text()
    said = capsys.readouterr().err
    assert "not served: config.yaml: model_list[1].model_info.input_cost_per_token: expected a price" in said


def test_messages_name_the_entries_of_the_source(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An entry with several faults takes no other with it; what a later round finds has the source's index too."""
    entries = "".join(
        f"  - {{model_name: {name}, litellm_params: {{model: openai/{model}}}, model_info: {{{info}}}}}\n"
        for name, model, info in (
            ("one", "homemade", ""),
            ("two", "gpt-4o-mini", "supports_vision: maybe, max_input_tokens: many"),
            ("three", "gpt-4o-mini", ""),
            ("four", "homemade", "input_cost_per_tokn: 1"),
            ("five", "gpt-4o", ""),
        )
    )
    source.write_text(f"model_list:\n{entries}general_settings: {{master_key: sk-1234}}\n")
    out = tmp_path / "out.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    assert list(load(out, {})[1].models) == ["three", "five"]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": expected")[0] for line in told if line.startswith("not served")] == [
        "not served: config.yaml: model_list[0].model_info.input_cost_per_token",
        "not served: config.yaml: model_list[1].model_info.supports_vision",
        "not served: config.yaml: model_list[3].model_info.input_cost_per_token",
    ]
    left_out = [line.split(": ")[1:3] for line in told if line.startswith("left out")]
    assert ["config.yaml", "general_settings.master_key"] in left_out
    assert {file for file, _ in left_out} == {"config.yaml"}


def test_without_one_priced_model_there_is_something_to_fix(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(LITELLM.replace("openai/gpt-4o", "openai/homemade"))
    assert run(["import-litellm", str(source), "--out", str(tmp_path / "gateway.yaml")]) == 1
    assert "to fix: gateway.yaml: model_list: expected at least one model" in capsys.readouterr().err


def test_what_leaving_out_breaks_is_left_out_too(source: Path, tmp_path: Path) -> None:
    source.write_text(
        LITELLM.replace(
            "routing_strategy: least-busy",
            "model_group_alias: {any: 'openai/*', main: gpt-4o}, fallbacks: [{gpt-4o: ['openai/*', main]}]",
        ).replace(
            "general_settings:", "  - {model_name: openai/*, litellm_params: {model: openai/*}}\ngeneral_settings:"
        )
    )
    out = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    router = load(out, {"OPENAI_API_KEY": "sk-own"})[0].router
    assert router.model_group_alias == {"main": "gpt-4o"}
    assert router.fallbacks == {"gpt-4o": ("main",)}


@pytest.mark.parametrize(
    "router",
    [
        {"model_group_alias": {"group": ["gpt-4o", "gpt-4"]}},
        {"model_group_alias": ["gpt-4o"]},
        {"fallbacks": {"gpt-4o": ["gpt-4"]}},
        {"fallbacks": [{"gpt-4o": "gpt-4"}]},
        {"context_window_fallbacks": [["gpt-4o"]]},
        {"default_fallbacks": [["gpt-4o"]]},
    ],
)
def test_references_of_a_wrong_form_are_left_out_by_name(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], router: dict[str, object]
) -> None:
    document = yaml.safe_load(LITELLM)
    document["router_settings"] = router
    source.write_text(yaml.safe_dump(document))
    out = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    assert f"router_settings.{next(iter(router))}" in capsys.readouterr().err
    assert list(load(out, {"OPENAI_API_KEY": "sk-own"})[1].models) == ["gpt-4o"]


def test_a_local_model_is_imported_as_free(source: Path, tmp_path: Path) -> None:
    source.write_text("model_list: [{model_name: local, litellm_params: {model: ollama/llama2}}]\n")
    out = tmp_path / "gateway.yaml"
    assert run(["import-litellm", str(source), "--out", str(out)]) == 0
    assert load(out, {})[1].models["local"].prices.output_femtousd == 0


def examples() -> list[Path]:
    """The configurations that the installed LiteLLM brings as examples."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    proxy = Path(spec.submodule_search_locations[0]) / "proxy"
    return sorted([*proxy.glob("*.yaml"), *proxy.glob("example_config_yaml/*.yaml")])


@pytest.mark.parametrize("example", examples(), ids=lambda path: path.stem)
def test_litellm_s_own_examples_are_read_and_imported(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in them is unknown; what is refused is refused for money or safety, and can be left out."""
    read = draft(example, AssumedEnvironment())
    reasons = ("expected a price", "expected a number, got nothing", "is a wildcard", "cannot be ignored",
               'expected "provider/model", got nothing', "expected models of model_list")  # fmt: skip
    assert [problem for problem in read.problems if not any(reason in problem for reason in reasons)] == []
    out = tmp_path / "gateway.yaml"
    status = run(["import-litellm", str(example), "--out", str(out)])
    said = capsys.readouterr().err
    assert status == 0 or "model_list: expected at least one model" in said
    if status == 0:
        load(out, AssumedEnvironment())


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
