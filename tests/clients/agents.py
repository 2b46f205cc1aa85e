"""Coding agents from npm, unchanged, at a running gateway: `python -m tests.clients.agents` (make clients).

Each agent is installed into a folder of its own and does one task headless: read a file, edit it, say so. The model
behind the gateway is scripted. Checked are the file, the exit status, and that all of it was one session with one
budget; then the same with a budget that is spent, which must show the gateway's own words and must not be retried.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from gateway.database.tables import decisions, sessions
from tests.clients.scripted_provider import ScriptedProvider
from tests.harness.gateway import Served, config, serving
from tests.harness.scenario import Play
from tests.harness.upstream import FaultUpstream

TASK = "Change the word blue to green in the file notes.txt, then say that you are done."
SPENT = "budget"
PATIENCE_S = 180.0
SPENT_PATIENCE_S = 60.0
"""A retry with back-off takes longer than this."""
BUDGET_HEADER = "X-Session-Budget-USD"


@dataclass(frozen=True, slots=True)
class Agent:
    """How an agent is installed and started. `prepare` writes its configuration; `package` is pinned."""

    name: str
    package: str
    endpoint: str
    install: tuple[str, ...]
    command: Callable[[Path], list[str]]
    prepare: Callable[[Path, Served, str | None], dict[str, str]]


def codex_home(home: Path, gateway: Served, budget_usd: str | None) -> dict[str, str]:
    headers = "" if budget_usd is None else f'http_headers = {{ "{BUDGET_HEADER}" = "{budget_usd}" }}\n'
    (home / "config.toml").write_text(
        'model = "auto"\nmodel_provider = "seqroute"\n\n[model_providers.seqroute]\nname = "seqroute"\n'
        f'base_url = "{gateway.url}/v1"\nenv_key = "SEQROUTE_KEY"\nwire_api = "responses"\n{headers}'
    )
    return {"CODEX_HOME": str(home), "SEQROUTE_KEY": gateway.master_key}


def claude_home(home: Path, gateway: Served, budget_usd: str | None) -> dict[str, str]:
    made = {
        "CLAUDE_CONFIG_DIR": str(home), "ANTHROPIC_BASE_URL": gateway.url, "ANTHROPIC_AUTH_TOKEN": gateway.master_key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
    }  # fmt: skip
    return made | ({} if budget_usd is None else {"ANTHROPIC_CUSTOM_HEADERS": f"{BUDGET_HEADER}: {budget_usd}"})


AGENTS = (
    Agent(
        "codex",
        "@openai/codex@0.171.0",
        "responses",
        (),
        lambda folder: [
            str(folder / "node_modules/.bin/codex"), "exec", "--skip-git-repo-check", "--sandbox",
            "danger-full-access", TASK,
        ],
        codex_home,
    ),
    Agent(
        "claude-code",
        "@anthropic-ai/claude-code@2.1.197",
        "messages",
        ("node", "node_modules/@anthropic-ai/claude-code/install.cjs"),
        lambda folder: [
            str(folder / "node_modules/.bin/claude"), "-p", TASK, "--model", "auto", "--permission-mode",
            "acceptEdits", "--allowedTools", "Read,Edit",
        ],
        claude_home,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run of an agent."""

    status: int
    seconds: float
    output: str


async def main(names: list[str], folder: Path) -> int:
    failures = 0
    for agent in (agent for agent in AGENTS if not names or agent.name in names):
        problems = await check(agent, folder / agent.name)
        print(f"{agent.package}: {'ok' if not problems else '; '.join(problems)}", flush=True)
        failures += bool(problems)
    return 1 if failures else 0


async def check(agent: Agent, folder: Path) -> list[str]:
    """What is wrong with an agent at this gateway; nothing when all is well."""
    notes = await asyncio.to_thread(prepared, agent, folder)
    problems, work = [], notes.parent
    async with stage(folder, ScriptedProvider(notes)) as (play, provider):
        run = await asyncio.to_thread(started, agent, folder, work, play.gateway, None, PATIENCE_S)
        if run.status != 0:
            problems.append(f"exit status {run.status}: {run.output[-1500:]}")
        if "green" not in notes.read_text():
            problems.append("the file was not edited")
        rows = play.rows(decisions, endpoint=agent.endpoint)
        loop = [row for row in rows if row["status"] == "completed"]
        if len(loop) < 3 or len({row["session_id"] for row in loop}) != 1:
            problems.append(f"expected three turns in one session, got {[row['session_id'] for row in rows]}")
        spent = sum(row["spent_nanousd"] for row in play.rows(sessions))
        if spent != sum(row["cost_nanousd"] or 0 for row in rows) or spent == 0:
            problems.append(f"the sessions spent {spent} nano-USD, which is not the bill of their turns")
        await play.gateway.settled()
        await play.gateway.audit()
        asked = len(provider.bodies)
        run = await asyncio.to_thread(started, agent, folder, work, play.gateway, "0.0000001", SPENT_PATIENCE_S)
        if SPENT not in run.output:
            problems.append(f"a spent budget is not shown: {run.output[-1500:]}")
        if "econnecting" in run.output or run.seconds > SPENT_PATIENCE_S:
            problems.append(f"a spent budget is sent again ({run.seconds:.0f} s)")
        if len(provider.bodies) != asked:
            problems.append("a spent budget reached the provider")
    return problems


@contextlib.asynccontextmanager
async def stage(folder: Path, provider: ScriptedProvider) -> AsyncIterator[tuple[Play, ScriptedProvider]]:
    """A gateway on SQLite before the scripted provider."""
    database = folder / "gateway.db"
    database.unlink(missing_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = uvicorn.Server(uvicorn.Config(provider.app(), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        path = config(
            folder, f"http://127.0.0.1:{listener.getsockname()[1]}", database_url=f"sqlite:///{database}",
            session={"max_budget_usd": 100},
        )  # fmt: skip
        try:
            async with serving(path) as gateway:
                yield Play(gateway, FaultUpstream(), f"sqlite:///{database}", path), provider
        finally:
            server.should_exit = True
            await asyncio.to_thread(thread.join)


def prepared(agent: Agent, folder: Path) -> Path:
    """Install the agent and lay out its task: the file that it shall edit."""
    folder.mkdir(parents=True, exist_ok=True)
    installed(agent, folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    notes = work / "notes.txt"
    notes.write_text("The sky is blue.\n")
    return notes


def installed(agent: Agent, folder: Path) -> None:
    """Install the agent with npm, unless it is there."""
    if (folder / "node_modules").exists():
        return
    shown = subprocess.run(
        ["npm", "install", "--no-fund", "--no-audit", agent.package], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if shown.returncode != 0:
        sys.exit(f"npm install {agent.package} failed: {shown.stderr[-500:]}")
    if agent.install:
        subprocess.run(agent.install, cwd=folder, check=True, capture_output=True)


def started(agent: Agent, folder: Path, work: Path, gateway: Served, budget_usd: str | None, patience_s: float) -> Run:
    """Run the agent's task once, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = _plain(os.environ) | {"HOME": home} | agent.prepare(Path(home), gateway, budget_usd)
        begun = time.monotonic()
        try:
            done = subprocess.run(
                agent.command(folder), cwd=work, env=environment, capture_output=True, text=True, timeout=patience_s,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = b"".join(part for part in (late.stdout, late.stderr) if isinstance(part, bytes))
            return Run(-1, time.monotonic() - begun + 1, f"no end after {patience_s:g} s: {said.decode()}")
        return Run(done.returncode, time.monotonic() - begun, done.stdout + done.stderr)


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without keys and addresses of any provider."""
    return {name: value for name, value in environ.items() if not name.startswith(("ANTHROPIC", "OPENAI", "CLAUDE"))}


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description="Run coding agents from npm at a gateway of their own")
    reader.add_argument("agents", nargs="*", choices=[[], *(agent.name for agent in AGENTS)])
    reader.add_argument("--folder", type=Path, help="where agents are installed (default: a temporary folder)")
    told = reader.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(asyncio.run(main(list(told.agents), told.folder or Path(temporary))))
