"""`kill -9` to the whole command, its own gateway included in what must come to rest."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.gateway import config
from tests.harness.processes import clean_environ
from tests.harness.upstream import FaultUpstream
from tests.train.rollout.test_run import billed_nanousd

pytestmark = pytest.mark.faults

PLANNED = 4 * 2 * 3
CAP = "0.006"
"""USD, of the .0104 that all answers cost."""
MODES = {"small": "ok:delay=0.02"}


async def command(folder: Path, path: Path, max_usd: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "train", "rollout", "--json", "--tasks", str(folder / "tasks.jsonl"), "--config",
        str(path), "--out", str(folder / "out"), "--max-usd", max_usd, "--depth", "3", "--parallel", "3",
        stdout=asyncio.subprocess.PIPE, env=clean_environ({}),
    )  # fmt: skip


def journalled(folder: Path, kind: str = "answer") -> int:
    journal = folder / "out" / "journal.jsonl"
    return journal.read_text().count(f'"kind": "{kind}"') if journal.exists() else 0


async def ended(folder: Path, path: Path, max_usd: str) -> dict[str, Any]:
    process = await command(folder, path, max_usd)
    said, _ = await process.communicate()
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(said)
    return report


async def test_a_killed_command_leaves_no_gateway_holds_its_cap_and_goes_on_without_a_second_call(
    tmp_path: Path,
) -> None:
    turns = [{"user": f"say {i}", "check": {"exact": "yes"}} for i in range(3)]
    lines = [json.dumps({"id": f"t{i}", "turns": turns}) for i in range(4)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url)
        provider.modes.update(MODES)
        for enough in (2, 4):
            process = await command(tmp_path, path, CAP)
            while journalled(tmp_path) < enough:
                assert process.returncode is None
                await asyncio.sleep(0.02)
            gateways = psutil.Process(process.pid).children()
            process.kill()
            await process.wait()
            _, alive = await asyncio.to_thread(psutil.wait_procs, gateways, 60)
            assert alive == []
        report = await ended(tmp_path, path, CAP)
        assert report["outcome"] == "out of money"
        assert report["spent_nano_usd"] == billed_nanousd(provider.bill) <= float(CAP) * 1e9
        report = await ended(tmp_path, path, "1")
        assert (report["outcome"], report["answers"]) == ("played", PLANNED)
        assert report["spent_nano_usd"] == billed_nanousd(provider.bill)
        clamped = journalled(tmp_path, "attempts")  # what the last of the cap cut off is asked again
        assert len(provider.bill) == PLANNED + clamped
