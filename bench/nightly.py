"""Nightly run over a long log: `python -m bench.nightly [--sessions 100000]`.

Writes a synthetic log of that size directly to the database: two thousand sessions of the soak test's world, decided by
the rule with exploration, then copied under other names. Then one nightly run with the default settings. Prints the
seconds of every step, of the clock and of the processor, and the peak resident memory. Target: 100,000 sessions within
15 minutes on two cores under 6 GB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from gateway.config.settings import PolicySettings
from gateway.database import tables
from gateway.database.database import transaction
from migrations.upgrade import upgrade
from policy.exploration import Exploration
from policy.rules import ReSolving
from tests.harness.learning_loop_world import DAY_MS, START_MS, greedy, plan, play
from train.config import TrainConfig
from train.nightly.nightly import Nightly, run

TEMPLATES = 2_000


def make_log(url: str, sessions: int) -> None:
    """Write a log of sessions of 3 to 6 turns, each turn graded."""
    policy = ReSolving(exploration=Exploration(floor=0.3))
    templates = min(TEMPLATES, sessions)
    outcomes = [play(0, plan(0, 0, number), greedy(policy), logged=True) for number in range(templates)]
    copies = -(-sessions // templates)
    with transaction(url) as connection:
        connection.execute(sa.insert(tables.decisions), [row for outcome in outcomes for row in outcome.rows])
        connection.execute(sa.insert(tables.feedback), [score for outcome in outcomes for score in outcome.scores])
    for number in range(1, copies):
        with transaction(url) as connection:
            for table in (tables.decisions, tables.feedback):
                connection.execute(copied(table, number))


def copied(table: sa.Table, number: int) -> sa.Insert:
    """INSERT ... SELECT that copies the template rows under new names."""
    renamed = {"session_id", "decision_id", "feedback_id", "previous_decision_id"}
    columns = [(column.name, column) for column in table.columns]
    chosen = [
        (sa.literal(f"c{number}-") + column).label(name) if name in renamed else column for name, column in columns
    ]
    query = sa.select(*chosen).where(table.c.session_id.like("d00-%"))
    return sa.insert(table).from_select([name for name, _ in columns], query)


def measure(url: str, folder: Path) -> dict[str, object]:
    """Run one night; its figures with the seconds of each step."""
    began_s, marks = time.perf_counter(), [("start", time.perf_counter(), time.process_time())]

    def progress(step: str, done: int, total: int) -> None:
        if step != marks[-1][0]:
            marks.append((step, time.perf_counter(), time.process_time()))
            print(f"{marks[-1][1] - began_s:7.1f} s  {peak_mb():6,} MB  {step}", file=sys.stderr, flush=True)

    job = Nightly(
        url, PolicySettings(directory=folder / "policies"), folder / "runs", "bench", lambda: START_MS + DAY_MS,
        progress=progress,
    )  # fmt: skip
    report = run(job, TrainConfig())
    marks.append(("end", time.perf_counter(), time.process_time()))
    pairs = list(itertools.pairwise(marks))
    steps = {name: round(after[1] - at_s, 1) for (name, at_s, _), after in pairs}
    processor = {name: round(after[2] - used_s, 1) for (name, _, used_s), after in pairs}
    return {
        "outcome": report["outcome"],
        "sessions": report["log"]["sessions"],
        "turns": report["log"]["turns"],
        "played": report["evaluation"].get("sessions", 0),
        "seconds": round(time.perf_counter() - began_s, 1),
        "steps_s": steps,
        "processor_s": processor,
        "gain": report["evaluation"].get("gain", {}).get(report["candidate"]),
        "peak_mb": peak_mb(),
    }


def peak_mb() -> int:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Write the log, run the night and print its figures."""
    parser = argparse.ArgumentParser(description="Nightly run over a long log.")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--database", help="an empty Postgres database (default: a SQLite file)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-nightly-") as name:
        url = chosen.database or f"sqlite:///{name}/log.db"
        upgrade(url)
        began_s = time.perf_counter()
        make_log(url, chosen.sessions)
        made_s = time.perf_counter() - began_s
        found = measure(url, Path(name))
    if chosen.json:
        print(json.dumps(found | {"making_s": round(made_s, 1)}, indent=1))
        return
    print(f"log of {found['sessions']:,} sessions, {found['turns']:,} turns, made in {made_s:.0f} s")
    print(f"night: {found['outcome']}, {found['seconds']} s, peak {found['peak_mb']:,} MB; {found['steps_s']}")
    print(f"of the processor: {found['processor_s']}")
    print(f"gain of {found['played']:,} played sessions: {found['gain']}")


if __name__ == "__main__":
    main()
