"""The trainer on Postgres: the same log, and one effective run however many replicas start at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gateway.database.database import transaction
from tests.train.log.test_episodes import EXPLORING, a_log, read
from tests.train.nightly.test_nightly import champion, night, run_state
from tests.train.small import TINY
from tests.train.synthetic import NOW_MS, write_log
from train.nightly.lock import Claim, Taken, claim
from train.nightly.nightly import run


def start(url: str, name: str) -> Claim | Taken:
    with transaction(url) as connection:
        return claim(connection, "2025-10-09", name, now_ms=0, stale_after_ms=1_000, force=False)


def test_of_eight_replicas_that_start_at_once_one_runs(postgres_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: start(postgres_url, f"run-{i}"), range(8)))
    winners = [item for item in found if isinstance(item, Claim)]
    assert len(winners) == 1
    assert {item.run_id for item in found} == {winners[0].run_id}


def test_the_same_rows_are_the_same_episodes_on_both_databases(postgres_url: str, tmp_path: Path) -> None:
    with transaction(postgres_url) as connection:
        write_log(connection, EXPLORING, 12, seed=1)
    assert read(postgres_url)[0].digest() == read(a_log(tmp_path, sessions=12))[0].digest()


def test_a_night_on_postgres_publishes_a_champion(postgres_url: str, tmp_path: Path) -> None:
    with transaction(postgres_url) as connection:
        write_log(connection, EXPLORING, 30, seed=1)
    report = run(replace(night(postgres_url, tmp_path), now_ms=lambda: NOW_MS), TINY)
    assert report["outcome"] == "promote", report["reasons"]
    assert champion(postgres_url) == report["candidate"]
    assert run_state(postgres_url) == ("done", 1)
