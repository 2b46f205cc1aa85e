"""An empty, migrated database for a benchmark."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from migrations.upgrade import upgrade
from tests.harness.postgres import PostgresServer


@contextlib.contextmanager
def fresh_database(kind: str, folder: Path) -> Iterator[str]:
    """URL of a new SQLite file in `folder`, or of a Postgres that runs until the end."""
    if kind == "sqlite":
        url = f"sqlite:///{folder / 'log.db'}"
        upgrade(url)
        yield url
        return
    server = PostgresServer({"shared_buffers": "512MB", "max_wal_size": "4GB"})
    try:
        server.start()
        upgrade(server.url("postgres"))
        yield server.url("postgres")
    finally:
        server.destroy()
