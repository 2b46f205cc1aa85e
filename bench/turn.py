"""CPU time of one turn by phase: `python -m bench.turn [--clients 32] [--window 5]`.

The gateway runs complete, with clocks on the functions of a turn's path (`bench.rig.profiled_serve`), on its own core;
load generator, provider and Postgres share another. The clocks cost some tenths of a millisecond per turn:
compare rows with each other, and totals with `bench.peers`. The last row of the loop's thread is the time without a
clock: event loop, sockets, tasks.

`--profile FOLDER` runs cProfile on the loop's thread instead and writes FOLDER/<database>.prof for `python -m
pstats`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from bench.rig.gateways import Contender, Recipe, Stage, seqroute
from bench.rig.load import Target, closed
from bench.rig.profiled_serve import PHASES, PROFILE
from bench.rig.side_by_side import Arena
from bench.rig.tables import print_table

IN_THREAD = "in the database's thread"
CALL_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class ClockFigures:
    """The clocks' figures over one window."""

    turns: int
    seconds: dict[str, float]
    calls: dict[str, int]
    thread_s: float
    process_s: float

    def rows(self) -> list[tuple[str, float, float]]:
        """(phase, CPU microseconds per turn, calls per turn), in path order, sums last."""
        known = [*dict.fromkeys(phase for _, _, phase in PHASES), *self.seconds]
        phases = [phase for phase in dict.fromkeys(known) if phase != IN_THREAD]
        clocked = [(p, self.seconds.get(p, 0.0), self.calls.get(p, 0)) for p in phases if p in self.seconds]
        rest_s = self.thread_s - sum(seconds for _, seconds, _ in clocked)
        threads_s = self.process_s - self.thread_s
        sums = [
            ("event loop and tasks: without a clock", rest_s, 0),
            ("**the loop's thread**", self.thread_s, 0),
            (IN_THREAD, self.seconds.get(IN_THREAD, 0.0), self.calls.get(IN_THREAD, 0)),
            ("**all other threads**", threads_s, 0),
            ("**the process**", self.process_s, 0),
        ]
        return [(name, 1e6 * spent_s / self.turns, times / self.turns) for name, spent_s, times in clocked + sums]


def clocked(database: str, lane: str, profile: Path | None) -> Contender:
    """The gateway of `bench.peers` with clocks."""

    def recipe(stage: Stage) -> Recipe:
        plain = seqroute(database, lane)(stage)
        command = [part if part != "gateway" else "bench.rig.profiled_serve" for part in plain.command]
        figures = {} if profile is None else {PROFILE: str(profile / f"{database}.prof")}
        return replace(plain, command=tuple(command), environment={**plain.environment, **figures})

    return recipe


async def measure(
    databases: list[str], lane: str, clients: int, window_s: float, events: int, gap_ms: float, profile: Path | None
) -> dict[str, ClockFigures]:
    """Measure each database under the same load."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            for database in databases:
                entry = await arena.enter(database, clocked(database, lane, profile))
                await arena.pace(chunks=max(events, 1), gap_ms=gap_ms)
                async with arena.turn_of(entry):
                    for label, seconds in (("warm", 1.0), ("bench", window_s)):
                        _ask(entry.target)
                        sample = await closed(
                            entry.target, clients=clients, window_s=seconds, meter=arena.meter(entry), label=label,
                            stream_events=events, stagger_s=events * gap_ms / 1000,
                        )  # fmt: skip
                    figures = _ask(entry.target)
                # The clocks include turns at both ends of the window, the sample does not.
                turns = max(figures["calls"].get("turn: the rest", 0), len(sample.latencies_ms))
                found[database] = ClockFigures(
                    turns, figures["seconds"], figures["calls"], figures["thread_s"], figures["process_s"]
                )
                print(f"{database}: {sample.per_s:.0f} turns/s with clocks, {turns} turns")
    return found


def _ask(target: Target) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{target.port}/__clocks", timeout=CALL_TIMEOUT_S) as answer:
        figures: dict[str, Any] = json.loads(answer.read())
    return figures


def main() -> None:
    """Print one table per database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--window", type=float, default=5.0, help="seconds to measure")
    parser.add_argument("--databases", default="sqlite,postgres")
    parser.add_argument("--lane", choices=("thin", "litellm"), default="thin")
    parser.add_argument("--events", type=int, default=0, help="request streams of this many events")
    parser.add_argument("--gap-ms", type=float, default=0.0, help="pause between two events of a stream")
    parser.add_argument("--profile", type=Path, help="a folder for cProfile's files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    databases = options.databases.split(",")
    found = uvloop.run(
        measure(
            databases, options.lane, options.clients, options.window, options.events, options.gap_ms, options.profile
        )
    )
    for database, figures in found.items():
        rows = [[name, f"{us:.0f}", f"{calls:.1f}" if calls else ""] for name, us, calls in figures.rows()]
        print_table(database, ["phase", "CPU us a turn", "calls a turn"], rows)
    if options.json:
        options.json.write_text(json.dumps({name: figures.rows() for name, figures in found.items()}, indent=1))


if __name__ == "__main__":
    main()
