"""Databases for tests: a fresh SQLite file and a fresh Postgres database, both migrated, for every test that asks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrations.upgrade import upgrade
from tests.harness.postgres import PostgresServer, TestDatabases, find_binaries

POSTGRES_URL = "SEQROUTE_TEST_POSTGRES_URL"


def pytest_report_header() -> str:
    """Which Postgres the tests run on; it is never left out in silence."""
    given = os.environ.get(POSTGRES_URL)
    return f"postgres: {'the server of ' + POSTGRES_URL if given else find_binaries() / 'postgres'}"


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[TestDatabases]:
    given = os.environ.get(POSTGRES_URL)
    if given:
        databases = TestDatabases(given.replace("+psycopg", ""), upgrade)
        yield databases
        databases.close()
        return
    server = PostgresServer()
    try:
        server.start()
        yield TestDatabases(server.url("postgres"), upgrade)
    finally:
        server.destroy()


@pytest.fixture
def postgres_url(postgres_databases: TestDatabases) -> Iterator[str]:
    """A migrated, empty Postgres database."""
    name, url = postgres_databases.create()
    yield url
    postgres_databases.drop(name)


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A server of the test's own, started, that it may crash, freeze and start again."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite file."""
    path = tmp_path / "seqroute.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The same test on both databases."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
