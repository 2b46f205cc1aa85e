"""Proof that an acknowledged commit on SQLite was synced to disk first: counts the kernel's calls, not our settings.

    python -m tests.harness.fsyncs [--turns 50]

Runs turns one after the other under `strace`, each telling when its reservation and its bill were acknowledged. Before
each acknowledgement the file must have been synced since the one before; a checkpoint need not be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.ledger.types import Checkpoint
from migrations.upgrade import upgrade
from tests.harness.money import TTL_MS, open_bench

MARK = "acknowledged: "


def syncs_before(trace: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(what was acknowledged, how many syncs returned since the acknowledgement before), in order."""
    syncs = 0
    for line in trace:
        if MARK in line:
            yield line.split(MARK)[1].split('"')[0].split("\\n")[0], syncs
            syncs = 0
        elif "sync" in line and line.rstrip().endswith("= 0"):
            syncs += 1


async def work(url: str, turns: int, trace_to: int) -> None:
    """Turns whose acknowledgements are written to `trace_to`, where strace sees them between the syncs."""
    async with open_bench(url) as bench:
        os.write(trace_to, f"{MARK}start\n".encode())
        for _ in range(turns):
            op = await bench.held(100, dispatch=10)
            os.write(trace_to, f"{MARK}reserve\n".encode())
            await bench.ledger.checkpoint([Checkpoint(op.hold_id, 20, TTL_MS)])
            os.write(trace_to, f"{MARK}checkpoint\n".encode())
            await bench.ledger.settle(bench.bill(op, 40))
            os.write(trace_to, f"{MARK}settle\n".encode())


def traced(folder: Path, turns: int) -> list[tuple[str, int]]:
    """Run `work` under strace. Raises FileNotFoundError without strace, CalledProcessError when it fails."""
    strace = shutil.which("strace")
    if strace is None:
        raise FileNotFoundError("strace: not found; install it (apt-get install strace)")
    url, trace = f"sqlite:///{folder}/traced.db", folder / "trace"
    upgrade(url)
    command = [strace, "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    me = [sys.executable, "-m", "tests.harness.fsyncs", "--turns", str(turns), "--url", url]
    subprocess.run([*command, *me], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return list(syncs_before(trace.read_text(errors="replace").splitlines()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--url", help="do the work on this database, instead of tracing another process that does")
    options = parser.parse_args()
    if options.url is not None:
        with tempfile.TemporaryFile() as told:
            asyncio.run(work(options.url, options.turns, told.fileno()))
        return 0
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        seen = traced(Path(folder), options.turns)
    early = 0
    for what in ("reserve", "checkpoint", "settle"):
        counts = [syncs for told, syncs in seen if told == what]
        unsynced = counts.count(0)
        print(f"{what}: {len(counts)} acknowledged, {sum(counts)} syncs, {unsynced} acknowledged without one")
        early += unsynced if what != "checkpoint" else 0
    return 1 if early or len(seen) != 3 * options.turns + 1 else 0


if __name__ == "__main__":
    sys.exit(main())
