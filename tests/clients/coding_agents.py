"""Run coding agents headless on one task, then with a spent budget.

The task: read a file, edit it, say so. Checked are the file, the exit status, and that all of it was one session with
one budget; then, with a budget that is spent, that the agent shows the gateway's own words and sends nothing again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.database.tables import decisions, sessions
from tests.clients.provider import PlayedProvider
from tests.clients.scripts import Outcome, Step
from tests.clients.stage import WORDS, Stage

TASK = "Change the word blue to green in the file notes.txt, then say that you are done."
BUDGET_HEADER = "X-Session-Budget-USD"
BUDGET_USD = "1"
SPENT_USD = "0.0000001"
PATIENCE_S = 180.0
SPENT_PATIENCE_S = 60.0
"""A retry with back-off takes longer than this."""


@dataclass(frozen=True, slots=True)
class Access:
    """The gateway's address, a key and the budget to ask for: the content of a configuration."""

    url: str
    key: str
    budget_usd: str
    session: str


@dataclass(frozen=True, slots=True)
class Agent:
    """A coding agent: its command line, and `prepare`, which writes its configuration.

    `turns` are the least that its task takes; `asks_again` says that it repeats a refused turn by a rule of its own.
    """

    name: str
    endpoint: str
    command: Callable[[Path, Access], list[str]]
    prepare: Callable[[Path, Access], dict[str, str]]
    after_install: tuple[str, ...] = ()
    turns: int = 3
    asks_again: bool = False


def codex_home(home: Path, access: Access) -> dict[str, str]:
    (home / "config.toml").write_text(
        'model = "auto"\nmodel_provider = "seqroute"\n\n[model_providers.seqroute]\nname = "seqroute"\n'
        f'base_url = "{access.url}/v1"\nenv_key = "SEQROUTE_KEY"\nwire_api = "responses"\n'
        f'http_headers = {{ "{BUDGET_HEADER}" = "{access.budget_usd}" }}\n'
    )
    return {"CODEX_HOME": str(home), "SEQROUTE_KEY": access.key}


def claude_home(home: Path, access: Access) -> dict[str, str]:
    return {
        "CLAUDE_CONFIG_DIR": str(home), "ANTHROPIC_BASE_URL": access.url, "ANTHROPIC_AUTH_TOKEN": access.key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
        "ANTHROPIC_CUSTOM_HEADERS": f"{BUDGET_HEADER}: {access.budget_usd}",
    }  # fmt: skip


def opencode_home(home: Path, access: Access) -> dict[str, str]:
    options = {"baseURL": access.url + "/v1", "apiKey": access.key, "headers": {BUDGET_HEADER: access.budget_usd}}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"auto": {"name": "auto"}}}
    written = home / "opencode.json"
    written.write_text(
        json.dumps({"provider": {"seqroute": provider}, "autoupdate": False, "permission": {"edit": "allow"}})
    )
    return {
        "OPENCODE_CONFIG": str(written), "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"), "XDG_STATE_HOME": str(home / "state"),
    }  # fmt: skip


def aider_home(home: Path, access: Access) -> dict[str, str]:
    headers = f"{{X-Session-Id: {access.session}, {BUDGET_HEADER}: '{access.budget_usd}'}}"
    (home / ".aider.model.settings.yml").write_text(
        f"- name: openai/auto\n  edit_format: whole\n  extra_params:\n    extra_headers: {headers}\n"
    )
    return {
        "OPENAI_API_BASE": access.url + "/v1", "OPENAI_API_KEY": access.key, "AIDER_ANALYTICS_DISABLE": "true",
        "AIDER_CHECK_UPDATE": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip


def qwen_home(home: Path, access: Access) -> dict[str, str]:
    headers = {"customHeaders": {BUDGET_HEADER: access.budget_usd}}
    (home / ".qwen").mkdir()
    (home / ".qwen" / "settings.json").write_text(
        json.dumps({"model": {"generationConfig": headers}, "privacy": {"usageStatisticsEnabled": False}})
    )
    return {"OPENAI_BASE_URL": access.url + "/v1", "OPENAI_API_KEY": access.key, "OPENAI_MODEL": "auto"}


def copilot_home(_: Path, access: Access) -> dict[str, str]:
    return {
        "COPILOT_PROVIDER_BASE_URL": access.url + "/v1", "COPILOT_PROVIDER_API_KEY": access.key,
        "COPILOT_PROVIDER_HEADERS": f"{BUDGET_HEADER}: {access.budget_usd}", "COPILOT_MODEL": "auto",
        "COPILOT_OFFLINE": "true", "COPILOT_AUTO_UPDATE": "false",
    }  # fmt: skip


AGENTS = (
    Agent(
        "codex",
        "responses",
        lambda folder, _: [
            str(folder / "node_modules/.bin/codex"), "exec", "--skip-git-repo-check", "--sandbox",
            "danger-full-access", TASK,
        ],
        codex_home,
    ),
    Agent(
        "claude-code",
        "messages",
        lambda folder, _: [
            str(folder / "node_modules/.bin/claude"), "-p", TASK, "--model", "auto", "--permission-mode",
            "acceptEdits", "--allowedTools", "Read,Edit",
        ],
        claude_home,
        after_install=("node", "node_modules/@anthropic-ai/claude-code/install.cjs"),
    ),
    Agent(
        "opencode",
        "chat",
        lambda folder, _: [str(folder / "node_modules/.bin/opencode"), "run", "--model", "seqroute/auto", TASK],
        opencode_home,
        after_install=("node", "node_modules/opencode-ai/postinstall.mjs"),
    ),
    Agent(
        "aider",
        "chat",
        lambda folder, _: [
            str(folder / "venv/bin/aider"), "--model", "openai/auto", "--no-git", "--yes-always",
            "--no-show-model-warnings", "--no-gitignore", "--no-pretty", "--chat-history-file", ".chat",
            "--input-history-file", ".input", "--message", TASK, "notes.txt",
        ],
        aider_home,
        turns=1,
        asks_again=True,
    ),
    Agent(
        "qwen-code",
        "chat",
        lambda folder, _: [
            str(folder / "node_modules/.bin/qwen"), "--auth-type", "openai", "--approval-mode", "yolo", "-p", TASK,
        ],
        qwen_home,
    ),
    Agent(
        "copilot",
        "chat",
        lambda folder, _: [str(folder / "node_modules/.bin/copilot"), "-p", TASK, "--allow-all-tools"],
        copilot_home,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """The end of one run of an agent."""

    status: int
    seconds: float
    output: str


async def check(agent: Agent, stage: Stage[PlayedProvider], folder: Path) -> Outcome:
    """Run an agent as a tenant of its own; judge the file, its output and its books."""
    outcome = Outcome(agent.name)
    tenant_id, key = await stage.tenant(agent.name)
    calls = len(stage.provider.bodies)
    work = work_in(folder)
    stage.provider.file = work / "notes.txt"
    run = await asyncio.to_thread(run_task, agent, folder, work, Access(stage.url, key, BUDGET_USD, "task"), PATIENCE_S)
    green = "green" in stage.provider.file.read_text()
    if run.status != 0:
        outcome.problems.append(f"exit status {run.status}: {run.output[-1500:]}")
    if not green:
        outcome.problems.append(f"the file was not edited: {run.output[-1500:]}")
    outcome.steps.append(Step(agent.endpoint, "task", run.status == 0 and green, run.output[-500:]))
    outcome.problems += await stage.books(tenant_id, len(stage.provider.bodies) - calls)
    rows = stage.rows(decisions, tenant_id)
    loop = [row for row in rows if row["status"] == "completed" and row["endpoint"] == agent.endpoint]
    found = [(row["session_id"], row["granted_nanousd"]) for row in stage.rows(sessions, tenant_id)]
    if len(loop) < agent.turns or len(found) != 1 or found[0][1] != int(BUDGET_USD) * 10**9:
        outcome.problems.append(
            f"expected {agent.turns} turns or more in one session with {BUDGET_USD} USD, got {len(loop)} in {found}"
        )
    outcome.problems += await _spent(agent, stage, key, folder, work, outcome)
    return outcome


async def _spent(
    agent: Agent, stage: Stage[PlayedProvider], key: str, folder: Path, work: Path, outcome: Outcome
) -> list[str]:
    """Run the task with a spent budget; answers the problems."""
    problems = []
    calls = len(stage.provider.bodies)
    access = Access(stage.url, key, SPENT_USD, "spent")
    run = await asyncio.to_thread(run_task, agent, folder, work, access, SPENT_PATIENCE_S)
    shown = WORDS in " ".join(run.output.split())
    outcome.steps.append(Step(agent.endpoint, "refused", shown, run.output[-500:]))
    if not shown:
        problems.append(f"a spent budget is not shown: {run.output[-1500:]}")
    if not agent.asks_again and ("econnecting" in run.output or run.seconds > SPENT_PATIENCE_S):
        problems.append(f"a spent budget is sent again ({run.seconds:.0f} s)")
    if len(stage.provider.bodies) != calls:
        problems.append("a spent budget reached the provider")
    return problems


def work_in(folder: Path) -> Path:
    """A fresh folder with the file that the agent shall edit."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "notes.txt").write_text("The sky is blue.\n")
    return work


def run_task(agent: Agent, folder: Path, work: Path, access: Access, patience_s: float) -> Run:
    """Run the task once, in a home of its own, without any provider's keys or addresses."""
    with tempfile.TemporaryDirectory() as home:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TERM", "TMPDIR") if name in os.environ}
        environment = kept | {"HOME": home} | agent.prepare(Path(home), access)
        begun = time.monotonic()
        try:
            done = subprocess.run(
                agent.command(folder, access), cwd=work, env=environment, capture_output=True, text=True,
                timeout=patience_s, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = b"".join(part for part in (late.stdout, late.stderr) if isinstance(part, bytes))
            return Run(-1, time.monotonic() - begun + 1, f"no end after {patience_s:g} s: {said.decode()}")
        return Run(done.returncode, time.monotonic() - begun, done.stdout + done.stderr)
