"""Run real clients at a real gateway process.

    python -m tests.clients.run [NAME ...]      or      make clients AGENTS="NAME ..."

Each client is installed from a committed lock into an environment of its own below .clients/ and is a tenant with one
session and one budget. The provider behind the gateway fails every third call once. Clients answer whole and streamed
and call a tool; their last turns are refused for money, and they must show the gateway's own words. The books of the
session are compared with the provider's calls. `--write` puts the table into docs/clients.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.clients import coding_agents, scripts
from tests.clients.coding_agents import AGENTS, Agent
from tests.clients.install import CACHE, made, versions
from tests.clients.provider import PlayedProvider
from tests.clients.scripts import SCRIPTS, Outcome, Script
from tests.clients.stage import Stage, staged

DOCS = Path(__file__).parents[2] / "docs" / "clients.md"
BEGIN, END = "<!-- make clients: begin -->", "<!-- make clients: end -->"
APIS = {"chat": "chat", "responses": "Responses", "messages": "Messages", "completions": "completions"}
CLIENTS: dict[str, Script | Agent] = {client.name: client for client in (*SCRIPTS, *AGENTS)}


async def run(names: Sequence[str], cache: Path) -> list[Outcome]:
    """Check the named clients, or all, one after another at one gateway."""
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        async with staged(Path(temporary)) as stage:
            for name in names or CLIENTS:
                outcome = await _checked(CLIENTS[name], stage, cache)
                print(f"{name}: {'; '.join(outcome.problems) or 'ok'}", flush=True)
                outcomes.append(outcome)
    return outcomes


async def _checked(client: Script | Agent, stage: Stage[PlayedProvider], cache: Path) -> Outcome:
    try:
        if isinstance(client, Agent):
            folder = await asyncio.to_thread(made, client.name, cache, client.after_install)
            return await coding_agents.check(client, stage, folder)
        folder = await asyncio.to_thread(made, client.environment, cache)
        program = ["node"] if client.file.endswith(".mjs") else [str(folder / "venv/bin/python")]
        return await scripts.check(client, stage, program, folder)
    except Exception as error:  # noqa: BLE001 - one client that cannot be installed or run says so; the others go on
        return Outcome(client.name, problems=[f"{type(error).__name__}: {error}"])


def table(outcomes: Sequence[Outcome]) -> str:
    """The steps that each client passed on each API, and its failures."""
    lines = [
        "| client | version | chat | Responses | Messages | completions | embeddings | spent budget | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        client = CLIENTS[outcome.client]
        environment = client.name if isinstance(client, Agent) else client.environment
        packages = ", ".join(f"{name} {version}" for name, version in versions(environment).items())
        cells = [_cell(outcome, api) for api in (*APIS, "embeddings")]
        shown = ", ".join(
            dict.fromkeys(step.api.partition(" ")[0] for step in outcome.steps if step.ok and step.name == "refused")
        )
        failed = "; ".join(problem.replace("|", "/").replace("\n", " ")[:300] for problem in outcome.problems)
        lines.append(f"| {' | '.join([outcome.client, packages, *cells, shown, failed or '-'])} |")
    return "\n".join(lines)


def _cell(outcome: Outcome, api: str) -> str:
    """The steps that passed on one API, by every way in which the client uses it."""
    steps = [step for step in outcome.steps if step.api.partition(" ")[0] == api and step.name != "refused"]
    failed = {step.name for step in steps if not step.ok}
    return ", ".join(name for name in dict.fromkeys(step.name for step in steps) if name not in failed) or "-"


def written(page: str, outcomes: Sequence[Outcome]) -> str:
    """`page` with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(outcomes)}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Run the command line; 1 when anything failed."""
    reader = argparse.ArgumentParser(description="Run real clients at a gateway of their own")
    reader.add_argument("clients", nargs="*", metavar="NAME", help=f"some of {', '.join(CLIENTS)} (default: all)")
    reader.add_argument("--folder", type=Path, default=CACHE, help="where environments are kept")
    reader.add_argument("--write", action="store_true", help="write the table into docs/clients.md")
    told = reader.parse_args()
    if unknown := set(told.clients) - CLIENTS.keys():
        reader.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(CLIENTS)}")
    outcomes = asyncio.run(run(told.clients, told.folder))
    print("\n" + table(outcomes))
    if told.write:
        DOCS.write_text(written(DOCS.read_text(), outcomes))
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
