"""Resident memory of a worker after start and after many turns, and the slope between.

    python -m bench.memory [--turns 100000] [--database postgres] [--json]

The turns go through one worker with everything on, in sessions of eight, from 16 clients. The slope is a least
squares fit to the second half of the samples, when bounded caches are full.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from bench.rig.gateways import seqroute
from bench.rig.load import closed
from bench.rig.processes import resident_mib
from bench.rig.side_by_side import Arena

CLIENTS = 16
WINDOW_S = 5.0


async def measure(turns: int, database: str) -> list[tuple[int, float]]:
    """(turns so far, MiB), about every five seconds."""
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            entry = await arena.enter("seqroute", seqroute(database))
            assert entry.server is not None
            marks = [(0, resident_mib(entry.server.process_id))]
            async with arena.turn_of(entry):
                while marks[-1][0] < turns:
                    sample = await closed(
                        entry.target, clients=CLIENTS, window_s=WINDOW_S, meter=arena.meter(entry),
                        label=f"memory-{len(marks)}",
                    )  # fmt: skip
                    marks.append((marks[-1][0] + len(sample.latencies_ms), resident_mib(entry.server.process_id)))
                    print(f"{marks[-1][0]:>8,} turns {marks[-1][1]:7.1f} MiB", file=sys.stderr, flush=True)
    return marks


def slope_mib_per_10k(marks: Sequence[tuple[int, float]]) -> float:
    """Slope of the second half of the samples. Raises ValueError for fewer than two."""
    half = marks[len(marks) // 2 :] if len(marks) > 3 else marks
    if len(half) < 2:
        raise ValueError(f"slope: expected at least two marks, got {len(half)}")
    turns, mib = np.array(half, dtype=np.float64).T
    return float(np.polyfit(turns, mib, 1)[0] * 10_000)


def main() -> None:
    """Measure and print memory and slope."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    marks = uvloop.run(measure(options.turns, options.database))
    slope = slope_mib_per_10k(marks)
    if options.json:
        print(json.dumps({"database": options.database, "marks": marks, "slope_mib_per_10k": slope}))
        return
    print(f"{marks[-1][0]:>8,} turns {marks[-1][1]:7.1f} MiB; {slope:+.2f} MiB per 10,000 turns in the second half")


if __name__ == "__main__":
    main()
