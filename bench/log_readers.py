"""Three ways to read an exported log as training does: Arrow (ours), DuckDB, Polars.

    uv run --with duckdb --with polars python -m bench.log_readers EXPORT [--sessions 100000]

EXPORT is a folder of `seqroute export`. Each reads the rows of the newest sessions, ordered by session and turn, into
Python objects, in a process of its own. Prints seconds, peak resident memory and a digest of the rows' ids, which must
agree. DuckDB and Polars are not dependencies of seqroute: docs/decisions/0051.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.log.source import DECISION_COLUMNS, ORDER, ParquetLog

LAST_MS = 2**53
READ_BY_DUCKDB = """
WITH newest AS (
  SELECT tenant_id, session_id, max(created_at_ms) AS last_ms FROM read_parquet('{files}')
  GROUP BY tenant_id, session_id ORDER BY last_ms DESC, tenant_id, session_id LIMIT {sessions})
SELECT {columns} FROM read_parquet('{files}') SEMI JOIN newest USING (tenant_id, session_id) ORDER BY {order}
"""


def by_arrow(folder: str, sessions: int) -> Iterable[Mapping[str, Any]]:
    """Read as the nightly run does."""
    return ParquetLog(folder).decisions(0, LAST_MS, sessions)


def by_duckdb(folder: str, sessions: int) -> Iterator[Mapping[str, Any]]:
    """Read by one query that may use 400 MB and a folder for the rest."""
    query = READ_BY_DUCKDB.format(
        files=f"{folder}/decisions/*/*.parquet", sessions=sessions, columns=", ".join(DECISION_COLUMNS),
        order=", ".join(ORDER),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as beside, importlib.import_module("duckdb").connect() as database:
        database.execute(f"SET memory_limit = '400MB'; SET temp_directory = '{beside}'; SET threads = 2")
        for batch in database.sql(query).to_arrow_reader(1_000):
            yield from batch.to_pylist()


def by_polars(folder: str, sessions: int) -> Iterator[Mapping[str, Any]]:
    """Read by its streaming engine."""
    pl = importlib.import_module("polars")
    log = pl.scan_parquet(f"{folder}/decisions/*/*.parquet", hive_partitioning=False).select(DECISION_COLUMNS)
    session = ["tenant_id", "session_id"]
    last = log.group_by(session).agg(pl.col("created_at_ms").max().alias("last_ms"))
    newest = last.sort(["last_ms", *session], descending=[True, False, False]).head(sessions)
    rows = log.join(newest, on=session, how="semi").sort(ORDER).collect(engine="streaming")
    for part in rows.iter_slices(1_000):
        yield from part.iter_rows(named=True)


READERS: dict[str, Callable[[str, int], Iterable[Mapping[str, Any]]]] = {
    "Arrow": by_arrow, "DuckDB": by_duckdb, "Polars": by_polars,
}  # fmt: skip


def measure(name: str, folder: str, sessions: int) -> None:
    """Read once and print the figures."""
    began_s, count, ids = time.perf_counter(), 0, hashlib.sha256()
    for row in READERS[name](folder, sessions):
        count += 1
        ids.update(row["decision_id"].encode())
    seconds, peak_mb = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{name:8} {count:12,} rows {seconds:8.1f} s {peak_mb:8,} MB   {ids.hexdigest()[:12]}", flush=True)


def main() -> None:
    """Measure each reader in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--sessions", type=int, default=100_000)
    options = parser.parse_args()
    for name in READERS:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(name, str(options.export), options.sessions)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
