"""`kill -9` to the whole command, its own gateway included in what must come to rest."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest

from tests.harness.gateway import config
from tests.harness.processes import clean_environ
from tests.harness.upstream import FaultUpstream

pytestmark = pytest.mark.faults

PLANNED = 4 * 2 * 3
MODES = {"small": "ok:delay=0.02"}


async def command(folder: Path, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "train", "rollout", "--json", "--tasks", str(folder / "tasks.jsonl"), "--config",
        str(path), "--out", str(folder / "out"), "--max-usd", "1", "--depth", "3", "--parallel", "3",
        stdout=asyncio.subprocess.PIPE, env=clean_environ({}),
    )  # fmt: skip


def journalled(folder: Path) -> int:
    journal = folder / "out" / "journal.jsonl"
    return journal.read_text().count('"kind": "answer"') if journal.exists() else 0


async def test_a_killed_command_leaves_no_gateway_and_goes_on_without_a_second_call(tmp_path: Path) -> None:
    turns = [{"user": f"say {i}", "check": {"exact": "yes"}} for i in range(3)]
    lines = [json.dumps({"id": f"t{i}", "turns": turns}) for i in range(4)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url)
        provider.modes.update(MODES)
        for enough in (3, 9):
            process = await command(tmp_path, path)
            while journalled(tmp_path) < enough:
                assert process.returncode is None
                await asyncio.sleep(0.02)
            gateways = psutil.Process(process.pid).children()
            process.kill()
            await process.wait()
            _, alive = await asyncio.to_thread(psutil.wait_procs, gateways, 60)
            assert alive == []
        process = await command(tmp_path, path)
        said, _ = await process.communicate()
        report = json.loads(said)
        assert (process.returncode, report["outcome"], report["answers"]) == (0, "played", PLANNED)
        assert len(provider.bill) == PLANNED
        assert not any(attempt.cut for attempt in provider.bill)
