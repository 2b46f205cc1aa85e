"""Run the scripts of SDKs and frameworks, and judge what they report."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.database.tables import decisions, sessions
from gateway.money import nanousd_from_usd
from tests.clients.stage import WORDS, Stage

HERE = Path(__file__).parent
BUDGET_USD = "0.1"
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Script:
    """A client and the script that uses it, in an environment of tests/clients/environments."""

    name: str
    environment: str
    file: str
    apis: tuple[str, ...]
    """The endpoints that it must have used, as the decisions' log names them."""


SCRIPTS = (
    Script("openai-python-2", "openai-2", "use_openai.py", ("chat", "responses", "completions", "embeddings")),
    Script("openai-python-3", "openai-3", "use_openai.py", ("chat", "responses", "completions", "embeddings")),
    Script("openai-node", "openai-node", "use_openai.mjs", ("chat", "responses", "completions", "embeddings")),
    Script("anthropic-python", "anthropic", "use_anthropic.py", ("messages",)),
    Script("anthropic-node", "anthropic-node", "use_anthropic.mjs", ("messages",)),
    Script("ai-sdk", "ai-sdk", "use_ai_sdk.mjs", ("chat", "responses", "messages", "embeddings")),
    Script("langchain", "langchain", "use_langchain.py", ("chat", "responses", "embeddings")),
    Script("langchain-js", "langchain-js", "use_langchain.mjs", ("chat", "responses", "messages", "embeddings")),
    Script("pydantic-ai", "pydantic-ai", "use_pydantic_ai.py", ("chat", "responses")),
    Script("openai-agents", "openai-agents", "use_openai_agents.py", ("chat", "responses")),
    Script("llama-index", "llama-index", "use_llama_index.py", ("chat", "completions", "embeddings")),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One report: what a client did on one API, and what it was given."""

    api: str
    name: str
    ok: bool
    said: str


@dataclass(slots=True)
class Outcome:
    """The steps of a client, and everything that was wrong."""

    client: str
    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def check(
    script: Script, stage: Stage[Any], program: list[str], folder: Path, *, skipped: tuple[str, ...] = ()
) -> Outcome:
    """Run a script in `folder` as a tenant of its own; judge its reports and its books.

    `skipped` are steps and APIs that the model behind the gateway does not have.
    """
    outcome = Outcome(script.name)
    tenant_id, key = await stage.tenant(script.name)
    calls = len(stage.provider.bodies)
    environment = {
        "SEQROUTE_URL": stage.url, "SEQROUTE_KEY": key, "SEQROUTE_SESSION": script.name,
        "SEQROUTE_BUDGET_USD": BUDGET_USD, "SEQROUTE_SKIPPED": ",".join(skipped),
    }  # fmt: skip
    done = await asyncio.to_thread(_run, script, program, folder, environment)
    outcome.steps = _reports(done.stdout)
    if done.returncode != 0:
        outcome.problems.append(f"exit status {done.returncode}: {done.stderr[-1500:]}")
    outcome.problems += [f"{step.api}, {step.name}: {step.said[:500]}" for step in outcome.steps if not step.ok]
    refused = [step for step in outcome.steps if step.name == "refused" and step.ok]
    if not refused:
        outcome.problems.append("no turn was refused for money")
    outcome.problems += [
        f"{step.api}: a spent budget is shown as {step.said[:500]}" for step in refused if WORDS not in step.said
    ]
    rows = stage.rows(decisions, tenant_id)
    expected = set(script.apis).difference(skipped)
    if {row["endpoint"] for row in rows} != expected:
        outcome.problems.append(f"it used {sorted({row['endpoint'] for row in rows})}, expected {sorted(expected)}")
    found = [(row["session_id"], row["granted_nanousd"]) for row in stage.rows(sessions, tenant_id)]
    if found != [(script.name, nanousd_from_usd(BUDGET_USD))]:
        outcome.problems.append(f"expected one session {script.name} with {BUDGET_USD} USD, found {found}")
    outcome.problems += await stage.books(tenant_id, len(stage.provider.bodies) - calls)
    return outcome


def _run(
    script: Script, program: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a copy in the environment's folder: Node looks for packages beside the script."""
    work = folder / "script"
    work.mkdir(parents=True, exist_ok=True)
    for name in (script.file, "steps.py", "steps.mjs"):
        shutil.copy(HERE / name, work)
    with tempfile.TemporaryDirectory() as home:
        own = {"PATH": os.environ["PATH"], "HOME": home, "TIKTOKEN_CACHE_DIR": str(_tokenizers())}
        try:
            return subprocess.run(
                [*program, script.file], cwd=work, env=own | dict(environment), capture_output=True, text=True,
                timeout=PATIENCE_S, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = late.stdout.decode() if isinstance(late.stdout, bytes) else ""
            return subprocess.CompletedProcess(program, -1, said, f"no end after {PATIENCE_S:g} s")


def _tokenizers() -> Path:
    """OpenAI's encodings as files: LangChain counts tokens by them, and would download them."""
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    return Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"


def _reports(output: str) -> list[Step]:
    told = [json.loads(line) for line in output.splitlines() if line.startswith('{"api"')]
    return [Step(report["api"], report["step"], report["ok"], report["said"]) for report in told]
