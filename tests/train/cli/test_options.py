"""The training commands on a database that is not there, or not migrated."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.database.database import transaction
from migrations.upgrade import downgrade, newest_revision, upgrade
from train.__main__ import run_command

COMMANDS = {
    "nightly": ["nightly"],
    "fit": ["fit", "--run", "run"],
    "evaluate": ["evaluate", "--run", "run"],
    "frontier": ["frontier", "--out", "front"],
    "export": ["export", "--out", "log"],
    "retain": ["retain"],
    "import-logs": ["import-logs", "spend.jsonl"],
}
CONFIGURATION = """
model_list:
  - model_name: small
    litellm_params: {model: openai/small, api_base: "http://127.0.0.1:1/v1", api_key: none}
    model_info: {input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}
general_settings: {database_url: "sqlite:///gateway.db", retention: {decisions: 30d}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.yaml").write_text(CONFIGURATION)
    (tmp_path / "spend.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_is_not_there_is_named_and_not_made(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_command(COMMANDS[command])
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert told.err.endswith("database: gateway.db does not exist yet: run `seqroute migrate` or `seqroute serve`\n")
    assert not (folder / "gateway.db").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_that_does_not_answer_is_no_wrong_setting(
    command: str, folder: Path, log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQROUTE_LOG_FORMAT", log_format)
    url = "postgresql://me@127.0.0.1:1/ledger"
    (folder / "gateway.yaml").write_text(CONFIGURATION.replace("sqlite:///gateway.db", url))
    assert run_command(COMMANDS[command]) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_environment_names_the_configuration(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEQROUTE_CONFIG", "elsewhere.yaml")
    assert run_command(COMMANDS[command]) == 2
    assert "elsewhere.yaml: expected a configuration file, found none" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_of_another_revision_is_refused_with_the_command_that_migrates_it(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{folder}/gateway.db"
    upgrade(url)
    downgrade(url, "-1")
    status = run_command(COMMANDS[command])
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert f"database: expected revision {newest_revision()}, got " in told.err
    assert told.err.endswith(": run `seqroute migrate`\n")


FOR_CALLS = """
model_list:
  - model_name: small
    litellm_params: {model: openai/small, api_base: os.environ/UNSET_BASE, api_key: os.environ/UNSET_KEY}
    model_info: {input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}
  - {model_name: gpt-4o, litellm_params: {model: openai/gpt-4o, litellm_credential_name: shared}}
credential_list: [{credential_name: shared, credential_values: {api_key: os.environ/UNSET_KEY}, credential_info: {}}]
environment_variables: {NAMED: os.environ/UNSET_KEY, TRAINED: trained}
general_settings:
  master_key: os.environ/UNSET_MASTER
  webhooks: [{url: os.environ/UNSET_HOOK, secret: os.environ/UNSET_SECRET}]
  database_url: "sqlite:///gateway.db"
  retention: {decisions: 30d}
policy_settings: {directory: os.environ/TRAINED}
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_what_only_a_gateway_uses_need_not_be_set(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gateway.yaml").write_text(FOR_CALLS)
    assert run_command(COMMANDS[command]) == 2
    [problem] = capsys.readouterr().err.splitlines()
    assert problem.endswith("database: gateway.db does not exist yet: run `seqroute migrate` or `seqroute serve`")


def test_a_night_runs_without_the_providers_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "gateway.yaml").write_text(FOR_CALLS)
    upgrade(f"sqlite:///{folder}/gateway.db")
    assert run_command(["nightly"]) == 0
    assert "not enough data" in capsys.readouterr().out


def test_what_training_uses_must_be_set_and_the_file_be_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = FOR_CALLS.replace('"sqlite:///gateway.db"', "os.environ/UNSET_DATABASE")
    changed = changed.replace("os.environ/TRAINED", "os.environ/UNSET_FOLDER, mode: maybe")
    changed = changed.replace("30d", "30d, archive: os.environ/UNSET_ARCHIVE").replace("0.000001", "free")
    (folder / "gateway.yaml").write_text(changed)
    assert run_command(["nightly"]) == 2
    told = [line.removeprefix("seqroute-train: ") for line in capsys.readouterr().err.splitlines()]
    assert sorted(line.split(": ", 2)[1] for line in told) == [
        "general_settings.database_url", "general_settings.retention.archive",
        "model_list[0].model_info.input_cost_per_token", "policy_settings.directory", "policy_settings.mode",
    ]  # fmt: skip


def test_a_night_in_a_pipe_writes_its_report_and_no_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade(f"sqlite:///{folder}/gateway.db")
    assert run_command(["nightly"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "not enough data" in told.out
    assert " ...\n" not in told.out
    assert " done after " not in told.out


def of_a_newer_version(url: str) -> None:
    upgrade(url)
    with transaction(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))


def test_a_newer_versions_database_is_used_during_a_rolling_upgrade(
    folder: Path, capsys: pytest.CaptureFixture[str], postgres_url: str
) -> None:
    of_a_newer_version(postgres_url)
    (folder / "gateway.yaml").write_text(CONFIGURATION.replace("sqlite:///gateway.db", postgres_url))
    assert run_command(["nightly"]) == 0
    assert "not enough data" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_one_process_never_writes_to_a_newer_versions_file(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_a_newer_version(f"sqlite:///{folder}/gateway.db")
    assert run_command(COMMANDS[command]) == 2
    assert capsys.readouterr().err.endswith("got 9999 of another version: use that version\n")
