"""Comparison with LiteLLM Proxy, Portkey's gateway and bare relays on one machine.

    make bench BENCH=peers         or         python -m bench.peers [--preset full] [--only relay,portkey] [--json FILE]

Each server has one worker, pinned to one core; the fake provider, Postgres and the load generator share another. Rounds
are interleaved in random order of the contenders, and the figures are medians over rounds with minimum and maximum. The
first run builds the peers' environments (some minutes, 0.5 GB, from the package registries); a peer that cannot be
built, started or measured is named with the reason.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import uvloop

from bench.rig import results
from bench.rig.environments import NotBuilt
from bench.rig.gateways import CONTENDERS
from bench.rig.load import RunFailed, Sample, arriving, closed
from bench.rig.processes import NotStarted, resident_mib
from bench.rig.results import Case, Run
from bench.rig.side_by_side import Arena, Entry
from bench.rig.statistics import Spread, paired, spread
from bench.rig.tables import print_table

CHUNKS = 200
OURS = "seqroute-sqlite"


@dataclass(frozen=True, slots=True)
class Preset:
    """Cases and durations; `stream_s` should cover a paced stream, which takes 4 s."""

    cases: tuple[Case, ...]
    rounds: int
    window_s: float
    stream_s: float


QUICK = Preset(
    (
        Case("unary", 1, 0),
        Case("unary", 32, 0),
        Case("unary", 32, 20),
        Case("rate", 0, 0, per_s=100),
        Case("stream", 16, 0),
        Case("stream", 16, 20, gap_ms=20),
    ),
    rounds=2,
    window_s=1.5,
    stream_s=3.0,
)
FULL = Preset(
    (
        *(Case("unary", clients, delay_ms) for delay_ms in (0, 20) for clients in (1, 4, 16, 32, 64)),
        Case("rate", 0, 0, per_s=100),
        Case("rate", 0, 20, per_s=100),
        *(Case("stream", clients, 0) for clients in (1, 16)),
        *(Case("stream", clients, 20, gap_ms=20) for clients in (1, 16)),
    ),
    rounds=3,
    window_s=2.0,
    stream_s=4.0,
)


def main() -> None:
    """Measure the contenders and print one table per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("quick", "full"), default="quick")
    parser.add_argument("--only", help="contenders, separated by commas; default: " + ", ".join(CONTENDERS))
    parser.add_argument("--cases", help="only cases whose name contains one of these words, separated by commas")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order of contenders and of random arrivals")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CONTENDERS)
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        parser.error(f"--only: expected some of {', '.join(CONTENDERS)}, got {', '.join(unknown)}")
    preset = FULL if options.preset == "full" else QUICK
    words = options.cases.split(",") if options.cases else [""]
    cases = [case for case in preset.cases if any(word in case.name for word in words)]
    runs, servers = uvloop.run(_measure(names, cases, preset, options.rounds or preset.rounds, Random(options.seed)))
    _report(runs, servers, cases)
    if options.json:
        results.write(options.json, runs, servers)


async def _measure(
    names: Sequence[str], cases: Sequence[Case], preset: Preset, rounds: int, rng: Random
) -> tuple[list[Run], dict[str, dict[str, object]]]:
    runs: list[Run] = []
    servers: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with Arena(Path(folder)) as arena:
            entries = await _enter_all(arena, names, servers)
            for number in range(rounds):
                for case in cases:
                    await arena.pace(delay_ms=case.delay_ms, gap_ms=case.gap_ms, chunks=CHUNKS)
                    for entry in rng.sample(entries, len(entries)):
                        try:
                            sample = await _run(arena, entry, case, preset, rng)
                        except RunFailed as error:
                            servers[entry.name][f"failed: {case.name}"] = str(error)[:200]
                            continue
                        runs.append(Run.of(entry.name, case, number, sample))
            for entry in entries:
                if entry.server is not None:
                    servers[entry.name]["end_mib"] = round(resident_mib(entry.server.process_id), 1)
    return runs, servers


async def _enter_all(arena: Arena, names: Sequence[str], servers: dict[str, dict[str, object]]) -> list[Entry]:
    entries = []
    for name in names:
        servers[name] = {}
        try:
            entry = await arena.enter(name, CONTENDERS[name])
        except (NotBuilt, NotStarted, RunFailed) as error:
            servers[name]["missing"] = f"{type(error).__name__}: {str(error)[-300:]}"
            continue
        if entry.server is not None:
            servers[name] |= {"started_s": round(entry.server.started_s, 2), "idle_mib": round(entry.idle_mib, 1)}
        entries.append(entry)
    return entries


async def _run(arena: Arena, entry: Entry, case: Case, preset: Preset, rng: Random) -> Sample:
    meter = arena.meter(entry)
    async with arena.turn_of(entry):
        if case.kind == "rate":
            return await arriving(
                entry.target, per_s=case.per_s, window_s=2 * preset.window_s, meter=meter, rng=Random(rng.random())
            )
        if case.kind == "unary":
            return await closed(entry.target, clients=case.clients, window_s=preset.window_s, meter=meter)
        return await closed(
            entry.target, clients=case.clients, window_s=preset.stream_s, meter=meter, stream_events=CHUNKS,
            stagger_s=case.gap_ms * CHUNKS / 1000,
        )  # fmt: skip


def _report(runs: Sequence[Run], servers: Mapping[str, Mapping[str, object]], cases: Sequence[Case]) -> None:
    for key, value in results.machine().items():
        print(f"{key:>8}: {value}")
    for case in cases:
        _print_case(case, [run for run in runs if run.case == case])
    rows = [
        [name, *(f"{figures[key]}" if key in figures else "" for key in ("started_s", "idle_mib", "end_mib"))]
        for name, figures in servers.items()
    ]
    print_table("servers", ["", "ready after s", "MiB idle", "MiB after"], rows)
    for name, figures in servers.items():
        for what, why in figures.items():
            if what == "missing" or what.startswith("failed"):
                print(f"{name}: {what}: {why}")


def _print_case(case: Case, runs: Sequence[Run]) -> None:
    by_name: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (list(CONTENDERS).index(run.contender), run.round)):
        by_name.setdefault(run.contender, []).append(run)
    streams = case.kind == "stream"
    heads = ["", *(_STREAM_HEADS if streams else _UNARY_HEADS), f"x of {OURS}"]
    rows = []
    for name, theirs in by_name.items():
        cells = _stream_cells(theirs) if streams else _unary_cells(theirs, by_name.get("direct", []))
        rows.append([name, *(cell.text(digits) for cell, digits in cells), _ratio(by_name, name, streams)])
    print_table(case.name, heads, rows)


_BUSY_HEADS = ("server's core %", "load's core %")
_UNARY_HEADS = ("requests/s", "p50 ms", "p99 ms", "added p50 ms", "CPU ms/request", "of Postgres", *_BUSY_HEADS)
_STREAM_HEADS = ("events/s", "first p50 ms", "first p99 ms", "CPU us/event", *_BUSY_HEADS)


def _unary_cells(runs: Sequence[Run], direct: Sequence[Run]) -> list[tuple[Spread, int]]:
    alone = {run.round: run.p50_ms for run in direct}
    added = [run.p50_ms - alone[run.round] for run in runs if run.round in alone] or [0.0]
    return [
        (spread([run.requests_per_s for run in runs]), 0),
        (spread([run.p50_ms for run in runs]), 2),
        (spread([run.p99_ms for run in runs]), 1),
        (spread(added), 2),
        (spread([run.cpu_per_request_ms() for run in runs]), 2),
        (spread([run.cpu_per_request_ms("postgres") for run in runs]), 2),
        *_busy_cells(runs),
    ]


def _stream_cells(runs: Sequence[Run]) -> list[tuple[Spread, int]]:
    return [
        (spread([run.events_per_s for run in runs]), 0),
        (spread([run.first_p50_ms for run in runs]), 2),
        (spread([run.first_p99_ms for run in runs]), 1),
        (spread([run.cpu_per_event_us for run in runs]), 0),
        *_busy_cells(runs),
    ]


def _busy_cells(runs: Sequence[Run]) -> list[tuple[Spread, int]]:
    """Core usage: a load near 100 limits the server; a server far below 100 had to wait."""
    return [
        (spread([run.busy_percent("server") for run in runs]), 0),
        (spread([run.busy_percent("load", "provider", "postgres") for run in runs]), 0),
    ]


def _ratio(by_name: Mapping[str, Sequence[Run]], name: str, streams: bool) -> str:
    """Our throughput over a contender's, paired by round."""
    ours = {run.round: run for run in by_name.get(OURS, [])}
    both = [(ours[run.round], run) for run in by_name[name] if run.round in ours]
    if not both:
        return ""
    rates = [[run.events_per_s if streams else run.requests_per_s for run in pair] for pair in both]
    found = paired([our for our, _ in rates], [their for _, their in rates])
    return found.text(2)


if __name__ == "__main__":
    main()
