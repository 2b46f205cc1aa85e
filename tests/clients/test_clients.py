"""The quick part of `make clients`: two SDKs, and how outcomes are judged and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients import scripts
from tests.clients.install import LOCKS, versions
from tests.clients.provider import PlayedProvider
from tests.clients.run import BEGIN, CLIENTS, DOCS, END, table
from tests.clients.scripts import SCRIPTS, Outcome, Script, Step
from tests.clients.stage import Stage, staged


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage[PlayedProvider]]:
    """One gateway process for the module: it takes seconds to start."""
    async with staged(tmp_path_factory.mktemp("gateway")) as stage:
        yield stage


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["openai-python-2", "anthropic-python"])
async def test_an_sdk_of_this_environment_does_every_step_in_one_session_until_the_money_ends(
    stage: Stage[PlayedProvider], tmp_path: Path, name: str
) -> None:
    faults = stage.provider.faults
    script = next(script for script in SCRIPTS if script.name == name)
    outcome = await scripts.check(script, stage, [sys.executable], tmp_path)
    assert outcome.problems == []
    assert {step.name for step in outcome.steps} >= {"whole", "stream", "tools", "streamed tools", "refused"}
    assert stage.provider.faults > faults, "the provider failed no calls, so no retry was shown"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_client_that_fails_is_told_apart(stage: Stage[PlayedProvider], tmp_path: Path) -> None:
    """A script that takes no turn, one step of which fails: each thing that is missing is named."""
    script = tmp_path / "client.py"
    script.write_text(
        "import json\nprint(json.dumps({'api': 'chat', 'step': 'whole', 'ok': False, 'said': 'Broken'}))\n"
    )
    broken = Script("broken", "openai-2", "use_openai.py", ("chat",))
    outcome = await scripts.check(broken, stage, [sys.executable, str(script)], tmp_path / "work")
    assert "chat, whole: Broken" in outcome.problems
    assert "no turn was refused for money" in outcome.problems
    assert "it used [], expected ['chat']" in outcome.problems
    assert any("expected one session" in problem for problem in outcome.problems)


def test_the_table_shows_what_passed_and_what_failed() -> None:
    steps = [
        Step("chat", "whole", True, "hi"), Step("chat (compatible)", "whole", False, "no"),
        Step("chat", "stream", True, "hi"), Step("chat", "refused", True, "402"),
    ]  # fmt: skip
    row = table([Outcome("ai-sdk", steps, ["chat (compatible), whole: a|b"])]).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[0] == "ai-sdk"
    assert "ai 6." in cells[1]
    assert cells[2:] == ["stream", "-", "-", "-", "-", "chat", "chat (compatible), whole: a/b"]


def test_the_documented_table_has_every_client_at_its_locked_version_and_no_failure() -> None:
    section = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    assert rows.keys() - {"client"} == CLIENTS.keys(), "run: make clients ARGS=--write"
    for name, client in CLIENTS.items():
        environment = client.environment if isinstance(client, Script) else name
        for package, version in versions(environment).items():
            assert f"{package} {version}" in rows[name], "run: make clients ARGS=--write"
        assert rows[name].rstrip("| ").endswith("-")


@pytest.mark.parametrize(
    "folder", sorted(path for path in LOCKS.iterdir() if path.is_dir()), ids=lambda path: path.name
)
def test_every_environment_is_pinned_and_locked(folder: Path) -> None:
    pinned = versions(folder.name)
    assert pinned
    if (folder / "package.json").exists():
        packages = json.loads((folder / "package-lock.json").read_text())["packages"]
        assert all("integrity" in package for place, package in packages.items() if place)
        assert {name: packages[f"node_modules/{name}"]["version"] for name in pinned} == pinned
    else:
        lock = (folder / "requirements.lock").read_text()
        assert all(f"{name}=={version} \\\n    --hash=sha256:" in lock for name, version in pinned.items())
