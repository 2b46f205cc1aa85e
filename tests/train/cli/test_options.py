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
