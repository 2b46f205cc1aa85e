"""Time for `seqroute --help` and until a gateway is ready, with files in the page cache.

    python -m bench.startup [--rounds 5] [--json]

Ready means that `/readyz` answered 200: LiteLLM and JAX imported, the database open, the policy warmed up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.rig.environments import ROOT
from bench.rig.gateways import plain_environment, seqroute
from bench.rig.side_by_side import Arena
from bench.rig.statistics import spread


def help_s() -> float:
    """Seconds from the command to its end."""
    environment = plain_environment() | {"PYTHONPATH": str(ROOT)}
    started_s = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "gateway", "--help"], env=environment, stdout=subprocess.DEVNULL, check=True, cwd=ROOT
    )
    return time.perf_counter() - started_s


async def ready_s(database: str, rounds: int) -> list[float]:
    """Seconds from the command to readiness, by round."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            for number in range(rounds + 1):
                entry = await arena.enter(f"seqroute-{number}", seqroute(database))
                assert entry.server is not None
                found.append(entry.server.started_s)
                entry.server.stop()
    return found[1:]  # the first read the files from disk


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {database: uvloop.run(ready_s(database, options.rounds)) for database in ("sqlite", "postgres")}
    # After the arenas, when this process is pinned and prioritised like the servers.
    found = {"help": [help_s() for _ in range(options.rounds + 1)][1:]} | found
    if options.json:
        print(json.dumps(found))
        return
    for what, seconds in found.items():
        print(f"{'seqroute --help' if what == 'help' else 'ready on ' + what:20} {spread(seconds).text(2)} s")


if __name__ == "__main__":
    main()
