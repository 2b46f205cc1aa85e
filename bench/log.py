"""Archiving, reading, reporting and thinning out a month of generated decisions.

    python -m bench.log [--decisions 2000000] [--database sqlite|postgres] [--folder DIR] [--json]

Fills a database with the decisions of the last thirty days, eight turns a session, and
their holds and ledger entries. Then, each in a process with its own peak of memory: the export to Parquet, the read of
the newest sessions as training reads them (from the database and from the export), `seqroute report`, the audit, and
retention of seven days with the export as its archive. Prints seconds, decisions a second and peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import text

from bench.rig.databases import fresh_database
from bench.rig.filled_database import CANDIDATES, Past, fill
from gateway.config.settings import RetentionSettings
from gateway.database.database import transaction
from gateway.decisions.report import report
from gateway.ledger.audit import audit
from train.config import LogConfig
from train.log.export import Export, export
from train.log.retention import Retention, retain
from train.log.source import DatabaseLog, Log, ParquetLog

DAYS, KEPT_DAYS, DAY_MS = 30, 7, 86_400_000


@dataclass(frozen=True, slots=True)
class Job:
    """A database with a log, the folder of its export and the time of the run."""

    url: str
    archive: str
    now_ms: int
    decisions: int


@dataclass(frozen=True, slots=True)
class Figure:
    """Figures of one step; `rows` are the decisions that it went through."""

    step: str
    rows: int
    seconds: float
    peak_mb: int


def _fill(job: Job) -> int:
    span_ms = DAYS * DAY_MS
    past = Past(job.now_ms - span_ms, max(1, span_ms // job.decisions), json.dumps(CANDIDATES))
    done = 0
    for done in fill(job.url, job.decisions, past=past):
        print(f"{done:,} decisions", file=sys.stderr, flush=True)
    return done


def _export(job: Job) -> int:
    return sum(export(Export(job.url, job.archive, job.now_ms))["written"]["decisions"].values())


def _read(log: Log, job: Job) -> int:
    return sum(1 for _ in log.decisions(0, job.now_ms, LogConfig().max_sessions))


def _read_database(job: Job) -> int:
    with transaction(job.url, read_only=True) as connection:
        return _read(DatabaseLog(connection), job)


def _read_export(job: Job) -> int:
    return _read(ParquetLog(job.archive), job)


def _report(job: Job) -> int:
    with transaction(job.url, read_only=True) as connection:
        return int(report(connection)["turns"])


def _audit(job: Job) -> int:
    with transaction(job.url, read_only=True) as connection:
        violations = list(audit(connection, now_ms=job.now_ms, grace_ms=0))
    assert not violations, violations[:3]
    return job.decisions


def _retain(job: Job) -> int:
    """Archived for good and older than the kept days: a run some days later, as a nightly job makes it."""
    settings = RetentionSettings(decisions_s=KEPT_DAYS * 86_400.0, archive=job.archive)
    done = retain(Retention(job.url, settings, job.now_ms + 2 * DAY_MS))
    return int(done["deleted_rows"]["decisions"])


STEPS: dict[str, Callable[[Job], int]] = {
    "fill": _fill, "export": _export, "read the database": _read_database, "read the export": _read_export,
    "report": _report, "audit": _audit, f"retain {KEPT_DAYS} days": _retain,
}  # fmt: skip


def take(step: str, job: Job, send: multiprocessing.SimpleQueue[Figure]) -> None:
    """Run a step and send its figure."""
    began_s = time.perf_counter()
    rows = STEPS[step](job)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    send.put(Figure(step, rows, round(time.perf_counter() - began_s, 1), peak_mb))


def stored_bytes(job: Job) -> dict[str, int]:
    """Sizes of the database and of the export."""
    with transaction(job.url, read_only=True) as connection:
        if connection.dialect.name == "postgresql":
            size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        else:
            pages, each = (connection.execute(text(f"PRAGMA page_{name}")).scalar_one() for name in ("count", "size"))
            size = pages * each
    return {"database": size, "export": sum(file.stat().st_size for file in Path(job.archive).rglob("*.parquet"))}


def main() -> None:
    """Fill, take every step, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=2_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--folder", type=Path, help="folder for the file and the export; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-log-") as name,
        fresh_database(options.database, Path(name)) as url,
    ):
        job = Job(url, f"{name}/export", int(time.time() * 1000), options.decisions)
        context, figures, sizes = multiprocessing.get_context("spawn"), list[Figure](), dict[str, int]()
        if not options.json:
            print(f"{'step':20} {'decisions':>12} {'seconds':>9} {'a second':>10} {'peak MB':>8}")
        for step in STEPS:
            received: multiprocessing.SimpleQueue[Figure] = context.SimpleQueue()
            process = context.Process(target=take, args=(step, job, received))
            process.start()
            process.join()
            if received.empty():
                sys.exit(f"{step}: failed, see above")
            figure = received.get()
            figures.append(figure)
            sizes |= stored_bytes(job) if step == "export" else {}
            if not options.json:
                rate = figure.rows / max(figure.seconds, 0.1)
                print(
                    f"{step:32} {figure.rows:12,} {figure.seconds:9.1f} {rate:10,.0f} {figure.peak_mb:8,}", flush=True
                )
    if options.json:
        print(json.dumps({"steps": [asdict(figure) for figure in figures], "bytes": sizes}, indent=1))
    else:
        print("; ".join(f"{name}: {size / 10**9:.2f} GB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
