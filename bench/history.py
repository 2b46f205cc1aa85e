"""Cost of a turn by length of the log: the same load on ten decisions and on millions.

    python -m bench.history [--decisions 1000000] [--databases sqlite,postgres] [--rounds 5] [--json FILE]

Two gateways run side by side, one on a database with ten decisions, one on a generated history with all its sessions,
holds and ledger entries (`bench.rig.filled_database`: about 1.6 kB on disk per decision). Rounds are interleaved; the
result is the ratio of the cost of a turn, long log over short log.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psycopg
import uvloop

from bench.rig.filled_database import fill
from bench.rig.gateways import seqroute
from bench.rig.load import closed
from bench.rig.results import Case, Run, machine
from bench.rig.side_by_side import Arena, Entry
from bench.rig.statistics import paired, spread
from bench.rig.tables import print_table
from gateway.database.database import transaction
from migrations.upgrade import upgrade

SHORT = 10
CASE = Case("unary", 16, 0)


def main() -> None:
    """Measure each database and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=1_000_000, help="number in the long log")
    parser.add_argument("--databases", default="sqlite,postgres")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=float, default=3.0, help="seconds of a round, for each gateway")
    parser.add_argument("--folder", type=Path, help="folder of the SQLite files; default: a temporary one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measured: dict[str, object] = {}
    for name in options.databases.split(","):
        pairs = uvloop.run(_measure(name, options))
        _report(name, options.decisions, pairs)
        measured[name] = [[asdict(run) for run in pair] for pair in pairs]
        if options.json:
            options.json.write_text(
                json.dumps({"machine": machine(), "decisions": options.decisions, "runs": measured})
            )


async def _measure(database: str, options: argparse.Namespace) -> list[tuple[Run, Run]]:
    """Pairs of runs: on the short log and on the long one."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        async with Arena(Path(folder)) as arena:
            entries = []
            for decisions in (SHORT, options.decisions):
                url = _filled(arena, database, decisions)
                entries.append(await arena.enter(f"{decisions} decisions", seqroute(database), database_url=url))
            pairs = []
            for number in range(options.rounds):
                # The two take turns in going first.
                order = entries if number % 2 == 0 else entries[::-1]
                runs = {entry.name: await _run(arena, entry, number, options.window) for entry in order}
                pairs.append((runs[entries[0].name], runs[entries[1].name]))
    return pairs


async def _run(arena: Arena, entry: Entry, number: int, window_s: float) -> Run:
    async with arena.turn_of(entry):
        sample = await closed(
            entry.target, clients=CASE.clients, window_s=window_s, meter=arena.meter(entry), label=f"history-{number}"
        )
    return Run.of(entry.name, CASE, number, sample)


def _filled(arena: Arena, database: str, decisions: int) -> str:
    if database == "postgres":
        url = arena.fresh_database()
    else:
        url = f"sqlite:///{arena.folder / f'past-{decisions}.db'}"
        upgrade(url)
    started_s = time.perf_counter()
    for done in fill(url, decisions):
        if decisions > SHORT:
            print(
                f"{database}: {done:,} of {decisions:,} decisions, {time.perf_counter() - started_s:.0f} s", flush=True
            )
    _settle(url)
    return url


def _settle(url: str) -> None:
    """Do now what a database does after a bulk load: statistics, visibility map, checkpoint."""
    if url.startswith("postgresql"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")
            connection.execute("CHECKPOINT")
        return
    with transaction(url) as connection:
        connection.exec_driver_sql("ANALYZE")


def _report(database: str, decisions: int, pairs: Sequence[tuple[Run, Run]]) -> None:
    short, long = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    figures: dict[str, Callable[[Run], float]] = {
        "turns/s": lambda run: run.requests_per_s,
        "p50 ms": lambda run: run.p50_ms,
        "gateway's CPU ms a turn": lambda run: run.cpu_per_request_ms("server"),
        "Postgres' CPU ms a turn": lambda run: run.cpu_per_request_ms("postgres"),
    }
    rows = []
    for what, of in figures.items():
        before, after = [of(run) for run in short], [of(run) for run in long]
        if min(before) > 0:
            medians = [spread(column).text(2) for column in (before, after)]
            rows.append([what, *medians, paired(after, before).text(3)])
    print_table(f"{database}, {CASE.name}", ["", f"{SHORT} decisions", f"{decisions:,}", "long / short"], rows)


if __name__ == "__main__":
    main()
