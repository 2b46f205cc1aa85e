"""`seqroute init`: three answers make a configuration that starts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.__main__ import run
from gateway.catalog.build import load
from gateway.cli.commands import build
from gateway.cli.init import PROVIDERS
from gateway.config.reader import AssumedEnvironment


def test_three_answers_write_a_file_that_check_config_accepts(tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"
    asked = CliRunner().invoke(build(), ["init", "--out", str(out)], input="openai\n2.50\nsqlite\n")
    assert asked.exit_code == 0, asked.output
    assert "export OPENAI_API_KEY=..." in asked.output
    assert f"seqroute serve --config {out}" in asked.output
    settings, catalog = load(out, {"OPENAI_API_KEY": "sk-own"})
    assert list(catalog.models) == ["gpt-5.4-nano", "gpt-5.4-mini", "gpt-5.4"]
    assert settings.session.default_budget_nanousd == 2_500_000_000
    assert settings.session.max_budget_nanousd == 25_000_000_000
    assert settings.warnings == ()


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_three_priced_models(name: str, tmp_path: Path) -> None:
    out = tmp_path / "gateway.yaml"
    answers = ["--provider", name, "--budget-usd", "1", "--database", "postgresql://user@host/db"]
    assert run(["init", "--out", str(out), *answers]) == 0
    settings, catalog = load(out, AssumedEnvironment())
    assert len(catalog.models) == 3
    assert settings.general.database_url.reveal() == "postgresql://user@host/db"
    cheap, *_, strong = catalog.models.values()
    assert cheap.prices.at(0).output_femtousd < strong.prices.at(0).output_femtousd


def test_several_providers_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "gateway.yaml"
    answers = ["--provider", "openai, anthropic,openai", "--budget-usd", "0.2", "--database", "sqlite"]
    assert run(["init", "--out", str(out), *answers]) == 0
    assert len(load(out, AssumedEnvironment())[1].models) == 6
    said = capsys.readouterr().out
    assert "export ANTHROPIC_API_KEY=..." in said
    assert "seqroute migrate" not in said


@pytest.mark.parametrize("name", ["foo.db", "./foo.sqlite", "data/foo", "/abs/foo.db"])
@pytest.mark.parametrize("out", ["gateway.yaml", "etc/gateway.yaml"])
def test_a_database_s_file_is_the_one_that_a_shell_would_open(
    name: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = ["--provider", "openai", "--budget-usd", "1", "--database", name]
    assert run(["init", "--out", out, *answers]) == 0
    url = load(out, AssumedEnvironment())[0].general.database_url.reveal()
    assert Path(url.removeprefix("sqlite:///")).resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("--provider", "opnai", 'expected some of openai, anthropic, gemini, mistral, openrouter, got "opnai"'),
        ("--provider", " , ", "expected some of"),
        ("--budget-usd", "1_000", "expected a decimal number"),
        ("--budget-usd", "0", "expected at least"),
        ("--database", "mysql://x", "general_settings.database_url"),
        ("--database", "postgres", "general_settings.database_url"),
    ],
)
def test_a_wrong_answer_is_one_line_and_writes_nothing(
    option: str, value: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gateway.yaml"
    answers = {"--provider": "openai", "--budget-usd": "1", "--database": "sqlite", option: value}
    assert run(["init", "--out", str(out), *(part for pair in answers.items() for part in pair)]) == 2
    assert found in capsys.readouterr().err
    assert not out.exists()


def test_the_end_of_the_input_is_one_line_that_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("openai\n"))
    assert run(["init", "--out", str(tmp_path / "gateway.yaml")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "seqroute: --budget-usd: expected this option or an answer, got the end of the input"


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gateway.yaml"
    out.write_text("mine")
    assert run(["init", "--out", str(out)]) == 2
    assert "use --force" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_serving_without_a_file_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-config", "--config", str(tmp_path / "gateway.yaml")]) == 2
    assert "`seqroute init` writes one" in capsys.readouterr().err
