"""Server time of the dashboard's pages on a long log.

    python -m bench.dashboard [--decisions 1000000] [--database sqlite|postgres]

Fills a database with a log of the last thirty days (eight turns a session: a million decisions are 125,000
sessions), adds up its hourly sums, serves a gateway from it and asks for each page. Prints the first answer, which
reads what the others find kept, and the median of the following ones, in milliseconds. Aim: 300 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from bench.rig.databases import fresh_database
from bench.rig.filled_database import CANDIDATES, Past, fill
from gateway.database.database import transaction
from gateway.decisions.rollups import advance, join_hours
from tests.harness.gateway import config, serving

DAYS = 30
PAGES = ("/ui?days=7", "/ui?days=30", "/ui/sessions", "/ui/sessions?q=past_0000000000000000000001",
         "/ui/sessions?only=near", "/ui/front?days=30",
         "/ui/health?days=30", "/ui/report?days=30", "/ui/ledger", "/ui/tenants")  # fmt: skip


def main() -> None:
    """Fill, serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="folder of the SQLite file; default: a temporary one")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        fresh_database(options.database, Path(folder)) as url,
    ):
        _make_log(url, options.decisions)
        asyncio.run(_measure(Path(folder), url, options.repeats))


def _make_log(url: str, decisions: int) -> None:
    span_ms, at_ms = DAYS * 86_400_000, int(time.time() * 1000)
    past = Past(at_ms - span_ms, max(1, span_ms // decisions), json.dumps(CANDIDATES))
    for done in fill(url, decisions, past=past):
        print(f"{done:,} decisions", flush=True)
    started_s, read = time.perf_counter(), 1
    while read:
        with transaction(url) as connection:
            read = advance(connection, at_ms)
    joining = True
    while joining:
        with transaction(url) as connection:
            joining = join_hours(connection, at_ms)
    print(f"hourly sums of all: {time.perf_counter() - started_s:.0f} s", flush=True)


async def _measure(folder: Path, url: str, repeats: int) -> None:
    async with (
        serving(config(folder, "http://127.0.0.1:9", database_url=url)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=120) as http,
    ):
        signed_in = await http.post("/ui/sign-in", data={"key": gateway.master_key})
        assert signed_in.status_code == 303, signed_in.text
        print(f"\n{'page':56} {'first':>8} {'then':>8}   milliseconds")
        for page in PAGES:
            took = [await _ask(http, page) for _ in range(repeats + 1)]
            print(f"{page:56} {took[0]:8.0f} {statistics.median(took[1:]):8.0f}", flush=True)


async def _ask(http: httpx.AsyncClient, page: str) -> float:
    started_s = time.perf_counter()
    answer = await http.get(page)
    assert answer.status_code == 200, answer.text[:300]
    return (time.perf_counter() - started_s) * 1000


if __name__ == "__main__":
    main()
