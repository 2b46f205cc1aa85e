"""Databases for tests: a fresh SQLite file and a fresh Postgres database, both migrated, for every test that asks.

Files are written to memory where there is room: each commit on SQLite waits for a sync, which takes milliseconds on a
disk, and no test survives the machine.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from migrations.upgrade import upgrade
from tests.harness.browser import find_chromium
from tests.harness.migrated import migrate
from tests.harness.pgbouncer import find_pgbouncer
from tests.harness.postgres import PostgresServer, TestDatabases, find_binaries
from tests.harness.sealed import can_seal

POSTGRES_URL = "SEQROUTE_TEST_POSTGRES_URL"

MEMORY = Path("/dev/shm")
ROOM_BYTES = 2_000_000_000


def has_room(folder: Path) -> bool:
    """Whether tests may write, and run programs, there."""
    if not os.access(folder, os.W_OK):
        return False
    return shutil.disk_usage(folder).free >= ROOM_BYTES and not os.statvfs(folder).f_flag & os.ST_NOEXEC


if "TMPDIR" not in os.environ and has_room(MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# Every HTTP client reads the authorities that it trusts when it is made, which takes 0.1 s; no test leaves the machine.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "harness" / "no_authority.pem")

# As `seqroute serve` does. NumPy's threads would wait for each other by spinning: a fit of the reward model took twenty
# times the processor's time where three workers share two cores.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# XLA compiles a training step for half a minute. Compiled programs are shared by the run's processes and by later runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "500000000"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

# Where writing byte code is forbidden, every worker and every process that a test starts would compile the code again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A busy machine is slow: no example is judged by the clock.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


NO_CHROMIUM = "chromium: absent, so tests/e2e/test_dashboard_browser.py does not run (apt-get install chromium)"
NO_PGBOUNCER = "pgbouncer: absent, so tests/e2e/test_pgbouncer.py does not run (apt-get install pgbouncer)"
NO_SYSTEMD = "systemd-analyze: absent, so tests/deploy/test_systemd.py does not run (apt-get install systemd)"
NO_NETWORK = "network of its own: not allowed, so tests/e2e/test_outbound.py does not run (needs unshare, ip, TUN)"


def pytest_report_header() -> list[str]:
    """Which Postgres and which pgbouncer the tests run on; neither is ever left out in silence."""
    given = os.environ.get(POSTGRES_URL)
    bouncer = find_pgbouncer()
    return [
        f"postgres: {'the server of ' + POSTGRES_URL if given else find_binaries() / 'postgres'}",
        NO_PGBOUNCER if bouncer is None else f"pgbouncer: {bouncer}",
        f"chromium: {find_chromium()}" if find_chromium() else NO_CHROMIUM,
        *([] if can_seal() else [NO_NETWORK]),
        *([] if shutil.which("systemd-analyze") else [NO_SYSTEMD]),
    ]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """What needs pgbouncer, a browser, systemd or a network of its own is collected where there is one."""
    found: dict[str, Callable[[], object]] = {
        "test_pgbouncer.py": find_pgbouncer,
        "test_dashboard_browser.py": find_chromium,
        "test_outbound.py": can_seal,
        "test_systemd.py": lambda: shutil.which("systemd-analyze"),
    }
    looked_for = found.get(collection_path.name)
    return True if looked_for is not None and not looked_for() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Learning and the demo first: their files are few and long, and a long one at the end leaves a worker idle."""
    long = tuple(Path(__file__).parent / name for name in ("train", "demo"))
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in long))


def pytest_collection_finish() -> None:
    """As in a gateway, what imports made is not searched for garbage again and again: a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Also at the end, where it is read: what this machine could not try."""
    if find_pgbouncer() is None:
        terminalreporter.write_line(NO_PGBOUNCER, yellow=True)
    if find_chromium() is None:
        terminalreporter.write_line(NO_CHROMIUM, yellow=True)
    if shutil.which("systemd-analyze") is None:
        terminalreporter.write_line(NO_SYSTEMD, yellow=True)
    if not can_seal():
        terminalreporter.write_line(NO_NETWORK, yellow=True)


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[TestDatabases]:
    with contextlib.ExitStack() as cleanup:
        given = os.environ.get(POSTGRES_URL)
        if given is None:
            server = PostgresServer({"fsync": "off", "full_page_writes": "off"})  # it is never crashed
            cleanup.callback(server.destroy)
            server.start()
            given = server.url("postgres")
        databases = TestDatabases(given.replace("+psycopg", ""), upgrade)
        cleanup.callback(databases.close)
        yield databases


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


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A migrated, empty SQLite file."""
    url = f"sqlite:///{tmp_path / 'seqroute.db'}"
    migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The same test on both databases."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
