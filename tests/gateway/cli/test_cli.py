"""The command line on a real SQLite file: what an operator types on the first day, and what mistakes are answered."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
import uvicorn
from sqlalchemy import insert
from typer.testing import CliRunner

from gateway.__main__ import run
from gateway.api.server import BoundedHttp
from gateway.cli import commands
from gateway.cli.console import ago
from gateway.database.database import transaction
from gateway.database.sqlite_connection import FileLock
from gateway.database.tables import policies
from gateway.logs import OURS
from policy.checkpoint import PARAMS, save
from policy.manifest import Recipe
from train import __main__ as train
from train import __main__ as train_commands

CONFIG = """
model_list:
  - model_name: small
    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/PROVIDER_KEY_OF_THE_TEST}
session_settings: {default_budget_usd: 0.5}
"""


@dataclass(frozen=True)
class Ran:
    """One command line: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def cli(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    for variable in ("SEQROUTE_CONFIG", "SEQROUTE_DATABASE_URL", "SEQROUTE_MASTER_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PROVIDER_KEY_OF_THE_TEST", "sk-provider")

    def type_in(*arguments: str) -> Ran:
        status = run([*arguments, "--config", str(config)])
        written = capsys.readouterr()
        return Ran(status, written.out, written.err)

    # serve takes SIGTERM for its own end and sets the levels of the loggers. Configuring them closes every handler of
    # the process, the test runner's too, unless they are out of sight.
    monkeypatch.setattr(logging, "_handlers", {})
    monkeypatch.setattr(logging, "_handlerList", [])
    on_terminate = signal.getsignal(signal.SIGTERM)
    levels = {name: logging.getLogger(name).level for name in ("", *OURS)}
    yield type_in
    signal.signal(signal.SIGTERM, on_terminate)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def migrated(cli: Cli) -> Cli:
    assert cli("migrate").status == 0
    assert cli("migrate", "--json").json.keys() == {"revision"}
    return cli


def test_check_config_lists_the_models_and_says_that_all_is_good(cli: Cli) -> None:
    ran = cli("check-config", "--json")
    assert ran.status == 0
    assert ran.json[0]["model"] == "small"
    assert ran.json[0]["output_usd_per_mtok"] == 0.6
    assert ": valid, 1 model, catalogue " in ran.err


def test_check_config_names_every_problem_and_exits_with_2(cli: Cli, config: Path) -> None:
    config.write_text(CONFIG.replace("gpt-4o-mini", "nobody-knows") + "policy_settings: {mod: on}\n")
    ran = cli("check-config")
    assert ran.status == 2
    assert ran.out == ""
    assert [line.split(": ")[2] for line in ran.err.splitlines()] == [
        "policy_settings.mod", "model_list[0].model_info.input_cost_per_token",
    ]  # fmt: skip


def test_check_config_names_defaults_that_litellm_does_not_write(cli: Cli, config: Path) -> None:
    written = "model: gemini/gemini-2.5-pro, temperature: 0.2, parallel_tool_calls: false, user: u"
    entry = f"  - {{model_name: g, litellm_params: {{{written}, api_key: k}}}}\n"
    config.write_text(CONFIG.replace("model_list:\n", "model_list:\n" + entry))
    warned = [line for line in cli("check-config").err.splitlines() if "not sent" in line]
    assert warned == [
        'warning: "g": litellm_params.parallel_tool_calls, litellm_params.user: not sent: LiteLLM does not write them '
        "into requests to gemini/gemini-2.5-pro"
    ]


@pytest.mark.parametrize(
    ("written", "warned"),
    [
        ("model: foo, api_base: http://127.0.0.1:1/v1",
         ['warning: "g": requests to foo cannot be made: no provider is known for the model']),
        ("model: github_copilot/gpt-4o", []),
        ("model: gpt-4o, custom_llm_provider: github_copilot", []),
        ("model: chatgpt/gpt-5", []),
        ("model: ollama/llama3, api_base: http://127.0.0.1:1", []),
        ("model: xai/grok-4", []),
        ("model: watsonx/ibm/granite-3-8b-instruct, project_id: p", []),
    ],
)  # fmt: skip
def test_check_config_asks_nothing_over_the_network(
    cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch, written: str, warned: list[str]
) -> None:
    """A model that LiteLLM cannot resolve, or not without a login, is no problem of the file."""
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> NoReturn:
        asked.append(address)
        raise OSError("the network is not used here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    prices = "{input_cost_per_token: 0.000001, output_cost_per_token: 0.000002, max_output_tokens: 100, mode: chat}"
    entry = f"  - {{model_name: g, litellm_params: {{{written}, temperature: 0.2}}, model_info: {prices}}}\n"
    config.write_text(CONFIG.replace("model_list:\n", "model_list:\n" + entry))
    ran = cli("check-config")
    assert (ran.status, asked) == (0, [])
    assert [line for line in ran.err.splitlines() if "requests to" in line] == warned


@pytest.mark.parametrize("written", ["github_copilot/gpt-4o", "chatgpt/gpt-5", "vllm/own"])
def test_a_model_that_cannot_be_called_here_is_ignored_with_one_warning(cli: Cli, config: Path, written: str) -> None:
    prices = "{input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}"
    entry = f"  - {{model_name: g, litellm_params: {{model: {written}}}, model_info: {prices}}}\n"
    config.write_text(CONFIG.replace("model_list:\n", "model_list:\n" + entry))
    ran = cli("check-config")
    told = [line for line in ran.err.splitlines() if "model_list[0]" in line]
    assert (ran.status, len(told)) == (0, 1)
    assert "litellm_params.model" in told[0]
    assert "the entry is ignored" in told[0]
    config.write_text(CONFIG[: CONFIG.index("model_list:")] + "model_list:\n" + entry)
    assert cli("check-config").status == 2


def test_check_config_prints_no_warning_of_a_library(config: Path) -> None:
    prices = "{input_cost_per_token: 0.000001, output_cost_per_token: 0.000002, max_output_tokens: 100, mode: chat}"
    params = "{model: ollama/llama3, api_base: 'http://127.0.0.1:1', seed: 4}"
    config.write_text(f"model_list: [{{model_name: g, litellm_params: {params}, model_info: {prices}}}]\n")
    command = [sys.executable, "-m", "gateway", "check-config", "--config", str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [line for line in ran.stderr.splitlines() if not line.startswith(("warning: ", str(config)))] == []


def test_a_tenant_is_opened_shown_changed_and_granted_more(migrated: Cli) -> None:
    made = migrated("tenants", "create", "acme", "--budget-usd", "100", "--window", "30d", "--max-session-usd", "5",
                    "--json").json  # fmt: skip
    assert (made["name"], made["budget_nano_usd"], made["max_session_usd"]) == ("acme", 100_000_000_000, "5")
    assert migrated("tenants", "show", made["id"], "--json").json["name"] == "acme"
    changed = migrated("tenants", "change", "acme", "--models", "small", "--max-session-usd", "none", "--json").json
    assert (changed["models"], changed["max_session_usd"]) == (["small"], None)
    assert migrated("tenants", "grant", "acme", "50", "--json").json["budget_usd"] == "150"
    assert migrated("tenants", "grant", "acme", "30", "--take-back", "--json").json["budget_usd"] == "120"
    assert [row["name"] for row in migrated("tenants", "list", "--json").json] == ["acme"]


def test_a_key_is_shown_once_and_can_be_rotated_and_revoked(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "1")
    made = migrated("keys", "create", "--tenant", "acme", "--expires", "90d", "--json").json
    assert made["key"].startswith("sk-")
    assert made["expires_at_ms"] == made["created_at_ms"] + 90 * 86_400_000
    listed = migrated("keys", "list", "--tenant", "acme", "--json")
    assert made["key"] not in listed.out
    assert listed.json[0]["id"] == made["id"]
    rotated = migrated("keys", "rotate", made["id"], "--json").json
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    assert migrated("keys", "revoke", made["key"]).status == 2
    assert migrated("keys", "revoke", rotated["key"], "--json").json["revoked_at_ms"] is not None


def test_limits_are_given_changed_and_ended(migrated: Cli) -> None:
    made = migrated(
        "tenants", "create", "acme", "--budget-usd", "1", "--rpm", "5", "--soft-budget-usd", "0.5", "--json"
    )
    assert (made.json["rpm"], made.json["tpm"], made.json["soft_budget_usd"]) == (5, None, "0.5")
    after = migrated("tenants", "change", "acme", "--rpm", "none", "--parallel", "3", "--json").json
    assert (after["rpm"], after["parallel"]) == (None, 3)
    key = migrated("keys", "create", "--tenant", "acme", "--tpm", "1000", "--json").json
    assert key["tpm"] == 1000
    changed = migrated("keys", "change", key["id"], "--tpm", "none", "--rpm", "7", "--expires", "1d", "--json").json
    assert (changed["tpm"], changed["rpm"]) == (None, 7)
    assert changed["expires_at_ms"] > key["created_at_ms"]
    assert migrated("keys", "change", key["id"], "--expires", "none", "--json").json["expires_at_ms"] is None
    for wrong in (("--rpm", "0"), ("--rpm", "many"), ("--soft-budget-usd", "1"), ()):
        assert migrated("keys", "change", key["id"], *wrong).status == 2


def test_a_session_is_opened_raised_and_closed(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "10")
    opened = migrated("sessions", "change", "s-1", "--tenant", "acme", "--json").json
    assert (opened["state"], opened["budget_usd"]) == ("open", "0.5")
    raised = migrated("sessions", "change", "s-1", "--tenant", "acme", "--budget-usd", "2.5", "--json").json
    assert raised["budget_nano_usd"] == 2_500_000_000
    assert migrated("sessions", "close", "s-1", "--tenant", "acme", "--json").json["state"] == "closed"
    assert [row["session_id"] for row in migrated("sessions", "list", "--tenant", "acme", "--json").json] == ["s-1"]
    assert migrated("sessions", "list", "--tenant", "acme", "--state", "open", "--json").json == []


def test_sessions_are_found_without_naming_their_tenant(migrated: Cli) -> None:
    """As after the README's steps: the key belongs to acme, and nobody mentions it again."""
    for name in ("default", "acme", "rival"):
        migrated("tenants", "create", name, "--budget-usd", "10")
    migrated("sessions", "change", "chat-42", "--tenant", "acme")
    migrated("sessions", "change", "both", "--tenant", "acme")
    migrated("sessions", "change", "both", "--tenant", "rival")
    migrated("sessions", "close", "both", "--tenant", "rival")
    listed = migrated("sessions", "list", "--json").json
    assert {(row["session_id"], row["tenant"]) for row in listed} == {
        ("chat-42", "acme"), ("both", "acme"), ("both", "rival")
    }  # fmt: skip
    assert [row["updated_at_ms"] for row in listed] == sorted((row["updated_at_ms"] for row in listed), reverse=True)
    assert len(migrated("sessions", "list", "--limit", "1", "--json").json) == 1
    assert [row["tenant"] for row in migrated("sessions", "list", "--state", "closed", "--json").json] == ["rival"]
    acme = migrated("sessions", "show", "chat-42", "--json").json["tenant_id"]
    raised = migrated("sessions", "change", "chat-42", "--budget-usd", "3", "--json").json
    assert (raised["tenant_id"], raised["budget_usd"]) == (acme, "3")
    assert migrated("sessions", "close", "chat-42", "--json").json["tenant_id"] == acme
    for command in (("show", "both"), ("change", "both", "--budget-usd", "1"), ("close", "both")):
        refused = migrated("sessions", *command)
        complaint = '--tenant: expected one of the 2 tenants with a session "both" (acme, rival), got none'
        assert (refused.status, refused.err) == (2, f"seqroute: {complaint}\n")
    opened = migrated("sessions", "change", "new", "--json").json["tenant_id"]
    assert opened == migrated("tenants", "show", "default", "--json").json["id"]


def test_accounts_and_the_schema_need_none_of_the_provider_s_keys(
    cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an entry names the variable or the block of variables does."""
    monkeypatch.delenv("PROVIDER_KEY_OF_THE_TEST")
    config.write_text(CONFIG + "environment_variables: {NAMED: os.environ/PROVIDER_KEY_OF_THE_TEST}\n")
    assert cli("migrate").status == 0
    assert cli("tenants", "create", "acme", "--budget-usd", "1", "--models", "small").status == 0
    for command in (
        ("tenants", "list"), ("keys", "create", "--tenant", "acme"), ("keys", "list", "--tenant", "acme"),
        ("sessions", "list", "--tenant", "acme"), ("decisions", "list", "--tenant", "acme"), ("report",), ("audit",),
        ("policies", "list"),
    ):  # fmt: skip
        ran = cli(*command)
        assert (ran.status, "PROVIDER_KEY_OF_THE_TEST" in ran.err) == (0, False), command
    config.write_text(CONFIG + "general_settings: {database_url: os.environ/PROVIDER_KEY_OF_THE_TEST}\n")
    assert "general_settings.database_url: environment variable" in cli("tenants", "list").err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tenants", "create", "acme", "--budget-usd", "much"), "--budget-usd: expected a decimal number, got 'much'"),
        (("tenants", "show", "nobody"),
         'tenant: expected the name or id of a tenant, got "nobody"; `seqroute tenants list` lists them'),
        (("tenants", "change", "acme"), "tenants change: expected at least one of --name, --budget-usd, --window, ..."),
        (("keys", "create", "--expires", "soon"), '--expires: expected a duration like "90d" or "12h", got "soon"'),
        (("sessions", "list", "--state", "asleep"), '--state: expected one of open, paused, closed, got "asleep"'),
        (("explain", "dec_none"), 'decision: expected the id of a logged decision, got "dec_none"'),
        (("report", "--since", "ever"), '--since: expected "7d", "24h" or a date like 2026-11-01, got "ever"'),
        (("policies", "promote", "none"), "policy: no such policy"),
        (("tenants", "create", "bad name!", "--budget-usd", "1"),
         "name: expected 1 to 128 letters, digits or . _ : @ + - without spaces"),
        (("tenants", "create", "default", "--budget-usd", "1"),
         'name: the name or id "default" is taken by another tenant'),
        (("tenants", "create", "b", "--budget-usd", "1", "--window", "1y"),
         '--window: expected a window like "12h", "30d" or "1mo"'),
        (("tenants", "create", "b", "--budget-usd", "1_000"), "--budget-usd: expected a decimal number, got '1_000'"),
        (("tenants", "grant", "default", "-5"), "USD: expected an amount of at least 0, got -5; to remove money: "
                                                "seqroute tenants grant default 5 --take-back"),
        (("tenants", "grant", "default", "5000", "--take-back"),
         "budget: it is 1 USD; expected to take back at most that, got 5000 USD"),
        (("keys", "create", "--models", "smal"),
         '--models: expected models of the configuration, got "smal"; did you mean "small"?'),
        (("sessions", "show", "none"),
         'session: tenant default has no session "none"; `seqroute sessions list` lists all'),
        (("sessions", "change", "s", "--expected-turns", "10001"),
         "--expected-turns: expected an integer from 1 to 10000"),
        (("serve", "--workers", "2"), "--workers: expected 1 on SQLite, got 2: one process serves a SQLite file; "
                                      "set general_settings.database_url to a Postgres database for more"),
        (("serve", "--log-level", "loud"), '--log-level: expected critical, error, warning, info or debug, got "loud"'),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_one_line_and_exit_2(
    migrated: Cli, arguments: tuple[str, ...], complaint: str
) -> None:
    migrated("tenants", "create", "default", "--budget-usd", "1")
    ran = migrated(*arguments)
    assert (ran.status, ran.err) == (2, f"seqroute: {complaint}\n")


@pytest.mark.parametrize("action", ["promote", "pin", "canary", "shadow"])
def test_a_policy_whose_checkpoint_cannot_serve_gets_no_stage(migrated: Cli, config: Path, action: str) -> None:
    directory = config.parent / "policies"
    digest = save(directory / "p1", Recipe("p1", "cheapest"), {})
    row = {"policy_id": "p1", "kind": "rule", "manifest_sha256": digest, "stage": "candidate", "created_at_ms": 1,
           "staged_at_ms": 1}  # fmt: skip
    with transaction(f"sqlite:///{config.parent / 'seqroute.db'}") as connection:
        connection.execute(insert(policies).values(row))
    body = (directory / "p1" / PARAMS).read_bytes()
    (directory / "p1" / PARAMS).write_bytes(body + b" ")
    refused = migrated("policies", action, "p1")
    reason = f"{PARAMS}: its bytes are not those of the manifest"
    assert (refused.status, refused.err) == (2, f"seqroute: policy p1: its checkpoint cannot be used: {reason}\n")
    assert migrated("policies", "show", "p1", "--json").json["stage"] == "candidate"
    (directory / "p1" / PARAMS).write_bytes(body)
    assert migrated("policies", action, "p1").status == 0
    shutil.rmtree(directory / "p1")
    assert "cannot be read (No such file or directory)" in migrated("policies", action, "p1").err
    directory.rmdir()  # as on a machine without the gateways' volume: they check it
    assert migrated("policies", action, "p1").status == 0


@pytest.mark.parametrize("arguments", [["serv"], ["serve", "--port", "x"], ["tenants", "create"]])
def test_a_command_line_that_cannot_be_read_is_one_line_and_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    written = capsys.readouterr().err
    assert written.startswith("seqroute: ")
    assert len(written.splitlines()) == 1


def test_without_a_database_nothing_is_left_behind(cli: Cli, config: Path) -> None:
    ran = cli("sessions", "list")
    assert (ran.status, ran.err) == (
        2, "seqroute: database: seqroute.db does not exist yet: run `seqroute migrate` or `seqroute serve`\n"
    )  # fmt: skip
    assert [path.name for path in config.parent.iterdir()] == ["gateway.yaml"]


def test_an_empty_database_says_to_migrate(cli: Cli, config: Path) -> None:
    (config.parent / "seqroute.db").touch()
    ran = cli("tenants", "list")
    assert ran.status != 0
    assert "seqroute migrate" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_an_empty_ledger_is_whole(migrated: Cli) -> None:
    assert migrated("audit", "--json").json == {"ok": True, "violations": []}
    ran = migrated("audit")
    assert (ran.status, ran.out) == (0, "every invariant of the ledger holds\n")


def test_the_report_of_an_empty_log_has_all_its_parts(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "3")
    found = migrated("report", "--tenant", "acme", "--since", "7d", "--json").json
    assert (found["turns"], found["spent_usd"], found["bankrupt_sessions"]) == (0, "0", 0)
    assert found["tenants"][0]["remaining_usd"] == "3"
    assert found["models"] == found["baselines"] == []


def test_every_command_that_ends_can_print_json_and_nothing_is_coloured_in_a_pipe(cli: Cli) -> None:
    serving = {"seqroute serve", "seqroute demo", "seqroute demo-provider"}
    passed_on = {"seqroute export", "seqroute retain"}  # to seqroute-train, whose options are checked below
    for program, root in (("seqroute", commands.build()), ("seqroute-train", train_commands.build())):
        for name, command in leaves(typer.main.get_command(root), program):
            shown = command.get_help(typer.Context(command))
            assert "\x1b" not in shown, name
            options = {option for parameter in command.params for option in parameter.opts}
            assert "--json" in options or name in serving | passed_on, name
    assert "\x1b" not in cli("tenants", "list").err


@pytest.mark.parametrize("program", ["gateway", "train"])
def test_the_shell_completes_commands(program: str) -> None:
    """Asked as bash asks: the words so far, and the place of the one to complete."""
    name = {"gateway": "seqroute", "train": "seqroute-train"}[program]
    asked = {
        "COMP_WORDS": f"{name} re",
        "COMP_CWORD": "1",
        f"_{name.upper().replace('-', '_')}_COMPLETE": "complete_bash",
    }
    code = f"import sys; from {program}.__main__ import main; sys.argv[0] = {name!r}; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert "retain" in ran.stdout.split(), ran.stderr


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("gateway", ["policies", "list", "--json"]), ("gateway", ["--version"]),
        ("gateway", ["tenants", "list", "--tenant"]), ("train", ["nightly", "--help"]),
    ],
)  # fmt: skip
def test_a_command_whose_reader_left_ends_without_a_word(
    migrated: Cli, program: str, arguments: list[str], config: Path
) -> None:
    """Of a wrong option the error is what nobody reads: both streams go into the pipe."""
    named = ["--config", str(config)] if arguments[-1] == "--json" else []
    reader, writer = os.pipe()
    os.close(reader)
    wrong = arguments[-1] == "--tenant"
    ran = subprocess.run(
        [sys.executable, "-m", program, *arguments, *named],
        stdout=writer, stderr=writer if wrong else subprocess.PIPE, cwd=Path.cwd(), check=False,
    )  # fmt: skip
    os.close(writer)
    assert (ran.returncode, ran.stderr or b"") == (141, b"")


@pytest.mark.parametrize(
    ("program", "arguments", "closed"),
    [
        ("gateway", ["policies", "list"], "<&- >&-"), ("gateway", ["--help"], ">&-"), ("gateway", ["--help"], "2>&-"),
        ("train", ["nightly", "--help"], "<&- >&- 2>&-"),
    ],
)  # fmt: skip
def test_a_command_whose_streams_are_closed_does_its_work(
    migrated: Cli, program: str, arguments: list[str], config: Path, closed: str
) -> None:
    named = ["--config", str(config)] if arguments == ["policies", "list"] else []
    command = [sys.executable, "-m", program, *arguments, *named]
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, cwd=Path.cwd(), check=False
    )
    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False)
    assert bool(ran.stdout) is (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("gateway", ["--help"]), ("gateway", ["policies", "list", "--json"]), ("train", ["--version"])],
)
def test_output_that_cannot_be_written_is_one_line(
    migrated: Cli, program: str, arguments: list[str], config: Path
) -> None:
    named = ["--config", str(config)] if arguments[-1] == "--json" else []
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", program, *arguments, *named], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (ran.returncode, ran.stderr) == (1, b"standard output: No space left on device\n")


@pytest.mark.parametrize("command", [["gateway", "report", "--html"], ["train", "nightly", "--runs"]])
def test_a_file_or_folder_that_cannot_be_used_is_one_line(migrated: Cli, command: list[str], config: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", *command, "/dev/null/x", "--config", str(config)], capture_output=True, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(b"/dev/null/x")
    assert ran.stderr.endswith(b": expected a file or folder that can be used, got: Not a directory\n")
    assert ran.stderr.count(b"\n") == 1


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command without commands below it, by its whole name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, child in below.items():
        yield from leaves(child, f"{path} {name}")


def test_a_table_is_plain_text_in_a_pipe(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "3")
    header, row = migrated("tenants", "list").out.splitlines()
    assert header.split() == ["name", "remaining_usd", "budget_usd", "spent_usd", "id", "budget_duration",
                              "reserved_usd", "models", "outage"]  # fmt: skip
    assert row.split()[:4] + row.split()[5:] == ["acme", "3", "3", "0", "-", "0", "-", "closed"]


def test_a_narrow_terminal_gets_fewer_columns_and_whole_ids(migrated: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made = migrated("tenants", "create", "acme", "--budget-usd", "123456789.123456789", "--json").json
    key = migrated("keys", "create", "--tenant", "acme", "--json").json
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for arguments, whole in ((("tenants", "list"), "123456789.123456789"), (("keys", "list"), key["id"])):
        ran = migrated(*arguments)
        assert whole in ran.out
        assert max(map(len, ran.out.splitlines())) <= 80
        assert "not shown on this narrow terminal: " in ran.err
    assert made["id"] in migrated("tenants", "show", "acme").out


def test_one_account_shows_each_amount_once_and_its_times_in_words(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "3")
    lines = dict(line.split(maxsplit=1) for line in migrated("tenants", "show", "acme").out.splitlines())
    assert [name for name in lines if name.startswith("budget")] == ["budget_usd", "budget_duration"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+Z \((?:now|\d+ s ago)\)", lines["created"])


def test_times_are_told_as_seen_from_now() -> None:
    now = 10**12
    told = [ago(now - away, now) for away in (0, 5_000, 180_000, 7_200_000, 86_400_000, 200_000_000, -90_000)]
    assert told == ["now", "5 s ago", "3 min ago", "2 h ago", "1 day ago", "2 days ago", "in 1 min"]


def test_the_json_of_an_account_is_that_of_the_api(migrated: Cli) -> None:
    made = migrated("tenants", "create", "acme", "--budget-usd", "3", "--window", "30d", "--json").json
    assert {"id", "name", "budget_duration", "reset_at_ms", "created_at_ms", "remaining_nano_usd"} < made.keys()
    key = migrated("keys", "create", "--tenant", "acme", "--json").json
    assert (key["tenant"], key["tenant_id"]) == ("acme", made["id"])


def test_a_key_s_budget_is_given_raised_and_ended(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "10")
    key_id = migrated("keys", "create", "--tenant", "acme", "--json").json["id"]
    given = migrated("keys", "set-budget", key_id, "2", "--window", "1mo", "--json").json
    assert (given["budget_usd"], given["budget_duration"]) == ("2", "1mo")
    raised = migrated("keys", "set-budget", key_id, "3", "--json").json
    assert (raised["budget_usd"], raised["budget_duration"]) == ("3", "1mo")
    assert migrated("keys", "set-budget", key_id, "none", "--json").json["budget_usd"] is None


def test_without_a_command_the_help_is_shown_and_the_status_is_the_same_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in ([], ["tenants"], ["keys"], ["sessions"], ["policies"], ["decisions"]):
        assert run(arguments) == 2
        assert capsys.readouterr().out.startswith("Usage: seqroute")


def test_version_and_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"seqroute \d+\.\d+\S*\n", capsys.readouterr().out)
    assert run(["tenants", "list", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: seqroute tenants list")


def test_the_report_names_tenants_and_units(migrated: Cli) -> None:
    migrated("tenants", "create", "acme", "--budget-usd", "3")
    ran = migrated("report", "--tenant", "acme", "--since", "7d")
    assert re.search(r"^tenant +acme$", ran.out, flags=re.MULTILINE)
    assert re.search(r"^since +20\d\d-\S+Z$", ran.out, flags=re.MULTILINE)
    assert "points of quality (0 to 1 a turn)" in migrated("report").out


def test_serve_makes_a_master_key_migrates_and_starts_uvicorn_with_limits(
    cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[uvicorn.Config, int]] = []
    monkeypatch.setattr(uvicorn.Config, "load", lambda config: None)
    monkeypatch.setattr(
        uvicorn.Server,
        "run",
        lambda server, sockets: started.append((server.config, sockets[0].getsockname()[1])),
    )
    monkeypatch.setenv("SEQROUTE_CONFIG", "set by serve, restored by the test")
    monkeypatch.setenv("SEQROUTE_DRAIN_SECONDS", "2.5")
    ran = cli("serve", "--port", "0")
    assert ran.status == 0
    key_file = config.parent / "seqroute.master-key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert key_file.read_text().strip() not in ran.err
    assert str(key_file) in ran.err
    [(served, port)] = started
    assert (served.app, served.factory) == ("gateway.app:from_environment", True)
    assert (served.http, served.workers) == (BoundedHttp, 1)
    assert port > 0
    assert (served.timeout_graceful_shutdown, served.server_header) == (3, False)
    # A worker that a busy machine keeps from answering is slow, not dead: uvicorn would kill it after five seconds.
    assert served.timeout_worker_healthcheck == 60
    assert cli("audit").status == 0


def test_serve_says_first_what_it_is_doing_with_time_and_level(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Config, "load", lambda config: None)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    monkeypatch.setenv("SEQROUTE_CONFIG", "set by serve, restored by the test")
    first = cli("serve", "--port", "0").err.splitlines()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO seqroute\.serve: seqroute \S+ starts: .*", first)


def test_a_port_that_is_taken_is_one_line_and_exit_1(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = cli("serve", "--port", str(port), "--log-level", "error")
    assert ran.status == 1
    assert ran.err == (
        f"seqroute: --host, --port: expected a free address, got 127.0.0.1:{port}: in use by another process; "
        "stop it or choose another --port\n"
    )


def test_a_second_server_on_one_sqlite_file_is_one_line_and_exit_1(migrated: Cli, config: Path) -> None:
    lock = FileLock(str(config.parent / "seqroute.db"))
    lock.acquire()
    try:
        ran = migrated("serve", "--port", "0", "--log-level", "error")
    finally:
        lock.release()
    assert ran.status == 1
    assert ran.err.startswith("seqroute: database: ")
    assert "another process serves from this SQLite database" in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("group", ["", "tenants", "keys", "sessions", "policies", "decisions", "seqroute-train"])
def test_the_help_of_a_group_shows_every_summary_whole(group: str) -> None:
    built = train.build() if group == "seqroute-train" else commands.build()
    arguments = [group, "--help"] if group and group != "seqroute-train" else ["--help"]
    shown = CliRunner().invoke(built, arguments, env={"COLUMNS": "80"}).output
    _, summaries = shown.split("Commands:\n")
    assert "..." not in summaries
    assert max(map(len, summaries.splitlines())) <= 80


def test_an_empty_list_says_whose_it_is(migrated: Cli) -> None:
    migrated("tenants", "create", "default", "--budget-usd", "1")
    for group in ("sessions", "decisions"):
        assert migrated(group, "list").err == f"no {group} yet\n"
        assert migrated(group, "list", "--tenant", "default").err == f"no {group} of tenant default yet\n"
    assert migrated("sessions", "list", "--state", "open").err == "no open sessions yet\n"


def test_the_provider_of_the_demo_is_started_as_a_program_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["demo-provider", "--help"]) == 0
    assert "usage: seqroute demo-provider" in capfd.readouterr().out


def test_the_provider_of_the_demo_says_that_its_port_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["demo-provider", "--port", str(port)]) == 1
    written = capfd.readouterr()
    assert written.out == ""
    assert written.err == (
        f"seqroute demo-provider: --host, --port: expected a free address, got 127.0.0.1:{port}: "
        "Address already in use; stop it or choose another --port\n"
    )


def test_the_demo_is_started_as_a_program_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--help"]) == 0
    assert "seqroute demo" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("program", "call"),
    [
        ("gateway.__main__", "run(['serve', '--config', 'missing.yaml'])"),
        ("train.__main__", "run_command(['nightly', '--config', 'missing.yaml'])"),
    ],
)
def test_server_and_training_compute_on_one_thread_unless_the_environment_says_otherwise(
    tmp_path: Path, program: str, call: str
) -> None:
    name, _, _ = call.partition("(")
    lines = f"import os, sys\nfrom {program} import {name}\nassert 'numpy' not in sys.modules\n{call}\n"
    for given, expected in ((None, "1"), ("3", "3")):
        environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
        done = subprocess.run(
            [sys.executable, "-c", lines + "print(os.environ['OPENBLAS_NUM_THREADS'])"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected
